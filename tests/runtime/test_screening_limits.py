"""Inputs that announce more than they hold cost their row or file an error, and no memory; labels are kept or told."""

import json
import time
import tracemalloc
from pathlib import Path

import ase.db
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.screening import parquet_source
from painn_deploy.runtime.screening import run as screening
from painn_deploy.runtime.screening.bulk import screener
from painn_deploy.runtime.screening.chunks import Chunk
from painn_deploy.runtime.screening.remarks import NOT_NAMED, RENAMED, REPLACED, Remarks
from painn_deploy.runtime.screening.sources import open_source

from .hostile_rows import read_back

FORMATS = ("extxyz", "db", "parquet")
BODY = ("O 0 0 0.12", "H 0 0.76 -0.48", "H 0 -0.76 -0.48")


def frames(folder: Path, *comments: str, ends: str = "", name: str = "in.extxyz") -> Path:
    """A file of waters with these comments, and this at the end of each line of an atom."""
    body = "".join(f"{line}{ends}\n" for line in BODY)
    (folder / name).write_text("".join(f"3\n{comment}\n{body}" for comment in comments))
    return folder / name


def rows_in(path: Path, remarks: Remarks | None = None) -> list[object]:
    source = open_source(path)
    return [row for chunk in source.scan(100).chunks for row in source.read(chunk, remarks)]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("species:S:20000000:pos:R:3", "names 20000003 columns, and the line of atom 0 has 4"),
        ("species:S:1:pos:R:3:a:R:-5", "'-5', and no number from 1"),
        ("species:S:1:pos:R:3:a:R:0", "'0', and no number from 1"),
        ("species:S:1:pos:R:3:a:R:x", "'x', and no number from 1"),
        ("species:S:1:pos:R:3:a:R:" + "9" * 5000, "and no number from 1"),
        (f"species:S:1:pos:R:3:{'n' * 300}:R:1", "300 letters"),
    ],
)
def test_columns_that_no_line_has_cost_their_row(tmp_path: Path, columns: str, words: str) -> None:
    begun = time.process_time()
    one, two = rows_in(frames(tmp_path, f"Properties={columns}", "id=next"))
    assert words in str(one)
    assert isinstance(two, Atoms)
    assert time.process_time() - begun < 5


def test_a_label_of_20_million_columns_does_not_cost_the_structure(tmp_path: Path) -> None:
    begun, remarks = time.process_time(), Remarks()
    (row,) = rows_in(frames(tmp_path, "Properties=species:S:1:pos:R:3:a:R:20000000 id=kept"), remarks)
    assert isinstance(row, Atoms)
    assert row.info == {"id": "kept"}
    ((_, example),) = remarks.as_dict().values()
    assert "20000004 columns" in example
    assert time.process_time() - begun < 5


def test_columns_of_no_atoms_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "in.extxyz").write_text("0\nProperties=species:S:1:pos:R:3:a:R:20000000\n")
    (row,) = rows_in(tmp_path / "in.extxyz")
    assert "20000004 columns of no atoms" in str(row)


@pytest.mark.parametrize("comment", ["", "water", "Properties=species:S:1:pos:R:3"])
def test_a_column_that_nothing_names_is_told(tmp_path: Path, comment: str) -> None:
    remarks = Remarks()
    (row,) = rows_in(frames(tmp_path, comment, ends=" 0.4", name="in.xyz"), remarks)
    assert isinstance(row, Atoms)
    assert remarks.as_dict() == {NOT_NAMED: (1, "row 0: 1 after those that Properties names")}


def test_texts_and_vectors_are_columns_as_before(tmp_path: Path) -> None:
    remarks = Remarks()
    given = frames(tmp_path, "Properties=species:S:1:pos:R:3:label:S:2", ends=' "a b"')
    with given.open("a") as file:
        file.write("1\n\nH 0 0 0\nVEC1 9 0 0\nVEC2 0 9 0\nVEC3 0 0 9\n")
    one, two = rows_in(given, remarks)
    assert isinstance(one, Atoms)
    assert one.arrays["label"].tolist() == [['"a', 'b"']] * 3
    assert isinstance(two, Atoms)
    assert two.cell.lengths().tolist() == [9, 9, 9]
    assert remarks.as_dict() == {}


