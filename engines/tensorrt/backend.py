"""The `tensorrt` backend: plans built on the very GPU that they will run on, with TensorRT 10.13 or later."""

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from painn_deploy.engines.backend import Backend, BuildOptions, BuiltEngine
from painn_deploy.engines.gpu.cuda import compute_capability, gpus
from painn_deploy.engines.kept import cache_folder, keep, kept
from painn_deploy.engines.profiles import Profile
from painn_deploy.engines.session import EngineInfo
from painn_deploy.engines.tensorrt.builder import build_plan
from painn_deploy.engines.tensorrt.session import TensorRTSession
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError, EngineUnavailableError
from painn_deploy.export.progress import Tell, silent

if TYPE_CHECKING:
    import onnx

__all__ = ["BACKEND", "PLAN", "PlanBackend", "TensorRTBackend", "open_plan"]

PLAN = "model.plan"
OLDEST = (10, 13)
LARGEST_CACHE = 2**29
"""Bytes of a timing cache, which has some hundred thousand."""


class PlanBackend(Backend):
    """TensorRT and TensorRT-RTX, which differ in their library and in how they build.

    A GPU's work is not divided among threads of the CPU, so that sessions ignore `threads`.
    """

    precisions = ("fp32", "fp16", "int8")
    lacking = MappingProxyType(
        {
            "fp64": "It has no real numbers of more than 32 bits, and its reader of ONNX would round those of 64 with "
            "no more than a warning."
        }
    )
    rest_precision = "fp16"

    def lower(self, model: "onnx.ModelProto") -> "onnx.ModelProto":
        """See `Backend.lower`: batched products as sums, since TensorRT fuses a sum with what is before it."""
        from painn_deploy.export.graph.edit import EditableGraph
        from painn_deploy.export.graph.lowering import sums_for_batched_products

        graph = EditableGraph(model)
        sums_for_batched_products(graph)
        return graph.model()

    def library(self) -> Any:
        """The Python module.

        Raises:
            EngineUnavailableError: it is not installed, or too old.
        """
        try:
            return importlib.import_module(self.name.replace("-", "_"))
        except ImportError as error:
            raise EngineUnavailableError(
                f'The engine {self.name} is not installed: pip install "painn-deploy[{self.packages[self.name]}]".'
            ) from error

    def honours_tf32(self, device: str) -> bool:
        """See `Backend.honours_tf32`: a plan is always for a GPU."""
        return True

    def version(self) -> str:
        """See `Backend.version`."""
        return str(self.library().__version__)

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`; none where there is no GPU, which only TensorRT-RTX builds without."""
        self.library()
        return gpus()

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> TensorRTSession:
        """See `Backend.open`."""
        return open_plan(self.library(), self.name, bundle, device)


class TensorRTBackend(PlanBackend):
    """TensorRT, for GPUs of the first one's kind."""

    name = "tensorrt"
    packages = MappingProxyType({"tensorrt": "tensorrt", "cuda-bindings": "tensorrt"})

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

    def check(self, options: BuildOptions) -> None:
        """See `Backend.check`: the library, and the GPU."""
        self.library()
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

    def build(self, model: bytes, options: BuildOptions, tell: Tell = silent) -> BuiltEngine:
        """See `Backend.build`."""
        self.check(options)
        library, here = self.library(), compute_capability(0)
        file = cache_folder() / "timing" / f"tensorrt-{library.__version__}-{here}.cache"
        measured = kept(file, LARGEST_CACHE) or b""
        built = build_plan(library, model, options, timing_cache=measured, tell=tell)
        keep(file, built.timing_cache)
        return BuiltEngine({PLAN: built.plan}, (here,), (options.profile,), built.warnings, tf32=options.tf32)


BACKEND = TensorRTBackend()


def open_plan(library: Any, name: str, bundle: Bundle, device: str) -> TensorRTSession:
    """Load a plan where version, GPU and compute capability are those that it was built for.

    Args:
        library: tensorrt or tensorrt_rtx.
        name: of the backend.
        bundle: that holds the plan.
        device: `auto` or `cuda` for the first GPU, or one by name.

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
    if not manifest.profiles:
        raise BundleError(f"{bundle} does not say which sizes its plan serves (profiles). Export it again.")
    index = int(chosen.partition(":")[2])
    if (here := compute_capability(index)) not in manifest.bound_to:
        raise BundleError(
            f"{bundle.path} was built for the compute capabilities {', '.join(manifest.bound_to)}, and "
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
        outputs=manifest.outputs,
        inputs=manifest.inputs,
        kept=cache_folder() / "kernels" / f"{name}-{library.__version__}-{here}-{bundle.sha256[:24]}.cache",
    )
