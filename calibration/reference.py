"""The student itself, in PyTorch with plain autograd: what every engine is held against, and the speed to beat."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from painn_deploy.export.force_head import autograd_forces, tensors
from painn_deploy.export.student import Student
from painn_deploy.runtime.calculator import cell_volume
from painn_deploy.runtime.neighbours import graph_inputs

__all__ = ["TorchCalculator", "reference_results"]


class TorchCalculator(Calculator):
    """An ASE calculator that runs a student in PyTorch eager mode with autograd, in the student's own dtype.

    Args:
        student: from `load_student`; in float64 it is the reference for accuracy, in float32 the one for speed.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """ASE's entry."""
        super().calculate(atoms, list(properties), list(system_changes))
        (self.results,) = reference_results(self.student, [self.atoms])


def reference_results(student: Student, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
    """Energy (eV), energies (eV), forces (eV/Å) and, where the cell has a volume, stress (eV/Å³, Voigt), one by one."""
    return [_evaluate(student, atoms) for atoms in structures]


def _evaluate(student: Student, atoms: Atoms) -> dict[str, Any]:
    dtype = np.float64 if student.dtype == torch.float64 else np.float32
    graph = tensors(graph_inputs([atoms], student.configuration.cutoff, dtype), student.dtype)
    outputs = autograd_forces(student, graph)
    energies = outputs.atomic_energies.double().numpy() + student.atomic_references.numpy()[atoms.numbers]
    energy = float(energies.sum())
    results: dict[str, Any] = {
        "energy": energy,
        "free_energy": energy,
        "energies": energies,
        "forces": outputs.forces.double().numpy(),
    }
    volume = cell_volume(atoms)
    if volume > 0:
        virial = outputs.virials.double().sum(0).numpy()
        results["stress"] = full_3x3_to_voigt_6_stress((virial + virial.T) / (2 * volume))
    return results
