"""One way out for rows: what a format cannot carry comes back otherwise and is told, and costs no row its result."""

import datetime
import decimal
import json
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.screening.remarks import CELL_UNREAD, CONSTRAINT, LATIN, LEFT_OUT, Remarks
from painn_deploy.runtime.screening.run import screen
from painn_deploy.runtime.screening.sources import open_source

from .hostile_rows import BREAKS, FORGED, NAMES, TEXTS, check, hostile_row, read_back, same, written

FORMATS = ("extxyz", "db", "parquet")
WATER = molecule("H2O")


@pytest.fixture(scope="module")
def energy(bundle: Path) -> float:
    return float(PaiNNCalculator(bundle).calculate_batch([WATER])[0]["energy"])


def table(folder: Path, **columns: Any) -> Path:
    """A Parquet file of two waters; the first has a value in each column that is named, or numbers of its own."""
    numbers, positions = columns.pop("numbers", WATER.numbers.tolist()), WATER.positions.tolist()
    rows: dict[str, Any] = {"numbers": [numbers, WATER.numbers.tolist()], "positions": [positions, positions]}
    pyarrow.parquet.write_table(
        pyarrow.table(rows | {name: [value, None] for name, value in columns.items()}), folder / "in.parquet"
    )
    return folder / "in.parquet"


def screened(bundle: Path, source: Path, kind: str, energy: float, failing: tuple[int, ...] = ()) -> list[Atoms]:
    """The rows of a screening of waters, whose energies are those of the plain one."""
    output = source.with_name(f"out.{kind}")
    summary = screen(bundle, source, output, overwrite=True)
    rows = read_back(output)
    assert len(rows) == summary.rows
    assert [index for index, _ in summary.failures] == list(failing)
    for index, row in enumerate(rows):
        if index in failing:
            assert row.calc is None
            assert row.info["screen_error"] == dict(summary.failures)[index]
        else:
            assert row.get_potential_energy() == pytest.approx(energy, abs=1e-4)
            assert row.get_forces().shape == (len(row), 3)
    return rows


@pytest.mark.parametrize("seed", range(0, 400, 20))
@pytest.mark.parametrize("kind", FORMATS)
def test_hostile_rows_come_back_or_are_told(tmp_path: Path, kind: str, seed: int) -> None:
    rows = [hostile_row(one) for one in range(seed, seed + 20)]
    read, remarks = written(rows, tmp_path / f"out.{kind}")
    for row, back in zip(rows, read, strict=True):
        check(row, back, remarks, kind == "extxyz")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_text_comes_back(tmp_path: Path, kind: str) -> None:
    """Numbers, truths, line breaks, quotes, lone surrogates: a text stays that text, and needs no word."""
    rows = []
    for text in TEXTS:
        rows.append(molecule("H2O", info={"n": text, "after": 5}))
        rows[-1].calc = SinglePointCalculator(rows[-1], energy=-1.0, forces=np.zeros((3, 3)))
    back, remarks = written(rows, tmp_path / f"out.{kind}")
    assert [row.info["n"] for row in back] == TEXTS
    assert {row.info["after"] for row in back} == {5}
    assert remarks.as_dict() == {}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_name_comes_back_or_is_told(tmp_path: Path, kind: str) -> None:
    rows: list[Atoms] = []
    for name in NAMES:
        rows.append(molecule("H2O", info={name: "a word", "after": 5}))
        rows[-1].info.pop("screen_error", None)
        rows[-1].calc = SinglePointCalculator(rows[-1], energy=-1.0, forces=np.zeros((3, 3)))
    read, remarks = written(rows, tmp_path / f"out.{kind}")
    for row, back in zip(rows, read, strict=True):
        check(row, back, remarks, kind == "extxyz")
        assert list(back.info.values()).count("a word") == list(row.info.values()).count("a word")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("given", "want"),
    [
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),
        (datetime.time(1, 2), "01:02:00"),
        (datetime.timedelta(days=1), "1 day, 0:00:00"),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=5), str(uuid.UUID(int=5))),
        (b"\xff\n", "ff0a"),
        ({3, 1, 2}, [1, 2, 3]),
        (10**5000, hex(10**5000)),
        (np.array([(1, "a")], [("n", "i4"), ("s", "U3")]), {"n": [1], "s": ["a"]}),
        (np.ma.MaskedArray([1, 2], [True, False]), [None, 2]),
        (Atoms, "<class 'ase.atoms.Atoms'>"),
        (object(), "<object object>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_other_types_are_told(tmp_path: Path, kind: str, given: object, want: object) -> None:
    row = molecule("H2O", info={"v": given})
    (back,), remarks = written([row], tmp_path / f"out.{kind}")
    assert same(want, back.info["v"])
    (told,) = remarks.as_dict().values()
    assert "'v' (" in told[1]


@pytest.mark.parametrize("kind", FORMATS)
def test_field_1_an_empty_text_keeps_the_energy(bundle: Path, tmp_path: Path, kind: str, energy: float) -> None:
    rows = screened(bundle, table(tmp_path, name=""), kind, energy)
    assert rows[0].info == {"name": ""}
    given = tmp_path / "in.extxyz"
    given.write_text(f'3\nProperties=species:S:1:pos:R:3 name=""\n{body()}')
    (row,) = screened(bundle, given, kind, energy)
    assert len(row.info["name"]) == 0  # ASE reads an empty array


def body() -> str:
    lines = [f"{symbol} {x:.8f} {y:.8f} {z:.8f}\n" for symbol, (x, y, z) in zip("OHH", WATER.positions, strict=True)]
    return "".join(lines)


@pytest.mark.parametrize("kind", FORMATS)
def test_field_2_text_of_two_lines_comes_back(bundle: Path, tmp_path: Path, kind: str, energy: float) -> None:
    given = tmp_path / "in.db"
    with ase.db.connect(given, append=False) as database:
        for note in ("first\nsecond", f"any{BREAKS}of them", "plain"):
            database.write(WATER, data={"note": note})
    rows = screened(bundle, given, kind, energy)
    assert [row.info["note"] for row in rows] == ["first\nsecond", f"any{BREAKS}of them", "plain"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("value", "want"),
    [
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2020, 1, 1), "2020-01-01T00:00:00"),
        (datetime.time(1, 2, 3), "01:02:03"),
        (datetime.timedelta(seconds=5), "0:00:05"),
        (decimal.Decimal("1.5"), "1.5"),
        (b"\xff\xfe", "fffe"),
    ],
)
def test_field_8_dates_and_their_like_are_kept_as_text(
    bundle: Path, tmp_path: Path, kind: str, value: object, want: str, energy: float
) -> None:
    rows = screened(bundle, table(tmp_path, day=value), kind, energy)
    assert rows[0].info == {"day": want}
    told = json.loads((tmp_path / f"out.{kind}.screening.json").read_text())["remarks"]
    assert [example for _, example in told.values()] == [f"row 0: 'day' ({type(value).__name__})"]


