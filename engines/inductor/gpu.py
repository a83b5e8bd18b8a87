"""`inductor` on an NVIDIA GPU: packages that torch compiled, as a lane's executor.

`make test` proves what can be proved without a GPU, `make gpu-check` the rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from painn_deploy.engines.forms import Plan, serving
from painn_deploy.engines.gpu.cuda import in_words
from painn_deploy.engines.gpu.executor import Executor, Recorded
from painn_deploy.engines.inductor.matmul_precision import matmul_precision
from painn_deploy.engines.inductor.pairs import KnownPairs
from painn_deploy.export.errors import EngineError, ShapeError
from painn_deploy.export.fields import INPUTS, OUTPUTS, PAIR_INPUTS, Field, GraphInputs

__all__ = ["LEAST", "MOST_ELEMENTS", "LoadedPackage", "TorchExecutor", "check_elements"]

LEAST = 2
"""Atoms and slots that a matrix has at least: torch's compiler takes a size of one for a constant."""

MOST_ELEMENTS = 2**31 - 1
"""Elements that a tensor has at most, since compiled kernels index with 32 bits."""

MOST_BOUND = 64
"""Sizes whose tensors are kept."""


class LoadedPackage(NamedTuple):
    """A package that was loaded.

    Attributes:
        plan: form and sizes that it is for.
        elements: of its widest tensor, for each slot.
        run: torch tensors in the graph's order to a tuple of outputs.
    """

    plan: Plan
    elements: float
    run: Callable[..., Sequence[Any]]


def check_elements(atoms: int, slots: int, elements: float, engine: str) -> None:
    """Refuse a matrix with a tensor that is larger than an engine's kernels can index with 32 bits.

    Args:
        atoms: rows.
        slots: columns.
        elements: of the widest tensor, for each slot.
        engine: name of its backend.

    Raises:
        ShapeError: it says how many atoms there may be.
    """
    if atoms * slots * elements > MOST_ELEMENTS:
        most = int(MOST_ELEMENTS / elements / slots)
        raise ShapeError(
            f"{atoms} atoms x {slots} slots are more than the kernels of {engine} on a GPU index with 32 bits: with "
            f"so many neighbours they serve {most} atoms. Take smaller pieces, or a CPU."
        )


