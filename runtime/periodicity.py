"""Crystals that arrive without their periodic directions: a cell that is there, and does not repeat.

Some file formats and programs lose `pbc` and keep the cell. Such a crystal is then computed as a molecule in vacuum,
whose energy and forces look like any other's.
"""

from typing import NamedTuple

import numpy as np
from ase import Atoms

from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.results import cell_volume

__all__ = ["NearestImage", "unrepeated"]

SHORTEST = 0.5
"""Å; no atom of a crystal is closer than this to an image, so that a cell which brings one closer stands for nothing,
as the unit cell that some programs write for a molecule does."""

DENSEST = 0.5
"""Atoms in 1 Å³ above which the same holds; diamond has 0.18."""


class NearestImage(NamedTuple):
    """The image of an atom that a cell would bring nearest to another atom, if it repeated.

    Attributes:
        atom: index of the one.
        other: index of the atom whose image it is, which may be the same.
        distance: between them, Å.
    """

    atom: int
    other: int
    distance: float


def unrepeated(atoms: Atoms, cutoff: float) -> NearestImage | None:
    """The nearest image that a cell would bring within the cutoff, of a structure without any periodic direction.

    A molecule in a box of its own has none where the box leaves the cutoff free around it, and then nothing is
    searched.

    Args:
        atoms: a structure that `check_structure` let pass.
        cutoff: Å.

    Returns:
        None where a direction is periodic, where there is no cell of three independent vectors, where no image comes
        within the cutoff, and where images would lie on atoms: such a cell is no crystal's.
    """
    cell = atoms.cell.array
    if not cell.any() or atoms.pbc.any() or not (volume := cell_volume(cell)):
        return None
    if len(atoms) > DENSEST * volume or _leaves_free(atoms.positions, cell, cutoff):
        return None
    repeated = Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=True)
    try:
        found = find_pairs(repeated, cutoff)
    except StructureError:  # images on one spot
        return None
    shifts = found.pairs.shifts
    if shifts is None or not (images := shifts.any(axis=1)).any():
        return None
    nearest = int(np.where(images, found.distances, np.inf).argmin())
    if found.distances[nearest] < SHORTEST:
        return None
    first, second = int(found.pairs.first[nearest]), int(found.pairs.second[nearest])
    return NearestImage(first, second, float(found.distances[nearest]))


def _leaves_free(positions: np.ndarray, cell: np.ndarray, cutoff: float) -> bool:
    """Whether images are further away than the cutoff by the extents of the structure across the cell alone."""
    normals = np.linalg.inv(cell)  # columns; each is across two cell vectors, in units of the third's height
    heights = 1 / np.linalg.norm(normals, axis=0)
    extents = np.ptp(positions @ normals, axis=0) * heights
    return bool((heights - extents >= cutoff).all())
