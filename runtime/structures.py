"""Checks of a structure that a force field is asked about, and the cell that its neighbours are searched in."""

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell
from jaxtyping import Float64, Int64, Integer

from painn_deploy.export.errors import StructureError

__all__ = ["FLAT", "ONE_SPOT", "check_structure", "periodic_cell", "refuse_one_spot"]

ONE_SPOT = 1e-3
"""Å; atoms closer than this are one atom written twice, not chemistry."""

FLAT = 1e-6
"""Volume, area or length of the periodic vectors, over the product of their lengths, below which they are dependent."""


def check_structure(atoms: Atoms) -> None:
    """Refuse what no force field can answer for.

    Raises:
        StructureError: no atoms, positions or cell not finite, or linearly dependent periodic cell vectors.
    """
    if len(atoms) == 0:
        raise StructureError("The structure has no atoms.")
    finite = np.isfinite(atoms.positions)
    if not finite.all():
        index = int(np.argmin(finite.all(1)))
        raise StructureError(
            f"Atom {index} ({atoms.symbols[index]}) is at {atoms.positions[index]}: NaN or infinite positions. "
            "A simulation that got here has diverged; look at the frames before, or use a shorter time step."
        )
    periodic = np.asarray(atoms.pbc)
    if not periodic.any():
        return
    vectors = np.asarray(atoms.cell)[periodic]
    if not np.isfinite(vectors).all():
        raise StructureError(f"The cell holds NaN or infinity: {np.asarray(atoms.cell).tolist()}.")
    lengths = np.linalg.norm(vectors, axis=1)
    volume = np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))
    if volume <= FLAT * lengths.prod():
        axes = ", ".join(axis for axis, flag in zip("abc", periodic, strict=True) if flag)
        raise StructureError(
            f"The periodic cell vectors {axes} are linearly dependent: {vectors.tolist()}. "
            "Set a cell, or switch pbc off in the directions that do not repeat."
        )


def periodic_cell(atoms: Atoms) -> Float64[np.ndarray, "3 3"]:
    """The periodic cell vectors, and unit vectors across them where there are fewer than three; zero where none is."""
    periodic = np.asarray(atoms.pbc)
    if not periodic.any():
        return np.zeros((3, 3))
    cell = np.where(periodic[:, None], np.asarray(atoms.cell), 0.0)
    return np.ascontiguousarray(complete_cell(cell), dtype=float)


def refuse_one_spot(
    numbers: Integer[np.ndarray, " atoms"],
    first: Int64[np.ndarray, " pairs"],
    second: Int64[np.ndarray, " pairs"],
    distances: Float64[np.ndarray, " pairs"],
) -> None:
    """Refuse a structure that has two atoms on one spot.

    Args:
        numbers: atomic numbers.
        first: index of one atom of each pair.
        second: index of the other.
        distances: between them, Å.

    Raises:
        StructureError: naming both atoms.
    """
    if len(distances) == 0 or distances.min() >= ONE_SPOT:
        return
    worst = int(distances.argmin())
    one, other = int(first[worst]), int(second[worst])
    raise StructureError(
        f"Atoms {one} ({chemical_symbols[numbers[one]]}) and {other} ({chemical_symbols[numbers[other]]}) are on one "
        f"spot, {distances[worst]:.2e} Å apart; remove the one that was written twice."
    )
