"""ONNX Runtime on an NVIDIA GPU: its sessions as a lane's executor.

`make test` proves what can be proved without a GPU, `make gpu-check` the rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from painn_deploy.engines.gpu.cuda import in_words
from painn_deploy.engines.gpu.executor import Executor, Recorded
from painn_deploy.engines.inductor.gpu import check_elements
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import INPUTS, OUTPUTS, Field, GraphInputs

__all__ = ["OrtExecutor"]

UNRECORDED = "-1"
"""Number of a CUDA graph with which ONNX Runtime records nothing."""

WARM_UP = 2
"""Plain runs of a size before it is recorded."""

MOST_NUMBERS = 64
"""CUDA graphs that one session records; the next ones are another session's, and the first is gone with its last."""

FULL = ("Failed to allocate memory", "out of memory", "CUDA failure 2")
"""Parts of ONNX Runtime's messages by which a full GPU is recognised."""


class OrtExecutor(Executor):
    """Sessions of one graph on one lane's stream.

    ONNX Runtime records its own kernels, so that a CUDA graph of it does not hold the copies.

    Args:
        library: onnxruntime.
        load: loads the graph on the lane's stream; told whether its runs may be recorded.
        device: kind of device that memory lies on, `cuda`.
        index: of the GPU.
        elements: of the graph's widest tensor, for each slot.
        outputs: of the graph.
        inputs: of the graph.
    """

    fields: tuple[Field, ...] = ()
    least = 1
    most_slots: int | None = None

    def __init__(
        self,
        library: Any,
        load: Callable[[bool], Any],
        device: str,
        index: int,
        elements: float,
        outputs: Sequence[Field] = OUTPUTS,
        inputs: Sequence[Field] = INPUTS,
    ) -> None:
        self.outputs, self.inputs = tuple(outputs), tuple(inputs)
        self._library, self._load, self._device, self._index, self._elements = library, load, device, index, elements
        self._plain: Any = load(False)
        self._recording: Any = None
        self._numbers = 0
        self._bound: tuple[int, int, dict[str, int]] | None = None
        self._binding: Any = None
        self._replayed: tuple[Any, Any, str] | None = None

    def check(self, atoms: int, slots: int) -> None:
        """See `Executor.check`."""
        check_elements(atoms, slots, self._elements, "onnxruntime")

    def lengths(self, atoms: int, slots: int) -> Mapping[str, int]:
        """See `Executor.lengths`."""
        return {}

    def fill(self, inputs: GraphInputs, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Executor.fill`."""

    def bind(self, atoms: int, slots: int, addresses: Mapping[str, int]) -> None:
        """See `Executor.bind`."""
        self._bound = atoms, slots, dict(addresses)
        self._binding = self._bind(self._plain)

    def _bind(self, session: Any) -> Any:
        """Inputs and outputs of a session at the addresses of now."""
        if self._bound is None:
            raise EngineError("Nothing is bound.")
        atoms, slots, addresses = self._bound
        binding = session.io_binding()
        for fields, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for field in fields:
                shape = list(field.sized(atoms=atoms, slots=slots))
                bind(field.name, self._device, self._index, np.dtype(field.dtype), shape, addresses[field.name])
        return binding

    def execute(self) -> None:
        """See `Executor.execute`."""
        session, binding, number = self._replayed or (self._plain, self._binding, UNRECORDED)
        options = self._library.RunOptions()
        options.add_run_config_entry("gpu_graph_id", number)
        # the lane waits for its stream itself, once, after the results are on their way too
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        with ort_in_words("onnxruntime failed"):
            session.run_with_iobinding(binding, options)

    def record(self, send: Callable[[], None]) -> Recorded:
        """See `Executor.record`."""
        if self._recording is None or self._numbers >= MOST_NUMBERS:
            self._recording, self._numbers = self._load(True), 0
        self._numbers += 1  # 0 is ONNX Runtime's own
        binding = self._bind(self._recording)
        with self.replaying(self._recording, binding, UNRECORDED):  # so that recording allocates nothing
            for _ in range(WARM_UP):
                send()
        recorded = _Numbered(self, self._recording, binding, str(self._numbers), send)
        recorded.launch()  # the first run of a number records it
        return recorded

    @contextmanager
    def replaying(self, session: Any, binding: Any, number: str) -> Iterator[None]:
        """Run a recorded number of a session for this block.

        Args:
            session: that recorded it.
            binding: of its inputs and outputs.
            number: of the CUDA graph; `UNRECORDED` launches kernel by kernel.
        """
        self._replayed = session, binding, number
        try:
            yield
        finally:
            self._replayed = None

    def close(self) -> None:
        """See `Executor.close`."""
        self._plain = self._recording = self._binding = None


class _Numbered:
    """A number under which a session recorded a run. ONNX Runtime keeps what it recorded until its session ends."""

    def __init__(
        self, executor: OrtExecutor, session: Any, binding: Any, number: str, send: Callable[[], None]
    ) -> None:
        self._executor, self._session, self._binding, self._number, self._send = (
            executor, session, binding, number, send,
        )  # fmt: skip

    def launch(self) -> None:
        """See `Recorded.launch`."""
        with self._executor.replaying(self._session, self._binding, self._number):
            self._send()

    def close(self) -> None:
        """See `Recorded.close`."""
        self._session = self._binding = None


def ort_in_words(what: str) -> AbstractContextManager[None]:
    """Errors of ONNX Runtime as ours; see `painn_deploy.engines.gpu.cuda.in_words`."""
    return in_words(what, lambda error: any(sign in str(error) for sign in FULL))
