"""The `inductor` backend: the graph compiled to native code by torch (AOTInductor), where there is a C++ compiler.

The package holds machine code: it is bound to the version of torch that made it, and to the CPU's vector instructions
or the GPU's compute capability.
"""

import ctypes
import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from painn_deploy.engines.backend import BuildOptions, BuiltEngine, Closing, EngineInfo
from painn_deploy.engines.contract import check_inputs, padded
from painn_deploy.engines.pairs import pair_inputs
from painn_deploy.engines.replay import Recordings, TorchRecording
from painn_deploy.export.errors import BundleError, EngineError, EngineUnavailableError
from painn_deploy.export.fields import FIELDS, GraphInputs, GraphOutputs
from painn_deploy.export.manifest import Bundle

__all__ = ["BACKEND", "InductorBackend", "InductorSession", "give_back_memory", "keep_freed_memory"]

GPU_PACKAGE = "model.pt2"
LARGE_PACKAGE, SMALL_PACKAGE = "large.pt2", "small.pt2"
"""A CPU's; filters are computed once a pair in both."""
SMALL_ATOMS, SMALL = 32, 640
"""Atoms, and atoms x slots, up to which a CPU runs the second one. Its matrix products are compiled with the rest; the
first's are oneDNN's: faster for a batch, and for a molecule each takes longer to call than to compute."""
SMALL_THREADS = 2
"""That a compiled product is divided between. How many there are when it runs does not change its bits."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
TUNED = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
LEAST = 2
"""Atoms and slots: torch's compiler takes a size of one for a constant, so smaller graphs are padded."""


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise EngineUnavailableError('The engine inductor needs torch: pip install "painn-deploy[export]".') from error
    return torch


def _kind(torch: Any, device: str) -> str:
    """What machine code is bound to: `cpu:AVX512` by vector instructions, `cuda:90` by compute capability."""
    if device == "cpu":
        return f"cpu:{torch.backends.cpu.get_cpu_capability()}"
    return "cuda:" + "".join(map(str, torch.cuda.get_device_capability(device)))


def _compiled(torch: Any, program: Any, settings: Mapping[str, Any]) -> bytes:
    """Machine code."""
    package = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=package,
                # dynamic threads: else this machine's cores would be compiled in
                inductor_configs={"cpp.dynamic_threads": True, **settings},
            )
        except Exception as error:  # its compiler's errors share no base class but this one
            raise EngineError(f"torch could not compile the graph: {error}") from error
    return package.getvalue()


