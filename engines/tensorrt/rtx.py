"""The `tensorrt-rtx` backend: plans for GeForce and RTX GPUs, built anywhere, without a GPU, in about a second."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from painn_deploy.engines.backend import BuildOptions, BuiltEngine
from painn_deploy.engines.tensorrt.backend import PLAN, PlanBackend
from painn_deploy.engines.tensorrt.builder import build_plan
from painn_deploy.engines.tensorrt.plan import read_plan
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.progress import Tell, silent

__all__ = ["BACKEND", "DEFAULT_CAPABILITIES", "TensorRTRTXBackend"]

DEFAULT_CAPABILITIES = ("86", "89", "120")
"""RTX 30, 40 and 50 series. Turing, 75, has no FP32 matrix product in TensorRT-RTX, so FP32 cannot be built for it."""


class TensorRTRTXBackend(PlanBackend):
    """TensorRT-RTX: ahead of time for named compute capabilities, finished on the GPU at first use."""

    name = "tensorrt-rtx"
    packages = MappingProxyType({"tensorrt-rtx": "tensorrt-rtx", "cuda-bindings": "tensorrt-rtx"})

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`: to nothing but the options."""
        return ",".join(options.compute_capabilities or DEFAULT_CAPABILITIES)

    def contents(self, bundle: Bundle) -> Mapping[str, str]:
        """See `Backend.contents`: kernels and weights that the plan names."""
        found = read_plan(bundle.file(PLAN))
        weights = (f"{count} {kind}" for kind, count in sorted(found.constants.items()))
        return {
            "kernels": f"{found.launches} launches an evaluation; the plan names {found.count}",
            "weights": ", ".join(weights),
        }

    def check(self, options: BuildOptions) -> None:
        """See `Backend.check`: the library, and the GPUs that it builds for."""
        library = self.library()
        known = [name.removeprefix("SM") for name in library.ComputeCapability.__members__ if name.startswith("SM")]
        if unknown := sorted(set(options.compute_capabilities) - set(known)):
            raise EngineUnavailableError(
                f"tensorrt-rtx {library.__version__} builds for the compute capabilities {', '.join(known)}, "
                f"not for {', '.join(unknown)}. For other GPUs there is the engine tensorrt."
            )

    def build(self, model: bytes, options: BuildOptions, tell: Tell = silent) -> BuiltEngine:
        """See `Backend.build`."""
        self.check(options)
        capabilities = options.compute_capabilities or DEFAULT_CAPABILITIES

        def configure(library: Any, config: Any) -> None:
            # without it the runtime may allocate while it runs, which cannot be recorded as a CUDA graph
            config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
            config.num_compute_capabilities = len(capabilities)
            for index, capability in enumerate(capabilities):
                config.set_compute_capability(getattr(library.ComputeCapability, f"SM{capability}"), index)

        built = build_plan(self.library(), model, options, configure=configure, tell=tell)
        return BuiltEngine(
            {PLAN: built.plan}, tuple(capabilities), (options.profile,), built.warnings, tf32=options.tf32
        )


BACKEND = TensorRTRTXBackend()
