"""Files of many structures, read a piece at a time: extended XYZ, ASE databases, Parquet."""

import hashlib
import json
import re
import sqlite3
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ase.db
import numpy as np
from ase import Atoms
from ase.io.extxyz import read_xyz
from ase.io.jsonio import decode

from painn_deploy.export.errors import DatasetError, StructureError

__all__ = ["FORMATS", "Chunk", "Scan", "Source", "format_of", "open_source", "parquet"]

FORMATS = {".extxyz": "extxyz", ".xyz": "extxyz", ".db": "db", ".parquet": "parquet"}
"""By a file's suffix."""

_COUNT = re.compile(rb"\s*\d+\s*$")
_ID = re.compile(r'(?:^|\s)id=(?:"([^"]*)"|(\S+))')


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows, which are computed and written together.

    Attributes:
        number: of the chunk, from 0.
        first: index of its first row.
        count: of rows.
        offset: byte at which the first row begins, where the format has such a thing.
    """

    number: int
    first: int
    count: int
    offset: int = 0


@dataclass(frozen=True)
class Scan:
    """The result of a look through a whole file.

    Attributes:
        rows: how many.
        sha256: of the file.
        chunks: that it divides into.
    """

    rows: int
    sha256: str
    chunks: tuple[Chunk, ...]


@runtime_checkable
class Source(Protocol):
    """A file of structures."""

    def scan(self, chunk_rows: int) -> Scan:
        """Look through the file once.

        Raises:
            DatasetError: it cannot be read, is empty, or gives one id to two rows.
        """

    def read(self, chunk: Chunk) -> list[Atoms | StructureError]:
        """The rows of a chunk; an error in place of one that is no structure.

        Raises:
            DatasetError: the file cannot be read any more.
        """


def format_of(path: Path) -> str:
    """`extxyz`, `db` or `parquet`, by the suffix.

    Raises:
        DatasetError: it is none of them.
    """
    if path.suffix.lower() not in FORMATS:
        raise DatasetError(f"{path} ends in none of {', '.join(FORMATS)}, so its format is not known.")
    return FORMATS[path.suffix.lower()]


def open_source(path: str | Path) -> Source:
    """A source by its suffix.

    Raises:
        DatasetError: the file is not there, or of no format that can be read a piece at a time.
    """
    path = Path(path)
    kind = format_of(path)
    if not path.is_file():
        raise DatasetError(f"There is no file {path}.")
    if kind == "extxyz":
        return ExtxyzSource(path)
    return DatabaseSource(path) if kind == "db" else ParquetSource(path)


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


def _divided(rows: int, chunk_rows: int, path: Path) -> tuple[Chunk, ...]:
    if rows == 0:
        raise DatasetError(f"{path} holds no structures.")
    starts = range(0, rows, chunk_rows)
    return tuple(Chunk(number, first, min(chunk_rows, rows - first)) for number, first in enumerate(starts))


class _Ids:
    """Whether ids are unique, at eight bytes a row."""

    def __init__(self, path: Path) -> None:
        self._path, self._digests, self._rows = path, array("Q"), array("Q")

    def add(self, row: int, name: object) -> None:
        self._digests.append(int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest()))
        self._rows.append(row)

    def check(self) -> None:
        digests = np.frombuffer(self._digests, np.uint64) if self._digests else np.zeros(0, np.uint64)
        order = np.argsort(digests, kind="stable")
        same = np.flatnonzero(digests[order][1:] == digests[order][:-1])
        if len(same):
            one, other = (self._rows[int(order[same[0] + step])] for step in (0, 1))
            raise DatasetError(
                f"Rows {one} and {other} of {self._path} have the same id ({len(same)} such pairs in all), so results "
                "could not be told apart. Make ids unique, or leave them out."
            )


class ExtxyzSource:
    """Extended XYZ; a frame that cannot be read does not hide the next one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def scan(self, chunk_rows: int) -> Scan:
        """See `Source.scan`."""
        digest, ids, chunks, rows = hashlib.sha256(), _Ids(self._path), list[Chunk](), 0
        for offset, lines, _ in self._frames(0):
            if rows % chunk_rows == 0:
                chunks.append(Chunk(len(chunks), rows, chunk_rows, offset))
            if len(lines) > 1 and (found := _ID.search(lines[1].decode("utf-8", "replace"))):
                ids.add(rows, found[1] if found[1] is not None else found[2])
            digest.update(b"".join(lines))
            rows += 1
        _divided(rows, chunk_rows, self._path)
        chunks[-1] = Chunk(len(chunks) - 1, chunks[-1].first, rows - chunks[-1].first, chunks[-1].offset)
        ids.check()
        return Scan(rows, digest.hexdigest(), tuple(chunks))

    def read(self, chunk: Chunk) -> list[Atoms | StructureError]:
        """See `Source.read`."""
        frames = self._frames(chunk.offset)
        return [_parsed(*next(frames)[1:]) for _ in range(chunk.count)]

    def _frames(self, offset: int) -> Iterator[tuple[int, list[bytes], str]]:
        """Offset, lines and, where they are no frame, the reason; a line that is a lone number begins a frame."""
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                line = file.readline()
                while line:
                    begin = file.tell() - len(line)
                    if not line.strip():
                        line = file.readline()
                        continue
                    lines, line, problem = _frame(file, line)
                    yield begin, lines, problem
        except OSError as error:
            raise DatasetError(f"Cannot read {self._path}: {error.strerror or error}.") from error


