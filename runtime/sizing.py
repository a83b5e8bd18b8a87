"""How large a batch should be here: measured once for an engine, device and machine, and remembered.

A CPU is fastest while a batch's tensors stay in its cache, a GPU once they fill it; both show in the time that a
structure takes as batches double.
"""

import contextlib
import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from painn_deploy.engines.cache import cache_folder
from painn_deploy.engines.gpu.driver import gpu_of
from painn_deploy.export.errors import EngineError
from painn_deploy.export.files import to_json, write_whole
from painn_deploy.runtime.neighbours import LocalGraph, join

if TYPE_CHECKING:
    from painn_deploy.runtime.calculator import PaiNNCalculator

__all__ = ["measured_batch_slots", "remembered_batch_slots"]

SIZES = tuple(2**power for power in range(9, 16))
"""Atoms x slots that are tried: 512 to 32,768, which is some 0.4 GB on a CPU at 96 features."""

SIZES_GPU = tuple(2**power for power in range(12, 22))
CLOSE = 1.05
"""Of sizes as fast as the best within this, the smallest is taken: it needs least memory."""

ROUNDS = 8


def remembered_batch_slots(calculator: "PaiNNCalculator") -> int | None:
    """Atoms x slots of a batch as measured here before; None if it was not, or cannot be read."""
    try:
        slots = json.loads(_file(calculator).read_text(encoding="utf-8"))["batch_slots"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return slots if isinstance(slots, int) and SIZES[0] <= slots <= SIZES_GPU[-1] else None


def measured_batch_slots(calculator: "PaiNNCalculator") -> int:
    """Measure, and remember; takes a few seconds.

    Raises:
        EngineError: the engine cannot run the smallest batch.
    """
    times = _times(calculator)
    best = min(times.values())
    slots = next(size for size, spent in sorted(times.items()) if spent <= CLOSE * best)
    _remember(calculator, slots, times)
    return slots


def _times(calculator: "PaiNNCalculator") -> dict[int, float]:
    """Least seconds a structure by batch size; in rounds, so that a busy moment decides nothing."""
    graph = _molecule(calculator)
    atoms, slots = len(graph.numbers), graph.slots
    batches: dict[int, int] = {}
    for size in SIZES if calculator.engine_info["device"] == "cpu" else SIZES_GPU:
        copies = max(1, size // (atoms * slots))
        if calculator.most_atoms is None or copies * atoms <= calculator.most_atoms or not batches:
            batches[size] = copies
    times = dict.fromkeys(batches, float("inf"))
    for round_ in range(1 + ROUNDS):
        for size, copies in list(batches.items()):
            try:
                spent = _time(calculator, [graph] * copies) / copies
            except (EngineError, MemoryError):
                if size == min(batches):
                    raise
                del batches[size], times[size]
                continue
            if round_:  # the first one warms up
                times[size] = min(times[size], spent)
    return times


def _time(calculator: "PaiNNCalculator", graphs: list[LocalGraph]) -> float:
    started = time.perf_counter()
    calculator.run_graph(join(graphs))
    return time.perf_counter() - started


def _molecule(calculator: "PaiNNCalculator") -> LocalGraph:
    """Twelve atoms on a jittered grid: the work depends on sizes, not on what is computed."""
    grid = 1.5 * np.stack(np.meshgrid(range(3), range(2), range(2)), axis=-1).reshape(-1, 3)
    positions = grid + np.random.default_rng(0).normal(0, 0.1, grid.shape)
    return LocalGraph.of(Atoms([calculator.manifest.species[0]] * len(grid), positions), calculator.manifest.cutoff)


def _file(calculator: "PaiNNCalculator") -> Path:
    key = json.dumps([dict(calculator.engine_info), calculator.threads, platform.node(), *_machine(calculator)])
    return cache_folder() / f"batch-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _machine(calculator: "PaiNNCalculator") -> list[str | int | None]:
    """Processor and number of cores, and the GPU if the engine runs on one."""
    gpu = gpu_of(calculator.engine_info["device"])
    return [_processor(), os.cpu_count(), *([] if gpu is None else [gpu])]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _remember(calculator: "PaiNNCalculator", slots: int, times: dict[int, float]) -> None:
    """A folder that cannot be written costs the next process a few seconds, and nobody an answer."""
    path = _file(calculator)
    processor, cores, *gpu = _machine(calculator)
    facts = {
        "batch_slots": slots,
        "engine": dict(calculator.engine_info),
        "threads": calculator.threads,
        "machine": ", ".join(map(str, (processor, f"{cores} cores", *gpu))),
        "microseconds_a_structure": {str(size): round(1e6 * spent, 2) for size, spent in times.items()},
    }
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json(facts))
