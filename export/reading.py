"""Input: the one way of reading a file that somebody else may have put there.

A name may be a link to a device, a pipe that nobody writes to, or a file of holes larger than all memory. What is
opened here is a regular file of bounded size; all else is an `UnreadableError`, which whoever asked turns into an error
of ours.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from painn_deploy.export.parsing import UnreadableError, parse_json

__all__ = [
    "AbsentError",
    "LinkError",
    "Stamp",
    "check_owned",
    "check_regular",
    "is_plain_name",
    "read_json",
    "read_regular",
    "read_stamped",
    "stamp_of",
]

Stamp = tuple[int, int, int]
"""Size (bytes), time of the last change (ns) and inode of a file: where one of them differs, the file was changed."""

LONGEST_NAME = 150
"""Bytes of a file's name; file systems take 255."""

KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISLNK, "is a link"),
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a pipe (FIFO)"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)


class AbsentError(UnreadableError):
    """There is no such file."""


class LinkError(UnreadableError):
    """It is a link, to a regular file."""


class _Content(NamedTuple):
    """Content of a file, and its stamp from before it was read."""

    content: bytes
    stamp: Stamp


def read_regular(path: Path, most: int, *, follow: bool = False, owned: bool = False) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        most: bytes that it may have.
        follow: whether the name may be a link, as a user's own may; what it leads to is a regular file all the same.
        owned: whether nobody else may be able to change it, see `check_owned`.

    Raises:
        AbsentError: there is none.
        LinkError: it is a link, to a regular file.
        UnreadableError: it is a link otherwise, a folder, a pipe, a socket or a device, is larger, changes while it is
            read, or may not be read.
    """
    return read_stamped(path, most, follow=follow, owned=owned).content


def read_stamped(path: Path, most: int, *, follow: bool = False, owned: bool = False) -> _Content:
    """Read a regular file, and say which one it was.

    Args:
        path: see `read_regular`.
        most: see `read_regular`.
        follow: see `read_regular`.
        owned: see `read_regular`.

    Raises:
        AbsentError: see `read_regular`.
        UnreadableError: see `read_regular`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    try:
        _check_kind(path, path.stat() if follow else path.lstat())  # a device may act on being opened
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            _check_kind(path, status)
            if owned:
                check_owned(path, status)
            size = status.st_size
            if size > most:
                raise UnreadableError(f"{path} has {size:,} bytes, and no more than {most:,} are read")
            content = file.read(size + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AbsentError(f"there is no file {path}") from error
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise UnreadableError(f"{path} has {size:,} bytes, for which there is no memory here") from error
    except ValueError as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{str(path)!r} is no name of a file ({error})") from error
    if len(content) != size:
        raise UnreadableError(f"{path} was changed while it was read")
    return _Content(content, stamp_of(status))


def stamp_of(status: os.stat_result) -> Stamp:
    """What a file was like when it was asked about."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def check_regular(path: Path, most: int) -> None:
    """Refuse what another library would hang on, or take all memory for, if it were told to read it.

    Args:
        path: what a user named; it may be a link.
        most: bytes that it may have.

    Raises:
        AbsentError: there is nothing.
        UnreadableError: it is a folder, a pipe, a socket or a device, or is larger.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise AbsentError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{str(path)[:80]!a} cannot be read ({error})") from error
    _check_kind(path, status)
    if status.st_size > most:
        raise UnreadableError(f"{path} has {status.st_size:,} bytes, and no more than {most:,} are read")


def read_json(
    path: Path, most: int, *, follow: bool = False, owned: bool = False, finite: bool = True
) -> dict[str, Any]:
    """Read a regular file that holds one JSON object; see `parse_json`.

    Args:
        path: the file.
        most: bytes that it may have.
        follow: see `read_regular`.
        owned: see `read_regular`.
        finite: see `parse_value`.

    Raises:
        AbsentError: there is none.
        UnreadableError: see `read_regular` and `parse_json`.
    """
    return parse_json(read_regular(path, most, follow=follow, owned=owned), str(path), finite=finite)


def check_owned(path: Path, status: os.stat_result) -> None:
    """Refuse what another user could have written: not this user's nor root's, or open to a group or to everybody.

    Args:
        path: of the file or folder, for the message.
        status: of it.

    Raises:
        UnreadableError: see above. Never where the system has no such permissions.
    """
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise UnreadableError(f"{path} belongs to another user (uid {status.st_uid})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnreadableError(f"{path} can be written by other users (permissions {stat.S_IMODE(status.st_mode):o})")


def is_plain_name(name: str) -> bool:
    """Whether a text is the name of a file in a folder, and nothing that leads out of it or hides in it."""
    if not name.isprintable() or name.startswith((".", "-")) or any(sign in name for sign in '/\\:"<>|?*'):
        return False  # a lone surrogate and a NUL are not printable
    return 0 < len(name.encode("utf-8")) <= LONGEST_NAME and name == name.strip()


def _check_kind(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for test, words in KINDS if test(status.st_mode)), "is of an unknown kind")
        error = LinkError if stat.S_ISLNK(status.st_mode) and path.is_file() else UnreadableError
        raise error(f"{path} {kind}, and only regular files are read")
