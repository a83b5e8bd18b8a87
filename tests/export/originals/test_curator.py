"""Checkpoints of curator give its own energies and forces; what cannot be deployed is refused by name."""

import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import build_student, load_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, ConfigurationError, DeclarationError
from painn_deploy.export.model.student import Configuration, Student
from painn_deploy.export.originals import read_original
from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.curator import CURATOR
from painn_deploy.export.readers.reader import Opened, Potential
from painn_deploy.export.readers.stand_ins import Name, StandIn
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.commands.convert import convert_checkpoint
from tests.export.originals.dtu_figures import FILES, Figures, largest_errors
from tests.export.originals.sweep import count_of_refused_changes
from tests.export.schnetpack.edits import packed

FOLDER = FILES / "curator"
MODELS = ("default", "species", "gaussian")
ASE = Declaration()


def figures(name: str) -> Figures:
    return Figures.read(FOLDER / f"{name}.npz")


def content(name: str) -> bytes:
    return lzma.decompress((FOLDER / f"{name}.ckpt.xz").read_bytes())


def unpacked(name: str, folder: Path) -> Path:
    path = folder / f"{name}.ckpt"
    path.write_bytes(content(name))
    return path


def opened(name: str) -> Opened:
    """The file before anything of it was read; its tree may be changed."""
    archive = Archive(content(name), f"{name}.ckpt")
    return Opened(archive, archive.tree(), Path(f"{name}.ckpt"))


def student_of(found: Potential) -> Student:
    configuration = Configuration.from_mapping(found.configuration, "it")
    return build_student(found.tensors, configuration, "it", dtype=torch.float64)


def read(file: Opened, declared: Declaration = ASE) -> Potential:
    found = read_original(file, declared)
    assert found is not None
    return found


def part(file: Opened, *path: str) -> StandIn:
    """A module of the pickled model."""
    found = file.tree["model"]
    for name in path:
        found = found.part(name)
    return found


def output(file: Opened, kind: str) -> StandIn:
    (found,) = [module for _, module in part(file, "output_modules").children() if module.kind == kind]
    return found


def said(file: Opened, *path: str | int, key: str = "model_params") -> StandIn:
    """A node of the configuration."""
    found = file.tree[key]
    for step in path:
        found = found.part("_content")[step]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_energies_and_forces_are_its_own(name: str, tmp_path: Path) -> None:
    held = figures(name)
    assert len(held.structures) == 10
    energy, force = largest_errors(load_student(unpacked(name, tmp_path), dtype=torch.float64), held)
    assert energy < 1e-9
    assert force < 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_stress_is_the_derivative_of_its_energy(name: str, tmp_path: Path) -> None:
    held = figures(name)
    results = reference_results(load_student(unpacked(name, tmp_path), dtype=torch.float64), held.structures)
    periodic = [i for i, atoms in enumerate(held.structures) if atoms.pbc.all()]
    assert len(periodic) == 5
    for i in periodic:
        np.testing.assert_allclose(results[i]["stress"], held.others["numerical_stresses"][i], rtol=0, atol=1e-9)
        if name == "gaussian":  # it symmetrises nothing: its own differs off the diagonal, as biases turn with nothing
            np.testing.assert_allclose(results[i]["stress"][:3], held.others["stresses"][i][:3], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_it_can_be_converted(name: str, tmp_path: Path) -> None:
    convert_checkpoint(unpacked(name, tmp_path), tmp_path / "student.safetensors")
    student = load_student(tmp_path / "student.safetensors", dtype=torch.float64)
    assert max(largest_errors(student, figures(name))) < 1e-9


def test_an_exported_engine_gives_its_own_forces(tmp_path: Path) -> None:
    held = figures("species")
    (bundle,) = export_engines(unpacked("species", tmp_path), tmp_path, structures=held.structures)
    calculator = PaiNNCalculator(bundle)
    for atoms, energy, forces in zip(held.structures, held.energies, held.forces, strict=True):
        atoms.calc = calculator
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-5)
        assert abs(atoms.get_potential_energy() - energy) < 1e-5 * len(atoms)


