"""The rows of a chunk as they were read: the ordinary ones side by side, the odd ones as they are.

A row is ordinary where its structure and a few notes are all that there is of it. Whatever else comes is odd, and goes
the way of one row after another; a row that turns out to be odd later, since it has no answer or since a format does
not take its notes as they are, is read again for it. Both ways give the same rows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from jaxtyping import Int64

from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.batches.frames import Frames
from painn_deploy.runtime.structures import check_structure

__all__ = ["Block", "Item", "Ordinary", "block_of", "no_labels"]

Item: TypeAlias = Atoms | StructureError
"""A row as a source reads it: see `Source.read`."""

Notes = dict[str, Any]


@dataclass(frozen=True)
class Ordinary:
    """Ordinary rows side by side.

    Attributes:
        places: of each in its chunk.
        frames: structures.
        notes: what goes into `info`.
        labels: names of the labels that it brought, all of which results may replace.
    """

    places: Int64[np.ndarray, " rows"]
    frames: Frames
    notes: Sequence[Notes]
    labels: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Block:
    """The rows of a chunk.

    Attributes:
        first: index of the first row.
        count: of rows.
        frames: every structure that can be computed, in order.
        places: of each of them in the chunk.
        notes: of ordinary rows, by place; None for an odd one.
        labels: names of their labels, by place.
        odd: odd rows, by place.
        reasons: why an odd row is not among the frames, by place.
        again: an ordinary row as an odd one, by place.
    """

    first: int
    count: int
    frames: Frames
    places: Int64[np.ndarray, " frames"]
    notes: list[Notes | None]
    labels: list[tuple[str, ...]]
    odd: dict[int, Item]
    reasons: dict[int, str]
    again: Callable[[int], Item]

    def item(self, place: int) -> Item:
        """A row as an odd one."""
        return self.odd[place] if place in self.odd else self.again(place)


def no_labels(rows: int) -> list[tuple[str, ...]]:
    """The labels of rows that brought none."""
    return [()] * rows


def block_of(
    first: int, count: int, ordinary: Iterable[Ordinary], odd: dict[int, Item], again: Callable[[int], Item]
) -> Block:
    """A block of ordinary rows in any order and of odd ones.

    Args:
        first: index of the first row.
        count: of rows.
        ordinary: rows side by side.
        odd: rows by their place.
        again: see `Block`.
    """
    notes, labels, reasons = list[Notes | None]([None] * count), no_labels(count), dict[int, str]()
    parts, places = list[Frames](), list[Int64[np.ndarray, " rows"]]()
    for rows in ordinary:
        parts.append(rows.frames)
        places.append(rows.places)
        for place, note, names in zip(rows.places.tolist(), rows.notes, rows.labels, strict=True):
            notes[place], labels[place] = note, names
    for place, item in odd.items():
        try:
            if not isinstance(item, Atoms):
                raise item
            atoms = check_structure(item)
            parts.append(Frames.side_by_side([(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)]))
        except StructureError as error:
            reasons[place] = str(error)
        else:
            places.append(np.array([place]))
    frames, where = Frames.joined(parts), np.concatenate([np.zeros(0, np.int64), *places])
    order = np.argsort(where, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        frames, where = frames.only(order), where[order]
    return Block(first, count, frames, where, notes, labels, odd, reasons, again)
