"""What graph-pes saved gives graph-pes's own energies, forces and stresses; what a PaiNN does not have is refused."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from ase.stress import full_3x3_to_voigt_6_stress

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, DeclarationError
from painn_deploy.export.readers import graph_pes
from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.blocks import Order
from painn_deploy.export.readers.reader import Opened
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.cli import app
from tests.export.originals.installed import install, written
from tests.export.originals.sweep import count_of_refused_changes
from tests.export.schnetpack.edits import edited, text

PEER = Path(__file__).with_name("graph_pes_peer.py")
PACKAGES = ("graph-pes==1.0.2", "vesin==0.6.2")
EV = Declaration("eV", "Ang")
UNITS = {"alone": EV, "summed": Declaration("kcal/mol", "Ang"), "nested": Declaration("Hartree", "Bohr"), "half": EV}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what graph-pes wrote: its package beside this interpreter's torch, in a process of its own."""
    environment = install(PACKAGES, tmp_path_factory.mktemp("packages"))
    return written(environment, PEER, tmp_path_factory.mktemp("made"))


def structures(made: Path) -> list[Atoms]:
    return list(read(made / "structures.traj", ":"))


def forces(made: Path, name: str) -> np.ndarray:
    student = load_student(made / f"{name}.pt", dtype=torch.float64, declared=UNITS[name])
    return np.concatenate([result["forces"] for result in reference_results(student, structures(made))])


