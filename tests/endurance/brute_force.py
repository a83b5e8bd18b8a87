"""A reference of our own: what a structure means, its neighbours by looking at every image, and the student on them.

Nothing of the product's structure checks, neighbour search or packing takes part.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

__all__ = ["Reading", "Reference", "UnanswerableError", "images_of", "reading_of", "reference"]

MOST_PAIRS, MOST_EDGES = 4e6, 60_000
"""Pairs with images that are looked at, and edges that the student is asked about, past which there is no reference."""


ORDERS, ROUNDING = 4, 2.0**-24
"""Orders of the slots, beside the first, in which float32 is tried; and its relative error of a displacement."""


class UnanswerableError(Exception):
    """The structure means nothing that has an energy; the message says why."""


@dataclass(frozen=True)
class Reading:
    """What `atoms.arrays`, the cell and pbc say, whatever they hold it in.

    Attributes:
        numbers: [atoms] Z.
        positions: [atoms, 3] Å, float64.
        cell: [3, 3] Å; rows that do not repeat are zero.
        pbc: [3].
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray


def _floats(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise UnanswerableError(f"{what} are masked")
    array = np.asarray(value)
    if array.shape != shape:
        raise UnanswerableError(f"{what} are of shape {array.shape}")
    if array.dtype.kind == "c":
        if np.imag(array).any():
            raise UnanswerableError(f"{what} are complex")
        array = np.real(array)
    if array.dtype.kind in "MmV":
        raise UnanswerableError(f"{what} are of type {array.dtype}")
    try:
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnanswerableError(f"{what}: {error}") from error


def reading_of(atoms: Atoms) -> Reading:
    """What a structure means.

    Raises:
        UnanswerableError: nothing that has an energy.
    """
    if missing := {"numbers", "positions"} - atoms.arrays.keys():
        raise UnanswerableError(f"there are no {' and no '.join(sorted(missing))}")
    raw = np.asarray(atoms.arrays["numbers"])
    if raw.ndim != 1 or len(raw) == 0:
        raise UnanswerableError(f"numbers are of shape {raw.shape}")
    numbers = _floats(atoms.arrays["numbers"], raw.shape, "numbers")
    if not (np.isfinite(numbers).all() and (numbers == np.rint(numbers)).all()):
        raise UnanswerableError("numbers are not whole")
    if not ((numbers >= 1) & (numbers <= 118)).all():
        raise UnanswerableError("numbers are of no element")
    positions = _floats(atoms.arrays["positions"], (len(raw), 3), "positions")
    if not np.isfinite(positions).all():
        raise UnanswerableError("positions are not finite")
    flags = np.asarray(atoms._pbc)
    flags = np.full(3, flags) if flags.shape == () else flags
    if flags.shape != (3,) or flags.dtype.kind not in "biufO":
        raise UnanswerableError(f"pbc is {flags!r}")
    pbc = flags.astype(bool)
    cell = np.zeros((3, 3))
    if pbc.any():
        whole = _floats(atoms.cell.array, (3, 3), "cell vectors")
        cell[pbc] = whole[pbc]
        if not np.isfinite(cell).all():
            raise UnanswerableError("a cell vector is not finite")
    return Reading(numbers.astype(np.int64), positions, cell, pbc)


def _basis(reading: Reading) -> np.ndarray:
    """Periodic vectors, and unit vectors across them."""
    kept = reading.cell[reading.pbc]
    scaled = kept / np.maximum(np.abs(kept).max(axis=1, keepdims=True), 1e-300)
    _, _, rows = np.linalg.svd(scaled) if len(kept) else (None, None, np.eye(3))
    basis = reading.cell.copy()
    basis[~reading.pbc] = rows[len(kept) :]
    return basis


def images_of(reading: Reading, cutoff: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Whole cells that each atom is moved by to lie near the first, and how far images are to be looked for.

    None where there are too many images to look at, or the cell has no volume.

    Args:
        reading: of a structure.
        cutoff: Å.
    """
    atoms = len(reading.numbers)
    if not reading.pbc.any():
        return (np.zeros((atoms, 3)), np.zeros(3)) if atoms**2 <= MOST_PAIRS else None
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(reading.cell[reading.pbc], axis=1)
        try:
            inverse = np.linalg.inv(_basis(reading))
        except np.linalg.LinAlgError:
            return None
        if not (np.isfinite(inverse).all() and np.isfinite(lengths).all() and lengths.min() > 0):
            return None
        fractions = reading.positions @ inverse
        moved = np.where(reading.pbc, np.rint(fractions - fractions[0]), 0.0)
        spread = np.ptp(fractions - moved, axis=0)
        reach = np.where(reading.pbc, np.ceil(cutoff * np.linalg.norm(inverse, axis=0) + spread), 0.0)
    count = float(np.prod(2 * reach + 1)) * atoms**2
    return (moved, reach) if np.isfinite(count) and count <= MOST_PAIRS else None


@dataclass(frozen=True)
class Reference:
    """The student's answer, and what float32 costs it there.

    Attributes:
        energy: eV.
        forces: [atoms, 3] eV/Å.
        energy_error: of the same student in float32, eV.
        force_error: largest of any component, eV/Å.
        closest: Å, of two atoms or images; infinite where there is one alone.
    """

    energy: float
    forces: np.ndarray
    energy_error: float
    force_error: float
    closest: float


def _edges(reading: Reading, cutoff: float, moved: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, ...]:
    """Both ends and the displacement of every edge, and the shortest distance of all, edges or not."""
    positions = reading.positions - moved @ reading.cell
    firsts, seconds, vectors, closest = [], [], [], np.inf
    ranges = [np.arange(-r, r + 1) for r in reach]
    every = positions[None] - positions[:, None]
    for shift in np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3):
        lines = every + shift @ reading.cell
        distances = np.linalg.norm(lines, axis=-1)
        if not shift.any():
            np.fill_diagonal(distances, np.inf)
        closest = min(closest, float(distances.min()))
        first, second = np.nonzero(distances < cutoff)
        firsts.append(first)
        seconds.append(second)
        vectors.append(lines[first, second])
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(vectors), np.array(closest)


def reference(reading: Reading, exact: Any, single: Any, orders: int = ORDERS) -> Reference | None:
    """The student's energy and forces by plain autograd; None where looking at every image would take too long.

    Args:
        reading: of a structure of elements that the student knows.
        exact: the student in float64.
        single: the student in float32.
        orders: of the slots, beside the first, in which float32 is tried.
    """
    import torch

    from painn_deploy.export.model.force_head import autograd_forces
    from painn_deploy.export.model.student import NeighbourGraph

    cutoff = exact.configuration.cutoff
    found = images_of(reading, cutoff)
    if found is None:
        return None
    first, second, vectors, closest = _edges(reading, cutoff, *found)
    if len(first) > MOST_EDGES:
        return None
    atoms = len(reading.numbers)
    sorting = np.argsort(first, kind="stable")
    first, second, vectors = first[sorting], second[sorting], vectors[sorting]
    counts = np.bincount(first, minlength=atoms)
    slots = max(1, int(counts.max()))
    if atoms * slots > 2 * MOST_EDGES:
        return None
    place = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    displacements, mask = np.zeros((atoms, slots, 3)), np.zeros((atoms, slots))
    neighbours = np.repeat(np.arange(atoms)[:, None], slots, axis=1)
    displacements[first, place], neighbours[first, place], mask[first, place] = vectors, second, 1.0
    answers, shuffle = [], np.random.default_rng(0)
    tried = [np.arange(slots), *(shuffle.permutation(slots) for _ in range(orders))]
    # what float32 costs is luck: the worst of some orders of sums, of displacements rounded either way, is nearer to it
    for student, order in ((exact, tried[0]), *((single, order) for order in tried)):
        luck = 1.0 if order is tried[0] else 1 + ROUNDING * shuffle.uniform(-1, 1, displacements.shape)
        graph = NeighbourGraph(
            torch.as_tensor(reading.numbers),
            torch.as_tensor(displacements[:, order] * luck, dtype=student.dtype),
            torch.as_tensor(neighbours[:, order]),
            torch.zeros((atoms, slots), dtype=torch.int64),  # plain autograd needs none
            torch.as_tensor(mask[:, order], dtype=student.dtype),
            torch.ones(atoms, dtype=student.dtype),
        )
        outputs = autograd_forces(student, graph)
        energies = outputs.atomic_energies.double() + student.atomic_references[graph.atomic_numbers].double()
        answers.append((float(energies.sum()), outputs.forces.double().numpy()))
    (energy, forces), *rough = answers
    energy_error = max(abs(energy - one) for one, _ in rough)
    force_error = max(float(np.abs(forces - one).max(initial=0.0)) for _, one in rough)
    return Reference(energy, forces, energy_error, force_error, float(closest))
