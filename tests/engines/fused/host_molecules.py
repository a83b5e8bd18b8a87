"""The kernel of whole molecules on a CPU: its very source, compiled by g++, with one thread a block or several."""

import ctypes
import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from painn_deploy.engines.fused.plan import Plan, groups_of

_folder = TemporaryDirectory(prefix="molecules")

THREADED = {
    "#define THREADS 1\n": "#include <pthread.h>\n#include <thread>\n#define THREADS 5\n"
    "static pthread_barrier_t meeting;\nstatic thread_local int thread;\n",
    "#define BARRIER\n": "#define BARRIER pthread_barrier_wait(&meeting)\n",
    "#define THREAD 0\n": "#define THREAD thread\n",
}
"""What makes a block of several threads, so that a barrier too few changes results."""

RUN = """
extern "C" void run(int of, const float* weights, const int* numbers, const double* positions, const int* first,
    const int* count, const int* groups, int group_count, float* scratch, float* energies, float* forces,
    float* virials, double* nearest)
{
    blocks = of;
    auto all = [=] {
        molecules(weights, numbers, positions, first, count, groups, group_count, scratch, energies, forces, virials,
            nearest);
    };
    for (block = of - 1; block >= 0; --block) {
#if THREADS == 1
        all();
#else
        pthread_barrier_init(&meeting, nullptr, THREADS);
        std::thread* threads[THREADS];
        for (int i = 0; i < THREADS; ++i) threads[i] = new std::thread([=] { thread = i; all(); });
        for (auto each : threads) {
            each->join();
            delete each;
        }
        pthread_barrier_destroy(&meeting);
#endif
    }
}
"""


class Result(NamedTuple):
    energies: np.ndarray
    forces: np.ndarray
    virials: np.ndarray
    nearest: np.ndarray


@cache
def compiled(source: str) -> Any:
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    folder = Path(_folder.name)
    (folder / f"{name}.cpp").write_text(source + RUN)
    command = [shutil.which("g++") or "c++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    quiet = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
    subprocess.run([*command, *quiet, f"{name}.cpp", "-o", f"{name}.so"], check=True, cwd=folder)
    return ctypes.CDLL(str(folder / f"{name}.so")).run


def threaded(source: str) -> str:
    for old, new in THREADED.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    return source


def evaluate(
    plan: Plan, numbers: np.ndarray, positions: np.ndarray, starts: np.ndarray, blocks: int = 2, threads: bool = False
) -> Result:
    """A batch, by so many blocks, the last of which is run first."""
    atoms = len(numbers)
    sizes = np.diff(starts, append=atoms)
    first, count = np.repeat(starts, sizes).astype(np.int32), np.repeat(sizes, sizes).astype(np.int32)
    groups = groups_of(starts, atoms, plan.rows)
    scratch, weights = aligned(plan.scratch * blocks), aligned(len(plan.packed.weights))
    weights[:] = plan.packed.weights
    shapes = ((), (3,), (3, 3))
    result = Result(*(np.full((atoms, *shape), np.nan, np.float32) for shape in shapes), np.full(atoms, np.nan))
    numbers, positions = np.ascontiguousarray(numbers, np.int32), np.ascontiguousarray(positions, np.float64)
    inputs = (weights, numbers, positions, first, count, groups)
    source = threaded(plan.source()) if threads else plan.source()
    compiled(source)(
        ctypes.c_int(blocks),
        *(ctypes.c_void_p(array.ctypes.data) for array in inputs),
        ctypes.c_int(len(groups) - 1),
        *(ctypes.c_void_p(array.ctypes.data) for array in (scratch, *result)),
    )
    return result


def aligned(numbers: int) -> np.ndarray:
    """NaN, at an address that four numbers are read from at once."""
    room = np.full(numbers + 4, np.nan, np.float32)
    start = -room.ctypes.data % 16 // 4
    return room[start : start + numbers]
