"""One frame of extended XYZ as atoms: what its structure needs, and of the rest what can be read."""

import re
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any

from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict, per_config_properties, read_xyz

from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.periodicity import foreign_cell
from painn_deploy.runtime.screening.chunks import row_error, with_sound_constraints
from painn_deploy.runtime.screening.labels import with_labels
from painn_deploy.runtime.screening.remarks import CELL_UNREAD, LATIN, NOT_NAMED, UNREAD, Remarks

__all__ = ["PLAIN", "names_cell", "parsed"]

PLAIN = "species:S:1:pos:R:3"
"""Columns where a comment names none."""

MOST_NOTES = 1 << 16
"""Letters of a comment that is gone through an item at a time."""

MOST_NAME = 256
"""Letters of a column's name."""

MOST_EMPTY = 1000
"""Columns of a frame without atoms, whose lines bound nothing."""

NEEDED = {"species": ("S", 1), "Z": ("I", 1), "pos": ("R", 3), "move_mask": ("L", 0)}
"""Columns of the structure, with their types and widths; a mask has one or three."""

_SPAN = "|".join(
    rf"{begin}(?:[^{end}\\]|\\.)*+(?:{end}|\Z)" for begin, end in ('""', "''", (r"\{", r"\}"), (r"\[", r"\]"))
)
_EMPTY = re.compile(
    rf"""(?P<none>=\s*(?:""|''|\{{\}}|\[\])(?=\s|\Z)|=(?=\s+[A-Za-z_][\w.\-]*\s*=)|=\s*\Z)|{_SPAN}|\\.""", re.DOTALL
)
"""An item without a value, where it stands in no quotes."""

_CELL = re.compile(r"(?:^|\s)(cell|unit_?cell|box|cellpar)\s*[=:]", re.IGNORECASE)
_LABEL = re.compile(r"([A-Za-z]{1,2})[^A-Za-z].*")


def parsed(lines: Sequence[bytes], problem: str, index: int, remarks: Remarks) -> Atoms | StructureError:
    """The atoms of a frame, or why it is none.

    Args:
        lines: of the frame, with their ends.
        problem: what is wrong with them already.
        index: of the row.
        remarks: what cannot be read, and was not needed, is counted there.
    """
    text = _decoded(lines, index, remarks)
    comment = text[1].strip() if len(text) > 1 else ""
    if problem:
        return row_error(f"This is no frame of extended XYZ: {problem}.", _noted(comment))
    if cell := _foreign_cell(comment):
        return row_error(cell, _noted(comment))
    atoms = _read(text, index, remarks)
    if not isinstance(atoms, Atoms) and (bare := _bare(text)) is not None:
        again = _read(bare, index, remarks)
        if isinstance(again, Atoms):
            remarks.add(UNREAD, index, f"{atoms}")
            atoms = again
            _keep_unread(atoms, comment)
    if not isinstance(atoms, Atoms):
        return row_error(f"This frame cannot be read: {_reason(text, atoms)}.", _noted(comment))
    if not atoms.cell.any() and (named := _CELL.search(comment)):
        remarks.add(CELL_UNREAD, index, f"{named[1]!r}; extended XYZ's word is Lattice")
    if atoms.constraints:
        with_sound_constraints(atoms, atoms.constraints, index, remarks)
    return atoms


def names_cell(comment: str) -> bool:
    """Whether a comment seems to name a cell, which would not be read; see `CELL_UNREAD`."""
    return _CELL.search(comment) is not None


def _decoded(lines: Sequence[bytes], index: int, remarks: Remarks) -> list[str]:
    try:
        return [line.decode("utf-8") for line in lines]
    except UnicodeDecodeError as error:
        remarks.add(LATIN, index, f"{error.object[max(0, error.start - 10) : error.start + 10]!r}")
        return [line.decode("latin-1") for line in lines]


