"""Rows of a Parquet file."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.export.errors import DatasetError, StructureError
from painn_deploy.runtime.screening.carrying import RESULTS, free
from painn_deploy.runtime.screening.chunks import (
    MOST_ATOMS,
    Chunk,
    Ids,
    Scan,
    cut_short,
    divided,
    row_error,
    sha256_of,
    structure_of,
)
from painn_deploy.runtime.screening.labels import as_label, merged, with_labels
from painn_deploy.runtime.screening.plain import json_object
from painn_deploy.runtime.screening.remarks import IN_INFO, RENAMED, UNREAD, Remarks
from painn_deploy.runtime.uncertainty.scale import OF_ATOMS

__all__ = ["ParquetSource", "from_columns", "parquet", "rows_of", "values_of"]

MOST_BYTES = 64 << 20
"""That rows take as Python's values at a time, by what the file says of itself; one row may take more."""

MOST_ROWS = 1024
"""At a time: more gain nothing."""

TOO_LONG = "\0atoms"
"""In place of the values of a row that has more atoms; no column has such a name."""

VALUE_BYTES = 64
"""Of a number as Python's value in a list in a list."""


def parquet() -> Any:
    """pyarrow.parquet.

    Raises:
        ImportError: it names the extra to install.
    """
    try:
        import pyarrow.parquet as library
    except ModuleNotFoundError as error:
        raise ImportError('Parquet needs pyarrow: pip install "painn-deploy[screen]"', name="pyarrow") from error
    return library


