"""The loops themselves. Importing this module needs numba; machine code is kept from one process to the next.

Each rounds as the array code in whose place it stands: operations in the same order, none fused with another. None
touches Python's objects, so that other threads go on meanwhile.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar, cast, no_type_check

import numba
import numpy as np
from numba.core import config as settings

from painn_deploy.engines.kept import cache_folder, made
from painn_deploy.export.errors import OutputError

__all__ = ["image_pairs", "lay_out", "load", "molecule_pairs", "pack", "renew", "settle", "square_of", "write_slots"]


@cache
def square_of(cutoff: float) -> float:
    """The least number whose root, rounded, is no less than a cutoff: so a distance is compared without its root.

    Args:
        cutoff: Å.
    """
    square = cutoff * cutoff
    while math.sqrt(square) >= cutoff:
        square = math.nextafter(square, 0.0)
    while math.sqrt(square) < cutoff:
        square = math.nextafter(square, math.inf)
    return square


F = TypeVar("F", bound=Callable[..., Any])


def _folder() -> str:
    """Where machine code is kept; empty where no folder is this user's alone."""
    with suppress(OSError, OutputError):
        folder = cache_folder() / "loops"
        if made(folder):
            return str(folder)
    return ""


_KEPT = _folder()


def _compiled(function: F) -> F:
    """Compile a loop when it is first called for a type of arrays."""
    config: Any = settings
    before, config.CACHE_DIR = config.CACHE_DIR, _KEPT  # others' functions are kept where they say
    try:
        return cast(F, numba.njit(nogil=True, cache=bool(_KEPT), error_model="numpy")(function))
    finally:
        config.CACHE_DIR = before


def load() -> None:
    """Compile all loops, or load what was compiled before, while there is memory: LLVM ends a process that has none."""
    two, cell = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.eye(3) * 9.0
    starts, stops, places = np.array([0]), np.array([2]), np.zeros((2, 4), np.int64)
    first, second, vectors, found = places[0], places[1], np.zeros((4, 3)), np.zeros(4)
    counts, ends, shifts = np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros((4, 3), np.int64)
    molecule_pairs(two, starts, stops, 2.0, first, second, vectors, ends, counts, found)
    reach = np.zeros((1, 3), np.int64)
    image_pairs(two, starts, stops, cell[None], reach, 2.0, first, second, shifts, vectors, ends, counts, found)
    indices, steps = np.array([[0, 1]], np.uint64), np.zeros((1, 3), np.int32)
    settle(indices, steps, np.zeros((2, 3), np.int64), two, cell, 2.0, first, second, shifts, vectors, found)
    first, second = np.array([0]), np.array([1])
    neighbours, reverse = np.zeros((2, 1), np.int32), np.zeros((2, 1), np.int32)
    flat = neighbours.reshape(-1), reverse.reshape(-1)
    lay_out(first, second, 1, first.copy(), second.copy(), *flat, np.zeros((2, 2), np.int64))
    for kind in (np.float32, np.float64):
        displacements, mask = np.zeros((2, 1, 3), kind), np.zeros((2, 1), kind)
        written = displacements.reshape(-1, 3), mask.reshape(-1)
        write_slots(vectors[:1], first, second, *written)
        taken = np.zeros((2, 2), np.int64)
        pack(starts, np.array([0, 2]), np.array([0, 1]), first, second, vectors, 1, *flat, *written, taken)
        for images in (np.zeros((2, 0), np.int32), np.zeros((2, 1), np.int32)):
            renew(two, neighbours, starts.repeat(2), images, vectors, 2.0, displacements, mask)


@_compiled
@no_type_check
def molecule_pairs(positions, starts, stops, cutoff, first, second, vectors, ends, counts, nearest):
    """Every pair of atoms of a molecule that is within the cutoff, molecule after molecule.

    Args:
        positions: [atoms, 3], Å.
        starts: first atom of each molecule.
        stops: the atom after its last.
        cutoff: Å.
        first: written, [pairs]: the one atom, counted from its molecule's first.
        second: written: the other.
        vectors: written, [pairs, 3]: from the one to the other, Å.
        ends: written, [molecules]: pairs of this molecule and those before.
        counts: added to, [atoms]: neighbours of each.
        nearest: written, [molecules]: the shortest distance, Å; infinite for a single atom.
    """
    pair = 0
    for molecule in range(len(starts)):
        start, atoms, least = starts[molecule], stops[molecule] - starts[molecule], np.inf
        for one in range(atoms):
            here_x, here_y, here_z = positions[start + one, 0], positions[start + one, 1], positions[start + one, 2]
            for other in range(one + 1, atoms):
                x = positions[start + other, 0] - here_x
                y = positions[start + other, 1] - here_y
                z = positions[start + other, 2] - here_z
                distance = math.sqrt((x * x + y * y) + z * z)
                least = min(least, distance)
                if distance < cutoff:
                    first[pair], second[pair] = one, other
                    vectors[pair, 0], vectors[pair, 1], vectors[pair, 2] = x, y, z
                    counts[start + one] += 1
                    counts[start + other] += 1
                    pair += 1
        ends[molecule], nearest[molecule] = pair, least


