"""Comment lines of extended XYZ that ASE's parser reads without a doubt, read quickly: the same names and values.

An item is a name, or a name and a value that is bare or in double quotes. What has another form is not read here.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from ase.io.extxyz import key_val_str_to_dict, per_config_properties

from painn_deploy.runtime.periodicity import foreign_cell
from painn_deploy.runtime.screening.extxyz_frame import PLAIN, names_cell
from painn_deploy.runtime.screening.labels import OURS
from painn_deploy.runtime.screening.plain import WORDS

__all__ = ["Comment", "Layout", "layout_of", "read_comment"]

MOST_LETTERS = 4096
"""Of a comment that is read here; the notes of a longer one have their own forms."""

_ITEM = re.compile(r"""([A-Za-z_][\w.\-]*)(?:=(?:"([^"\\]+)"|([^\s"'{}\[\]\\,=]+)))?(?:\s+(?!=)|\Z)""", re.ASCII)
"""The name of an item, its value in quotes, its bare value."""

_CELL = ("cell", "lattice", "box")
"""One of them is in every comment that may name a cell otherwise than extended XYZ does, and in others."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_REAL = re.compile(r"-?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?")
_NUMBER = rf"(?:{_REAL.pattern}|{_WHOLE.pattern})"
_NINE = re.compile(rf" *{_NUMBER}(?: +{_NUMBER}){{8}} *")

_ODD = frozenset({"virial", *OURS, *per_config_properties})
"""Names that stand for something else than a note."""

_TRUTHS = {"T": True, "F": False}


@dataclass(slots=True)
class Comment:
    """What a comment says.

    Attributes:
        properties: names, types and widths of the columns.
        cell: nine numbers, Å; None for none.
        pbc: directions that repeat.
        energy: whether there is a label of that name, a number.
        notes: everything else.
    """

    properties: str = PLAIN
    cell: list[float] | None = None
    pbc: tuple[bool, bool, bool] = (False, False, False)
    energy: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


def read_comment(line: bytes) -> Comment | None:
    """What a comment says; None where it has another form than is read here."""
    comment = line.decode("latin-1").strip()
    if not comment:
        return Comment()
    if len(comment) > MOST_LETTERS or not (comment.isascii() and comment.isprintable()):
        return None
    properties, cell, pbc, energy, notes, read = PLAIN, None, None, False, dict[str, Any](), 0
    while read < len(comment):
        if (item := _ITEM.match(comment, read)) is None:
            return None
        read = item.end()
        name, quoted, bare = item.groups()
        value = quoted or bare or ""
        if name == "Properties" and value:
            properties = value
        elif name == "Lattice":
            if not _NINE.fullmatch(value):
                return None
            cell = [float(number) for number in value.split()]
        elif name == "pbc":
            if (pbc := _directions(value)) is None:
                return None
        elif name == "energy" and (_REAL.fullmatch(value) or _WHOLE.fullmatch(value)):
            energy = True
        elif name in _ODD or name == "Properties" or name.lower() == "uid":
            return None
        elif value:
            if (found := _value(value)) is None:
                return None
            notes[name] = found
        else:
            notes[name] = True
    if isinstance(notes.get("id"), float):  # NaN is none
        return None
    small = comment.lower()
    if any(word in small for word in _CELL) and (
        foreign_cell(comment) or (names_cell(comment) and not any(cell or ()))
    ):
        return None
    repeats = pbc or ((True, True, True) if cell else (False, False, False))
    return Comment(properties, cell, repeats, energy, notes)


@lru_cache(256)
def _directions(value: str) -> tuple[bool, bool, bool] | None:
    flags = [_TRUTHS.get(word) for word in value.split()]
    if None in flags or len(flags) not in (1, 3):
        return None
    one, two, three = map(bool, flags * 3 if len(flags) == 1 else flags)
    return one, two, three


def _value(text: str) -> Any:
    """The value that ASE's parser makes of a text; None where that raises."""
    if text[0] in WORDS:
        return text
    if _WHOLE.fullmatch(text):
        return np.int64(text)
    if _REAL.fullmatch(text):
        return np.float64(text)
    value = _other_value(text)
    return value.copy() if isinstance(value, np.ndarray | list) else value


@lru_cache(4096)
def _other_value(text: str) -> Any:
    try:
        return key_val_str_to_dict(f'x="{text}"')["x"]
    except Exception:  # its parser raises what it meets
        return None


@dataclass(frozen=True)
class Layout:
    """Where the columns of ordinary frames are.

    Attributes:
        width: how many there are.
        species: of the symbols.
        positions: the first of three.
        forces: the first of three; None where there are none.
    """

    width: int
    species: int
    positions: int
    forces: int | None


@lru_cache(256)
def layout_of(properties: str) -> Layout | None:
    """The columns that a comment names; None where there are others than symbols, positions and forces."""
    fields, places, width = properties.split(":"), dict[str, int](), 0
    kinds = {"species": ["S", "1"], "pos": ["R", "3"], "forces": ["R", "3"]}
    for start in range(0, len(fields), 3):
        name, *kind = fields[start : start + 3]
        if kinds.pop(name, None) != kind:
            return None
        places[name] = width
        width += int(kind[1])
    if "species" in kinds or "pos" in kinds:
        return None
    return Layout(width, places["species"], places["pos"], places.get("forces"))
