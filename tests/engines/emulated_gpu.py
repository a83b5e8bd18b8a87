"""A GPU of host memory, for what a session does with one: addresses, copies, captures, contexts.

Nothing is faked about the data: copies copy, captured graphs replay what was captured, and the engine is the real graph
in ONNX Runtime, run on what lies at the bound addresses. Kernels are the very sources that NVRTC compiles, compiled
by g++ instead.
"""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch

from painn_deploy.engines.gpu.device_positions import KERNEL, KERNEL_NAME, DeviceKernel
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export.fields import FIELDS, Field, GraphInputs, outputs_of
from painn_deploy.export.graph.onnx_graph import axes_of


class Status:
    def __init__(self, name: str = "cudaSuccess", value: int = 0) -> None:
        self.name, self.value = name, value

    def __int__(self) -> int:
        return self.value


GOOD = Status()


class EmulatedCuda:
    """The CUDA runtime's functions that we call, over host memory; `capacity` bytes of it, and two devices.

    Each stream has a clock of what it was sent, and knows of another's clock only what the host has waited for. `after`
    says whether a stream waits for what another one was sent.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamNonBlocking, cudaEventDefault = 1, 0  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrMultiProcessorCount=16)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, dict[int, int]] = {}
        self.events: dict[int, dict[int, int]] = {}
        self.host: dict[int, int] = {}
        self.graphs: dict[int, list[Any]] = {}
        self.recording: list[Any] | None = None
        self.launches = self.captures = self.copies = self.waits = self.device = 0
        self.refuse_captures = False
        self._next = 1000

    def __getattr__(self, name: str) -> Any:
        function = {
            "cudaMalloc": self._allocate,
            "cudaMallocHost": self._allocate,
            "cudaFree": self._free,
            "cudaFreeHost": self._free,
            "cudaDeviceGetAttribute": lambda attribute, index: (GOOD, 4),
            "cudaGetDevice": lambda: (GOOD, self.device),
            "cudaSetDevice": self._set_device,
            "cudaStreamCreateWithFlags": self._stream,
            "cudaStreamDestroy": lambda stream: (self.streams.pop(stream) is None or GOOD,),
            "cudaStreamSynchronize": self._synchronise,
            "cudaEventCreateWithFlags": self._event,
            "cudaEventDestroy": lambda event: (self.events.pop(event) is None or GOOD,),
            "cudaEventRecord": self._record,
            "cudaEventSynchronize": lambda event: (GOOD,),
            "cudaEventElapsedTime": lambda start, end: (GOOD, self._elapsed(start, end)),
            "cudaMemcpyAsync": self._copy,
            "cudaStreamBeginCapture": self._begin,
            "cudaStreamEndCapture": self._end,
            "cudaGraphInstantiate": lambda graph, flags: (GOOD, self.keep(self.graphs.pop(graph))),
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

    def keep(self, actions: list[Any]) -> int:
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

    def _set_device(self, index: int) -> Any:
        self.device = index
        return (GOOD,)

    def _stream(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        self._next += 1
        self.streams[self._next] = {}
        return GOOD, self._next

    def sent(self, stream: int) -> None:
        """A stream was sent something: its clock goes on, and it is after all that the host has waited for."""
        clock = self.streams[stream]
        for other, time in self.host.items():
            clock[other] = max(clock.get(other, 0), time)
        clock[stream] = clock.get(stream, 0) + 1

    def after(self, stream: int, other: int, time: int) -> bool:
        """Whether what a stream is sent now runs after what another one was sent at a time of its clock."""
        return max(self.streams[stream].get(other, 0), self.host.get(other, 0)) >= time

    def _event(self, flags: int) -> Any:
        assert flags == self.cudaEventDefault
        self._next += 1
        self.events[self._next] = {}
        return GOOD, self._next

    def _record(self, event: int, stream: int) -> Any:
        self.events[event] = dict(self.streams[stream])
        return (GOOD,)

    def _elapsed(self, start: int, end: int) -> float:
        """A millisecond for everything that a stream was sent."""
        (sent,) = {sum(self.events[end].values()) - sum(self.events[start].values())}
        return float(sent)

    def _synchronise(self, stream: int) -> Any:
        assert stream in self.streams
        assert self.recording is None, "a stream was waited for during a capture"
        self.waits += 1
        for other, time in self.streams[stream].items():
            self.host[other] = max(self.host.get(other, 0), time)
        return (GOOD,)

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> Any:
        self.sent(stream)
        self.copies += 1
        self.do(lambda: ctypes.memmove(target, source, size))
        return (GOOD,)

    def _begin(self, stream: int, mode: int) -> Any:
        if self.refuse_captures:
            return (Status("cudaErrorStreamCaptureUnsupported", 900),)
        self.recording = []
        return (GOOD,)

    def _end(self, stream: int) -> Any:
        actions, self.recording = self.recording, None
        assert actions is not None
        self.captures += 1
        return GOOD, self.keep(actions)

    def _replay(self, graph: int, stream: int) -> Any:
        self.sent(stream)
        self.launches += 1
        for action in self.graphs[graph]:
            action()
        return (GOOD,)


def activations(shape: tuple[int, ...]) -> int:
    """Bytes that a context asks for at a size."""
    return 64 * int(np.prod(shape))


def library(cuda: EmulatedCuda, model: bytes) -> Any:
    """A TensorRT whose every plan is `model`, run by ONNX Runtime on what lies at the bound addresses."""
    graph = onnx.load_from_string(model)
    inputs, outputs = [FIELDS[value.name] for value in graph.graph.input], outputs_of(axes_of(graph))
    run = open_graph(model, [field.name for field in outputs])

    class Context:
        """Refuses what TensorRT would answer with a wrong result or not at all: memory that is too small, a capture
        right after its shapes changed, a launch on one stream while another one's is under way."""

        def __init__(self) -> None:
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}
            self.memory = (0, 0)
            self.settled: dict[str, tuple[int, ...]] = {}
            self.last: tuple[int, int] | None = None

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = tuple(shape)
            return True

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def update_device_memory_size_for_shapes(self) -> int:
            return activations(self.shapes["mask"])

        def set_device_memory(self, address: int, size: int) -> None:
            self.memory = address, size

        def execute_async_v3(self, stream: int) -> bool:
            cuda.sent(stream)
            address, size = self.memory
            assert len(cuda.memory[address]) >= size >= activations(self.shapes["mask"])
            if cuda.recording is None:
                assert self.last is None or cuda.after(stream, *self.last), "two launches of one context at once"
                self.last, self.settled = (stream, cuda.streams[stream][stream]), dict(self.shapes)
            else:
                assert self.settled == self.shapes, "captured right after its shapes changed"
            shapes, addresses = dict(self.shapes), dict(self.addresses)  # as TensorRT captures them

            def evaluate() -> None:
                assert address in cuda.memory, "its activations are gone"
                arrays = {f.name: array_at(addresses[f.name], shapes[f.name], f.dtype) for f in inputs}
                arrays.setdefault("weights", np.ones(shapes["mask"][0], np.float32))  # a graph from before format 3
                for field, result in zip(outputs, run(GraphInputs(**arrays)), strict=True):
                    array_at(addresses[field.name], result.shape, field.dtype)[...] = result

            cuda.do(evaluate)
            return True

    severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)
    logger = type("ILogger", (), {"Severity": severity})

    def create(strategy: str) -> Context:
        assert strategy == "the caller's", "a context would reserve for the whole profile"
        return Context()

    engine = SimpleNamespace(create_execution_context=create)
    made = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan == b"plan" else None)
    return SimpleNamespace(
        __name__="emulated",
        ILogger=logger,
        Runtime=lambda log: made,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="the caller's"),
    )


