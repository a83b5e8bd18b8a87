"""The `tensorrt` backend: plans built on the very GPU that they will run on, with TensorRT 10.13 or later."""

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from painn_deploy.engines.backend import BuildOptions, BuiltEngine, EngineInfo
from painn_deploy.engines.cache import cache_folder
from painn_deploy.engines.gpu.cuda import compute_capability, gpus
from painn_deploy.engines.profiles import Profile
from painn_deploy.engines.tensorrt.builder import build_plan
from painn_deploy.engines.tensorrt.session import TensorRTSession
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError, EngineUnavailableError
from painn_deploy.export.files import write_whole

__all__ = ["BACKEND", "PLAN", "PlanBackend", "TensorRTBackend", "open_plan"]

PLAN = "model.plan"
OLDEST = (10, 13)


class PlanBackend:
    """What TensorRT and TensorRT-RTX share as backends; each has its library, and its way to build."""

    name: str
    extra: str
    precisions = ("fp32", "fp16", "int8")

    def library(self) -> Any:
        """The Python module.

        Raises:
            EngineUnavailableError: it is not installed, or too old.
        """
        try:
            return importlib.import_module(self.name.replace("-", "_"))
        except ImportError as error:
            raise EngineUnavailableError(
                f'The engine {self.name} is not installed: pip install "painn-deploy[{self.extra}]".'
            ) from error

    def version(self) -> str:
        """See `Backend.version`."""
        return str(self.library().__version__)

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`; none where there is no GPU, which only TensorRT-RTX builds without."""
        self.library()
        return gpus()

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> TensorRTSession:
        """See `Backend.open`; a GPU's work is not divided among `threads` of the CPU."""
        return open_plan(self.library(), self.name, bundle, device)


class TensorRTBackend(PlanBackend):
    """TensorRT on the GPU at hand."""

    name = "tensorrt"
    extra = "tensorrt"

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`: to the first GPU's kind."""
        return compute_capability(0) if gpus() else ""

    def library(self) -> Any:
        """See `PlanBackend.library`."""
        library = super().library()
        version = tuple(int(part) for part in library.__version__.split(".")[:2])
        if version < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise EngineUnavailableError(
                f"tensorrt {library.__version__} is too old; {oldest} or later builds strongly typed graphs."
            )
        return library

    def build(self, model: bytes, options: BuildOptions, tell: Callable[[str], None] = lambda _: None) -> BuiltEngine:
        """See `Backend.build`; for the first GPU, and for no other kind."""
        library = self.library()
        if not gpus():
            raise EngineUnavailableError(
                "tensorrt builds on the GPU that the engine will run on, and there is no NVIDIA GPU here. "
                "The engine tensorrt-rtx is built without one."
            )
        here = compute_capability(0)
        if options.compute_capabilities and options.compute_capabilities != (here,):
            raise EngineUnavailableError(
                f"tensorrt builds for the GPU at hand, whose compute capability is {here}, not for "
                f"{', '.join(options.compute_capabilities)}."
            )
        kept = cache_folder() / "timing" / f"tensorrt-{library.__version__}-{here}.cache"
        measured = kept.read_bytes() if kept.is_file() else b""
        built = build_plan(library, model, options, timing_cache=measured, tell=tell)
        with suppress(OSError):  # a cache that cannot be written is no reason to lose the plan
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, built.timing_cache)
        return BuiltEngine({PLAN: built.plan}, (here,), (options.profile,), built.warnings, tf32=options.tf32)


BACKEND = TensorRTBackend()


def open_plan(library: Any, name: str, bundle: Bundle, device: str) -> TensorRTSession:
    """Load a plan where version, GPU and compute capability are those that it was built for.

    Raises:
        EngineUnavailableError: there is no such GPU here.
        BundleError: the plan was built by another version, or for another GPU.
    """
    manifest, available = bundle.manifest, gpus()
    chosen = available[0] if device in ("auto", "cuda") and available else device
    if chosen not in available:
        raise EngineUnavailableError(
            f"{name} runs on NVIDIA GPUs, and {'there is none here' if not available else f'here are {available}'}: "
            f"{bundle} cannot run on {device!r}. On a CPU, use an onnxruntime bundle."
        )
    if manifest.engine_version != library.__version__:
        raise BundleError(
            f"{bundle} was built by {name} {manifest.engine_version}, and this is {library.__version__}. "
            "Export it again here, or install that version."
        )
    index = int(chosen.partition(":")[2])
    if (here := compute_capability(index)) not in manifest.compute_capability:
        raise BundleError(
            f"{bundle} was built for the compute capabilities {', '.join(manifest.compute_capability)}, and "
            f"{chosen} is {here}. Export it again with --compute-capability {here}."
        )
    info = EngineInfo(
        backend=name,
        version=str(library.__version__),
        device=chosen,
        precision=manifest.precision,
        bundle_sha256=bundle.sha256,
    )
    return TensorRTSession(
        library,
        bundle.file(PLAN),
        index,
        Profile.from_mapping(manifest.profiles[0]),
        info,
        species=manifest.species,
        kept=cache_folder() / "kernels" / f"{name}-{library.__version__}-{here}-{bundle.sha256[:24]}.cache",
    )
