"""The protocol of an engine on a GPU's lane: bound to memory, launched on a stream, recorded as a CUDA graph."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from painn_deploy.engines.gpu.cuda import call, capture
from painn_deploy.export.fields import Field, GraphInputs

__all__ = ["Executor", "GraphOfCuda", "Recorded"]


@runtime_checkable
class Recorded(Protocol):
    """A CUDA graph of one evaluation, uploads and downloads included."""

    def launch(self) -> None:
        """Send it to the lane's stream."""

    def close(self) -> None:
        """Give it back."""


@runtime_checkable
class Executor(Protocol):
    """An engine on one lane: it is bound to memory, launched on the lane's stream, and recorded.

    Attributes:
        fields: inputs that the engine reads beside those of the contract: none, or `PAIR_INPUTS`, which a lane's kernel
            can write in place of `fill`.
        inputs: of the contract that the graph takes, see `painn_deploy.export.fields.inputs_of`.
        outputs: of the graph, see `painn_deploy.export.fields.outputs_of`.
        least: atoms that a matrix has at least.
        most_slots: slots that it has at most; None for any number.
        variant: which of its kernels the last `fill` or `fill_molecules` chose; a CUDA graph holds one of them.
    """

    fields: tuple[Field, ...]
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    least: int
    most_slots: int | None
    variant: tuple[Any, ...] = ()

    def check(self, atoms: int, slots: int) -> None:
        """Refuse a size that the engine does not serve.

        Args:
            atoms: rows.
            slots: columns.

        Raises:
            ShapeError: it says what to do.
        """

    def check_search(self, atoms: int) -> None:
        """Refuse a structure whose neighbours the device finds, so that the host knows nothing of them.

        Args:
            atoms: of it.

        Raises:
            ShapeError: it says what to do.
        """
        return

    def lengths(self, atoms: int, slots: int) -> Mapping[str, int]:
        """Lengths of the further axes of `fields`, by name.

        Args:
            atoms: rows of the matrix.
            slots: columns.
        """

    def fill(self, inputs: GraphInputs, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of `fields`.

        Args:
            inputs: that they belong to.
            arrays: in pinned memory, by name.
        """

    def fill_molecules(
        self, starts: Int64[np.ndarray, " molecules"], atoms: int, arrays: Mapping[str, np.ndarray]
    ) -> tuple[str, ...]:
        """Write those arrays of `fields` that depend on where molecules begin, whose pairs the device forms.

        Args:
            starts: first row of each molecule.
            atoms: rows of all; further ones are padding.
            arrays: in pinned memory, by name.

        Returns:
            Names of what was written, which the lane uploads.
        """
        return ()

    def bind(self, atoms: int, slots: int, addresses: Mapping[str, int]) -> None:
        """Read inputs from and write outputs to these addresses from now on.

        Args:
            atoms: rows of the matrix.
            slots: columns.
            addresses: on the device, by the names in the contract.

        Raises:
            EngineError: the library refuses a shape or an address.
            DeviceMemoryError: there is no room for what the engine needs at this size.
        """

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
