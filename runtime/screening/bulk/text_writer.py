"""Rows as text of extended XYZ: those that are side by side from a template, as ASE's writer writes them."""

from collections.abc import Iterable
from io import StringIO
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.io.extxyz import escape, key_val_dict_to_str
from ase.stress import voigt_6_to_full_3x3_stress

from painn_deploy.runtime.screening.bulk.results import Done, Rows
from painn_deploy.runtime.screening.extxyz_rows import is_plain_note, write_frame
from painn_deploy.runtime.uncertainty.scale import FLAG, OF_ATOMS, OF_STRUCTURE

__all__ = ["encoded_text"]


def encoded_text(done: Done, rows: Rows) -> bytes:
    """The bytes of a part.

    Args:
        done: its rows.
        rows: made them; what is kept otherwise than it came is told there.
    """
    block, frames = done.block, done.block.frames
    frame_of = dict(zip(block.places[done.side_by_side].tolist(), done.side_by_side.tolist(), strict=True))
    properties, line, values = _lines(done)
    width, heads = line.count("%"), _heads(done)
    bounds, finite = frames.offsets.tolist(), np.isfinite(frames.cells).all((1, 2)).tolist()
    text = StringIO()
    for place in range(block.count):
        frame, notes = frame_of.get(place), block.notes[place]
        if frame is None or notes is None or not (finite[frame] and all(map(is_plain_note, notes, notes.values()))):
            row = done.alone[place] if frame is None else done.row_of(frame, rows)
            write_frame(text, row, block.first + place, rows.remarks)
            continue
        lattice, results, pbc = heads[frame]
        start, end = bounds[frame], bounds[frame + 1]
        items = "".join(f"{name}={_value(name, value)} " for name, value in notes.items())
        text.write(f"{end - start}\n{lattice}{properties} {items}{results} {pbc}\n")
        text.write(line * (end - start) % tuple(values[width * start : width * end]))
    return text.getvalue().encode()


def _value(name: str, value: Any) -> str:
    """A value as ASE's writer writes it on a comment line."""
    kind = type(value)
    if kind is str:
        return str(escape(value))
    if kind is bool:
        return "T" if value else "F"
    if kind is int or kind is float or kind is np.float64 or kind is np.int64:
        return f"{value}"
    return str(key_val_dict_to_str({name: value})).partition("=")[2]


def _lines(done: Done) -> tuple[str, str, list[Any]]:
    """The columns of all rows as a comment names them, the template of a line, and the values of all lines."""
    frames, answers = done.block.frames, done.answers
    more = [(name, answers.uncertainties[name]) for name in OF_ATOMS if name in answers.uncertainties]
    columns = [("pos", frames.positions), *more, ("forces", answers.forces)]
    names, parts = ["species:S:1"], list[list[Any]]()
    known, places = np.unique(frames.numbers, return_inverse=True)
    symbols = [chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "" for number in known.tolist()]
    parts.append([symbols[place] for place in places.tolist()])
    for name, array in columns:
        wide = array if array.ndim == 2 else array[:, None]
        names.append(f"{name}:R:{wide.shape[1]}")
        parts += [wide[:, column].tolist() for column in range(wide.shape[1])]
    values: list[Any] = [None] * (len(parts) * len(frames.numbers))
    for column, part in enumerate(parts):
        values[column :: len(parts)] = part
    return f"Properties={':'.join(names)}", " ".join(["%-2s", *["%16.8f"] * (len(parts) - 1)]) + "\n", values


def _heads(done: Done) -> list[tuple[str, str, str]]:
    """Of each frame what stands on its comment line before its notes, after them, and at the end."""
    frames, answers = done.block.frames, done.answers
    lattices = [f'Lattice="{_spaced(cell)}" ' if any(cell) else "" for cell in frames.cells.reshape(-1, 9).tolist()]
    pbc = [f'pbc="{" ".join("FT"[flag] for flag in flags)}"' for flags in frames.pbc.tolist()]
    results = [f"energy={energy}" for energy in answers.energy.tolist()]
    for frame in np.flatnonzero(~np.isnan(answers.stress[:, 0])).tolist():
        stress = voigt_6_to_full_3x3_stress(answers.stress[frame]).ravel().tolist()
        results[frame] += f' stress="{_spaced(stress)}"'
    uncertain = {name: answers.uncertainties[name] for name in OF_STRUCTURE if name in answers.uncertainties}
    if done.flags is not None:
        uncertain[FLAG] = done.flags
    for name, values in reversed(uncertain.items()):
        shown = [_value(name, value) for value in values.tolist()]
        results = [f"{name}={value} {rest}" for value, rest in zip(shown, results, strict=True)]
    return list(zip(lattices, results, pbc, strict=True))


def _spaced(numbers: Iterable[float]) -> str:
    return " ".join(map(str, numbers))