def _plans(graph: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """For each package on a CPU the form of the graph, and how it is compiled."""
    from painn_deploy.export.lowering import filters_once_a_pair, products_side_by_side, sums_for_batched_products

    paired = filters_once_a_pair(sums_for_batched_products(graph, mixing=True))
    templates = {"max_autotune": True, "max_autotune_gemm_backends": "CPP", "cpp.threads": SMALL_THREADS}
    return {
        LARGE_PACKAGE: (paired, {"freezing": True}),
        SMALL_PACKAGE: (products_side_by_side(paired), {"freezing": True, **templates}),
    }


def _traced(torch: Any, model: Any, device: str) -> Any:
    """A graph as a program for any number of atoms, slots and, where it has an axis of them, pairs."""
    from painn_deploy.engines.onnx_torch import OnnxModule

    sizes = {"atoms": 72, "slots": 8, "pairs": 300}
    axes = {name: torch.export.Dim(name, min=LEAST) for name in sizes}
    dtypes = {"int32": torch.int32, "float32": torch.float32}
    fields = [FIELDS[value.name] for value in model.graph.input]
    sample = [torch.ones(f.sized(**sizes), dtype=dtypes[f.dtype], device=device) for f in fields]
    dynamic = tuple({i: axes[n] for i, n in enumerate(f.shape) if n in axes} for f in fields)
    with warnings.catch_warnings():  # torch's compiler warns about its own internals
        warnings.simplefilter("ignore")
        return torch.export.export(OnnxModule(model).to(device), tuple(sample), dynamic_shapes=(dynamic,))


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for this process; a user who has tuned the allocator is left alone.

    Compiled code asks for every intermediate anew at each call. Of large ones glibc gives the memory back at once, and
    gets it again page by page: for a liquid of 1,500 atoms that takes longer than the arithmetic.
    """
    if sys.platform != "linux" or any(name in os.environ for name in TUNED):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """Return what glibc holds and nobody uses."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class InductorBackend:
    """AOTInductor on a CPU or a GPU."""

    name = "inductor"
    extra = "export"
    precisions = ("fp32", "fp16")

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`."""
        return _kind(_torch(), self._device(options.device))

    def _device(self, device: str) -> str:
        available = self.devices()
        chosen = available[0] if device == "auto" else {"cuda": "cuda:0"}.get(device, device)
        if chosen not in available:
            raise EngineUnavailableError(f"torch cannot use {device!r} here, only {', '.join(available)}.")
        return chosen

    def version(self) -> str:
        """See `Backend.version`: torch's, without the name of its build."""
        return str(_torch().__version__).split("+")[0]

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`."""
        torch = _torch()
        return (*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu")

    def build(self, model: bytes, options: BuildOptions, tell: Callable[[str], None] = lambda _: None) -> BuiltEngine:
        """See `Backend.build`; takes about a minute."""
        torch = _torch()
        device = self._device(options.device)
        if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
            raise EngineUnavailableError("The engine inductor needs a C++ compiler: install g++, or set CXX to yours.")
        import onnx

        graph = onnx.load_from_string(model)
        plans = _plans(graph) if device == "cpu" else {GPU_PACKAGE: (graph, {})}
        files = {}
        for number, (name, (lowered, settings)) in enumerate(plans.items(), 1):
            tell(f"inductor: compiling for {_kind(torch, device)}, {number} of {len(plans)}")
            files[name] = _compiled(torch, _traced(torch, lowered, device), settings)
        return BuiltEngine(files, (_kind(torch, device),))

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> "InductorSession":
        """See `Backend.open`; `threads` holds for all of torch, which knows no other way."""
        torch, manifest = _torch(), bundle.manifest
        bound = manifest.compute_capability[0]
        kind = bound.partition(":")[0]
        if device == "auto" or (device, kind) == ("cuda", "cuda"):
            device = "cpu" if kind == "cpu" else "cuda:0"
        if device.partition(":")[0] != kind or device not in self.devices():
            raise EngineUnavailableError(
                f"This bundle was compiled for {bound} and cannot run on {device!r}; "
                f"torch has {', '.join(self.devices())} here."
            )
        if manifest.engine_version != self.version():
            raise BundleError(
                f"{bundle.path} was compiled by torch {manifest.engine_version}, and this is torch {self.version()}. "
                "Export it again here, or install that version."
            )
        if bound != _kind(torch, device):
            raise BundleError(
                f"{bundle.path} was compiled for {bound}, and this machine is {_kind(torch, device)}. "
                "Export it again here."
            )
        info = EngineInfo(
            backend=self.name,
            version=self.version(),
            device=device,
            precision=manifest.precision,
            bundle_sha256=bundle.sha256,
        )
        if device == "cpu":
            return InductorSession(bundle.file(LARGE_PACKAGE), bundle.file(SMALL_PACKAGE), threads, info)
        return InductorSession(bundle.file(GPU_PACKAGE), None, threads, info)


BACKEND = InductorBackend()


class InductorSession(Closing):
    """A loaded engine.

    Args:
        package: contents of the package for a GPU or, on a CPU, for what is large.
        small: contents of a CPU's package for what is small; None on a GPU.
        threads: of torch; None leaves them as they are.
        info: what the session says of itself.
    """

    def __init__(self, package: bytes, small: bytes | None, threads: int | None, info: EngineInfo) -> None:
        self._torch = _torch()
        if threads is not None:
            self._torch.set_num_threads(threads)
        self._on_cpu = info["device"] == "cpu"
        if self._on_cpu:
            keep_freed_memory()
        self._info = info
        self._contents = b"" if self._on_cpu else package  # to load it once more, for `graphs`
        self._package: Any = self._loaded(package)
        self._small: Any = self._package if small is None else self._loaded(small)
        self._recordings: Recordings[TorchRecording] | None = None

    def _loaded(self, package: bytes, *, alone: bool = False) -> Any:
        """A package; `alone` on its stream, without a synchronisation of its own, which cannot be recorded."""
        index = int(self._info["device"].partition(":")[2] or -1)
        try:
            return self._torch._inductor.aoti_load_package(io.BytesIO(package), alone, index)
        except Exception as error:  # as above
            raise EngineError(f"torch cannot load this package: {error}") from error

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return self._info

    @property
    def graphs(self) -> bool:
        """Whether sizes that come again are replayed as CUDA graphs; off until set. See `painn_deploy.engines.replay`.

        Raises:
            EngineUnavailableError: set on a CPU.
        """
        return self._recordings is not None

    @graphs.setter
    def graphs(self, wanted: bool) -> None:
        device = self._info["device"]
        self._recordings = None
        if not wanted:
            return
        if self._on_cpu:
            raise EngineUnavailableError("There are no CUDA graphs on a CPU.")
        package = self._loaded(self._contents, alone=True)
        self._recordings = Recordings(lambda inputs, _: TorchRecording(self._torch, package, inputs, device))

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`."""
        is_small = len(inputs.mask) <= SMALL_ATOMS and inputs.mask.size <= SMALL
        package = self._small if is_small else self._package
        if package is None:
            raise EngineError("This session is closed; open another one.")
        check_inputs(inputs)
        atoms, slots = inputs.mask.shape
        graph = padded(inputs, max(atoms, LEAST), max(slots, LEAST))
        arrays = (*graph, *pair_inputs(graph.reverse, LEAST)) if self._on_cpu else graph
        try:
            recording = None if self._recordings is None else self._recordings.of(graph)
            if recording is not None:
                return GraphOutputs(*(output[:atoms] for output in recording.replay(graph)))
            tensors = [self._torch.from_numpy(array) for array in arrays]
            if not self._on_cpu:
                tensors = [tensor.to(self._info["device"]) for tensor in tensors]
            outputs = package(*tensors)
        except Exception as error:  # as above
            raise EngineError(f"The compiled graph failed on {atoms} atoms x {slots} slots: {error}") from error
        return GraphOutputs(*(output.cpu().numpy()[:atoms] for output in outputs))

    def close(self) -> None:
        """See `Session.close`; the system gets back what was kept from call to call."""
        self._package = self._small = self._recordings = None
        give_back_memory()
