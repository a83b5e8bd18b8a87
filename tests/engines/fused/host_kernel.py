"""The kernel as a GPU's plan cuts it, on a CPU: the very phases, compiled by g++, a block after the other."""

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from painn_deploy.engines.fused.gpu import TYPES, LoadedPlan
from painn_deploy.engines.fused.packed import defined
from painn_deploy.engines.fused.plan import Plan
from painn_deploy.engines.fused.source import HOST_SOURCE
from tests.engines import emulated_gpu

_folder = TemporaryDirectory(prefix="fused")

OF_THE_HOST = ("ROWS", "PAIRS", "THREADS", "LEAST_BLOCKS", "SCRATCH", "CHUNK_FORWARD", "CHUNK_ADJOINT", "WORK")
"""Constants of a GPU's kernel that are arguments of a CPU's."""


@cache
def compiled(source: str) -> Any:
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    folder = Path(_folder.name)
    (folder / f"{name}.cpp").write_text(source)
    command = [shutil.which("g++") or "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    quiet = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-psabi"]
    subprocess.run([*command, *quiet, f"{name}.cpp", "-o", f"{name}.so"], check=True, cwd=folder)
    return ctypes.CDLL(str(folder / f"{name}.so")).evaluate


class HostKernel:
    """In place of a `GroupsKernel`: what it is sent, on the emulated GPU, by blocks of one thread or of several.

    Of each block the memory is as large as the plan says, and NaN.
    """

    def __init__(self, cuda: emulated_gpu.EmulatedCuda, plan: Plan, threads: int = 1) -> None:
        macros = plan.macros()
        self._cuda, self._plan, self._threads = cuda, plan, threads
        self._run = compiled(defined({k: v for k, v in macros.items() if k not in OF_THE_HOST}) + HOST_SOURCE)
        names = ("ROWS", "PAIRS", "CHUNK_FORWARD", "CHUNK_ADJOINT", "WORK")
        self._sizes = np.array([macros[name] for name in names], np.int32)
        self.sent: list[int] = []

    def send(self, stream: int, blocks: int, values: Sequence[Any]) -> None:
        assert len(values) == len(TYPES)
        self._cuda.sent(stream)
        self.sent.append(blocks)
        self._cuda.do(lambda: self.evaluate(blocks, values))

    def evaluate(self, blocks: int, values: Sequence[Any]) -> None:
        """All groups, those of the last block first."""
        weights, numbers, displacements, reverse, mask, shares, width, groups, scratch, *outputs = values
        count = int(emulated_gpu.array_at(groups, (1,), "int32")[0])
        bounds = emulated_gpu.array_at(groups + 4, (count + 1,), "int32")
        inputs = [weights, numbers, displacements, reverse, mask, shares]
        for block in reversed(range(blocks)):
            memory, far = aligned(self._plan.shared // 4), aligned(self._plan.scratch)
            own = [memory.ctypes.data, far.ctypes.data, self._sizes.ctypes.data]
            for group in range(block, count, blocks):
                one = np.array([1, *bounds[group : group + 2]], np.int32)
                self._together([*own, *inputs, width, one.ctypes.data, *outputs])
            assert all(np.isnan(one.base[-GUARD:]).all() for one in (memory, far)), "a block wrote beyond its memory"
            given = emulated_gpu.array_at(scratch + 4 * self._plan.scratch * block, far.shape, "float32")
            given[:] = far  # there is as much of it

    def _together(self, values: Sequence[Any]) -> None:
        """All threads of a block, on one group."""
        meeting = np.zeros(3, np.int32)
        typed = [ctypes.c_int(v) if place == 9 else ctypes.c_void_p(v) for place, v in enumerate(values)]

        def run(thread: int) -> None:
            self._run(ctypes.c_int(thread), ctypes.c_int(self._threads), ctypes.c_void_p(meeting.ctypes.data), *typed)

        if self._threads == 1:
            run(0)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(run, range(self._threads)))

    def close(self) -> None:
        pass


def loaded(cuda: emulated_gpu.EmulatedCuda, plans: Sequence[Plan], threads: int = 1) -> list[LoadedPlan]:
    return [LoadedPlan(plan, HostKernel(cuda, plan, threads)) for plan in plans]


GUARD = 64


def aligned(numbers: int) -> np.ndarray:
    """NaN, at an address that sixteen numbers may be read from at once; so are the numbers after it."""
    room = np.full(numbers + 16 + GUARD, np.nan, np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + numbers]
