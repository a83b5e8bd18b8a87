"""What an engine is to a lane of a GPU: bound to memory, launched on a stream, recorded."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from painn_deploy.engines.gpu.cuda import call, capture
from painn_deploy.export.fields import Field, GraphInputs

__all__ = ["DeviceTime", "Executor", "GraphOfCuda", "Recorded"]


class DeviceTime(NamedTuple):
    """Milliseconds of one evaluation on a device.

    Attributes:
        launched: the engine alone, launched kernel by kernel, on inputs that are there.
        replayed: a CUDA graph of it, the copies of inputs and results included; None where there is none.
    """

    launched: float
    replayed: float | None


@runtime_checkable
class Recorded(Protocol):
    """A CUDA graph of one evaluation, uploads and downloads included."""

    def launch(self) -> None:
        """Send it to the lane's stream."""

    def close(self) -> None:
        """Give it back."""


@runtime_checkable
class Executor(Protocol):
    """What binds an engine to memory, launches it on a lane's stream, and records what is launched.

    Attributes:
        fields: inputs that the engine reads beside those of the contract.
        least: atoms that a matrix has at least.
        most_slots: slots that it has at most; None for any number.
    """

    fields: tuple[Field, ...]
    least: int
    most_slots: int | None

    def check(self, atoms: int, slots: int) -> None:
        """Refuse a size that the engine does not serve.

        Raises:
            ShapeError: it says what to do.
        """

    def lengths(self, atoms: int, slots: int) -> Mapping[str, int]:
        """Lengths of the further axes of `fields` in a matrix of this size."""

    def fill(self, inputs: GraphInputs, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of `fields` for these inputs."""

    def bind(self, atoms: int, slots: int, addresses: Mapping[str, int]) -> None:
        """Take inputs and outputs, by their names in the contract, from and to these addresses from now on."""

    def execute(self) -> None:
        """Send one evaluation to the lane's stream."""

    def record(self, send: Callable[[], None]) -> Recorded:
        """Record what `send` sends to the stream.

        Raises:
            EngineError: it cannot be recorded; the stream can be used as before.
        """

    def close(self) -> None:
        """Give back what the engine holds for this lane; may be called twice."""


class GraphOfCuda:
    """A CUDA graph as the CUDA runtime records it.

    Args:
        cuda: the CUDA runtime.
        stream: that it is recorded on and launched to.
        send: sends to that stream what is recorded.

    Raises:
        EngineError: it cannot be recorded.
    """

    def __init__(self, cuda: Any, stream: int, send: Callable[[], None]) -> None:
        self._cuda, self._stream = cuda, stream
        with capture(cuda, stream) as made:
            send()
        self._graph: Any = made[0]

    def launch(self) -> None:
        """See `Recorded.launch`."""
        call(self._cuda.cudaGraphLaunch, self._graph, self._stream)

    def close(self) -> None:
        """See `Recorded.close`."""
        graph, self._graph = self._graph, None
        if graph is not None:
            call(self._cuda.cudaGraphExecDestroy, graph)
