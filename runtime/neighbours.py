"""Neighbour search: every pair once, with its displacement.

vesin finds the pairs; in a small molecule, where calling it would take longer, every pair is looked at.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int64, Integer

from painn_deploy.engines.session import Nearest
from painn_deploy.export.moved import moved_names
from painn_deploy.runtime.pairs import compiled
from painn_deploy.runtime.pairs.images import MOST_TRIED, image_pairs, image_reach, image_vectors
from painn_deploy.runtime.pairs.search import Candidates, candidates
from painn_deploy.runtime.structures import periodic_cell, refuse_one_spot

__all__ = ["FEW", "Displacements", "Nearest", "Pairs", "all_pairs", "find_pairs", "slots_for"]

FEW = 48
"""Atoms of a molecule whose pairs are all looked at; vesin is faster beyond."""


@dataclass(frozen=True)
class Pairs:
    """Each pair of neighbours once: atom `first`, and atom `second` moved by `shifts` cells.

    Attributes:
        first: index of one atom.
        second: index of the other.
        shifts: S, whole cells that the second atom is moved by; None where no atom has images.
    """

    first: Int64[np.ndarray, " pairs"]
    second: Int64[np.ndarray, " pairs"]
    shifts: Int64[np.ndarray, "pairs 3"] | None

    def only(self, chosen: Bool[np.ndarray, " pairs"]) -> "Pairs":
        """Some of the pairs."""
        shifts = None if self.shifts is None else self.shifts[chosen]
        return Pairs(self.first[chosen], self.second[chosen], shifts)

    def counts(self, atoms: int = 1) -> Int64[np.ndarray, " atoms_with_neighbours"]:
        """How many neighbours each atom has: of at least so many atoms, 0 for those past the last that has any."""
        return np.bincount(np.concatenate([self.first, self.second]), minlength=atoms)

    @classmethod
    def joined(cls, parts: Sequence["Pairs"], atoms: Sequence[int]) -> "Pairs":
        """Pairs of structures side by side, whose atoms are numbered on from one structure to the next.

        Args:
            parts: pairs of each structure, at least one.
            atoms: how many each structure has.
        """
        if len(parts) == 1:  # a step of dynamics: nothing is copied
            return parts[0]
        starts = np.cumsum([0, *atoms])[:-1]
        first = np.concatenate([part.first + start for part, start in zip(parts, starts, strict=True)])
        second = np.concatenate([part.second + start for part, start in zip(parts, starts, strict=True)])
        if all(part.shifts is None for part in parts):
            return cls(first, second, None)
        shifts = [np.zeros((len(p.first), 3), np.int64) if p.shifts is None else p.shifts for p in parts]
        return cls(first, second, np.concatenate(shifts))


def slots_for(counts: Integer[np.ndarray, " atoms"], step: int = 1) -> int:
    """Columns that a matrix needs for its busiest atom, at least 1.

    Args:
        counts: neighbours of each atom.
        step: that the number of columns is a multiple of.
    """
    return step * -(-int(counts.max(initial=1)) // step)


class Displacements:
    """From the first atom of each pair to the second, in arrays that are written again at every step.

    They are formed, and distances compared with the cutoff, in float64. Compiled loops
    (`painn_deploy.runtime.pairs.kernels`) do the same to the bit, and so does a GPU that follows a structure or forms
    the pairs of molecules (`painn_deploy.engines.gpu.device_positions`, `device_molecules`); tests compare all of them.

    Args:
        pairs: of neighbours.
        owners: structure that each pair belongs to, where there are several with cells of their own.

    Attributes:
        pairs: the same.
        vectors: r_second + S·cell - r_first, Å.
        distances: their lengths, Å.
        cell: that they were formed with, Å.
    """

    def __init__(self, pairs: Pairs, owners: Int64[np.ndarray, " pairs"] | None = None) -> None:
        count = len(pairs.first)
        self.pairs, self._owners = pairs, owners
        self.vectors: np.ndarray = np.empty((count, 3))
        self.distances: np.ndarray = np.empty(count)
        self.cell: np.ndarray = np.zeros((3, 3))
        self._edges: np.ndarray = np.empty(count, bool)
        self._scratch: np.ndarray | None = None
        self._between: np.ndarray | None = None
        self._shifts: np.ndarray | None = None

    def form(self, positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "*structures 3 3"]) -> None:
        """Write `vectors` and `distances` for positions of now.

        Args:
            positions: Å.
            cell: rows are cell vectors, Å; one cell, or one for each structure where pairs have owners.
        """
        pairs, vectors = self.pairs, self.vectors
        self.cell, scratch = cell, np.empty_like(vectors) if self._scratch is None else self._scratch
        self._scratch = scratch
        np.take(positions, pairs.second, axis=0, out=vectors, mode="clip")  # other modes make a copy
        np.take(positions, pairs.first, axis=0, out=scratch, mode="clip")
        np.subtract(vectors, scratch, out=vectors)
        if pairs.shifts is not None:
            if self._shifts is None:
                self._shifts = pairs.shifts.astype(np.float64)
            if self._between is None:
                self._between = np.empty(len(scratch))
            cells = cell if self._owners is None else cell[self._owners]
            image_vectors(self._shifts, cells, scratch, self._between)
            np.add(vectors, scratch, out=vectors)
        np.multiply(vectors, vectors, out=scratch)
        x, y, z = scratch.T
        np.add(x, y, out=self.distances)  # in the kernel's order: a product of numpy's adds three squares in any
        np.add(self.distances, z, out=self.distances)
        np.sqrt(self.distances, out=self.distances)

    def within(self, cutoff: float) -> Bool[np.ndarray, " pairs"]:
        """Which pairs are closer than a cutoff, Å; the array is overwritten by the next call."""
        np.less(self.distances, cutoff, out=self._edges)
        return self._edges

    def nearest(self) -> Nearest:
        """The shortest of the distances, and whose it is."""
        if len(self.distances) == 0:
            return Nearest(math.inf, -1, -1)
        least = int(self.distances.argmin())
        return Nearest(float(self.distances[least]), int(self.pairs.first[least]), int(self.pairs.second[least]))

    def only(self, chosen: Bool[np.ndarray, " pairs"]) -> "Displacements":
        """Those of some of the pairs."""
        return Displacements.known(self.pairs.only(chosen), self.vectors[chosen], self.distances[chosen], self.cell)

    @classmethod
    def known(
        cls,
        pairs: Pairs,
        vectors: Float64[np.ndarray, "pairs 3"],
        distances: Float64[np.ndarray, " pairs"],
        cell: Float64[np.ndarray, "3 3"],
    ) -> "Displacements":
        """Displacements that somebody has formed.

        Args:
            pairs: of neighbours.
            vectors: see `Displacements`.
            distances: see `Displacements`.
            cell: see `Displacements`.
        """
        made = cls(pairs)
        made.vectors, made.distances, made.cell = vectors, distances, cell
        return made


def find_pairs(atoms: Atoms, cutoff: float) -> Displacements:
    """Every pair with d < cutoff, once, images of an atom itself among them.

    Args:
        atoms: a structure that `check_structure` let pass; any cell, any mix of periodic directions.
        cutoff: Å.

    Raises:
        StructureError: two atoms are on one spot.
    """
    few, cell = len(atoms) <= FEW and not atoms.pbc.any(), periodic_cell(atoms)
    if few:
        found = Displacements(all_pairs(len(atoms)))
        found.form(atoms.positions, cell)
    else:
        found = _searched(atoms, cell, cutoff)
    refuse_one_spot(atoms.numbers, *found.nearest())
    within = found.within(cutoff)
    return found if within.all() else found.only(within)


@functools.cache
def all_pairs(atoms: int) -> Pairs:
    """Every pair of a molecule, the lower atom first.

    Args:
        atoms: how many it has.
    """
    first, second = np.triu_indices(atoms, 1)
    first.flags.writeable = second.flags.writeable = False  # every molecule of that size shares them
    return Pairs(first, second, None)


def _searched(atoms: Atoms, cell: Float64[np.ndarray, "3 3"], cutoff: float) -> Displacements:
    """Every pair within the cutoff; of a small cell in the order of atoms and shifts, whoever finds them."""
    start, positions, small = np.zeros(1, np.int64), atoms.positions, False
    if atoms.pbc.any():
        reach, tried = image_reach(positions, start, cell[None], atoms.pbc[None], cutoff)
        small = bool(tried[0] <= MOST_TRIED)
    loops = compiled.loops()
    if loops is not None and not small:
        return _settled(loops, candidates(positions, cell, atoms.pbc, cutoff), positions, cell, cutoff)
    if loops is not None:
        images = image_pairs(positions, start, start + len(atoms), cell[None], reach, cutoff)
        found = Displacements(Pairs(images.first, images.second, images.shifts))
    else:
        pairs = _all_of(candidates(positions, cell, atoms.pbc, cutoff))
        found = Displacements(_in_order(pairs) if small else pairs)
    found.form(positions, cell)
    return found


def _in_order(pairs: Pairs) -> Pairs:
    """Pairs by their atoms, the lower first, and shifts, of an atom's own images the one of two opposite ones."""
    first, second, shifts = pairs.first, pairs.second, np.asarray(pairs.shifts)
    a, b, c = shifts.T
    backward = (a < 0) | ((a == 0) & ((b < 0) | ((b == 0) & (c < 0))))
    turned = (first > second) | ((first == second) & backward)
    shifts = np.where(turned[:, None], -shifts, shifts)
    first, second = np.where(turned, second, first), np.where(turned, first, second)
    order = np.lexsort((*shifts.T[::-1], second, first))
    return Pairs(first[order], second[order], shifts[order])


