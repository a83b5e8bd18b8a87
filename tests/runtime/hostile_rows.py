"""Rows with names and values that no file format likes, made from seeds, and whether an output gives them back."""

import datetime
import decimal
import fractions
import json
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pyarrow.parquet
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from ase.io.jsonio import mydecode

from painn_deploy.runtime.screening.remarks import Remarks, one_line
from painn_deploy.runtime.screening.sinks import SINKS

BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Whatever `str.splitlines` divides at, and a file in text mode may."""

FORGED = '"\nO 0 0 0\n1\nProperties=species:S:1:pos:R:3 energy=-999 id=forged\nH 0 0 0\n'

NAMES: list[Any] = [
    *(
        "",
        " ",
        "a b",
        "a=b",
        "=",
        'q"q',
        "it's",
        "{x}",
        "[y]",
        "a,b",
        "a:b",
        "\\",
        "a\\b",
        "\t",
        "nö",
        "\u2028",
        "\ud800",
    ),
    *(
        "Lattice",
        "lattice",
        "Properties",
        "pbc",
        "PBC",
        "energy",
        "forces",
        "stress",
        "virial",
        "free_energy",
        "dipole",
    ),
    *("magmom", "magmoms", "charges", "species", "pos", "Z", "symbols", "numbers", "positions", "cell", "uid", "UID"),
    *("id", "info", "arrays", "index", "data", "key_value_pairs", "masses", "tags", "mass", "volume", "charge", "get"),
    *(
        "toatoms",
        "_keys",
        "_data",
        "user",
        "ctime",
        "external_tables",
        "calculator",
        "constraints",
        "H",
        "CO2",
        "natoms",
    ),
    *(
        "__ndarray__",
        "__complex__",
        "__datetime__",
        "__ase_objtype__",
        "screen_error",
        "comment",
        "1",
        "01",
        "T",
        "x\ny",
    ),
    *("input_Lattice", "_JSON", "None", "a" * 700, FORGED, 1, 2.5, None, True, (1, 2), b"k", datetime.date(2024, 1, 2)),
]

TEXTS = [
    *("", " ", "  a  ", "1", "-1.5", "1 2 3", "1,2", "T", "F", "true", "False", "T F", "nan", "inf", "Infinity", "1e5"),
    *(
        "1_000",
        "\uff11\uff12",
        "[1,2]",
        "{a}",
        '"',
        "'",
        "\\",
        "\\n",
        "C/C=C\\C",
        "a=b",
        "=",
        "key=value other=1",
        "_JSON",
    ),
    *(
        "_JSON 1",
        "_JSON {",
        '_JSON "x"',
        "a\tb",
        "\x00",
        "\x1b[31m",
        "\xa0",
        "ü",
        "\U0001f600",
        "\ud800",
        "\udcff",
        "x" * 9000,
    ),
    *("first\nsecond", FORGED, "None", "null", "0x10", "9" * 5000, "a,b", ",", "[", "}", "#", "%s", "VEC1 1 2 3"),
    *(f"a{mark}b" for mark in BREAKS),
]

VALUES: list[Callable[[random.Random], Any]] = [
    lambda r: r.choice(TEXTS),
    lambda r: "".join(chr(r.choice((r.randrange(128), r.randrange(0x3000), r.randrange(0xD700)))) for _ in range(9)),
    lambda r: r.choice([0, -1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 10**5000, True, False]),
    lambda r: r.choice([0.1, -0.0, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, r.random()]),
    lambda r: r.choice(
        [None, 1 + 2j, b"", b"\xff\n", bytearray(b"a"), decimal.Decimal("1.50"), fractions.Fraction(1, 3)]
    ),
    lambda r: datetime.datetime(2024, 1, 2, 3, 4, 5, r.choice([0, 6])),
    lambda r: r.choice([datetime.date(1, 1, 1), datetime.time(1, 2), datetime.timedelta(days=1), uuid.UUID(int=5)]),
    lambda r: r.choice([Path("/a b"), object(), int, {1, 2, "a"}, frozenset(), range(3), Ellipsis, molecule("H2")]),
    lambda r: r.choice([np.float32(0.1), np.float16(0.1), np.longdouble("0.1"), np.int8(-3), np.uint64(2**64 - 1)]),
    lambda r: r.choice([np.bool_(True), np.str_("1"), np.bytes_(b"a"), np.complex64(1j), np.datetime64("2024-01-02")]),
    lambda r: r.choice([np.timedelta64(5, "s"), np.datetime64("NaT"), np.void(b"ab"), np.array(5), np.array("x")]),
    lambda r: array(r, r.choice([(0,), (1,), (2,), (9,), (0, 3), (3, 0), (2, 2), (3, 3), (2, 1, 3), ()])),
    lambda r: np.ma.MaskedArray([1.0, 2.0], [True, False]),
    lambda r: np.ma.MaskedArray([1, 2], [True, False]),
    lambda r: np.array([(1, "a")], [("n", "i4"), ("s", "U3")]),
    lambda r: np.array([1, "a", None, [2]], object),
    lambda r: r.choice(
        [[], [1], [1, 2], [1, 2.5], [True, False], [True, 2], ["a", "1"], [None], [1, None], [[1], [1, 2]]]
    ),
    lambda r: r.choice(
        [[[]], [[], [1]], [1, [2]], (1, 2), ("a", (None,)), [2**63, -1], [2**63 + 1, -1], [float("nan"), 1]]
    ),
    lambda r: r.choice([{}, {"a": 1}, {1: 2}, {(1, 2): 3}, {"": ""}, {None: [1, {"x": b"y"}]}, {"__ndarray__": "x"}]),
    lambda r: r.choice([{"__complex__": 1}, {"__datetime__": "x"}, {"__ase_objtype__": "cell"}, [{"a": np.ones(2)}]]),
    lambda r: nested(r.choice([5, 40, 70, 200, 3000])),
    lambda r: [r.choice(TEXTS) for _ in range(r.randrange(4))],
    lambda r: {r.choice(TEXTS): r.choice(TEXTS) for _ in range(r.randrange(4))},
]

KINDS = ["f8", "f4", "f2", "i8", "i4", "u1", "u8", "?", "c16", "U3", "S3", "O", ">f8", ">i4", "g", "M8[D]", "m8[s]"]


def array(r: random.Random, shape: tuple[int, ...]) -> np.ndarray:
    """An array of any type, with values that go into each."""
    kind = np.dtype(r.choice(KINDS))
    values = np.random.default_rng(r.randrange(2**32)).integers(0, 100, shape)
    if kind.kind in "US":
        return np.array(r.choice([["a b"], ["x"], ["1"], [""]]) * values.size).reshape(shape).astype(kind)
    if kind.kind == "O":
        made = np.empty(shape, object)
        for place in np.ndindex(*shape):
            made[place] = r.choice(["x", "a b", "", 1, None, 2.5])
        return made
    made = values.astype(kind)
    if kind.kind in "iu" and kind.itemsize == 8 and made.size and r.random() < 0.3:
        made.flat[0] = r.choice([2**31, 2**53 + 1, 2**63 - 1])
    return made[..., ::-1] if made.ndim and r.random() < 0.2 else made


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    made: Any = 1
    for _ in range(depth):
        made = [made]
    return made


def hostile_row(seed: int) -> Atoms:
    """A molecule with results, and around it whatever the seed gives."""
    r = random.Random(seed)  # noqa: S311  no secret
    atoms = molecule(r.choice(["H2O", "CH4", "NH3", "H2"]))
    if r.random() < 0.3:
        atoms.cell, atoms.pbc = [9.0, 9.0, 9.0], r.choice([True, False, (True, True, False)])
    elif r.random() < 0.1:
        atoms.cell[2] = [np.nan, 0.0, np.inf]
    for _ in range(r.randrange(1, 6)):
        name = r.choice(NAMES) if r.random() < 0.5 else f"n{r.randrange(9)}"
        atoms.info[name] = r.choice(VALUES)(r)
    for _ in range(r.randrange(3)):
        name = (
            r.choice(NAMES)
            if r.random() < 0.5
            else r.choice(["c0", "c1", "c", "forces0", "pos1", "momenta", "move_mask"])
        )
        shape = (r.choice([len(atoms)] * 4 + [0, 1, 7]), *r.choice([(), (), (3,), (1,), (0,), (2, 2)]))
        if name not in ("numbers", "positions", "energy", "forces", "stress", "free_energy", "energies", "stresses"):
            atoms.arrays[name] = array(r, shape)
    if r.random() < 0.2:
        atoms.constraints = r.choice([FixAtoms([0]), FixCartesian(1, (True, False, True)), FixBondLength(0, 1)])
    for name in ("energy", "forces", "stress", "free_energy", "energies", "stresses", "screen_error"):
        atoms.info.pop(name, None)  # what a screening itself replaces
    results = {"energy": -100.0 * r.random(), "forces": np.random.default_rng(seed).normal(size=(len(atoms), 3))}
    if atoms.cell.rank == 3:
        results["stress"] = np.random.default_rng(seed).normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


class Every(Remarks):
    """Remarks of which every example is kept."""

    def add(self, kind: str, index: int, example: str) -> None:
        super().add(f"{kind}: {example}", index, example)


def written(rows: list[Atoms], path: Path) -> tuple[list[Atoms], Remarks]:
    """Rows through a format and back, as any reader of it reads; and what was told."""
    sink, remarks, part = SINKS[path.suffix[1:]], Every(), path.with_name("part")
    part.write_bytes(sink.encoded(rows, 0, remarks))
    path.unlink(missing_ok=True)
    sink.assemble([part], path)
    assert sink.count(path) == len(rows)
    return read_back(path), remarks


def read_back(path: Path) -> list[Atoms]:
    """Rows of an output as ASE, or Python's JSON and pyarrow, give them."""
    if path.suffix in (".extxyz", ".xyz"):
        return list(ase.io.read(path, index=":"))
    if path.suffix == ".db":
        rows = []
        with ase.db.connect(path) as database:
            for row in database.select():
                atoms = row.toatoms()
                atoms.info = {**row.data, **row.key_value_pairs}
                for name, value in atoms.info.pop("arrays", {}).items():
                    atoms.info[f"beside {name}"] = value
                rows.append(atoms)
        return rows
    rows = []
    for row in pyarrow.parquet.read_table(path).to_pylist():
        assert row["index"] == len(rows)
        atoms = Atoms(row["numbers"], np.reshape(row["positions"], (-1, 3)), cell=row["cell"], pbc=row["pbc"])
        atoms.info = mydecode(row["info"] or "{}") | {k: row[k] for k in ("id", "screen_error") if row[k] is not None}
        json.loads(row["info"] or "{}")
        for name, value in mydecode(row["arrays"] or "{}").items():
            atoms.info[f"beside {name}"] = value
        if row["energy"] is not None:
            results = {key: np.array(row[key]) for key in ("energy", "forces", "stress") if row[key] is not None}
            atoms.calc = SinglePointCalculator(atoms, **results)
        rows.append(atoms)
    return rows


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same to a person: lists and arrays, NumPy's numbers and Python's are."""
    if isinstance(one, np.ndarray | np.generic) and one.dtype.kind not in "SVmM" and not np.ma.isMaskedArray(one):
        loose = one.dtype.kind in "fc" and one.dtype.itemsize < 8
        one = one.tolist() if one.dtype.char != "g" else one.astype(float).tolist()
        if loose and isinstance(one, float):
            other = other.tolist() if isinstance(other, np.generic | np.ndarray) else other
            return isinstance(other, int | float) and bool(np.isclose(one, other, rtol=1e-3, equal_nan=True))
    other = other.tolist() if isinstance(other, np.ndarray | np.generic) else other
    if isinstance(one, list | tuple | range):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, bool | int | float) and isinstance(other, bool | int | float):
        return one == other or (one != one and other != other) or abs(one - other) <= 1e-6 * abs(one)
    return type(one) is type(other) and bool(one == other)


def check(row: Atoms, back: Atoms, remarks: Remarks, eight_decimals: bool) -> None:
    """Raise AssertionError where a row lost its result, or anything else without a word.

    Args:
        row: as it was given.
        back: as it was read.
        remarks: what was told of this row alone.
        eight_decimals: whether the format writes columns so.
    """
    assert back.numbers.tolist() == row.numbers.tolist()
    assert back.calc is not None, back.info
    assert set(back.calc.results) >= set(row.calc.results)
    np.testing.assert_allclose(back.positions, row.positions, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(back.pbc, row.pbc)
    assert back.get_potential_energy() == row.calc.results["energy"]
    cell = row.cell.array if np.isfinite(row.cell.array).all() else back.info["input_cell"]
    np.testing.assert_allclose(back.cell.array if cell is row.cell.array else cell, row.cell.array)
    for name, value in row.calc.results.items():
        tolerance = 1e-8 if name == "forces" and eight_decimals else 0
        np.testing.assert_allclose(back.calc.results[name], value, rtol=0, atol=tolerance, err_msg=name)
    lost = [name for name, value in row.info.items() if name not in back.info or not same(value, back.info[name])]
    if isinstance(row.info.get("id"), int | np.integer | np.bool_ | None):
        lost = [name for name in lost if name != "id" or back.info.get("id") not in (None, str(row.info["id"]))]
    for name, value in row.arrays.items():
        if name not in ("numbers", "positions"):
            found = [back.arrays.get(name), back.info.get(f"beside {name}"), back.info.get(name)]
            lost += [] if any(one is not None and close(value, one) for one in found) else [name]
    told = " ".join(remarks.as_dict())
    for name in lost:
        spellings = (repr(name), f"'{name}'", f"'{one_line(str(name)).strip()}'")
        assert any(spelling in told for spelling in spellings), f"{name!r} was lost, and only this was told: {told}"


def close(one: Any, other: Any) -> bool:
    """Whether a column came back, to eight decimals."""
    try:
        if same(one, other) or np.iscomplexobj(one) or np.iscomplexobj(other):
            return same(one, other)
        if same(np.asarray(one).squeeze(), np.asarray(other).squeeze()):
            return True
        return np.allclose(np.asarray(one, float), np.asarray(other, float), rtol=1e-3, atol=1e-7, equal_nan=True)
    except (TypeError, ValueError):
        return False
