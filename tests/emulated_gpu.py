"""A GPU of host memory, for what a session does with one: addresses, copies, captures, contexts.

Nothing is faked about the data: copies copy, captured graphs replay what was captured, and the engine is the real graph
in ONNX Runtime, run on what lies at the bound addresses. The kernel is the very source that NVRTC compiles, compiled by
g++ instead.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from painn_deploy.engines.device_positions import KERNEL
from painn_deploy.engines.onnxruntime import open_graph
from painn_deploy.export.fields import INPUTS, OUTPUTS, GraphInputs


class Status:
    def __init__(self, name: str = "cudaSuccess", value: int = 0) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value


GOOD = Status()


class EmulatedCuda:
    """The CUDA runtime's functions that we call, over host memory; `capacity` bytes of it."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.memory: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Any]] = {}
        self.recording: list[Any] | None = None
        self.launches = self.captures = 0
        self._next = 1000

    def __getattr__(self, name: str) -> Any:
        function = {
            "cudaMalloc": self._allocate,
            "cudaMallocHost": self._allocate,
            "cudaFree": self._free,
            "cudaFreeHost": self._free,
            "cudaSetDevice": lambda index: (GOOD,),
            "cudaStreamCreateWithFlags": self._stream,
            "cudaStreamDestroy": lambda stream: (self.streams.discard(stream) or GOOD,),
            "cudaStreamSynchronize": self._synchronise,
            "cudaMemcpyAsync": self._copy,
            "cudaStreamBeginCapture": self._begin,
            "cudaStreamEndCapture": self._end,
            "cudaGraphInstantiate": lambda graph, flags: (GOOD, self._keep(self.graphs.pop(graph))),
            "cudaGraphDestroy": lambda graph: ((self.graphs.pop(graph, None) and GOOD) or GOOD,),
            "cudaGraphLaunch": self._replay,
            "cudaGraphExecDestroy": lambda graph: (self.graphs.pop(graph) is None or GOOD,),
        }.get(name)
        if function is None:
            raise AttributeError(name)

        def called(*arguments: Any) -> Any:
            return function(*arguments)

        called.__name__ = name
        return called

    @property
    def held(self) -> int:
        return sum(len(block) for block in self.memory.values())

    def do(self, action: Any) -> None:
        """Now, or when the graph that is being captured is launched."""
        if self.recording is None:
            action()
        else:
            self.recording.append(action)

    def _keep(self, actions: list[Any]) -> int:
        self._next += 1
        self.graphs[self._next] = actions
        return self._next

    def _allocate(self, size: int) -> Any:
        assert self.recording is None, "memory was allocated during a capture"
        if self.held + size > self.capacity:
            return Status("cudaErrorMemoryAllocation", 2), None
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN, until something is written
        address = ctypes.addressof(block)
        self.memory[address] = block
        return GOOD, address

    def _free(self, address: int) -> Any:
        del self.memory[address]
        return (GOOD,)

    def _stream(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        self._next += 1
        self.streams.add(self._next)
        return GOOD, self._next

    def _synchronise(self, stream: int) -> Any:
        assert stream in self.streams
        assert self.recording is None, "a stream was waited for during a capture"
        return (GOOD,)

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> Any:
        assert stream in self.streams
        self.do(lambda: ctypes.memmove(target, source, size))
        return (GOOD,)

    def _begin(self, stream: int, mode: int) -> Any:
        self.recording = []
        return (GOOD,)

    def _end(self, stream: int) -> Any:
        actions, self.recording = self.recording, None
        assert actions is not None
        self.captures += 1
        return GOOD, self._keep(actions)

    def _replay(self, graph: int, stream: int) -> Any:
        self.launches += 1
        for action in self.graphs[graph]:
            action()
        return (GOOD,)


def library(cuda: EmulatedCuda, model: bytes) -> Any:
    """A TensorRT whose every plan is `model`, run by ONNX Runtime on what lies at the bound addresses."""
    run = open_graph(model)

    class Context:
        def __init__(self) -> None:
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = tuple(shape)
            return True

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream in cuda.streams
            shapes, addresses = dict(self.shapes), dict(self.addresses)  # as TensorRT captures them

            def evaluate() -> None:
                inputs = GraphInputs(*(_array(addresses[f.name], shapes[f.name], f.dtype) for f in INPUTS))
                for field, result in zip(OUTPUTS, run(inputs), strict=True):
                    _array(addresses[field.name], result.shape, field.dtype)[...] = result

            cuda.do(evaluate)
            return True

    severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)
    logger = type("ILogger", (), {"Severity": severity})
    engine = SimpleNamespace(create_execution_context=Context)
    made = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan == b"plan" else None)
    return SimpleNamespace(__name__="emulated", ILogger=logger, Runtime=lambda log: made)


def _array(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memoryview(raw), dtype).reshape(shape)


def host_kernel(folder: Path) -> Any:
    """The kernel's source as a function of the host: a thread after the other."""
    source = folder / "kernel.cpp"
    source.write_text(
        "#include <cmath>\nusing std::sqrt;\n#define __global__\n"
        "struct Index { long long x; };\nstatic Index blockIdx, blockDim, threadIdx;\n" + KERNEL + "\n"
        'extern "C" void run(long long threads, const double* p, const int* n, const double* s, const unsigned char* m,'
        " double c, int a, int k, float* d, float* o) { blockDim.x = 1; threadIdx.x = 0;\n"
        "for (blockIdx.x = 0; blockIdx.x < threads; ++blockIdx.x)\n"
        "displacements_and_mask(p, n, s, m, c, a, k, d, o); }\n"
    )
    target = folder / "kernel.so"
    compiler = shutil.which("g++") or "c++"
    subprocess.run(
        [compiler, "-O2", "-ffp-contract=off", "-shared", "-fPIC", str(source), "-o", str(target)], check=True
    )
    function = ctypes.CDLL(str(target)).run
    function.argtypes = [
        ctypes.c_longlong, *[ctypes.c_void_p] * 4, ctypes.c_double, ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * 2
    ]  # fmt: skip
    return function


def displacement_kernel(cuda: EmulatedCuda, folder: Path) -> Any:
    """In place of `DisplacementKernel`, on the emulated GPU."""
    run = host_kernel(folder)

    class Kernel:
        closed = 0

        def __init__(self, capability: str) -> None:
            assert capability == "86"

        def launch(self, stream: int, atoms: int, slots: int, cutoff: float, addresses: list[int]) -> None:
            p, n, s, m, d, o = addresses
            cuda.do(lambda: run(atoms * slots + 7, p, n, s, m, cutoff, atoms, slots, d, o))

        def close(self) -> None:
            Kernel.closed += 1

    return Kernel
