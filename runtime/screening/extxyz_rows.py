"""Rows as text of extended XYZ that ASE reads back: the same values, and exactly one frame.

ASE's own writer writes; an ordinary row goes to it as it is. For other rows names and texts are escaped as ASE's reader
understands it, what would be read as something else goes as JSON (`_JSON "1"` is the text and not the number), and the
frame is read back before it counts.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from io import StringIO
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import per_config_properties, read_xyz, write_xyz

from painn_deploy.runtime.screening.carrying import ERROR, RESULTS, Format, is_ordinary, settle
from painn_deploy.runtime.screening.plain import HOOKS, WORDS
from painn_deploy.runtime.screening.remarks import AS_TEXT, LEFT_OUT, RENAMED, Remarks

__all__ = ["count_frames", "is_plain_note", "write_frame"]

TRUTHS = frozenset({"T", "F", "true", "false", "True", "False", "TRUE", "FALSE"})
RESERVED = frozenset({"Lattice", "Properties", "pbc", *per_config_properties}) | HOOKS
"""Names on the comment line that mean something else than a note."""

SPECIAL = frozenset({"virial", "uid", "UID"})
"""Names whose values must be nine numbers, or come back as the text that was written."""

COLUMNS = frozenset({"symbols", "species", "pos", "positions", "numbers", "Z", "move_mask", "charge", *all_properties})
"""Names of columns that mean something else than a column of one's own."""

FIELDS = re.compile(r"(symbols|species|positions|pos|forces|move_mask)\d*")
"""Names inside the tables that ASE's reader and writer make of the columns."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_COLUMN = re.compile(r"[^\W\d][\w.\-]*")
_TOKEN = re.compile(r"[^\s,]+")
_BLANK_OR_MARK = re.compile(r"(?=[=\\])")

INT32, INT64 = 2**31, 2**63


def write_frame(text: StringIO, row: Atoms, index: int, remarks: Remarks) -> None:
    """Write a row.

    Args:
        text: to write to.
        row: a structure, with its results as its calculator.
        index: of the row in the input.
        remarks: what is kept otherwise is counted there.
    """
    if _is_ordinary(row):
        write_xyz(text, [row])
    else:
        text.write(_odd(row, index, remarks))


def _odd(row: Atoms, index: int, remarks: Remarks) -> str:
    noted = type(remarks)()
    made = _carried(row, index, noted)
    text = _checked(made)
    if not text:  # nothing that we know of comes here: whatever it is, it must not cost the row its result
        noted = type(remarks)()
        made.info = {name: value for name, value in made.info.items() if name in (ERROR, "id")}
        made.arrays = {name: made.arrays[name] for name in ("numbers", "positions")}
        made.constraints = []
        noted.add(LEFT_OUT, index, "all notes and columns, which extended XYZ does not give back")
        text = _checked(made)
    remarks.merge(noted.as_dict())
    return text or _written(Atoms(info={ERROR: "This row cannot be written as extended XYZ."}))


def count_frames(pieces: Iterable[bytes]) -> int:
    """The number of frames that a reader finds in a text; -1 where it would find something else.

    Args:
        pieces: of the text, one after another, divided anywhere.
    """
    frames, left, tail = 0, 0, b""
    for piece in pieces:
        if b"\r" in piece:
            return -1
        *lines, tail = (tail + piece).split(b"\n")
        while left < len(lines):
            head = lines[left].strip()
            if not head.isdigit() or len(lines[left]) > 18:
                return -1
            frames, left = frames + 1, left + int(head) + 2
        left -= len(lines)
    return -1 if left or tail else frames


def _written(row: Atoms) -> str:
    text = StringIO()
    write_xyz(text, [row])
    return text.getvalue()


def _checked(row: Atoms) -> str:
    """The text, if reading it gives the row's atoms and results; nothing otherwise."""
    results = {} if row.calc is None else row.calc.results
    try:
        text = _written(row)
        (back,) = read_xyz(StringIO(text), slice(None))
    except MemoryError:
        raise
    except Exception:  # ASE's writer and reader raise what they meet
        return ""
    found = {} if back.calc is None else back.calc.results
    if len(back) != len(row) or not np.array_equal(back.numbers, row.numbers) or len(text.splitlines()) != len(row) + 2:
        return ""
    if {name for name in RESULTS if name in found} != set(results) or found.get("energy") != results.get("energy"):
        return ""
    same = "forces" not in results or np.allclose(found["forces"], results["forces"], rtol=0, atol=1e-7, equal_nan=True)
    return text if same else ""


def _is_ordinary(row: Atoms) -> bool:
    """Whether ASE's writer and reader give back everything in a row; quick, since nearly every row is."""
    if not all(map(is_plain_note, row.info, row.info.values())):
        return False
    if not is_ordinary(row, FORMAT) or (len(row.arrays) > 2 and _clashes(row)):
        return False
    return not row.constraints or all(map(_takes_constraint, row.constraints))


def is_plain_note(name: Any, value: Any) -> bool:
    """Whether ASE's writer and reader give back a note as it is.

    Args:
        name: its key in `info`.
        value: anything.
    """
    return type(name) is str and _is_ordinary_name(name) and _is_ordinary_value(value)