def test_what_a_user_should_know_is_said(tmp_path: Path) -> None:
    remarks = " ".join(load_checkpoint(unpacked("default", tmp_path))[1].remarks)
    assert "energies in eV" in remarks
    assert "biases to vectors" in remarks
    assert "averaged" not in remarks


def test_a_model_saved_alone_is_read() -> None:
    file = opened("default")
    alone = Opened(file.archive, file.tree["model"], Path("model.pth"))
    assert max(largest_errors(student_of(read(alone)), figures("default"))) < 1e-9


def test_elements_of_its_data_are_those_that_it_was_trained_on() -> None:
    file = opened("species")
    content = file.tree["data_params"].part("_content")
    content["species"] = ["O", "H", "Cu"]
    assert read(file).configuration["species"] == [1, 8, 29]
    content["species"] = ["Xx"]
    assert "species" not in read(file).configuration


def test_what_lies_beside_a_checkpoint(tmp_path: Path) -> None:
    path = unpacked("species", tmp_path)
    path.with_suffix(".json").write_text('{"code": "curator", "species": ["H", "O"]}')
    assert load_student(path).configuration.species == (1, 8)
    path.with_suffix(".json").write_text('{"cutoff": 5.0}')
    with pytest.raises(ConfigurationError, match="says cutoff, which a checkpoint of curator says itself"):
        load_student(path)


# Scales and shifts.


def test_forces_that_are_not_scaled_are_not_the_slope_of_its_energy() -> None:
    file = opened("default")
    output(file, "GlobalRescaleShift").state["scale_keys"] = ["energy"]
    with pytest.raises(CheckpointError, match=r"energies are scaled by 0\.\d+ and its forces by 1 after"):
        read(file)


def test_scaled_stresses_are_not_remarked() -> None:
    file = opened("default")
    output(file, "GradientOutput").state["model_outputs"] = ["forces", "stress"]
    assert any("leaves its stresses and virials unscaled" in remark for remark in read(file).remarks)
    output(file, "GlobalRescaleShift").state["scale_keys"] = ["energy", "forces", "stress"]
    assert not any("unscaled" in remark for remark in read(file).remarks)


def test_a_mean_for_a_structure_is_no_energy_of_atoms() -> None:
    file = opened("default")
    held = output(file, "GlobalRescaleShift").state["_buffers"]
    held["atomwise_normalization"] = held["shift_by_E0"]  # which is False
    with pytest.raises(CheckpointError, match=r"-3\.\d+ is added to the energy of a structure whatever its size"):
        read(file)
    held["atomwise_normalization"] = held["scale_by"]
    with pytest.raises(CheckpointError, match="holds FloatStorage, not truth values"):
        read(file)
    del held["atomwise_normalization"]
    with pytest.raises(CheckpointError, match="lacks atomwise_normalization"):
        read(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_keys": ["energy", "energy", "forces"]}, "scales energy, energy, forces"),
        ({"scale_keys": ["energy", "forces", "dipole"]}, "scales energy, forces, dipole"),
        ({"shift_keys": ["forces"]}, "shifts forces"),
    ],
)
def test_what_is_scaled_is_known(change: dict[str, Any], message: str) -> None:
    file = opened("default")
    output(file, "GlobalRescaleShift").state.update(change)
    with pytest.raises(CheckpointError, match=message):
        read(file)


def swap(first: str, second: str) -> Callable[[Opened], None]:
    def change(file: Opened) -> None:
        modules = part(file, "output_modules").state["_modules"]
        modules[first], modules[second] = modules[second], modules[first]

    return change


def put(path: tuple[str, ...], name: str, value: Any) -> Callable[[Opened], None]:
    return lambda file: part(file, *path).state.__setitem__(name, value)


def replaced(path: tuple[str, ...], name: str, kind: str) -> Callable[[Opened], None]:
    """A module of another class in a place."""
    module, _, last = kind.rpartition(".")
    return lambda file: part(file, *path).state["_modules"].__setitem__(name, StandIn(Name(module, last)))


