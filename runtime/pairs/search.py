"""The search for neighbours of a large structure by vesin, whatever its cell and however far its atoms are apart."""

import importlib
import math
import sys
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt64

from painn_deploy.export.errors import StructureError

__all__ = ["Candidates", "View", "candidates", "searchable"]

NARROW = 20
"""Cutoffs; a molecule that is no longer needs no narrowing."""

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


def _imported() -> Any:
    """vesin, by itself.

    It imports torch wherever that is installed, for tensors, which it is never given here: a second, and 200 MB of each
    process. So torch is hidden from it, where nobody imported either of them, and this copy of vesin from all others:
    they get theirs with tensors.
    """
    if {"torch", "vesin"} & sys.modules.keys():
        return importlib.import_module("vesin")
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python says that there is none
    try:
        return importlib.import_module("vesin")
    finally:
        for name in [name for name in sys.modules if name == "torch" or name.partition(".")[0] == "vesin"]:
            del sys.modules[name]


vesin = _imported()


class Candidates(NamedTuple):
    """What vesin found: every pair within the cutoff, and perhaps some that are a rounding beyond it.

    Attributes:
        search: which owns the arrays.
        indices: of both atoms.
        shifts: whole cells that the second is moved by, of the structure as it was searched.
        moved: whole cells that each atom was moved by before; None where nothing repeats.
    """

    search: Any
    indices: UInt64[np.ndarray, "pairs 2"]
    shifts: Int32[np.ndarray, "pairs 3"]
    moved: Int64[np.ndarray, "atoms 3"] | None


def candidates(
    positions: Float64[np.ndarray, "atoms 3"],
    cell: Float64[np.ndarray, "3 3"],
    periodic: Bool[np.ndarray, "3"],
    cutoff: float,
) -> Candidates:
    """Every pair within the cutoff, and perhaps some that are a rounding beyond it.

    Args:
        positions: Å.
        cell: completed, Å.
        periodic: directions that repeat.
        cutoff: Å.

    Raises:
        StructureError: there are more than in any matter, or none can be found.
        MemoryError: there is no memory for them.
    """
    view = searchable(positions, cell, periodic, cutoff)
    reach = view.reach if view.extents is None else _widened(view.extents, view.reach)
    search = vesin.NeighborList(cutoff=reach, full_list=False, n_threads=1)
    try:
        indices, shifts = search.compute(view.points, view.cell, periodic, "PS", copy=False)
    except RuntimeError as error:  # all that its library raises
        if "memory" in str(error):
            raise MemoryError(f"the search for neighbours: {error}") from error
        raise StructureError(f"Neighbours of this structure cannot be found: {error}.") from error
    return Candidates(search, indices, shifts, view.moved)


class View(NamedTuple):
    """A structure as a grid of cells can hold it, with the same neighbours.

    Attributes:
        points: positions, Å.
        cell: rows are cell vectors, Å.
        moved: whole cells that each atom was moved by; None where nothing repeats.
        reach: cutoff of the search, no smaller than the true one, Å.
        extents: that a grid would have to cover, Å; None where they are short.
    """

    points: Float64[np.ndarray, "atoms 3"]
    cell: Float64[np.ndarray, "3 3"]
    moved: Int64[np.ndarray, "atoms 3"] | None
    reach: float
    extents: Float64[np.ndarray, " axes"] | None = None


def searchable(
    positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "3 3"], periodic: np.ndarray, cutoff: float
) -> View:
    """A structure that is searched as it is, or made smaller where its empty parts are.

    vesin divides by zero where its grid is long in one direction and thin in another, as when a molecule has flown
    apart or an atom was never wrapped, and its time grows with the cells of the grid. So atoms are wrapped along
    periodic directions, and empty stretches wider than twice the cutoff are cut down to that, which brings no pair
    within the cutoff.

    Args:
        positions: Å.
        cell: completed, Å.
        periodic: directions that repeat.
        cutoff: Å.

    Raises:
        StructureError: there are more neighbours than in any matter, or an atom is too far away to be placed.
    """
    # as far as float64 places an atom: no pair within the cutoff is missed for a rounding of its search
    reach = cutoff * (1 + 1e-9) + 16 * float(np.spacing(max(np.abs(positions).max(), np.abs(cell).max())))
    if not periodic.any():
        _refuse_crowds(positions, np.full(3, np.inf), cutoff / math.sqrt(3), cutoff)
        extents = np.ptp(positions, axis=0)
        if extents.max() <= NARROW * cutoff:
            return View(positions, cell, None, reach)
        points, extents = _narrowed(positions, np.full(3, np.inf), cutoff)
        return View(points, cell, None, reach, extents)
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
    return View(fractions @ cell, cell, whole.astype(np.int64), reach, heights)


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
