"""Rows as columns of Parquet and as rows of an ASE database, which give back the values that went in."""

import base64
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.db.core import convert_str_to_int_float_bool_or_str, object_to_bytes, reserved_keys, word
from ase.db.row import AtomsRow
from ase.db.sqlite import SQLite3Database
from ase.io.jsonio import encode

from painn_deploy.runtime.screening.carrying import ERROR, Format, is_ordinary, settle
from painn_deploy.runtime.screening.plain import HOOKS, WORDS
from painn_deploy.runtime.screening.remarks import AS_TEXT, LEFT_OUT, Remarks, one_line

__all__ = ["ARRAYS", "COLUMNS", "columns", "database_values", "is_storable", "notes_json", "storable"]

ARRAYS = "arrays"
"""Key in the data of a database's row: columns of atoms that a database has no place for, by name."""

LARGEST = 10**300
"""Whole numbers beyond are no key-value pairs: SQLite holds them as floats too."""

INT32 = 2**31

COLUMNS = {"initial_magmoms": 1, "initial_charges": 1, "masses": 1, "tags": 1, "momenta": 2}
"""Of atoms in a database, with their dimensions."""

_SAFE = frozenset({str, float, bool, np.float64})
"""Types whose every value JSON gives back."""

_SPOKEN_FOR = reserved_keys | set(atomic_numbers) | set(dir(AtomsRow)) | set(SQLite3Database.columnnames)
_SPOKEN_FOR |= {"external_tables", "_keys", "_data", "_constraints", "_constrained_forces"}


def _any_name(name: str, value: Any) -> bool:  # noqa: ARG001  a protocol
    return name not in HOOKS


def _any_column(name: str, array: np.ndarray, atoms: int) -> bool:  # noqa: ARG001
    return name not in HOOKS and array.dtype.kind in "biufcU" and array.dtype.itemsize > 0


def _no_constraint(constraint: Any) -> bool:  # noqa: ARG001
    return False


def _has_words(constraint: Any) -> bool:
    """Whether a constraint can be written: as JSON that makes one."""
    try:
        encode(constraint.todict())
    except Exception:  # a class of anyone's
        return False
    return True


def _data_name(name: str, value: Any) -> bool:  # noqa: ARG001
    return name not in HOOKS and name != ARRAYS


def _database_column(name: str, array: np.ndarray, atoms: int) -> bool:
    if COLUMNS.get(name) != array.ndim or array.shape != ((atoms, 3) if name == "momenta" else (atoms,)):
        return False
    if name == "tags":
        return array.dtype.kind == "i" and bool(atoms == 0 or (array.min() >= -INT32 and array.max() < INT32))
    return bool(array.dtype == np.float64)


PARQUET = Format("parquet", (-INT32, INT32 - 1), "biufcU", _any_name, _any_column, _no_constraint, "the column info")
DATABASE = Format("db", (0, 118), "biufc", _data_name, _database_column, _has_words, f"data['{ARRAYS}']")


def columns(row: Atoms, index: int, remarks: Remarks, uncertainties: Sequence[str] = ()) -> dict[str, Any]:
    """A row's values by Parquet's columns.

    Args:
        row: a structure, with its results as its calculator.
        index: of the row in the input.
        remarks: what is kept otherwise is counted there.
        uncertainties: names of those that have columns of their own.
    """
    results = {} if row.calc is None else row.calc.results
    if _is_ordinary(row, _json_value, PARQUET):
        atoms, info = row, dict(row.info)
    else:
        settled = settle(row, PARQUET, index, remarks)
        atoms, info = settled.atoms, settled.info | settled.beside
        if row.constraints:
            info.setdefault("constraints", [str(constraint) for constraint in row.constraints])
    name, reason = info.pop("id", None), info.pop(ERROR, None)
    arrays, own = atoms.arrays, ("numbers", "positions", *uncertainties)
    others = {key: arrays[key] for key in arrays if key not in own} if len(arrays) > 2 else {}
    said = {key: info.pop(key) if key in info else arrays.get(key) for key in uncertainties}
    return {
        "index": index,
        "id": None if name is None else storable(name, index, remarks),
        "numbers": arrays["numbers"].tolist(),
        "positions": arrays["positions"].tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
        **{key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in (results | said).items()},
        ERROR: None if reason is None else str(reason),
        "info": _json(info, index, remarks),
        "arrays": _json(others, index, remarks),
    }