LAYERS = ("representation", "message_layers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap("0", "1"), "GradientOutput comes before energies of atoms are summed"),
        (swap("1", "2"), "scales forces, and comes before GradientOutput"),
        (put(("output_modules", "0"), "aggregation_mode", "mean"), "by 'mean' into 'energy', not by 'sum'"),
        (put(("output_modules", "0"), "output_key", "atomic_charge"), "by 'sum' into 'atomic_charge'"),
        (
            replaced(("output_modules",), "1", "curator.layer._atomwise_reduce.AtomwiseReduce"),
            "energies of atoms are reduced twice",
        ),
        (
            replaced(("output_modules",), "0", "curator.layer._rescale.PerSpeciesRescaleShift"),
            "does not act on the energies of atoms alone",
        ),
        (
            replaced(("output_modules",), "1", "curator.layer._feature.FeatureExtractor"),
            "is curator.layer._feature.FeatureExtractor, not",
        ),
        (
            replaced((), "representation", "curator.model.mace.MACE"),
            "the representation is curator.model.mace.MACE, not curator.model.painn.PainnModel",
        ),
        (
            replaced((), "representation", "curator.model.nequip.NequipModel"),
            "the representation is curator.model.nequip.NequipModel",
        ),
        (
            replaced((), "representation", "schnetpack.x.PainnModel"),
            "is schnetpack.x.PainnModel, not curator.model.painn.PainnModel",
        ),
        (
            replaced((*LAYERS, "0"), "cutoff_fn", "curator.layer.cutoff.Other"),
            "the cutoff function of .*0 is curator.layer.cutoff.Other",
        ),
        (replaced((*LAYERS, "0"), "radial_basis", "torch.nn.Identity"), "the radial basis of .* is torch.nn.Identity"),
        (
            replaced((*LAYERS, "1", "scalar_message_mlp"), "1", "torch.nn.modules.activation.ReLU"),
            "the activation of .* is torch.nn.modules.activation.ReLU, not torch.nn.modules.activation.SiLU",
        ),
        (replaced((*LAYERS, "1"), "more", "torch.nn.Identity"), "holds more, which PainnMessage does not"),
        (replaced((*LAYERS, "1", "scalar_message_mlp"), "3", "torch.nn.Identity"), "has the modules 0, 1, 2, 3"),
        (
            put((*LAYERS, "0"), "_forward_hooks", {0: "f"}),
            "holds _forward_hooks, which PainnMessage does not: it may change",
        ),
        (put((*LAYERS, "0"), "forward", "f"), "holds forward, which PainnMessage does not"),
        (put(("representation", "atom_embedding"), "max_norm", 1.0), "renormalises"),
        (put(("representation",), "cutoff", 5.0), r"different distances: \[4\.5, 5\.0\]"),
        (
            put(("input_modules", "0", "batch_nl", "neighbor_list"), "cutoff", 4.0),
            r"different distances: \[4\.0, 4\.5\]",
        ),
        (put((*LAYERS, "0", "radial_basis"), "num_basis", 21), r"\(24, 20\), and .* \(24, 21\)"),
        (put((*LAYERS, "0", "radial_basis"), "num_basis", True), "has True functions"),
        (put((*LAYERS, "0", "radial_basis"), "cutoff", -1.0), "no positive number"),
        (put((*LAYERS, "0", "radial_basis"), "_buffers", {"n": None, "x": "y"}), "holds x, which SineBasis does not"),
        (replaced(("input_modules",), "0", "curator.data.Other"), "an input module is curator.data.Other"),
    ],
)
def test_what_is_not_of_such_a_model_is_refused(change: Callable[[Opened], None], message: str) -> None:
    file = opened("default")
    change(file)
    with pytest.raises(CheckpointError, match=message):
        read(file)


@pytest.mark.parametrize("name", ["default", "gaussian"])
def test_what_is_added_to_any_module_is_refused(name: str) -> None:
    file = opened(name)
    assert count_of_refused_changes(file.tree["model"], lambda: CURATOR.read(file, ASE)) > 300