def _all_of(found: Candidates) -> Pairs:
    """Candidates as pairs."""
    first, second = found.indices[:, 0].astype(np.int64), found.indices[:, 1].astype(np.int64)
    if found.moved is None:
        return Pairs(first, second, None)
    return Pairs(first, second, found.shifts.astype(np.int64) + (found.moved[first] - found.moved[second]))


def _settled(
    loops: ModuleType,
    found: Candidates,
    positions: Float64[np.ndarray, "atoms 3"],
    cell: Float64[np.ndarray, "3 3"],
    cutoff: float,
) -> Displacements:
    """Candidates within the cutoff with their displacements, in one pass."""
    room, repeats = len(found.indices), found.moved is not None
    first, second, distances = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room)
    shifts, vectors = np.empty((room if repeats else 0, 3), np.int64), np.empty((room, 3))
    moved = np.empty((0, 3), np.int64) if found.moved is None else found.moved
    written = first, second, shifts, vectors, distances
    count = loops.settle(found.indices, found.shifts, moved, positions, cell, cutoff, *written)
    pairs = Pairs(first[:count], second[:count], shifts[:count] if repeats else None)
    return Displacements.known(pairs, vectors[:count], distances[:count], cell)


if not TYPE_CHECKING:  # a checker that saw it would believe that any name is here
    _MATRIX, _STRUCTURES = "painn_deploy.runtime.matrix", "painn_deploy.runtime.structures"
    __getattr__ = moved_names(
        __name__,
        {
            **dict.fromkeys(("LocalGraph", "graph_inputs", "join", "local_graphs"), _MATRIX),
            **dict.fromkeys(("FLAT", "ONE_SPOT", "check_structure"), _STRUCTURES),
        },
    )
