"""nablaDFT's checkpoints, which hold SchNetPack's PaiNN: one that its own task wrote, and the forces that it gave."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.model.student import Student
from painn_deploy.export.readers.archive import Archive

FILES = Path(__file__).with_name("files") / "nabladft"
HARTREE = Declaration("Hartree", "Ang")


def agrees(student: Student) -> None:
    with np.load(FILES / "reference.npz") as peer:
        splits = np.cumsum(peer["sizes"])[:-1]
        parts = [np.split(peer[key], splits) for key in ("numbers", "positions", "forces")]
        energies, cells, periodic = (peer[key] for key in ("energies", "cells", "pbc"))
    kinds = zip(*parts[:2], cells, periodic, strict=True)
    structures = [Atoms(numbers, positions, cell=cell, pbc=pbc) for numbers, positions, cell, pbc in kinds]
    assert len(structures) == 10
    for result, energy, forces in zip(reference_results(student, structures), energies, parts[2], strict=True):
        np.testing.assert_allclose(result["forces"], forces, rtol=0, atol=1e-9)
        assert abs(result["energy"] - energy) < 1e-9


def test_a_checkpoint_of_its_training_gives_its_own_forces() -> None:
    student, checkpoint = load_checkpoint(FILES / "painn.ckpt", dtype=torch.float64, declared=HARTREE)
    assert checkpoint.remarks == ()
    assert (student.configuration.num_interactions, student.configuration.num_rbf) == (6, 100)
    assert len(set(student.atomic_references.tolist())) == 1  # the mean that its data module computed
    agrees(student)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_weights_alone_as_it_publishes_them_are_what_its_configuration_says(tmp_path: Path, prefix: str) -> None:
    archive = Archive((FILES / "painn.ckpt").read_bytes(), "painn.ckpt")
    state = {name: archive.tensor(thing, name) for name, thing in archive.tree()["state_dict"].items()}
    renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in state.items()}
    torch.save({"state_dict": renamed}, tmp_path / "painn_100k.ckpt")
    student, checkpoint = load_checkpoint(tmp_path / "painn_100k.ckpt", dtype=torch.float64, declared=HARTREE)
    agrees(student)
    assert "activation silu, epsilon 1e-8, cutoff function CosineCutoff" in checkpoint.remarks[0]
    assert "a mean" in checkpoint.remarks[1]
