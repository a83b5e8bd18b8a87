"""One evaluation at a time on one stream of a GPU: inputs packed and uploaded, an engine launched, results downloaded.

Every engine goes through the same lane. How an engine is bound to addresses, launched and recorded is its `Executor`.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float64, Int32, Int64

from painn_deploy.engines.contract import padded, taken
from painn_deploy.engines.gpu.arena import Arena, Block, columns
from painn_deploy.engines.gpu.cuda import call, compute_capability, milliseconds, nvtx_range
from painn_deploy.engines.gpu.device_molecules import NEAREST, PairsKernel, fill_molecules, molecule_columns, widest
from painn_deploy.engines.gpu.device_neighbours import (
    OF_ATOMS,
    FindingKernel,
    PairingKernel,
    box_columns,
    counted_columns,
    fill_atoms,
    fill_boxes,
    nearest_of,
    number_pairs,
    numbered_columns,
)
from painn_deploy.engines.gpu.device_positions import DeviceKernel, DisplacementKernel
from painn_deploy.engines.gpu.executor import Executor
from painn_deploy.engines.gpu.recordings import Recordings
from painn_deploy.engines.session import Admit, Boxes, DeviceTime, MoleculesOutputs, Nearest, ResidentGraph
from painn_deploy.export.errors import EngineError, ShapeError
from painn_deploy.export.fields import Field, GraphInputs, GraphOutputs

__all__ = ["SLOT_STEP", "Lane"]

_idle_streams: WeakKeyDictionary[Any, dict[int, list[Any]]] = WeakKeyDictionary()
"""Streams without a lane, by CUDA runtime and GPU: used again, since torch keeps a cuBLAS workspace for each."""

K = TypeVar("K", bound=DeviceKernel)

SLOT_STEP = 8
"""Slots are rounded up to a multiple of this, so that a step with one neighbour more replays the same CUDA graph."""


class Lane:
    """A stream, its memory, and an engine that is launched on it.

    Args:
        cuda: the CUDA runtime.
        index: of the GPU, which is the current one whenever a method is called.
        make: makes the engine's executor, given the stream's handle and the memory.

    Attributes:
        recordings: CUDA graphs of sizes that came again.
        resident: the structure that the device holds; None after anything else was run.
    """

    def __init__(self, cuda: Any, index: int, make: Callable[[int, Arena], Executor]) -> None:
        self._cuda, self._index = cuda, index
        self.resident: ResidentGraph | Boxes | None = None
        self._followed = (0, 0)
        self._arena = Arena(cuda)
        self.recordings = Recordings(self._arena)
        idle = _idle_streams.setdefault(cuda, {}).setdefault(index, [])
        self._stream: Any = idle.pop() if idle else call(cuda.cudaStreamCreateWithFlags, cuda.cudaStreamNonBlocking)
        self._kernels: dict[type[DeviceKernel], Any] = {}
        self._pending: tuple[int, Block] | None = None
        try:
            self._executor: Executor | None = make(int(self._stream), self._arena)
        except BaseException:
            self._executor = None
            self.close()
            raise

    @property
    def slot_step(self) -> int:
        """A matrix whose number of slots is a multiple of this is uploaded as it is."""
        most = self.executor.most_slots
        return SLOT_STEP if most is None or most % SLOT_STEP == 0 else 1

    def _rounded(self, slots: int) -> int:
        step = self.slot_step
        return step * -(-slots // step)

    def submit(self, inputs: GraphInputs) -> None:
        """Send one evaluation to the stream.

        Raises:
            ShapeError: the engine does not serve this size.
            EngineError: it could not be launched.
        """
        self._settle()
        executor = self.executor
        atoms, slots = inputs.mask.shape
        rows, slots = max(atoms, executor.least), self._rounded(slots)
        executor.check(rows, slots)
        self.resident = None  # its place on the device is taken
        graph = padded(inputs, rows, slots)
        with nvtx_range("pack"):
            block = self._inputs(rows, slots)
            self._write(graph, block)
        outputs = self._outputs(rows)

        def send() -> None:
            self._upload(block.host, block.device, block.size)
            executor.execute()
            self._download(outputs)

        with nvtx_range("launch"):
            self._launch(("graph", rows, slots), (rows, slots), {**block.addresses, **outputs.addresses}, send)
        self._pending = atoms, outputs

    def follow(self, resident: ResidentGraph) -> None:
        """Upload what stays while the neighbours stand.

        Raises:
            ShapeError: the engine does not serve this size.
            EngineUnavailableError: what compiles the kernel that forms displacements is not here.
        """
        self._settle()
        executor = self.executor
        atoms, slots = resident.neighbours.shape
        rows = max(atoms, executor.least)
        executor.check(rows, slots)
        self.resident = None
        self._kernel(DisplacementKernel)  # compiled before anything is followed
        with nvtx_range("follow"):
            nothing = np.zeros((atoms, slots), np.float32)
            moving = np.zeros((atoms, slots, 3), np.float32)
            standing = resident.atomic_numbers, moving, resident.neighbours, resident.reverse, nothing
            whole = GraphInputs(*standing, resident.weights)
            block, fixed = self._inputs(rows, slots), self._fixed(rows, slots)
            self._write(padded(whole, rows, slots), block)
            for name in ("shifts", "stored"):
                fixed.arrays[name][:atoms] = getattr(resident, name)
                fixed.arrays[name][atoms:] = 0
            fixed.arrays["positions"][...] = 0.0
            self._upload(block.host, block.device, block.size)
            self._upload(fixed.host, fixed.device, fixed.size)
            call(self._cuda.cudaStreamSynchronize, self._stream)
        self.resident, self._followed = resident, (atoms, slots)

    def search(self, boxes: Boxes, admit: Admit) -> Nearest:
        """Find the neighbours of a structure on the device, which it stays on as after `follow`.

        Args:
            boxes: the structure.
            admit: asked before there is memory for so many atoms and slots.

        Raises:
            ShapeError: the engine does not serve this size; or as `admit` raises.
            EngineUnavailableError: what compiles the kernels is not here.
            EngineError: the device failed.
        """
        self._settle()
        executor, stream, atoms = self.executor, int(self._stream), len(boxes.positions)
        executor.check_search(atoms)
        self.resident, rows = None, max(atoms, executor.least)
        self._kernel(DisplacementKernel)  # compiled before anything is followed
        finding, pairing = self._kernel(FindingKernel), self._kernel(PairingKernel)
        with nvtx_range("search"):
            sent = self._arena.block("boxes", box_columns(atoms, len(boxes.starts) - 1))
            counted = self._arena.block("counted", counted_columns(rows))
            fill_boxes(sent.arrays, boxes)
            self._upload(sent.host, sent.device, sent.size)
            finding.launch(stream, (atoms, rows, 0), boxes.reach, {**sent.addresses, **counted.addresses})
            self._download(counted)
            call(self._cuda.cudaStreamSynchronize, self._stream)
            slots = self._rounded(max(1, int(counted.arrays["count"].max())))
            admit(atoms, slots)
            executor.check(rows, slots)
            nearest, numbered = nearest_of(counted.arrays), self._arena.block("numbered", numbered_columns(rows))
            number_pairs(counted.arrays, numbered.arrays, slots)
            block, fixed = self._inputs(rows, slots), self._fixed(rows, slots)
            fixed.arrays["positions"][...] = 0.0  # of padding; a step uploads them
            self._upload(block.host, block.device, fill_atoms(block, boxes))
            self._upload(numbered.host, numbered.device, numbered.size)
            parts = (block, fixed, counted, numbered, sent)
            addresses = {name: address for part in parts for name, address in part.addresses.items()}
            finding.launch(stream, (atoms, rows, slots), boxes.reach, addresses)
            pairing.launch(stream, (rows, slots), addresses, self._entries(block))
            call(self._cuda.cudaStreamSynchronize, self._stream)
        self.resident, self._followed = boxes, (atoms, slots)
        return nearest

    def submit_positions(self, positions: Float64[np.ndarray, "atoms 3"]) -> None:
        """Send one evaluation of the resident structure to the stream.

        Raises:
            EngineError: there is none, or it could not be launched.
            ShapeError: positions of another number of atoms.
        """
        resident = self.resident
        if resident is None:
            raise EngineError("No structure is followed: call `follow` first, and again after `run`.")
        atoms, slots = self._followed
        if positions.shape != (atoms, 3) or positions.dtype != np.float64:
            raise ShapeError(f"Positions are {positions.dtype} {positions.shape}; float64 ({atoms}, 3) are followed.")
        self._settle()
        executor = self.executor
        rows = max(atoms, executor.least)
        block, fixed, outputs = self._inputs(rows, slots), self._fixed(rows, slots), self._outputs(rows)
        moved = fixed.arrays["positions"]
        moved[:atoms] = positions
        addresses = {**block.addresses, **fixed.addresses}
        kernel = self._kernel(DisplacementKernel)
        kernel_addresses = [
            addresses[name] for name in ("positions", "neighbours", "shifts", "stored", "displacements", "mask")
        ]

        def send() -> None:
            self._upload(fixed.host_address("positions"), fixed.addresses["positions"], moved.nbytes)
            kernel.launch(int(self._stream), rows, slots, resident.cutoff, kernel_addresses)
            executor.execute()
            self._download(outputs)

        with nvtx_range("launch"):
            key = ("positions", rows, slots, resident.cutoff)
            self._launch(key, (rows, slots), {**block.addresses, **outputs.addresses}, send)
        self._pending = atoms, outputs

    def submit_molecules(
        self,
        numbers: Int32[np.ndarray, " atoms"],
        positions: Float64[np.ndarray, "atoms 3"],
        starts: Int64[np.ndarray, " molecules"],
        cutoff: float,
    ) -> None:
        """Send one evaluation of molecules side by side, whose pairs the device forms, to the stream.

        Args:
            numbers: Z.
            positions: Å.
            starts: first row of each molecule.
            cutoff: Å.

        Raises:
            ShapeError: the engine does not serve this size.
            EngineUnavailableError: what compiles the kernel that forms the pairs is not here.
            EngineError: it could not be launched.
        """
        self._settle()
        executor, atoms = self.executor, len(numbers)
        size = rows, slots = max(atoms, executor.least), self._rounded(widest(starts, atoms))
        executor.check(*size)
        self.resident = None
        kernel, block, outputs = self._kernel(PairsKernel), self._inputs(*size), self._outputs(rows, NEAREST)
        molecules = self._arena.block("molecules", molecule_columns(rows))
        with nvtx_range("pack"):
            fill_molecules(molecules.arrays, numbers, positions, starts, slots)
            filled = executor.fill_molecules(starts, atoms, block.arrays)
        entries = self._entries(block)
        addresses = {**block.addresses, **molecules.addresses, **outputs.addresses}  # numbers stay where they come up

        def send() -> None:
            self._upload(molecules.host, molecules.device, molecules.size)
            for name in filled:
                self._upload(block.host_address(name), block.addresses[name], block.arrays[name].nbytes)
            kernel.launch(int(self._stream), size, cutoff, addresses, entries)
            executor.execute()
            self._download(outputs)

        with nvtx_range("launch"):
            self._launch(("molecules", rows, slots, cutoff), size, addresses, send)
        self._pending = atoms, outputs

    def collect_molecules(self) -> MoleculesOutputs:
        """As `collect`, of what `submit_molecules` sent.

        Raises:
            EngineError: nothing was submitted, or the device failed.
        """
        pending, outputs = self._pending, self.collect()
        nearest = pending[1].arrays[NEAREST.name] if pending is not None else np.empty(0)
        return MoleculesOutputs(outputs, nearest[: len(outputs.forces)].copy())

    def collect(self) -> GraphOutputs:
        """Wait for what was submitted, and copy it out of memory that the next one overwrites.

        Raises:
            EngineError: nothing was submitted, or the device failed.
        """
        if self._pending is None:
            raise EngineError("Nothing was submitted.")
        (atoms, outputs), self._pending = self._pending, None
        with nvtx_range("wait"):
            call(self._cuda.cudaStreamSynchronize, self._stream)
        fields = self.executor.outputs
        return GraphOutputs.of(fields, (outputs.arrays[field.name][:atoms].copy() for field in fields))

    def device_time(self, inputs: GraphInputs, calls: int) -> DeviceTime:
        """Milliseconds of one evaluation on the device, by CUDA events around many of them.

        Args:
            inputs: of one evaluation, repeated.
            calls: how many.

        Raises:
            ShapeError: the engine does not serve this size.
            EngineError: it could not be launched.
        """
        wanted, replayed = self.recordings.wanted, None
        try:
            self.recordings.wanted = False
            self.submit(inputs)
            self.collect()
            launched = milliseconds(self._cuda, self._stream, self.executor.execute, calls)
            self.recordings.wanted = wanted
            for _ in range(3 if wanted else 0):
                self.submit(inputs)
                self.collect()
            key = ("graph", max(len(inputs.mask), self.executor.least), self._rounded(inputs.mask.shape[1]))
            if wanted and (recorded := self.recordings.of((*key, *self.executor.variant))) is not None:
                replayed = milliseconds(self._cuda, self._stream, recorded.launch, calls)
        finally:
            self.recordings.wanted = wanted
        return DeviceTime(launched, replayed)

    def _kernel(self, kind: type[K]) -> K:
        """A kernel, compiled when it is first asked for."""
        if (kernel := self._kernels.get(kind)) is None:
            kernel = self._kernels[kind] = kind(compute_capability(self._index))
        return kernel

    @staticmethod
    def _entries(block: Block) -> int:
        """Entries of `pairs` among the inputs; 0 for an engine that does not read it."""
        return block.arrays["pairs"].size if "pairs" in block.arrays else 0

    def _settle(self) -> None:
        """Wait for what nobody collected: its buffers are about to be written."""
        if self._pending is not None:
            self._pending = None
            call(self._cuda.cudaStreamSynchronize, self._stream)

    def _launch(
        self, key: tuple[Any, ...], size: tuple[int, int], addresses: Mapping[str, int], send: Callable[[], None]
    ) -> None:
        """Send, as a CUDA graph where one was recorded on the addresses of now."""
        executor = self.executor
        self.recordings.launch((*key, *executor.variant), executor, lambda: executor.bind(*size, addresses), send)

    @property
    def executor(self) -> Executor:
        """Executor of the engine.

        Raises:
            EngineError: the lane is closed.
        """
        if self._executor is None:
            raise EngineError("This session is closed; open another one.")
        return self._executor

    def _inputs(self, atoms: int, slots: int) -> Block:
        executor = self.executor
        lengths = {"atoms": atoms, "slots": slots, **executor.lengths(atoms, slots)}
        fields = (*sorted(executor.inputs, key=lambda field: field.shape != OF_ATOMS), *executor.fields)
        return self._arena.block("inputs", columns(fields, **lengths))

    def _fixed(self, atoms: int, slots: int) -> Block:
        """Arrays that a step of dynamics reads beside the inputs."""
        fixed = (("shifts", (atoms, slots, 3), "float64"), ("stored", (atoms, slots), "uint8"))
        return self._arena.block("resident", (*fixed, ("positions", (atoms, 3), "float64")))

    def _outputs(self, atoms: int, *more: Field) -> Block:
        return self._arena.block("outputs", columns((*self.executor.outputs, *more), atoms=atoms))

    def _write(self, inputs: GraphInputs, block: Block) -> None:
        """Copy inputs into pinned memory, and what the engine reads beside them."""
        for name, array in taken(inputs, self.executor.inputs).items():
            np.copyto(block.arrays[name], array)
        self.executor.fill(inputs, block.arrays)

    def _upload(self, source: int, target: int, size: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cuda.cudaMemcpyAsync, target, source, size, kind, self._stream)

    def _download(self, outputs: Block) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cuda.cudaMemcpyAsync, outputs.host, outputs.device, outputs.size, kind, self._stream)

    def close(self) -> None:
        """Give everything back; waits for what is still running. May be called twice."""
        if self._stream is None:
            return
        (status,) = self._cuda.cudaStreamSynchronize(self._stream)
        self.recordings.close()
        while self._kernels:
            self._kernels.popitem()[1].close()
        if self._executor is not None:
            self._executor.close()
        self._executor = None
        self._arena.close()
        stream, self._stream = self._stream, None
        if int(status) == 0:
            _idle_streams[self._cuda][self._index].append(stream)
        else:  # what went wrong on it may stay with it
            call(self._cuda.cudaStreamDestroy, stream)
