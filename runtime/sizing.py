"""How large a batch should be here: measured once for an engine, device and machine, and remembered.

A CPU is fastest while a batch's tensors stay in its cache, a GPU once they fill it; both show in the time that a
structure takes as batches double.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms

from painn_deploy.engines import EngineInfo
from painn_deploy.engines.kept import cache_folder, keep, kept
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphInputs, real_type
from painn_deploy.export.files import to_json
from painn_deploy.export.parsing import UnreadableError, parse_json
from painn_deploy.export.progress import Tell, counting, silent
from painn_deploy.runtime.machine import machine
from painn_deploy.runtime.matrix import LocalGraph, join

__all__ = ["BatchSizes"]

Run = Callable[[GraphInputs], object]

SIZES = tuple(2**power for power in range(9, 16))
"""Atoms x slots that are tried: 512 to 32,768, which is some 0.4 GB on a CPU at 96 features."""

SIZES_GPU = tuple(2**power for power in range(12, 22))
CLOSE = 1.05
"""Sizes within 5 % of the fastest count as equal; the smallest of them is taken, as it needs least memory."""

ROUNDS = 8
LARGEST = 2**16
"""Bytes of what is remembered."""


class BatchSizes:
    """Batch sizes of one engine on this machine.

    Args:
        info: what runs.
        threads: of the CPU, as the engine was opened with.
    """

    def __init__(self, info: EngineInfo, threads: int | None) -> None:
        self._info, self._threads = info, threads

    def remembered(self) -> int | None:
        """Atoms x slots of a batch as measured here before; None if it was not, or cannot be read."""
        if (content := kept(self._file(), LARGEST)) is None:
            return None
        try:
            slots = parse_json(content, "").get("batch_slots")
        except UnreadableError:
            return None
        return slots if type(slots) is int and SIZES[0] <= slots <= SIZES_GPU[-1] else None

    def measured(self, run: Run, element: int, cutoff: float, most_atoms: int | None, tell: Tell = silent) -> int:
        """Atoms x slots of the fastest batch; measured in a few seconds, and remembered.

        Args:
            run: the engine.
            element: atomic number that it knows.
            cutoff: Å.
            most_atoms: that a batch may hold; None for any number.
            tell: called with how many rounds are done.

        Raises:
            EngineError: the engine cannot run the smallest batch.
        """
        times = self._times(run, _molecule(element, cutoff), most_atoms, tell)
        best = min(times.values())
        slots = next(size for size, spent in sorted(times.items()) if spent <= CLOSE * best)
        self._remember(slots, times)
        return slots

    def _times(self, run: Run, graph: LocalGraph, most_atoms: int | None, tell: Tell) -> dict[int, float]:
        """Least seconds a structure by batch size; in rounds, so that a busy moment decides nothing."""
        atoms, slots = graph.size
        batches: dict[int, int] = {}
        for size in SIZES if self._info["device"] == "cpu" else SIZES_GPU:
            copies = max(1, size // (atoms * slots))
            if most_atoms is None or copies * atoms <= most_atoms or not batches:
                batches[size] = copies
        times = dict.fromkeys(batches, float("inf"))
        more = counting(tell, 1 + ROUNDS, "rounds")
        for round_ in range(1 + ROUNDS):
            for size, copies in list(batches.items()):
                started = time.perf_counter()
                try:
                    run(join([graph] * copies, real_type(self._info["precision"])))
                except (EngineError, MemoryError):
                    if size == min(batches):
                        raise
                    del batches[size], times[size]
                    continue
                if round_:  # the first one warms up
                    times[size] = min(times[size], (time.perf_counter() - started) / copies)
            more(1)
        return times

    @property
    def _machine(self) -> str:
        """Processor and number of cores, and the GPU if the engine runs on one."""
        return machine([self._info["device"]])

    def _file(self) -> Path:
        key = json.dumps([dict(self._info), self._threads, platform.node(), self._machine])
        return cache_folder() / f"batch-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

    def _remember(self, slots: int, times: dict[int, float]) -> None:
        """A folder that cannot be written costs the next process a few seconds, and nobody an answer."""
        facts = {
            "batch_slots": slots,
            "engine": dict(self._info),
            "threads": self._threads,
            "machine": self._machine,
            "microseconds_a_structure": {str(size): round(1e6 * spent, 2) for size, spent in times.items()},
        }
        keep(self._file(), to_json(facts))


def _molecule(element: int, cutoff: float) -> LocalGraph:
    """Twelve atoms on a jittered grid: the work depends on sizes, not on what is computed."""
    grid = 1.5 * np.stack(np.meshgrid(range(3), range(2), range(2)), axis=-1).reshape(-1, 3)
    positions = grid + np.random.default_rng(0).normal(0, 0.1, grid.shape)
    return LocalGraph.of(Atoms([element] * len(grid), positions), cutoff)