@pytest.mark.parametrize("kind", FORMATS)
def test_f1_a_text_cannot_forge_a_frame(bundle: Path, tmp_path: Path, kind: str, energy: float) -> None:
    rows = screened(bundle, table(tmp_path, note=FORGED), kind, energy)
    assert [row.info for row in rows] == [{"note": FORGED}, {}]
    rows = screened(bundle, table(tmp_path, info=json.dumps({FORGED: FORGED})), kind, energy)
    assert FORGED in rows[0].info.values()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("number", [119, 200, 2**31, 2**40, 0, -1])
def test_f2_f19_an_atomic_number_of_no_element_is_kept_truthfully(
    bundle: Path, tmp_path: Path, kind: str, number: int, energy: float
) -> None:
    rows = screened(bundle, table(tmp_path, numbers=[number, 1, 1]), kind, energy, failing=(0,))
    if kind == "parquet" and number < 2**31:
        assert rows[0].numbers.tolist() == [number, 1, 1]
    else:
        assert rows[0].numbers.tolist() == [0, 1, 1]
        assert same([number, 1, 1], rows[0].info.get("input_numbers", [0, 1, 1]))
        assert ("input_numbers" in rows[0].info) == (number != 0)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "columns",
    [
        {"info": '{"Lattice": "x"}'},
        {"Lattice": "x"},
        {"info": '{"1": 2}'},
        {"info": '{"": 1}'},
        {"info": '{"a": 1' + "0" * 400 + "}"},
        {"info": '{"a": 1' + "0" * 5000 + "}"},
        {"info": "[" * 100_000},
        {"info": "no JSON"},
        {"info": '{"a": {"__ndarray__": [[9999999999], "float64", [0]]}}'},
        {"info": '{"a": {"__ase_objtype__": "bandpath"}}'},
        {"info": '{"a": "\\ud800"}'},
        {"arrays": '{"numbers": {"__ndarray__": [[3], "int32", [8, 1, 1]]}}'},
        {"arrays": '{"positions": {"__ndarray__": [[3, 3], "float32", [0, 0, 0, 1, 1, 1, 2, 2, 2]]}}'},
        {"arrays": '{"a": [1, 2], "b": [["x y"], [""], ["\\n"]], "forces0": [1, 2, 3], "Z": [1, 2, 3]}'},
        {"arrays": '{"wide": [[[1, 2]], [[3, 4]], [[5, 6]]], "large": [9007199254740993, 0, 0]}'},
        {"energy": -999.0},
        {"dipole": "a b"},
        {"id": "\n"},
    ],
    ids=lambda columns: str(columns)[:40],
)
def test_f2_a_row_that_no_format_likes_keeps_its_result(
    bundle: Path, tmp_path: Path, kind: str, columns: dict[str, Any], energy: float
) -> None:
    screened(bundle, table(tmp_path, **columns), kind, energy)


