"""Input: the one way of reading a file that somebody else may have put there, and JSON in it.

A name may be a link to a device, a pipe that nobody writes to, or a file of holes larger than all memory; a text may be
nested a million deep. What is opened here is a regular file of bounded size, and what is parsed is bounded too; all
else is `UnreadableError`, which whoever asked turns into an error of ours.
"""

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "AbsentError",
    "Stamp",
    "UnreadableError",
    "check_owned",
    "check_regular",
    "is_plain_name",
    "parse_json",
    "parse_value",
    "read_json",
    "read_regular",
    "read_stamped",
]

Stamp = tuple[int, int, int]
"""Size (bytes), time of the last change (ns) and inode of a file: where one of them differs, the file was changed."""

DEEPEST = 32
"""Lists and objects inside each other; files of ours have six."""

LONGEST_NUMBER = 20
"""Characters of a whole number, which is one of 64 bits."""

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


class UnreadableError(ValueError):
    """A file that is not read, or is no JSON of the kind that was asked for.

    The message begins with the file and is a sentence without its full stop.
    """


class AbsentError(UnreadableError):
    """There is no such file."""


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
        UnreadableError: it is a link, a folder, a pipe, a socket or a device, is larger, changes while it is read, or
            may not be read.
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
    return _Content(content, (size, status.st_mtime_ns, status.st_ino))


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


def parse_json(content: bytes | str, source: str, *, finite: bool = True) -> dict[str, Any]:
    """Parse one JSON object in UTF-8, of which every reader sees the same.

    Args:
        content: of the file.
        source: the file, for messages.
        finite: see `parse_value`.

    Raises:
        UnreadableError: see `parse_value`; or it is no object.
    """
    values = parse_value(content, source, finite=finite)
    if not isinstance(values, dict):
        raise UnreadableError(f"{source} holds no JSON object")
    return values


def parse_value(content: bytes | str, source: str, *, finite: bool = True) -> Any:
    """Parse any JSON value in UTF-8.

    Args:
        content: of the file.
        source: the file, for messages.
        finite: refuse NaN, infinity and whole numbers beyond 64 bits, which other readers of JSON do not read; else
            whoever uses the values has to.

    Raises:
        UnreadableError: it is not text, not JSON, gives a key twice, is nested deeper than any of ours, or holds a
            number or a text that cannot be written again.
    """
    hooks: dict[str, Any] = {"parse_constant": _constant, "parse_float": _finite, "parse_int": _whole} if finite else {}
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        values = json.loads(text, object_pairs_hook=_once, **hooks)
        if "\\ud" in text or "\\uD" in text:  # half of a pair that stands for one character, perhaps
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{source} is not text in UTF-8 ({error.reason} at byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise UnreadableError(f"{source} is not JSON: it holds half of a character") from error
    except RecursionError as error:
        raise UnreadableError(f"{source} is not JSON that is read here: it is nested too deep") from error
    except ValueError as error:
        raise UnreadableError(f"{source} is not JSON: {error}") from error
    if _nested(values) > DEEPEST:
        raise UnreadableError(f"{source} is not JSON that is read here: it is nested deeper than {DEEPEST}")
    return values


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
        raise UnreadableError(f"{path} {kind}, and only regular files are read")


def _nested(values: Any) -> int:
    """How many lists and objects are inside each other; one that is too many at most is looked at."""
    level, depth = [values] if isinstance(values, Mapping | list) else [], 0
    while level and depth <= DEEPEST:
        inner: list[Any] = []
        for each in level:
            inner.extend(each.values() if isinstance(each, Mapping) else each)
        level, depth = [each for each in inner if isinstance(each, Mapping | list)], depth + 1
    return depth


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in made if keys.count(key) > 1)
        raise ValueError(f"it gives the key {twice[:40]!r} twice")
    return made


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"it holds a whole number of {len(text):,} digits")
    return int(text)


def _constant(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"it holds {text[:40]}, which is too large for a number")
    return number
