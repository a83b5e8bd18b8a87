"""Output: files and folders that are written whole or not at all, JSON, and a folder proved to be writable.

Content is written under another name in the same folder, and renamed when it is complete. So whoever reads, and whoever
comes after a process that was killed, finds the old content or the new. What a killed process leaves behind ends in
`PARTIAL`.
"""

import ctypes
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from painn_deploy.export.errors import OutputError
from painn_deploy.export.reading import is_plain_name

__all__ = [
    "PARTIAL",
    "prepare_output",
    "remove_partial",
    "sync",
    "to_json",
    "whole_file",
    "write_folder_whole",
    "write_output",
    "write_whole",
]

PARTIAL = ".partial"
"""How names of unfinished files and folders end; they begin with a dot."""

PRIVATE_FILE, PRIVATE_FOLDER, ANY_FOLDER = 0o600, 0o700, 0o777
"""Permissions; the umask takes from the last."""

LONGEST_STEM = 40
"""Characters of a name that the name of what is unfinished begins with."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Linux: paths are relative to the working folder; two names are exchanged."""


def write_whole(path: Path, data: bytes, *, durable: bool = False, private: bool = False) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file, in a folder that exists; replaced if it is there.
        data: all of its content.
        durable: see `whole_file`.
        private: see `whole_file`.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    with whole_file(path, durable=durable, private=private) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, *, durable: bool = False, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file whose content takes the path's place at the end of the block; not if the block raises.

    Links are followed, and permissions are as `open` gives them: the replaced file's, or a new file's under the umask.

    Args:
        path: the file, in a folder that exists; replaced if it is there.
        durable: whether the content is on the disk before it takes its place, so that old or new is whole even if the
            machine loses its power; else that holds for a process that is killed.
        private: whether nobody else may read or write it, whatever was there.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    path = path.resolve()
    partial = _beside(path)
    opened = partial.open("xb")
    try:
        with opened as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            partial.chmod(PRIVATE_FILE) if private else shutil.copymode(path, partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_folder_whole(path: Path, files: Mapping[str, bytes], *, durable: bool = False, private: bool = False) -> None:
    """Write a folder whole or not at all.

    Where Linux's file system can exchange two names, a folder that is there is replaced in one step. Elsewhere two
    renames do it, and a process killed between them leaves both folders, under names that end in `PARTIAL`. What killed
    processes left of this very folder is removed once the new one is in its place.

    Args:
        path: the folder, in one that exists; replaced if it is there.
        files: contents by name.
        durable: whether all of it is on the disk before it takes its place, see `whole_file`.
        private: whether nobody else may look into it, or write.

    Raises:
        OSError: it cannot be written; what was there is untouched, or the message says where it is now.
    """
    if wrong := [name for name in files if not is_plain_name(name)]:
        raise OSError(errno.EINVAL, f"{wrong[0]!a} is no plain name of a file")
    path = path.resolve()
    partial, lock = _made_and_locked(path, PRIVATE_FOLDER if private else ANY_FOLDER)
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
            if private:
                (partial / name).chmod(PRIVATE_FILE)
            if durable:
                sync(partial / name)
        if durable:
            sync(partial)
        if not os.path.lexists(path):
            partial.rename(path)
        elif not _exchange(partial, path):
            _replace(path, partial)
        if durable:
            sync(path.parent)
        _sweep(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone, or unfinished, or what was replaced
        _release(lock)


def remove_partial(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in a folder; nobody else may be writing into it.

    Raises:
        OSError: one cannot be removed.
    """
    for left in folder.glob(f".*{PARTIAL}"):
        if not left.is_dir():
            left.unlink(missing_ok=True)


def prepare_output(folder: str | Path) -> Path:
    """Make an output folder and prove that it can be written, before any long work.

    Raises:
        OutputError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write to {folder}: {error.strerror or error}. Choose another folder with -o."
        ) from error
    return folder


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a user asked for, as `write_whole` does.

    Args:
        path: the file, in a folder that exists; replaced if it is there.
        data: all of its content.

    Raises:
        OutputError: it cannot be written; what was there is untouched.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}. Choose another folder.") from error


def to_json(values: Mapping[str, Any]) -> bytes:
    """Content of a JSON file that a person can read too."""
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # a system that opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    """An unused name in the same folder."""
    return path.with_name(f"{_stem(path)}{secrets.token_hex(8)}{PARTIAL}")


def _stem(path: Path) -> str:
    """How names of what is unfinished of a path begin; of a long name it is a part, as names have a longest length."""
    name = path.name
    if len(name) > LONGEST_STEM:
        name = f"{name[: LONGEST_STEM - 9]}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}"
    return f".{name}."


def _made_and_locked(path: Path, mode: int) -> tuple[Path, int | None]:
    """A new folder beside a path, and its lock: where nobody holds that, the writer is dead."""
    while True:
        partial = _beside(path)
        partial.mkdir(mode)
        with suppress(BlockingIOError, FileNotFoundError):  # somebody swept it before it was locked
            lock = _locked(partial)
            if partial.exists():
                return partial, lock
            _release(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder until it is released; None where the system has no locks, or not for folders.

    Raises:
        BlockingIOError: somebody else holds the lock.
        OSError: the folder cannot be opened.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except (ImportError, OSError):
        os.close(handle)
        return None
    return handle


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _sweep(path: Path) -> None:
    """Remove the unfinished and retired folders of a path whose writers are dead; all others stay."""
    for left in path.parent.glob(f"{glob.escape(_stem(path))}{'[0-9a-f]' * 16}{PARTIAL}"):
        with suppress(OSError):
            lock = _locked(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
            _release(lock)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def _replace(path: Path, made: Path) -> None:
    """Put a folder in another's place by two renames; undone if the second fails."""
    retired = _beside(path)
    lock = None
    with suppress(OSError):
        lock = _locked(path)  # it may have to be put back
    try:
        path.rename(retired)
        try:
            made.rename(path)
        except BaseException as error:
            try:
                retired.rename(path)
            except OSError as worse:
                why = error.strerror if isinstance(error, OSError) else type(error).__name__
                raise OSError(worse.errno, f"{why}; what was there is now {retired}") from error
            raise
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        _release(lock)
