"""The protocol of backends: each builds engines of the graph, and opens sessions that run them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from painn_deploy.engines.profiles import DEFAULT_PROFILE, Profile
from painn_deploy.engines.session import Closing, EngineInfo, FollowingSession, ResidentGraph, Session
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.manifest import MODEL
from painn_deploy.export.progress import Tell

if TYPE_CHECKING:
    import onnx
    from ase import Atoms

    from painn_deploy.export.model.student import Student

__all__ = [
    "CPU_BATCH_SLOTS",
    "GPU_BATCH_SLOTS",
    "Backend",
    "BuildOptions",
    "BuiltEngine",
    "Closing",  # like the other names of sessions, which lay here once
    "EngineInfo",
    "FollowingSession",
    "ResidentGraph",
    "Session",
]

CPU_BATCH_SLOTS = 2_048
"""Atoms x slots of one matrix on a CPU. One [atoms, slots, 128] tensor then takes 1 MB, so that what one node of the
graph writes is in the cache when the next one reads it; a matrix eight times as large took a fifth longer a structure
on two cores, and eight times the memory."""

GPU_BATCH_SLOTS = 131_072
"""The same on a GPU, which wants far more at once. An H100 spends 2.7 us on an ethanol of 18,000, 1.8 of 74,000, and
1.7 of 295,000, which take four times the memory of 74,000 (docs/performance.md)."""


@dataclass(frozen=True)
class BuildOptions:
    """Sizes and devices that an engine is built for. A backend ignores those that its engines do not depend on.

    Attributes:
        compute_capabilities: of GPUs, such as `86`; empty for the backend's own choice.
        profile: ranges of atoms and slots.
        device: `cpu`, `cuda` or `cuda:1`, where an engine is bound to one kind; `auto` for the first that is here.
        tf32: let FP32 products round their operands to ten bits, for speed; only where a user asks for it.
        form: of the graph that `inductor` compiles, see `painn_deploy.engines.forms`; empty for those of the device.
        precision: of the graph.
        of_student: see `Backend.of_student`.
    """

    compute_capabilities: tuple[str, ...] = ()
    profile: Profile = DEFAULT_PROFILE
    device: str = "auto"
    tf32: bool = False
    form: str = ""
    precision: str = "fp32"
    of_student: bytes = b""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine as its backend built it: what a bundle holds beside model.onnx.

    Attributes:
        files: contents by name.
        bound_to: kinds of device that the engine runs on, as its backend names them; empty where it runs anywhere.
        profiles: that the engine serves; empty where it serves any size.
        warnings: of the builder, in its words.
        tf32: whether its FP32 products round their operands to ten bits, as was asked for.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    bound_to: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    warnings: tuple[str, ...] = ()
    tf32: bool = False


@runtime_checkable
class Backend(Protocol):
    """One way to run a graph; a module each, found by name in `painn_deploy.engines`.

    A backend inherits this class. What has a body here holds for most engines, and is overridden by the others.

    Attributes:
        name: as users and manifests write it.
        packages: distributions that the engine needs, and the extra of painn-deploy that installs each.
        precisions: that it builds engines in.
        lacking: why it has no engine in some other precision, as a sentence, by the precision.
        rest_precision: of what is not INT8 in an INT8 graph, `fp16` where that is fast, else `fp32`.
    """

    name: str
    packages: Mapping[str, str]
    precisions: tuple[str, ...]
    lacking: Mapping[str, str] = MappingProxyType({})
    rest_precision: str = "fp32"

    def lacks(self, precision: str, device: str) -> str:
        """Why an engine in one of `precisions` cannot be built here, as a sentence; empty where it can.

        Args:
            precision: one of `precisions`.
            device: that the engine is built for, as in `BuildOptions`.

        Raises:
            EngineUnavailableError: the library is not installed, and the answer depends on what is here.
        """
        return ""

    def check(self, options: BuildOptions) -> None:
        """Refuse now what `build` would refuse after minutes, whatever the graph is.

        Args:
            options: what an engine is to be built for.

        Raises:
            EngineUnavailableError: something that building needs is not here, or there is no such device.
            EngineError: the options make no sense.
        """
        self.bound_to(options)

    def lower(self, model: "onnx.ModelProto") -> "onnx.ModelProto":
        """The graph as the engine likes it best: the same values up to the order of sums, and the same contract.

        It is lowered before its tensors are typed as FP16 or INT8, and a bundle holds the result.

        Args:
            model: in FP32; it is not changed.
        """
        return model

    def of_student(self, student: "Student") -> bytes:
        """What an engine is built of beside its graph, which does not say what its constants are; nothing for most.

        Args:
            student: whose graph it is, in float64.

        Raises:
            EngineUnavailableError: there is no such engine of this student; it says why.
        """
        return b""

    def executed_graph(self, bundle: Bundle, atoms: int, slots: int) -> "onnx.ModelProto":
        """The graph that a bundle's engine evaluates, which may take `PAIR_INPUTS` as well.

        Args:
            bundle: one that this backend built.
            atoms: of the matrix; an engine may hold several graphs.
            slots: of the matrix.
        """
        import onnx

        return onnx.load_from_string(bundle.file(MODEL))

    def contents(self, bundle: Bundle) -> Mapping[str, str]:
        """Facts about the files of a bundle's engine, in words, by their heading; none where it has no files.

        Args:
            bundle: one that this backend built.
        """
        return {}

    def batch_slots(self, device: str) -> int:
        """Atoms x slots of one matrix of a batch, where nothing was measured.

        Args:
            device: that a session runs on, such as `cpu` or `cuda:0`.
        """
        return CPU_BATCH_SLOTS if device == "cpu" else GPU_BATCH_SLOTS

    def takes(self, device: str, atoms: "Atoms") -> bool:
        """Whether its engines evaluate a structure of such a size and kind, whatever the elements.

        Args:
            device: that a session runs on, such as `cpu` or `cuda:0`.
            atoms: the structure.
        """
        return True

    def can_run(self, bundle: Bundle) -> bool:
        """Whether there is a device here that a bundle's engine runs on.

        Args:
            bundle: one that this backend built.

        Raises:
            EngineUnavailableError: the library is not installed.
        """
        return bool(self.devices())

    def honours_tf32(self, device: str) -> bool:
        """Whether the FP32 products of an engine can round their operands to ten bits, on a GPU, where a user asks.

        Args:
            device: that the engine is built for, as in `BuildOptions`.

        Raises:
            EngineUnavailableError: the library is not installed, and the answer depends on what is here.
        """
        return False

    def bound_to(self, options: BuildOptions) -> str:
        """The part of this machine that an engine depends on, such as the GPU's kind; empty for none.

        Args:
            options: what the engine is built for.

        Raises:
            EngineUnavailableError: the library is not installed.
        """

    def version(self) -> str:
        """Version of the library.

        Raises:
            EngineUnavailableError: it is not installed; the message names the extra to install.
        """

    def devices(self) -> tuple[str, ...]:
        """Devices that sessions can run on here, the preferred one first; none where it can build alone.

        Raises:
            EngineUnavailableError: the library is not installed.
        """

    def build(self, model: bytes, options: BuildOptions, tell: Tell = ...) -> BuiltEngine:
        """Build an engine.

        Args:
            model: contents of model.onnx.
            options: what it is built for.
            tell: called with a line about each step.

        Raises:
            EngineError: the graph cannot be built.
            EngineUnavailableError: something that building needs is not here.
        """

    def open(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> Session:
        """Load a bundle's engine.

        Args:
            bundle: one that this backend built.
            device: `auto` for the first of `devices`, or one by name.
            threads: of the CPU; None for as many as there are cores.

        Raises:
            EngineUnavailableError: the library or the device is not here.
            EngineError: the engine cannot be loaded.
        """
