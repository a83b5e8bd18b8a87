"""A bundle that is replaced is there at every moment, the old or the new; what killed writers left is swept."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from painn_deploy.export import bundle as bundle_module
from painn_deploy.export import files
from painn_deploy.export.bundle import read_bundle, write_bundle
from painn_deploy.export.errors import BundleError, OutputError
from painn_deploy.export.files import PARTIAL, write_folder_whole
from painn_deploy.export.manifest import MANIFEST, MODEL

HOLDS = """
import sys, time
from pathlib import Path
from painn_deploy.export import files
sync = files.sync
def stop(path):
    sync(path)
    print(path, flush=True)
    time.sleep(600)
files.sync = stop
files.write_folder_whole(Path(sys.argv[1]), {"a": b"new"}, durable=True)
"""


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / bundle.name))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing the folder `x`."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def left(folder: Path) -> list[Path]:
    return sorted(folder.glob(f".*{PARTIAL}"))


def test_f11_what_a_killed_writer_left_is_swept_and_a_living_one_s_never(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    (unfinished,) = left(tmp_path)
    os.utime(unfinished, (0, 0))  # its age says nothing
    write_folder_whole(tmp_path / "x", {"a": b"mine"})
    write_folder_whole(tmp_path / "x", {"a": b"again"})
    assert left(tmp_path) == [unfinished], "its writer lives"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    other = tmp_path / f".x.y.{'0' * 16}{PARTIAL}"
    other.mkdir()
    write_folder_whole(tmp_path / "x", {"a": b"last"})
    assert left(tmp_path) == [other], "of another name"
    assert (tmp_path / "x" / "a").read_bytes() == b"last"


def test_f11_names_that_begin_alike_are_not_swept_for_each_other(tmp_path: Path) -> None:
    names = [f"{'n' * 60}-{kind}.engine" for kind in ("fp32", "fp16")]
    for name in names:
        stale = files._beside(tmp_path / name)
        stale.mkdir()
    write_folder_whole(tmp_path / names[0], {"a": b""})
    assert len(left(tmp_path)) == 1
    write_folder_whole(tmp_path / names[1], {"a": b""})
    assert left(tmp_path) == []


def test_f11_a_reader_beside_a_writer_gets_old_or_new(copy: Path) -> None:
    read = read_bundle(copy)
    content = {name: read.file(name) for name in read.manifest.files}
    wanted, done, failed, found = {read.manifest.built_at}, threading.Event(), [], set()

    def look() -> None:
        while not done.is_set():
            try:
                found.add(read_bundle(copy).manifest.built_at)
            except BundleError as error:
                failed.append(error)

    reader = threading.Thread(target=look)  # anything but a BundleError ends it, and the test
    reader.start()
    for number in range(60):
        wanted.add(str(number))
        write_bundle(copy, dataclasses.replace(read.manifest, built_at=str(number)), content, overwrite=True)
        assert reader.is_alive()
    done.set()
    reader.join()
    assert len(found) > 3
    assert found <= wanted
    assert len(failed) < len(found), "it is rare, and no failure of its own"


def test_f11_a_folder_that_vanishes_while_it_is_read_is_an_error_of_ours(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader sees it whose folder was exchanged, and is being removed."""
    real = bundle_module.read_stamped

    def vanishing(path: Path, most: int) -> object:
        content = real(path, most)
        if path.name == MANIFEST:
            shutil.rmtree(copy)
        return content

    monkeypatch.setattr(bundle_module, "read_stamped", vanishing)
    with pytest.raises(BundleError):
        read_bundle(copy)


def test_f11_what_is_read_of_two_bundles_is_read_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_bundle(copy)
    content = {name: read.file(name) for name in read.manifest.files}
    real, exchanged = bundle_module.read_stamped, []

    def exchanging(path: Path, most: int) -> object:
        found = real(path, most)
        if path.name == MANIFEST and not exchanged:
            exchanged.append(True)
            files_new = {**content, "validation.json": b"{}"}
            write_bundle(copy, dataclasses.replace(read.manifest, built_at="new"), files_new, overwrite=True)
        return found

    monkeypatch.setattr(bundle_module, "read_stamped", exchanging)
    assert read_bundle(copy).manifest.built_at == "new"


@pytest.mark.parametrize("again", [True, False])
def test_f11_a_second_rename_that_fails_puts_the_old_one_back_or_says_where_it_is(
    copy: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    read = read_bundle(copy)
    content = {name: read.file(name) for name in read.manifest.files}
    monkeypatch.setattr(files, "_exchange", lambda _one, _other: False)
    rename, calls = Path.rename, []

    def fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2 or (len(calls) == 3 and not again):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OutputError) as raised:
        write_bundle(copy, dataclasses.replace(read.manifest, built_at="new"), content, overwrite=True)
    monkeypatch.undo()
    if again:
        assert "Nothing was left behind" in str(raised.value)
        assert (read_bundle(copy).sha256, left(copy.parent)) == (read.sha256, [])
    else:
        (retired,) = left(copy.parent)
        assert "Nothing was left behind" not in str(raised.value)
        assert f"what was there is now {retired}" in str(raised.value)
        assert read_bundle(retired).sha256 == read.sha256


def test_f11_a_bundle_is_on_the_disk_before_it_takes_its_place(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_bundle(copy)
    content = {name: read.file(name) for name in read.manifest.files}
    real, steps = os.fsync, []
    exchange = files._exchange

    def watched(handle: int) -> None:
        steps.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    def exchanged(one: Path, other: Path) -> bool:
        steps.append(one)
        return exchange(one, other)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(files, "_exchange", exchanged)
    write_bundle(copy, read.manifest, content, overwrite=True)
    names = [path.name for path in steps]
    assert sorted(names[:3]) == sorted([*content, MANIFEST])
    assert names[3] == names[4], "the folder, and then the exchange"
    assert steps[5] == copy.parent
    assert MODEL in names
