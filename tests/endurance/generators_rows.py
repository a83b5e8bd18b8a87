"""Rows to screen: pure functions of a seed and a number.

Most are small molecules, some are crystals, and a few hold what the student does not know or what is no structure, so
that rows without results are among them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.collections import g2
from ase.io.extxyz import write_xyz

__all__ = ["awkward_table", "row", "rows", "write_rows"]

KNOWN = frozenset((1, 6, 7, 8))
"""Elements of the students that ship."""

BAD = 97
"""One row of so many has no answer."""

NOTES = ("plain", "two words", 'a "quoted" one', "Å and é and 水", "a=b", "[1, 2]", "T", "1e5", "'", "back\\slash", "_")


def _kinds() -> list[Atoms]:
    found = []
    for name in g2.names:
        atoms = molecule(name)
        atoms.set_initial_magnetic_moments(None)
        if len(atoms) > 1 and set(atoms.numbers.tolist()) <= KNOWN:
            found.append(atoms)
    return found


KINDS = _kinds()


def row(seed: int, number: int) -> Atoms:
    """One structure, with an id and a few facts in its `info`.

    Args:
        seed: of all.
        number: of this one.
    """
    rng = np.random.default_rng([seed, 11, number])
    atoms = bulk("C", "diamond", a=3.57) if number % 50 == 49 else KINDS[int(rng.integers(len(KINDS)))].copy()
    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    if number % BAD == BAD - 1:
        if rng.integers(2):
            atoms.numbers[0] = 26
        else:
            atoms += atoms[:1]
    note = NOTES[int(rng.integers(len(NOTES)))]
    atoms.info = {"id": f"row-{number}", "note": note, "charge": int(rng.integers(-2, 3)), "score": float(rng.normal())}
    return atoms


def rows(seed: int, count: int) -> Iterator[Atoms]:
    """The first of them.

    Args:
        seed: of all.
        count: how many.
    """
    return (row(seed, number) for number in range(count))


def write_rows(path: Path, seed: int, count: int) -> None:
    """Write the first of them as extended XYZ.

    Args:
        path: of the file.
        seed: of all.
        count: how many.
    """
    with path.open("w", encoding="utf-8") as file:
        for atoms in rows(seed, count):
            write_xyz(file, [atoms])


def _awkward(rng: np.random.Generator) -> Any:
    """A value that JSON holds and some format does not."""
    texts = (
        "",
        " ",
        "\n",
        "first\nsecond",
        "a\r\nb",
        "\0",
        "\ud800",
        '"',
        "'",
        "\\",
        "=",
        "x" * 5000,
        "{}",
        "[1",
        "None",
    )
    forged = 'x"\nH 0 0 0 0 0 0\n1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-999 id=forged q="'
    numbers = (0, -1, 2**31, 2**63, 10**30, 10**400, 0.0, 1e308, float("nan"), float("inf"), True, False)
    others: tuple[Any, ...] = (
        None,
        [],
        {},
        [1, 2, 3],
        ["a", 1, None],
        [[1, 2], [3]],
        {"a": {"b": [1, "\n"]}},
        [None],
        [True, 2.5],
    )
    every = (*texts, forged, *numbers, *others)
    return every[int(rng.integers(len(every)))]


KEYS = (
    *("note", "energy", "forces", "stress", "Lattice", "Properties", "pbc", "species", "pos", "numbers", "positions"),
    *("cell", "", " ", "a b", "a\nb", "a=b", 'a"b', "1", "é", "screen_error", "free_energy", "unique_id", "__class__"),
    *("x" * 300, "calculator", "key_value_pairs", "data", "momenta", "id2", "\\", "'"),
)


def awkward_table(seed: int, count: int) -> dict[str, list[Any]]:
    """Columns of a Parquet file whose `info` is awkward; every structure is sound, so every row must have its energy.

    Args:
        seed: of all.
        count: rows.
    """
    columns: dict[str, list[Any]] = {"numbers": [], "positions": [], "info": []}
    for number in range(count):
        rng = np.random.default_rng([seed, 13, number])
        atoms = KINDS[int(rng.integers(len(KINDS)))].copy()
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        info = {KEYS[int(rng.integers(len(KEYS)))]: _awkward(rng) for _ in range(int(rng.integers(1, 4)))}
        columns["numbers"].append(atoms.numbers.tolist())
        columns["positions"].append(atoms.positions.tolist())
        columns["info"].append(json.dumps(info))
    return columns
