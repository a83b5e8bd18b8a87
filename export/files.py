"""Output: files and folders that are written whole or not at all, JSON, and a folder proved to be writable.

Content is written under another name in the same folder, and renamed when it is complete. So whoever reads, and whoever
comes after a process that was killed, finds the old content or the new. What a killed process leaves behind ends in
`PARTIAL`.
"""

import ctypes
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

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Linux: paths are relative to the working folder; two names are exchanged."""


def write_whole(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file, in a folder that exists; replaced if it is there.
        data: all of its content.
        durable: see `whole_file`.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    with whole_file(path, durable=durable) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file whose content takes the path's place at the end of the block; not if the block raises.

    Links are followed, and permissions are as `open` gives them: the replaced file's, or a new file's under the umask.

    Args:
        path: the file, in a folder that exists; replaced if it is there.
        durable: whether the content is on the disk before it takes its place, so that old or new is whole even if the
            machine loses its power; else that holds for a process that is killed.

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
            shutil.copymode(path, partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_folder_whole(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder whole or not at all.

    Where Linux's file system can exchange two names, a folder that is there is replaced in one step. Elsewhere two
    renames do it, and a process killed between them leaves both folders, under names that end in `PARTIAL`.

    Args:
        path: the folder, in one that exists; replaced if it is there.
        files: contents by name.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    path = path.resolve()
    partial = _beside(path)
    partial.mkdir()
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if not os.path.lexists(path):
            partial.rename(path)
        elif not _exchange(partial, path):
            _replace(path, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone, or unfinished, or what was replaced


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
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    """An unused name in the same folder; of a long name a part, since names have a longest length."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{PARTIAL}")


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
    path.rename(retired)
    try:
        made.rename(path)
    except BaseException:
        retired.rename(path)
        raise
    shutil.rmtree(retired, ignore_errors=True)
