"""Displacements and mask formed on the device, so that a step of dynamics uploads positions and nothing else."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from painn_deploy.engines.gpu.cuda import call
from painn_deploy.engines.session import Closing
from painn_deploy.export.errors import EngineError, EngineUnavailableError

__all__ = ["KERNEL", "KERNEL_NAME", "DisplacementKernel", "compile_kernel"]

KERNEL_NAME = "displacements_and_mask"
KERNEL = r"""
// One thread a slot. d = (r_j - r_i) + shift in float64, then rounded, as the host does; an edge is a stored pair with
// |d| < cutoff in float64. Compiled without fused multiply-add, so that host and device agree to the bit.
extern "C" __global__ void displacements_and_mask(
    const double* positions, const int* neighbours, const double* shifts, const unsigned char* stored,
    double cutoff, int atoms, int slots, float* displacements, float* mask)
{
    long long slot = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= (long long)atoms * slots) return;
    const double* here = positions + 3 * (slot / slots);
    const double* there = positions + 3 * (long long)neighbours[slot];
    double squared = 0.0;
    for (int axis = 0; axis < 3; ++axis) {
        double d = stored[slot] ? (there[axis] - here[axis]) + shifts[3 * slot + axis] : 0.0;
        displacements[3 * slot + axis] = (float)d;
        squared += d * d;
    }
    mask[slot] = stored[slot] && sqrt(squared) < cutoff ? 1.0f : 0.0f;
}
"""
THREADS = 256


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        call(nvrtc.nvrtcVersion)
    except (ImportError, RuntimeError) as error:
        raise EngineUnavailableError(
            "NVRTC, which compiles the kernel that forms displacements, is not installed: it comes with "
            'pip install "painn-deploy[tensorrt-rtx]" and "painn-deploy[tensorrt]".'
        ) from error
    return nvrtc


@cache
def compile_kernel(capability: str) -> bytes:
    """Machine code of the kernel for a compute capability, such as `86`; needs no GPU.

    Raises:
        EngineUnavailableError: NVRTC is not installed.
        EngineError: it does not compile; with the compiler's log.
    """
    nvrtc = _nvrtc()
    program = call(nvrtc.nvrtcCreateProgram, KERNEL.encode(), b"displacements.cu", 0, [], [])
    options = [f"--gpu-architecture=sm_{capability}".encode(), b"--fmad=false"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status) != 0:
        log = b" " * call(nvrtc.nvrtcGetProgramLogSize, program)
        call(nvrtc.nvrtcGetProgramLog, program, log)
        said = " ".join(log.decode().replace("\0", " ").split())
        raise EngineError(
            f"NVRTC cannot compile for compute capability {capability}: {said}. A GPU that is younger than it needs a "
            "later one: pip install --upgrade nvidia-cuda-nvrtc."
        )
    code: bytes = b" " * call(nvrtc.nvrtcGetCUBINSize, program)
    call(nvrtc.nvrtcGetCUBIN, program, code)
    return code


class DisplacementKernel(Closing):
    """The kernel on one GPU.

    Args:
        capability: of the GPU, whose context is the current one.
    """

    def __init__(self, capability: str) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._library = call(driver.cuLibraryLoadData, compile_kernel(capability), [], [], 0, [], [], 0)
        kernel = call(driver.cuLibraryGetKernel, self._library, KERNEL_NAME.encode())
        self._function = call(driver.cuKernelGetFunction, kernel)

    def launch(self, stream: int, atoms: int, slots: int, cutoff: float, addresses: Sequence[int]) -> None:
        """Send the kernel to a stream.

        Args:
            stream: its handle.
            atoms: rows.
            slots: columns.
            cutoff: Å.
            addresses: of positions, neighbours, shifts, stored, displacements and mask.
        """
        *inputs, displacements, mask = addresses
        values = (*inputs, cutoff, atoms, slots, displacements, mask)
        types = (*[ctypes.c_void_p] * 4, ctypes.c_double, ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * 2)
        grid = (-(-atoms * slots // THREADS), 1, 1)
        block = (THREADS, 1, 1)
        call(self._driver.cuLaunchKernel, self._function, *grid, *block, 0, stream, (values, types), 0)

    def close(self) -> None:
        """Unload it; may be called twice."""
        if self._library is not None:
            library, self._library, self._function = self._library, None, None
            call(self._driver.cuLibraryUnload, library)
