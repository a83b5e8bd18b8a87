"""The explicit force head of a student, evaluated and held against autograd; cutoffs are those of tests/students.py."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from painn_deploy.export.model.force_head import autograd_forces, explicit_forces, tensors
from painn_deploy.export.model.student import NeighbourGraph, Student
from painn_deploy.runtime.matrix import graph_inputs
from tests import students


def graph_of(atoms: Atoms) -> NeighbourGraph:
    """One structure in float64."""
    return tensors(graph_inputs([atoms], students.CONFIGURATION["cutoff"], np.float64), torch.float64)


def explicit_results(student: Student) -> Callable[[Sequence[Atoms]], list[dict[str, Any]]]:
    """Energies (eV) and forces (eV/Å) of structures, each by itself."""

    def evaluate(structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        found = [explicit_forces(student, graph_of(atoms)) for atoms in structures]
        return [{"energy": float(o.atomic_energies.sum()), "forces": o.forces.numpy()} for o in found]

    return evaluate


def check_adjoints(student: Student, atoms: Atoms) -> None:
    graph = graph_of(atoms)
    for got, want in zip(explicit_forces(student, graph), autograd_forces(student, graph), strict=True):
        scale = max(1.0, float(want.abs().max()))
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=1e-11 * scale)
