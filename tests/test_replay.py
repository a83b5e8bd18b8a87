"""The book-keeping of CUDA graphs: ONNX Runtime's bound arrays on the CPU, torch's recorder played by a stand-in.

What a driver records and replays is for `make gpu-check`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from painn_deploy.engines.onnxruntime import load_graph, open_graph
from painn_deploy.engines.replay import MOST_RECORDINGS, OrtRecording, Recordings, TorchRecording
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.neighbours import graph_inputs

from . import students


def waters(count: int, seed: int) -> GraphInputs:
    return graph_inputs([students.water(seed + number) for number in range(count)], 4.0)


def same(one: GraphOutputs, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class Remembered:
    """A recording that knows what it was made of."""

    def __init__(self, inputs: GraphInputs, number: int) -> None:
        self.size, self.number = inputs.mask.shape, number

    def replay(self, inputs: GraphInputs) -> GraphOutputs:
        raise AssertionError(f"{inputs} are not to be run here.")


def test_a_size_is_recorded_when_it_comes_again() -> None:
    recordings = Recordings(Remembered)
    assert [recordings.of(waters(count, 0)) for count in (1, 2)] == [None, None]
    first, second = recordings.of(waters(2, 1)), recordings.of(waters(1, 1))
    assert first is not None
    assert second is not None
    assert (first.number, first.size, second.number) == (0, (6, 2), 1)
    assert recordings.of(waters(2, 2)) is first


def test_no_more_sizes_are_recorded_than_there_is_memory_for() -> None:
    recordings = Recordings(Remembered)
    for _ in range(2):
        found = [recordings.of(waters(count, 0)) for count in range(1, MOST_RECORDINGS + 3)]
    assert [one is None for one in found] == [False] * MOST_RECORDINGS + [True] * 2


def test_onnx_runtime_reads_what_is_copied_to_its_arrays(bundle: Path) -> None:
    model = (bundle / "model.onnx").read_bytes()
    plain, inputs = open_graph(model), waters(2, 0)
    kept = [array.copy() for array in inputs]
    recording = OrtRecording(onnxruntime, load_graph(model, "cpu", 1), inputs, 0, "cpu", 0)
    first = recording.replay(inputs)
    for seed in range(1, 4):
        assert same(recording.replay(waters(2, seed)), plain(waters(2, seed)))
    assert same(first, plain(inputs)), "what was given before is not overwritten"
    assert all(np.array_equal(a, b) for a, b in zip(inputs, kept, strict=True))


class Recorder:
    """What `TorchRecording` asks of torch, on the CPU: a recorded call is made again when it is replayed."""

    from_numpy = staticmethod(torch.from_numpy)

    def __init__(self, package: Callable[..., Any]) -> None:
        self.cuda, self._package, self._recording = self, package, False
        self.log: list[str] = []

    def package(self, *inputs: torch.Tensor) -> Any:
        self.log.append("recorded" if self._recording else "run")
        outputs = self._package(*inputs)
        if self._recording:
            self._recorded = inputs, outputs
        return outputs

    Stream = current_stream = lambda self, _: self

    def wait_stream(self, _: object) -> None:
        self.log.append("wait")

    @contextmanager
    def stream(self, _: object) -> Iterator[None]:
        yield

    @contextmanager
    def graph(self, _: object) -> Iterator[None]:
        self._recording = True
        yield
        self._recording = False

    def CUDAGraph(self) -> "Recorder":  # noqa: N802  torch's name
        return self

    def replay(self) -> None:
        inputs, outputs = self._recorded
        for output, value in zip(outputs, self._package(*inputs), strict=True):
            output.copy_(value)


def test_torch_replays_on_the_tensors_that_were_recorded(bundle: Path) -> None:
    plain = open_graph((bundle / "model.onnx").read_bytes())

    def package(*tensors: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in plain(GraphInputs(*(t.numpy() for t in tensors)))]

    recorder = Recorder(package)
    inputs = waters(2, 0)
    recording = TorchRecording(recorder, recorder.package, GraphInputs(*(a.copy() for a in inputs)), "cpu")
    assert recorder.log == ["wait", "run", "wait", "recorded"]
    for seed in range(3):
        assert same(recording.replay(waters(2, seed)), plain(waters(2, seed)))


def test_what_cannot_be_recorded_says_so() -> None:
    def package(*_: torch.Tensor) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    recorder = Recorder(package)
    with pytest.raises(EngineError, match=r"CUDA graph of \(6, 2\) could not be recorded: operation not permitted"):
        TorchRecording(recorder, recorder.package, waters(2, 0), "cpu")


def test_there_are_none_on_a_cpu(bundle: Path) -> None:
    with PaiNNCalculator(bundle) as calculator:
        with pytest.raises(EngineUnavailableError, match="no CUDA graphs on 'cpu'"):
            calculator.session.graphs = True  # type: ignore[attr-defined]
        assert not calculator.session.graphs  # type: ignore[attr-defined]
