"""Files of NeuralForceField give its own energies and forces, and what a Painn cannot be deployed with is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, ConfigurationError, DeclarationError
from painn_deploy.export.readers import nff
from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.nff_modules import read_modules
from painn_deploy.export.readers.reader import Opened
from painn_deploy.export.readers.stand_ins import Name, StandIn
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.commands.convert import convert_checkpoint
from tests.export.originals.sweep import count_of_refused_changes
from tests.export.schnetpack.edits import edited, text

FILES = Path(__file__).with_name("files") / "nff"
KCAL = Declaration("kcal/mol", "Ang")
CASES = {
    "swish.best_model": ("swish", None),
    "learnable.best_model": ("learnable", "energy_0"),
    "old.best_model": ("old", None),
    "checkpoints/checkpoint-3.pth.tar": ("trained", None),
}
"""Files, and whose figures they have; what the energy is called."""


def structures() -> tuple[list[Atoms], np.ndarray]:
    with np.load(FILES / "reference.npz") as peer:
        splits = np.cumsum(peer["sizes"])[:-1]
        parts = (np.split(peer["numbers"], splits), np.split(peer["positions"], splits), peer["cells"], peer["pbc"])
    return [Atoms(z, r, cell=cell, pbc=pbc) for z, r, cell, pbc in zip(*parts, strict=True)], splits


def figures(name: str) -> tuple[np.ndarray, list[np.ndarray]]:
    with np.load(FILES / "reference.npz") as peer:
        return peer[f"{name}/energies"], np.split(peer[f"{name}/forces"], structures()[1])


def errors(student: Any, name: str) -> tuple[float, float]:
    """The largest of energies and of forces."""
    energies, forces = figures(name)
    results = reference_results(student, structures()[0])
    assert len(results) == 10
    return (
        max(abs(result["energy"] - energy) for result, energy in zip(results, energies, strict=True)),
        max(np.abs(result["forces"] - force).max() for result, force in zip(results, forces, strict=True)),
    )


def declared(file: str) -> Declaration:
    return replace(KCAL, energy_key=CASES[file][1])


@pytest.mark.parametrize("file", CASES)
def test_energies_and_forces_are_its_own(file: str) -> None:
    name, key = CASES[file]
    student, checkpoint = load_checkpoint(FILES / file, dtype=torch.float64, declared=declared(file))
    energy, force = errors(student, name)
    assert np.abs(np.concatenate(figures(name)[1])).max() > 0.3
    assert energy < 1e-9
    assert force < 1e-9
    assert student.configuration.epsilon == 3e-15
    assert student.configuration.cutoff == 4.0
    beside = f"Its cutoff, 4, and its scale are those of {FILES / 'params.json'}: the file does not say them."
    left_out = ("Its read-outs 'energy_1' are left out: 'energy_0' is the energy.",) if key else ()
    assert checkpoint.remarks == ((beside,) if name == "trained" else left_out)


@pytest.mark.parametrize("file", CASES)
def test_a_converted_file_is_the_same_student(file: str, tmp_path: Path) -> None:
    convert_checkpoint(FILES / file, tmp_path / "student.safetensors", declared=declared(file))
    energy, force = errors(load_student(tmp_path / "student.safetensors", dtype=torch.float64), CASES[file][0])
    assert energy < 1e-9
    assert force < 1e-9


@pytest.mark.parametrize("file", ["swish.best_model", "learnable.best_model"])
def test_an_exported_engine_gives_its_own_forces(file: str, tmp_path: Path) -> None:
    atoms = structures()[0]
    (bundle,) = export_engines(FILES / file, tmp_path, structures=atoms, declared=declared(file))
    calculator = PaiNNCalculator(bundle)
    energies, forces = figures(CASES[file][0])
    for each, energy, wanted in zip(atoms, energies, forces, strict=True):
        each.calc = calculator
        np.testing.assert_allclose(each.get_forces(), wanted, rtol=0, atol=2e-5 * max(1, np.abs(wanted).max()))
        assert abs(each.get_potential_energy() - energy) < 1e-5 * max(1, abs(energy))


@pytest.mark.parametrize(
    "order",
    [
        {"message": ("scalar", "vector", "direction")},
        {"message": ("direction", "scalar", "vector")},
        {"message": ("vector", "direction", "scalar")},
        {"update": ("product", "vector", "scalar")},
        {"update": ("scalar", "product", "vector")},
        {"update": ("vector", "scalar", "product")},
        {"norms_first": True},
    ],
)
def test_splits_in_another_order_give_other_forces(order: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nff, "ORDER", replace(nff.ORDER, **order))
    assert errors(load_student(FILES / "swish.best_model", dtype=torch.float64, declared=KCAL), "swish")[1] > 0.1


def test_units_are_those_that_were_declared() -> None:
    """A model that was trained in Hartree and Bohr answers for a structure that is as large in Bohr."""
    there = load_student(FILES / "learnable.best_model", dtype=torch.float64, declared=declared("learnable.best_model"))
    bohr = Declaration("Hartree", "Bohr", energy_key="energy_0")
    here = load_student(FILES / "learnable.best_model", dtype=torch.float64, declared=bohr)
    small = structures()[0]
    large = [Atoms(a.numbers, a.positions * units.Bohr, cell=a.cell.array * units.Bohr, pbc=a.pbc) for a in small]
    for one, other in zip(reference_results(there, small), reference_results(here, large), strict=True):
        assert one["energy"] / (units.kcal / units.mol) == pytest.approx(other["energy"] / units.Hartree, rel=1e-10)
    with pytest.raises(DeclarationError, match="does not say its units"):
        load_student(FILES / "swish.best_model")


def test_the_energy_is_one_of_its_read_outs() -> None:
    with pytest.raises(DeclarationError, match="what its read-outs give is called: 'energy_0', 'energy_1'"):
        load_student(FILES / "learnable.best_model", declared=KCAL)
    with pytest.raises(CheckpointError, match=r"'energy_1' is a sum of read-outs after every interaction \(skip_conn"):
        load_student(FILES / "learnable.best_model", declared=replace(KCAL, energy_key="energy_1"))


@pytest.mark.parametrize("kind", [*nff.SUBCLASSES, "SchNet"])
def test_other_models_of_its_code_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = edited(FILES / "old.best_model", tmp_path / "best_model", {b"painn\nPainn\n": f"painn\n{kind}\n".encode()})
    with pytest.raises(CheckpointError, match=rf"it holds .*{kind}.*What can be deployed of NeuralForceField is Painn"):
        load_student(path, declared=KCAL)


ACTIVATIONS = {
    b"nff.nn.activations\nLearnableSwish\n": "is nff.nn.activations.LearnableSwish",
    b"torch.nn.modules.activation\nTanh\n": "is torch.nn.modules.activation.Tanh",
    b"nff.nn.layers\nSwish\n": "is nff.nn.layers.Swish",
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_other_activations_are_refused(name: bytes, tmp_path: Path) -> None:
    path = edited(FILES / "swish.best_model", tmp_path / "best_model", {b"nff.nn.activations\nSwish\n": name})
    with pytest.raises(CheckpointError, match=ACTIVATIONS[name]):
        load_student(path, declared=KCAL)


def test_torch_s_silu_is_swish(tmp_path: Path) -> None:
    silu = {b"nff.nn.activations\nSwish\n": b"torch.nn.modules.activation\nSiLU\n"}
    path = edited(FILES / "swish.best_model", tmp_path / "best_model", silu)
    assert errors(load_student(path, dtype=torch.float64, declared=KCAL), "swish")[1] < 1e-9


def opened(name: str = "swish") -> Opened:
    path = FILES / f"{name}.best_model"
    archive = Archive(path.read_bytes(), str(path))
    return Opened(archive, archive.tree(), path)


def at(model: StandIn, *names: str) -> StandIn:
    for name in names:
        model = model.part(name)
    return model


def modules(model: StandIn, *names: str) -> dict[str, Any]:
    held: dict[str, Any] = at(model, *names).state["_modules"]
    return held


BASIS = ("message_blocks", "1", "inv_message", "dist_embed", "block", "0")
READOUT = ("readout_blocks", "0", "readoutdict", "energy")
SHIFT = ("readout_blocks", "0", "scale_shift")
HOOK = {0: Name("nff.utils.tools", "hook")}


def attribute(name: str, value: Any, *owner: str) -> Callable[[StandIn], Any]:
    return lambda model: at(model, *owner).state.update({name: value})


def without(name: str, *owner: str) -> Callable[[StandIn], Any]:
    return lambda model: at(model, *owner).state.pop(name)


CHANGED: dict[str, tuple[Callable[[StandIn], Any], str]] = {
    "excluded volume": (attribute("excl_vol", True), r"excluded volume \(excl_vol\), repulsion"),
    "skip connection": (attribute("skip", True), "sum of read-outs after every interaction"),
    "skip of the energy": (attribute("skip", {"energy": True}), "sum of read-outs after every interaction"),
    "skip of nothing": (attribute("skip", {}), "whether a read-out follows every interaction is not said"),
    "no skip": (without("skip"), "not said .skip is NoneType"),
    "mean pool": (
        attribute("pool_dic", {"energy": StandIn(Name("nff.nn.modules.schnet", "MeanPool"))}),
        r"'energy' is pooled by MeanPool, not summed over atoms \(pool_dic\)",
    ),
    "attention pool": (
        attribute("pool_dic", {"energy": StandIn(Name("nff.nn.modules.schnet", "AttentionPool"))}),
        "pooled by AttentionPool",
    ),
    "a sum of one's own": (
        attribute("pool_dic", {"energy": StandIn(Name("nff.own", "SumPool"))}),
        "pool_dic.energy is nff.own.SumPool, not nff.nn.modules.schnet.SumPool",
    ),
    "no pool": (attribute("pool_dic", {}), "'energy' is pooled by nothing"),
    "no output": (lambda m: (m.state.pop("pool_dic"), m.state.update(output_keys=[])), "is pooled by nothing"),
    "the cutoff": (attribute("cutoff", 5.0), "its parts have different cutoffs: 5.0, 4.0"),
    "a basis's cutoff": (attribute("cutoff", 3.0, *BASIS), "different cutoffs: 4.0, 3.0"),
    "a cutoff in words": (attribute("cutoff", "4.0", *BASIS), "the cutoff of .* is no number; it is str"),
    "another basis": (
        lambda m: modules(m, *BASIS[:-1]).update({"0": StandIn(Name("nff.nn.layers", "ExpNormalBasis"))}),
        "is nff.nn.layers.ExpNormalBasis, not nff.nn.layers.PainnRadialBasis",
    ),
    "no basis": (without("n", *BASIS), "it lacks message_blocks.1.inv_message.dist_embed.block.0.n"),
    "learnable in one": (
        lambda m: at(m, *BASIS).state.update(n=at(opened("learnable").tree, *BASIS).part("n")),
        "the frequencies of some interactions are parameters",
    ),
    "another envelope": (
        lambda m: modules(m, *BASIS[:-2]).update(f_cut=StandIn(Name("nff.nn.layers", "PolynomialCutoff"))),
        "is nff.nn.layers.PolynomialCutoff, not nff.nn.layers.CosineEnvelope",
    ),
    "a hook": (attribute("_forward_hooks", HOOK, *READOUT, "1"), "readoutdict.energy.1 holds _forward_hooks, which"),
    "a hook before": (attribute("_forward_pre_hooks", HOOK), "the model holds _forward_pre_hooks"),
    "a hook of dropout": (attribute("_forward_hooks", HOOK, *READOUT, "1", "dropout"), "dropout holds _forward_hooks"),
    "an embedding of descriptors": (  # of a fork that predicts properties of atoms, under the same names
        lambda m: modules(m).update(embed_block=StandIn(Name("nff.nn.modules.painn", "NewEmbeddingBlock"))),
        "embed_block is nff.nn.modules.painn.NewEmbeddingBlock, not nff.nn.modules.painn.EmbeddingBlock",
    ),
    "an attribute": (attribute("temperature", 2.0, *READOUT, "0"), "holds temperature, which Dense does not"),
    "a function": (attribute("forward", Name("nff.own", "forward")), "the model holds forward, which Painn does not"),
    "a module": (
        lambda m: modules(m).update(charges=StandIn(Name("nff.nn.modules.spooky", "Electrostatics"))),
        "the model holds charges, which Painn does not",
    ),
    "a normalised embedding": (attribute("max_norm", 1.0, "embed_block", "atom_embed"), "renormalises its rows"),
    "an activation at the end": (
        lambda m: (
            at(m, *READOUT, "1").state.pop("activation"),
            modules(m, *READOUT, "1").update(activation=StandIn(Name("nff.nn.activations", "Swish"))),
        ),
        "readoutdict.energy.1 has the activation nff.nn.activations.Swish, and Painn's has none",
    ),
    "no activation": (
        lambda m: modules(m, *READOUT, "0").update(activation=None),
        "the activation of .*energy.0 is NoneType",
    ),
    "two activations": (
        lambda m: modules(m, *READOUT, "0").update(activation=StandIn(Name("nff.nn.activations", "shifted_softplus"))),
        "different activations: silu, shifted_softplus",
    ),
    "a third layer": (
        lambda m: modules(m, *READOUT).update({"2": modules(m, *READOUT)["1"]}),
        "readoutdict.energy has 3 layers, not 2",
    ),
    "layers by other names": (
        lambda m: modules(m, *READOUT).update({"last": modules(m, *READOUT).pop("1")}),
        "names its modules otherwise than by numbers",
    ),
    "many interactions": (
        lambda m: modules(m, "update_blocks").update({str(i): None for i in range(101)}),
        "update_blocks holds 101 modules",
    ),
    "an interaction less": (
        lambda m: modules(m, "update_blocks").popitem(),
        "it has 3 message blocks and 2 update blocks",
    ),
    "a bias": (
        lambda m: at(m, "update_blocks", "0", "u_mat").state["_parameters"].update(
            bias=at(m, *READOUT, "1").part("bias")
        ),
        "holds tensors that a Painn has no place for: update_blocks.0.u_mat.bias",
    ),
    "means in words": (attribute("means", {"energy": "low"}, *SHIFT), "the entry of 'energy' in means is no number"),
    "means of elements": (attribute("means", [1.0], *SHIFT), "the means of its read-outs are no mapping"),
    "no shift": (
        lambda m: modules(m, "readout_blocks", "0").pop("scale_shift"),
        "readout_blocks.0.scale_shift is NoneType, not nff.nn.modules.schnet.ScaleShift",
    ),
    "no read-outs": (lambda m: modules(m, "readout_blocks").clear(), "readout_blocks.0 is NoneType, not nff"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGED)
def test_what_changes_the_equations_is_refused(what: str) -> None:
    change, message = CHANGED[what]
    file = opened()
    nff.read_nff(file, KCAL)
    change(file.tree)
    with pytest.raises(CheckpointError, match=message):
        nff.read_nff(file, KCAL)


def test_what_is_added_to_any_module_is_refused() -> None:
    file = opened()
    assert count_of_refused_changes(file.tree, lambda: nff.read_nff(file, KCAL)) > 900


def test_what_old_files_lack_is_as_its_code_takes_it() -> None:
    """Files of 2021 have no attributes that were added later, and whether read-outs are summed is one word."""
    file = opened()
    wanted = nff.read_nff(file, KCAL)
    for name in ("cutoff", "output_keys", "pool_dic", "excl_vol", "compute_delta", "grad_keys", "num_readouts"):
        file.tree.state.pop(name)
    file.tree.state["skip"] = False
    for layer in (*modules(file.tree, *READOUT).values(), modules(file.tree, *BASIS[:-1])["1"]):
        layer.state["_modules"].pop("dropout")
    found = nff.read_nff(file, KCAL)
    assert found.configuration == wanted.configuration
    assert found.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(found.tensors[name], wanted.tensors[name]) for name in wanted.tensors)


def test_a_read_out_after_the_only_interaction_is_the_last_one_s() -> None:
    file = opened()
    file.tree.state["skip"] = {"energy": True}
    for blocks in ("message_blocks", "update_blocks"):
        held = modules(file.tree, blocks)
        del held["1"], held["2"]
    assert nff.read_nff(file, KCAL).configuration["num_interactions"] == 1


@pytest.mark.parametrize("text_of_bytes", [True, False])
def test_means_may_be_numbers_of_numpy_and_of_torch(text_of_bytes: bool) -> None:
    """numpy's are bytes, which a pickle of torch's holds as text."""
    file = opened()
    held: Any = np.float64(-3.25).tobytes()
    if text_of_bytes:
        held = StandIn(Name("_codecs", "encode"), (held.decode("latin1"), "latin1"))
    double = StandIn(Name("numpy", "dtype"), ("f8", False, True))
    at(file.tree, *SHIFT).state["means"] = {"energy": StandIn(Name("numpy.core.multiarray", "scalar"), (double, held))}
    at(file.tree, *SHIFT).state["stddevs"] = {"energy": at(file.tree, *READOUT, "1").part("bias")}
    weights, settings = read_modules(file.archive, file.tree, KCAL)
    assert settings.mean == -3.25
    assert settings.scale == weights["readout_blocks.0.readoutdict.energy.1.bias"].item()


def copied(folder: Path, **changes: Any) -> Path:
    """The Trainer's checkpoint beside hyperparameters with changes; None takes one away."""
    shutil.copytree(FILES / "checkpoints", folder / "checkpoints")
    params = json.loads((FILES / "params.json").read_text())
    params["details"] = {k: v for k, v in (params["details"] | changes).items() if v is not None}
    (folder / "params.json").write_text(json.dumps(params))
    return folder / "checkpoints" / "checkpoint-3.pth.tar"


