"""Which structures share a padded matrix: those that need about as many slots, and no more than fit the cache."""

from collections.abc import Sequence

from painn_deploy.engines.backend import CPU_BATCH_SLOTS

__all__ = ["group", "padding_waste"]


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
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index][1], -sizes[index][0], index))
    batches: list[list[int]] = []
    atoms = slots = 0
    for index in order:
        total = atoms + sizes[index][0]
        if not batches or total * slots > budget or (most_atoms is not None and total > most_atoms):
            batches.append([])
            atoms, slots = 0, sizes[index][1]  # in descending order the first needs most
        batches[-1].append(index)
        atoms += sizes[index][0]
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
