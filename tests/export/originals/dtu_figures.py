"""What DTU's codes computed, as their `make.py` keeps it, and how far a student is from it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from jaxtyping import Float

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export.model.student import Student

__all__ = ["FILES", "Figures", "largest_errors"]

FILES = Path(__file__).with_name("files")


@dataclass(frozen=True)
class Figures:
    """Of ten structures.

    Attributes:
        structures: that were computed.
        energies: eV.
        forces: eV/Å, of each structure.
        others: figures by name; NaN where there is none.
    """

    structures: list[Atoms]
    energies: Float[np.ndarray, " structures"]
    forces: list[Float[np.ndarray, "atoms 3"]]
    others: dict[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> "Figures":
        """Read an .npz that `make.py` wrote."""
        with np.load(path) as file:
            held = dict(file)
        ends = np.cumsum(held.pop("counts"))[:-1]
        numbers, positions, forces = (np.split(held.pop(name), ends) for name in ("numbers", "positions", "forces"))
        cells, pbc = held.pop("cells"), held.pop("pbc")
        structures = [
            Atoms(z, r, cell=cell, pbc=periodic)
            for z, r, cell, periodic in zip(numbers, positions, cells, pbc, strict=True)
        ]
        return cls(structures, held.pop("energies"), forces, held)


def largest_errors(student: Student, figures: Figures) -> tuple[float, float]:
    """Of energies (eV) and of forces (eV/Å).

    Args:
        student: in float64.
        figures: that it is held against.
    """
    results = reference_results(student, figures.structures)
    energies = [result["energy"] for result in results]
    forces = [np.abs(result["forces"] - wanted).max() for result, wanted in zip(results, figures.forces, strict=True)]
    return float(np.abs(energies - figures.energies).max()), float(max(forces))