def _json(values: dict[str, Any], index: int, remarks: Remarks) -> str | None:
    if not values:
        return None
    try:
        return str(encode(values))
    except MemoryError:
        raise
    except Exception as error:  # nothing that we know of comes here, and nothing may cost a row its result
        remarks.add(LEFT_OUT, index, f"{', '.join(map(str, values))}: {error}")
        return None


def is_storable(notes: dict[str, Any]) -> bool:
    """Whether the column `info` gives back notes as they are."""
    return _are_ordinary(notes, _json_value)


def notes_json(notes: dict[str, Any], index: int, remarks: Remarks) -> str | None:
    """Notes that `is_storable` let pass as the text of the column `info`, without the id, which has a column.

    Args:
        notes: by name.
        index: of the row in the input.
        remarks: notes that are left out are counted there.
    """
    return _json({name: value for name, value in notes.items() if name != "id"}, index, remarks)


def storable(name: Any, index: int, remarks: Remarks) -> str:
    """An id as the text of its column.

    Args:
        name: anything.
        index: of the row in the input.
        remarks: one that is no text is counted there.
    """
    text = name if type(name) is str else str(name)
    if not isinstance(name, str | int):
        remarks.add(AS_TEXT, index, f"'id' ({type(name).__name__}), whose column is text")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        remarks.add(AS_TEXT, index, f"'id' {one_line(text)}")
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def database_values(row: Atoms, index: int, remarks: Remarks) -> dict[str, Any]:
    """A row's values as a part keeps them until they become a row of a database: what JSON and the database take.

    Args:
        row: a structure, with its results as its calculator.
        index: of the row in the input.
        remarks: what is kept otherwise is counted there.
    """
    results = {} if row.calc is None else row.calc.results
    if _is_ordinary(row, _simple, DATABASE) and ARRAYS not in row.info:
        pairs, data = _divided(row.info)
        return {**row.todict(), "info": {}, "results": results, "pairs": pairs, "data": data}
    settled = settle(row, DATABASE, index, remarks)
    pairs, data = _divided(settled.info)
    if settled.beside:
        data[ARRAYS] = settled.beside
    values: dict[str, Any] = {**settled.atoms.todict(), "results": results, "pairs": pairs}
    try:
        # as the database itself keeps them: nothing is lost between here and there
        return values | {"data": base64.b64encode(object_to_bytes(data)).decode()}
    except MemoryError:
        raise
    except Exception as error:  # as above
        remarks.add(LEFT_OUT, index, f"{', '.join(map(str, data))}: {error}")
        return values | {"data": {}}


def _divided(info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Key-value pairs, and data."""
    pairs = {name: value for name, value in info.items() if _is_pair(name, value)}
    return pairs, {name: value for name, value in info.items() if name not in pairs}


def _is_pair(name: str, value: object) -> bool:
    """Whether a database's key-value pair gives a value back; data do for all others."""
    if not _is_key(name):
        return False
    if isinstance(value, str):
        return value.isprintable() and (value[:1] in WORDS or convert_str_to_int_float_bool_or_str(value) == value)
    return isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < LARGEST)


@lru_cache(4096)
def _is_key(name: str) -> bool:
    return word.match(name) is not None and name.isprintable() and name not in _SPOKEN_FOR


def _is_ordinary(row: Atoms, takes: Callable[[Any], bool], form: Format) -> bool:
    """Whether a format carries a row as it is; quick, since nearly every row is such."""
    return _are_ordinary(row.info, takes) and not row.constraints and is_ordinary(row, form)


def _are_ordinary(notes: dict[Any, Any], takes: Callable[[Any], bool]) -> bool:
    for name, value in notes.items():
        if type(name) is not str or name in HOOKS or (type(value) not in _SAFE and not takes(value)):
            return False
    return True


def _simple(value: Any) -> bool:
    return type(value) in _SAFE or (type(value) is int and -LARGEST < value < LARGEST)


def _json_value(value: Any) -> bool:
    if type(value) is np.ndarray:
        return value.dtype.kind in "biufU" and value.dtype.char != "g" and value.dtype.isnative
    return _simple(value) or type(value) in (np.float32, np.int64, np.int32, np.bool_)
