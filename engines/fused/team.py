"""Threads of a session on a CPU: they wait inside the library, where no signal of Python finds them.

A call is one call of the library, from the moment that threads are sent to work until all of them are done. So what
interrupts it, as Ctrl-C does, is raised before or after it, and leaves no thread behind that writes into freed memory
or waits for one that does not come.
"""

import ctypes
import os
import threading
from contextlib import suppress

from painn_deploy.engines.fused.host import Library
from painn_deploy.export.errors import EngineUnavailableError

__all__ = ["Job", "Team"]

POINTERS = (
    "groups", "sizes", "rooms", "weights", "numbers", "displacements", "reverse", "mask", "shares", "energies",
    "forces", "virials", "extra", "spread",
)  # fmt: skip


class Job(ctypes.Structure):
    """What a call is to do; see `painn_deploy.engines.fused.team_source`. It keeps nothing alive."""

    _fields_ = (
        *((name, ctypes.c_longlong) for name in ("threads", "shared", "width")),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


class Team:
    """The caller's thread and others, which wait for it.

    Args:
        library: the kernel.
        threads: the caller's included.

    Raises:
        EngineUnavailableError: the system gives no more threads.
    """

    def __init__(self, library: Library, threads: int) -> None:
        self.threads, self._library, self._process = threads, library, os.getpid()
        self._others: list[threading.Thread] = []
        self._memory = ctypes.create_string_buffer(library.team_bytes)
        library.begin_team(self._memory)
        try:
            for number in range(1, threads):
                # they are daemons: an interpreter that ends does not wait for them, and they touch nothing of it
                other = threading.Thread(
                    target=library.serve, args=(self._memory, number), name=f"painn-deploy_{number}", daemon=True
                )
                self._others.append(other)
                other.start()
        except BaseException as error:
            self.close()
            if not isinstance(error, RuntimeError):
                raise
            raise EngineUnavailableError(
                f"The system gives this process no {threads} threads ({error}). Give fewer: threads=1."
            ) from error

    def run(self, job: Job) -> None:
        """Do a job, with as many threads as it says.

        Args:
            job: of no more threads than there are; the caller keeps alive what its addresses lead to.
        """
        self._library.run(self._memory, ctypes.byref(job))

    def close(self) -> None:
        """End the threads, and wait for it; may be called twice."""
        self._end()
        for other in self._others:
            with suppress(RuntimeError):  # it did not start
                other.join()
        self._others = []

    def _end(self) -> None:
        if os.getpid() == self._process:  # in a fork they are not, and one may have held the lock
            self._library.end_team(self._memory)

    def __del__(self) -> None:
        """Let the threads of a session that nobody closed end by themselves."""
        if self._others:
            self._end()