class EmulatedTorch:
    """torch with a GPU of host memory: what it launches and records goes to the emulated CUDA, all else is torch's."""

    class Tensor:
        """Memory of the device."""

        def __init__(self, cuda: EmulatedCuda, tensor: torch.Tensor) -> None:
            self._cuda, self.tensor = cuda, tensor

        def copy_(self, source: torch.Tensor, *, non_blocking: bool) -> None:
            assert non_blocking
            self._cuda.do(lambda: self.tensor.copy_(source))

    def __init__(self, cuda: EmulatedCuda) -> None:
        self._cuda = cuda
        self.emptied = self.resets = 0
        self.pools: list[object] = []
        self.modes: list[str] = []
        self.current: list[tuple[str, int]] = []
        self.graphs_of: dict[object, int] = {}  # a pool is gone with its last graph
        self.broken: set[object] = set()
        self.break_captures = False
        self._C = SimpleNamespace(
            _cuda_endAllocateToPool=lambda index, pool: self.broken.discard(pool),
            _cuda_releasePool=lambda index, pool: None,
        )
        torch_cuda, outer = cuda, self

        class Graph:
            def capture_begin(self, *, pool: object, capture_error_mode: str) -> None:
                assert outer.current, "nothing is the current stream"
                if outer.graphs_of.get(pool) == 0:
                    raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
                if pool in outer.broken:
                    raise RuntimeError("already recording to mempool_id")
                if torch_cuda.refuse_captures:
                    raise RuntimeError("operation not permitted when stream is capturing")
                outer.pools.append(pool)
                self.pool = pool
                outer.modes.append(capture_error_mode)
                torch_cuda.recording = []

            def capture_end(self) -> None:
                actions, torch_cuda.recording = torch_cuda.recording, None
                if actions is None:
                    raise RuntimeError("no capture")
                if outer.break_captures:
                    outer.broken.add(self.pool)
                    raise RuntimeError("operation failed due to a previous error during capture")
                torch_cuda.captures += 1
                outer.graphs_of[self.pool] = outer.graphs_of.get(self.pool, 0) + 1
                self.actions = actions

            def replay(self) -> None:
                torch_cuda.sent(outer.current[-1][1])
                torch_cuda.launches += 1
                for action in self.actions:
                    action()

            def reset(self) -> None:
                outer.resets += 1
                outer.graphs_of[self.pool] -= 1

        @contextmanager
        def device(name: str) -> Iterator[None]:
            outer._device = name
            yield

        @contextmanager
        def stream(handle: int) -> Iterator[None]:
            outer.current.append((outer._device, handle))
            yield
            outer.current.pop()

        self.cuda = SimpleNamespace(
            CUDAGraph=Graph,
            ExternalStream=lambda handle, device: handle,
            graph_pool_handle=object,
            device=device,
            stream=stream,
            empty_cache=self._empty,
        )

    def _empty(self) -> None:
        self.emptied += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def as_tensor(self, memory: Any, device: str) -> Any:
        described = memory.__cuda_array_interface__
        array = array_at(described["data"][0], described["shape"], np.dtype(described["typestr"]).name)
        return self.Tensor(self._cuda, torch.from_numpy(array))

    def package(self, run: Any, outputs: Sequence[Field]) -> Any:
        """What a loaded package is, of a function of tensors that gives these outputs."""

        def called(*inputs: Any) -> list[torch.Tensor]:
            assert self.current, "nothing is the current stream"
            self._cuda.sent(self.current[-1][1])
            atoms = len(inputs[0].tensor)
            results = [torch.empty(field.sized(atoms=atoms)) for field in outputs]

            def evaluate() -> None:
                for result, value in zip(results, run(*(one.tensor for one in inputs)), strict=True):
                    result.copy_(value)

            self._cuda.do(evaluate)
            return results

        return called


