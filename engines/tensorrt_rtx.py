"""The `tensorrt-rtx` backend: plans for GeForce and RTX GPUs, built anywhere, without a GPU, in about a second."""

import importlib
from typing import Any

from painn_deploy.engines.backend import BuildOptions, BuiltEngine
from painn_deploy.engines.tensorrt import PLAN, open_plan
from painn_deploy.engines.tensorrt_builder import build_plan
from painn_deploy.engines.tensorrt_session import TensorRTSession, gpus
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.manifest import Bundle

__all__ = ["BACKEND", "DEFAULT_CAPABILITIES", "TensorRTRTXBackend"]

DEFAULT_CAPABILITIES = ("86", "89", "120")
"""RTX 30, 40 and 50 series. Turing, 75, has no FP32 matrix product in TensorRT-RTX, so FP32 cannot be built for it."""


def _library() -> Any:
    try:
        return importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        raise EngineUnavailableError(
            'The engine tensorrt-rtx is not installed: pip install "painn-deploy[tensorrt-rtx]".'
        ) from error


class TensorRTRTXBackend:
    """TensorRT-RTX: ahead of time for named compute capabilities, finished on the GPU at first use."""

    name = "tensorrt-rtx"
    extra = "tensorrt-rtx"

    def version(self) -> str:
        """See `Backend.version`."""
        return str(_library().__version__)

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`; none where there is no GPU, which building does not need."""
        _library()
        return gpus()

    def build(self, model: bytes, options: BuildOptions) -> BuiltEngine:
        """See `Backend.build`."""
        capabilities = options.compute_capabilities or DEFAULT_CAPABILITIES
        library = _library()
        known = [name.removeprefix("SM") for name in library.ComputeCapability.__members__ if name.startswith("SM")]
        if unknown := sorted(set(capabilities) - set(known)):
            raise EngineUnavailableError(
                f"tensorrt-rtx {library.__version__} builds for the compute capabilities {', '.join(known)}, "
                f"not for {', '.join(unknown)}. For other GPUs there is the engine tensorrt."
            )

        def name_gpus(library: Any, config: Any) -> None:
            config.num_compute_capabilities = len(capabilities)
            for index, capability in enumerate(capabilities):
                config.set_compute_capability(getattr(library.ComputeCapability, f"SM{capability}"), index)

        plan = build_plan(library, model, options.profile, configure=name_gpus)
        return BuiltEngine({PLAN: plan}, tuple(capabilities), (options.profile,))

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> TensorRTSession:
        """See `Backend.open`; a GPU's work is not divided among `threads` of the CPU."""
        return open_plan(_library(), self.name, bundle, device)


BACKEND = TensorRTRTXBackend()
