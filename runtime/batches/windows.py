"""Structures by windows: those that are made ready together, sorted and packed.

How structures are divided depends on their order and the size of a batch alone, so that the same input gives the same
bits again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.runtime.batches.frames import Arrays, Faults, Frames, arrays_of, copied
from painn_deploy.runtime.periodicity import IPI_MARK

__all__ = ["WINDOW_ATOMS", "WINDOW_STRUCTURES", "Window", "window_is_full", "windows_of", "windows_of_atoms"]

WINDOW_STRUCTURES = 512
"""Structures that are sorted and packed together, unless they are smaller than a quarter of a batch."""

WINDOW_ATOMS = 16_384
"""Atoms of a window, so that large structures take no more memory than small ones; four batches where these are
larger, as on a GPU."""


def window_is_full(structures: int, atoms: int, batch_slots: int) -> bool:
    """Whether no more structures are taken together.

    Args:
        structures: how many there are.
        atoms: of all of them.
        batch_slots: atoms x slots of a batch.
    """
    quarter = batch_slots // 4
    return atoms >= max(WINDOW_ATOMS, quarter) or (structures >= WINDOW_STRUCTURES and atoms >= quarter)


@dataclass
class Window:
    """Structures that are made ready together.

    Attributes:
        frames: the structures.
        faults: why some have no answer, by their places.
        last: whether nothing comes after it.
        look: called for each that is sound, has a cell and repeats in no direction; None for nothing.
        watched: others that it is called for.
    """

    frames: Frames
    faults: Faults = field(default_factory=dict)
    last: bool = False
    look: Callable[[int], None] | None = None
    watched: Sequence[int] = ()


def windows_of(frames: Frames, batch_slots: int, look: Callable[[Atoms], None] | None = None) -> Iterator[Window]:
    """Structures by windows.

    Args:
        frames: any number of structures.
        batch_slots: atoms x slots of a batch.
        look: see `Window`.
    """
    bounds, quarter, first, last = frames.offsets, batch_slots // 4, 0, 0
    while True:
        begun = bounds[first]
        many = int(np.searchsorted(bounds, begun + max(WINDOW_ATOMS, quarter)))
        enough = max(first + WINDOW_STRUCTURES, int(np.searchsorted(bounds, begun + quarter)))
        last = min(max(first + 1, min(many, enough)), len(frames))
        part = frames.part(first, last)
        yield Window(part, {}, last == len(frames), None if look is None else _looking(part, look))
        if last == len(frames):
            return
        first = last


def windows_of_atoms(
    structures: Iterable[Any], batch_slots: int, look: Callable[[Atoms], None] | None = None
) -> Iterator[Window]:
    """The same of `Atoms`, which are taken from their iterator as they are needed.

    Args:
        structures: any number; an error in place of one, as a reader may give, is why it has no answer.
        batch_slots: atoms x slots of a batch.
        look: see `Window`.
    """
    items: list[Any] = []
    arrays: list[Arrays] = []
    atoms, faults = 0, Faults()
    standing = isinstance(structures, list | tuple)  # what makes structures may go on with those that it gave
    for item in structures:
        given = arrays_of(item, len(items), faults)
        arrays.append(given if standing else copied(given))
        items.append(item)
        atoms += len(arrays[-1][0])
        if window_is_full(len(items), atoms, batch_slots):
            yield _window(items, arrays, faults, False, look)
            items, arrays, atoms, faults = [], [], 0, Faults()
    if items:
        yield _window(items, arrays, faults, True, look)


def _window(
    items: list[Any], arrays: list[Arrays], faults: Faults, last: bool, look: Callable[[Atoms], None] | None
) -> Window:
    frames = Frames.side_by_side(arrays)
    if look is None:
        return Window(frames, faults, last)
    told = [i for i, one in enumerate(items) if isinstance(one, Atoms) and IPI_MARK in one.info]

    def looked(index: int) -> None:
        atoms = frames.atoms(index)
        atoms.info = items[index].info
        look(atoms)

    return Window(frames, faults, last, looked, told)


def _looking(frames: Frames, look: Callable[[Atoms], None]) -> Callable[[int], None]:
    return lambda index: look(frames.atoms(index))
