"""Which structures share a padded matrix: those that need about as many slots, and no more than fit the cache."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from painn_deploy.engines.backend import CPU_BATCH_SLOTS
from painn_deploy.runtime.structures import bounds_of

__all__ = ["divided", "group", "padding_waste"]


def group(
    sizes: Sequence[tuple[int, int]], budget: int = CPU_BATCH_SLOTS, most_atoms: int | None = None
) -> list[list[int]]:
    """Divide structures into batches of at most `budget` atoms x slots, padding as little as a sorted order allows.

    The division depends on the sizes and the budget alone, so that the same input gives the same bits again.

    Args:
        sizes: atoms and slots of each structure.
        budget: of atoms x slots; a structure that exceeds it alone is a batch of its own.
        most_atoms: of a batch, where an engine's profile sets a bound; likewise.

    Returns:
        Indices of each batch; every index once.
    """
    table = np.array(sizes, np.int64).reshape(-1, 2)
    return [batch.tolist() for batch in divided(table[:, 0], table[:, 1], budget, most_atoms)]


def divided(
    atoms: Int64[np.ndarray, " structures"],
    slots: Int64[np.ndarray, " structures"],
    budget: int,
    most_atoms: int | None = None,
) -> list[Int64[np.ndarray, " batch"]]:
    """The same of sizes in arrays.

    Args:
        atoms: of each structure.
        slots: of each structure.
        budget: see `group`.
        most_atoms: see `group`.
    """
    order = np.lexsort((-atoms, -slots))  # stable: of like sizes the first comes first
    before = bounds_of(atoms[order])
    batches, start = [], 0
    while start < len(order):
        most = budget // int(slots[order[start]])  # in descending order the first needs most
        most = most if most_atoms is None else min(most, most_atoms)
        stop = max(start + 1, int(np.searchsorted(before, before[start] + most, side="right")) - 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def padding_waste(sizes: Sequence[tuple[int, int]], batches: Sequence[Sequence[int]]) -> float:
    """Share of slots that padding to each batch's widest structure adds, from 0 to 1.

    Args:
        sizes: atoms and slots of each structure.
        batches: indices of the structures in each batch.
    """
    used = sum(atoms * slots for atoms, slots in sizes)
    padded = sum(sum(sizes[i][0] for i in batch) * max(sizes[i][1] for i in batch) for batch in batches)
    return 1 - used / padded if padded else 0.0