def array_at(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memoryview(raw), dtype).reshape(shape)


@cache
def host_kernel(source: str = KERNEL, name: str = KERNEL_NAME) -> Any:
    """A kernel's source as a function of the host: a thread after the other, the last one first if there are minus as
    many. `types` are those of the arguments that its source has."""
    found = re.search(rf"__global__ void {name}\(([^)]*)\)", source)
    assert found is not None
    parameters = " ".join(found[1].split())
    declared = [parameter.rsplit(maxsplit=1) for parameter in parameters.split(", ")]
    kinds = {"double": ctypes.c_double, "int": ctypes.c_int}
    types = tuple(ctypes.c_void_p if kind.endswith("*") else kinds[kind] for kind, _ in declared)
    folder = Path(_folder.name)
    (folder / f"{name}.cpp").write_text(
        "#include <cmath>\nusing std::sqrt;\n#define __global__\n#define __device__ static\n"
        "struct Index { long long x; };\nstatic Index blockIdx, blockDim, threadIdx;\n" + source + "\n"
        f'extern "C" void run(long long threads, {parameters}) {{ blockDim.x = 1; threadIdx.x = 0;\n'
        "for (long long t = 0; t < std::abs(threads); ++t) { blockIdx.x = threads < 0 ? -threads - 1 - t : t;\n"
        f"{name}({', '.join(argument for _, argument in declared)}); }} }}\n"
    )
    command = [shutil.which("g++") or "c++", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"{name}.cpp", "-o"]
    subprocess.run([*command, f"{name}.so"], check=True, cwd=folder)
    function = ctypes.CDLL(str(folder / f"{name}.so")).run
    function.argtypes = [ctypes.c_longlong, *types]
    function.types = types
    return function


_folder = TemporaryDirectory(prefix="kernels")


def device_kernel(cuda: EmulatedCuda, kind: type[DeviceKernel]) -> Any:
    """In place of a `DeviceKernel`, on the emulated GPU: what it launches, and the types that it says it does."""
    run = host_kernel(kind.source, kind.name)

    class Kernel(kind):
        closed = 0

        def __init__(self, capability: str) -> None:
            assert capability == "86"

        def send(self, stream: int, threads: int, values: Sequence[Any], types: Sequence[Any]) -> None:
            assert tuple(types) == run.types
            cuda.do(lambda: run(threads + 7, *values))

        def close(self) -> None:
            Kernel.closed += 1

    return Kernel