@_compiled
@no_type_check
def image_pairs(positions, starts, stops, cells, reach, cutoff, first, second, shifts, vectors, ends, counts, nearest):
    """The same of structures that repeat, images among them; in the order of atoms, and of shifts for each two.

    Arrays of pairs may be too short: what fits is written, and all are counted.

    Args:
        positions: see `molecule_pairs`.
        starts: see there.
        stops: see there.
        cells: [structures, 3, 3], Å; completed.
        reach: [structures, 3]: cells along each direction that an image within the cutoff can be away.
        cutoff: Å.
        first: see there.
        second: see there.
        shifts: written, [pairs, 3]: whole cells that the other atom is moved by.
        vectors: see there.
        ends: see there.
        counts: see there.
        nearest: see there.
    """
    pair, room = 0, len(first)
    for structure in range(len(starts)):
        start, atoms, least, cell = starts[structure], stops[structure] - starts[structure], np.inf, cells[structure]
        most_a, most_b, most_c = reach[structure, 0], reach[structure, 1], reach[structure, 2]
        for one in range(atoms):
            here_x, here_y, here_z = positions[start + one, 0], positions[start + one, 1], positions[start + one, 2]
            for other in range(one, atoms):
                straight_x = positions[start + other, 0] - here_x
                straight_y = positions[start + other, 1] - here_y
                straight_z = positions[start + other, 2] - here_z
                own = one == other
                for a in range(0 if own else -most_a, most_a + 1):
                    for b in range(0 if own and a == 0 else -most_b, most_b + 1):
                        for c in range(1 if own and a == 0 and b == 0 else -most_c, most_c + 1):
                            x = straight_x + ((a * cell[0, 0] + b * cell[1, 0]) + c * cell[2, 0])
                            y = straight_y + ((a * cell[0, 1] + b * cell[1, 1]) + c * cell[2, 1])
                            z = straight_z + ((a * cell[0, 2] + b * cell[1, 2]) + c * cell[2, 2])
                            distance = math.sqrt((x * x + y * y) + z * z)
                            if distance < cutoff:
                                least = min(least, distance)
                                counts[start + one] += 1
                                counts[start + other] += 1
                                if pair < room:
                                    first[pair], second[pair] = one, other
                                    shifts[pair, 0], shifts[pair, 1], shifts[pair, 2] = a, b, c
                                    vectors[pair, 0], vectors[pair, 1], vectors[pair, 2] = x, y, z
                                pair += 1
        ends[structure], nearest[structure] = pair, least


@_compiled
@no_type_check
def lay_out(first, second, slots, forward, backward, neighbours, reverse, taken):
    """A place in the matrix for both ends of each pair; the rest is padding.

    An atom's slots hold first the pairs that it is the first atom of, in their order, then those that it is the second
    of.

    Args:
        first: [pairs]: row of the one atom.
        second: row of the other.
        slots: columns.
        forward: written, [pairs]: flat slot seen from the first atom.
        backward: written: and from the second.
        neighbours: written, [atoms * slots].
        reverse: written, [atoms * slots].
        taken: written, [2, atoms].
    """
    atoms = taken.shape[1]
    taken[:] = 0
    for pair in range(len(first)):
        taken[1, first[pair]] += 1
    for pair in range(len(first)):
        one, other = first[pair], second[pair]
        ahead = one * slots + taken[0, one]
        taken[0, one] += 1
        behind = other * slots + taken[1, other]
        taken[1, other] += 1
        forward[pair], backward[pair] = ahead, behind
        neighbours[ahead], neighbours[behind] = other, one
        reverse[ahead], reverse[behind] = behind, ahead
    for atom in range(atoms):
        for slot in range(atom * slots + taken[1, atom], (atom + 1) * slots):
            neighbours[slot], reverse[slot] = atom, slot


@_compiled
@no_type_check
def write_slots(vectors, forward, backward, displacements, mask):
    """Displacements and mask of both ends of each pair, all of them edges.

    Args:
        vectors: [pairs, 3], Å; rounded here.
        forward: [pairs]: see `lay_out`.
        backward: see there.
        displacements: written, [atoms * slots, 3].
        mask: written, [atoms * slots].
    """
    for pair in range(len(forward)):
        ahead, behind = forward[pair], backward[pair]
        for axis in range(3):
            displacements[ahead, axis] = vectors[pair, axis]
            displacements[behind, axis] = -vectors[pair, axis]
        mask[ahead] = mask[behind] = 1


