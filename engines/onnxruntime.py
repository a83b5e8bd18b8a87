"""The `onnxruntime` backend: the embedded default, which runs anywhere; on a GPU with onnxruntime-gpu."""

import re
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from painn_deploy.engines.backend import BuildOptions, BuiltEngine, Closing, EngineInfo
from painn_deploy.engines.contract import check_inputs
from painn_deploy.engines.replay import OrtRecording, Recordings
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.fields import AS_WRITTEN, OUTPUTS, GraphInputs, GraphOutputs
from painn_deploy.export.manifest import MODEL, Bundle

__all__ = ["BACKEND", "OnnxRuntimeBackend", "OnnxRuntimeSession", "load_graph", "open_graph"]

_OUTPUT_NAMES = [field.name for field in OUTPUTS]
OPTIMISED = "optimised.onnx"
SMALL = 192
"""Atoms x slots up to which one thread is faster than two on the CPUs that we measured."""

_PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


def _library() -> Any:
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 2:
        raise EngineUnavailableError(
            "onnxruntime and onnxruntime-gpu are both installed; they are one module under two names and break each "
            "other. Run `pip uninstall -y onnxruntime onnxruntime-gpu`, then install painn-deploy[cpu] or "
            "painn-deploy[cuda], not both."
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineUnavailableError(
            'onnxruntime is not installed: pip install "painn-deploy[cpu]", or "painn-deploy[cuda]" for a GPU.'
        ) from error
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU or through CUDA."""

    name = "onnxruntime"
    extra = "cpu"
    precisions = ("fp32", "fp16", "int8")

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`: to nothing."""
        return ""

    def version(self) -> str:
        """See `Backend.version`."""
        return str(_library().__version__)

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`; that a provider is listed does not prove that a GPU is there, `open` does."""
        available = _library().get_available_providers()
        return tuple(device for device, provider in _PROVIDERS.items() if provider in available)

    def build(self, model: bytes, options: BuildOptions, tell: Callable[[str], None] = lambda _: None) -> BuiltEngine:
        """See `Backend.build`: ONNX Runtime reads model.onnx itself, so that loading it is the whole proof."""
        load_graph(model, "cpu", 1)
        return BuiltEngine()

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> "OnnxRuntimeSession":
        """See `Backend.open`."""
        devices = self.devices()
        chosen = devices[0] if device == "auto" else device.split(":")[0]
        if chosen not in devices or not re.fullmatch(r"auto|cpu|(cuda|tensorrt)(:[0-9]+)?", device):
            raise EngineUnavailableError(
                f"onnxruntime {self.version()} cannot run on {device!r} here, only on {', '.join(devices)}. "
                'For an NVIDIA GPU: pip uninstall -y onnxruntime, then pip install "painn-deploy[cuda]".'
            )
        info = EngineInfo(
            backend=self.name,
            version=self.version(),
            device=chosen if device == "auto" else device,
            precision=bundle.manifest.precision,
            bundle_sha256=bundle.sha256,
        )
        return OnnxRuntimeSession(bundle.file(MODEL), info["device"], threads, info)


BACKEND = OnnxRuntimeBackend()


def open_graph(model: bytes, outputs: Sequence[str] = _OUTPUT_NAMES) -> Callable[[GraphInputs], list[np.ndarray]]:
    """Any graph with the contract's inputs, on the CPU, for those who study graphs; engines are opened by a backend.

    Args:
        model: the graph.
        outputs: names of the tensors wanted; the contract's own by default.

    Raises:
        EngineError: it cannot be loaded.
    """
    session = load_graph(model, "cpu", None)
    return lambda inputs: session.run(list(outputs), inputs._asdict())


def load_graph(
    model: bytes,
    device: str,
    threads: int | None,
    *,
    planned: bool = True,
    exact: bool = False,
    profile: Path | None = None,
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
        records: make CUDA graphs of runs that have a number.

    Raises:
        EngineUnavailableError: ONNX Runtime cannot run on the device here.
        EngineError: it cannot load the graph.
    """
    library = _library()
    kind, _, index = device.partition(":")
    if _PROVIDERS[kind] not in library.get_available_providers():
        raise EngineUnavailableError(
            f"onnxruntime {library.__version__} cannot run on {device!r} here. "
            'For an NVIDIA GPU: pip uninstall -y onnxruntime, then pip install "painn-deploy[cuda]".'
        )
    options = library.SessionOptions()
    options.enable_mem_pattern = planned
    if exact:
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # threads that spin between calls would slow whatever the caller does in between
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile / "profile")
        options.optimized_model_filepath = str(profile / OPTIMISED)
    provider: Any = _PROVIDERS[kind]
    if kind == "cuda":  # TF32 would round FP32 products to 10 bits
        provider = (provider, {"device_id": index or "0", "use_tf32": "0", "enable_cuda_graph": str(int(records))})
    elif kind == "tensorrt":
        provider = (provider, {"device_id": index or "0"})
    if kind != "cpu":  # a node that the GPU cannot run is an error, not a slow step on the CPU
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = library.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # its errors share no base class but this one
        raise EngineError(f"onnxruntime cannot load this graph: {error}") from error
    if not exact and AS_WRITTEN in session.get_modelmeta().custom_metadata_map:
        return load_graph(model, device, threads, planned=planned, exact=True, profile=profile, records=records)
    session.disable_fallback()
    if session.get_providers()[0] != _PROVIDERS[kind]:
        raise EngineUnavailableError(
            f"onnxruntime could not start on {device!r} and offered {session.get_providers()[0]} instead. "
            "Check the NVIDIA driver and that CUDA and cuDNN are those that onnxruntime-gpu names."
        )
    return session


class OnnxRuntimeSession(Closing):
    """A loaded ONNX Runtime engine.

    On a CPU a small graph runs on one thread, since waking others takes longer than its work, and in memory planned for
    its size; a larger one on all threads, and in what the one before left. Which it is depends on the size alone, so
    that the same input gives the same bits.

    Args:
        model: the graph.
        device: `cpu`, `cuda`, `cuda:N`, or `tensorrt`, `tensorrt:N` for ONNX Runtime's own TensorRT provider.
        threads: of the CPU, for graphs of any size; None for one or all cores by size.
        info: what the session says of itself.
    """

    def __init__(self, model: bytes, device: str, threads: int | None, info: EngineInfo) -> None:
        self._info = info
        self._model = b"" if device == "cpu" else model  # to load it once more, for `graphs`
        self._checked: GraphInputs | None = None
        self._recordings: Recordings[OrtRecording] | None = None
        if device == "cpu":
            self._small: Any = load_graph(model, device, 1 if threads is None else threads)
            self._large: Any = load_graph(model, device, threads, planned=False)
        else:
            self._small = self._large = load_graph(model, device, threads)

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return self._info

    @property
    def graphs(self) -> bool:
        """Whether sizes that come again are replayed as CUDA graphs; off until set. See `painn_deploy.engines.replay`.

        Raises:
            EngineUnavailableError: set where the device is not `cuda`.
        """
        return self._recordings is not None

    @graphs.setter
    def graphs(self, wanted: bool) -> None:
        device = self._info["device"]
        kind, _, index = device.partition(":")
        self._recordings = None
        if not wanted:
            return
        if kind != "cuda":
            raise EngineUnavailableError(f"There are no CUDA graphs on {device!r}.")
        library, session = _library(), load_graph(self._model, device, None, records=True)
        self._recordings = Recordings(
            lambda inputs, number: OrtRecording(library, session, inputs, number, kind, int(index or 0))
        )

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`."""
        session = self._small if inputs.mask.size <= SMALL else self._large
        if session is None:
            raise EngineError("This session is closed; open another one.")
        if inputs is not self._checked:  # a step of dynamics writes into the arrays of the step before
            check_inputs(inputs)
            self._checked = inputs
        try:
            recording = None if self._recordings is None else self._recordings.of(inputs)
            if recording is not None:
                return recording.replay(inputs)
            outputs = session.run(_OUTPUT_NAMES, inputs._asdict())
        except Exception as error:  # as above
            raise EngineError(
                f"onnxruntime failed on {inputs.mask.shape[0]} atoms x {inputs.mask.shape[1]} slots: {error}"
            ) from error
        return GraphOutputs(*(np.asarray(output) for output in outputs))

    def close(self) -> None:
        """See `Session.close`."""
        self._small = self._large = self._checked = self._recordings = None
