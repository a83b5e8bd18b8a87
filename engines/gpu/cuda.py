"""The few calls of CUDA that a session needs, through cuda-bindings: devices, streams, memory, graphs, a kernel.

Every call is checked; none of them imports torch.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

from painn_deploy.export.errors import DeviceMemoryError, EngineError, EngineUnavailableError

__all__ = ["call", "capture", "compute_capability", "gpus", "in_words", "no_room", "nvtx_range", "on_device", "runtime"]


def runtime() -> Any:
    """The CUDA runtime.

    Raises:
        EngineUnavailableError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise EngineUnavailableError(
            "cuda-bindings is not installed, which an engine on an NVIDIA GPU needs for memory and streams: "
            'pip install "painn-deploy[cuda]", or cuda-bindings alone.'
        ) from error
    return module


def call(function: Any, *arguments: Any) -> Any:
    """Call CUDA and check its first result, the status.

    Args:
        function: of cuda-bindings.
        *arguments: of that function.

    Returns:
        What the function gives beside the status: nothing, one value, or a tuple.

    Raises:
        DeviceMemoryError: there is not enough memory.
        EngineError: it did not work; with CUDA's name for why.
    """
    status, *results = function(*arguments)
    if int(status) != 0:
        reason = getattr(status, "name", str(status))
        if "OutOfMemory" in reason or "MemoryAllocation" in reason or "OUT_OF_MEMORY" in reason:
            raise no_room(f"{function.__name__} failed with {reason}.")
        raise EngineError(f"{function.__name__} failed: {reason}.")
    return results[0] if len(results) == 1 else tuple(results)


def no_room(said: str) -> DeviceMemoryError:
    """The error for a GPU whose memory is full, with a library's own message."""
    return DeviceMemoryError(
        f"The GPU has too little free memory: {said} Close what else runs on it, or give smaller batches: "
        "calculator.batch_slots = N."
    )


@contextmanager
def in_words(what: str, is_full: Callable[[Exception], bool]) -> Iterator[None]:
    """A block in which errors of a library, which share no base class, are raised as ours.

    Args:
        what: says what failed.
        is_full: whether an error is that of a GPU without room.

    Raises:
        DeviceMemoryError: the GPU's memory is full.
        EngineError: anything else.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise (no_room(str(error)) if is_full(error) else EngineError(f"{what}: {error}")) from error


def gpus() -> tuple[str, ...]:
    """NVIDIA GPUs that can be used here, as `cuda:0` and so on; none where there is no driver."""
    cuda = runtime()
    try:
        count = call(cuda.cudaGetDeviceCount)
    except (EngineError, RuntimeError):  # no driver, or one that is too old
        return ()
    return tuple(f"cuda:{index}" for index in range(count))


def compute_capability(index: int) -> str:
    """Compute capability of a GPU, such as `86`."""
    cuda = runtime()
    attributes = cuda.cudaDeviceAttr
    major = call(cuda.cudaDeviceGetAttribute, attributes.cudaDevAttrComputeCapabilityMajor, index)
    minor = call(cuda.cudaDeviceGetAttribute, attributes.cudaDevAttrComputeCapabilityMinor, index)
    return f"{major}{minor}"


@cache
def _nvtx() -> Any:
    """The library; None where it is not installed, which is looked for once: a failed import takes microseconds."""
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx


def nvtx_range(name: str) -> AbstractContextManager[Any]:
    """A named range in NVIDIA's profilers, where nvtx is installed."""
    library = _nvtx()
    return nullcontext() if library is None else library.annotate(name, domain="painn_deploy")


@contextmanager
def on_device(cuda: Any, index: int) -> Iterator[None]:
    """Make a GPU the current one of this thread, and the one before it again afterwards, which the caller relies on.

    Args:
        cuda: the CUDA runtime.
        index: of the GPU.
    """
    before = int(call(cuda.cudaGetDevice))
    call(cuda.cudaSetDevice, index)  # also where it is the current one: a thread's first call makes its context current
    try:
        yield
    finally:
        if before != index:
            call(cuda.cudaSetDevice, before)


@contextmanager
def capture(cuda: Any, stream: Any) -> Iterator[list[Any]]:
    """Record what is sent to a stream instead of running it; the list then holds the executable graph.

    A capture that fails is ended, so that the stream can be used again.

    Args:
        cuda: the CUDA runtime.
        stream: its handle.
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


def milliseconds(cuda: Any, stream: Any, send: Callable[[], None], calls: int) -> float:
    """Time that a stream takes for something, by CUDA events around many of it sent at once.

    Args:
        cuda: the CUDA runtime.
        stream: that it is sent to.
        send: sends it.
        calls: how many times.

    Raises:
        EngineError: the device failed.
    """
    start, end = (call(cuda.cudaEventCreateWithFlags, cuda.cudaEventDefault) for _ in range(2))
    try:
        send()
        call(cuda.cudaEventRecord, start, stream)
        for _ in range(calls):
            send()
        call(cuda.cudaEventRecord, end, stream)
        call(cuda.cudaEventSynchronize, end)
        return float(call(cuda.cudaEventElapsedTime, start, end)) / calls
    finally:
        for event in (start, end):
            call(cuda.cudaEventDestroy, event)