def test_interactions_share_one_cutoff_function_and_one_kind_of_basis() -> None:
    file = opened("default")
    own = StandIn(part(file, *LAYERS, "1", "cutoff_fn").name, state={"cutoff": 4.4})
    part(file, *LAYERS, "1").state["_modules"]["cutoff_fn"] = own
    with pytest.raises(CheckpointError, match=r"different distances: \[4\.4, 4\.5\]"):
        read(file)
    polynomial = StandIn(Name("curator.layer.cutoff", "PolynomialCutoff"), state={"cutoff": 4.5, "p": 6.0})
    part(file, *LAYERS, "1").state["_modules"]["cutoff_fn"] = polynomial
    with pytest.raises(CheckpointError, match="different cutoff functions"):
        read(file)
    part(file, *LAYERS, "0").state["_modules"]["cutoff_fn"] = polynomial
    assert read(file).configuration["cutoff_power"] == 6
    polynomial.state["p"] = 5.5
    with pytest.raises(CheckpointError, match=r"is 5\.5, and no whole number"):
        read(file)
    polynomial.state |= {"p": 6.0, "_factor": 1 / 4.5}
    assert read(file).configuration["cutoff_power"] == 6
    polynomial.state["_factor"] = 1 / 4.4  # by which its code multiplies distances
    with pytest.raises(CheckpointError, match=r"divides distances by 4\.4, and its cutoff is 4\.5"):
        read(file)


def test_each_interaction_may_have_a_basis_of_its_own() -> None:
    file = opened("default")
    own = StandIn(part(file, *LAYERS, "1", "radial_basis").name, state={"cutoff": 5.0, "num_basis": 20})
    part(file, *LAYERS, "1").state["_modules"]["radial_basis"] = own
    found = read(file)
    assert float(found.tensors["representation.radial_basis.1.freqs"][0]) == pytest.approx(np.pi / 5.0, rel=1e-15)
    assert largest_errors(student_of(found), figures("default"))[1] > 1e-3


# Weights that are there more than once.


def test_a_model_and_a_state_dict_that_disagree() -> None:
    file = opened("default")
    state = file.tree["state_dict"]
    state["model.representation.readout_mlp.0.weight"] = state["model.representation.update_layers.0.update_U.weight"]
    with pytest.raises(CheckpointError, match=r"disagree about representation\.readout_mlp\.0\.weight"):
        read(file)


@pytest.mark.parametrize(("name", "other"), [("scale_by", "shift_by"), ("shift_by_E0", "atomwise_normalization")])
def test_a_rescaling_that_a_model_and_its_state_dict_disagree_about(name: str, other: str) -> None:
    file = opened("default")
    held = output(file, "GlobalRescaleShift").state["_buffers"]
    held[name] = held[other]
    with pytest.raises(CheckpointError, match=rf"disagree about output_modules\.2\.{name}"):
        read(file)


def test_averaged_weights_that_are_not_those_of_the_model_are_remarked() -> None:
    file = opened("default")
    (callback,) = [value for name, value in file.tree["callbacks"].items() if "MovingAverage" in name]
    shadows = callback["ema"]["shadow_params"]
    shadows[0] = file.tree["optimizer_states"][0]["state"][0]["exp_avg"]
    assert any("averaged weights" in remark for remark in read(file).remarks)


# A state dict beside its configuration.


def node(value: Any) -> StandIn:
    if isinstance(value, dict):
        return StandIn(
            Name("omegaconf.dictconfig", "DictConfig"), state={"_content": {k: node(v) for k, v in value.items()}}
        )
    return StandIn(Name("omegaconf.nodes", "AnyNode"), state={"_val": value})


