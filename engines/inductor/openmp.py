"""OpenMP of this process: how many threads a call takes, and what is given up before the process forks.

Compiled packages and oneDNN run their loops on OpenMP's threads, whose number belongs to the calling thread: here it is
set for one call, and what the caller had is put back. libgomp has no answer to a fork. A child inherits the record of
threads that are not there, and waits for them for ever in its first loop. So the forking thread lets its own go before
every fork, and either process starts others when it needs them.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from painn_deploy.export.errors import EngineUnavailableError

__all__ = ["check_threads", "let_go", "team"]

SOFT = 1
"""omp_pause_soft: threads end, and settings stay."""

_lost = False
"""Whether this process was forked with a record of threads that are gone."""


@cache
def _openmp() -> Any:
    """The OpenMP library that torch loaded for the whole process; None where it cannot be called by name."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    return library if hasattr(library, "omp_set_num_threads") else None


@contextmanager
def team(threads: int) -> Iterator[None]:
    """Have loops of the calling thread run on so many threads in this block; torch must be loaded.

    Args:
        threads: of a loop; without effect where OpenMP cannot be called by name.
    """
    library = _openmp()
    if library is None:
        yield
        return
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(threads)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


def let_go() -> bool:
    """End the calling thread's OpenMP threads, which start again when they are needed; whether there are none now."""
    library = _openmp()
    pause = getattr(library, "omp_pause_resource_all", None)  # of OpenMP 5.0
    return pause is not None and pause(SOFT) == 0


def check_threads(threads: int | None) -> None:
    """Refuse OpenMP in a process whose first parallel loop would hang.

    Args:
        threads: that were asked for; one needs no OpenMP.

    Raises:
        EngineUnavailableError: this process was forked while OpenMP had threads; the message names the remedies.
    """
    if _lost and threads != 1:
        raise EngineUnavailableError(
            f"This process ({os.getpid()}) was forked from one in which torch was loaded, and OpenMP's threads stayed "
            "there: the engine inductor would wait for them for ever. Start processes by `spawn` or `forkserver`, for "
            'instance multiprocessing.get_context("spawn"), or open the engine with threads=1.'
        )


_kept = False
"""Whether the thread that forks may have threads still."""


def _before_fork() -> None:
    global _kept
    _kept = "torch" in sys.modules and not let_go()


def _in_child() -> None:
    global _lost
    _lost = _lost or _kept


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
