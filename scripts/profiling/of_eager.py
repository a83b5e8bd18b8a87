"""The time of each part of a student in PyTorch eager mode, found by hooks on its modules."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from painn_deploy.export.model.painn import PaiNN
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, Edges
from painn_deploy.scripts.profiling.purposes import MESSAGES, RADIAL, READOUT, UPDATES

__all__ = ["BACKWARD", "Clock", "eager_parts", "eager_trace"]

BACKWARD = "backward"
WARM_UP = 3


class Clock:
    """Adds up the time between calls of `enter`, by part; each part is also a range in a profiler's trace.

    Args:
        device: that is waited for before the time is read.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device != "cpu"
        self._began, self._part, self._open = 0.0, "", ExitStack()
        self.seconds: dict[str, float] = {}

    def enter(self, part: str) -> None:
        """End what runs, and begin a part; an empty name begins none."""
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._part:
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self._began
        self._open.close()
        self._part = part
        if part:
            self._open.enter_context(record_function(part))
        self._began = time.perf_counter()


@contextmanager
def _followed(model: EagerModel, clock: Clock) -> Iterator[None]:
    """Let a student's modules tell the clock which part begins: it computes them in the order of its equations."""

    def enter(part: str) -> Callable[..., None]:
        return lambda *_: clock.enter(part)

    student: Any = model.student
    with ExitStack() as hooks:

        def before(module: torch.nn.Module, part: str) -> None:
            hooks.callback(module.register_forward_pre_hook(enter(part)).remove)

        before(student.embedding, MESSAGES)
        before(student.readout, READOUT)
        if isinstance(student, PaiNN):
            for message, mixing in zip(student.message, student.mixing, strict=True):
                before(message, MESSAGES)
                before(mixing, UPDATES)
        else:  # its filters are networks of their own in every layer
            for filters, update in zip(student.filters, student.update, strict=True):
                before(filters, RADIAL)
                hooks.callback(filters.register_forward_hook(enter(MESSAGES)).remove)
                before(update, UPDATES)
        yield


def _evaluate(model: EagerModel, edges: Edges, clock: Clock, *, forces: bool) -> None:
    positions = edges.positions.detach().requires_grad_(forces)
    clock.enter(RADIAL)
    with torch.set_grad_enabled(forces):
        energies = model.energies(edges._replace(positions=positions))
        if forces:
            clock.enter(BACKWARD)
            torch.autograd.grad(energies.sum(), positions)
    clock.enter("")


def eager_parts(
    model: EagerModel, fresh: Callable[[], Edges], *, device: str, calls: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median ms of each part, of the energy alone and of energy and forces, taken in turns.

    Args:
        model: a student.
        fresh: makes the input of one call.
        device: that the model is on.
        calls: of each, after a few that warm up.
    """
    spent: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    clock = Clock(device)
    with _followed(model, clock):
        for _ in range(WARM_UP + calls):
            for forces in (False, True):
                edges = fresh()
                clock.seconds = {}
                _evaluate(model, edges, clock, forces=forces)
                spent[forces].append(clock.seconds)
    energy, both = (
        {part: 1e3 * float(np.median([seconds[part] for seconds in runs[WARM_UP:]])) for part in runs[0]}
        for runs in spent
    )
    return energy, both


def eager_trace(
    model: EagerModel, fresh: Callable[[], Edges], trace: Path, *, device: str, calls: int, forces: bool
) -> dict[str, float]:
    """Write a chrome trace whose ranges are the parts.

    Args:
        model: a student.
        fresh: makes the input of one call.
        trace: file to write.
        device: that the model is on.
        calls: in the trace, after a few that warm up.
        forces: of energy and forces; else of the energy alone.

    Returns:
        Milliseconds a call in each of torch's operators, by name.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    clock = Clock(device)
    with _followed(model, clock):
        for _ in range(WARM_UP):
            _evaluate(model, fresh(), clock, forces=forces)
        inputs = [fresh() for _ in range(calls)]
        with profile(activities=activities) as profiler:
            for edges in inputs:
                _evaluate(model, edges, clock, forces=forces)
    profiler.export_chrome_trace(str(trace))
    return {
        event.key: 1e-3 * event.self_cpu_time_total / calls
        for event in profiler.key_averages()
        if event.key.startswith("aten::")
    }