@pytest.mark.parametrize("kind", FORMATS)
def test_field_31_columns_of_atoms_are_kept(bundle: Path, tmp_path: Path, kind: str, energy: float) -> None:
    atoms = WATER.copy()
    columns = {
        "force": np.arange(9.0).reshape(3, 3),
        "label": np.array(["O1", "H1", "H2"]),
        "spaced": np.array(["a b", "", "c"]),
        "tensor": np.arange(27.0).reshape(3, 3, 3),
        "large": np.array([2**40, 2**53 + 1, -1]),
        "flag": np.array([True, False, True]),
        "charges": np.array([0.5, -0.25, -0.25]),
    }
    atoms.arrays |= columns
    given = tmp_path / "in.parquet"
    arrays = json.dumps({name: value.tolist() for name, value in columns.items()})
    row = {"numbers": [WATER.numbers.tolist()], "positions": [WATER.positions.tolist()], "arrays": [arrays]}
    pyarrow.parquet.write_table(pyarrow.table(row), given)
    (back,) = screened(bundle, given, kind, energy)
    for name, value in columns.items():
        names = (name, f"beside {name}", f"input_{name}")
        found = [held[key] for held in (back.arrays, back.info) for key in names if key in held]
        assert any(same(value, one) for one in found), name
    if kind == "db":  # and from there into whatever comes next
        (again,) = screened(bundle, tmp_path / "out.db", "parquet", energy)
        assert all(same(value, again.info[f"beside {name}"]) for name, value in columns.items())


def test_a_label_that_a_screening_does_not_give_is_kept(bundle: Path, tmp_path: Path, energy: float) -> None:
    atoms = WATER.copy()
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, dipole=np.ones(3), charges=np.array([1.0, 2.0, 3.0]))
    ase.io.write(tmp_path / "in.extxyz", atoms)
    (row,) = screened(bundle, tmp_path / "in.extxyz", "extxyz", energy)
    assert row.info["input_dipole"].tolist() == [1, 1, 1]
    assert row.arrays["input_charges"].tolist() == [1, 2, 3]
    assert "dipole" not in row.calc.results


def frames(folder: Path, *comments: str, lines: str | None = None, encoding: str = "utf-8") -> Path:
    """A file of waters with these comments."""
    text = "".join(f"3\n{comment}\n{body() if lines is None else lines}" for comment in comments)
    (folder / "in.extxyz").write_bytes(text.encode(encoding))
    return folder / "in.extxyz"


@pytest.mark.parametrize(
    "odd",
    [
        'stress="six numbers"',
        'virial="1 2 3"',
        'energy="x"',
        'dipole="a b c"',
        'x="_JSON {"',
        'x="_JSON [[1],[1,2]]"',
        'magmom="many words"',
    ],
)
def test_field_19_an_odd_label_does_not_cost_the_structure(
    bundle: Path, tmp_path: Path, odd: str, energy: float
) -> None:
    given = frames(tmp_path, f"{odd} note=kept", "note=other")
    rows = screened(bundle, given, "extxyz", energy)
    assert [row.info["note"] for row in rows] == ["kept", "other"]
    remarks = json.loads((tmp_path / "out.extxyz.screening.json").read_text())["remarks"]
    assert remarks


def test_a_person_is_told_what_was_kept_otherwise(bundle: Path, tmp_path: Path) -> None:
    said = told(bundle, table(tmp_path, day=datetime.date(2024, 1, 2)))
    assert "note: kept as text, or as a plain list: 1, as in row 0: 'day' (date)" in said


def told(bundle: Path, given: Path) -> str:
    """What the command prints of a screening."""
    command = [
        sys.executable,
        "-m",
        "painn_deploy.scripts.cli",
        "screen",
        bundle,
        given,
        "-o",
        given.with_name("told.db"),
    ]
    done = subprocess.run([*map(str, command), "--overwrite"], capture_output=True, text=True, check=True)
    return done.stderr


