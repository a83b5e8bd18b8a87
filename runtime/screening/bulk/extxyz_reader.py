"""Ordinary frames of extended XYZ side by side: comments by their form, and the numbers of all lines at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from ase.data import atomic_numbers
from jaxtyping import Float64

from painn_deploy.runtime.batches.frames import Frames
from painn_deploy.runtime.screening.bulk.block import Block, Item, Ordinary, block_of
from painn_deploy.runtime.screening.bulk.comments import Comment, Layout, layout_of, read_comment
from painn_deploy.runtime.screening.chunks import Chunk
from painn_deploy.runtime.screening.extxyz_source import ExtxyzSource, Frame
from painn_deploy.runtime.screening.remarks import Remarks
from painn_deploy.runtime.structures import bounds_of

__all__ = ["extxyz_block"]

_ELEMENTS = {written: number for name, number in atomic_numbers.items() for written in (name, name.lower())}
_LABELS = {
    (False, False): (),
    (True, False): ("energy",),
    (False, True): ("forces",),
    (True, True): ("energy", "forces"),
}


@dataclass
class _Alike:
    """Frames whose lines have the same columns.

    Attributes:
        layout: where the columns are.
        places: of the frames in their chunk.
        comments: of the frames.
        words: of the lines of each.
    """

    layout: Layout
    places: list[int] = field(default_factory=list)
    comments: list[Comment] = field(default_factory=list)
    words: list[list[str]] = field(default_factory=list)


def extxyz_block(source: ExtxyzSource, chunk: Chunk, remarks: Remarks) -> Block:
    """The rows of a chunk.

    Args:
        source: the file.
        chunk: of this file.
        remarks: as for `Source.read`.

    Raises:
        DatasetError: as `Source.read` does.
    """
    frames = list(source.frames(chunk))
    alike, odd = dict[str, _Alike](), set(range(len(frames)))
    for place, frame in enumerate(frames):
        if frame.ended or (comment := read_comment(frame.lines[1])) is None:
            continue
        if (layout := layout_of(comment.properties)) is None or (words := _words(frame, layout.width)) is None:
            continue
        some = alike.get(comment.properties) or alike.setdefault(comment.properties, _Alike(layout))
        some.places.append(place)
        some.comments.append(comment)
        some.words.append(words)
    ordinary = [rows for some in alike.values() for rows in _converted(some)]
    for rows in ordinary:
        odd.difference_update(rows.places.tolist())

    def again(place: int) -> Item:
        return frames[place].parsed(chunk.first + place, Remarks())

    read = {place: frames[place].parsed(chunk.first + place, remarks) for place in sorted(odd)}
    return block_of(chunk.first, chunk.count, ordinary, read, again)


def _words(frame: Frame, width: int) -> list[str] | None:
    """The words of the lines of atoms; None where not every line has as many as there are columns."""
    body = b"\n".join(frame.lines[2:])
    if not body or not body.isascii():
        return None
    lines = [line.split() for line in body.decode("ascii").split("\n")]
    return list(chain.from_iterable(lines)) if set(map(len, lines)) == {width} else None


def _converted(some: _Alike) -> list[Ordinary]:
    """Frames side by side; those whose words are no elements and numbers are left out."""
    try:
        return [_ordinary(some)]
    except (KeyError, ValueError):
        if len(some.places) == 1:
            return []
        alone = zip(some.places, some.comments, some.words, strict=True)
        each = (_Alike(some.layout, [place], [comment], [words]) for place, comment, words in alone)
        return [rows for one in each for rows in _converted(one)]


def _ordinary(some: _Alike) -> Ordinary:
    """All of some frames.

    Raises:
        KeyError, ValueError: a word is no element, or no number.
    """
    layout, words = some.layout, list(chain.from_iterable(some.words))
    width = layout.width
    numbers = np.array([_ELEMENTS[word] for word in words[layout.species :: width]], np.int64)
    positions = _triples(words, layout.positions, width)
    if layout.forces is not None:  # labels that will be replaced, if they are any
        _triples(words, layout.forces, width)
    offsets = bounds_of(np.array([len(one) // width for one in some.words]))
    cells = np.zeros((len(some.places), 3, 3))
    for row, comment in enumerate(some.comments):
        if comment.cell is not None:
            cells[row].flat = comment.cell
    pbc = np.array([comment.pbc for comment in some.comments])
    return Ordinary(
        np.array(some.places),
        Frames(numbers, positions, offsets, cells, pbc),
        [comment.notes for comment in some.comments],
        [_LABELS[comment.energy, layout.forces is not None] for comment in some.comments],
    )


def _triples(words: Sequence[str], start: int, width: int) -> Float64[np.ndarray, "atoms 3"]:
    made = np.empty((len(words) // width, 3))
    for axis in range(3):
        made[:, axis] = list(map(float, words[start + axis :: width]))
    return made
