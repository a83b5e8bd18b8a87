"""Rows of results as bytes of a part, and parts as one file: extended XYZ, ASE databases, Parquet."""

import base64
import shutil
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from io import BufferedReader, BytesIO, StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ase.db
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.jsonio import encode, mydecode

from painn_deploy.export.packed import PACKINGS, Unpacked, packed
from painn_deploy.runtime.screening.carrying import ERROR
from painn_deploy.runtime.screening.extxyz_rows import count_frames, write_frame
from painn_deploy.runtime.screening.labels import result_row
from painn_deploy.runtime.screening.remarks import Remarks
from painn_deploy.runtime.screening.sources import parquet
from painn_deploy.runtime.screening.table_rows import columns, database_values
from painn_deploy.runtime.uncertainty.scale import OF_ATOMS, OF_STRUCTURE, RATIO

__all__ = ["ERROR", "SINKS", "Sink", "result_row", "table_bytes", "table_schema"]


PIECE = 1 << 20
"""Bytes that are copied or looked through at a time."""

PARQUET_MARK = b"PAR1"
"""With which a file of Parquet begins."""

_UNLIKE = frozenset({"index", "id", "positions", "energy", "forces", "stress", "energy_uncertainty", RATIO, *OF_ATOMS})
"""Columns of a table whose values hardly ever repeat: a dictionary of them takes time and room, and saves neither."""


@runtime_checkable
class Sink(Protocol):
    """A format of output. A part is written by whoever computed it; parts become one file at the end."""

    def encoded(
        self, rows: Sequence[Atoms], first: int, remarks: Remarks | None = None, uncertainties: Sequence[str] = ()
    ) -> bytes:
        """The bytes of a part.

        Args:
            rows: structures with their results.
            first: index of the first of them in the input.
            remarks: what is kept otherwise than it came is counted there.
            uncertainties: names of those that rows may have, for formats whose parts must all have the same columns.
        """

    def assemble(self, parts: Sequence[Path], output: Path) -> None:
        """Make one file of all parts.

        Args:
            parts: files of parts, in order.
            output: file to write; it does not exist.
        """

    def count(self, output: Path) -> int:
        """The number of rows that a reader finds in a file; -1 where it would not get through."""


class ExtxyzSink:
    """Extended XYZ."""

    def encoded(
        self,
        rows: Sequence[Atoms],
        first: int,
        remarks: Remarks | None = None,
        uncertainties: Sequence[str] = (),  # noqa: ARG002  rows have them in info and arrays
    ) -> bytes:
        """See `Sink.encoded`."""
        remarks = Remarks() if remarks is None else remarks
        text = StringIO()
        for place, row in enumerate(rows):
            write_frame(text, row, first + place, remarks)
        return text.getvalue().encode()

    def assemble(self, parts: Sequence[Path], output: Path) -> None:
        """See `Sink.assemble`."""
        with output.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, PIECE)

    def count(self, output: Path) -> int:
        """See `Sink.count`."""
        with output.open("rb") as file:
            return count_frames(iter(partial(file.read, PIECE), b""))


class PackedSink(ExtxyzSink):
    """Extended XYZ, compressed: each part is a member of its own, and members after one another are one file.

    Args:
        packing: how it is compressed, a key of `PACKINGS`.
    """

    def __init__(self, packing: str) -> None:
        self._packing = packing

    def encoded(
        self, rows: Sequence[Atoms], first: int, remarks: Remarks | None = None, uncertainties: Sequence[str] = ()
    ) -> bytes:
        """See `Sink.encoded`; the same bytes for the same rows, whenever they are computed."""
        return packed(super().encoded(rows, first, remarks, uncertainties), self._packing)

    def count(self, output: Path) -> int:
        """See `Sink.count`."""
        with BufferedReader(Unpacked(output, self._packing)) as file:
            return count_frames(iter(partial(file.read, PIECE), b""))


def table_schema(uncertainties: Sequence[str]) -> Any:
    """The columns of a table of rows.

    Args:
        uncertainties: see `Sink.encoded`.
    """
    import pyarrow

    triples = pyarrow.list_(pyarrow.list_(pyarrow.float64(), 3))
    kinds = {"float": pyarrow.float64(), "text": pyarrow.string(), "truth": pyarrow.bool_()}
    kinds["each"] = pyarrow.list_(pyarrow.float64())
    return pyarrow.schema(
        [
            ("index", pyarrow.int64()),
            ("id", pyarrow.string()),
            ("numbers", pyarrow.list_(pyarrow.int32())),
            ("positions", triples),
            ("cell", triples),
            ("pbc", pyarrow.list_(pyarrow.bool_())),
            ("energy", pyarrow.float64()),
            ("forces", triples),
            ("stress", pyarrow.list_(pyarrow.float64())),
            *((name, kinds[OF_STRUCTURE.get(name, "each")]) for name in uncertainties),
            (ERROR, pyarrow.string()),
            ("info", pyarrow.string()),
            ("arrays", pyarrow.string()),
        ]
    )


