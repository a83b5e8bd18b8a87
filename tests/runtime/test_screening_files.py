"""Files around a screening: compressed, cut short, trajectories, odd labels; locks, links, records that lie."""

import bz2
import errno
import fcntl
import gzip
import json
import lzma
import os
import sqlite3
import struct
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import ase.io.ulm as ulm
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedLine
from ase.io.trajectory import Trajectory

from painn_deploy.export.errors import DatasetError, OutputError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.screening.remarks import CONSTRAINT, ENDLESS, REPLACED, UNREPEATED, Remarks
from painn_deploy.runtime.screening.run import screen
from painn_deploy.runtime.screening.sources import open_source
from tests.scripts.test_cli import run

from .hostile_rows import read_back
from .test_screening import stop_after, structures, write
from .test_screening_parts import begun


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_and_screened(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    given = write(tmp_path / "in.extxyz", structures(4))
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(RuntimeWarning, match="cannot be locked"):
        assert screen(bundle, given, tmp_path / "out.extxyz").computed == 4


def test_an_input_that_is_touched_is_the_same_input(bundle: Path, tmp_path: Path) -> None:
    given, output = write(tmp_path / "in.extxyz", structures(20)), tmp_path / "out.extxyz"
    touches = iter(range(1, 100))

    def touch(done: int, total: int, computed: int) -> None:
        os.utime(given, ns=(0, next(touches)))

    assert screen(bundle, given, output, chunk_rows=4, progress=touch).computed == 20

    def change(done: int, total: int, computed: int) -> None:
        if computed == 8:
            os.utime(given, ns=(0, 1))
        if computed == 12:
            given.write_bytes(given.read_bytes().replace(b"m19", b"m99"))

    with pytest.raises(DatasetError, match="changed while it was screened"):
        screen(bundle, given, output, chunk_rows=4, progress=change, overwrite=True)


@pytest.mark.parametrize("kind", ["extxyz", "db", "parquet"])
def test_an_output_that_is_a_link_stays_one(bundle: Path, tmp_path: Path, kind: str) -> None:
    given, link = write(tmp_path / "in.extxyz", structures(4)), tmp_path / f"out.{kind}"
    (tmp_path / "store").mkdir()
    target = tmp_path / "store" / "ab12"
    link.symlink_to(target)
    assert screen(bundle, given, link).computed == 4
    assert link.is_symlink()
    assert target.stat().st_size > 0
    assert screen(bundle, given, link, resume=True).computed == 0
    with pytest.raises(OutputError, match="exists"):
        screen(bundle, given, link)


def test_an_output_that_is_a_link_to_itself_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out.extxyz").symlink_to(tmp_path / "out.extxyz")
    with pytest.raises(OutputError, match=r"link that leads nowhere|cannot be written"):
        screen(bundle, write(tmp_path / "in.extxyz", structures(2)), tmp_path / "out.extxyz", overwrite=True)


@pytest.mark.parametrize(
    "values", [{"failures": [[9, "a lie"]]}, {"remarks": {"a lie": [1, "x"]}}, {"record_sha256": 0}]
)
def test_f6_a_record_that_was_altered_is_computed_again(
    bundle: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    given, output, whole = begun(bundle, tmp_path)
    record = tmp_path / "out.extxyz.parts" / "part-00000002.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | values))
    summary = screen(bundle, given, output, resume=True)
    assert summary.computed == 12
    assert summary.failures == []
    assert "a lie" not in summary.remarks
    assert output.read_bytes() == whole.read_bytes()


def test_f12_a_folder_in_place_of_an_attempt_is_named(bundle: Path, tmp_path: Path) -> None:
    given, output, _ = begun(bundle, tmp_path)
    (tmp_path / "out.extxyz.parts" / "attempts-0").mkdir()
    with pytest.raises(OutputError, match="attempts-0 is a folder; remove it"):
        screen(bundle, given, output, resume=True)


def test_a_database_that_is_no_longer_read_is_closed_whichever_thread_drops_it(tmp_path: Path) -> None:
    given = tmp_path / "in.db"
    ase.io.write(given, [Atoms("H")])
    source = open_source(given)
    (chunk,) = source.scan(10).chunks
    assert len(source.read(chunk)) == 1
    connection = source._database.connection
    last = [source]
    del source
    thread = threading.Thread(target=last.clear)
    thread.start()
    thread.join()
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("column", ["positions", "numbers"])
def test_f2_a_row_without_positions_is_not_at_the_origin(bundle: Path, tmp_path: Path, column: str) -> None:
    given = tmp_path / "in.db"
    with ase.db.connect(given) as database:
        for _ in range(3):
            database.write(Atoms("H2", [[0, 0, 0], [0, 0, 0.8]]))
    with sqlite3.connect(given) as connection:
        connection.execute(f"UPDATE systems SET {column} = NULL WHERE id = 2")  # noqa: S608  our own
    connection.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((index, reason),) = screen(bundle, given, tmp_path / "out.extxyz").failures
    assert index == 1
    assert "id=2" in reason


def compressed(path: Path, content: bytes) -> Path:
    path.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[path.suffix](content))
    return path


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz"])
def test_field_18_compressed_extended_xyz_is_read_and_written(bundle: Path, tmp_path: Path, packing: str) -> None:
    plain = write(tmp_path / "in.extxyz", structures(30))
    screen(bundle, plain, tmp_path / "whole.extxyz", chunk_rows=7)
    given, output = compressed(tmp_path / f"in.xyz{packing}", plain.read_bytes()), tmp_path / f"out.extxyz{packing}"
    assert screen(bundle, given, tmp_path / "out.extxyz", chunk_rows=7).computed == 30
    assert (tmp_path / "out.extxyz").read_bytes() == (tmp_path / "whole.extxyz").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        screen(bundle, given, output, chunk_rows=7, progress=stop_after(14))
    assert screen(bundle, given, output, resume=True).computed == 16
    screen(bundle, given, tmp_path / f"again.xyz{packing}", chunk_rows=7)
    assert output.read_bytes() == (tmp_path / f"again.xyz{packing}").read_bytes()
    opened = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[packing]
    with opened(output) as file:
        assert file.read() == (tmp_path / "whole.extxyz").read_bytes()
    assert screen(bundle, given, output, resume=True).computed == 0


def test_workers_read_a_compressed_file_forward(bundle: Path, tmp_path: Path) -> None:
    plain = write(tmp_path / "in.extxyz", structures(60))
    screen(bundle, plain, tmp_path / "whole.extxyz", chunk_rows=4)
    given = compressed(tmp_path / "in.extxyz.gz", plain.read_bytes())
    done = run("screen", bundle, given, "-o", tmp_path / "out.extxyz", "--batch-size", 4, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.extxyz").read_bytes() == (tmp_path / "whole.extxyz").read_bytes()


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz"])
def test_chunks_of_a_compressed_file_come_in_any_order(tmp_path: Path, packing: str) -> None:
    plain = write(tmp_path / "in.extxyz", structures(40))
    plain.write_text(plain.read_text().replace("\n10\n", "\n\n  \n10\n"))  # blank lines between frames
    source = open_source(compressed(tmp_path / f"in.extxyz{packing}", plain.read_bytes()))
    other = open_source(plain)
    chunks = source.scan(3).chunks
    assert chunks == other.scan(3).chunks
    for number in (0, 1, 5, 5, 4, 13, 2, 3):
        assert source.read(chunks[number]) == other.read(chunks[number])


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz"])
def test_of_a_compressed_file_that_was_cut_whole_rows_are_computed(bundle: Path, tmp_path: Path, packing: str) -> None:
    plain = write(tmp_path / "in.extxyz", structures(300))
    want = open_source(plain).read(open_source(plain).scan(300).chunks[0])
    given = compressed(tmp_path / f"in.xyz{packing}", plain.read_bytes())
    whole, parted = given.read_bytes(), compressed(tmp_path / f"a{packing}", plain.read_bytes() * 2).read_bytes()
    said: list[str] = []
    for cut in range(40, len(whole), len(whole) // 20):
        given.write_bytes(whole + parted[:cut] if packing == ".bz2" else whole[:cut])  # whose blocks are large
        source = open_source(given)
        try:
            rows = [row for chunk in source.scan(7).chunks for row in source.read(chunk)]
        except DatasetError as error:
            said.append(str(error))
            continue
        assert "was cut short here" in str(rows[-1])
        assert rows[:-1] == (want * 2)[: len(rows) - 1]
    assert all("holds no whole structure" in words for words in said)
    summary = screen(bundle, given, tmp_path / "out.extxyz")
    ((index, reason),) = summary.failures
    assert index == summary.rows - 1 > 100
    assert "fetch or make it again" in reason


def test_between_two_frames_a_cut_is_told_too(tmp_path: Path) -> None:
    frame = b"1\n\nH 0 0 0\n"
    given = compressed(tmp_path / "in.xyz.gz", frame * 2)
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    given.write_bytes(packer.compress(frame * 2) + packer.flush(zlib.Z_SYNC_FLUSH))
    source = open_source(given)
    one, two, three = source.read(source.scan(10).chunks[0])
    assert one == two
    assert "cut short" in str(three)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.xyz.gz", b"1\n\nH 0 0 0\n", "not compressed as its name says"),
        ("in.xyz.gz", b"\x1f\x8b\x08garbage" * 9, "cannot be unpacked"),
        (
            "in.xyz.gz",
            gzip.compress(b"1\n\nH 0 0 0\n", mtime=0) + b"trailing",
            "something else than compressed data follows",
        ),
        ("in.xyz.gz", b"", "holds no structures"),
        ("in.xyz.gz", gzip.compress(b"", mtime=0), "holds no structures"),
        ("in.xyz.gz", gzip.compress(b"1\n\nH 0 0 0\n", mtime=0)[:5], "holds no whole structure"),
        ("in.db.gz", gzip.compress(b"SQLite", mtime=0), "extended XYZ alone is taken: unpack it"),
        ("in.traj.xz", b"", "extended XYZ alone is taken: unpack it"),
        ("in.gz", b"", "ends in none of .extxyz, .xyz, .db, .parquet, .traj.*may be compressed"),
        ("in.aselmdb", b"", "ends in none of .extxyz, .xyz, .db, .parquet, .traj"),
        ("in.traj", b"", "is empty"),
        ("in.traj", b"no trajectory at all" * 9, "is no trajectory of ASE"),
        ("in.traj", b"PickleTrajectory\x80\x04", "is a pickle: it can run anything, and is never opened"),
        ("in.traj", b"- of Ulmgpaw            " + bytes(24), "another file of ASE's .'gpaw'."),
        ("in.traj", b"- of UlmASE-Trajectory  " + bytes(8), "was cut short: it has 32 bytes"),
        ("in.traj", b"- of UlmASE-Trajectory  " + struct.pack("<qqq", 3, 10**15, 48), "table of its 1000000000000000"),
        ("in.traj", b"- of UlmASE-Trajectory  " + struct.pack("<qqq", 3, -1, 48), "cut short or is damaged"),
        ("in.traj", b"- of UlmASE-Trajectory  " + struct.pack("<qqq", 3, 0, 48) + bytes(8), "holds no structures"),
    ],
)
def test_files_that_are_not_what_their_names_say(
    bundle: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        screen(bundle, tmp_path / name, tmp_path / "out.extxyz")
    assert not (tmp_path / "out.extxyz").exists()


def test_a_compressed_frame_that_is_none_costs_its_row(bundle: Path, tmp_path: Path) -> None:
    given = compressed(tmp_path / "in.xyz.gz", b"SQLite format 3\0\n" * 9 + b"1\n\nH 0 0 0\n")
    ((index, reason),) = screen(bundle, given, tmp_path / "out.extxyz").failures
    assert index == 0
    assert "a number of atoms is expected, not 'SQLite format 3" in reason


@pytest.mark.parametrize("name", ["out.traj", "out.db.gz", "out.parquet.xz", "out.gz"])
def test_an_output_that_cannot_be_written_is_named(bundle: Path, tmp_path: Path, name: str) -> None:
    given = write(tmp_path / "in.extxyz", structures(2))
    with pytest.raises(
        OutputError, match=f"{name} (ends in none of .extxyz|is compressed|cannot be written: .* Choose one of .extxyz)"
    ):
        screen(bundle, given, tmp_path / name)


def trajectory(path: Path, items: Sequence[Atoms]) -> list[Atoms]:
    """A trajectory with labels, notes, constraints and columns, and what ASE reads of it."""
    with Trajectory(path, "w") as file:
        for index, atoms in enumerate(items):
            atoms.info["vector"] = np.arange(3.0) + index
            atoms.set_momenta(np.full((len(atoms), 3), 0.5 + index))
            atoms.set_tags(range(len(atoms)))
            atoms.set_constraint([FixAtoms([0])])
            labels = {"energy": float(index), "forces": np.ones((len(atoms), 3)), "dipole": np.arange(3.0)}
            atoms.calc = SinglePointCalculator(atoms, **labels)
            file.write(atoms)
    return list(ase.io.read(path, ":"))


@pytest.mark.parametrize("kind", ["extxyz", "db", "parquet"])
def test_field_18_a_trajectory_is_read(bundle: Path, tmp_path: Path, kind: str) -> None:
    made = structures(50)  # of different elements: frames have headers of their own
    read = trajectory(tmp_path / "in.traj", made)
    for row, want in zip(rows_of(tmp_path / "in.traj"), read, strict=True):
        assert row == want
        assert row.arrays.keys() == want.arrays.keys()
        assert all(np.array_equal(row.arrays[name], column) for name, column in want.arrays.items())
        assert str(row.constraints) == str(want.constraints)
        assert str(row.info) == str(want.info)
        assert str(row.calc.results) == str(want.calc.results)
    summary = screen(bundle, tmp_path / "in.traj", tmp_path / f"out.{kind}", chunk_rows=8)
    assert (summary.rows, summary.failures) == (50, [])
    assert summary.remarks[REPLACED][0] == 50
    wanted = PaiNNCalculator(bundle).calculate_batch(made)
    for row, want, result in zip(read_back(tmp_path / f"out.{kind}"), read, wanted, strict=True):
        assert row.get_potential_energy() == pytest.approx(result["energy"], abs=1e-5 * len(row))
        assert row.info["id"] == want.info["id"]
        assert np.array_equal(row.info["vector"], want.info["vector"])
        assert np.array_equal(row.info["input_dipole"], [0, 1, 2])


def rows_of(path: Path) -> list[Any]:
    source = open_source(path)
    chunks = source.scan(7).chunks
    return [row for chunk in chunks for row in source.read(chunk)]


@pytest.mark.parametrize("alike", [True, False])
def test_of_a_trajectory_that_was_cut_whole_rows_are_computed(tmp_path: Path, alike: bool) -> None:
    given = tmp_path / "in.traj"
    made = structures(60)
    read = trajectory(given, [made[1].copy() for _ in made] if alike else made)
    content, kept, said = given.read_bytes(), set[int](), list[str]()
    for cut in [*range(0, len(content), len(content) // 60), len(content) - 1]:
        given.write_bytes(content[:cut])
        try:
            rows = rows_of(given)
        except DatasetError as error:
            said.append(str(error))
            continue
        whole = [isinstance(row, Atoms) for row in rows]
        assert len(rows) == 60
        assert not all(whole)
        assert all(row == want for row, want in zip(rows, read, strict=True) if isinstance(row, Atoms))
        assert all("the file" in str(row) for row in rows if not isinstance(row, Atoms))
        kept.add(sum(whole))
    assert max(kept) > 55
    assert all("cut short" in words or "is empty" in words for words in said)


def test_a_trajectory_that_was_altered_gives_rows_or_words(tmp_path: Path) -> None:
    given = tmp_path / "in.traj"
    trajectory(given, structures(8))
    content = given.read_bytes()
    for seed in range(300):
        altered, chance = bytearray(content), np.random.default_rng(seed)
        for _ in range(chance.integers(1, 9)):
            altered[chance.integers(0, len(altered))] = chance.integers(0, 256)
        given.write_bytes(altered)
        try:
            assert all(isinstance(row, Atoms | StructureError) for row in rows_of(given))
        except DatasetError:
            continue


@pytest.mark.parametrize("kind", [",", "(", "(" * 5000, "f8,f8", "1" * 9 + "f8", "S8", "O", "V8", ""])
def test_an_array_of_a_trajectory_is_of_numbers(tmp_path: Path, kind: str) -> None:
    """NumPy reads a grammar where a type is named, and raises what Python's parser raises of it."""
    given = tmp_path / "in.traj"
    positions = {"ndarray": [[1, 3], kind, 48]}
    with ulm.open(given, "w", tag="ASE-Trajectory") as file:
        file.write(version=1, pbc=[False] * 3, numbers=[1], cell=[[0.0] * 3] * 3)
        file.write("positions.", positions)
    (row,) = rows_of(given)
    assert isinstance(row, StructureError)
    assert "and not of numbers" in str(row)


def test_a_note_is_no_larger_than_it_is_written(tmp_path: Path) -> None:
    """A text of a thousand million letters would be made from thirty that name it."""
    given, named = tmp_path / "in.traj", {"__ndarray__": [[1], "S1000000000", ["a"]]}
    with ulm.open(given, "w", tag="ASE-Trajectory") as file:
        file.write(version=1, pbc=[False] * 3, numbers=[1], cell=[[0.0] * 3] * 3, positions=[[0.0] * 3])
        file.write(info={"note": named, "kept": {"__ndarray__": [[2], "int64", [1, 2]]}})
    tracemalloc.start()
    (row,) = rows_of(given)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row.info["note"] == named
    assert np.array_equal(row.info["kept"], [1, 2])
    assert most < 1 << 24


def test_a_constraint_that_gives_no_numbers_is_left_out(tmp_path: Path) -> None:
    """A line without a direction: a relaxation with it would move atoms nowhere that is."""
    water = molecule("H2O")
    water.set_constraint([FixAtoms([0]), FixedLine([1], [1, 0, 0])])
    water.constraints[1].dir[:] = 0
    remarks = Remarks()
    with Trajectory(tmp_path / "in.traj", "w") as file:
        file.write(water)
    source = open_source(tmp_path / "in.traj")
    (row,) = source.read(source.scan(1).chunks[0], remarks)
    assert isinstance(row, Atoms)
    assert [type(constraint) for constraint in row.constraints] == [FixAtoms]
    assert "FixedLine: it gives forces that are not finite" in remarks.as_dict()[CONSTRAINT][1]


def test_frames_of_dynamics_may_share_an_id(tmp_path: Path) -> None:
    made = structures(9)
    made[8].info["id"] = "m2"
    trajectory(tmp_path / "in.traj", made)
    assert [row.info["id"] for row in rows_of(tmp_path / "in.traj")][2::6] == ["m2", "m2"]


ODD: list[tuple[str, Any]] = [
    ("energy", "abc"),
    ("free_energy", "x y"),
    ("stress", "six numbers"),
    ("stress", [1.0] * 5),
    ("stress", [[1.0, 2.0], [3.0]]),
    ("virial", [1.0] * 4),
    ("dipole", "a b c"),
    ("forces", [1.0] * 4),
    ("forces", np.ones((2, 3))),
    ("charges", np.ones(7)),
    ("magmom", "many words"),
]


@pytest.mark.parametrize(("name", "value"), ODD)
def test_field_19_an_odd_label_in_a_trajectory_does_not_cost_the_structure(
    bundle: Path, tmp_path: Path, name: str, value: Any
) -> None:
    water, given = molecule("H2O"), tmp_path / "in.traj"
    with ulm.open(given, "w", tag="ASE-Trajectory") as file:
        file.write(version=1, pbc=[False] * 3, numbers=water.numbers, positions=water.positions, cell=[[0.0] * 3] * 3)
        child = file.child("calculator")
        child.write(name="unknown")
        child.write(name, value)
        file.write(info={"note": "kept"})
    summary = screen(bundle, given, tmp_path / "out.extxyz")
    assert summary.failures == []
    assert summary.remarks
    (row,) = read_back(tmp_path / "out.extxyz")
    assert row.info["note"] == "kept"
    (want,) = PaiNNCalculator(bundle).calculate_batch([water])
    assert row.get_potential_energy() == pytest.approx(want["energy"], abs=1e-5)


@pytest.mark.parametrize(("name", "value"), [("stress", "six numbers"), ("forces", b"\0" * 5), ("dipole", "a b c")])
def test_field_19_an_odd_label_in_a_database_costs_neither_structure_nor_notes(
    bundle: Path, tmp_path: Path, name: str, value: Any
) -> None:
    given = tmp_path / "in.db"
    with ase.db.connect(given) as database:
        database.write(molecule("H2O"), smiles="O", data={"note": "kept"})
    with sqlite3.connect(given) as connection:
        connection.execute(f"UPDATE systems SET {name} = ?", (value,))  # noqa: S608  our own
    connection.close()
    summary = screen(bundle, given, tmp_path / "out.extxyz")
    assert summary.failures == []
    assert summary.remarks
    (row,) = read_back(tmp_path / "out.extxyz")
    assert row.info == {"note": "kept", "smiles": "O"}


@pytest.mark.parametrize("empty", ['name=""', "name=''", "name={}", "name=[]", "name="])
def test_an_empty_value_does_not_take_the_cell(bundle: Path, tmp_path: Path, empty: str) -> None:
    """ASE's reader gives `name` the value `Lattice=...` here, and the crystal would be computed as a molecule."""
    given = tmp_path / "in.extxyz"
    lattice = 'Lattice="0 1.785 1.785 1.785 0 1.785 1.785 1.785 0"'
    given.write_text(f"2\n{empty} {lattice} note=kept\nC 0 0 0\nC 0.8925 0.8925 0.8925\n")
    assert screen(bundle, given, tmp_path / "out.db").failures == []
    (row,) = read_back(tmp_path / "out.db")
    assert row.info == {"name": "", "note": "kept"}
    (want,) = PaiNNCalculator(bundle).calculate_batch([bulk("C", "diamond", a=3.57)])
    assert row.get_potential_energy() == pytest.approx(want["energy"], abs=1e-5)
    assert "stress" in row.calc.results


def test_a_last_line_without_an_end_is_told(bundle: Path, tmp_path: Path) -> None:
    given = tmp_path / "in.xyz"
    given.write_text("2\n\nH 0 0 0\nH 0 0 0.7")
    assert screen(bundle, given, tmp_path / "out.extxyz").remarks == {ENDLESS: (1, "row 0: 'H 0 0 0.7'")}


def test_a_crystal_that_came_without_pbc_is_told(bundle: Path, tmp_path: Path) -> None:
    crystal, slab = bulk("C", "diamond", a=3.57), graphene(vacuum=8.0)
    boxed, placeholder = molecule("CH4", vacuum=6.0), Atoms(molecule("CH4"), cell=[1, 1, 1])
    made = [molecule("CH4"), crystal, boxed, placeholder, slab, crystal.copy(), crystal.copy()]
    crystal.pbc = made[5].pbc = False
    ase.io.write(tmp_path / "in.extxyz", made)
    told = screen(bundle, tmp_path / "in.extxyz", tmp_path / "out.db").remarks
    count, example = told.pop(UNREPEATED)
    assert count == 2
    assert example == "row 1: atom 0 (C) would be 1.55 Å from an image of atom 1 (C); if it is a crystal, give it pbc"
    assert told == {}
