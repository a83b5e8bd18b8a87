"""The `onnxruntime` backend: the embedded default, which runs anywhere; on a GPU with onnxruntime-gpu."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from painn_deploy.engines.backend import Backend, BuildOptions, BuiltEngine
from painn_deploy.engines.contract import taken
from painn_deploy.engines.gpu.arena import Arena
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.engines.host_session import HostSession
from painn_deploy.engines.onnxruntime.gpu import OrtExecutor
from painn_deploy.engines.onnxruntime.int8 import QUANTISED, settings_for_int8
from painn_deploy.engines.onnxruntime.library import PROVIDERS, devices, load_failure, prepared
from painn_deploy.engines.onnxruntime.library import library as _library
from painn_deploy.engines.session import EngineInfo
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.fields import AS_WRITTEN, FIELDS, INPUTS, OUTPUTS, Field, GraphInputs
from painn_deploy.export.manifest import MODEL
from painn_deploy.export.progress import Tell, silent

__all__ = ["BACKEND", "OnnxRuntimeBackend", "OnnxRuntimeSession", "fields_of", "load_graph", "open_graph"]

_OUTPUT_NAMES = [field.name for field in OUTPUTS]
OPTIMISED = "optimised.onnx"
SMALL = 192
"""Atoms x slots up to which one thread is faster than two on the CPUs that we measured."""


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU or through CUDA."""

    name = "onnxruntime"
    packages = MappingProxyType({"onnxruntime": "cpu"})
    precisions = ("fp32", "fp16", "int8", "fp64")

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`: to nothing."""
        return ""

    def version(self) -> str:
        """See `Backend.version`."""
        return str(_library().__version__)

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`; a GPU that is listed has a driver, and `open` proves the rest.

        Raises:
            EngineUnavailableError: the library is not installed, or two of its packages are, in one folder.
        """
        return devices()

    def build(self, model: bytes, options: BuildOptions, tell: Tell = silent) -> BuiltEngine:
        """See `Backend.build`."""
        load_graph(model, "cpu", 1)  # ONNX Runtime reads model.onnx itself, so that loading it is the whole proof
        return BuiltEngine()

    def open(
        self, bundle: Bundle, device: str = "auto", threads: int | None = None
    ) -> "OnnxRuntimeSession | GpuSession":
        """See `Backend.open`."""
        precision = bundle.manifest.precision
        chosen = device if device != "auto" else "cpu" if precision == "fp64" else self.devices()[0]
        if precision == "fp64" and chosen != "cpu":
            raise EngineUnavailableError(
                f"{bundle} is in fp64, which runs on the CPU alone, and not on {chosen!r}. Give the device cpu, or a "
                "bundle in fp32."
            )
        prepared(chosen)
        info = EngineInfo(
            backend=self.name,
            version=self.version(),
            device=chosen,
            precision=precision,
            bundle_sha256=bundle.sha256,
        )
        if chosen.partition(":")[0] == "cuda":
            return _gpu_session(bundle, info)
        manifest = bundle.manifest
        return OnnxRuntimeSession(bundle.file(MODEL), chosen, threads, info, manifest.outputs, manifest.inputs)


BACKEND = OnnxRuntimeBackend()


def open_graph(model: bytes, outputs: Sequence[str] = _OUTPUT_NAMES) -> Callable[[GraphInputs], list[np.ndarray]]:
    """A function that runs any graph with the contract's inputs on the CPU, for studies of graphs.

    Args:
        model: the graph; it may be of a bundle of an older format.
        outputs: names of the tensors wanted; the contract's own by default.

    Raises:
        EngineError: it cannot be loaded.
    """
    session = load_graph(model, "cpu", None)
    fields = fields_of(session)
    return lambda inputs: session.run(list(outputs), taken(inputs, fields))


def fields_of(session: Any) -> list[Field]:
    """The inputs of a graph that was loaded.

    Args:
        session: of ONNX Runtime.
    """
    return [FIELDS[value.name] for value in session.get_inputs()]


def load_graph(
    model: bytes,
    device: str,
    threads: int | None,
    *,
    planned: bool = True,
    exact: bool = False,
    profile: Path | None = None,
    stream: int | None = None,
    records: bool = False,
) -> Any:
    """An InferenceSession on the device that was asked for, and on no other.

    Args:
        model: the graph.
        device: see `OnnxRuntimeSession`.
        threads: of the CPU; None for all cores.
        planned: plan the memory of each size when it first comes, and then take it in one piece. It saves a small
            graph some time; a large one needs twice the memory for it, and its first two calls eight times the time.
        exact: run the graph as it is written.
        profile: folder for ONNX Runtime's own profile, and for `OPTIMISED`, the graph that it runs.
        stream: of the GPU, that everything is sent to; None for one of ONNX Runtime's own.
        records: make CUDA graphs of runs that have a number.

    Raises:
        EngineUnavailableError: ONNX Runtime cannot run on the device here, or multiplies 8-bit integers wrong.
        EngineError: it cannot load the graph.
    """
    library = prepared(device)
    kind, _, index = device.partition(":")
    options = library.SessionOptions()
    options.enable_mem_pattern = planned
    if exact:
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # threads that spin between calls would slow whatever the caller does in between
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if kind == "cpu" and QUANTISED in model:
        for name, value in settings_for_int8().items():
            options.add_session_config_entry(name, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile / "profile")
        options.optimized_model_filepath = str(profile / OPTIMISED)
    provider: Any = PROVIDERS[kind]
    if kind == "cuda":  # TF32 would round FP32 products to 10 bits
        settings = {"device_id": index or "0", "use_tf32": "0", "enable_cuda_graph": str(int(records))}
        # each growth by what is asked for, and not by the next power of two
        settings |= {"arena_extend_strategy": "kSameAsRequested"}
        provider = (provider, settings | ({} if stream is None else {"user_compute_stream": str(stream)}))
    elif kind == "tensorrt":
        provider = (provider, {"device_id": index or "0"})
    if kind != "cpu":  # a node that the GPU cannot run is an error, not a slow step on the CPU
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:  # with its fallback it would say on stdout what went wrong, and raise what went wrong after that
        session = library.InferenceSession(model, options, providers=[provider], enable_fallback=0)
    except Exception as error:  # its errors share no base class but this one
        if kind != "cpu" and "CPU EP" in str(error) and (why := load_failure(kind)):
            raise EngineUnavailableError(f"onnxruntime cannot run on {device!r} here: {why}.") from error
        raise EngineError(f"onnxruntime cannot load this graph on {device!r}: {error}") from error
    if not exact and AS_WRITTEN in session.get_modelmeta().custom_metadata_map:
        again: Any = {"planned": planned, "profile": profile, "stream": stream, "records": records}
        return load_graph(model, device, threads, exact=True, **again)
    if session.get_providers()[0] != PROVIDERS[kind]:
        raise EngineUnavailableError(
            f"onnxruntime could not start on {device!r} and offered {session.get_providers()[0]} instead. "
            "Check the NVIDIA driver and that CUDA and cuDNN are those that onnxruntime-gpu names."
        )
    return session


def elements_a_slot(features: int, rank: int) -> float:
    """Elements of the widest tensor of a bundle's graph, for each slot of the matrix.

    Args:
        features: of the student's layers.
        rank: of its radial table; 0 for none.
    """
    return float(max(3 * features, 7 * rank))  # three filters; a spline's coefficients, knots and slopes


def _gpu_session(bundle: Bundle, info: EngineInfo) -> GpuSession:
    """A session on a GPU."""
    library, manifest, model, device = _library(), bundle.manifest, bundle.file(MODEL), info["device"]
    kind, _, number = device.partition(":")
    index = int(number or 0)
    rank = int((manifest.radial_table or {}).get("rank", 0))
    elements = elements_a_slot(int(manifest.configuration.get("hidden_dim", 128)), rank)

    def make(stream: int, _: Arena) -> OrtExecutor:
        def load(records: bool) -> object:
            return load_graph(model, device, None, planned=False, stream=stream, records=records)

        return OrtExecutor(library, load, kind, index, elements, manifest.outputs, manifest.inputs)

    return GpuSession(make, index, info, species=manifest.species)


class OnnxRuntimeSession(HostSession):
    """A loaded ONNX Runtime engine on a CPU, or in its own TensorRT provider.

    On a CPU a small graph runs on one thread, since waking others takes longer than its work, and in memory planned for
    its size; a larger one on all threads, and in what the one before left. Which it is depends on the size alone, so
    that the same input gives the same bits.

    Args:
        model: the graph.
        device: `cpu`, or `tensorrt`, `tensorrt:N` for ONNX Runtime's own TensorRT provider.
        threads: of the CPU, for graphs of any size; None for one or all cores by size.
        info: what the session says of itself.
        outputs: of the graph.
        inputs: of the graph.
    """

    def __init__(
        self,
        model: bytes,
        device: str,
        threads: int | None,
        info: EngineInfo,
        outputs: Sequence[Field] = OUTPUTS,
        inputs: Sequence[Field] = INPUTS,
    ) -> None:
        super().__init__(info, outputs=outputs, inputs=inputs)
        self._names = [field.name for field in self.outputs]
        if device == "cpu":
            self._small: Any = load_graph(model, device, 1 if threads is None else threads)
            self._large: Any = load_graph(model, device, threads, planned=False)
        else:
            self._small = self._large = load_graph(model, device, threads)

    def _evaluate(self, inputs: GraphInputs) -> list[np.ndarray]:
        session = self._small if inputs.mask.size <= SMALL else self._large
        arrays = taken(inputs, self.inputs)
        try:
            outputs = session.run(self._names, arrays)
        except Exception as error:  # as above
            atoms, slots = inputs.mask.shape
            raise EngineError(f"onnxruntime failed on {atoms} atoms x {slots} slots: {error}") from error
        return [np.asarray(output) for output in outputs]

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        self._small = self._large = None
