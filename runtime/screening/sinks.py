"""Rows of results as bytes of a part, and parts as one file: extended XYZ, ASE databases, Parquet."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ase.db
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.core import check
from ase.io.extxyz import write_xyz
from ase.io.jsonio import decode, encode

from painn_deploy.runtime.screening.sources import parquet

__all__ = ["ERROR", "SINKS", "Sink", "result_row"]

ERROR = "screen_error"
"""Key in `info` of a row without results: why it has none."""

RESULTS = ("energy", "forces", "stress")
STALE = (*RESULTS, "free_energy", "energies", "stresses", ERROR, "relax_steps", "relax_converged")


def result_row(atoms: Atoms | None, results: Mapping[str, Any] | None, reason: str) -> Atoms:
    """A row of the output: the structure with its `info`, and results in place of any that it brought.

    Args:
        atoms: the structure; None where the input's row could not be read.
        results: as `PaiNNCalculator.calculate_batch` gives them, or None.
        reason: why there are none.
    """
    row = Atoms() if atoms is None else atoms.copy()
    row.calc = None
    row.info = {} if atoms is None else {key: value for key, value in atoms.info.items() if key not in STALE}
    for name in STALE:
        row.arrays.pop(name, None)
    if results is None:
        row.info[ERROR] = reason
        return row
    row.calc = SinglePointCalculator(row, **{name: results[name] for name in RESULTS if name in results})
    row.info |= {name: results[name] for name in ("relax_steps", "relax_converged") if name in results}
    return row


@runtime_checkable
class Sink(Protocol):
    """A format of output. A part is written by whoever computed it; parts become one file at the end."""

    def encoded(self, rows: Sequence[Atoms], first: int) -> bytes:
        """The bytes of a part.

        Args:
            rows: structures with their results.
            first: index of the first of them in the input.
        """

    def assemble(self, parts: Sequence[Path], output: Path) -> None:
        """Make one file of all parts.

        Args:
            parts: files of parts, in order.
            output: file to write; it does not exist.
        """


class ExtxyzSink:
    """Extended XYZ."""

    def encoded(self, rows: Sequence[Atoms], first: int) -> bytes:  # noqa: ARG002  the format has no index
        """See `Sink.encoded`."""
        text = StringIO()
        for row in rows:
            write_xyz(text, [row])
        return text.getvalue().encode()

    def assemble(self, parts: Sequence[Path], output: Path) -> None:
        """See `Sink.assemble`."""
        with output.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)


class ParquetSink:
    """Parquet: index, id, numbers, positions, cell, pbc, energy, forces, stress, screen_error, info, arrays.

    `info` and `arrays` (what else there is for each atom) are JSON as ASE writes it.
    """

    def encoded(self, rows: Sequence[Atoms], first: int) -> bytes:
        """See `Sink.encoded`."""
        import pyarrow

        library, triples = parquet(), pyarrow.list_(pyarrow.list_(pyarrow.float64(), 3))
        schema = pyarrow.schema(
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
                (ERROR, pyarrow.string()),
                ("info", pyarrow.string()),
                ("arrays", pyarrow.string()),
            ]
        )
        columns = [_columns(row, first + place) for place, row in enumerate(rows)]
        file = BytesIO()
        library.write_table(pyarrow.Table.from_pylist(columns, schema=schema), file)
        return file.getvalue()

    def assemble(self, parts: Sequence[Path], output: Path) -> None:
        """See `Sink.assemble`."""
        library = parquet()
        with library.ParquetWriter(output, library.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(library.read_table(part))


def _columns(row: Atoms, index: int) -> dict[str, Any]:
    results = {} if row.calc is None else row.calc.results
    info = dict(row.info)
    name, reason = info.pop("id", None), info.pop(ERROR, None)
    arrays = {key: value for key, value in row.arrays.items() if key not in ("numbers", "positions")}
    return {
        "index": index,
        "id": None if name is None else str(name),
        "numbers": row.numbers.tolist(),
        "positions": row.positions.tolist(),
        "cell": np.asarray(row.cell).tolist(),
        "pbc": row.pbc.tolist(),
        **{key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in results.items()},
        ERROR: reason,
        "info": encode(info) if info else None,
        "arrays": encode(arrays) if arrays else None,
    }


class DatabaseSink:
    """An ASE database in SQLite; `info` becomes key-value pairs where the database allows them, and data elsewhere."""

    def encoded(self, rows: Sequence[Atoms], first: int) -> bytes:  # noqa: ARG002  the database numbers rows itself
        """See `Sink.encoded`: one JSON a line."""
        return "".join(f"{encode(_jsonable(row))}\n" for row in rows).encode()

    def assemble(self, parts: Sequence[Path], output: Path) -> None:
        """See `Sink.assemble`."""
        with ase.db.connect(output, type="db", append=False, use_lock_file=False) as database:
            for part in parts:
                for line in part.read_text(encoding="utf-8").splitlines():
                    values = decode(line)
                    info, results = values.pop("info", {}), values.pop("results")
                    atoms = Atoms.fromdict(values)
                    if results:
                        atoms.calc = SinglePointCalculator(atoms, **results)
                    pairs = {key: value for key, value in info.items() if _is_pair(key, value)}
                    database.write(atoms, pairs, {key: value for key, value in info.items() if key not in pairs})


def _jsonable(row: Atoms) -> dict[str, Any]:
    return {**row.todict(), "info": row.info, "results": {} if row.calc is None else row.calc.results}


def _is_pair(key: object, value: object) -> bool:
    if not isinstance(key, str) or not isinstance(value, str | int | float | bool | np.bool_ | np.number):
        return False
    with contextlib.suppress(ValueError):
        check({key: value})
        return True
    return False


SINKS: Mapping[str, Sink] = {"extxyz": ExtxyzSink(), "parquet": ParquetSink(), "db": DatabaseSink()}
