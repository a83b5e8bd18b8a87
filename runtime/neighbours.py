"""Neighbour search: every pair once, with its displacement.

vesin finds the pairs; in a small molecule, where calling it would take longer, every pair is looked at.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import vesin
from ase import Atoms
from jaxtyping import Bool, Float64, Int64, Integer

from painn_deploy.export.errors import StructureError
from painn_deploy.export.moved import moved_names
from painn_deploy.runtime.structures import ONE_SPOT, periodic_cell, refuse_one_spot

__all__ = ["Displacements", "Pairs", "find_pairs", "one_spot_errors", "slots_for"]

NARROW = 20
"""Cutoffs; a molecule that is no longer needs no narrowing."""

FEW = 48
"""Atoms of a molecule whose pairs are all looked at; vesin is faster beyond."""

MOST_CELLS = 2e4
"""Of vesin's search grid; past 1e5 it scales the grid down, thin directions to nothing."""

MOST_IMAGES = 3e6
"""Atoms of images of the cell within the cutoff, past which a search would take minutes and gigabytes."""


CROWD = 500
"""Atoms of a box whose diagonal is the cutoff; of diamond, the densest of matter here, 58 fit where that is 12 Å."""

MOST_CROWDED = 1_000_000
"""Pairs of so crowded atoms; those that lie in different boxes may be fifty times as many, and take gigabytes."""


PRIMES = np.array([1, 2_097_143, 4_398_042_316_799])
"""One number for a box at three whole numbers; sums may go round in 64 bits."""


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

    The runtime forms displacements, and compares distances with the cutoff, here alone: in float64, for a search, a
    Verlet list and many of them. A GPU that follows a structure, or forms the pairs of molecules, does the same in a
    kernel (`painn_deploy.engines.gpu.device_positions`, `device_molecules`), which a test compares with this.

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
        self._scratch: np.ndarray = np.empty((count, 3))
        self._axes = self._scratch[:, 0], self._scratch[:, 1], self._scratch[:, 2]
        self._edges: np.ndarray = np.empty(count, bool)
        self._shifts: np.ndarray | None = None

    def form(self, positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "*structures 3 3"]) -> None:
        """Write `vectors` and `distances` for positions of now.

        Args:
            positions: Å.
            cell: rows are cell vectors, Å; one cell, or one for each structure where pairs have owners.
        """
        pairs, vectors, scratch = self.pairs, self.vectors, self._scratch
        self.cell = cell
        np.take(positions, pairs.second, axis=0, out=vectors, mode="clip")  # other modes make a copy
        np.take(positions, pairs.first, axis=0, out=scratch, mode="clip")
        np.subtract(vectors, scratch, out=vectors)
        if pairs.shifts is not None:
            if self._shifts is None:
                self._shifts = pairs.shifts.astype(np.float64)
            if self._owners is None:
                np.matmul(self._shifts, cell, out=scratch)
            else:
                np.einsum("ps,psc->pc", self._shifts, cell[self._owners], out=scratch)
            np.add(vectors, scratch, out=vectors)
        np.multiply(vectors, vectors, out=scratch)
        x, y, z = self._axes
        np.add(x, y, out=self.distances)  # in the kernel's order: a product of numpy's adds three squares in any
        np.add(self.distances, z, out=self.distances)
        np.sqrt(self.distances, out=self.distances)

    def within(self, cutoff: float) -> Bool[np.ndarray, " pairs"]:
        """Which pairs are closer than a cutoff, Å; the array is overwritten by the next call."""
        np.less(self.distances, cutoff, out=self._edges)
        return self._edges

    def only(self, chosen: Bool[np.ndarray, " pairs"]) -> "Displacements":
        """Those of some of the pairs."""
        part = Displacements(self.pairs.only(chosen))
        part.vectors, part.distances, part.cell = self.vectors[chosen], self.distances[chosen], self.cell
        return part


def find_pairs(atoms: Atoms, cutoff: float) -> Displacements:
    """Every pair with d < cutoff, once, images of an atom itself among them.

    Args:
        atoms: a structure that `check_structure` let pass; any cell, any mix of periodic directions.
        cutoff: Å.

    Raises:
        StructureError: two atoms are on one spot.
    """
    few, cell = len(atoms) <= FEW and not atoms.pbc.any(), periodic_cell(atoms)
    found = Displacements(_all_pairs(len(atoms)) if few else _candidates(atoms, cell, cutoff))
    found.form(atoms.positions, cell)
    refuse_one_spot(atoms.numbers, found.pairs.first, found.pairs.second, found.distances)
    within = found.within(cutoff)
    return found if within.all() else found.only(within)


