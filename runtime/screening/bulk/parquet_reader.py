"""Ordinary rows of Parquet side by side: columns become arrays without a value of Python's for each number."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from painn_deploy.runtime.batches.frames import Frames, ranges
from painn_deploy.runtime.screening.bulk.block import Block, Item, Ordinary, block_of
from painn_deploy.runtime.screening.chunks import MOST_ATOMS, Chunk
from painn_deploy.runtime.screening.labels import OURS
from painn_deploy.runtime.screening.parquet_source import ParquetSource, from_columns, rows_of, values_of
from painn_deploy.runtime.screening.plain import json_object
from painn_deploy.runtime.screening.remarks import Remarks
from painn_deploy.runtime.structures import bounds_of

__all__ = ["parquet_block"]

HEAVIEST = 118
"""Of the elements; a row of larger numbers is odd."""

_STRUCTURE = ("numbers", "positions", "cell", "pbc", "index", "info", "arrays")
_LABELS = ("energy", "forces", "stress")


class _Lists(NamedTuple):
    """Lists of numbers.

    Attributes:
        values: of all lists.
        offsets: the first value of each, and the end.
        sound: whether a list is there, without gaps; of lists of lists, whether these are triples.
    """

    values: np.ndarray
    offsets: Int64[np.ndarray, " bounds"]
    sound: Bool[np.ndarray, " rows"]


def parquet_block(source: ParquetSource, chunk: Chunk, remarks: Remarks) -> Block:
    """The rows of a chunk.

    Args:
        source: the file.
        chunk: of this file.
        remarks: as for `Source.read`.

    Raises:
        DatasetError: as `Source.read` does.
    """
    ordinary, odd, start, pieces = list[Ordinary](), dict[int, Item](), 0, list[tuple[int, Any]]()
    with source.memory(chunk):
        for piece in source.pieces(chunk):
            pieces.append((start, piece))
            rows, sound = _side_by_side(piece, chunk.first + start, start)
            ordinary += rows
            for row, values in _odd_rows(piece, sound):
                odd[start + row] = from_columns(values, chunk.first + start + row, remarks)
            start += piece.num_rows

    def again(place: int) -> Item:
        first, piece = next(one for one in reversed(pieces) if one[0] <= place)
        (values,) = rows_of(piece.slice(place - first, 1))
        return from_columns(values, chunk.first + place, Remarks())

    return block_of(chunk.first, chunk.count, ordinary, odd, again)


def _odd_rows(piece: Any, sound: Bool[np.ndarray, " rows"]) -> Iterator[tuple[int, dict[str, Any]]]:
    if sound.any():
        for row in np.flatnonzero(~sound).tolist():
            (values,) = rows_of(piece.slice(row, 1))
            yield row, values
    else:
        yield from enumerate(rows_of(piece))


def _side_by_side(piece: Any, index: int, start: int) -> tuple[list[Ordinary], Bool[np.ndarray, " rows"]]:
    """The ordinary rows of a batch, and which they are.

    Args:
        piece: a batch.
        index: of its first row in the input.
        start: place of its first row in the chunk.
    """
    none = list[Ordinary](), np.zeros(piece.num_rows, bool)
    columns = dict(zip(piece.schema.names, piece.columns, strict=True))
    numbers, positions = _lists(columns["numbers"]), _lists(columns["positions"])
    if numbers is None or positions is None or numbers.values.dtype.kind not in "iu":
        return none
    atoms = np.diff(numbers.offsets)
    if max(atoms, default=0) > MOST_ATOMS:  # nothing is made of such a row
        return none
    sound = numbers.sound & positions.sound & (atoms > 0) & (np.diff(positions.offsets) == 3 * atoms)
    sound &= _none_within(numbers, (numbers.values < 0) | (numbers.values > HEAVIEST))
    cells, pbc = np.zeros((piece.num_rows, 3, 3)), np.zeros((piece.num_rows, 3), bool)
    _fill(cells.reshape(-1, 9), columns.get("cell"), sound)
    _fill(pbc, columns.get("pbc"), sound)
    _check_index(columns.get("index"), index, sound)
    labels = _labels(columns, piece.num_rows, sound)
    for name in ("arrays", *OURS):
        if name in columns and name not in _LABELS and columns[name].null_count < piece.num_rows:
            sound &= ~_there(columns[name])
    notes = _notes(columns, piece.num_rows, sound)
    if not sound.any():
        return none
    rows = np.flatnonzero(sound)
    frames = Frames(
        _taken(numbers, rows).astype(np.int64),
        _taken(positions, rows).astype(np.float64).reshape(-1, 3),
        bounds_of(atoms[rows]),
        cells[rows],
        pbc[rows],
    )
    chosen = rows.tolist()
    return [Ordinary(rows + start, frames, [notes[row] for row in chosen], [labels[row] for row in chosen])], sound


def _there(column: Any) -> Bool[np.ndarray, " rows"]:
    """Which rows have a value."""
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)


def _lists(column: Any) -> _Lists | None:
    """Lists of numbers or of truths, or of triples of numbers; None where a column holds something else."""
    import pyarrow.types as kinds

    offsets, inner = _offsets(column)
    if offsets is None:
        return None
    sound, starts = _there(column), offsets
    triples, values = _offsets(inner)
    if triples is None:
        values = inner
    else:
        wrong = ~_there(inner) | (np.diff(triples) != 3)
        sound &= _counted(wrong, offsets) == 0
        offsets, starts = triples[offsets], triples[offsets]
    kind = values.type
    if not (kinds.is_float32(kind) or kinds.is_float64(kind) or kinds.is_boolean(kind) or kinds.is_integer(kind)):
        return None
    if kinds.is_uint64(kind):
        return None
    if values.null_count:
        sound &= _counted(~_there(values), offsets) == 0
        values = values.fill_null(False if kinds.is_boolean(kind) else 0)
    return _Lists(values.to_numpy(zero_copy_only=False), starts, sound)


def _offsets(column: Any) -> tuple[Int64[np.ndarray, " bounds"] | None, Any]:
    """Where the lists of a column begin, and what is in them; None where it holds no lists."""
    import pyarrow.types as kinds

    if kinds.is_fixed_size_list(column.type):
        size, rows = column.type.list_size, len(column)
        return np.arange(rows + 1) * size, column.values.slice(column.offset * size, rows * size)
    if not (kinds.is_list(column.type) or kinds.is_large_list(column.type)):
        return None, None
    offsets = column.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], column.values.slice(offsets[0], offsets[-1] - offsets[0])


def _counted(marks: Bool[np.ndarray, " values"], offsets: Int64[np.ndarray, " bounds"]) -> Int64[np.ndarray, " rows"]:
    """How many values of each row are marked."""
    return np.diff(bounds_of(marks)[offsets])


def _none_within(lists: _Lists, marks: Bool[np.ndarray, " values"]) -> Bool[np.ndarray, " rows"]:
    return _counted(marks, lists.offsets) == 0 if marks.any() else np.ones(len(lists.sound), bool)


def _taken(lists: _Lists, rows: Int64[np.ndarray, " rows"]) -> np.ndarray:
    """The values of some rows, one after another."""
    return np.asarray(lists.values[ranges(lists.offsets[:-1][rows], np.diff(lists.offsets)[rows])])


def _fill(into: np.ndarray, column: Any, sound: Bool[np.ndarray, " rows"]) -> None:
    """Write a cell or its directions where a row has them; a row that has others than so many is odd.

    Args:
        into: a line for each row.
        column: of the file; None where it has none.
        sound: rows that are ordinary, which is changed.
    """
    if column is None or column.null_count == len(column):
        return
    there, lists = _there(column), _lists(column)
    if lists is None or (into.dtype == bool) != (lists.values.dtype == bool):
        if into.dtype == bool and str(column.type) == "bool":
            into[there] = np.asarray(column.fill_null(False).to_numpy(zero_copy_only=False), bool)[there][:, None]
        else:
            sound &= ~there
        return
    fits = lists.sound & (np.diff(lists.offsets) == into.shape[1])
    sound &= fits | ~there
    into[fits] = _taken(lists, np.flatnonzero(fits)).reshape(-1, into.shape[1])


def _check_index(column: Any, first: int, sound: Bool[np.ndarray, " rows"]) -> None:
    """A row whose number is another than its own is odd.

    Args:
        column: of numbers; None where the file has none.
        first: index of the first row.
        sound: rows that are ordinary, which is changed.
    """
    import pyarrow.types as kinds

    if column is None or column.null_count == len(column):
        return
    there = _there(column)
    if not kinds.is_integer(column.type):
        sound &= ~there
        return
    own = first + np.arange(len(column))
    sound &= ~there | (column.fill_null(0).to_numpy(zero_copy_only=False) == own)


def _labels(columns: dict[str, Any], rows: int, sound: Bool[np.ndarray, " rows"]) -> Sequence[tuple[str, ...]]:
    """Names of the labels of each row; one whose label is no number is odd.

    Args:
        columns: by name.
        rows: how many.
        sound: rows that are ordinary, which is changed.
    """
    import pyarrow.types as kinds

    made: list[tuple[str, ...]] = [()] * rows
    for name in _LABELS:
        if name not in columns or columns[name].null_count == rows:
            continue
        column, there = columns[name], _there(columns[name])
        if name == "energy":
            kind = column.type
            fits = there & (kinds.is_float32(kind) or kinds.is_float64(kind) or kinds.is_integer(kind))
        else:
            lists = _lists(column)
            fits = there & lists.sound if lists is not None else np.zeros(rows, bool)
        sound &= fits | ~there
        made = [(*names, name) if has else names for names, has in zip(made, there.tolist(), strict=True)]
    return made


def _notes(columns: dict[str, Any], rows: int, sound: Bool[np.ndarray, " rows"]) -> list[dict[str, Any]]:
    """What goes into `info` of each row; one of which this is not plain to see is odd.

    Args:
        columns: by name.
        rows: how many.
        sound: rows that are ordinary, which is changed.
    """
    made: list[dict[str, Any]] = [{} for _ in range(rows)]
    for name, column in columns.items():
        if name not in _STRUCTURE and name not in OURS and column.null_count < rows:
            values = values_of(column)
            for note, value in zip(made, values, strict=True):
                if value is not None:
                    note[name] = value
            if name == "id":  # NaN is none
                sound &= [not isinstance(value, float) for value in values]
    if "info" in columns and columns["info"].null_count < rows:
        texts = columns["info"]
        if str(texts.type) not in ("string", "large_string"):
            sound &= ~_there(texts)
            return made
        for row, text in enumerate(values_of(texts)):
            if text is not None and sound[row]:
                found = _info(text)
                if found is None or not found.keys().isdisjoint(made[row]):
                    sound[row] = False
                else:
                    made[row] = found | made[row]
    return made


def _info(text: str) -> dict[str, Any] | None:
    """What a text of `info` holds; None where it is no object, or has names of a screening's own."""
    try:
        found = json.loads(text, object_hook=json_object)
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not _OURS.isdisjoint(found) or type(found.get("id")) is float:
        return None
    return found


_OURS = frozenset(OURS)