def table_bytes(table: Any) -> bytes:
    """A table as the bytes of a part: Arrow's stream, which takes a fraction of the time that Parquet does."""
    import pyarrow

    file = BytesIO()
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _table_of(part: Path) -> Any:
    """The table of a part; those of before were Parquet themselves."""
    import pyarrow

    with part.open("rb") as file:
        if file.read(len(PARQUET_MARK)) == PARQUET_MARK:
            return parquet().read_table(part)
    with pyarrow.memory_map(str(part)) as file, pyarrow.ipc.open_stream(file) as reader:
        return reader.read_all()


def _paths(schema: Any) -> list[str]:
    """Parquet's own names of columns, those of lists among them."""
    file = BytesIO()
    parquet().write_table(schema.empty_table(), file)
    found = parquet().read_metadata(file).schema
    return [found.column(place).path for place in range(len(found))]


class ParquetSink:
    """Parquet: index, id, numbers, positions, cell, pbc, energy, forces, stress, screen_error, info, arrays.

    Uncertainties are columns before `screen_error`, of a bundle that gives them. `info` and `arrays` (what else there
    is for each atom) are JSON as ASE writes it.
    """

    def encoded(
        self, rows: Sequence[Atoms], first: int, remarks: Remarks | None = None, uncertainties: Sequence[str] = ()
    ) -> bytes:
        """See `Sink.encoded`."""
        import pyarrow

        remarks = Remarks() if remarks is None else remarks
        made = [columns(row, first + place, remarks, uncertainties) for place, row in enumerate(rows)]
        return table_bytes(pyarrow.Table.from_pylist(made, schema=table_schema(uncertainties)))

    def assemble(self, parts: Sequence[Path], output: Path) -> None:
        """See `Sink.assemble`."""
        schema = _table_of(parts[0]).schema
        columns = [name for name in schema.names if name not in _UNLIKE]
        repeated = [path for path in _paths(schema) if path.split(".")[0] in columns]
        with parquet().ParquetWriter(output, schema, use_dictionary=repeated) as writer:
            for part in parts:
                writer.write_table(_table_of(part))

    def count(self, output: Path) -> int:
        """See `Sink.count`."""
        return int(parquet().read_metadata(output).num_rows)


class DatabaseSink:
    """An ASE database in SQLite; `info` becomes key-value pairs where the database allows them, and data elsewhere."""

    def encoded(
        self,
        rows: Sequence[Atoms],
        first: int,
        remarks: Remarks | None = None,
        uncertainties: Sequence[str] = (),  # noqa: ARG002  rows have them in info and arrays
    ) -> bytes:
        """See `Sink.encoded`: one JSON a line."""
        remarks = Remarks() if remarks is None else remarks
        made = [database_values(row, first + place, remarks) for place, row in enumerate(rows)]
        return "".join(f"{encode(values)}\n" for values in made).encode()

    def assemble(self, parts: Sequence[Path], output: Path) -> None:
        """See `Sink.assemble`."""
        for rest in ("-journal", "-wal", "-shm"):  # of a process that was killed: SQLite would play it back
            output.with_name(output.name + rest).unlink(missing_ok=True)
        try:
            with (
                warnings.catch_warnings(),
                ase.db.connect(output, type="db", append=False, use_lock_file=False) as database,
            ):
                warnings.filterwarnings("ignore", message="It is best not to use keys")
                for part in parts:
                    for line in part.read_text(encoding="ascii").split("\n")[:-1]:
                        _write(database, mydecode(line))
        except sqlite3.Error as error:
            raise OSError(None, f"SQLite says: {error}") from error

    def count(self, output: Path) -> int:
        """See `Sink.count`."""
        with sqlite3.connect(output) as connection:
            (rows,) = connection.execute("SELECT COUNT(*) FROM systems").fetchone()
        connection.close()
        return int(rows)


def _write(database: Any, values: dict[str, Any]) -> None:
    pairs, data, results = values.pop("pairs"), values.pop("data"), values.pop("results")
    atoms = Atoms.fromdict(values)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    with np.errstate(all="ignore"):  # a failed row's cell may hold anything
        database.write(atoms, pairs, base64.b64decode(data) if isinstance(data, str) else data)


SINKS: Mapping[str, Sink] = {
    "extxyz": ExtxyzSink(),
    **{f"extxyz{packing}": PackedSink(packing) for packing in PACKINGS},
    "parquet": ParquetSink(),
    "db": DatabaseSink(),
}
