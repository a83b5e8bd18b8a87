"""Files around a screening: locks that a file system has not, links, times that change, records that lie."""

import errno
import fcntl
import json
import os
import sqlite3
import warnings
from pathlib import Path

import ase.db
import pytest
from ase import Atoms

from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.runtime.screening.run import screen

from .test_screening import structures, write
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