HYPERPARAMETERS: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "another model": (
        {"model_type": "PainnDiabat"},
        CheckpointError,
        "say PainnDiabat and not Painn: its energ",
    ),
    "an unknown model": ({"model_type": "SchNet"}, ConfigurationError, "model_type 'SchNet'. Only 'Painn' is read"),
    "no model": ({"model_type": None}, ConfigurationError, "model_type 'None'"),
    "a model in a list": ({"model_type": ["Painn"]}, ConfigurationError, "model_type .*Only 'Painn' is read"),
    "excluded volume": ({"excl_vol": True}, CheckpointError, "excluded volume"),
    "mean pool": ({"pool_dic": {"energy": {"name": "Mean", "param": {}}}}, CheckpointError, "pooled by mean"),
    "no pool": ({"pool_dic": {}}, ConfigurationError, "do not say what 'energy' is"),
    "skip": ({"skip_connection": {}}, ConfigurationError, "do not say what 'energy' is"),
    "activation": ({"activation": "learnable_swish"}, CheckpointError, "its activation is 'learnable_swish'"),
    "learnable": ({"learnable_k": True}, CheckpointError, "say learnable_k=True, and its weights say otherwise"),
    "cutoff": ({"cutoff": "4"}, ConfigurationError, "have cutoff = '4'"),
    "no cutoff": ({"cutoff": None}, ConfigurationError, "have cutoff = 'None'"),
    "far": ({"n_rbf": 10**9}, ConfigurationError, "have n_rbf = '1000000000'"),
    "interactions": ({"num_conv": 2}, ConfigurationError, "have num_conv = 2, and its weights 1"),
    "functions": ({"n_rbf": 6}, ConfigurationError, "have n_rbf = 6, and its weights 5: they are of another"),
    "features": ({"feat_dim": 16}, ConfigurationError, "have feat_dim = 16, and its weights 8: they are of another"),
    "means": ({"means": {"energy": "x"}}, ConfigurationError, "The means beside .* hold 'x' for 'energy'"),
    "no number": (
        {"means": {"energy": float("nan")}},
        ConfigurationError,
        "hold 'nan' for 'energy', which is no finite",
    ),
    "large": ({"stddevs": {"energy": 10**400}}, ConfigurationError, "hold '10{79}' for 'energy', which is no finite"),
    "long": ({"activation": "s" * 10_000}, CheckpointError, "its activation is 's{80}'"),
    "stddevs": ({"stddevs": 2.0}, ConfigurationError, "The stddevs beside .* are no mapping"),
}