def _read(lines: Sequence[str], index: int, remarks: Remarks) -> Atoms | str:
    """Atoms as ASE reads them, or what its reader said."""
    unnamed: list[int] = []

    def items(comment: str) -> dict[str, Any]:
        found: dict[str, Any] = key_val_str_to_dict(_filled(comment))
        unnamed.append(_unnamed(str(found.get("Properties", PLAIN)), lines))
        return found

    try:
        if not lines[1].strip() or lines[-1].startswith("VEC"):  # ASE does not ask for items then
            unnamed.append(_unnamed(PLAIN, lines))
        # bounded lines of our own splitting: no other character ends one
        (atoms,) = read_xyz(StringIO("".join(lines), newline="\n"), slice(0, 1), properties_parser=items)
    except MemoryError:
        raise
    except Exception as error:  # ASE's reader raises what it met
        return str(error) or type(error).__name__
    if not isinstance(atoms, Atoms):
        return "it holds no atoms"
    if more := max(unnamed, default=0):
        remarks.add(NOT_NAMED, index, f"{more} after those that Properties names")
    return atoms


def _unnamed(properties: str, lines: Sequence[str]) -> int:
    """How many columns the lines of atoms have beyond those of Properties.

    ASE makes as many columns as Properties says, whatever the lines hold: 20 million take it a minute and 5 GB. So they
    are compared before, and what is refused here is no larger than the lines are.

    Raises:
        ValueError: Properties cannot be those of the lines.
    """
    named = sum(width for _, _, width in _columns(properties))
    found = [len(line.split()) for line in _atoms(lines)]
    if not found and named > MOST_EMPTY:
        raise ValueError(f"Properties names {named} columns of no atoms")
    if found and named > min(found):
        raise ValueError(
            f"Properties names {named} columns, and the line of atom {found.index(min(found))} has {min(found)}"
        )
    return max(found, default=named) - named


def _columns(properties: str) -> list[tuple[str, str, int]]:
    """Name, type and width of each column.

    Raises:
        ValueError: they are none.
    """
    fields, made = properties.split(":"), list[tuple[str, str, int]]()
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=False):  # as ASE divides it
        if not (width.isascii() and width.isdigit() and len(width) < 9 and int(width) > 0):
            raise ValueError(f"a width in Properties is {width[:20]!r}, and no number from 1")
        if len(name) > MOST_NAME:  # which ASE repeats for each column
            raise ValueError(f"a name in Properties has {len(name)} letters, and {MOST_NAME} are the most")
        made.append((name, kind, int(width)))
    return made


def _atoms(lines: Sequence[str]) -> Sequence[str]:
    """The lines of atoms."""
    return lines[2 : 2 + int(lines[0])]


def _foreign_cell(comment: str) -> str:
    """Why a frame would be computed without the cell that its comment names; nothing where it would not."""
    named = foreign_cell(comment)
    if not named:
        return ""
    if named.lower() == "lattice":
        return (
            "The comment of this frame names a lattice, but not as 'Lattice=', with a capital L and a space before it: "
            "it would be computed as an isolated molecule. Rename it."
        )
    return (
        f"This frame is of an i-PI trajectory, and the cell in its comment ({named!r}, in bohr unless it says "
        "otherwise) is not extended XYZ's: it would be computed as an isolated molecule. Convert it: write "
        'Lattice="..." (Å) and pbc="T T T" into the comment, with lengths in Å.'
    )


def _filled(comment: str) -> str:
    """A comment whose empty values are texts of no letters: for an empty one ASE's reader takes the item after it.

    It would do so with `name="" Lattice="..."`, and a crystal would be computed as a molecule.
    """
    return _EMPTY.sub(lambda found: '="_JSON \\"\\""' if found["none"] else found[0], comment)


def _items(comment: str) -> Iterator[tuple[str, str]]:
    """Names and values on a comment line, as ASE divides it, each as it stands there."""
    for found in re.finditer(
        r"""((?:[^\s=\\"']|\\.|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')+)"""
        r"""(?:\s*=\s*((?:[^\s"'{\[\\]|\\.|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{(?:[^}\\]|\\.)*\}|\[(?:[^\]\\]|\\.)*\])*))?""",
        comment,
        re.DOTALL,
    ):
        yield found[1], found[2] or ""


