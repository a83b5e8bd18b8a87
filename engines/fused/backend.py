"""The `fused` backend: a kernel of our own for PaiNN, in which no tensor of a size of atoms x slots x features exists.

It is compiled for the student's sizes, in seconds: for a CPU by a C++ compiler, for NVIDIA GPUs by NVRTC, of one source.
What runs it needs neither torch nor a compiler.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from painn_deploy.engines.backend import Backend, BuildOptions, BuiltEngine
from painn_deploy.engines.fused.host import LIBRARY, compiled_libraries, kind_of_machine, load
from painn_deploy.engines.fused.host_session import FusedHostSession
from painn_deploy.engines.fused.packed import Packed
from painn_deploy.engines.session import EngineInfo
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError, EngineError, EngineUnavailableError
from painn_deploy.export.progress import Tell, silent

if TYPE_CHECKING:
    from painn_deploy.export.model.student import Student

__all__ = ["BACKEND", "FusedBackend"]

VERSION = "1"
"""Of the kernel; one more whenever its results or its arguments change."""

WEIGHTS = "molecules.weights"

CPU_BATCH_SLOTS = 16_384
"""See `painn_deploy.engines.backend`: each group of some atoms is in the cache by itself, whatever the batch is."""


class FusedBackend(Backend):
    """A kernel of our own, of PaiNNs whose filters have a cosine cutoff."""

    name = "fused"
    packages: Mapping[str, str] = MappingProxyType({})
    precisions = ("fp32",)
    lacking = MappingProxyType(
        {
            "fp16": "Its sums are in FP32, and so are its operands.",
            "int8": "Its sums are in FP32, and so are its operands.",
            "fp64": "Its sums are in FP32, and so are its operands.",
        }
    )

    def of_student(self, student: "Student") -> bytes:
        """See `Backend.of_student`: its weights.

        Raises:
            EngineError: it has a part that the kernel does not compute; with its name.
        """
        from painn_deploy.engines.fused.weights import pack

        return pack(student).to_bytes()

    def batch_slots(self, device: str) -> int:
        """See `Backend.batch_slots`."""
        return CPU_BATCH_SLOTS if device == "cpu" else super().batch_slots(device)

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`."""
        return kind_of_machine()

    def version(self) -> str:
        """See `Backend.version`: of the kernel."""
        return VERSION

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`."""
        return ("cpu",)

    def build(self, model: bytes, options: BuildOptions, tell: Tell = silent) -> BuiltEngine:
        """See `Backend.build`."""
        if not options.of_student:
            raise EngineError("The engine fused is built of a student's weights, and a graph alone does not have them.")
        packed = Packed.from_bytes(options.of_student)
        tell(f"fused: compiling for {kind_of_machine()}")
        return BuiltEngine({WEIGHTS: options.of_student, **compiled_libraries(packed)}, (kind_of_machine(),))

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> FusedHostSession:
        """See `Backend.open`."""
        manifest = bundle.manifest
        if device not in ("auto", *self.devices()):
            raise EngineUnavailableError(f"The engine fused cannot run on {device!r}, only {', '.join(self.devices())}.")
        if manifest.engine_version != self.version():
            raise BundleError(
                f"{bundle} has version {manifest.engine_version} of the kernel, and this is version {self.version()}. "
                "Export it again here."
            )
        if kind_of_machine() not in manifest.bound_to:
            raise BundleError(
                f"{bundle} was compiled for {', '.join(manifest.bound_to)}, and this machine is {kind_of_machine()}. "
                "Export it again here."
            )
        packed = Packed.from_bytes(bundle.file(WEIGHTS))
        if dict(manifest.axes) != ({"width": packed.macros["HIDDEN"]} if packed.macros["GIVES_FEATURES"] else {}):
            raise BundleError(f"{bundle} holds weights of another graph than its own. Export it again.")
        names = {width: LIBRARY.format(width) for width in (4, 8, 16)}
        contents = {width: bundle.file(name) for width, name in names.items() if name in manifest.files}
        if not contents:
            raise BundleError(f"{bundle} holds no library of the engine fused. Export it again.")
        info = EngineInfo(
            backend=self.name,
            version=self.version(),
            device="cpu",
            precision=manifest.precision,
            bundle_sha256=bundle.sha256,
        )
        return FusedHostSession(load(contents), packed, threads, info, manifest.outputs, manifest.inputs)


BACKEND = FusedBackend()