def _frame(file: Any, line: bytes) -> tuple[list[bytes], bytes, str]:
    """The lines of one frame, the line after it, and what is wrong with it if anything is."""
    lines = [line]
    if not _COUNT.match(line):
        while (line := file.readline()) and not _COUNT.match(line):
            lines.append(line)
        return lines, line, f"a number of atoms is expected, not {_shown(lines[0])}"
    atoms = int(line)
    lines.append(file.readline())
    for found in range(atoms):
        line = file.readline()
        if not line or _COUNT.match(line):
            return lines, line, f"{atoms} atoms are announced, and {found} lines follow"
        lines.append(line)
    line = file.readline()
    while line.startswith(b"VEC"):
        lines.append(line)
        line = file.readline()
    return lines, line, ""


def _shown(line: bytes) -> str:
    return repr(line.decode("utf-8", "replace").strip()[:60])


def _parsed(lines: list[bytes], problem: str) -> Atoms | StructureError:
    if problem:
        return StructureError(f"This is no frame of extended XYZ: {problem}.")
    try:
        (atoms,) = read_xyz(StringIO(b"".join(lines).decode("utf-8")), slice(0, 1))
    except Exception as error:  # ASE's reader raises what it met
        return StructureError(f"This frame cannot be read: {error or type(error).__name__}.")
    return atoms if isinstance(atoms, Atoms) else StructureError("This frame cannot be read.")


class DatabaseSource:
    """An ASE database in SQLite, in the order of its ids, which SQLite itself keeps unique."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: np.ndarray | None = None
        self._database: Any = None

    def scan(self, chunk_rows: int) -> Scan:
        """See `Source.scan`."""
        chunks = _divided(len(self._rows()), chunk_rows, self._path)
        with self._path.open("rb") as file:
            return Scan(len(self._rows()), hashlib.file_digest(file, "sha256").hexdigest(), chunks)

    def read(self, chunk: Chunk) -> list[Atoms | StructureError]:
        """See `Source.read`."""
        if self._database is None:
            self._database = ase.db.connect(self._path)
        return [self._row(int(row)) for row in self._rows()[chunk.first : chunk.first + chunk.count]]

    def _rows(self) -> np.ndarray:
        if self._ids is None:
            try:
                with sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True) as connection:
                    rows = connection.execute("SELECT id FROM systems ORDER BY id").fetchall()
                connection.close()
            except sqlite3.Error as error:
                raise DatasetError(f"{self._path} is no ASE database: {error}.") from error
            self._ids = np.array([row[0] for row in rows], np.int64)
        return self._ids

    def _row(self, row: int) -> Atoms | StructureError:
        try:
            found = self._database.get(id=row)
            atoms: Atoms = found.toatoms()
            atoms.info = {**found.data, **found.key_value_pairs}
        except Exception as error:  # a damaged row raises what its decoder met
            return StructureError(f"Row id={row} of the database cannot be read: {error or type(error).__name__}.")
        return atoms


class ParquetSource:
    """Parquet with columns `numbers` and `positions`; `cell`, `pbc`, `id`, `info` and `arrays` if they are there.

    `positions` and `cell` are lists of triples, or flat. `info` and `arrays` are JSON; other columns go into `info`.
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
        self._ahead: Iterator[dict[str, Any]] = iter(())
        self._next = -1

    def scan(self, chunk_rows: int) -> Scan:
        """See `Source.scan`."""
        chunks = _divided(self._file.metadata.num_rows, chunk_rows, self._path)
        if "id" in self._file.schema_arrow.names:
            ids, row = _Ids(self._path), 0
            for batch in self._file.iter_batches(columns=["id"]):
                for name in batch.column(0).to_pylist():
                    if name is not None:
                        ids.add(row, name)
                    row += 1
            ids.check()
        with self._path.open("rb") as file:
            return Scan(self._file.metadata.num_rows, hashlib.file_digest(file, "sha256").hexdigest(), chunks)

    def read(self, chunk: Chunk) -> list[Atoms | StructureError]:
        """See `Source.read`; quickest for chunks in rising order."""
        if self._next < 0 or chunk.first < self._next:
            self._ahead, self._next = self._rows(), 0
        for _ in range(chunk.first - self._next):
            next(self._ahead)
        self._next = chunk.first + chunk.count
        return [_from_columns(next(self._ahead)) for _ in range(chunk.count)]

    def _rows(self) -> Iterator[dict[str, Any]]:
        for batch in self._file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _from_columns(row: dict[str, Any]) -> Atoms | StructureError:
    try:
        values = {name: value for name, value in row.items() if value is not None}
        atoms = Atoms(
            np.array(values.pop("numbers"), int),
            np.array(values.pop("positions"), float).reshape(-1, 3),
            cell=np.array(values.pop("cell", np.zeros((3, 3))), float).reshape(3, 3),
            pbc=values.pop("pbc", False),
        )
        for name, value in decode(values.pop("arrays", "{}")).items():
            atoms.set_array(name, np.asarray(value))
        atoms.info = decode(values.pop("info", "{}"))
        for name in ("index", "energy", "forces", "stress", "screen_error"):
            values.pop(name, None)
        atoms.info |= values
        json.dumps(sorted(atoms.info))  # names are text
    except Exception as error:  # whatever a column may hold
        return StructureError(f"This row is no structure: {error or type(error).__name__}.")
    return atoms