@lru_cache(4096)
def _is_ordinary_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name not in RESERVED and name not in SPECIAL


def _is_ordinary_value(value: Any) -> bool:
    kind: Any = type(value)
    if kind is str:
        if value.isalnum() and value.isascii() and value[0] in WORDS:
            return True
        return "\\" not in value and _text_comes_back(value)
    if kind is int:
        return bool(-INT64 <= value < INT64)
    if kind is np.ndarray:
        wide = value.ndim > 1 or value.size > 1
        return bool(wide and value.size > 0 and value.dtype.kind in "ifb" and value.dtype.itemsize <= 8)
    return kind in (bool, float, np.bool_, np.float64, np.float32, np.int64, np.int32)


def _text_comes_back(text: str) -> bool:
    """Whether ASE's reader gives a text for a text, escapes aside: what looks like numbers or truths is read so."""
    if not text.isprintable() or text.endswith("="):  # after which the reader takes the next name for the value
        return False
    if text[:1] in WORDS:
        return True
    token = _TOKEN.search(text)
    if token is None or token[0] in TRUTHS or text.startswith("_JSON "):
        return False
    try:
        float(token[0])
    except ValueError:
        return True
    return False


def _takes_name(name: str, value: Any) -> bool:
    if name.lower() == "uid":  # the reader leaves its value as it is written
        return isinstance(value, str) and value.isprintable() and bool(value.strip())
    if name == "virial":
        return isinstance(value, np.ndarray) and bool(value.size == 9 and value.dtype.kind in "if")
    return name not in RESERVED and name.isprintable()


def _takes_column(name: str, array: np.ndarray, atoms: int) -> bool:
    if not _COLUMN.fullmatch(name) or name in COLUMNS or FIELDS.fullmatch(name):
        return False
    if array.ndim not in (1, 2) or len(array) != atoms or array.size == 0:
        return False
    if array.dtype.kind == "i":
        return bool(array.min() >= -INT32 and array.max() < INT32)
    if array.dtype.kind in "OU":
        texts = array.ravel().tolist()
        return all(type(text) is str and text.isprintable() and text and " " not in text for text in texts)
    return array.dtype.kind in "fb"


def _takes_constraint(constraint: Any) -> bool:
    return isinstance(constraint, FixAtoms | FixCartesian)


FORMAT = Format("extxyz", (0, 118), "ifb", _takes_name, _takes_column, _takes_constraint, "info")


def _clashes(row: Atoms) -> list[str]:
    """Columns whose names are those of another's parts: `a` of three parts has `a0`, `a1` and `a2`."""
    wide = [(name, array.shape[1]) for name, array in row.arrays.items() if array.ndim == 2]
    parts = {f"{name}{part}" for name, width in wide for part in range(width)}
    return [name for name in row.arrays if name in parts]


def _carried(row: Atoms, index: int, remarks: Remarks) -> Atoms:
    settled = settle(row, FORMAT, index, remarks)
    made = settled.atoms
    for name in _clashes(made):
        settled.beside[name] = made.arrays.pop(name)
        remarks.add(RENAMED, index, f"{name!r} of each atom is in info")
    info = dict(settled.info)
    for name, value in settled.beside.items():
        free = name if _takes_name(name, value) and name.strip() and name not in info else f"input_{name.strip()}"
        while free in info or not _takes_name(free, value):
            free = "".join(c if c.isalnum() else "_" for c in free) + "_"
        info[free] = value
    for name, value in info.items():
        made.info[_escaped_name(name)] = _for_comment(name, value, index, remarks)
    return made


def _escaped_name(name: str) -> str:
    return _BLANK_OR_MARK.sub(r"\\", name)


def _for_comment(name: str, value: Any, index: int, remarks: Remarks) -> Any:
    """A value that ASE's writer writes so that its reader gives back what it was."""
    if isinstance(value, str):
        if name.lower() == "uid" or _text_comes_back(value):
            return value.replace("\\", "\\\\")
        return f"_JSON {json.dumps(value)}".replace("\\", "\\\\")
    if _is_ordinary_value(value) or name == "virial":
        return value
    value = _without_arrays(value)
    if _list_comes_back(value):
        return f"_JSON {json.dumps(value)}".replace("\\", "\\\\")
    remarks.add(AS_TEXT, index, f"'{name}' (list of uneven lists or mixed numbers)")
    return _for_comment(name, json.dumps(value), index, remarks)


def _without_arrays(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _without_arrays(item) for name, item in value.items()}
    return [_without_arrays(item) for item in value] if isinstance(value, list) else value


def _list_comes_back(value: Any) -> bool:
    """Whether the array that ASE's reader makes of a JSON list holds the same."""
    try:
        array = np.array(value)
    except ValueError:
        return False
    if array.dtype.kind not in "ifb":
        return True
    pairs = zip(array.ravel().tolist(), np.array(value, object).ravel().tolist(), strict=True)
    return all(one == other or (one != one and other != other) for one, other in pairs)  # NaN is NaN
