"""Files and folders are written whole or not at all: whatever raises, and whenever the process is killed."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from painn_deploy.export import files
from painn_deploy.export.errors import OutputError
from painn_deploy.export.files import (
    PARTIAL,
    prepare_output,
    remove_partial,
    to_json,
    whole_file,
    write_folder_whole,
    write_output,
    write_whole,
)

OLD, NEW = {"a": b"old", "b": b"old"}, {"a": b"new", "c": b"new"}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120)  # a name of 240 bytes; 255 are the most
    for durable in (False, True):
        write_whole(path, b"1", durable=durable)
        assert path.read_bytes() == b"1"
        write_whole(path, b"2", durable=durable)
        assert path.read_bytes() == b"2"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_open(tmp_path: Path, umask: int) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "whole", b"")
    assert mode(tmp_path / "whole") == mode(tmp_path / "plain") == 0o666 & ~umask
    (tmp_path / "whole").chmod(0o640)
    write_whole(tmp_path / "whole", b"again")
    assert mode(tmp_path / "whole") == 0o640
    write_folder_whole(tmp_path / "folder", OLD)
    assert mode(tmp_path / "folder") == 0o777 & ~umask
    assert mode(tmp_path / "folder" / "a") == 0o666 & ~umask


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write_whole(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "elsewhere") == {"file": b"content"}


def half(file: BinaryIO, raised: type[BaseException]) -> None:
    file.write(b"half")
    raise raised


@pytest.mark.parametrize("raised", [OSError, KeyboardInterrupt])
def test_a_file_whose_content_fails_keeps_the_old(tmp_path: Path, raised: type[BaseException]) -> None:
    path = tmp_path / "file"
    for before in ({}, {"file": b"old"}):
        for name, data in before.items():
            (tmp_path / name).write_bytes(data)
        with pytest.raises(raised), whole_file(path) as file:
            half(file, raised)
        assert content(tmp_path) == before


def test_a_file_that_cannot_take_its_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "folder", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the file system cannot exchange two names."""
    monkeypatch.setattr(files, "_exchange", lambda _one, _other: False)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_written_and_replaced(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        without_exchange(monkeypatch)
    for wanted in (OLD, NEW):
        write_folder_whole(tmp_path / "folder", wanted)
        assert content(tmp_path / "folder") == wanted
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_two_names_are_exchanged(tmp_path: Path) -> None:
    """Where this fails the file system cannot, and a folder that is replaced is gone for a moment."""
    for name in ("one", "other"):
        write_folder_whole(tmp_path / name, {"name": name.encode()})
    assert files._exchange(tmp_path / "one", tmp_path / "other")
    assert content(tmp_path / "one") == {"name": b"other"}
    assert not files._exchange(tmp_path / "one", tmp_path / "absent")


@pytest.mark.parametrize(("failing", "exchange"), [("write_bytes", True), ("write_bytes", False), ("rename", False)])
def test_a_folder_that_fails_keeps_the_old(
    tmp_path: Path, failing: str, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder_whole(tmp_path / "folder", OLD)
    if not exchange:
        without_exchange(monkeypatch)
    real: Callable[..., object] = getattr(Path, failing)

    def fails(self: Path, *arguments: object) -> object:
        if self.name == "c" or (self / "c").exists():  # the second file, or the rename of the new folder
            raise OSError(28, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Path, failing, fails)
    with pytest.raises(OSError, match="No space left"):
        write_folder_whole(tmp_path / "folder", NEW)
    assert content(tmp_path / "folder") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


KILLED = """
import os, signal, sys
from pathlib import Path
from painn_deploy.export import files
calls, at = 0, int(sys.argv[2])
WATCHED = {"open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "ctypes.dlopen", "ctypes.dlsym"}
def watch(event, arguments):
    global calls
    if event in WATCHED:
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
sys.addaudithook(watch)
{write}
print(calls)
"""
FILE = 'files.write_whole(folder / "file", b"new" * 100_000)'
FOLDER = 'files.write_folder_whole(folder / "folder", {"a": b"new", "c": b"new"})'


@pytest.mark.parametrize(
    ("write", "name", "prepare", "read", "allowed"),
    [
        (FILE, "file", lambda p: p.write_bytes(b"old"), Path.read_bytes, [b"old", b"new" * 100_000]),
        (FOLDER, "folder", lambda p: write_folder_whole(p, OLD), content, [OLD, NEW]),
    ],
    ids=["file", "folder"],
)
def test_a_kill_at_any_moment_leaves_old_or_new(
    tmp_path: Path,
    write: str,
    name: str,
    prepare: Callable[[Path], object],
    read: Callable[[Path], object],
    allowed: list[object],
) -> None:
    """A process is killed at its first call of the system that writes, then at its second, until it is through."""
    outcomes = []
    for at in range(1, 100):
        folder = tmp_path / str(at)
        folder.mkdir()
        prepare(folder / name)
        program = KILLED.replace("{write}", write)
        done = subprocess.run([sys.executable, "-c", program, str(folder), str(at)], capture_output=True, text=True)
        outcomes.append(read(folder / name))
        assert outcomes[-1] in allowed
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert at > 3
    assert outcomes[0] == allowed[0]
    assert outcomes[-1] == allowed[1]
    remove_partial(tmp_path / "2")
    assert [path for path in (tmp_path / "2").glob(f"*{PARTIAL}") if path.is_file()] == []


def test_unfinished_files_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (f".x.0{PARTIAL}", f"mine{PARTIAL}", ".hidden", "file"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".folder.0{PARTIAL}").mkdir()
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"mine{PARTIAL}", ".hidden", "file", f".folder.0{PARTIAL}"}


def test_an_output_folder_is_made_and_tried(tmp_path: Path) -> None:
    made = prepare_output(tmp_path / "a" / "b")
    assert made.is_dir()
    assert list(made.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"Cannot write to .*file.*-o"):
        prepare_output(tmp_path / "file" / "b")
    write_output(made / "result", b"result")
    with pytest.raises(OutputError, match=r"Cannot write .*absent.*Choose another folder"):
        write_output(made / "absent" / "result", b"result")
    assert content(made) == {"result": b"result"}


def test_json_is_for_people_too() -> None:
    assert to_json({"unit": "Å", "a": [1]}) == '{\n "unit": "Å",\n "a": [\n  1\n ]\n}\n'.encode()
