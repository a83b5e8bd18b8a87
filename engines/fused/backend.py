"""The `fused` backend: a kernel of our own for PaiNN, in which no tensor of a size of atoms x slots x features exists.

It is compiled for the student's sizes, in seconds and of one source: for a CPU by a C++ compiler, for NVIDIA GPUs by
NVRTC. What runs it needs neither torch nor a compiler.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from painn_deploy.engines.backend import Backend, BuildOptions, BuiltEngine
from painn_deploy.engines.forms import Form
from painn_deploy.engines.fused.gpu import compiled_kernels, session_on_gpu
from painn_deploy.engines.fused.host import LIBRARY, compiled_libraries, compiler, kind_of_machine, load
from painn_deploy.engines.fused.host_session import FusedHostSession
from painn_deploy.engines.fused.packed import Packed
from painn_deploy.engines.fused.plan import MOST_ATOMS, plans_for
from painn_deploy.engines.gpu.cuda import compute_capability, gpus
from painn_deploy.engines.gpu.device_positions import compile_kernel
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.engines.session import EngineInfo
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError, EngineError, EngineUnavailableError
from painn_deploy.export.progress import Tell, silent

if TYPE_CHECKING:
    import onnx
    from ase import Atoms

    from painn_deploy.export.model.student import Student

__all__ = ["BACKEND", "FusedBackend"]

VERSION = "3"
"""Of the kernel; one more whenever its results or its arguments change."""

WEIGHTS = "molecules.weights"

LIBRARIES = (4, 8, 16)
"""Widths of vectors that a bundle may hold a library for."""

CUDA = "cuda:"
"""How kinds of GPU begin that a bundle is bound to; its compute capability follows."""

CPU_BATCH_SLOTS = 16_384
"""See `painn_deploy.engines.backend`: each group of some atoms is in the cache by itself, whatever the batch is."""


class FusedBackend(Backend):
    """A kernel of our own, of PaiNNs in FP32."""

    name = "fused"
    packages = MappingProxyType({"cuda-bindings": "cuda"})
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
            EngineUnavailableError: it has a part that the kernel does not compute; with its name.
        """
        from painn_deploy.engines.fused.weights import pack

        return pack(student).to_bytes()

    def executed_graph(self, bundle: Bundle, atoms: int, slots: int) -> "onnx.ModelProto":
        """See `Backend.executed_graph`: filters are computed once a pair.

        Args:
            bundle: one that this backend built.
            atoms: of the matrix.
            slots: of the matrix.
        """
        return Form(("paired",)).lowered(super().executed_graph(bundle, atoms, slots))

    def contents(self, bundle: Bundle) -> Mapping[str, str]:
        """See `Backend.contents`: what its kernels are for.

        Args:
            bundle: one that this backend built.
        """
        if self._on_cpu(bundle):
            widths = ", ".join(str(width) for width in LIBRARIES if LIBRARY.format(width) in bundle.manifest.files)
            return {"kernels": f"for vectors of {widths} numbers; the widest that a processor has is taken"}
        if bundle.manifest.engine_version != self.version():  # how an older kernel was cut, only that version knows
            return {}
        packed, found = Packed.from_bytes(bundle.file(WEIGHTS)), {}
        for kind in bundle.manifest.bound_to:
            plans = plans_for(packed, kind.removeprefix(CUDA))
            sizes = "; ".join(f"{plan.rows} atoms and {plan.pairs} pairs" for plan in plans)
            found[f"kernels for {kind}"] = f"groups of up to {sizes}"
        return found

    def batch_slots(self, device: str) -> int:
        """See `Backend.batch_slots`."""
        return CPU_BATCH_SLOTS if device == "cpu" else super().batch_slots(device)

    def takes(self, device: str, atoms: "Atoms") -> bool:
        """See `Backend.takes`: on a GPU, molecules of up to `MOST_ATOMS` atoms.

        Args:
            device: that a session runs on.
            atoms: the structure.
        """
        return device == "cpu" or (len(atoms) <= MOST_ATOMS and not atoms.pbc.any())

    def can_run(self, bundle: Bundle) -> bool:
        """See `Backend.can_run`."""
        return self._on_cpu(bundle) or bool(_gpus())

    def bound_to(self, options: BuildOptions) -> str:
        """See `Backend.bound_to`."""
        return ",".join(self._targets(options))

    def check(self, options: BuildOptions) -> None:
        """See `Backend.check`: compilers, and whether they know the GPUs."""
        for target in self._targets(options):
            if target.startswith(CUDA):
                compile_kernel(target.removeprefix(CUDA), "")
            else:
                compiler()

    def _targets(self, options: BuildOptions) -> tuple[str, ...]:
        """Kinds of device that an engine is built for.

        Raises:
            EngineUnavailableError: it is asked for the GPU that is here, and there is none.
        """
        here = self.devices()
        kind = (here[0] if options.device == "auto" else options.device).partition(":")[0]
        if kind == "cpu":
            return (kind_of_machine(),)
        if kind != "cuda":
            raise EngineUnavailableError(f"The engine fused is built for cpu or cuda, and not for {options.device!r}.")
        capabilities = options.compute_capabilities
        if not capabilities and here[0] == "cpu":
            raise EngineUnavailableError(
                "There is no NVIDIA GPU here that the engine fused could be built for. Name its kind with "
                "--compute-capability, such as 90, or give --device cpu."
            )
        if not capabilities:
            index = options.device.partition(":")[2] or "0"
            capabilities = (compute_capability(int(index) if index.isdigit() else 0),)
        return tuple(CUDA + capability for capability in capabilities)

    @staticmethod
    def _on_cpu(bundle: Bundle) -> bool:
        return not any(kind.startswith(CUDA) for kind in bundle.manifest.bound_to)

    def version(self) -> str:
        """See `Backend.version`: of the kernel."""
        return VERSION

    def devices(self) -> tuple[str, ...]:
        """See `Backend.devices`."""
        return (*_gpus(), "cpu")

    def build(self, model: bytes, options: BuildOptions, tell: Tell = silent) -> BuiltEngine:
        """See `Backend.build`."""
        if not options.of_student:
            raise EngineError("The engine fused is built of a student's weights, and a graph alone does not have them.")
        packed, targets = Packed.from_bytes(options.of_student), self._targets(options)
        if targets[0].startswith(CUDA):
            made = compiled_kernels(packed, [target.removeprefix(CUDA) for target in targets], tell)
        else:
            tell(f"fused: compiling for {targets[0]}")
            made = compiled_libraries(packed)
        return BuiltEngine({WEIGHTS: options.of_student, **made}, targets)

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> "FusedHostSession | GpuSession":
        """See `Backend.open`."""
        manifest, on_cpu = bundle.manifest, self._on_cpu(bundle)
        here = [name for name in self.devices() if (name == "cpu") is on_cpu]
        chosen = here[0] if here and device in ("auto", "cpu" if on_cpu else "cuda") else device
        if chosen not in here:
            raise EngineUnavailableError(
                f"{bundle} was compiled for {', '.join(manifest.bound_to)} and cannot run on {device!r}; there is "
                f"{', '.join(self.devices())} here. Export it for that, or use another bundle."
            )
        if manifest.engine_version != self.version():
            raise BundleError(
                f"{bundle} has version {manifest.engine_version} of the kernel, and this is version {self.version()}. "
                "Export it again here."
            )
        kind = kind_of_machine() if on_cpu else CUDA + compute_capability(int(chosen.partition(":")[2]))
        if kind not in manifest.bound_to:
            raise BundleError(
                f"{bundle} was compiled for {', '.join(manifest.bound_to)}, and this machine is {kind}. Export it "
                "again here."
            )
        packed = Packed.from_bytes(bundle.file(WEIGHTS))
        if dict(manifest.axes) != packed.axes:
            raise BundleError(f"{bundle} holds weights of another graph than its own. Export it again.")
        info = EngineInfo(
            backend=self.name,
            version=self.version(),
            device=chosen,
            precision=manifest.precision,
            bundle_sha256=bundle.sha256,
        )
        if not on_cpu:
            return session_on_gpu(bundle, packed, int(chosen.partition(":")[2]), info)
        names = {width: LIBRARY.format(width) for width in LIBRARIES}
        contents = {width: bundle.file(name) for width, name in names.items() if name in manifest.files}
        if not contents:
            raise BundleError(f"{bundle} holds no library of the engine fused. Export it again.")
        return FusedHostSession(load(contents), packed, threads, info, manifest.outputs)


BACKEND = FusedBackend()


def _gpus() -> tuple[str, ...]:
    """GPUs that it can run on here; none where cuda-bindings is not installed."""
    try:
        return gpus()
    except EngineUnavailableError:
        return ()