@pytest.mark.parametrize("name", UNITS)
def test_energies_forces_and_stresses_are_graph_pes_s_own(made: Path, name: str) -> None:
    student, checkpoint = load_checkpoint(made / f"{name}.pt", dtype=torch.float64, declared=UNITS[name])
    assert checkpoint.name == name
    results = reference_results(student, structures(made))
    assert len(results) == 10
    with np.load(made / f"{name}.npz") as peer:
        found, wanted = np.concatenate([result["forces"] for result in results]), peer["forces"]
        assert np.abs(wanted).max() > 0.2
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        np.testing.assert_allclose([r["energy"] for r in results], peer["energies"], rtol=1e-13, atol=1e-12)
        stresses = {i: result["stress"] for i, result in enumerate(results) if "stress" in result}
        assert list(stresses) == [7, 8, 9]
        for i, stress in stresses.items():
            assert np.abs(stress).max() > 1e-4
            np.testing.assert_allclose(stress, full_3x3_to_voigt_6_stress(peer["stresses"][i]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("field", ["message", "update"])
def test_splits_in_another_order_give_other_forces(made: Path, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, orders = forces(made, "summed"), vars(graph_pes.ORDER)
    for wrong in permutations(orders[field]):
        if wrong != orders[field]:
            monkeypatch.setattr(graph_pes, "ORDER", Order(**{**orders, field: wrong}))
            assert np.abs(forces(made, "summed") - right).max() > 1e-2, wrong


def test_elements_are_those_of_the_training_unless_they_are_declared(made: Path) -> None:
    for name in ("alone", "summed"):  # one has them registered, and one has lost them in a copy
        student, checkpoint = load_checkpoint(made / f"{name}.pt", declared=UNITS[name])
        assert student.configuration.species == (1, 6, 7, 8)
        assert "trained on H C N O" in checkpoint.remarks[0]
    student, checkpoint = load_checkpoint(made / "alone.pt", declared=Declaration("eV", "Ang", (1, 6)))
    assert (student.configuration.species, checkpoint.remarks) == ((1, 6), ())
    for name in ("untrained", "decayed"):
        student, checkpoint = load_checkpoint(made / f"{name}.pt", declared=EV)
        assert (student.configuration.species, checkpoint.remarks) == (None, ())


def test_units_are_asked_for(made: Path) -> None:
    with pytest.raises(DeclarationError, match="--energy-unit .* and --length-unit"):
        load_student(made / "alone.pt")


REFUSED = {
    "schnet": "the model is graph-pes's SchNet, no PaiNN",
    "offsets": "it holds no PaiNNs",
    "only_offsets": "it holds no PaiNNs",
    "two": "it holds 2 PaiNNs",
    "repulsion": "'pair' of the sum is graph-pes's ZBLCoreRepulsion, no PaiNN: what else is added would be missing",
    "lennard_jones": "'pair' of the sum is graph-pes's LennardJones",
    "units": "the model is graph-pes's UnitConverter, .* Save the model inside it",
    "units_in_sum": "'many_body' of the sum is graph-pes's UnitConverter",
    "many": "the models of the model holds 101 modules",
    "deep": "more than 8 sums inside each other",
    "state": "a state dict of graph-pes, .* Give the model.pt",
    "lightning": "a state dict of graph-pes, .* Give the model.pt",
    "inside": r"holds what graph-pes saved inside something else.* torch\.save\(saved\['models'\]\[0\], 'model\.pt'\)",
    "parallel": r"what graph-pes saved inside .* torch\.save\(saved\['best'\]\.module, 'model\.pt'\)",
    "narrow": r"the filters of interaction 0 are of the shape \(24, 3\), with 4 functions",
    "scripted": "TorchScript of graph-pes's PaiNN, .* Give the model.pt",
    "activation": "the activation of the read-out is torch.nn.modules.activation.Tanh",
    "last": "the network of update 0 has .* an activation behind the last",
    "deeper": "the read-out has 3 layers",
    "envelope": "the envelope of interaction 0 has other coefficients than a polynomial of power 6",
    "cutoff": r"envelopes have the cutoffs 3.9 \(p = 6\), and the model 4.0",
    "aligned": "the filters of interaction 0 are made otherwise",
    "bare": "the filters of interaction 0 are made otherwise",
    "basis": "the basis of interaction 0 is .*GaussianSmearing",
    "hook": "the read-out holds _forward_hooks, which MLP does not: it may change",
    "attribute": "the model holds charge, which PaiNN does not",
    "module": "update 0 holds W, which Update does not",
    "buffer": "the scaler of energies holds shift",
    "properties": "predicts .*'forces'.*, not energies of atoms alone",
    "fewer": "1 interactions and 0 updates",
    "version": "version '0.0.20' of graph-pes",
    "unknown_version": "version '2.0.0' of graph-pes",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_equations_is_refused(made: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[name]):
        load_student(made / f"{name}.pt", declared=EV)


def test_what_is_added_to_any_module_is_refused(made: Path) -> None:
    path = made / "nested.pt"
    archive = Archive(path.read_bytes(), str(path))
    file = Opened(archive, archive.tree(), path)
    assert count_of_refused_changes(file.tree, lambda: graph_pes.read_graph_pes(file, EV)) > 800


def test_a_unit_converter_leaves_the_forces_of_a_painn_as_they_are(made: Path) -> None:
    """Why it is refused: it says one thing and does another."""
    assert json.loads((made / "says.json").read_text()) == {"unit_converter_changes_forces": False}


def test_another_model_of_graph_pes_is_called_by_its_name(made: Path, tmp_path: Path) -> None:
    path = edited(
        made / "alone.pt",
        tmp_path / "model.pt",
        {b"cgraph_pes.models.painn\nPaiNN\n": b"cgraph_pes.models.e3nn.nequip\nNequIP\n"},
    )
    with pytest.raises(CheckpointError, match="the model is graph-pes's NequIP, no PaiNN"):
        load_student(path, declared=EV)


def test_a_newer_version_is_read_with_a_remark(made: Path, tmp_path: Path) -> None:
    path = edited(made / "alone.pt", tmp_path / "model.pt", {text("1.0.2"): text("1.4.0")})
    remarks = load_checkpoint(path, declared=EV)[1].remarks
    assert "made by graph-pes 1.4.0. Up to 1.0.2 its forces were compared" in remarks[0]


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_a_file_is_converted_and_exported(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ("--energy-unit", "kcal/mol", "--length-unit", "Ang")
    run("convert", made / "summed.pt", *said, "-o", tmp_path / "student.safetensors")
    student = load_student(tmp_path / "student.safetensors", dtype=torch.float64)
    found = np.concatenate([result["forces"] for result in reference_results(student, structures(made))])
    with np.load(made / "summed.npz") as peer:
        wanted = peer["forces"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    run("export", made / "summed.pt", *said, "-o", tmp_path / "out")
    (bundle,) = (tmp_path / "out").glob("*.engine")
    with PaiNNCalculator(bundle) as calculator:
        exported = np.concatenate([result["forces"] for result in calculator.calculate_batch(structures(made))])
    np.testing.assert_allclose(exported, wanted, rtol=0, atol=1e-5)
