"""Parts are known by their hashes, the plan is read with care, and the input is held to its own hash."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pyarrow.parquet
import pytest
from ase import Atoms

from painn_deploy.export.errors import DatasetError, OutputError, PaiNNDeployError
from painn_deploy.runtime.screening import run as screening
from painn_deploy.runtime.screening.bulk import screener
from painn_deploy.runtime.screening.extxyz_rows import count_frames
from painn_deploy.runtime.screening.run import screen
from painn_deploy.runtime.screening.sinks import SINKS

from .test_screening import stop_after, structures, write

FORMATS = ("extxyz", "db", "parquet")


def rows_of(path: Path) -> list[tuple[str, float]]:
    """Ids and energies of an output; of a database too, whose bytes hold the time of writing."""
    if path.suffix == ".db":
        with ase.db.connect(path) as database:
            return [(row.data.get("id", row.id), row.energy) for row in database.select()]
    if path.suffix == ".parquet":
        return [(row["id"], row["energy"]) for row in pyarrow.parquet.read_table(path).to_pylist()]
    return [(row.info["id"], row.get_potential_energy()) for row in ase.io.read(path, ":")]


def begun(bundle: Path, folder: Path, kind: str = "extxyz") -> tuple[Path, Path, Path]:
    """Input, output of a run that was stopped after three of five parts, and what a whole run gives."""
    given = write(folder / "in.extxyz", structures(20))
    whole, output = folder / f"whole.{kind}", folder / f"out.{kind}"
    screen(bundle, given, whole, chunk_rows=4)
    with pytest.raises(KeyboardInterrupt):
        screen(bundle, given, output, chunk_rows=4, progress=stop_after(12))
    return given, output, whole


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swapped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(path.with_name("part-00000001").read_bytes())
    path.with_name("part-00000001").write_bytes(content)


def swapped_with_records(path: Path) -> None:
    other = path.with_name("part-00000001")
    swapped(path)
    content = path.with_suffix(".json").read_bytes()
    path.with_suffix(".json").write_bytes(other.with_suffix(".json").read_bytes())
    other.with_suffix(".json").write_bytes(content)


def forged(path: Path) -> None:
    path.write_text("1\nProperties=species:S:1:pos:R:3 energy=-999\nH 0 0 0\n" * 4)


def linked(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def without_record(path: Path) -> None:
    path.with_suffix(".json").unlink()


def record_of(content: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.with_suffix(".json").write_bytes(content)

    return spoil


def record_a_pipe(path: Path) -> None:
    a_pipe(path.with_suffix(".json"))


SPOILT = [cut, emptied, bit, swapped, swapped_with_records, forged, linked, a_pipe, without_record, record_a_pipe]
SPOILT += [record_of(one) for one in (b"", b"[]", b"{}", b"\xff", b"[" * 10**5, b'{"failures": [[1]]}')]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_f6_a_part_that_is_not_as_it_was_written_is_computed_again(
    bundle: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    given, output, whole = begun(bundle, tmp_path)
    spoil(tmp_path / "out.extxyz.parts" / "part-00000002")
    before = [path.read_bytes() for path in tmp_path.glob("out.extxyz.parts/elsewhere")]
    summary = screen(bundle, given, output, resume=True)
    assert summary.computed == (16 if spoil in (swapped, swapped_with_records) else 12)
    assert output.read_bytes() == whole.read_bytes()
    assert before == [] or len(before) == 1  # what a link led to was not written into


@pytest.mark.parametrize("kind", FORMATS)
def test_f6_a_part_of_another_run_is_computed_again(bundle: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "other").mkdir()
    begun(bundle, tmp_path / "other", kind)
    given, output, whole = begun(bundle, tmp_path, kind)
    other = structures(20)
    for atoms in other:
        atoms.info["id"] += "-foreign"
    write(tmp_path / "other" / "in.extxyz", other)
    with pytest.raises(KeyboardInterrupt):
        screen(
            bundle,
            tmp_path / "other" / "in.extxyz",
            tmp_path / "other" / f"out.{kind}",
            overwrite=True,
            chunk_rows=4,
            progress=stop_after(12),
        )
    for name in ("part-00000001", "part-00000001.json"):
        shutil.copy(tmp_path / "other" / f"out.{kind}.parts" / name, tmp_path / f"out.{kind}.parts" / name)
    assert screen(bundle, given, output, resume=True).computed == 12
    assert rows_of(output) == rows_of(whole)


def test_f6_a_part_that_changes_after_it_was_written_is_computed_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, output, whole = begun(bundle, tmp_path)
    keep = screening.Folder.keep

    def keep_and_spoil(folder: screening.Folder, part: screening.Part, *rest: object) -> None:
        keep(folder, part, *rest)  # type: ignore[arg-type]
        if part.number == 4 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            emptied(folder.part(part.number))

    monkeypatch.setattr(screening.Folder, "keep", keep_and_spoil)
    assert screen(bundle, given, output, resume=True).computed == 8
    assert output.read_bytes() == whole.read_bytes()


def ended(bundle: Path, given: Path, output: Path, **options: Any) -> str:
    """How a screening ended: nothing, or the error of ours."""
    try:
        screen(bundle, given, output, **options)
    except OutputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", FORMATS)
def test_f6_an_output_that_was_changed_after_its_end_is_told(bundle: Path, tmp_path: Path, kind: str) -> None:
    given, output = write(tmp_path / "in.extxyz", structures(8)), tmp_path / f"out.{kind}"
    screen(bundle, given, output)
    assert screen(bundle, given, output, resume=True).computed == 0
    bit(output)
    with pytest.raises(OutputError, match=f"out.{kind} was changed since it was finished.*--overwrite"):
        screen(bundle, given, output, resume=True)
    assert screen(bundle, given, output, overwrite=True).computed == 8
    assert screen(bundle, given, output, resume=True).computed == 0


PLANS = [b"", b"[]", b"{}", b"null", b"7", b'"x"', b"\xff\xfe", b"[" * 10**6, b'{"a":' * 10**5, b'{"finished": true}']


@pytest.mark.parametrize("content", PLANS, ids=lambda content: repr(content[:20]))
@pytest.mark.parametrize("finished", [True, False])
def test_f12_a_plan_that_says_nonsense_is_refused(bundle: Path, tmp_path: Path, content: bytes, finished: bool) -> None:
    given, output, whole = begun(bundle, tmp_path)
    plan = tmp_path / "out.extxyz.screening.json"
    if finished:
        screen(bundle, given, output, resume=True)
    plan.write_bytes(content)
    with pytest.raises(OutputError, match=r"out\.extxyz\.screening\.json is not the record .* --overwrite"):
        screen(bundle, given, output, resume=True)
    screen(bundle, given, output, overwrite=True, chunk_rows=4)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunk_rows", "4"),
        ("chunk_rows", 0),
        ("chunk_rows", True),
        ("chunk_rows", None),
        ("batch_slots", -1),
        ("batch_slots", 1.5),
        ("rows", []),
        ("finished", "yes"),
        ("failures", {}),
        ("failures", [[1]]),
        ("failures", [["0", 5]]),
        ("remarks", [1]),
        ("engine", 5),
        ("output_sha256", 5),
        ("output_sha256", "0" * 64),
        ("format_version", "1"),
        ("format_version", 99),
    ],
)
def test_f12_a_plan_with_a_wrong_value_is_refused(bundle: Path, tmp_path: Path, name: str, value: object) -> None:
    given, output = write(tmp_path / "in.extxyz", structures(4)), tmp_path / "out.extxyz"
    screen(bundle, given, output)
    plan = tmp_path / "out.extxyz.screening.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {name: value}))
    with pytest.raises(OutputError, match="--overwrite"):
        screen(bundle, given, output, resume=True)


@pytest.mark.parametrize("what", ["pipe", "folder", "link", "huge", "absent"])
@pytest.mark.parametrize(
    "place", ["out.extxyz.screening.json", "out.extxyz.parts/part-00000001", "out.extxyz.parts/lock"]
)
def test_f12_something_else_in_a_record_s_place_ends_in_an_error_or_the_right_rows(
    bundle: Path, tmp_path: Path, what: str, place: str
) -> None:
    given, output, whole = begun(bundle, tmp_path)
    if what == "absent" and place.endswith(".json"):
        what = "pipe"  # without a plan there is nothing to resume
    path, victim = tmp_path / place, tmp_path / "victim"
    victim.write_text("mine")
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(victim)
    elif what == "huge":
        with path.open("wb") as file:
            file.truncate(3 << 30)
    ways: list[dict[str, Any]] = [{"resume": True}, {"overwrite": True, "chunk_rows": 4}]
    for options in ways:
        error = ended(bundle, given, output, **options)
        if error:
            assert path.name in error
        else:
            assert output.read_bytes() == whole.read_bytes()
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("how", ["cut", "other", "same size"])
def test_f7_an_input_that_changes_while_it_is_screened_is_an_error(
    bundle: Path, tmp_path: Path, kind: str, how: str
) -> None:
    made = structures(20)
    given, output = write(tmp_path / f"in.{kind}", made), tmp_path / "out.extxyz"
    original = given.read_bytes()
    other = structures(20)
    for atoms in other:
        atoms.positions += 0.01

    def change(done: int, total: int, computed: int) -> None:
        if computed == 8:
            if how == "cut":
                given.write_bytes(original[: len(original) // 2])
            elif how == "other":
                given.unlink()
                write(given, other)
            else:
                content = bytearray(original)
                content[-10] ^= 1
                given.write_bytes(content)

    with pytest.raises(DatasetError, match="changed while it was screened"):
        screen(bundle, given, output, chunk_rows=4, progress=change)
    assert not output.exists()
    given.write_bytes(original)
    screen(bundle, given, output, resume=True)
    screen(bundle, given, tmp_path / "whole.extxyz", chunk_rows=4)
    assert output.read_bytes() == (tmp_path / "whole.extxyz").read_bytes()


def test_f7_a_change_without_a_new_time_is_seen_by_the_hash(bundle: Path, tmp_path: Path) -> None:
    given, output = write(tmp_path / "in.extxyz", structures(12)), tmp_path / "out.extxyz"
    original, found = given.read_bytes(), given.stat()

    def change(done: int, total: int, computed: int) -> None:
        if computed == 4:
            given.write_bytes(original.replace(b"m11", b"m99"))
            os.utime(given, ns=(found.st_atime_ns, found.st_mtime_ns))

    with pytest.raises(DatasetError, match="changed while it was screened"):
        screen(bundle, given, output, chunk_rows=4, progress=change)
    given.write_bytes(original)
    assert screen(bundle, given, output, resume=True).computed == 12  # what was computed of two files is not kept


@pytest.mark.parametrize("kind", FORMATS)
def test_f7_a_file_that_is_cut_short_is_an_error_of_the_reader(tmp_path: Path, kind: str) -> None:
    given = write(tmp_path / f"in.{kind}", structures(20))
    chunk = screening.open_source(given).scan(20).chunks[0]
    write(tmp_path / f"short.{kind}", structures(9)).replace(given)
    with pytest.raises(DatasetError, match=r"fewer rows|changed"):
        screening.open_source(given).read(chunk)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # noise may be any position
def test_f2_a_damaged_page_is_an_error_of_the_file(bundle: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "in.parquet", structures(200))
    content = given.read_bytes()
    seen = 0
    for place in range(100, len(content) - 4000, len(content) // 20):
        noisy = bytearray(content)
        noisy[place : place + 8] = np.random.default_rng(place).bytes(8)
        given.write_bytes(noisy)
        try:
            screen(bundle, given, tmp_path / "out.extxyz", overwrite=True)
        except DatasetError:
            seen += 1
    assert seen > 0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("what", ["pipe", "folder"])
def test_an_input_that_is_no_file_is_refused(bundle: Path, tmp_path: Path, kind: str, what: str) -> None:
    given = tmp_path / f"in.{kind}"
    if what == "pipe":
        os.mkfifo(given)
    else:
        given.mkdir()
    with pytest.raises(DatasetError, match="a folder, a pipe or a device"):
        screen(bundle, given, tmp_path / "out.extxyz")


@pytest.mark.parametrize("name", ["o" * 300, "o" * 240, "a\0b", "\udcff\0"])
def test_f19_a_name_that_no_file_can_have_is_refused_at_once(bundle: Path, tmp_path: Path, name: str) -> None:
    given = write(tmp_path / "in.extxyz", structures(2))
    with pytest.raises(OutputError, match=r"too long|cannot be written"):
        screen(bundle, given, tmp_path / f"{name}.extxyz")
    with pytest.raises(PaiNNDeployError, match=r"There is no file|not there"):
        screen(bundle, tmp_path / f"{name}.extxyz", tmp_path / "out.extxyz")


def test_an_output_that_is_a_folder_is_refused_at_once(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out.extxyz").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        screen(bundle, write(tmp_path / "in.extxyz", structures(2)), tmp_path / "out.extxyz", overwrite=True)


VIEW = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id FROM n"


@pytest.mark.parametrize("name", ["systems", "information"])
def test_f19_a_view_that_never_ends_is_no_database(tmp_path: Path, name: str) -> None:
    given = write(tmp_path / "in.db", [Atoms("H")])
    with sqlite3.connect(given) as connection:
        connection.execute(f"ALTER TABLE {name} RENAME TO old")
        connection.execute(f"CREATE VIEW {name} AS {VIEW}")
    connection.close()
    with pytest.raises(DatasetError, match=f"'{name}' is a view"):
        screening.open_source(given).scan(10)


def test_frames_are_counted_as_a_reader_would() -> None:
    frame = b"1\nc\nH 0 0 0\n"
    assert count_frames([*frame.splitlines(keepends=True)] * 3) == 3
    for wrong in (b"1\nc\nH 0 0 0", b"2\nc\nH 0 0 0\n", b"x\n", b"1\nc\r1\nH 0 0 0\n", b"1\nc\nH 0 0 0\nH 0 0 0\n"):
        assert count_frames(wrong.splitlines(keepends=True)) == -1


def test_rows_out_are_held_against_rows_in(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that holds more frames than rows would not become the output."""
    given = write(tmp_path / "in.extxyz", structures(4))
    encoded = screener.encoded
    monkeypatch.setattr(screener, "encoded", lambda *rest: 2 * encoded(*rest))
    with pytest.raises(OutputError, match="4 rows would become 8"):
        screen(bundle, given, tmp_path / "out.extxyz")
    assert not (tmp_path / "out.extxyz").exists()
    assert SINKS["extxyz"].count(given) == 4