def one_spot_errors(
    numbers: Integer[np.ndarray, " atoms"],
    positions: Float64[np.ndarray, "atoms 3"],
    starts: Int64[np.ndarray, " molecules"],
    nearest: Float64[np.ndarray, " atoms"],
) -> dict[int, StructureError]:
    """Of molecules side by side, those that have two atoms on one spot, and the error that `find_pairs` has for each.

    A device that forms pairs gives `nearest`; only what it shows to be wrong is looked at again here.

    Args:
        numbers: atomic numbers.
        positions: Å.
        starts: first row of each molecule.
        nearest: distance of each atom to the nearest other one of its molecule, Å.

    Returns:
        Errors by the index of the molecule, in their order.
    """
    wrong = np.unique(np.searchsorted(starts, np.flatnonzero(nearest < ONE_SPOT), side="right") - 1)
    errors = {}
    bounds = [*starts.tolist(), len(numbers)]
    for index in wrong.tolist():
        rows = slice(*bounds[index : index + 2])
        found = Displacements(_all_pairs(rows.stop - rows.start))
        found.form(positions[rows], np.zeros((3, 3)))
        try:
            refuse_one_spot(numbers[rows], found.pairs.first, found.pairs.second, found.distances)
        except StructureError as error:
            errors[index] = error
    return errors


@functools.cache
def _all_pairs(atoms: int) -> Pairs:
    first, second = np.triu_indices(atoms, 1)
    first.flags.writeable = second.flags.writeable = False  # every molecule of that size shares them
    return Pairs(first, second, None)


def _candidates(atoms: Atoms, cell: Float64[np.ndarray, "3 3"], cutoff: float) -> Pairs:
    """Every pair within the cutoff, and perhaps some that are a rounding beyond it."""
    periodic = np.asarray(atoms.pbc)
    view = _searchable(atoms.positions, cell, periodic, cutoff)
    search = vesin.NeighborList(cutoff=view.reach, full_list=False, n_threads=1)
    try:
        indices, shifts = search.compute(view.points, view.cell, periodic, "PS", copy=True)
    except RuntimeError as error:  # all that its library raises
        if "memory" in str(error):
            raise MemoryError(f"the search for neighbours: {error}") from error
        raise StructureError(f"Neighbours of this structure cannot be found: {error}.") from error
    first, second = indices[:, 0].astype(np.int64), indices[:, 1].astype(np.int64)
    images = None
    if periodic.any():
        images = shifts.astype(np.int64)
        if view.moved is not None:
            images += view.moved[first] - view.moved[second]
    return Pairs(first, second, images)


class _View(NamedTuple):
    """A structure as vesin's grid of cells can hold it, with the same neighbours.

    Attributes:
        points: positions, Å.
        cell: rows are cell vectors, Å.
        moved: whole cells that each atom was moved by; None where nothing repeats.
        reach: cutoff of the search, no smaller than the true one, Å.
    """

    points: Float64[np.ndarray, "atoms 3"]
    cell: Float64[np.ndarray, "3 3"]
    moved: Int64[np.ndarray, "atoms 3"] | None
    reach: float


def _searchable(
    positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "3 3"], periodic: np.ndarray, cutoff: float
) -> _View:
    """A structure that is searched as it is, or made smaller where its empty parts are.

    vesin divides by zero where its grid is long in one direction and thin in another, as when a molecule has flown
    apart or an atom was never wrapped, and its time grows with the cells of the grid. So atoms are wrapped along
    periodic directions; empty stretches wider than twice the cutoff are cut down to that, which brings no pair within
    the cutoff; and the cells of the grid are widened while there are too many.
    """
    # as far as float64 places an atom: no pair within the cutoff is missed for a rounding of its search
    reach = cutoff * (1 + 1e-9) + 16 * float(np.spacing(max(np.abs(positions).max(), np.abs(cell).max())))
    if not periodic.any():
        _refuse_crowds(positions, np.full(3, np.inf), cutoff / math.sqrt(3), cutoff)
        extents = np.ptp(positions, axis=0)
        if extents.max() <= NARROW * cutoff:
            return _View(positions, cell, None, reach)
        points, extents = _narrowed(positions, np.full(3, np.inf), cutoff)
        return _View(points, cell, None, _widened(extents, reach))
    inverse = np.linalg.inv(cell)
    fractions = positions @ inverse
    whole = np.where(periodic, np.floor(fractions), 0.0)
    if np.abs(whole).max() > 2**52:
        raise StructureError("An atom is so many cells away that float64 cannot place it; wrap the structure.")
    fractions -= whole
    heights = 1 / np.linalg.norm(inverse, axis=0)  # along a direction that does not repeat a unit vector stands
    images = float(np.prod(2 * cutoff / heights[periodic] + 1)) - 1
    if images * len(positions) > MOST_IMAGES:
        raise StructureError(
            f"The cell is so small that {images:.1e} of its images lie within {cutoff:g} Å; check its units."
        )
    lengths = np.linalg.norm(cell, axis=1)
    _refuse_crowds(fractions * lengths, np.where(periodic, lengths, np.inf), cutoff / 3, cutoff)
    if not periodic.all() or np.prod(np.maximum(heights / reach, 1.0)) > MOST_CELLS:
        periods = np.where(periodic, heights, np.inf)
        coordinates, extents = _narrowed(fractions * heights, periods, cutoff)
        extents = np.where(
            periodic, extents, extents + reach
        )  # vesin is slow where a cell is thinner than atoms spread
        cell = cell * (extents / heights)[:, None]
        fractions, heights = coordinates / extents, extents
    return _View(fractions @ cell, cell, whole.astype(np.int64), _widened(heights, reach))