@pytest.mark.parametrize("value", ["abc", "1", ""])
def test_field_19_a_column_of_odd_labels_does_not_cost_the_structure(
    bundle: Path, tmp_path: Path, value: str, energy: float
) -> None:
    lines = "".join(f"{line} {value}\n" for line in body().splitlines())
    given = frames(tmp_path, "Properties=species:S:1:pos:R:3:forces:R:3 id=1", lines=lines)
    (row,) = screened(bundle, given, "extxyz", energy)
    assert row.info["id"] == 1


@pytest.mark.parametrize(
    ("symbol", "words"),
    [
        ("D", "deuterium: write H"),
        ("T", "tritium"),
        ("O1", "a label: write O"),
        ("8", "write the symbol"),
        ("Qq", "'Qq'"),
    ],
)
def test_field_21_an_unknown_element_is_named(bundle: Path, tmp_path: Path, symbol: str, words: str) -> None:
    given = frames(tmp_path, "id=a", lines=body().replace("O ", f"{symbol} "))
    ((_, reason),) = screen(bundle, given, tmp_path / "out.extxyz").failures
    assert f"atom 0 has the unknown element '{symbol}'" in reason
    assert words in reason
    row = ase.io.read(tmp_path / "out.extxyz")
    assert row.info == {"id": "a", "screen_error": reason}


@pytest.mark.parametrize("kind", FORMATS)
def test_field_29_a_latin_1_byte_does_not_cost_the_row(bundle: Path, tmp_path: Path, kind: str, energy: float) -> None:
    given = frames(tmp_path, "name=Müller", encoding="latin-1")
    (row,) = screened(bundle, given, kind, energy)
    assert row.info == {"name": "Müller"}
    assert LATIN in json.loads((tmp_path / f"out.{kind}.screening.json").read_text())["remarks"]


@pytest.mark.parametrize(
    "comment",
    [
        "# CELL(abcABC):   10.0 10.0 10.0 90.0 90.0 90.0  Step: 0  Bead: 0 positions{angstrom} cell{angstrom}",
        "# CELL(H): 10 0 0 0 10 0 0 0 10 cell{atomic_unit} positions{atomic_unit}",
        "# CELL{GENH}: 10 0 0 0 10 0 0 0 10",
        "# cell[abcABC]: 10 10 10 90 90 90",
        'lattice="10 0 0 0 10 0 0 0 10" pbc="T T T"',
        'LATTICE="10 0 0 0 10 0 0 0 10"',
        'note="the Lattice" lattice="10 0 0 0 10 0 0 0 10"',
        'a=1,Lattice="10 0 0 0 10 0 0 0 10"',
        'n="x"Lattice="10 0 0 0 10 0 0 0 10"',
        "Lattice: 10 0 0 0 10 0 0 0 10",
        "source=Lattice # CELL(abcABC): 10 10 10 90 90 90",
    ],
)
def test_field_5_a_cell_that_ase_does_not_read_is_an_error(bundle: Path, tmp_path: Path, comment: str) -> None:
    summary = screen(bundle, frames(tmp_path, comment, "id=plain"), tmp_path / "out.extxyz")
    ((index, reason),) = summary.failures
    assert index == 0
    assert "would be computed as an isolated molecule" in reason
    assert "Lattice=" in reason


@pytest.mark.parametrize(
    "comment",
    [
        'superlattice="2 2 2"',
        'note="the lattice = fcc"',
        "lattice=fcc",
        'note="Lattice planes: 3 of 5"',
        'Lattice ="0 0 0 0 0 0 0 0 0" pbc="F F F"',
        'Lattice_type="2 2 2"',
    ],
)
def test_a_word_about_a_lattice_is_no_cell(bundle: Path, tmp_path: Path, comment: str, energy: float) -> None:
    screened(bundle, frames(tmp_path, comment), "extxyz", energy)


def test_field_5_what_may_be_a_cell_is_told(bundle: Path, tmp_path: Path, energy: float) -> None:
    given = frames(tmp_path, 'cell="10 10 10"')
    screened(bundle, given, "extxyz", energy)
    assert CELL_UNREAD in json.loads((tmp_path / "out.extxyz.screening.json").read_text())["remarks"]


