"""What an output format can carry, and any row as one that it can: values come back, or are kept otherwise with a word.

A `Format` says which names, types and columns are safe. `settle` gives a row that keeps to it: an odd value becomes a
plain one, an odd name another name, a column that the format has no place for is kept beside the row. Metadata never
cost a row its result: that is the one thing that is passed on untouched.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.runtime.screening.plain import HOOKS, plain
from painn_deploy.runtime.screening.remarks import (
    AS_TEXT,
    CONSTRAINT,
    IN_INFO,
    NO_ELEMENT,
    RENAMED,
    Remarks,
    one_line,
)
from painn_deploy.runtime.uncertainty.scale import OF_ATOMS

__all__ = ["ERROR", "RESULTS", "Format", "Settled", "free", "is_ordinary", "settle"]

ERROR = "screen_error"
"""Key in `info` of a row without results: why it has none."""

RESULTS = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Format:
    """What a format carries.

    Attributes:
        name: of the format, as its suffix.
        numbers: smallest and largest atomic number.
        kinds: NumPy's letters for the types of arrays, and of complex numbers, that a value may have.
        takes_name: whether a name in `info` comes back, and means nothing else to a reader.
        takes_column: whether a column of atoms comes back, by its name, its array and the number of atoms.
        takes_constraint: whether a constraint comes back.
        beside: where columns are kept that are not taken, in words.
    """

    name: str
    numbers: tuple[int, int]
    kinds: str
    takes_name: Callable[[str, Any], bool]
    takes_column: Callable[[str, np.ndarray, int], bool]
    takes_constraint: Callable[[Any], bool]
    beside: str


@dataclass
class Settled:
    """A row that keeps to a format.

    Attributes:
        atoms: numbers, positions, cell, pbc, columns, constraints and results; its `info` is empty.
        info: plain values, by names that the format takes.
        beside: plain values of columns that the format does not take.
    """

    atoms: Atoms
    info: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)


def settle(row: Atoms, form: Format, index: int, remarks: Remarks) -> Settled:
    """A row as one that a format carries.

    Args:
        row: anything that is held by ASE's class; not touched.
        form: the format.
        index: of the row in the input.
        remarks: what is kept otherwise is counted there.
    """
    numbers, odd = _numbers(row.arrays.get("numbers"), form, index, remarks)
    positions = _positions(row.arrays.get("positions"), len(numbers), odd)
    cell = np.array(row.cell)
    if not is_finite(row):  # a direction that does not repeat may have any vector; a reader's comparisons bear no NaN
        odd["cell"] = cell.tolist()
        cell[~np.isfinite(cell).all(1)] = 0.0
        remarks.add(RENAMED, index, "'cell', which is not finite, is 'input_cell'")
    made = Settled(Atoms(numbers, positions, cell=cell, pbc=row.pbc))
    made.atoms.calc = row.calc
    made.info = _named(row.info, form, index, remarks)
    for name, value in odd.items():
        made.info[free(f"input_{name}", made.info)] = value
    columns = {name: array for name, array in row.arrays.items() if name not in ("numbers", "positions")}
    for name, array in columns.items():
        _place(made, name, array, form, index, remarks)
    kept = [constraint for constraint in row.constraints if form.takes_constraint(constraint)]
    for constraint in row.constraints:
        if constraint not in kept:
            remarks.add(CONSTRAINT, index, type(constraint).__name__)
    made.atoms.constraints = kept
    return made


def is_finite(row: Atoms) -> bool:
    """Whether a row's cell is."""
    return math.isfinite(sum(row.cell.array.ravel().tolist()))


def is_ordinary(row: Atoms, form: Format) -> bool:
    """Whether a format carries the structure and the columns of a row as they are; quick, since nearly every row is so.

    Args:
        row: anything that is held by ASE's class.
        form: the format.
    """
    numbers, positions = row.arrays["numbers"], row.arrays["positions"]
    if type(numbers) is not np.ndarray or numbers.dtype != np.int64 or numbers.ndim != 1:
        return False
    elements = numbers.tolist()
    if not is_finite(row) or (elements and (min(elements) < form.numbers[0] or max(elements) > form.numbers[1])):
        return False
    if type(positions) is not np.ndarray or positions.dtype != np.float64 or positions.shape != (len(elements), 3):
        return False
    return len(row.arrays) == 2 or all(
        type(array) is np.ndarray and type(name) is str and form.takes_column(name, array, len(elements))
        for name, array in row.arrays.items()
        if name not in ("numbers", "positions")
    )