class TorchExecutor(Executor):
    """Packages on one lane's stream. A CUDA graph of theirs takes its memory from one pool of the lane.

    Args:
        torch: the library.
        packages: the one for the smallest matrices first.
        device: such as `cuda:0`.
        stream: of the lane.
        tf32: whether products may round their operands to ten bits.
        outputs: of the graph.
        inputs: of the graph.
    """

    least = LEAST
    most_slots: int | None = None

    def __init__(
        self,
        torch: Any,
        packages: Sequence[LoadedPackage],
        device: str,
        stream: int,
        *,
        tf32: bool = False,
        outputs: Sequence[Field] = OUTPUTS,
        inputs: Sequence[Field] = INPUTS,
    ) -> None:
        self.outputs, self.inputs = tuple(outputs), tuple(inputs)
        self._torch, self._packages, self._device, self._tf32 = torch, tuple(packages), device, tf32
        self.fields: tuple[Field, ...] = PAIR_INPUTS if any(p.plan.form.paired for p in packages) else ()
        self._stream = torch.cuda.ExternalStream(stream, device=device)
        self._pool = torch.cuda.graph_pool_handle()
        self._pairs = KnownPairs()
        self._bound: dict[tuple[Any, ...], tuple[LoadedPackage, list[Any], list[Any]]] = {}
        self._now: tuple[LoadedPackage, list[Any], list[Any]] | None = None

    def check(self, atoms: int, slots: int) -> None:
        """See `Executor.check`."""
        check_elements(atoms, slots, serving(self._packages, atoms, slots).elements, "inductor")

    def lengths(self, atoms: int, slots: int) -> Mapping[str, int]:
        """See `Executor.lengths`."""
        return {"pairs": max(LEAST, atoms * slots // 2 + 1)}  # all that a matrix can hold: their number changes no size

    def fill(self, inputs: GraphInputs, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Executor.fill`."""
        if self.fields:
            pairs = self._pairs.of(inputs.reverse, arrays["pairs"].size)
            for field, array in zip(PAIR_INPUTS, pairs, strict=True):
                np.copyto(arrays[field.name], array)

    def bind(self, atoms: int, slots: int, addresses: Mapping[str, int]) -> None:
        """See `Executor.bind`."""
        lengths = {"atoms": atoms, "slots": slots, **self.lengths(atoms, slots)}
        package = serving(self._packages, atoms, slots)
        taken = (*self.inputs, *(PAIR_INPUTS if package.plan.form.paired else ()))
        key = (atoms, slots, *(addresses[field.name] for field in (*taken, *self.outputs)))
        if key not in self._bound:
            if len(self._bound) >= MOST_BOUND:
                self._bound.clear()
            inputs, outputs = (
                [self._view(addresses[field.name], field.sized(**lengths), field.dtype) for field in fields]
                for fields in (taken, self.outputs)
            )
            self._bound[key] = package, inputs, outputs
        self._now = self._bound[key]

    def _view(self, address: int, shape: tuple[int, ...], dtype: str) -> Any:
        """Memory of the lane as a tensor."""
        return self._torch.as_tensor(_Memory(address, shape, dtype), device=self._device)

    def execute(self) -> None:
        """See `Executor.execute`."""
        if self._now is None:
            raise EngineError("Nothing is bound.")
        package, inputs, outputs = self._now
        with self._current(), torch_in_words(self._torch, "The compiled graph failed"):
            results = package.run(*inputs)
            for output, result in zip(outputs, results, strict=True):
                output.copy_(result, non_blocking=True)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The lane's stream as torch's, on its device, and products as precise as the engine says."""
        torch = self._torch
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(self._stream),
            torch.no_grad(),
            matmul_precision(torch, tf32=self._tf32),
        ):
            yield

    def record(self, send: Callable[[], None]) -> Recorded:
        """See `Executor.record`."""
        torch = self._torch
        graph = torch.cuda.CUDAGraph()
        with self._current(), torch_in_words(torch, "torch could not record it"):
            # of this thread alone: what another thread allocates meanwhile must not end it
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                send()
            finally:
                try:
                    graph.capture_end()
                except RuntimeError:
                    self._abandon_pool()
                    raise
        return TorchGraph(graph, torch, self._device, self._stream)

    def _abandon_pool(self) -> None:
        """A capture that broke leaves torch's allocator recording to its pool; end that, and take another pool."""
        index = self._torch.device(self._device).index
        for undo in (self._torch._C._cuda_endAllocateToPool, self._torch._C._cuda_releasePool):
            with suppress(RuntimeError):
                undo(index, self._pool)
        self._pool = self._torch.cuda.graph_pool_handle()

    def close(self) -> None:
        """See `Executor.close`."""
        self._bound, self._now, self._packages = {}, None, ()


class TorchGraph:
    """A CUDA graph that torch recorded.

    Args:
        graph: torch's.
        torch: the library.
        device: such as `cuda:0`.
        stream: torch's, that it is launched to.
    """

    def __init__(self, graph: Any, torch: Any, device: str, stream: Any) -> None:
        self._graph, self._torch, self._device, self._stream = graph, torch, device, stream

    def launch(self) -> None:
        """See `Recorded.launch`."""
        with self._torch.cuda.device(self._device), self._torch.cuda.stream(self._stream):
            self._graph.replay()

    def close(self) -> None:
        """See `Recorded.close`."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.reset()


def torch_in_words(torch: Any, what: str) -> AbstractContextManager[None]:
    """Errors of torch as ours; see `painn_deploy.engines.gpu.cuda.in_words`."""
    return in_words(what, lambda error: isinstance(error, torch.OutOfMemoryError))


class _Memory:
    """Device memory, as NumPy's interface for CUDA arrays describes it."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (address, False),
            "strides": None,
            "version": 2,
        }
