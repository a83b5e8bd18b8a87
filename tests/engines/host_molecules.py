"""The kernel of whole molecules on a CPU: its very source, compiled by g++ with one thread a block."""

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

RUN = """
extern "C" void run(int of, const float* weights, const int* numbers, const double* positions, const int* first,
    const int* count, const int* groups, int group_count, float* scratch, float* energies, float* forces,
    float* virials, double* nearest)
{
    blocks = of;
    for (block = of - 1; block >= 0; --block)
        molecules(weights, numbers, positions, first, count, groups, group_count, scratch, energies, forces, virials,
            nearest);
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
    command = [shutil.which("g++") or "c++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"]
    # a pragma of NVRTC, and a constant that may be 0 times something
    quiet = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
    subprocess.run([*command, *quiet, f"{name}.cpp", "-o", f"{name}.so"], check=True, cwd=folder)
    return ctypes.CDLL(str(folder / f"{name}.so")).run


def evaluate(plan: Plan, numbers: np.ndarray, positions: np.ndarray, starts: np.ndarray, blocks: int = 2) -> Result:
    """A batch, by so many blocks, the last of which is run first."""
    atoms = len(numbers)
    sizes = np.diff(starts, append=atoms)
    first, count = np.repeat(starts, sizes).astype(np.int32), np.repeat(sizes, sizes).astype(np.int32)
    groups = groups_of(starts, atoms, plan.rows)
    scratch = np.full(plan.scratch * blocks + 4, np.nan, np.float32)
    shift = -scratch.ctypes.data % 16 // 4
    weights = np.zeros(len(plan.packed.weights) + 4, np.float32)
    aligned = -weights.ctypes.data % 16 // 4
    weights = weights[aligned : aligned + len(plan.packed.weights)]
    weights[:] = plan.packed.weights
    result = Result(
        *(np.full((atoms, *shape), np.nan, np.float32) for shape in ((), (3,), (3, 3))), np.full(atoms, np.nan)
    )
    numbers, positions = np.ascontiguousarray(numbers, np.int32), np.ascontiguousarray(positions, np.float64)
    inputs = (weights, numbers, positions, first, count, groups)
    compiled(plan.source())(
        ctypes.c_int(blocks),
        *(ctypes.c_void_p(array.ctypes.data) for array in inputs),
        ctypes.c_int(len(groups) - 1),
        *(ctypes.c_void_p(array.ctypes.data) for array in (scratch[shift:], *result)),
    )
    return result
