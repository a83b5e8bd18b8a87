"""The atoms that the forces of a part of a structure depend on.

A student of L interactions lets an atom's energy depend on the atoms that L steps lead to, each of less than the
cutoff. A rank that owns some atoms evaluates these and all that L steps lead to from them, with weights 1 and 0: its
energies are those of the whole structure, and its forces are the gradient of its own atoms' energies alone. Summed over
the ranks they are the forces of the whole.

An image of an atom has the features of the atom itself. So each atom is evaluated once, in the cell of the whole
structure, however many of its images are near: a rank never evaluates more atoms than there are.
"""

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int, Int64
from scipy.spatial import KDTree

from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.structures import periodic_cell
from painn_deploy.runtime.verlet import still_covered

__all__ = ["Domain"]

ROUNDING = 1e-9
"""Of distances, relative."""


@dataclass(frozen=True)
class Domain:
    """What a rank evaluates until atoms change hands.

    Attributes:
        rows: of the atoms given, own ones before those of other ranks, each part by rising tags.
        tags: of the rows.
        seen: the structure as it was when they were chosen.
        cell: its completed cell, Å.
        reach: Å, within which of an own atom everything is that it may depend on.
        margin: Å, by which pairs may have come nearer before another choice is needed.
    """

    rows: Int64[np.ndarray, " rows"]
    tags: Int64[np.ndarray, " rows"]
    seen: Atoms
    cell: Float64[np.ndarray, "3 3"]
    reach: float
    margin: float

    @classmethod
    def chosen(
        cls,
        structure: Atoms,
        tags: Int[np.ndarray, " atoms"],
        owned: int,
        cutoff: float,
        interactions: int,
        margin: float,
    ) -> "Domain":
        """Choose the atoms.

        Args:
            structure: own atoms and, after them, all images of atoms within `interactions * cutoff + margin` of the
                region that holds these.
            tags: numbers of the atoms, which their images share.
            owned: how many are own.
            cutoff: Å.
            interactions: of the student.
            margin: Å, by which pairs may come nearer while the choice stands.

        Raises:
            StructureError: they are more crowded than in any matter.
            MemoryError: there is no memory for their pairs.
        """
        own = np.argsort(tags[:owned], kind="stable")
        near = owned + _near(structure.positions, owned, interactions * cutoff + margin).nonzero()[0]
        others, first = np.unique(tags[near], return_index=True)
        foreign = ~np.isin(others, tags[:owned])
        rows = np.concatenate([own, near[first[foreign]]])
        candidates = structure[rows]
        reached: Bool[np.ndarray, " candidates"] = np.arange(len(rows)) < owned
        if owned:
            pairs = find_pairs(candidates, cutoff + margin).pairs
            for _ in range(interactions):
                touched = reached[pairs.first] | reached[pairs.second]
                reached[pairs.first[touched]] = reached[pairs.second[touched]] = True
        rows, seen = rows[reached], candidates[reached]
        return cls(rows, tags[rows].astype(np.int64), seen, periodic_cell(seen), interactions * cutoff, margin)

    def covers(self, atoms: Atoms) -> bool:
        """Whether its own atoms still depend on no others.

        Args:
            atoms: its atoms where they are now.
        """
        if not len(atoms):
            return True
        cell = periodic_cell(atoms)
        return still_covered(self.seen.positions, self.cell, atoms.positions, cell, self.reach, self.margin)


def _near(positions: Float64[np.ndarray, "atoms 3"], owned: int, reach: float) -> Bool[np.ndarray, " others"]:
    """Which atoms after the own ones lie within so many Å of one: ghosts fill a box, whose corners are far."""
    if not owned:
        return np.zeros(len(positions), bool)
    distances, _ = KDTree(positions[:owned]).query(positions[owned:], distance_upper_bound=reach * (1 + ROUNDING))
    near: np.ndarray = np.isfinite(distances)
    return near
