"""The student itself in PyTorch with plain autograd: the reference of accuracy and of speed for every engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from painn_deploy.export.model.force_head import EnergyAndForces, autograd_forces, tensors
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, counting, silent
from painn_deploy.runtime.grouping import group
from painn_deploy.runtime.matrix import join, local_graphs
from painn_deploy.runtime.results import as_results

__all__ = ["TorchCalculator", "one_thread", "reference_results"]

BATCH = 4096
"""Atoms x slots of one batch: autograd keeps every layer's edges, in float64."""


class TorchCalculator(Calculator):
    """An ASE calculator that runs a student in PyTorch eager mode with autograd, in the student's own dtype.

    Args:
        student: from `load_student`; in float64 it is the reference for accuracy, in float32 the one for speed.
        remember: keep every result and return it at once when it is asked for again, as for a second engine.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(self, student: Student, *, remember: bool = False) -> None:
        super().__init__()
        self.student = student
        self._remembered: dict[bytes, dict[str, Any]] | None = {} if remember else None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all properties of a structure, as ASE asks for them.

        Args:
            atoms: the structure.
            properties: ignored: all of `implemented_properties` are computed at once.
            system_changes: ignored: the structure is evaluated anew.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        (self.results,) = self.calculate_batch([self.atoms])

    def calculate_batch(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        """Results of each structure, as `PaiNNCalculator.calculate_batch` returns them, without stresses of atoms."""
        if self._remembered is None:
            return reference_results(self.student, structures)
        keys = [_key(atoms) for atoms in structures]
        new = {key: atoms for key, atoms in zip(keys, structures, strict=True) if key not in self._remembered}
        self._remembered |= dict(zip(new, reference_results(self.student, list(new.values())), strict=True))
        return [dict(self._remembered[key]) for key in keys]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: structures are small, and the threads of a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def reference_results(student: Student, structures: Sequence[Atoms], tell: Tell = silent) -> list[dict[str, Any]]:
    """Evaluate structures with the student in its own dtype, many small ones in one graph.

    A structure's results depend on the others in its graph by rounding in that dtype alone: padding adds zeros, and
    larger matrix products may add in another order.

    Args:
        student: in float64 for a reference, in float32 to see the cost of float32.
        structures: to evaluate.
        tell: called with how many are done.

    Returns:
        Of each structure `energy` and `free_energy` (eV), `energies` (eV [atoms]), `forces` (eV/Å [atoms, 3]) and, if
        its cell has a volume, `stress` (eV/Å³ [6], Voigt).
    """
    dtype = np.float64 if student.dtype == torch.float64 else np.float32
    graphs = local_graphs(structures, student.configuration.cutoff)
    results: list[dict[str, Any]] = [{}] * len(structures)
    more = counting(tell, len(structures))
    for batch in group([graph.size for graph in graphs], BATCH):
        graph = tensors(join([graphs[index] for index in batch], dtype), student.dtype)
        outputs, start = autograd_forces(student, graph), 0
        for index in batch:
            rows = slice(start, start + len(structures[index]))
            part = EnergyAndForces(*(tensor[rows] for tensor in outputs))
            results[index] = _results(student, structures[index], part)
            start = rows.stop
        more(len(batch))
    return results


def _key(atoms: Atoms) -> bytes:
    """Everything that a result depends on, to the last bit."""
    return b"|".join(np.ascontiguousarray(x).tobytes() for x in (atoms.numbers, atoms.positions, atoms.cell, atoms.pbc))


def _results(student: Student, atoms: Atoms, outputs: EnergyAndForces) -> dict[str, Any]:
    energies, forces, virials = (tensor.double().numpy() for tensor in outputs)
    return as_results(energies + student.atomic_references.numpy()[atoms.numbers], forces, virials, atoms.cell.array)
