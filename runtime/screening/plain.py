"""Any value as one that JSON, an ASE database and extended XYZ can hold, with a word where it is not the same any more.

Nothing is pickled. Dates become ISO text, bytes hexadecimal text, decimals and identifiers their text, sets sorted
lists, and an object of a class that nobody knows its `repr`.
"""

import datetime
import decimal
import fractions
import re
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from ase.io.jsonio import create_ase_object

__all__ = ["HOOKS", "WORDS", "json_object", "number_type", "plain"]

WORDS = frozenset("abcdeghjklmopqrsuvwxyzABCDEGHJKLMOPQRSUVWXYZ")
"""Letters that no number, NaN, infinity, true or false begins with, however it is written: a quick way to tell."""

HOOKS = frozenset({"__ndarray__", "__complex__", "__datetime__", "__complex_ndarray__", "__ase_objtype__"})
"""Keys of a JSON object that ASE's reader takes for something else than an object."""

MOST_DEPTH = 60
"""Of lists in lists; deeper ones become text, since readers of JSON have their limits."""

MOST_BITS = 13_000
"""Of a whole number in JSON: Python reads 4,300 digits; a larger one becomes hexadecimal text."""

_NUMBERS = re.compile(r"bool|(?:u?int|float|complex|[iufc])[0-9]{0,3}")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_TEXTUAL = (decimal.Decimal, uuid.UUID, fractions.Fraction, PurePath, datetime.timedelta, np.datetime64, np.timedelta64)


def plain(value: Any, kinds: str, changed: list[str], depth: int = 0) -> Any:
    """A value made of None, bool, int, float, str, list and dict, and of arrays where the format keeps them.

    Args:
        value: anything.
        kinds: NumPy's letters for the types of arrays that the format keeps; `c` stands for complex numbers too.
        changed: the type's name is added to it for everything that is not the same any more.
        depth: of lists and objects around the value.
    """
    match value:
        case None | bool() | float() | np.bool_():
            return value if value is None else bool(value) if isinstance(value, bool | np.bool_) else float(value)
        case str():
            return str(value)
        case np.timedelta64():  # a whole number, to NumPy
            return _text(value, changed)
        case int() | np.integer():
            return int(value) if int(value).bit_length() <= MOST_BITS else _noted(hex(value), value, changed)
        case np.floating():
            return float(value) if float(value) == value or np.isnan(value) else _text(value, changed)
        case complex() | np.complexfloating():
            return complex(value) if "c" in kinds else _noted(str(complex(value)), value, changed)
        case bytes() | bytearray() | memoryview():
            return _noted(bytes(value).hex(), value, changed)
        case datetime.datetime() | datetime.date() | datetime.time():
            return _noted(value.isoformat(), value, changed)
        case np.ndarray():
            return _array(value, kinds, changed, depth)
    if isinstance(value, _TEXTUAL) or depth >= MOST_DEPTH:
        return _text(value, changed)
    if isinstance(value, Mapping):
        return _mapping(value, kinds, changed, depth)
    if isinstance(value, list | tuple | range):
        return [plain(item, kinds, changed, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        changed.append(type(value).__name__)
        return sorted((plain(item, kinds, changed, depth + 1) for item in value), key=repr)
    return _text(value, changed)


def _noted(text: str, value: object, changed: list[str]) -> str:
    changed.append(type(value).__name__)
    return text


def _text(value: object, changed: list[str]) -> str:
    """Text of what JSON has no word for; without addresses in memory, so that a resumed run writes the same."""
    changed.append(type(value).__name__)
    try:
        return _ADDRESS.sub("", str(value) if isinstance(value, _TEXTUAL) else repr(value))
    except Exception:  # a `repr` of any class, or one that is too deep
        return f"<{type(value).__name__}>"


def _mapping(value: Mapping[Any, Any], kinds: str, changed: list[str], depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, item in value.items():
        name = str(key) if isinstance(key, str) else str(plain(key, "", []))
        if name in HOOKS:
            name = f"input{name}"
        while name in made:
            name += "_"
        if name != key:
            changed.append("name of an entry")
        made[name] = plain(item, kinds, changed, depth + 1)
    return made


def _array(value: Any, kinds: str, changed: list[str], depth: int) -> Any:
    if isinstance(value, np.ma.MaskedArray):
        changed.append("masked array")
        value = value.filled(np.nan) if value.dtype.kind == "f" else np.array(value.tolist(), object)
    value = np.asarray(value)
    kind = value.dtype.kind
    if kind == "f" and value.dtype.itemsize > 8:
        narrow = value.astype(np.float64)
        if not np.array_equal(narrow, value, equal_nan=True):
            changed.append(str(value.dtype))
        value = narrow
    if kind in "biufcU" and kind in kinds:
        return np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape)
    if value.ndim > MOST_DEPTH - depth:
        return _text(value, changed)
    if kind in "biufU":
        return value.tolist()
    if kind == "V" and value.dtype.names:
        changed.append("structured array")
        return {name: plain(value[name], kinds, changed, depth + 1) for name in value.dtype.names}
    if kind in "cmM":
        return _noted_list(value.astype(str), value, changed)
    if kind in "SV":
        texts = [item.decode("latin-1") if kind == "S" else bytes(item).hex() for item in value.ravel().tolist()]
        return _noted_list(np.array(texts, object).reshape(value.shape), value, changed)
    return plain(value.tolist(), kinds, changed, depth + 1)


def _noted_list(texts: np.ndarray, value: np.ndarray, changed: list[str]) -> Any:
    changed.append(f"array of {value.dtype}")
    return texts.tolist()


def number_type(name: Any) -> np.dtype | None:
    """NumPy's type of numbers by its name, as ASE writes it; None where there is none of that name.

    NumPy itself would read a whole grammar there, and makes one value as large as the name says.
    """
    if not (isinstance(name, str) and _NUMBERS.fullmatch(name)):
        return None
    try:
        return np.dtype(name)
    except TypeError:
        return None


def json_object(value: dict[str, Any]) -> Any:
    """ASE's words for arrays, complex numbers and its own objects; an object as it is where it is none of them."""
    try:
        if "__ndarray__" in value:
            shape, kind, flat = value["__ndarray__"]
            dtype = np.dtype(object) if kind == "object" else number_type(kind)
            if dtype is None:  # a text of a thousand million letters is such a type too
                return value
            parts = np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
            return np.array(flat, parts).view(dtype).reshape(shape)
        if "__complex__" in value:
            real, imaginary = value["__complex__"]
            return complex(real, imaginary)
        if "__ase_objtype__" in value:
            rest = {name: item for name, item in value.items() if name != "__ase_objtype__"}
            return create_ase_object(value["__ase_objtype__"], rest)
        if "__datetime__" in value:
            return str(value["__datetime__"])
    except Exception:  # it only looked like one
        return value
    return value
