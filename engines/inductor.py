"""The `inductor` backend: the graph compiled to native code by torch (AOTInductor), where there is a C++ compiler.

The package holds machine code: it is bound to the version of torch that made it and to the CPU's vector instructions.
"""

import io
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

from painn_deploy.engines.backend import BuildOptions, BuiltEngine, Closing, EngineInfo
from painn_deploy.engines.contract import check_inputs, padded
from painn_deploy.export.errors import BundleError, EngineError, EngineUnavailableError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.manifest import Bundle

__all__ = ["BACKEND", "InductorBackend", "InductorSession"]

PACKAGE = "model.pt2"
LEAST = 2
"""Atoms and slots: torch's compiler takes a size of one for a constant, so smaller graphs are padded."""


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise EngineUnavailableError('The engine inductor needs torch: pip install "painn-deploy[export]".') from error
    return torch


def _cpu(torch: Any) -> str:
    """The CPU's vector instructions as torch names them, such as `cpu:AVX512`."""
    return f"cpu:{torch.backends.cpu.get_cpu_capability()}"


class InductorBackend:
    """AOTInductor on the CPU."""

    name = "inductor"
    extra = "export"
    precisions = ("fp32", "fp16")

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`."""
        return _cpu(_torch())

    def version(self) -> str:
        """See `Backend.version`: torch's, without the name of its build."""
        return str(_torch().__version__).split("+")[0]

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`."""
        _torch()
        return ("cpu",)

    def build(self, model: bytes, options: BuildOptions, tell: Callable[[str], None] = lambda _: None) -> BuiltEngine:
        """See `Backend.build`; takes about half a minute."""
        torch = _torch()
        if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
            raise EngineUnavailableError("The engine inductor needs a C++ compiler: install g++, or set CXX to yours.")
        import onnx

        from painn_deploy.engines.onnx_torch import OnnxModule

        atoms, slots = torch.export.Dim("atoms", min=LEAST), torch.export.Dim("slots", min=LEAST)
        matrix = {0: atoms, 1: slots}
        sample = (
            torch.ones(7, dtype=torch.int32),
            torch.randn(7, 5, 3),
            torch.zeros(7, 5, dtype=torch.int32),
            torch.zeros(7, 5, dtype=torch.int32),
            torch.ones(7, 5),
        )
        package = io.BytesIO()
        with warnings.catch_warnings():  # torch's compiler warns about its own internals
            warnings.simplefilter("ignore")
            program = torch.export.export(
                OnnxModule(onnx.load_from_string(model)),
                sample,
                dynamic_shapes=(({0: atoms}, matrix, matrix, matrix, matrix),),
            )
            try:
                torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=package,
                    inductor_configs={"cpp.dynamic_threads": True},  # else this machine's cores would be compiled in
                )
            except Exception as error:  # its compiler's errors share no base class but this one
                raise EngineError(f"torch could not compile the graph: {error}") from error
        return BuiltEngine({PACKAGE: package.getvalue()}, (_cpu(torch),))

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> "InductorSession":
        """See `Backend.open`; `threads` holds for all of torch, which knows no other way."""
        torch, manifest = _torch(), bundle.manifest
        if device not in ("auto", "cpu"):
            raise EngineUnavailableError(f"This bundle was compiled for the CPU and cannot run on {device!r}.")
        if manifest.engine_version != self.version():
            raise BundleError(
                f"{bundle.path} was compiled by torch {manifest.engine_version}, and this is torch {self.version()}. "
                "Export it again here, or install that version."
            )
        if manifest.compute_capability != (_cpu(torch),):
            raise BundleError(
                f"{bundle.path} was compiled for {', '.join(manifest.compute_capability)}, and this machine is "
                f"{_cpu(torch)}. Export it again here."
            )
        info = EngineInfo(
            backend=self.name,
            version=self.version(),
            device="cpu",
            precision=manifest.precision,
            bundle_sha256=bundle.sha256,
        )
        return InductorSession(bundle.file(PACKAGE), threads, info)


BACKEND = InductorBackend()


class InductorSession(Closing):
    """A loaded AOTInductor package.

    Args:
        package: contents of model.pt2.
        threads: of torch; None leaves them as they are.
        info: what the session says of itself.
    """

    def __init__(self, package: bytes, threads: int | None, info: EngineInfo) -> None:
        self._torch = _torch()
        if threads is not None:
            self._torch.set_num_threads(threads)
        try:
            self._package: Any = self._torch._inductor.aoti_load_package(io.BytesIO(package))
        except Exception as error:  # as above
            raise EngineError(f"torch cannot load this package: {error}") from error
        self._info = info

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return self._info

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`."""
        if self._package is None:
            raise EngineError("This session is closed; open another one.")
        check_inputs(inputs)
        atoms, slots = inputs.mask.shape
        try:
            outputs = self._package(
                *(self._torch.from_numpy(array) for array in padded(inputs, max(atoms, LEAST), max(slots, LEAST)))
            )
        except Exception as error:  # as above
            raise EngineError(f"The compiled graph failed on {atoms} atoms x {slots} slots: {error}") from error
        return GraphOutputs(*(output.numpy()[:atoms] for output in outputs))

    def close(self) -> None:
        """See `Session.close`."""
        self._package = None
