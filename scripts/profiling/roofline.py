"""How near an engine is to what its machine can do at most: the least time of its graph's arithmetic and traffic.

An evaluation multiplies and adds what its engine's form of the graph says, and reads weights and inputs and writes
outputs at least once (`painn_deploy.scripts.profiling.costs` counts both). The machine's peaks are measured in the same
run, by copying a large array and by multiplying large matrices; no data sheet is believed. The time that remains if the
slower of the two were all there is (Williams, Waterman & Patterson, Communications of the ACM 52, 65, 2009) is a bound
from below.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from painn_deploy.engines import get_backend
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.profiling.costs import Cost, count

__all__ = ["Peaks", "Roof", "measured_peaks", "roof", "rooflines"]

COPIED = {"cpu": 2**28, "cuda": 2**30}
"""Bytes of the array that is copied: more than any cache holds, and so many that starting takes no part of the time."""

ORDERS = {"cpu": 1536, "cuda": 8192}
"""Of the matrices that are multiplied."""

REPEATS = 5
MAY_USE = {
    "fp64": (torch.float64,),
    "fp32": (torch.float32,),
    "fp16": (torch.float32, torch.float16),
    "int8": (torch.float32, torch.float16, torch.int8),
}
"""Data types that an engine of each precision may multiply in; the fastest gives the bound. FP16 is excluded on CPUs,
where our engines widen it to FP32."""


@dataclass(frozen=True)
class Peaks:
    """The peaks of a machine.

    Attributes:
        bytes_per_second: read and written, of a copy.
        multiply_adds_per_second: of products of large matrices, by precision of an engine.
    """

    bytes_per_second: float
    multiply_adds_per_second: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "bytes_per_second": self.bytes_per_second,
            "multiply_adds_per_second": dict(self.multiply_adds_per_second),
        }


@dataclass(frozen=True)
class Roof:
    """The least time of one evaluation.

    Attributes:
        milliseconds: no engine takes less.
        bound: what it is the time of, `arithmetic` or `memory`.
    """

    milliseconds: float
    bound: str


def measured_peaks(device: str, precisions: Sequence[str] = ("fp32",)) -> Peaks:
    """Copy and multiply on a device, all threads that torch has, the best of a few tries.

    Args:
        device: `cpu` or `cuda`.
        precisions: of the engines in question.

    Raises:
        PaiNNDeployError: torch has no such device here.
    """
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise PaiNNDeployError("There is no GPU that torch can use here, so that its peaks cannot be measured.")
    may_use = {p: [t for t in MAY_USE[p] if kind != "cpu" or t is not torch.float16] for p in precisions}
    rates = {t: _rate(t, device, ORDERS[kind]) for t in {t for types in may_use.values() for t in types}}
    by_precision = {precision: max(rates[t] for t in types) for precision, types in may_use.items()}
    return Peaks(_bandwidth(device, kind), by_precision)


def _bandwidth(device: str, kind: str) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.randn(COPIED[kind] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED[kind] / _best(lambda: target.copy_(source), kind)


def _rate(dtype: torch.dtype, device: str, order: int) -> float:
    """Multiply-adds a second in one type; zero where torch has no product of it, which then bounds nothing.

    The numbers are random: of ones and zeros few bits flip, a GPU takes less power for them, and runs faster.
    """
    shape = order, order
    if dtype is torch.int8:
        matrix = torch.randint(-127, 128, shape, dtype=dtype, device=device)
    else:
        matrix = torch.randn(shape, device=device).to(dtype)

    def multiply() -> object:
        return torch._int_mm(matrix, matrix) if dtype is torch.int8 else matrix @ matrix

    try:
        multiply()
    except (RuntimeError, NotImplementedError):
        return 0.0
    return float(order**3 / _best(multiply, matrix.device.type))


def _best(work: Callable[[], object], kind: str) -> float:
    """Seconds of the fastest of a few calls, after one that warms up."""
    spent = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    return min(spent[1:])


def roof(cost: Cost, peaks: Peaks, precision: str) -> Roof:
    """The larger of the times of all multiply-adds and of the least traffic.

    Args:
        cost: of one evaluation.
        peaks: of the machine.
        precision: of the engine.
    """
    times = {
        "arithmetic": 1e3 * cost.multiply_adds / peaks.multiply_adds_per_second[precision],
        "memory": 1e3 * cost.bytes_least / peaks.bytes_per_second,
    }
    bound = max(times, key=times.__getitem__)
    return Roof(times[bound], bound)


def rooflines(
    bundles: Mapping[str, Path], throughput: Sequence[Mapping[str, Any]], one: Atoms, device: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine's peaks, and for each bundle how much of them its engine used, at the least and the largest batch.

    Args:
        bundles: by the contender's name.
        throughput: rows of benchmark.json under that name.
        one: the molecule whose copies they are.
        device: that they ran on, `cpu` or `cuda`.

    Returns:
        The peaks, and rows with `candidate`, `batch`, `multiply_adds`, `bytes_least`, `milliseconds` of the engine
        alone, `least_milliseconds`, `bound`, and `share`, the bound over the engine's time, which may pass one where
        the machine's speed wanders between the two measurements.
    """
    opened = {name: read_bundle(path) for name, path in bundles.items()}
    precisions = list(dict.fromkeys(bundle.manifest.precision for bundle in opened.values()))
    peaks = measured_peaks(device, precisions)
    rows = []
    for name, bundle in opened.items():
        backend = get_backend(bundle.manifest.engine)
        timed = {r["batch"]: r["engine"] for r in throughput if r["candidate"] == name and r["engine"]}
        for batch in sorted({min(timed), max(timed)}):
            inputs = graph_inputs([one] * batch, bundle.manifest.cutoff)
            atoms, slots = inputs.mask.shape
            graph = backend.executed_graph(bundle, atoms, slots)
            cost = count(graph, atoms, slots, len(pair_inputs(inputs.reverse).pairs))
            least = roof(cost, peaks, bundle.manifest.precision)
            spent = timed[batch]["milliseconds"]
            rows.append(
                {
                    "candidate": name,
                    "batch": batch,
                    "multiply_adds": cost.multiply_adds,
                    "bytes_least": cost.bytes_least,
                    "milliseconds": spent,
                    "least_milliseconds": least.milliseconds,
                    "bound": least.bound,
                    "share": least.milliseconds / spent,
                }
            )
    return peaks.as_dict(), rows
