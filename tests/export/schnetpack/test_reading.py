"""What SchNetPack saved gives SchNetPack's own energies and forces, and what we cannot say in our terms is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, ConfigurationError, DeclarationError
from painn_deploy.export.readers import archive
from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.averages import holds_average
from tests.conftest import reference_systems
from tests.export.schnetpack.edits import FILES, KCAL, edited, packed, records, text

BOHR = Declaration("Hartree", "Bohr")
# A file, what it was trained in, and the file whose energies and forces SchNetPack was asked for.
SAME = {
    "gaussian.best_model": (KCAL, "gaussian.best_model"),
    "bessel.best_model": (BOHR, "bessel.best_model"),
    "shared.best_model": (KCAL, "shared.best_model"),
    "deployed.pt": (KCAL, "gaussian.best_model"),
    "best_inference_model": (KCAL, "best_inference_model"),
    "last.ckpt": (KCAL, "best_inference_model"),
}


def agrees(student: Any, name: str) -> None:
    with np.load(FILES / "reference.npz") as peer:
        splits = np.cumsum(peer["sizes"])[:-1]
        parts = [np.split(peer[key], splits) for key in ("numbers", "positions", f"{name}/forces")]
        energies = peer[f"{name}/energies"]
    structures = [Atoms(numbers, positions) for numbers, positions in zip(*parts[:2], strict=True)]
    for result, energy, forces in zip(reference_results(student, structures), energies, parts[2], strict=True):
        assert np.abs(forces).max() > 1e-3
        np.testing.assert_allclose(result["forces"], forces, rtol=0, atol=1e-9)
        assert abs(result["energy"] - energy) < 1e-8 * abs(energy)


@pytest.mark.parametrize("file", SAME)
def test_energies_and_forces_are_schnetpack_s_own(file: str) -> None:
    declared, name = SAME[file]
    student, checkpoint = load_checkpoint(FILES / file, dtype=torch.float64, declared=declared)
    agrees(student, name)
    assert checkpoint.name == file.removesuffix(".best_model").removesuffix(".pt").removesuffix(".ckpt")
    assert checkpoint.declared == declared
    assert checkpoint.remarks == ()
    assert student.configuration.epsilon == 2e-8
    assert student.configuration.cutoff == pytest.approx(4.0)
    assert student.configuration.species is None


@pytest.mark.parametrize("name", ["ethanol_1", "ethanol_2", "ethanol_3", "aspirin"])
def test_trained_models_give_schnetpack_s_own_forces(references: Path, name: str) -> None:
    path = references / "schnetpack_trained" / f"{name}.best_model"
    declared = Declaration("kcal/mol", "Ang", (1, 6, 8))
    student, checkpoint = load_checkpoint(path, dtype=torch.float64, declared=declared)
    assert (checkpoint.name, student.species) == (name, (1, 6, 8))
    systems = reference_systems(path.with_name(f"{name}.reference.npz"))
    assert len(systems) > 10
    results = reference_results(student, [atoms for _, atoms, _ in systems])
    for result, (_, _, want) in zip(results, systems, strict=True):
        assert abs(result["energy"] - want["energy"]) < 1e-9
        np.testing.assert_allclose(result["forces"], want["forces"], rtol=0, atol=1e-9)


def test_weights_are_those_of_the_state_dict_and_not_of_the_model_beside_it(tmp_path: Path) -> None:
    """Lightning keeps both, and a model that was pickled before the training ended is older."""
    archive = Archive((FILES / "last.ckpt").read_bytes(), "last.ckpt")
    state = archive.tree()["state_dict"]
    thing = state["model.output_modules.0.outnet.1.bias"]
    record = thing.args[0].record
    contents = records(FILES / "last.ckpt")
    (name,) = [each for each in contents if each.endswith(f"/data/{record}")]
    contents[name] = np.array([5.0], np.float32).tobytes()
    (path := tmp_path / "last.ckpt").write_bytes(packed(contents))
    changed, before = (load_student(p, dtype=torch.float64, declared=KCAL) for p in (path, FILES / "last.ckpt"))
    assert changed.readout[-1].bias.item() == pytest.approx(5.0 * 0.0433641, rel=1e-5)
    assert changed.readout[-1].bias.item() != before.readout[-1].bias.item()


@pytest.mark.parametrize("apart", [0.0, 1e-3])
def test_averaged_weights_that_are_not_those_that_were_read_are_told_of(tmp_path: Path, apart: float) -> None:
    """SchNetPack's callback keeps the average, which is also what a checkpoint after a validation holds."""
    weights = {"representation.a": torch.arange(6.0).reshape(2, 3), "output_modules.b": torch.ones(2)}
    shadows = [weights["representation.a"] + apart, weights["output_modules.b"].clone()]
    callbacks = {"EarlyStopping": {"patience": 3}, "ExponentialMovingAverage": {"ema": {"shadow_params": shadows}}}
    torch.save({"callbacks": callbacks}, tmp_path / "x.ckpt")
    archive = Archive((tmp_path / "x.ckpt").read_bytes(), "x.ckpt")
    assert holds_average(archive, archive.tree(), weights) == (apart == 0)
    assert holds_average(archive, {}, weights)