@_compiled
@no_type_check
def pack(chosen, offsets, pair_offsets, first, second, vectors, slots, neighbours, reverse, displacements, mask, taken):
    """The same two for some of several structures, side by side in one matrix, all of whose pairs are edges.

    Args:
        chosen: [chosen]: indices of structures.
        offsets: [structures + 1]: first atom of each.
        pair_offsets: [structures + 1]: first pair of each.
        first: [pairs]: the one atom, counted from its structure's first.
        second: the other.
        vectors: [pairs, 3], Å; rounded here.
        slots: columns.
        neighbours: written, [rows * slots].
        reverse: written, [rows * slots].
        displacements: written, [rows * slots, 3].
        mask: written, [rows * slots].
        taken: written, [2, atoms of the largest].
    """
    row = 0
    for structure in chosen:
        atoms = offsets[structure + 1] - offsets[structure]
        begin, end = pair_offsets[structure], pair_offsets[structure + 1]
        taken[:, :atoms] = 0
        for pair in range(begin, end):
            taken[1, first[pair]] += 1
        for pair in range(begin, end):
            one, other = first[pair], second[pair]
            ahead = (row + one) * slots + taken[0, one]
            taken[0, one] += 1
            behind = (row + other) * slots + taken[1, other]
            taken[1, other] += 1
            neighbours[ahead], neighbours[behind] = row + other, row + one
            reverse[ahead], reverse[behind] = behind, ahead
            for axis in range(3):
                displacements[ahead, axis] = vectors[pair, axis]
                displacements[behind, axis] = -vectors[pair, axis]
            mask[ahead] = mask[behind] = 1
        for atom in range(atoms):
            for slot in range((row + atom) * slots + taken[1, atom], (row + atom + 1) * slots):
                neighbours[slot], reverse[slot], mask[slot] = row + atom, slot, 0
                for axis in range(3):
                    displacements[slot, axis] = 0
        row += atoms


@_compiled
@no_type_check
def renew(positions, neighbours, filled, images, table, farthest, displacements, mask):
    """Displacements and mask of pairs that stand, at positions of now.

    Both ends are formed on their own, from one subtraction each whose roundings are each other's negative.

    Args:
        positions: [atoms, 3], Å.
        neighbours: [atoms, slots].
        filled: [atoms]: slots of each atom that hold a pair; the rest is padding, and stays as it is.
        images: [atoms, slots]: row of `table` of each slot; without columns where nothing repeats.
        table: [images, 3]: displacements of images, Å.
        farthest: see `square_of`, Å².
        displacements: written, [atoms, slots, 3].
        mask: written, [atoms, slots].

    Returns:
        The shortest distance, Å, and the two atoms.
    """
    least, closest, nearby = np.inf, -1, -1
    repeats = images.shape[1] > 0
    for atom in range(len(neighbours)):
        here_x, here_y, here_z = positions[atom, 0], positions[atom, 1], positions[atom, 2]
        for slot in range(filled[atom]):
            other = neighbours[atom, slot]
            x, y, z = positions[other, 0] - here_x, positions[other, 1] - here_y, positions[other, 2] - here_z
            if repeats:
                image = images[atom, slot]
                x, y, z = x + table[image, 0], y + table[image, 1], z + table[image, 2]
            square = (x * x + y * y) + z * z
            if square < least:
                least, closest, nearby = square, atom, other
            displacements[atom, slot, 0] = x
            displacements[atom, slot, 1] = y
            displacements[atom, slot, 2] = z
            mask[atom, slot] = 1 if square < farthest else 0
    return math.sqrt(least), closest, nearby


@_compiled
@no_type_check
def settle(indices, shifts, moved, positions, cell, cutoff, first, second, images, vectors, distances):
    """Candidates that are within the cutoff, with their displacements.

    Args:
        indices: [candidates, 2]: both atoms.
        shifts: [candidates, 3]: cells that the second is moved by, among atoms that were moved before.
        moved: [atoms, 3]: by how many cells; no rows where nothing repeats.
        positions: [atoms, 3], of atoms that were not moved, Å.
        cell: completed, Å.
        cutoff: Å.
        first: written, [candidates]: the one atom.
        second: written: the other.
        images: written, [candidates, 3]: cells that the other is moved by; no rows where nothing repeats.
        vectors: written, [candidates, 3]: from the one to the other, Å.
        distances: written, [candidates], Å.

    Returns:
        How many were written.
    """
    pair, repeats = 0, len(moved) > 0
    for candidate in range(len(indices)):
        one, other = np.int64(indices[candidate, 0]), np.int64(indices[candidate, 1])
        x = positions[other, 0] - positions[one, 0]
        y = positions[other, 1] - positions[one, 1]
        z = positions[other, 2] - positions[one, 2]
        if repeats:
            a = shifts[candidate, 0] + (moved[one, 0] - moved[other, 0])
            b = shifts[candidate, 1] + (moved[one, 1] - moved[other, 1])
            c = shifts[candidate, 2] + (moved[one, 2] - moved[other, 2])
            x += (a * cell[0, 0] + b * cell[1, 0]) + c * cell[2, 0]
            y += (a * cell[0, 1] + b * cell[1, 1]) + c * cell[2, 1]
            z += (a * cell[0, 2] + b * cell[1, 2]) + c * cell[2, 2]
            images[pair, 0], images[pair, 1], images[pair, 2] = a, b, c
        distance = math.sqrt((x * x + y * y) + z * z)
        if distance < cutoff:
            first[pair], second[pair], distances[pair] = one, other, distance
            vectors[pair, 0], vectors[pair, 1], vectors[pair, 2] = x, y, z
            pair += 1
    return pair
