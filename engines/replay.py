"""CUDA graphs of sizes that come again, for engines launched kernel by kernel: one launch in place of hundreds.

TensorRT's sessions have their own. A recording holds the addresses that it reads and writes, so that inputs are copied
to where they were recorded from. Recordings are off unless a session's `graphs` is set: `make gpu-check` holds them
against plain launches and times both, and until it has run on a GPU nobody should take them on trust.
"""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import OUTPUTS, GraphInputs, GraphOutputs

__all__ = ["MOST_RECORDINGS", "OrtRecording", "Recording", "Recordings", "TorchRecording"]

MOST_RECORDINGS = 32
"""Sizes that a session records; one more runs as it did before."""


@runtime_checkable
class Recording(Protocol):
    """One evaluation at one size, ready to be launched again."""

    def replay(self, inputs: GraphInputs) -> GraphOutputs:
        """The outputs for new inputs of that size, in arrays of their own."""


R = TypeVar("R", bound=Recording)


class Recordings(Generic[R]):
    """By size; one is made when a size comes for the second time.

    Args:
        record: makes one from inputs of its size; told how many there are.
    """

    def __init__(self, record: Callable[[GraphInputs, int], R]) -> None:
        self._record = record
        self._seen: set[tuple[int, ...]] = set()
        self._held: dict[tuple[int, ...], R] = {}

    def of(self, inputs: GraphInputs) -> R | None:
        """The recording for inputs of this size; None where they are to be run as ever."""
        size = inputs.mask.shape
        if size not in self._held:
            if size not in self._seen or len(self._held) >= MOST_RECORDINGS:
                self._seen.add(size)
                return None
            self._held[size] = self._record(inputs, len(self._held))
        return self._held[size]


class OrtRecording:
    """ONNX Runtime's own: a run with a number of its own is recorded at its first time, and replayed at every other.

    Args:
        library: onnxruntime.
        session: loaded with `enable_cuda_graph`.
        inputs: of the size.
        number: of the recording, unique in the session.
        kind: device that the arrays live on, `cuda`.
        index: of that device.
    """

    def __init__(self, library: Any, session: Any, inputs: GraphInputs, number: int, kind: str, index: int) -> None:
        self._session, self._binding = session, session.io_binding()
        self._options = library.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))
        # of copies: on a CPU such a value may be the array itself
        self._inputs = [library.OrtValue.ortvalue_from_numpy(array.copy(), kind, index) for array in inputs]
        self._outputs = [
            library.OrtValue.ortvalue_from_shape_and_type(field.sized(atoms=len(inputs.mask)), np.float32, kind, index)
            for field in OUTPUTS
        ]
        for name, value in zip(GraphInputs._fields, self._inputs, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for field, value in zip(OUTPUTS, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(field.name, value)

    def replay(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Recording.replay`."""
        for value, array in zip(self._inputs, inputs, strict=True):
            value.update_inplace(array)
        self._session.run_with_iobinding(self._binding, self._options)
        return GraphOutputs(*(value.numpy().copy() for value in self._outputs))


class TorchRecording:
    """torch's: what a package launches on one stream.

    Args:
        torch: the library.
        package: the engine, loaded without its own synchronisation.
        inputs: of the size.
        device: such as `cuda:0`.

    Raises:
        EngineError: it cannot be recorded.
    """

    def __init__(self, torch: Any, package: Callable[..., Any], inputs: GraphInputs, device: str) -> None:
        self._torch = torch
        self._inputs = [torch.from_numpy(array).to(device) for array in inputs]
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(side):  # libraries take their workspaces before the recording
                package(*self._inputs)
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = package(*self._inputs)
        except RuntimeError as error:
            raise EngineError(f"A CUDA graph of {inputs.mask.shape} could not be recorded: {error}") from error

    def replay(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Recording.replay`."""
        for tensor, array in zip(self._inputs, inputs, strict=True):
            tensor.copy_(self._torch.from_numpy(array))
        self._graph.replay()
        return GraphOutputs(*(_on_host(output) for output in self._outputs))


def _on_host(tensor: Any) -> Float[np.ndarray, "..."]:
    array: np.ndarray = tensor.cpu().numpy()
    return array