def test_a_pickled_task_holds_its_model(tmp_path: Path) -> None:
    """SchNetPack's task is 100 kB of metrics around a model: here it is the model with nothing else around it."""
    model = Archive((FILES / "gaussian.best_model").read_bytes(), "").record("data.pkl")
    task = b"cschnetpack.task\nAtomisticTask\n)\x81}" + text("_modules") + b"}" + text("model") + model[2:-1] + b"ssb."
    path = tmp_path / "best_model.task"
    edited(FILES / "gaussian.best_model", path, {model: model[:2] + task})
    agrees(load_student(path, dtype=torch.float64, declared=KCAL), "gaussian.best_model")


REFUSED = {
    "another representation": ({b"painn\nPaiNN\n": b"painn\nMyPaiNN\n"}, "representation is MyPaiNN, not PaiNN"),
    "cutoff function": ({b"CosineCutoff\n": b"HardCutoff\n"}, "cutoff function is HardCutoff, not CosineCutoff"),
    "cutoff without eps": ({b"CosineCutoff\n": b"MollifierCutoff\n"}, "MollifierCutoff does not hold one number for"),
    "radial basis": ({b"GaussianRBF\n": b"BernsteinRBF\n"}, "radial basis is BernsteinRBF"),
    "activation": ({b"torch.nn.functional\nsilu\n": b"torch.nn.functional\ngelu\n"}, "activation of .* is gelu"),
    "aggregation": ({text("sum"): text("avg")}, "aggregated by avg, not by sum"),
    "postprocessor": ({b"atomistic\nAddOffsets\n": b"atomistic\nRemoveOffsets\n"}, "postprocessor RemoveOffsets"),
    "scaling": (
        {b"atomistic\nAddOffsets\n": b"atomistic\nScaleProperty\n", text("_property"): text("input_key")},
        "ScaleProperty that scales no output, or not by one number",
    ),
    "input module": ({b"PairwiseDistances\n": b"StaticExternalFields\n"}, "input module StaticExternalFields"),
    "a module beside": ({text("mu_channel_mix"): text("another")}, "has parts that PaiNNMixing has not: another"),
    "a parameter beside": ({text("epsilon"): text("sigma")}, "no epsilon in common"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_changes_the_equations_is_refused(tmp_path: Path, what: str) -> None:
    changes, message = REFUSED[what]
    path = edited(FILES / "gaussian.best_model", tmp_path / "changed", changes)
    with pytest.raises(CheckpointError, match=message):
        load_student(path, declared=KCAL)


def test_the_mean_of_a_structure_is_refused(tmp_path: Path) -> None:
    archive = Archive((FILES / "gaussian.best_model").read_bytes(), "")
    pickle = archive.record("data.pkl")
    at = re.search(re.escape(text("is_extensive")) + rb"(q.|r....)\x88", pickle, re.S)
    assert at
    path = edited(FILES / "gaussian.best_model", tmp_path / "changed", {at[0]: at[0][:-1] + b"\x89"})
    with pytest.raises(CheckpointError, match="per structure and not per atom"):
        load_student(path, declared=KCAL)


def test_postprocessing_that_is_switched_off_is_said(tmp_path: Path) -> None:
    pickle = Archive((FILES / "gaussian.best_model").read_bytes(), "").record("data.pkl")
    at = re.search(re.escape(text("do_postprocessing")) + rb"(q.|r....)\x88", pickle, re.S)
    assert at
    path = edited(FILES / "gaussian.best_model", tmp_path / "changed", {at[0]: at[0][:-1] + b"\x89"})
    student, checkpoint = load_checkpoint(path, declared=KCAL)
    assert not student.atomic_references.any()
    assert "switched off" in checkpoint.remarks[0]


def test_a_function_that_torchscript_keeps_in_its_text_is_read_there(tmp_path: Path) -> None:
    path = edited(FILES / "deployed.pt", tmp_path / "d.pt", {b"functional.silu(": b"functional.softplus("})
    with pytest.raises(CheckpointError, match="activation of .* is softplus"):
        load_student(path, declared=KCAL)


@pytest.mark.parametrize(("name", "kind"), [("schnet", "SchNet"), ("so3net", "SO3net")])
def test_other_representations_are_named_with_what_can_be_deployed(name: str, kind: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"representation is {kind}, not PaiNN.*deployed is PaiNN with GaussianRBF"
    ):
        load_student(FILES / f"{name}.best_model", declared=KCAL)


def test_another_energy_key_is_named(tmp_path: Path) -> None:
    path = edited(FILES / "gaussian.best_model", tmp_path / "u0", {text("energy"): text("energy_U0")})
    with pytest.raises(DeclarationError, match="called: 'energy_U0'. Say which is the energy with --energy-key"):
        load_student(path, declared=KCAL)
    named = Declaration("kcal/mol", "Ang", energy_key="energy_U0")
    agrees(load_student(path, dtype=torch.float64, declared=named), "gaussian.best_model")


def test_units_that_were_not_given_are_asked_for_by_their_options() -> None:
    path = FILES / "gaussian.best_model"
    for declared, missing, given in (
        (None, ("--energy-unit", "--length-unit"), ()),
        (Declaration(energy_unit="eV"), ("--length-unit",), ("--energy-unit",)),
        (Declaration(length_unit="Ang"), ("--energy-unit",), ("--length-unit",)),
    ):
        with pytest.raises(DeclarationError) as caught:
            load_student(path, declared=declared)
        assert all(option in str(caught.value) for option in missing)
        assert not any(option in str(caught.value) for option in given)


def test_species_have_to_be_in_the_embedding() -> None:
    path = FILES / "gaussian.best_model"
    student = load_student(path, declared=Declaration("kcal/mol", "Ang", (1, 6, 8)))
    assert student.species == (1, 6, 8)
    with pytest.raises(ConfigurationError, match=r"lists element 105 \(Db\), but the embedding ends at 99"):
        load_student(path, declared=Declaration("kcal/mol", "Ang", (1, 105)))


def bare(folder: Path, *, prefix: str = "model.") -> Path:
    """A checkpoint of Lightning with the state dict alone."""
    archive = Archive((FILES / "last.ckpt").read_bytes(), "last.ckpt")
    state = {
        n: archive.tensor(t, n, integers=True) for n, t in archive.tree()["state_dict"].items() if n[:6] == "model."
    }
    renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in state.items()}
    torch.save({"pytorch-lightning_version": "2.6.6", "epoch": 3, "state_dict": renamed}, folder / "bare.ckpt")
    return folder / "bare.ckpt"


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_weights_alone_say_what_was_assumed(tmp_path: Path, prefix: str) -> None:
    path = bare(tmp_path, prefix=prefix)
    student, checkpoint = load_checkpoint(path, dtype=torch.float64, declared=KCAL)
    assert student.configuration.epsilon == 1e-8
    assumed, mean, references = sorted(checkpoint.remarks, key=lambda remark: (len(remark) < 100, remark[8:]))
    for words in ("silu", "CosineCutoff", "epsilon 1e-8", "summed over atoms"):
        assert words in assumed
    assert "a mean" in mean + references
    assert "atomic references" in mean + references
    configuration = {"architecture": "painn", "hidden_dim": 6, "num_interactions": 2, "num_rbf": 5, "cutoff": 4.0}
    says = {"epsilon": 2e-8, "activation": "silu", "cutoff_fn": "cosine", "species": ["H", "C", "O"]}
    path.with_suffix(".json").write_text(json.dumps(configuration | says))
    student, checkpoint = load_checkpoint(path, dtype=torch.float64, declared=KCAL)
    assert student.species == (1, 6, 8)
    agrees(student, "best_inference_model")
    assert "silu" not in checkpoint.remarks[0]
    assert "summed over atoms" in checkpoint.remarks[0]
    path.with_suffix(".json").write_text(json.dumps(configuration | {"activation": "softplus"}))
    with pytest.raises(ConfigurationError, match="activation = 'softplus'"):
        load_student(path, declared=KCAL)


def test_weights_alone_of_something_else_are_refused(tmp_path: Path) -> None:
    for state, message in (
        ({"model.net.weight": torch.zeros(3)}, "not that of a NeuralNetworkPotential"),
        ({"model.representation.embedding.weight": torch.zeros(3, 2)}, "not those of a PaiNN"),
    ):
        torch.save({"pytorch-lightning_version": "2", "state_dict": state}, tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match=message):
            load_student(tmp_path / "x.ckpt", declared=KCAL)
    path = bare(tmp_path)
    read = torch.load(path)
    read["state_dict"]["model.output_modules.1.outnet.0.weight"] = torch.zeros(1, 6)
    torch.save(read, path)
    with pytest.raises(CheckpointError, match="2 read-outs among them: which is the energy"):
        load_student(path, declared=KCAL)


@pytest.mark.parametrize("layers", [3, 8, 12])
def test_f14_any_number_of_interactions_may_be_one(
    tmp_path: Path, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """shared_interactions=True: the pickle has one block of each kind, to which every other place refers."""
    content = records(FILES / "shared.best_model")
    (record,) = [each for each in content if each.endswith("data.pkl")]
    second = re.compile(re.escape(text("1")) + rb"r....(j....)uub", re.DOTALL)  # the second place, its memo, the block
    assert len(second.findall(content[record])) == 2

    def more(found: re.Match[bytes]) -> bytes:
        return found[0][:-3] + b"".join(text(str(i)) + found[1] for i in range(2, layers)) + found[0][-3:]

    (tmp_path / "grown").write_bytes(packed(content | {record: second.sub(more, content[record])}))
    key = text("n_interactions") + b"r\xd6\x02\x00\x00K"
    path = edited(tmp_path / "grown", tmp_path / "best_model", {key + b"\x02": key + bytes([layers])})
    two = load_student(FILES / "shared.best_model", declared=KCAL)
    numbers = sum(len(data) for each, data in content.items() if "/data/" in each)
    # as if its numbers, and not its pickle, were most of the file
    monkeypatch.setattr(archive, "SHARED", (numbers + 1) / path.stat().st_size)
    student = load_student(path, declared=KCAL)
    assert student.configuration.num_interactions == layers
    found, wanted = student.state_dict(), two.state_dict()
    assert len(found) > len(wanted)
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[re.sub(r"^(message|mixing|update)\.\d+", r"\1.0", name)]), name
