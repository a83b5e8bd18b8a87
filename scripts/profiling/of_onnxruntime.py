"""ONNX Runtime's own profiler on a student's graph: the time of every operator, and what it was spent for."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from painn_deploy.engines.contract import taken
from painn_deploy.engines.onnxruntime.backend import OPTIMISED, SMALL, fields_of, load_graph
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.scripts.profiling.purposes import purposes

__all__ = ["OTHER", "Operator", "open_plain", "profile_graph"]

OTHER = "added by the engine"
WARM_UP = 3


@dataclass(frozen=True)
class Operator:
    """One node as the engine runs it.

    Attributes:
        name: of the node, after fusion.
        kind: of operator.
        purpose: what its result is for; see `painn_deploy.scripts.profiling.purposes`.
        milliseconds: median over the calls.
    """

    name: str
    kind: str
    purpose: str
    milliseconds: float


def profile_graph(
    model: onnx.ModelProto,
    calls: Sequence[GraphInputs],
    trace: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
) -> list[Operator]:
    """Run a graph under the profiler.

    Args:
        model: the graph, in FP32.
        calls: inputs of one size, a new one for each call.
        trace: file to write the chrome trace to.
        device: `cpu`, or `cuda`, where an operator's time is that of its launch.
        threads: of the CPU; None for the choice that the engine makes by size.

    Raises:
        EngineUnavailableError: ONNX Runtime cannot run on the device here.
        EngineError: the profiler saw no operator.
    """
    with TemporaryDirectory() as folder:
        session = _load(model, calls[0], device, threads, Path(folder))
        fields = fields_of(session)
        for inputs in [calls[0]] * WARM_UP + list(calls):
            session.run(None, taken(inputs, fields))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimised = onnx.load(Path(folder) / OPTIMISED, load_external_data=False)
    trace.write_text(json.dumps(events), encoding="utf-8")
    kernels = list(_kernels(events))
    if not kernels:
        raise EngineError("The profile of ONNX Runtime holds no operator; this version writes another format.")
    meant, written = purposes(model), {node.name: node for node in optimised.graph.node}
    spent: dict[tuple[str, str], list[float]] = {}
    for name, kind, microseconds in kernels:
        spent.setdefault((name, kind), []).append(microseconds)
    found = []
    for (name, kind), times in spent.items():
        outputs = written[name].output if name in written else ()
        purpose = next((meant[output] for output in outputs if output in meant), OTHER)
        found.append(Operator(name, kind, purpose, 1e-3 * float(np.median(times[WARM_UP:]))))
    return found


def open_plain(
    model: onnx.ModelProto, example: GraphInputs, *, device: str = "cpu", threads: int | None = None
) -> Callable[[GraphInputs], object]:
    """The same session without the profiler, for the time of a whole call.

    Args:
        model: see `profile_graph`, as for the others.
        example: an input of the size.
        device: to run on.
        threads: of the CPU.
    """
    session = _load(model, example, device, threads)
    fields = fields_of(session)
    return lambda inputs: session.run(None, taken(inputs, fields))


def _load(
    model: onnx.ModelProto, example: GraphInputs, device: str, threads: int | None, profile: Path | None = None
) -> Any:
    """As the engine opens it for graphs of this size, and watched where there is a folder for the profile."""
    small = example.mask.size <= SMALL
    wanted = 1 if small and threads is None and device == "cpu" else threads
    planned = small or device != "cpu"
    return load_graph(model.SerializeToString(), device, wanted, planned=planned, profile=profile)


def _kernels(events: Sequence[dict[str, object]]) -> Iterator[tuple[str, str, float]]:
    """Node's name, operator and microseconds of every kernel that ran, in time's order."""
    suffix = "_kernel_time"
    for event in events:
        name, arguments = str(event.get("name", "")), event.get("args")
        if event.get("cat") == "Node" and name.endswith(suffix) and isinstance(arguments, dict):
            yield name.removesuffix(suffix), str(arguments["op_name"]), float(str(event["dur"]))