def lists(lengths: list[int]) -> pyarrow.Array:
    """Lists of ones of these lengths."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(np.ones(ends[-1], np.int8)))


def table(path: Path, **columns: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")
    return path


def test_a_row_of_more_atoms_than_a_row_may_have_is_refused_before_it_is_read(tmp_path: Path) -> None:
    given = table(tmp_path / "in.parquet", numbers=lists([10_000_001]), positions=[[0.0, 0.0, 0.0]])
    assert given.stat().st_size < 2000
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match="Row group 0 of .* has 10000001 values of 'numbers' in 1 rows"):
            open_source(given)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_row_of_too_many_atoms_among_others_costs_itself_alone(tmp_path: Path) -> None:
    given = table(tmp_path / "in.parquet", numbers=lists([1, 10_000_001, 1]), positions=[[0.0, 0.0, 0.0]] * 3)
    tracemalloc.start()
    try:
        one, two, three = rows_in(given)
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()
    assert isinstance(one, Atoms)
    assert "it has 10000001 atoms, and 10000000 are the most" in str(two)
    assert isinstance(three, Atoms)


@pytest.mark.parametrize("column", ["note", "id"])
def test_a_long_text_a_hundred_times_is_not_in_memory_a_hundred_times(tmp_path: Path, column: str) -> None:
    text = {column: ["x" * 3_000_000] * 200}
    given = table(tmp_path / "in.parquet", numbers=[[1]] * 200, positions=[[0.0, 0.0, 0.0]] * 200, **text)
    source = open_source(given)
    tracemalloc.start()
    try:
        if column == "id":
            with pytest.raises(DatasetError, match="have the same id"):
                source.scan(4)
        rows = source.read(Chunk(0, 0, 4))
        assert tracemalloc.get_traced_memory()[1] < 200 << 20  # 200 texts are 600 MB
    finally:
        tracemalloc.stop()
    assert len(rows) == 4


def test_no_memory_for_rows_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = table(tmp_path / "in.parquet", numbers=[[1]] * 9, positions=[[0.0, 0.0, 0.0]] * 9)
    source = open_source(given)

    def full(column: object) -> list[object]:
        raise pyarrow.lib.ArrowMemoryError("malloc of size 1 failed")

    with monkeypatch.context() as patched:
        patched.setattr(parquet_source, "values_of", full)
        with pytest.raises(DatasetError, match="no memory for rows 2 to 5 of .*smaller row groups"):
            source.read(Chunk(0, 2, 4))
    assert len(source.read(Chunk(0, 2, 4))) == 4


def test_no_memory_for_a_chunk_says_which(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(screener, "evaluated", full)
    with pytest.raises(DatasetError, match="no memory for rows 0 to 1 of .*smaller --batch-size"):
        screening.screen(bundle, frames(tmp_path, "", "", ""), tmp_path / "out.extxyz", chunk_rows=2)


def screened(bundle: Path, given: Path, kind: str) -> tuple[list[Atoms], dict[str, tuple[int, str]]]:
    """Rows of an output, columns of atoms among their notes; and remarks."""
    output = given.with_name(f"out.{kind}")
    remarks = screening.screen(bundle, given, output, overwrite=True).remarks
    rows = read_back(output)
    for row in rows:
        row.info |= {name.removeprefix("beside "): value for name, value in row.info.items()}
        row.info |= {name: array for name, array in row.arrays.items() if name.startswith("input_")}
    return rows, remarks


def labelled(folder: Path, kind: str) -> Path:
    """Water, and gold that no student knows, each with labels."""
    rows, labels = [molecule("H2O"), molecule("H2O")], {"energy": -5.0, "free_energy": -6.0}
    rows[1].numbers[0] = 79
    arrays = {"forces": np.ones((3, 3)), "energies": np.arange(3.0)}
    for row in rows:
        row.calc = SinglePointCalculator(row, **labels, **arrays)
    given = folder / f"in.{kind}"
    if kind == "db":
        with ase.db.connect(given) as database:
            for row in rows:
                database.write(row)
    elif kind == "parquet":
        columns = [
            {"numbers": row.numbers.tolist(), "positions": row.positions.tolist(), **labels}
            | {name: array.tolist() for name, array in arrays.items()}
            for row in rows
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(columns), given)
    else:
        body = "".join(f"%s {y} 0 0 {n} 1 1 1\n" for n, y in enumerate((0, 0.9, -0.9)))
        columns = "Properties=species:S:1:pos:R:3:energies:R:1:forces:R:3 energy=-5 free_energy=-6"
        given.write_text("".join(f"3\n{columns}\n{body % (first, 'H', 'H')}" for first in ("O", "Au")))
    return given


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_labels_that_have_no_result_in_their_place_are_kept(
    bundle: Path, tmp_path: Path, source: str, kind: str
) -> None:
    (good, bad), remarks = screened(bundle, labelled(tmp_path, source), kind)
    for row in (good, bad):
        assert row.info["input_free_energy"] == -6.0
        if source != "db":  # which has no place for them
            assert np.ravel(row.info["input_energies"]).tolist() == [0, 1, 2]
    assert good.get_potential_energy() != -5.0
    assert "input_energy" not in good.info
    assert "input_forces" not in good.info
    assert "screen_error" in bad.info
    assert bad.info["input_energy"] == -5.0
    assert np.asarray(bad.info["input_forces"]).tolist() == np.ones((3, 3)).tolist()
    assert remarks[REPLACED] == (1, "row 0: energy, forces")
    assert remarks[RENAMED][0] == (4 if source == "db" else 6)


@pytest.mark.parametrize("kind", FORMATS)
def test_names_of_a_screening_in_the_input_are_kept_under_others(bundle: Path, tmp_path: Path, kind: str) -> None:
    water = molecule("H2O")
    names = {"index": ["a", "b"], "screen_error": ["of mine", None], "relax_steps": [3, 4], "energy": ["high", "low"]}
    given = table(
        tmp_path / "in.parquet", numbers=[water.numbers.tolist()] * 2, positions=[water.positions.tolist()] * 2, **names
    )
    (one, two), remarks = screened(bundle, given, kind)
    want = {"input_index": "a", "input_screen_error": "of mine", "input_relax_steps": 3, "input_energy": "high"}
    assert one.info == want
    assert two.info["input_index"] == "b"
    assert one.calc is not None
    assert remarks[RENAMED][0] == 7
    again, remarks = screened(bundle, (tmp_path / f"out.{kind}").rename(tmp_path / f"again.{kind}"), kind)
    assert again[0].info == want  # its own index and results are those of the row
    assert remarks == {REPLACED: (2, "row 0: energy, forces")}


@pytest.mark.parametrize("comment", ["screen_error=old relax_steps=5", "energy=high"])
def test_names_of_a_screening_in_a_comment_are_kept_under_others(bundle: Path, tmp_path: Path, comment: str) -> None:
    (row,), remarks = screened(bundle, frames(tmp_path, comment), "extxyz")
    for item in comment.split():
        name, value = item.split("=")
        assert str(row.info[f"input_{name}"]) == value
        assert name not in row.info
    assert remarks[RENAMED][0] == len(comment.split())


def test_a_label_that_cannot_be_read_is_kept_as_text(bundle: Path, tmp_path: Path) -> None:
    (row,), remarks = screened(bundle, frames(tmp_path, 'dipole="a b c" energy=-5 note=kept'), "extxyz")
    assert row.info == {"input_dipole": "a b c", "note": "kept"} or np.size(row.info["input_dipole"]) == 3
    assert remarks[REPLACED] == (1, "row 0: energy")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pair_and_data_of_one_name_are_both_kept(bundle: Path, tmp_path: Path, kind: str) -> None:
    with ase.db.connect(tmp_path / "in.db") as database:
        database.write(molecule("H2O"), smiles="O", same=1, data={"smiles": "in data", "same": 1})
    (row,), remarks = screened(bundle, tmp_path / "in.db", kind)
    assert row.info == {"smiles": "O", "same": 1, "input_smiles": "in data"}
    assert remarks == {RENAMED: (1, "row 0: one of two 'smiles' is 'input_smiles'")}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_and_info_of_one_name_are_both_kept(bundle: Path, tmp_path: Path, kind: str) -> None:
    info = json.dumps({"note": "in info"})
    given = table(tmp_path / "in.parquet", numbers=[[1]], positions=[[0.0, 0.0, 0.0]], note=["column"], info=[info])
    (row,), _ = screened(bundle, given, kind)
    assert row.info["note"] == "column"
    assert row.info["input_note"] == "in info"


def test_an_id_that_is_not_a_number_is_none(bundle: Path, tmp_path: Path) -> None:
    ids = [float("nan"), float("nan"), 1.5]
    given = table(tmp_path / "in.parquet", numbers=[[1]] * 3, positions=[[0.0, 0.0, 0.0]] * 3, id=ids)
    rows, _ = screened(bundle, given, "parquet")
    assert [row.info.get("id") for row in rows] == [None, None, "1.5"]
    rows, _ = screened(bundle, frames(tmp_path, "id=nan", "id=nan"), "parquet")
    assert [row.info.get("id") for row in rows] == [None, None]