@pytest.mark.parametrize(
    ("path", "key", "value", "message"),
    [
        (("representation",), "cutoff", "${data.reach}", "refers to 'data.reach', which is not there"),
        (("representation",), "cutoff", "${multiply:${data.cutoff},2}", "computes a value"),
        (("representation",), "cutoff", "${model.representation.cutoff}", "refers to itself"),
        (("representation",), "num_interactions", 1000, "num_interactions = 1000"),
        (("representation",), "_target_", "curator.model.MACE", "the representation is curator.model.MACE"),
        (("representation", "cutoff_fn"), "_target_", "mine.PolynomialCutoff", "cutoff_fn .* is mine.PolynomialCutoff"),
        (("representation", "cutoff_fn"), "cutoff", 3.5, r"different distances: \[3\.5, 4\.0\]"),
        (("representation", "radial_basis"), "_target_", "curator.layer.SineBasis", r"tensors bessel_weights \(7,\)"),
        (("output_modules", 1), "aggregation_mode", "mean", "by 'mean' into 'energy'"),
        ((), "_target_", "curator.model.EnsembleModel", "the model is curator.model.EnsembleModel"),
        (("output_modules", 1), "_args_", ["energy", False, "mean"], "the output module 1 is made with _args_"),
        (("representation", "cutoff_fn"), "_partial_", True, "cutoff_fn of its configuration is made with _partial_"),
        (("representation",), "cutoff_fn", "", "the cutoff_fn of its configuration is str"),
        ((), "input_modules", 5.0, "the input_modules of its configuration are no list"),
    ],
)
def test_what_a_configuration_does_not_make(path: tuple[str | int, ...], key: str, value: Any, message: str) -> None:
    file = opened("species")
    said(file, *path).part("_content")[key] = node(value)
    with pytest.raises(CheckpointError, match=message):
        read(file)


def test_names_of_a_compiled_model() -> None:
    file = opened("species")
    state = file.tree["state_dict"]
    file.tree["state_dict"] = {name.replace("model.", "model._orig_mod.", 1): thing for name, thing in state.items()}
    assert max(largest_errors(student_of(read(file)), figures("species"))) < 1e-9


def test_a_configuration_that_says_its_prefactor_and_its_defaults() -> None:
    file = opened("species")
    basis = said(file, "representation", "radial_basis").part("_content")
    plain = read(file).tensors["representation.filter_net.weight"]
    basis["sqrt_prefactor"] = node(True)
    torch.testing.assert_close(
        read(file).tensors["representation.filter_net.weight"], plain * 2**0.5, rtol=1e-15, atol=0
    )
    said(file, "representation").part("_content")["cutoff_fn"] = node(None)
    assert "cutoff_fn" not in read(file).configuration


def test_a_basis_of_before_its_weights_were_divided_by_the_cutoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until September 2024 curator's BesselBasis kept n π under the same name, and no class says which it is."""
    file = opened("species")
    tensor, cutoff = file.archive.tensor, 4.0
    monkeypatch.setattr(file.archive, "tensor", lambda t, name: tensor(t, name) * (cutoff if "bessel" in name else 1))
    with pytest.raises(CheckpointError, match="BesselBasis is of before September 2024, whose weights are n π"):
        read(file)


def test_a_configuration_without_end() -> None:
    file = opened("species")
    deep: StandIn = node({})
    for _ in range(30):  # a thousand million values
        deep = StandIn(deep.name, state={"_content": {"a": deep, "b": deep}})
    said(file).part("_content")["extra"] = deep
    with pytest.raises(CheckpointError, match="nested without end"):
        read(file)


def test_a_state_dict_with_more_than_its_configuration_makes() -> None:
    file = opened("species")
    state = file.tree["state_dict"]
    state["model.representation.readout_mlp.4.weight"] = state["model.representation.readout_mlp.2.weight"]
    with pytest.raises(CheckpointError, match=r"no place for: readout_mlp\.4\.weight"):
        read(file)
    state["something"] = state["model.representation.readout_mlp.2.weight"]
    with pytest.raises(CheckpointError, match="'something', which is no tensor of its model"):
        read(file)