class ParquetSource:
    """Parquet with columns `numbers` and `positions`; `cell`, `pbc`, `id`, `info` and `arrays` if they are there.

    `positions` and `cell` are lists of triples, or flat. `info` and `arrays` are JSON; other columns go into `info`.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = parquet().ParquetFile(path)
        except ImportError:
            raise
        except Exception as error:  # pyarrow's errors share no base class but this one
            raise DatasetError(f"Cannot read {path}: {error}.") from error
        names = self._file.schema_arrow.names
        if missing := [name for name in ("numbers", "positions") if name not in names]:
            raise DatasetError(f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(names)}.")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DatasetError(f"{path} has more than one column {twice[0]!r}. Give each its own name.")
        _refuse_huge(self._file.metadata, path)
        self._texts = dict[str, Any]()  # the file once more, by a column of texts that is read as what repeats in it
        self._ahead: Iterator[Any] = iter(())
        self._rest: Any = None  # of a batch, after the rows that were asked for
        self._next = -1

    def scan(self, chunk_rows: int) -> Scan:
        """See `Source.scan`."""
        digest = sha256_of(self._path)
        rows = int(self._file.metadata.num_rows)
        chunks = divided(rows, chunk_rows, self._path)
        if "id" in self._file.schema_arrow.names:
            ids, row = Ids(self._path), 0
            try:
                for batch in self._batches(columns=["id"]):
                    for name in values_of(batch.column(0)):
                        ids.add(row, name)
                        row += 1
            except MemoryError as error:
                raise self._no_memory(row, rows - 1) from error
            ids.check()
        return Scan(rows, digest, chunks)

    def read(self, chunk: Chunk, remarks: Remarks | None = None) -> list[Atoms | StructureError]:
        """See `Source.read`."""
        remarks = Remarks() if remarks is None else remarks
        with self.memory(chunk):
            rows = (row for piece in self.pieces(chunk) for row in rows_of(piece))
            return [from_columns(row, index, remarks) for index, row in enumerate(rows, chunk.first)]

    def pieces(self, chunk: Chunk) -> Iterator[Any]:
        """The rows of a chunk in Arrow's batches, no more at a time than may become Python's values.

        Args:
            chunk: of this file; quickest in rising order.

        Raises:
            DatasetError: as `read` does.
        """
        if self._next < 0 or chunk.first < self._next:
            self._ahead, self._next, self._rest = self._batches(), 0, None
        for wanted, count in ((False, chunk.first - self._next), (True, chunk.count)):
            left = count
            while left:
                batch = self._rest if self._rest is not None else next(self._ahead, None)
                if batch is None:
                    raise cut_short(self._path)
                piece = batch.slice(0, left)
                left -= piece.num_rows
                self._rest = batch.slice(piece.num_rows) if piece.num_rows < batch.num_rows else None
                self._next += piece.num_rows
                if wanted and piece.num_rows:
                    yield piece

    @contextmanager
    def memory(self, chunk: Chunk) -> Iterator[None]:
        """Say which rows there was no memory for, where there is none in the block.

        Args:
            chunk: whose rows are read.
        """
        try:
            yield
        except MemoryError as error:
            self._next = -1
            raise self._no_memory(chunk.first, chunk.first + chunk.count - 1) from error

    def _no_memory(self, first: int, last: int) -> DatasetError:
        return DatasetError(
            f"There is no memory for rows {first} to {last} of {self._path}. Write it with smaller row groups, screen "
            "it with a smaller --batch-size, or keep long notes elsewhere."
        )

    def _batches(self, **how: Any) -> Iterator[Any]:
        try:
            for groups in _together(self._file.metadata):
                rows = min(self._rows_at_a_time(group) for group in groups)
                yield from self._file.iter_batches(batch_size=rows, row_groups=groups, **how)
        except MemoryError:
            raise
        except Exception as error:  # as above: a damaged page, a file that went away
            raise DatasetError(
                f"Cannot read {self._path}: {error}. The file is damaged, or was changed while it was screened."
            ) from error

    def _rows_at_a_time(self, number: int) -> int:
        """How many rows of a row group are made into Python's values at a time.

        A file of a thousand bytes may hold a row of 300 million numbers, or a text of megabytes a thousand times: equal
        values are stored once. So it is their number that counts, and of texts the longest.
        """
        group = self._file.metadata.row_group(number)
        rows, size, texts = max(1, group.num_rows), 0.0, list[Any]()
        for column in (group.column(place) for place in range(group.num_columns)):
            size += VALUE_BYTES * column.num_values / rows
            if column.physical_type != "BYTE_ARRAY":
                continue
            if any("DICTIONARY" in one or "DELTA" in one for one in column.encodings):
                texts.append(column)
            else:
                size += column.total_uncompressed_size / rows
        longest: float = sum(column.total_uncompressed_size for column in texts)
        if (size + longest) * MOST_ROWS > MOST_BYTES:  # none is as long as all that differ together
            longest = sum(self._longest(number, column) for column in texts)
        return max(1, min(MOST_ROWS, int(MOST_BYTES / max(size + longest, 1.0))))

    def _longest(self, number: int, column: Any) -> int:
        """Bytes of the longest text of a column in a row group, or more where that cannot be told."""
        import pyarrow.compute

        name, most = column.path_in_schema, int(column.total_uncompressed_size)
        if name not in self._file.schema_arrow.names:  # texts in lists
            return most
        if name not in self._texts:
            self._texts[name] = parquet().ParquetFile(self._path, read_dictionary=[name])
        found = self._texts[name].read_row_group(number, columns=[name]).column(0)
        if not pyarrow.types.is_dictionary(found.type):
            return most
        lengths = (pyarrow.compute.max(pyarrow.compute.binary_length(chunk.dictionary)) for chunk in found.chunks)
        return max((length.as_py() or 0 for length in lengths), default=0)


def _together(metadata: Any) -> Iterator[list[int]]:
    """Row groups that are read one after another, so that small ones take no more time than large ones."""
    groups, rows = list[int](), 0
    for number in range(metadata.num_row_groups):
        groups.append(number)
        rows += metadata.row_group(number).num_rows
        if rows >= MOST_ROWS:
            yield groups
            groups, rows = [], 0
    if groups:
        yield groups


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch as Python's values by column."""
    names = batch.schema.names
    long = _too_long(batch.column(names.index("numbers")))
    first = 0
    for end in [*sorted(long), batch.num_rows]:  # a row that is too long is not made into Python's values
        rows = batch.slice(first, end - first)
        columns = {name: values_of(rows.column(place)) for place, name in enumerate(names)}
        for row in range(rows.num_rows):
            yield {name: values[row] for name, values in columns.items()}
        if end in long:
            yield {TOO_LONG: long[end]}
        first = end + 1


