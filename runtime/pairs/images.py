"""Images of atoms in cells that repeat: where they are, how far away they can matter, and their pairs."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from painn_deploy.runtime.pairs import compiled

__all__ = ["MOST_TRIED", "FoundPairs", "image_pairs", "image_reach", "image_vectors"]

MOST_TRIED = 40_000
"""Distances to images of a small cell up to which all are looked at; vesin is faster beyond."""

PACKED = 0.2
"""Atoms in 1 Å³ that room for pairs is made for at first."""


class FoundPairs(NamedTuple):
    """Pairs of structures side by side.

    Attributes:
        first: the one atom, counted from its structure's first.
        second: the other.
        shifts: whole cells that the other is moved by; None where nothing repeats.
        vectors: from the one to the other, Å.
        ends: pairs of each structure and those before.
        counts: neighbours of each atom.
        nearest: the shortest distance in each structure, Å; infinite where there is none.
    """

    first: Int64[np.ndarray, " pairs"]
    second: Int64[np.ndarray, " pairs"]
    shifts: Int64[np.ndarray, "pairs 3"] | None
    vectors: Float64[np.ndarray, "pairs 3"]
    ends: Int64[np.ndarray, " structures"]
    counts: Int64[np.ndarray, " atoms"]
    nearest: Float64[np.ndarray, " structures"]


def image_vectors(
    shifts: Float64[np.ndarray, "*images 3"],
    cells: Float64[np.ndarray, "*structures 3 3"],
    out: np.ndarray | None = None,
    scratch: np.ndarray | None = None,
) -> Float64[np.ndarray, "*images 3"]:
    """S·cell, summed in the order of the cell's vectors: a library's product would round as it likes.

    Args:
        shifts: S, whole cells.
        cells: Å; one for all, or one for each.
        out: written where it is given.
        scratch: [images], for what is between.
    """
    made = np.empty_like(shifts) if out is None else out
    for column in range(3):  # whole columns: with axes of length one numpy would fill buffers
        own = made[..., column]
        np.multiply(shifts[..., 0], cells[..., 0, column], out=own)
        for axis in (1, 2):
            own += np.multiply(shifts[..., axis], cells[..., axis, column], out=scratch)
    return made


def image_reach(
    positions: Float64[np.ndarray, "atoms 3"],
    starts: Int64[np.ndarray, " structures"],
    cells: Float64[np.ndarray, "structures 3 3"],
    periodic: Bool[np.ndarray, "structures 3"],
    cutoff: float,
) -> tuple[Int64[np.ndarray, "structures 3"], Float64[np.ndarray, " structures"]]:
    """How many cells away an image within the cutoff can be, and how many distances there are to all up to there.

    Where these are no more than `MOST_TRIED`, all are looked at, whether structures come one by one or together.

    Args:
        positions: of structures side by side, Å.
        starts: first atom of each structure.
        cells: completed, Å.
        periodic: directions that repeat.
        cutoff: Å.
    """
    counts = np.diff(np.append(starts, len(positions)))
    inverse = np.linalg.inv(cells)
    fractions = np.einsum("ai,aij->aj", positions, np.repeat(inverse, counts, axis=0))
    spread = np.maximum.reduceat(fractions, starts) - np.minimum.reduceat(fractions, starts)
    away = cutoff * np.sqrt(np.einsum("sij,sij->sj", inverse, inverse)) + spread
    reach = np.where(periodic, np.minimum(np.floor(away + 1e-6), 1e6), 0.0)
    return reach.astype(np.int64), counts * (counts + 1) / 2 * np.prod(2 * reach + 1, axis=1)


def image_pairs(
    positions: Float64[np.ndarray, "atoms 3"],
    starts: Int64[np.ndarray, " structures"],
    stops: Int64[np.ndarray, " structures"],
    cells: Float64[np.ndarray, "structures 3 3"],
    reach: Int64[np.ndarray, "structures 3"],
    cutoff: float,
) -> FoundPairs:
    """Pairs of small cells by compiled loops, in the order of atoms and shifts.

    Args:
        positions: Å.
        starts: first atom of each structure.
        stops: the atom after its last.
        cells: completed, Å.
        reach: see `image_reach`.
        cutoff: Å.
    """
    loops, volumes = compiled.loops(), np.abs(np.linalg.det(cells))
    if loops is None:
        raise RuntimeError("There are no compiled loops here.")
    around = 4 / 3 * np.pi * cutoff**3 * np.minimum((stops - starts) / volumes, PACKED)
    room = int((stops - starts) @ around / 2) + 64
    while True:
        first, second = np.empty(room, np.int64), np.empty(room, np.int64)
        shifts, vectors = np.empty((room, 3), np.int64), np.empty((room, 3))
        ends, nearest = np.empty(len(starts), np.int64), np.empty(len(starts))
        counts = np.zeros(len(positions), np.int64)
        written = first, second, shifts, vectors, ends, counts, nearest
        loops.image_pairs(positions, starts, stops, cells, reach, cutoff, *written)
        found = int(ends[-1]) if len(ends) else 0
        if found <= room:
            return FoundPairs(first[:found], second[:found], shifts[:found], vectors[:found], ends, counts, nearest)
        room = found  # more crowded than any matter: there are no more than `MOST_TRIED` a structure