def test_a_rescaling_that_data_made_scales_forces_if_they_said_so() -> None:
    file = opened("default")
    del file.tree["model"]
    assert max(largest_errors(student_of(read(file)), figures("default"))) < 1e-9
    said(file, "output_modules", 2).part("_content")["scale_keys"] = ["energy", "forces"]  # as it may say itself
    assert max(largest_errors(student_of(read(file)), figures("default"))) < 1e-9
    del said(file, "output_modules", 2).part("_content")["scale_keys"]
    file.tree["data_params"].part("_content")["scale_forces"] = False
    with pytest.raises(CheckpointError, match="its forces by 1 after they were derived"):
        read(file)


def test_weights_alone_say_too_little() -> None:
    file = opened("species")
    del file.tree["model_params"], file.tree["data_params"]
    alone = {name.removeprefix("model."): thing for name, thing in file.tree["state_dict"].items()}
    with pytest.raises(CheckpointError, match=r"weights alone.*model_path/best_model_\*\.ckpt"):
        read(Opened(file.archive, alone, Path("weights.pth")))


# Units.


def test_units_of_the_owner_s_own_files_are_taken() -> None:
    file = opened("species")
    student, held = student_of(read(file, Declaration("kcal/mol", "Ang"))), figures("species")
    kcal = 0.0433641
    results = reference_results(student, held.structures)
    for result, energy in zip(results, held.energies, strict=True):
        assert result["energy"] == pytest.approx(energy * kcal, rel=1e-5)
    with pytest.raises(DeclarationError, match="one energy"):
        read(file, Declaration(energy_key="U0"))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("data_type", "NumpyDataset", "NumpyDataset"),
        ("transforms", [{"_target_": "curator.data.UnitTransform"}], "Unit"),
    ],
)
def test_units_of_data_that_are_not_ase_s_have_to_be_said(key: str, value: Any, named: str) -> None:
    file = opened("species")
    file.tree["data_params"].part("_content")[key] = value
    with pytest.raises(DeclarationError, match=f"{named}.*--energy-unit"):
        read(file)
    assert read(file, Declaration("eV", "Ang")).configuration["cutoff"] == 4.0


def test_lists_of_neighbours_change_no_units() -> None:
    file = opened("species")
    file.tree["data_params"].part("_content")["transforms"] = [{"_target_": "curator.data.Asap3NeighborList"}]
    assert read(file).configuration["cutoff"] == 4.0


# Other files of curator's.


def test_an_ensemble_is_given_as_its_members() -> None:
    file = opened("default")
    ensemble = StandIn(Name("curator.model.ensemble", "EnsembleModel"))
    with pytest.raises(CheckpointError, match="ensemble.*--committee"):
        read(Opened(file.archive, ensemble, Path("ensemble.pth")))


def test_torchscript_is_program_text() -> None:
    module = {"archive/data.pkl": b"\x80\x02N.", "archive/code/a.py": b"", "archive/byteorder": b"little"}
    archive = Archive(packed(module), "compiled_model.pt")
    compiled = StandIn(Name("__torch__.curator.model.base", "NeuralNetworkPotential"))
    file = Opened(archive, compiled, Path("compiled_model.pt"))
    assert CURATOR.claims(file)
    with pytest.raises(CheckpointError, match=r"TorchScript.*model_path/best_model_\*\.ckpt"):
        read(file)


def test_a_model_of_somebody_s_own_class() -> None:
    file = opened("default")
    file.tree["model"] = StandIn(Name("curator.model.base", "LitNNP"))
    with pytest.raises(
        CheckpointError, match="the model is curator.model.base.LitNNP, not curator.model.base.NeuralNetworkPotential"
    ):
        read(file)


def test_methods_that_a_checkpoint_names_are_not_called(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path(tmp_path / "made").touch, ()  # getattr(Path(...), "touch")()

    torch.save({"model": Trap()}, tmp_path / "trap.ckpt")
    with pytest.raises(CheckpointError, match="names .*getattr.*Nothing was executed"):
        load_student(tmp_path / "trap.ckpt")
    assert not (tmp_path / "made").exists()