def _notes(comment: str) -> dict[str, Any]:
    """What a comment says, an item at a time, so that one that cannot be read does not cost the others."""
    made: dict[str, Any] = {}
    for name, value in _items(comment):
        try:
            made |= key_val_str_to_dict(f"{name}={value}" if value else name)
        except Exception:  # as above
            made[name] = value.strip("\"'{}[]")
    return made


def _keep_unread(atoms: Atoms, comment: str) -> None:
    """Give bare atoms what else their comment says, as text where it cannot be read."""
    notes = _notes(comment) if len(comment) < MOST_NOTES else {}
    with_labels(atoms, {name: notes.pop(name) for name in per_config_properties if name in notes})
    for name, value in notes.items():
        if name not in ("Lattice", "Properties", "pbc"):
            atoms.info.setdefault(name, value)


def _noted(comment: str) -> Atoms | None:
    """What an unreadable frame says of itself: its id and notes go into the output with the reason."""
    notes = _notes(comment) if "=" in comment and len(comment) < MOST_NOTES else {}
    for name in ("Lattice", "Properties", "pbc"):
        notes.pop(name, None)
    return Atoms(info=notes) if notes else None


def _bare(lines: Sequence[str]) -> list[str] | None:
    """The frame with its structure and those notes that can be read, other columns as text; None where it has none."""
    items = dict(_items(lines[1].strip()))
    try:
        columns = _columns(items.get("Properties", PLAIN).strip('"'))
    except ValueError:
        return None
    tokens = [line.split() for line in _atoms(lines)]
    shortest = min(map(len, tokens), default=0)
    whole = shortest >= sum(column[2] for column in columns)
    kept, places, start = [], list[int](), 0
    for name, kind, wide in columns:
        if name in NEEDED and start + wide > shortest:
            return None
        if (name in NEEDED or whole) and name not in (*all_properties, "charge"):
            kept.append(f"{name}:{kind if name in NEEDED else 'S'}:{wide}")
            places += range(start, start + wide)
        start += wide
    sound = [f"{name}={value}" for name, value in items.items() if name in ("Lattice", "pbc") and value]
    for name, value in items.items():
        if name not in ("Lattice", "pbc", "Properties", "virial", *per_config_properties) and _reads(name, value):
            sound.append(f"{name}={value}" if value else name)
    comment = " ".join([*sound, f"Properties={':'.join(kept)}"])
    body = [" ".join(line[place] for place in places) for line in tokens]
    return [lines[0], f"{comment}\n", *(f"{line}\n" for line in body), *lines[2 + len(tokens) :]]


def _reads(name: str, value: str) -> bool:
    try:
        key_val_str_to_dict(f"{name}={value}" if value else name)
    except Exception:  # as above
        return False
    return True


def _reason(lines: Sequence[str], said: Atoms | str) -> str:
    """What is wrong with a frame, in words where it is an element that is none."""
    try:
        columns = _columns(dict(_items(lines[1].strip())).get("Properties", PLAIN).strip('"'))
    except ValueError:
        return str(said)
    names = [name for name, _, _ in columns]
    if "species" not in names:
        return str(said)
    place = sum(width for _, _, width in columns[: names.index("species")])
    for atom, line in enumerate(_atoms(lines)):
        symbol = (line.split()[place : place + 1] or [""])[0]
        if symbol and symbol.capitalize() not in atomic_numbers:
            return f"atom {atom} has the unknown element {symbol!r}{_advice(symbol)}"
    return str(said)


def _advice(symbol: str) -> str:
    if symbol in ("D", "T"):
        return f" ({'deuterium' if symbol == 'D' else 'tritium'}: write H)"
    if symbol.isdigit():
        return " (atomic numbers stand in a column Z:I:1; write the symbol)"
    label = _LABEL.fullmatch(symbol)
    if label and label[1].capitalize() in atomic_numbers:
        return f" (a label: write {label[1].capitalize()})"
    return ""