def _numbers(given: Any, form: Format, index: int, remarks: Remarks) -> tuple[np.ndarray, dict[str, Any]]:
    """Atomic numbers that the format takes, 0 (ASE's X) in place of others; and what was given where they differ."""
    low, high = form.numbers
    masked: Any = np.ma.filled(given, 0)
    array = np.asarray(masked)
    values = [_element(value, low, high) for value in array.ravel()]
    numbers = np.array([0 if value is None else value for value in values], np.int64)
    if None not in values and array.ndim == 1:
        return numbers, {}
    odd = plain(np.asarray(given), "", [])
    remarks.add(NO_ELEMENT, index, f"'input_numbers' holds {odd}")
    return numbers, {"numbers": odd}


def _element(value: Any, low: int, high: int) -> int | None:
    try:
        number = int(value)
        return number if number == value and low <= number <= high else None
    except (TypeError, ValueError, OverflowError):
        return None


def _positions(given: Any, atoms: int, odd: dict[str, Any]) -> np.ndarray:
    try:
        array = np.array(np.ma.filled(given.astype(float), np.nan) if np.ma.isMaskedArray(given) else given, float)
        if array.shape == (atoms, 3):
            return array
    except (TypeError, ValueError, OverflowError):
        pass
    odd["positions"] = plain(np.asarray(given), "", [])
    return np.full((atoms, 3), np.nan)


def _named(info: Mapping[Any, Any], form: Format, index: int, remarks: Remarks) -> dict[str, Any]:
    made: dict[str, Any] = {}
    # names that stay go first, so that a changed one never takes the place of another
    for name, value in sorted(info.items(), key=lambda item: not _stays(item[0], item[1], form)):
        changed: list[str] = []
        # an array that the format takes is left as it is; `plain` would look at each of its values
        made[new := _name(name, value, made, form)] = plain(value, form.kinds, changed)
        if new != name or not isinstance(name, str):
            remarks.add(RENAMED, index, f"{name!r} is '{new}'")
        if changed:
            remarks.add(AS_TEXT, index, f"'{new}' ({changed[0]})")
    order = {name: place for place, name in enumerate(info)}
    return dict(sorted(made.items(), key=lambda item: order.get(item[0], len(order))))


def _stays(name: Any, value: Any, form: Format) -> bool:
    return isinstance(name, str) and name not in HOOKS and bool(name.strip()) and form.takes_name(name, value)


def _name(name: Any, value: Any, taken: Mapping[str, Any], form: Format) -> str:
    if _stays(name, value, form) and name not in taken:
        return str(name)
    text = name if isinstance(name, str) else str(plain(name, "", []))
    text = one_line(text).strip() or "nameless"
    if not _stays(text, value, form):
        text = f"input_{text}"
    if not _stays(text, value, form):
        text = "input_" + "".join(c if c.isalnum() else "_" for c in text[6:])
    return free(text, taken)


def free(name: str, taken: Mapping[str, Any]) -> str:
    """A name that is not taken: itself, or with a number.

    Args:
        name: wanted.
        taken: names that are.
    """
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def _place(made: Settled, name: Any, array: Any, form: Format, index: int, remarks: Remarks) -> None:
    """Put one column where the format takes it: into a column, one of another name, or beside."""
    atoms = len(made.atoms)
    for new in (name, f"input_{name}"):
        if isinstance(new, str) and type(array) is np.ndarray and form.takes_column(new, array, atoms):
            made.atoms.arrays[new] = array
            if new != name:
                remarks.add(RENAMED, index, f"{name!r} of each atom is '{new}'")
            return
    changed: list[str] = []
    value = plain(array, form.kinds, changed)
    new = free(f"input_{name}" if not isinstance(name, str) or name in HOOKS else name, made.beside)
    made.beside[new] = value
    if name not in OF_ATOMS:  # which are a screening's own
        remarks.add(IN_INFO, index, f"{name!r} in {form.beside}")
    if changed:
        remarks.add(AS_TEXT, index, f"{name!r} ({changed[0]})")
