"""Packages that were loaded on the CPU, kept by the SHA-256 of their contents for the next session.

torch's loader gives back little of the memory and none of the memory maps of a package that it unloads, so that a
process that opened and closed an engine some 3,000 times ended. So a session that is closed hands its packages on to
the next one of the same contents. A package serves one session at a time, since it runs one call at a time: two
sessions have two. What is loaded of one engine is then bounded by the sessions that were open at once.
"""

import atexit
import ctypes
import gc
import hashlib
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

__all__ = ["MOST_KEPT", "Lent", "forget_loaded", "lend", "share_standard_library"]

MOST_KEPT = 32
"""Packages kept that no session uses, two of an engine; beyond it torch unloads the one that was unused the longest."""

Key = tuple[int, str]
"""Process and SHA-256: a forked child takes no package of its parent's, whose locks another thread may have held."""

DROPPED = 4
"""Sessions of one engine that are open, or were dropped and not collected, at which garbage is collected before another
is loaded; and again at every doubling, since with many objects in a process that takes seconds."""

_turn = threading.RLock()  # a session that is collected gives back from within whatever its thread is doing
_free: deque[tuple[Key, Any]] = deque()
"""Packages without a session, the longest unused first."""

_lent: Counter[Key] = Counter()
"""How many sessions have a package of these contents."""


class Lent:
    """A loaded package in the hands of one session.

    Args:
        key: of its contents.
        run: torch's package.
    """

    def __init__(self, key: Key, run: Any) -> None:
        self._key, self._run, self._sound = key, run, True
        with _turn:
            _lent[key] += 1

    def __call__(self, *tensors: Any) -> Any:
        """Tensors in the graph's order to a tuple of outputs; one that failed is given to nobody else."""
        self._sound = False
        outputs = self._run(*tensors)
        self._sound = True
        return outputs

    def give_back(self) -> None:
        """Keep the package for the next session; it must not be called after this."""
        run, self._run = self._run, None
        if run is None or self._key[0] != os.getpid():
            return
        with _turn:
            _lent[self._key] -= 1
            if self._sound:
                _free.append((self._key, run))
            del run
            while len(_free) > MOST_KEPT:
                _free.popleft()


def lend(contents: bytes, load: Callable[[bytes], Any]) -> Lent:
    """A package for one session's own use: one that was loaded before and is free, else it is loaded.

    Args:
        contents: of the package.
        load: loads it.
    """
    key = os.getpid(), hashlib.sha256(contents).hexdigest()
    found, lent = _free_one(key), _lent[key]
    if found is None and lent >= DROPPED and lent & (lent - 1) == 0:
        gc.collect()  # whoever dropped a calculator of ASE's left it in a cycle
        found = _free_one(key)
    return Lent(key, load(contents) if found is None else found)


def _free_one(key: Key) -> Any:
    """A package that no session has, for the caller; None where there is none."""
    with _turn:
        for one in reversed(tuple(_free)):  # a session that is collected meanwhile gives back too
            if one[0] == key:
                with suppress(ValueError, IndexError):
                    _free.remove(one)
                    return one[1]
    return None


def forget_loaded() -> None:
    """Unload what no session uses; of a package in use nothing changes."""
    with _turn:
        _free.clear()


def _in_child() -> None:
    global _turn
    _turn = threading.RLock()  # another thread of the parent may have held it


atexit.register(forget_loaded)  # torch then removes the folders that it unpacked them to
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)


@cache
def share_standard_library() -> None:
    """Let what is loaded from now on use the C++ standard library that torch has loaded.

    Some compilers link one of its own into each package. Half of its symbols are then taken from torch's, which ends
    the process when the package begins to look for its kernels. Where torch's comes first, all of them are.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a system with another one, such as libc++
            ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)
