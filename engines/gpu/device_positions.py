"""Displacements and mask formed on the device, so that a step of dynamics uploads positions and nothing else."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

from painn_deploy.engines.gpu.cuda import call
from painn_deploy.engines.session import Closing
from painn_deploy.export.errors import EngineError, EngineUnavailableError

__all__ = ["KERNEL", "KERNEL_NAME", "DeviceKernel", "DisplacementKernel", "LoadedKernel", "compile_kernel"]

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
            "NVRTC, which compiles kernels for GPUs, is not installed: it comes with "
            'pip install "painn-deploy[tensorrt-rtx]" and "painn-deploy[tensorrt]".'
        ) from error
    return nvrtc


@cache
def compile_kernel(capability: str, source: str = KERNEL, *, fmad: bool = False) -> bytes:
    """Machine code of a kernel; needs no GPU.

    Args:
        capability: compute capability, such as `86`.
        source: in CUDA C++.
        fmad: whether a product and a sum may become one operation, whose last bit differs from a host's.

    Raises:
        EngineUnavailableError: NVRTC is not installed.
        EngineError: it does not compile; with the compiler's log.
    """
    nvrtc = _nvrtc()
    program = call(nvrtc.nvrtcCreateProgram, source.encode(), b"kernel.cu", 0, [], [])
    options = [f"--gpu-architecture=sm_{capability}".encode(), f"--fmad={str(fmad).lower()}".encode()]
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


class LoadedKernel(Closing):
    """Machine code on one GPU, whose context is the current one.

    Args:
        code: of NVRTC.
        name: of the kernel in it.

    Raises:
        EngineError: the GPU refuses it.
    """

    def __init__(self, code: bytes, name: str) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._library = call(driver.cuLibraryLoadData, code, [], [], 0, [], [], 0)
        kernel = call(driver.cuLibraryGetKernel, self._library, name.encode())
        self._function = call(driver.cuKernelGetFunction, kernel)

    def close(self) -> None:
        """Unload it; may be called twice."""
        if self._library is not None:
            library, self._library, self._function = self._library, None, None
            call(self._driver.cuLibraryUnload, library)


class DeviceKernel(LoadedKernel):
    """A kernel on one GPU, a thread for each slot of a matrix or entry of a table.

    Args:
        capability: of the GPU, whose context is the current one.

    Attributes:
        source: in CUDA C++, of each kind of kernel.
        name: of the kernel in it.

    Raises:
        EngineUnavailableError: NVRTC is not installed.
        EngineError: it does not compile, or the GPU refuses it.
    """

    source: ClassVar[str]
    name: ClassVar[str]

    def __init__(self, capability: str) -> None:
        super().__init__(compile_kernel(capability, self.source), self.name)

    def send(self, stream: int, threads: int, values: Sequence[Any], types: Sequence[Any]) -> None:
        """Send the kernel to a stream.

        Args:
            stream: its handle.
            threads: how many there are at least; those of the last block may be more.
            values: of the kernel's arguments.
            types: of the same, of ctypes.
        """
        grid = (-(-threads // THREADS), 1, 1)
        block = (THREADS, 1, 1)
        call(self._driver.cuLaunchKernel, self._function, *grid, *block, 0, stream, (tuple(values), tuple(types)), 0)


class DisplacementKernel(DeviceKernel):
    """The kernel that forms displacements and mask of a structure whose neighbours stand, on one GPU."""

    source, name = KERNEL, KERNEL_NAME

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
        self.send(stream, atoms * slots, values, types)
