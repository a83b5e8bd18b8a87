"""How many threads a call takes where others want the cores too.

OpenMP's threads meet at the end of every loop, a hundred times a call, and spin until the last one is there. Where
another program has the core of one of them, each meeting lasts until that program's turn is over: a call of a
millisecond then took 600, where one thread, which meets nobody, took two. So a call takes all threads while there are
cores for them, half as many each time there were not, and more again after a while. The number of threads changes no
bit of a result.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["CORES", "SharedCores", "cores_here", "seconds_waited"]

TASKS = Path("/proc/self/task")

CROWDED = 0.25
"""How many threads of this process wait for a core on average where it has too many."""

LOOK, COST = 0.02, 100
"""Between two looks at it lie so many seconds, and so many times what a look takes, that it costs a hundredth."""

FIRST, LONGEST = 0.5, 16.0
"""Seconds until more threads are tried again: at first, and where that failed time after time."""


def cores_here() -> int:
    """Cores of the machine, or those that this process is kept to."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds_waited() -> float | None:
    """Seconds that this process's threads were ready to run and had no core; None where the system does not say."""
    waited = []
    try:
        for task in TASKS.iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # that thread has ended
                waited.append(int((task / "schedstat").read_bytes().split()[1]))
    except (OSError, ValueError, IndexError):
        return None
    return sum(waited) * 1e-9 if waited else None


class SharedCores:
    """Threads of this process's calls: halved while threads wait for cores, doubled again when they do not.

    Args:
        waited: see `seconds_waited`.
        clock: seconds.
    """

    def __init__(
        self,
        waited: Callable[[], float | None] = seconds_waited,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._waited, self._clock, self._turn = waited, clock, threading.Lock()
        self._before, self._looked, self._every = waited(), clock(), LOOK
        self._halvings, self._pause = 0, FIRST
        self._raised = self._again = float("-inf")

    def threads(self, most: int) -> int:
        """Threads that the next call should take.

        Args:
            most: that it may take.
        """
        return max(1, most >> self._halvings)

    def look(self, most: int) -> None:
        """See how long threads waited of late, after a call.

        Args:
            most: threads that the call might have taken.
        """
        begun = self._clock()
        # a thread that finds another one looking has nothing to wait for, nor has a child forked from such a moment
        if self._before is None or begun < self._looked + self._every or not self._turn.acquire(blocking=False):
            return
        try:
            waited, before, now = self._waited(), self._before, self._clock()
            if waited is not None:
                self._judge((waited - before) / (now - self._looked), now, most)
            self._before, self._looked, self._every = waited, now, max(LOOK, COST * (now - begun))
        finally:
            self._turn.release()

    def _judge(self, waiting: float, now: float, most: int) -> None:
        """Change the number of threads.

        Args:
            waiting: how many waited, on average.
            now: seconds.
            most: that a call may take.
        """
        if waiting > CROWDED:
            if self.threads(most) > 1:
                in_vain = now < self._raised + 2 * self._pause
                self._pause = min(2 * self._pause, LONGEST) if in_vain else FIRST
                self._halvings += 1
            self._again = now + self._pause
        elif self._halvings and now >= self._again:
            self._halvings -= 1
            self._raised, self._again = now, now + FIRST


CORES = SharedCores()
"""Of this process."""