@pytest.mark.parametrize("what", HYPERPARAMETERS)
def test_hyperparameters_that_cannot_be_deployed_are_refused(what: str, tmp_path: Path) -> None:
    changes, error, message = HYPERPARAMETERS[what]
    with pytest.raises(error, match=message):
        load_student(copied(tmp_path, **changes), declared=KCAL)


def test_hyperparameters_are_found_where_its_users_have_them(tmp_path: Path) -> None:
    """Beside the checkpoint or in the folder above; alone or under `modelparams`, or in JSON of the same stem."""
    path = copied(tmp_path)
    above = tmp_path / "params.json"
    params = json.loads(above.read_text())["details"]
    for said in (params, {"modelparams": params}):
        above.write_text(json.dumps(said))
        load_student(path, declared=KCAL)
    above.rename(path.with_name("params.json"))
    load_student(path, declared=KCAL)
    path.with_name("params.json").rename(path.with_suffix(".json"))
    load_student(path, declared=KCAL)
    path.with_suffix(".json").write_text(json.dumps({"code": "NeuralForceField"}))
    above.write_text(json.dumps(params))
    load_student(path, declared=KCAL)
    path.with_suffix(".json").unlink()
    above.unlink()
    with pytest.raises(ConfigurationError, match=r"holds weights of NeuralForceField alone.*params\.json"):
        load_student(path, declared=KCAL)
    above.write_text("{")
    with pytest.raises(ConfigurationError, match="hyperparameters of .* cannot be read"):
        load_student(path, declared=KCAL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("update_blocks.0.s_dense.1.weight"), "it lacks update_blocks.0.s_dense.1.weight"),
        (lambda w: w.update({"update_blocks.0.beta": torch.ones(1)}), "no place for: update_blocks.0.beta"),
        (
            lambda w: w.pop("readout_blocks.0.readoutdict.energy.1.bias"),
            r"it lacks readout_blocks\S+energy.1.bias",
        ),
        # U and V together would have as many rows as they should
        (
            lambda w: w.update({f"update_blocks.0.{n}_mat.weight": torch.ones(s, 8) for n, s in (("u", 7), ("v", 9))}),
            r"interaction 0 has layers of the shapes \[\(7, 8\)\] for U; its embedding and its radial basis make",
        ),
        (
            lambda w: w.update({"message_blocks.0.inv_message.dist_embed.block.1.bias": torch.ones(23)}),
            r"of the shapes \[\(24, 5\)\] for filters and other biases",
        ),
        (
            lambda w: w.update({"readout_blocks.0.readoutdict.energy.1.bias": torch.tensor(1.0)}),
            r"the read-out has layers of the shapes \[\(4, 8\), \(1, 4\)\] for energies and other biases",
        ),
        (lambda w: w.update({"embed_block.atom_embed.weight": torch.ones(8)}), r"an embedding of the shape \(8,\)"),
    ],
)
def test_weights_are_those_of_a_painn(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    path = copied(tmp_path)
    weights = torch.load(path, weights_only=True)["model"]
    change(weights)
    torch.save(weights, path)  # a state dict alone is read, too
    with pytest.raises(CheckpointError, match=message):
        load_student(path, declared=KCAL)


def test_a_state_dict_of_a_parallel_model_is_that_of_the_model_in_it(tmp_path: Path) -> None:
    path = copied(tmp_path)
    content = torch.load(path, weights_only=True)
    wrapped = {f"module.{name}": tensor for name, tensor in content["model"].items()}
    torch.save(content | {"model": wrapped}, path)
    assert errors(load_student(path, dtype=torch.float64, declared=KCAL), "trained")[1] < 1e-9


def test_a_file_says_no_more_than_names_and_numbers() -> None:
    for file in CASES:
        assert b"def forward" not in (FILES / file).read_bytes()
    assert text("energy") in Archive((FILES / "swish.best_model").read_bytes(), "").record("data.pkl")
