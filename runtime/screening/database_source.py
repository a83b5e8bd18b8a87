"""Rows of an ASE database in SQLite."""

import sqlite3
import time
import weakref
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties

from painn_deploy.export.errors import DatasetError, StructureError
from painn_deploy.runtime.screening.chunks import (
    Chunk,
    Scan,
    cut_short,
    divided,
    row_error,
    sha256_of,
    with_sound_constraints,
)
from painn_deploy.runtime.screening.labels import merged, with_labels
from painn_deploy.runtime.screening.remarks import CONSTRAINT, UNREAD, Remarks
from painn_deploy.runtime.screening.table_rows import ARRAYS, COLUMNS

__all__ = ["DatabaseSource"]

MOST_SECONDS = 120.0
"""Of one question to a database: reading one row, or all ids. A view may be written so that it never ends."""

KEPT = (
    "id",
    "unique_id",
    "ctime",
    "mtime",
    "user",
    "numbers",
    "positions",
    "cell",
    "pbc",
    "constraints",
    "key_value_pairs",
)
"""Columns of a row that are read where labels cannot be."""


class DatabaseSource:
    """An ASE database in SQLite, in the order of its ids, which SQLite itself keeps unique.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: np.ndarray | None = None
        self._database: Any = None
        self._deadline = 0.0

    def scan(self, chunk_rows: int) -> Scan:
        """See `Source.scan`."""
        digest = sha256_of(self._path)
        chunks = divided(len(self._rows()), chunk_rows, self._path)
        return Scan(len(self._rows()), digest, chunks)

    def read(self, chunk: Chunk, remarks: Remarks | None = None) -> list[Atoms | StructureError]:
        """See `Source.read`."""
        remarks = Remarks() if remarks is None else remarks
        if self._database is None:
            self._database = ase.db.connect(self._path, use_lock_file=False)
            # our own connection: it cannot write, and it gives up after a time
            self._database.connection, self._database.change_count = self._connected(), 0
            weakref.finalize(self, self._database.connection.close).atexit = False
        rows = self._rows()[chunk.first : chunk.first + chunk.count]
        if len(rows) < chunk.count:
            raise cut_short(self._path)
        return [self._row(int(row), chunk.first + place, remarks) for place, row in enumerate(rows)]

    def _connected(self) -> sqlite3.Connection:
        # a source may be dropped in another thread than the one that read from it
        connection = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        own = weakref.ref(self)  # else a source that is dropped would live on, and its connection with it
        connection.set_progress_handler(lambda: (it := own()) is None or time.monotonic() > it._deadline, 100_000)
        return connection

    def _rows(self) -> np.ndarray:
        if self._ids is None:
            try:
                connection = self._connected()
                try:
                    self._ids = self._asked(connection)
                finally:
                    connection.close()
            except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
                raise DatasetError(f"{self._path} is no ASE database: {error}.") from error
        return self._ids

    def _asked(self, connection: sqlite3.Connection) -> np.ndarray:
        self._deadline = time.monotonic() + MOST_SECONDS
        found = connection.execute(
            "SELECT name, type, sql FROM sqlite_master WHERE type IN ('table', 'view')"
        ).fetchall()
        kinds = {name: "virtual table" if "VIRTUAL" in str(sql)[:20].upper() else kind for name, kind, sql in found}
        for name in ("systems", "information"):
            if kinds.get(name, "table") != "table":
                raise DatasetError(f"In {self._path} {name!r} is a {kinds[name]}, and a table in every ASE database.")
        rows = connection.execute("SELECT id FROM systems ORDER BY id").fetchall()
        return np.array([int(row[0]) for row in rows], np.int64)

    def _row(self, row: int, index: int, remarks: Remarks) -> Atoms | StructureError:
        self._deadline = time.monotonic() + MOST_SECONDS
        try:
            found = self._database.get(id=row)
        except MemoryError:
            raise
        except Exception as error:  # a damaged row raises what its decoder met
            if (rest := self._without_labels(row)) is None:
                return self._bare(row, index, remarks, error)
            found = rest
            remarks.add(UNREAD, index, f"labels and columns of atoms are left out: {error or type(error).__name__}")
        try:
            if found.numbers is None or found.positions is None:  # which ASE would read as zeros
                raise ValueError(f"it has no {'numbers' if found.numbers is None else 'positions'}")
            atoms = Atoms(found.numbers, found.positions, cell=found.cell, pbc=found.pbc)
        except Exception as error:  # as above
            return row_error(f"Row id={row} of the database is no structure: {error or type(error).__name__}.")
        for name in COLUMNS:
            if name in found:
                try:
                    kind, shape = (int if name == "tags" else float), ((3,) if name == "momenta" else ())
                    atoms.set_array(name, np.asarray(found[name]), kind, shape)
                except Exception as error:  # as above
                    remarks.add(UNREAD, index, f"{name!r}: {error or type(error).__name__}")
        self._constrain(atoms, found, index, remarks)
        _describe(atoms, found, index, remarks)
        return atoms

    def _without_labels(self, row: int) -> Any:
        """Structure, constraints and notes, where something else in a row cannot be read; None where these cannot."""
        try:
            return next(self._database.select(id=row, columns=KEPT, include_data=True))
        except MemoryError:
            raise
        except Exception:  # as above
            return None

    def _bare(self, row: int, index: int, remarks: Remarks, why: Exception) -> Atoms | StructureError:
        """The structure alone, where something else in a row cannot be read."""
        problem = f"Row id={row} of the database cannot be read: {why or type(why).__name__}."
        try:
            question = "SELECT numbers, positions, cell, pbc FROM systems WHERE id = ?"
            numbers, positions, cell, pbc = self._database.connection.execute(question, (row,)).fetchone()
            atoms = Atoms(
                np.frombuffer(numbers, np.int32),
                np.frombuffer(positions).reshape(-1, 3),
                cell=np.frombuffer(cell).reshape(3, 3),
                pbc=(int(pbc) & np.array([1, 2, 4])).astype(bool),
            )
        except Exception:  # as above
            return row_error(problem)
        remarks.add(UNREAD, index, problem)
        return atoms

    def _constrain(self, atoms: Atoms, found: Any, index: int, remarks: Remarks) -> None:
        try:
            given = found.constraints
        except Exception as error:  # as above
            remarks.add(CONSTRAINT, index, f"{error or type(error).__name__}")
            return
        if given:
            with_sound_constraints(atoms, given, index, remarks)


def _describe(atoms: Atoms, found: Any, index: int, remarks: Remarks) -> None:
    """Give atoms what a row says beside the structure: data, key-value pairs, labels."""
    try:
        data = dict(found.data)
    except Exception as error:  # as above
        remarks.add(UNREAD, index, f"data: {error or type(error).__name__}")
        data = {}
    arrays = data.get(ARRAYS)
    if isinstance(arrays, dict):
        fitting = {name: value for name, value in arrays.items() if _fits(atoms, name, value)}
        for name, value in fitting.items():
            atoms.arrays[name] = np.asarray(value)
        rest = {name: value for name, value in arrays.items() if name not in fitting}
        data = {name: value for name, value in data.items() if name != ARRAYS} | ({ARRAYS: rest} if rest else {})
    atoms.info = merged(data, found.key_value_pairs, index, remarks)
    with_labels(atoms, {name: value for name in all_properties if (value := found.get(name)) is not None})


def _fits(atoms: Atoms, name: str, value: Any) -> bool:
    if name in atoms.arrays:
        return False
    try:
        return np.asarray(value).ndim > 0 and len(np.asarray(value)) == len(atoms)
    except ValueError:
        return False