def _refuse_huge(metadata: Any, path: Path) -> None:
    """Refuse a file that has a row group of more atoms than rows of the largest size, before any of it is read.

    Raises:
        DatasetError: it has.
    """
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in (group.column(place) for place in range(group.num_columns)):
            name = column.path_in_schema.split(".")[0]
            limit = {"numbers": MOST_ATOMS, "positions": 3 * MOST_ATOMS}.get(name)
            if limit is not None and column.num_values > max(1, group.num_rows) * limit:
                raise DatasetError(
                    f"Row group {number} of {path} has {column.num_values} values of {name!r} in "
                    f"{group.num_rows} rows; {MOST_ATOMS} atoms are the most of a row."
                )


def _too_long(column: Any) -> dict[int, int]:
    """Atoms of those rows of a batch that have more than are allowed."""
    try:
        lengths = column.value_lengths()
    except AttributeError:  # no lists
        return {}
    return {row: length for row, length in enumerate(lengths.to_pylist()) if (length or 0) > MOST_ATOMS}


def values_of(column: Any) -> list[Any]:
    """A column as Python's values; where Python has none for one of them, as text."""
    try:
        return list(column.to_pylist())
    except MemoryError:
        raise
    except Exception:  # nanoseconds, a year past 9999, text that is not UTF-8
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    ways: tuple[Callable[[], Any], ...] = (
        lambda: scalar.as_py(),
        lambda: scalar.cast("string").as_py(),
        lambda: scalar.as_buffer().to_pybytes(),
    )
    for way in ways:
        try:
            return way()
        except MemoryError:
            raise
        except Exception:  # noqa: S112  the next way
            continue
    return f"<{scalar.type}>"


def from_columns(row: dict[str, Any], index: int, remarks: Remarks) -> Atoms | StructureError:
    """The structure of a row, or why it is none.

    Args:
        row: values by column; see `rows_of`.
        index: of the row.
        remarks: as for `Source.read`.
    """
    if TOO_LONG in row:
        return row_error(f"This row is no structure: it has {row[TOO_LONG]} atoms, and {MOST_ATOMS} are the most.")
    values = {name: value for name, value in row.items() if value is not None}
    problem, atoms = "", Atoms()
    shape = {name: values.pop(name, None) for name in ("numbers", "positions", "cell", "pbc")}
    try:
        atoms = structure_of(**shape)
    except MemoryError:
        raise
    except Exception as error:  # whatever a column may hold
        problem = f"This row is no structure: {error or type(error).__name__}."
    info = _unpacked(values.pop("info", None), "info", index, remarks)
    arrays = _unpacked(values.pop("arrays", None), "arrays", index, remarks)
    if (number := values.pop("index", None)) is not None and number != index:
        values[own := free("input_index", values)] = number
        remarks.add(RENAMED, index, f"'index' is {own!r}")
    with_labels(atoms, {name: as_label(values.pop(name)) for name in RESULTS if name in values})
    arrays |= {name: values.pop(name) for name in OF_ATOMS if name in values and name not in arrays}
    atoms.info = merged(info, values, index, remarks)
    for name, value in arrays.items():
        _put(atoms, str(name), value, index, remarks)
    return row_error(problem, atoms) if problem else atoms


def _unpacked(value: Any, name: str, index: int, remarks: Remarks) -> dict[str, Any]:
    """What a column `info` or `arrays` holds, by name; kept as it is under the column's name where it is no object."""
    if value is None:
        return {}
    if isinstance(value, dict):  # a struct
        return {key: item for key, item in value.items() if item is not None}
    try:
        found = json.loads(value, object_hook=json_object)
        if isinstance(found, dict):
            return found
    except (TypeError, ValueError, RecursionError):
        pass
    remarks.add(UNREAD, index, f"the column {name!r} holds no JSON object; it is kept as it is")
    return {name: value}


def _put(atoms: Atoms, name: str, value: Any, index: int, remarks: Remarks) -> None:
    """Give atoms a column, or keep it in `info` where it has no value for each of them."""
    try:
        array = np.asarray(value)
        fits = array.ndim > 0 and len(array) == len(atoms) and name not in atoms.arrays
    except ValueError:  # lists of uneven lengths
        fits = False
    if fits:
        atoms.arrays[name] = array
        return
    remarks.add(IN_INFO, index, f"{name!r} has not one value for each atom, and is in info")
    while name in atoms.info or name in ("numbers", "positions"):
        name = f"input_{name}"
    atoms.info[name] = value
