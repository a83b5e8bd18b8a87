"""What is kept from one process to the next, in a folder that nobody else can write to.

Engines and kernels are machine code, and whoever can put a file into the cache runs code as whoever uses it. So a
folder or a file that another user owns or can write is as if it were not there, and nothing is written into it.
"""

import os
import shlex
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from painn_deploy.export.errors import OutputError
from painn_deploy.export.files import write_folder_whole, write_whole
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.reading import check_owned, read_regular

__all__ = ["cache_folder", "keep", "keep_folder", "kept", "made", "trusted"]

PRIVATE = 0o700

OURS = ("painn_deploy.", "jaxtyping.")
"""How names of modules begin that no warning points into: the package's, and those that check it in tests."""

_warned: set[str] = set()


def cache_folder() -> Path:
    """$PAINN_DEPLOY_CACHE, or painn-deploy in the user's cache folder; it need not exist. A `~` is the user's home.

    Raises:
        OutputError: nobody knows where that is.
    """
    try:
        if chosen := os.environ.get("PAINN_DEPLOY_CACHE"):
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "painn-deploy"
    except RuntimeError as error:
        raise OutputError("There is no home folder to keep a cache in. Set PAINN_DEPLOY_CACHE to a folder.") from error


def kept(path: Path, most: int) -> bytes | None:
    """Content of a file in the cache; None where there is none that could not be another user's work.

    Args:
        path: of it, see `trusted`.
        most: bytes that it may have.
    """
    if not trusted(path.parent):
        return None
    try:
        return read_regular(path, most, owned=True)
    except UnreadableError:
        return None


def keep(path: Path, data: bytes) -> None:
    """Write a file into the cache; where that cannot be done, nothing but time is lost.

    Args:
        path: of it, see `trusted`.
        data: all of its content.
    """
    with suppress(OSError):
        if made(path.parent):
            write_whole(path, data, private=True)


def keep_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder into the cache, whole or not at all; where that cannot be done, nothing but time is lost.

    Args:
        path: of it, see `trusted`.
        files: contents by name.
    """
    with suppress(OSError):
        if made(path.parent):
            write_folder_whole(path, files, private=True)


def trusted(folder: Path) -> bool:
    """Whether a folder of the cache is there, and no other user can write to it or to those above it in the cache.

    Where one can, a warning says which folder that is, once in a process.

    Args:
        folder: `cache_folder`, or below it; or another one that a caller keeps files in.
    """
    root = _root(folder)
    try:
        below = folder.relative_to(root).parts
        for level in (root, *(root.joinpath(*below[: depth + 1]) for depth in range(len(below)))):
            status = level.stat() if level == root else level.lstat()  # a user's cache may be a link to another disk
            if not level.is_dir() or (level != root and level.is_symlink()):
                return False
            check_owned(level, status)
    except UnreadableError as error:
        _warn(f"{error}", level)
        return False
    except (OSError, ValueError):
        return False
    return True


def _root(folder: Path) -> Path:
    """The folder from which on everything has to be trusted."""
    root = cache_folder()
    return root if folder.is_relative_to(root) else folder


def made(folder: Path) -> bool:
    """Make a folder of the cache where there is none; whether it is there now, and trusted.

    Args:
        folder: see `trusted`.

    Raises:
        OSError: it cannot be made.
    """
    root = _root(folder)
    root.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    if not trusted(root):
        return False
    level = root
    for name in folder.relative_to(root).parts:
        level /= name
        level.mkdir(mode=PRIVATE, exist_ok=True)
    return trusted(folder)


def _warn(why: str, folder: Path) -> None:
    if why in _warned:
        return
    _warned.add(why)
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"{why}, so that nothing in it is used or written: it holds machine code. Where you trust all that is in it, "
        f"`chmod -R go-w {shlex.quote(str(folder))}`; or give PAINN_DEPLOY_CACHE a folder of your own.",
        stacklevel=level,
    )