def _narrowed(
    coordinates: Float64[np.ndarray, "atoms axes"], periods: Float64[np.ndarray, " axes"], cutoff: float
) -> tuple[Float64[np.ndarray, "atoms axes"], Float64[np.ndarray, " axes"]]:
    """Coordinates with every empty stretch longer than twice the cutoff cut down to that, and what they extend over.

    Where a direction repeats, the stretch from the last atom to the first one's image is one too: the period becomes
    shorter by what was cut. Between the atoms of a pair within the cutoff nothing is cut, in the period as it is or
    in the shorter one, so that the pair has the same displacement and the same image in both.

    Args:
        coordinates: distances along each direction's normal, Å; within one period, where it repeats.
        periods: after which each direction repeats, Å; infinite where it does not.
        cutoff: Å.

    Returns:
        The coordinates, Å; and their extent, or the new period where there is one, Å.
    """
    order, repeats = np.argsort(coordinates, axis=0, kind="stable"), np.isfinite(periods)
    ranked = np.take_along_axis(coordinates, order, axis=0)
    around = np.where(repeats, np.where(repeats, periods, 0.0) - (ranked[-1] - ranked[0]), 0.0)
    steps = np.minimum(np.diff(ranked, axis=0), 2 * cutoff)
    reached = np.concatenate([np.zeros_like(ranked[:1]), np.cumsum(steps, axis=0)])
    narrowed = np.empty_like(coordinates)
    np.put_along_axis(narrowed, order, reached, axis=0)
    return narrowed, reached[-1] + np.minimum(around, 2 * cutoff)


def _refuse_crowds(
    coordinates: Float64[np.ndarray, "atoms axes"], periods: Float64[np.ndarray, " axes"], side: float, cutoff: float
) -> None:
    """Refuse what is denser than any matter before its pairs, which may be billions, take all memory.

    All atoms in one box whose diagonal is no longer than the cutoff are neighbours of each other, their images in it
    among them. So the squares of the numbers of atoms in such boxes are a lower bound of the number of pairs.

    Args:
        coordinates: along each edge of the boxes, Å.
        periods: after which each direction repeats, Å; infinite where it does not.
        side: of the boxes, Å.
        cutoff: Å.

    Raises:
        StructureError: there are more than `MOST_CROWDED` pairs, and each atom shares its box with more than `CROWD`.
    """
    images = float(np.prod(np.maximum(np.floor(side / periods), 1.0)))
    if len(coordinates) * images <= CROWD:
        return
    places = np.floor((coordinates - coordinates.min(axis=0)) / side).astype(np.int64)
    # boxes that share a number by chance can only make it look more crowded than it is; then each is told apart
    for keys in (places @ PRIMES, places):
        _, counts = np.unique(keys, axis=0, return_counts=True)
        neighbours = float((counts * (counts * images - 1)).sum())
        if neighbours <= 2 * MOST_CROWDED or neighbours <= CROWD * len(coordinates):
            return
    raise StructureError(
        f"The atoms are so crowded that each has {neighbours / len(coordinates):.0f} others within {cutoff:g} Å and "
        "more; check the units of positions and cell."
    )


def _widened(extents: Float64[np.ndarray, " axes"], reach: float) -> float:
    """A cutoff, no smaller than `reach`, of which a grid holds no more than `MOST_CELLS`."""
    while np.prod(np.maximum(extents / reach, 1.0)) > MOST_CELLS:
        reach *= 1.3
    return reach


if not TYPE_CHECKING:  # a checker that saw it would believe that any name is here
    _MATRIX, _STRUCTURES = "painn_deploy.runtime.matrix", "painn_deploy.runtime.structures"
    __getattr__ = moved_names(
        __name__,
        {
            **dict.fromkeys(("LocalGraph", "graph_inputs", "join", "local_graphs"), _MATRIX),
            **dict.fromkeys(("FLAT", "ONE_SPOT", "check_structure"), _STRUCTURES),
        },
    )
