"""What TensorRT and TensorRT-RTX share in running: lanes, each a context, a stream, buffers and CUDA graphs.

NOT YET EXECUTED ON A GPU BY US: `make test` proves what can be proved without one, `make gpu-check` the rest.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from painn_deploy.engines.backend import Closing, EngineInfo, ResidentGraph
from painn_deploy.engines.contract import check_inputs, check_tensors, padded
from painn_deploy.engines.cuda import Arena, call, capture, compute_capability, nvtx_range, runtime
from painn_deploy.engines.device_positions import DisplacementKernel
from painn_deploy.engines.profiles import Profile
from painn_deploy.engines.tensorrt_builder import Messages
from painn_deploy.export.errors import EngineError, ShapeError
from painn_deploy.export.fields import INPUTS, OUTPUTS, GraphInputs, GraphOutputs

__all__ = ["TensorRTSession"]

MOST_GRAPHS = 16
"""CUDA graphs that a lane keeps; the one that was used longest ago goes first."""

SLOT_STEP = 8
"""Slots are rounded up to a multiple of this, so that a step with one neighbour more replays the same CUDA graph."""


class TensorRTSession(Closing):
    """A loaded plan on one GPU. It belongs to one thread.

    A size that comes a second time is captured as a CUDA graph, uploads and downloads included, and replayed from then
    on: a small molecule waits for launches more than for arithmetic.

    Args:
        library: tensorrt or tensorrt_rtx.
        plan: the serialised engine, hashed by the bundle.
        index: of the GPU.
        profile: that the plan was built for.
        info: what the session says of itself.
        graphs: whether CUDA graphs are used.

    Attributes:
        graphs: the same; may be changed between calls.

    Raises:
        EngineError: the plan cannot be loaded here; with what the library said.
    """

    def __init__(
        self, library: Any, plan: bytes, index: int, profile: Profile, info: EngineInfo, *, graphs: bool = True
    ) -> None:
        self._cuda, self._index, self._profile, self._info, self.graphs = runtime(), index, profile, info, graphs
        self._name = library.__name__
        self._lanes: list[_Lane] = []
        call(self._cuda.cudaSetDevice, index)
        self._messages = Messages(library)
        self._library_runtime = library.Runtime(self._messages.logger)
        self._engine = self._library_runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"{self._name} cannot load this plan: {self._messages.told()}. Export it again here.")
        self._lane(0)

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return self._info

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`."""
        check_inputs(inputs)
        lane = self._lane(0)
        lane.submit(inputs)
        return lane.collect()

    def run_many(self, batches: Iterable[GraphInputs]) -> Iterator[GraphOutputs]:
        """One result for each batch, in order; while one is computed, the next is uploaded on a second stream.

        Raises:
            ShapeError: as for `run`.
            EngineError: as for `run`.
        """
        waiting: _Lane | None = None
        for number, inputs in enumerate(batches):
            check_inputs(inputs)
            lane = self._lane(number % 2)
            lane.submit(inputs)
            if waiting is not None:
                yield waiting.collect()
            waiting = lane
        if waiting is not None:
            yield waiting.collect()

    @property
    def following(self) -> ResidentGraph | None:
        """See `FollowingSession.following`."""
        return self._lanes[0].resident if self._lanes else None

    def follow(self, resident: ResidentGraph) -> None:
        """Upload what stays while the neighbours stand; `step` then needs positions alone.

        Raises:
            ShapeError: it lies outside the profile.
        """
        self._lane(0).follow(resident)

    def step(self, positions: Float64[np.ndarray, "atoms 3"]) -> GraphOutputs:
        """Energies and forces at new positions of the structure that `follow` was told of.

        Args:
            positions: Å, contiguous.

        Raises:
            EngineError: there is none, or the engine failed.
            ShapeError: positions of another number of atoms.
        """
        lane = self._lane(0)
        lane.submit_positions(positions)
        return lane.collect()

    def run_tensors(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Torch tensors on this GPU in, torch tensors out, without a copy; on torch's current stream.

        Args:
            inputs: in the graph contract's order, contiguous, of its dtypes.

        Raises:
            ShapeError: naming the tensor that an engine would read as something else.
            EngineError: the engine failed.
        """
        import torch

        check_tensors(inputs, f"cuda:{self._index}")
        atoms, slots = inputs[-1].shape
        self._profile.check(int(atoms), int(slots))
        with torch.cuda.device(self._index):
            outputs = tuple(torch.empty(field.sized(atoms=atoms), device=inputs[-1].device) for field in OUTPUTS)
            stream: Any = torch.cuda.current_stream()
            if stream.cuda_stream == 0:  # TensorRT synchronises the device when it runs on the default stream
                stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                stream.wait_stream(torch.cuda.current_stream())
            lane = self._lane(0)
            lane.bind({f.name: (int(t.data_ptr()), tuple(t.shape)) for f, t in zip(INPUTS, inputs, strict=True)})
            lane.bind({f.name: (int(t.data_ptr()), None) for f, t in zip(OUTPUTS, outputs, strict=True)})
            lane.execute(stream.cuda_stream)
            torch.cuda.current_stream().wait_stream(stream)
            for tensor in (*inputs, *outputs):
                tensor.record_stream(stream)
        return outputs

    def _lane(self, number: int) -> "_Lane":
        if self._engine is None:
            raise EngineError("This session is closed; open another one.")
        call(self._cuda.cudaSetDevice, self._index)
        while len(self._lanes) <= number:
            context = self._engine.create_execution_context()
            if context is None:
                raise EngineError(f"{self._name} cannot make a context: {self._messages.told()}.")
            self._lanes.append(_Lane(self._cuda, context, self._profile, self._index, self._messages))
        self._lanes[number].use_graphs = self.graphs
        return self._lanes[number]

    def close(self) -> None:
        """See `Session.close`: graphs, buffers and contexts before the engine, the engine before its runtime."""
        if self._engine is not None:
            call(self._cuda.cudaSetDevice, self._index)
        while self._lanes:
            self._lanes.pop().close()
        self._engine = self._library_runtime = None


class _Lane:
    """One evaluation at a time, on a stream of its own."""

    def __init__(self, cuda: Any, context: Any, profile: Profile, index: int, messages: Messages) -> None:
        self._cuda, self._context, self._profile, self._index, self._messages = cuda, context, profile, index, messages
        self.use_graphs = True
        self._arena = Arena(cuda)
        self._stream = call(cuda.cudaStreamCreateWithFlags, cuda.cudaStreamNonBlocking)
        self._captured: OrderedDict[tuple[Any, ...], tuple[int, Any]] = OrderedDict()
        self._seen: set[tuple[Any, ...]] = set()
        self.resident: ResidentGraph | None = None
        self._kernel: DisplacementKernel | None = None
        self._pending: tuple[int, GraphOutputs] | None = None

    def submit(self, inputs: GraphInputs) -> None:
        """Send one evaluation to the stream."""
        self._settle()
        self.resident = None  # its place on the device is taken
        atoms, slots = inputs.mask.shape
        self._profile.check(atoms, slots)
        size = (atoms, self._rounded(slots))
        with nvtx_range("pack"):
            pinned = [
                self._arena.pinned(field.name, field.sized(atoms=size[0], slots=size[1]), field.dtype)
                for field in INPUTS
            ]
            for target, source in zip(pinned, padded(inputs, *size), strict=True):
                np.copyto(target, source)
        for array, field in zip(pinned, INPUTS, strict=True):
            self._arena.device(field.name, array.nbytes)
        outputs = self._outputs(size[0])

        def send() -> None:
            for array, field in zip(pinned, INPUTS, strict=True):
                self._upload(field.name, array)
            self.execute(int(self._stream))
            self._download(outputs)

        with nvtx_range("launch"):
            self._launch(("graph", *size), size, send)
        self._pending = atoms, outputs

    def follow(self, resident: ResidentGraph) -> None:
        """Upload what stays."""
        atoms, slots = resident.neighbours.shape
        self._profile.check(atoms, slots)
        self.resident = None
        if self._kernel is None:
            self._kernel = DisplacementKernel(compute_capability(self._index))
        with nvtx_range("follow"):
            for name in ("atomic_numbers", "neighbours", "reverse", "shifts", "stored"):
                array = np.ascontiguousarray(getattr(resident, name))
                pinned = self._arena.pinned(name, array.shape, str(array.dtype))
                np.copyto(pinned, array)
                self._arena.device(name, array.nbytes)
                self._upload(name, pinned)
            for field in INPUTS:
                if field.name in ("displacements", "mask"):
                    self._arena.device(field.name, int(np.prod(field.sized(atoms=atoms, slots=slots))) * 4)
            call(self._cuda.cudaStreamSynchronize, self._stream)
        self.resident = resident

    def submit_positions(self, positions: Float64[np.ndarray, "atoms 3"]) -> None:
        """Send one evaluation of the resident structure to the stream."""
        resident, kernel = self.resident, self._kernel
        if resident is None or kernel is None:
            raise EngineError("No structure is followed: call `follow` first, and again after `run`.")
        atoms, slots = resident.neighbours.shape
        if positions.shape != (atoms, 3) or positions.dtype != np.float64:
            raise ShapeError(f"Positions are {positions.dtype} {positions.shape}; float64 ({atoms}, 3) are followed.")
        self._settle()
        pinned = self._arena.pinned("positions", (atoms, 3), "float64")
        np.copyto(pinned, positions)
        self._arena.device("positions", pinned.nbytes)
        outputs = self._outputs(atoms)

        def send() -> None:
            self._upload("positions", pinned)
            names = ("positions", "neighbours", "shifts", "stored", "displacements", "mask")
            addresses = [self._arena.device(name, 0) for name in names]
            kernel.launch(int(self._stream), atoms, slots, resident.cutoff, addresses)
            self.execute(int(self._stream))
            self._download(outputs)

        with nvtx_range("launch"):
            self._launch(("positions", atoms, slots, resident.cutoff), (atoms, slots), send)
        self._pending = atoms, outputs

    def collect(self) -> GraphOutputs:
        """Wait for what was submitted, and copy it out of memory that the next one overwrites."""
        if self._pending is None:
            raise EngineError("Nothing was submitted.")
        (atoms, outputs), self._pending = self._pending, None
        with nvtx_range("wait"):
            call(self._cuda.cudaStreamSynchronize, self._stream)
        return GraphOutputs(*(array[:atoms].copy() for array in outputs))

    def _settle(self) -> None:
        """Wait for what nobody collected: its buffers are about to be written."""
        if self._pending is not None:
            self._pending = None
            call(self._cuda.cudaStreamSynchronize, self._stream)

    def bind(self, tensors: dict[str, tuple[int, tuple[int, ...] | None]]) -> None:
        """Tell the context where tensors are, and of which shape the inputs."""
        for name, (address, shape) in tensors.items():
            if shape is not None and not self._context.set_input_shape(name, shape):
                raise EngineError(f"TensorRT refuses {name} of shape {shape}: {self._messages.told()}.")
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"TensorRT refuses the address of {name}: {self._messages.told()}.")

    def execute(self, stream: int) -> None:
        """Send the engine to a stream, on what is bound."""
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"TensorRT failed: {self._messages.told()}.")

    def _launch(self, key: tuple[Any, ...], size: tuple[int, int], send: Any) -> None:
        """Send, as a CUDA graph where one was captured on the addresses of now; the second time captures it."""
        generation, graph = self._captured.get(key, (-1, None))
        if self.use_graphs and graph is not None and generation == self._arena.generation:
            self._captured.move_to_end(key)
            call(self._cuda.cudaGraphLaunch, graph, self._stream)
            return
        self.bind({f.name: (self._arena.device(f.name, 0), f.sized(atoms=size[0], slots=size[1])) for f in INPUTS})
        self.bind({f.name: (self._arena.device(f.name, 0), None) for f in OUTPUTS})
        again = (key, self._arena.generation)
        if not self.use_graphs or again not in self._seen:
            send()  # the first run at a size also does what cannot be captured
            self._seen = {again} | (self._seen if len(self._seen) < 1024 else set())
            return
        self._forget(key)
        with capture(self._cuda, self._stream) as made:
            send()
        self._captured[key] = (self._arena.generation, made[0])
        while len(self._captured) > MOST_GRAPHS:
            self._forget(next(iter(self._captured)))
        call(self._cuda.cudaGraphLaunch, made[0], self._stream)

    def _forget(self, key: tuple[Any, ...]) -> None:
        _, graph = self._captured.pop(key, (0, None))
        if graph is not None:
            call(self._cuda.cudaGraphExecDestroy, graph)

    def _rounded(self, slots: int) -> int:
        return max(slots, min(SLOT_STEP * -(-slots // SLOT_STEP), self._profile.slots[2]))

    def _outputs(self, atoms: int) -> GraphOutputs:
        arrays = [self._arena.pinned(field.name, field.sized(atoms=atoms), field.dtype) for field in OUTPUTS]
        for field, array in zip(OUTPUTS, arrays, strict=True):
            self._arena.device(field.name, array.nbytes)
        return GraphOutputs(*arrays)

    def _upload(self, name: str, array: np.ndarray) -> None:
        to_device = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        address = self._arena.device(name, 0)
        call(self._cuda.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, to_device, self._stream)

    def _download(self, outputs: GraphOutputs) -> None:
        to_host = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for field, array in zip(OUTPUTS, outputs, strict=True):
            address = self._arena.device(field.name, 0)
            call(self._cuda.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, to_host, self._stream)

    def close(self) -> None:
        """Give everything back; waits for what is still running."""
        if self._stream is None:
            return
        self._cuda.cudaStreamSynchronize(self._stream)
        for key in list(self._captured):
            self._forget(key)
        if self._kernel is not None:
            self._kernel.close()
        self._context = self._kernel = None
        self._arena.close()
        stream, self._stream = self._stream, None
        call(self._cuda.cudaStreamDestroy, stream)
