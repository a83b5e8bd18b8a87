"""The few calls of CUDA that a session needs, through cuda-python: devices, streams, memory, graphs, a kernel.

Every call is checked; none of them imports torch.
"""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from painn_deploy.export.errors import DeviceMemoryError, EngineError, EngineUnavailableError

__all__ = ["Arena", "call", "capture", "compute_capability", "gpus", "nvtx_range", "runtime"]

GRANULE = 256
"""Bytes that device addresses are multiples of."""


def runtime() -> Any:
    """The CUDA runtime.

    Raises:
        EngineUnavailableError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise EngineUnavailableError(
            "cuda-python is not installed, which running TensorRT needs: it comes with "
            'pip install "painn-deploy[tensorrt-rtx]" and "painn-deploy[tensorrt]".'
        ) from error
    return module


def call(function: Any, *arguments: Any) -> Any:
    """Call CUDA; its first result says whether it worked.

    Raises:
        DeviceMemoryError: there is not enough memory.
        EngineError: it did not work; with CUDA's name for why.
    """
    status, *results = function(*arguments)
    if int(status) != 0:
        reason = getattr(status, "name", str(status))
        if "OutOfMemory" in reason or "MemoryAllocation" in reason or "OUT_OF_MEMORY" in reason:
            raise DeviceMemoryError(f"{function.__name__} failed: {reason}.")
        raise EngineError(f"{function.__name__} failed: {reason}.")
    return results[0] if len(results) == 1 else tuple(results)


def gpus() -> tuple[str, ...]:
    """NVIDIA GPUs that can be used here, as `cuda:0` and so on; none where there is no driver."""
    cuda = runtime()
    try:
        count = call(cuda.cudaGetDeviceCount)
    except (EngineError, RuntimeError):  # no driver, or one that is too old
        return ()
    return tuple(f"cuda:{index}" for index in range(count))


def compute_capability(index: int) -> str:
    """Of a GPU, such as `86`."""
    cuda = runtime()
    attributes = cuda.cudaDeviceAttr
    major = call(cuda.cudaDeviceGetAttribute, attributes.cudaDevAttrComputeCapabilityMajor, index)
    minor = call(cuda.cudaDeviceGetAttribute, attributes.cudaDevAttrComputeCapabilityMinor, index)
    return f"{major}{minor}"


def nvtx_range(name: str) -> AbstractContextManager[Any]:
    """A named range in NVIDIA's profilers, where nvtx is installed."""
    try:
        import nvtx
    except ImportError:
        return nullcontext()
    return nvtx.annotate(name, domain="painn_deploy")  # type: ignore[no-any-return]


class Arena:
    """Device memory and pinned host memory of one lane, by name; each grows and is kept from call to call.

    Args:
        cuda: the CUDA runtime.

    Attributes:
        generation: counts growths: addresses that were taken before the last one are void.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._device: dict[str, tuple[int, int]] = {}
        self._pinned: dict[str, tuple[int, int]] = {}
        self.generation = 0

    def device(self, name: str, size: int) -> int:
        """Address of at least `size` bytes on the device.

        Raises:
            DeviceMemoryError: there is not so much; what was there under this name is gone.
        """
        return self._reserve(self._device, self._cuda.cudaMalloc, self._cuda.cudaFree, name, size)

    def pinned(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array in pinned host memory, which the device copies from and to while the host goes on.

        It is overwritten by the next use of the name.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self._reserve(self._pinned, self._cuda.cudaMallocHost, self._cuda.cudaFreeHost, name, size)
        raw = (ctypes.c_char * size).from_address(address)
        return np.frombuffer(memoryview(raw), dtype).reshape(shape)

    def _reserve(self, held: dict[str, tuple[int, int]], allocate: Any, free: Any, name: str, size: int) -> int:
        address, capacity = held.get(name, (0, 0))
        if size > capacity:
            if address:
                del held[name]
                call(free, address)
            capacity = GRANULE * -(-max(size, 2 * capacity) // GRANULE)
            self.generation += 1
            address = int(call(allocate, capacity))
            held[name] = (address, capacity)
        return address

    def close(self) -> None:
        """Give everything back; may be called twice."""
        for held, free in ((self._device, self._cuda.cudaFree), (self._pinned, self._cuda.cudaFreeHost)):
            while held:
                call(free, held.popitem()[1][0])


@contextmanager
def capture(cuda: Any, stream: Any) -> Iterator[list[Any]]:
    """Record what is sent to a stream instead of running it; the list then holds the executable graph.

    A capture that fails is ended, so that the stream can be used again.
    """
    made: list[Any] = []
    call(cuda.cudaStreamBeginCapture, stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        yield made
    except BaseException:
        _, broken = cuda.cudaStreamEndCapture(stream)
        if broken is not None and int(broken) != 0:
            cuda.cudaGraphDestroy(broken)
        raise
    graph = call(cuda.cudaStreamEndCapture, stream)
    try:
        made.append(call(cuda.cudaGraphInstantiate, graph, 0))
    finally:
        call(cuda.cudaGraphDestroy, graph)
