"""Sole use: what serves one thread of one process at a time says so when another asks."""

import os
import threading
from types import TracebackType

from painn_deploy.export.errors import OwnershipError

__all__ = ["SoleUse"]


class SoleUse:
    """A guard around the use of something that belongs to one thread at a time, and to the process that opened it.

    It is a context manager: who enters while another thread is inside gets an error in place of an answer that may be
    another thread's, and so does a process forked from the one that made the guard, where an engine's own threads are
    gone and its locks may be held for ever. The same thread may enter again. It never waits.

    Args:
        name: of what is guarded, with its article, as a message begins.
    """

    def __init__(self, name: str) -> None:
        self._name, self._process = name, os.getpid()
        # whose it is, under the key None: `setdefault` asks and takes at once, whatever interrupts Python beside it
        self._owner: dict[None, int] = {}
        self._depth = 0

    def __enter__(self) -> None:
        if os.getpid() != self._process:
            raise OwnershipError(
                f"{self._name} was opened in process {self._process}, and this one was forked from it: the engine's "
                "threads are not here. Open it in the process that uses it, or start processes by `spawn` or "
                '`forkserver`, for instance multiprocessing.get_context("spawn").'
            )
        me = threading.get_ident()
        if self._owner.setdefault(None, me) != me:
            raise OwnershipError(
                f"{self._name} is in use by another thread, and answers one at a time. Open one for each thread; "
                "copy.deepcopy opens another of the same bundle."
            )
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:  # a generator may be closed by another thread than began it
            self._owner.clear()

    def __reduce__(self) -> tuple[type["SoleUse"], tuple[str]]:
        """A copy guards what was copied."""
        return SoleUse, (self._name,)