@pytest.mark.parametrize("kind", FORMATS)
def test_f2_constraints_out_of_range_are_left_out_and_told(
    bundle: Path, tmp_path: Path, kind: str, energy: float
) -> None:
    given = tmp_path / "in.db"
    atoms = WATER.copy()
    atoms.set_constraint([FixAtoms([0, 1]), FixAtoms([1])])
    with ase.db.connect(given, append=False) as database:
        database.write(atoms)
    with sqlite3.connect(given) as connection:
        (text,) = connection.execute("SELECT constraints FROM systems").fetchone()
        wrong = json.loads(text)
        wrong[0]["kwargs"]["indices"] = [0, 99]
        connection.execute("UPDATE systems SET constraints = ?", (json.dumps(wrong),))
    connection.close()
    (row,) = screened(bundle, given, kind, energy)
    assert CONSTRAINT in json.loads((tmp_path / f"out.{kind}.screening.json").read_text())["remarks"]
    if kind != "parquet":
        (kept,) = row.constraints
        assert kept.index.tolist() == [1]


def test_f2_labels_of_a_database_that_cannot_be_read_do_not_cost_the_structure(
    bundle: Path, tmp_path: Path, energy: float
) -> None:
    given = tmp_path / "in.db"
    with ase.db.connect(given, append=False) as database:
        for _ in range(4):
            database.write(WATER, data={"a": 1})
    with sqlite3.connect(given) as connection:
        connection.execute("UPDATE systems SET forces = x'00' WHERE id = 1")
        connection.execute("UPDATE systems SET data = x'00' WHERE id = 2")
        connection.execute("UPDATE systems SET numbers = x'00' WHERE id = 3")
        connection.execute("UPDATE systems SET constraints = 'x' WHERE id = 4")
    connection.close()
    screened(bundle, given, "parquet", energy, failing=(2,))


def rows_in(path: Path) -> list[Any]:
    source = open_source(path)
    chunks = source.scan(100).chunks
    return [row for chunk in chunks for row in source.read(chunk)]


def test_f2_a_count_of_5000_digits_is_no_frame(tmp_path: Path) -> None:
    (tmp_path / "in.extxyz").write_text("9" * 5000 + "\n\nH 0 0 0\n1\n\nH 0 0 0\n" + "1000000000\n\nH 0 0 0\n")
    one, two, three = rows_in(tmp_path / "in.extxyz")
    assert "atoms are announced" in str(one)
    assert isinstance(two, Atoms)
    assert "1000000000" in str(three)


def test_f19_lines_without_bounds_cost_their_row_alone(tmp_path: Path) -> None:
    with (tmp_path / "in.extxyz").open("w") as file:
        file.write(f'1\nnote="{"x" * (50 << 20)}"\nH 0 0 0\n1\n\nH 0 0 0{" " * (1 << 20)}\n1\nid=last\nH 0 0 0\n')
        file.write("y" * (5 << 20))
    one, two, three, four = rows_in(tmp_path / "in.extxyz")
    assert "comment is longer" in str(one)
    assert "atom 0 is longer" in str(two)
    assert isinstance(three, Atoms)
    assert "a number of atoms is expected" in str(four)


def test_ids_are_seen_where_they_stand(tmp_path: Path) -> None:
    given = frames(tmp_path, 'id="_JSON \\"1\\"" note="a id=5 b"', 'id="_JSON \\"2\\"" note="c id=5 d"')
    assert open_source(given).scan(10).rows == 2


def test_numbers_that_are_no_whole_numbers_are_no_structure(tmp_path: Path) -> None:
    given = tmp_path / "in.parquet"
    rows = {"numbers": [[8.5, 1.0, 1.0], [8.0, 1.0, 1.0]], "positions": [WATER.positions.tolist()] * 2}
    pyarrow.parquet.write_table(pyarrow.table(rows), given)
    one, two = rows_in(given)
    assert "not a list of whole numbers" in str(one)
    assert two.numbers.tolist() == [8, 1, 1]


def test_what_nobody_thought_of_costs_no_row_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were an odd value to slip through, the row would lose its notes, with a word, and not its result."""
    from painn_deploy.runtime.screening import extxyz_rows

    monkeypatch.setattr(extxyz_rows, "_for_comment", lambda name, value, *rest: value)
    row = molecule("H2O", info={"note": FORGED, "id": "a"})
    row.calc = SinglePointCalculator(row, energy=-1.0, forces=np.ones((3, 3)))
    (back,), remarks = written([row], tmp_path / "out.extxyz")
    assert back.get_potential_energy() == -1.0
    assert back.info == {"id": "a"}
    assert any(LEFT_OUT in kind for kind in remarks.as_dict())


def test_remarks_count_and_keep_the_first_example() -> None:
    remarks = Remarks()
    remarks.add("k", 3, "a\nb")
    remarks.add("k", 4, "c")
    remarks.merge({"k": (2, "later"), "other": (1, "x")})
    assert remarks.as_dict() == {"k": (4, "row 3: a\\nb"), "other": (1, "x")}
