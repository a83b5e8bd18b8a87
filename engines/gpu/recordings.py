"""CUDA graphs of the sizes that come again on one lane."""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from painn_deploy.engines.gpu.arena import Arena
from painn_deploy.engines.gpu.executor import Executor, Recorded
from painn_deploy.export.errors import EngineError

__all__ = ["MOST_CELLS", "MOST_GRAPHS", "MOST_REFUSED", "Recordings", "recordable"]

MOST_GRAPHS = 32
"""CUDA graphs that are kept; the one that was used longest ago goes first."""

MOST_REFUSED = 3
"""Sizes that could not be recorded, after which no further one is tried."""

MOST_CELLS = 2**18
"""Atoms x slots of what is recorded. Of 295,000 an H100 computes longer than a host launches, and a CUDA graph holds
the memory of one more evaluation."""

MOST_SEEN = 1024

Key = tuple[Any, ...]
"""Kind, atoms and slots of an evaluation, and what else is part of what is recorded."""


def recordable(atoms: int, slots: int) -> bool:
    """Whether a size is small enough to be recorded.

    Args:
        atoms: rows of the matrix.
        slots: columns.
    """
    return atoms * slots <= MOST_CELLS


class Recordings:
    """What was recorded, and what could not be.

    Args:
        arena: memory of the lane; what was recorded holds for as long as its addresses do.

    Attributes:
        wanted: whether a size of up to `MOST_CELLS` that comes again is recorded and replayed.
        refused: why a size could not be recorded, by its key.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.wanted = False
        self.refused: dict[Key, str] = {}
        self._recorded: OrderedDict[Key, tuple[int, Recorded]] = OrderedDict()
        self._seen: set[tuple[Key, int]] = set()

    @property
    def keys(self) -> list[Key]:
        """Of what is recorded, the one that was used longest ago first."""
        return list(self._recorded)

    def of(self, key: Key) -> Recorded | None:
        """What was recorded of a size; None if nothing was.

        Args:
            key: of the size.
        """
        return self._recorded.get(key, (0, None))[1]

    def launch(
        self,
        key: Key,
        executor: Executor,
        bind: Callable[[], None],
        send: Callable[[], None],
    ) -> None:
        """Send one evaluation, as a CUDA graph where one was recorded on the addresses of now.

        A size that comes for the second time is sent once more as ever, and recorded for the third: an engine whose
        shapes just changed must run before it may be recorded, and whatever goes wrong in recording costs no result.

        Args:
            key: of the size.
            executor: of the engine.
            bind: binds it to the memory; may let the arena grow.
            send: sends the evaluation to the stream.

        Raises:
            EngineError: it could not be launched.
        """
        generation, recorded = self._recorded.get(key, (-1, None))
        if self.wanted and recorded is not None and generation == self._arena.generation:
            self._recorded.move_to_end(key)
            recorded.launch()
            return
        bind()
        send()
        again = (key, self._arena.generation)
        may_be = self.wanted and recordable(key[1], key[2]) and key not in self.refused
        if may_be and again in self._seen and len(self.refused) < MOST_REFUSED:
            self._record(key, executor, send)
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen.add(again)

    def _record(self, key: Key, executor: Executor, send: Callable[[], None]) -> None:
        """Record a size; one that cannot be recorded is launched kernel by kernel from now on, and the user is told."""
        try:
            recorded = executor.record(send)
        except (EngineError, RuntimeError) as error:
            self.refused[key] = str(error)
            more = " No further size is tried." if len(self.refused) >= MOST_REFUSED else ""
            warnings.warn(
                f"A CUDA graph of {key[1]} atoms x {key[2]} slots could not be recorded, so that this size is launched "
                f"kernel by kernel, with the same results: {error}{more}",
                RuntimeWarning,
                stacklevel=7,
            )
            return
        self._forget(key)  # the one on addresses of before; only now, since it may be the last that holds their pool
        self._recorded[key] = (self._arena.generation, recorded)
        while len(self._recorded) > MOST_GRAPHS:
            self._forget(next(iter(self._recorded)))

    def _forget(self, key: Key) -> None:
        _, recorded = self._recorded.pop(key, (0, None))
        if recorded is not None:
            recorded.close()

    def close(self) -> None:
        """Give back every graph; may be called twice."""
        for key in self.keys:
            self._forget(key)
