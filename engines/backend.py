"""The protocols of engines: a `Backend` builds engines of the graph and opens sessions, a `Session` runs one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from painn_deploy.engines.profiles import DEFAULT_PROFILE, Profile
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.manifest import MODEL, Bundle

if TYPE_CHECKING:
    import onnx

__all__ = [
    "CPU_BATCH_SLOTS",
    "GPU_BATCH_SLOTS",
    "Backend",
    "BuildOptions",
    "BuiltEngine",
    "Closing",
    "CudaGraphs",
    "DeviceTime",
    "EngineInfo",
    "FollowingSession",
    "OverlappingSession",
    "ResidentGraph",
    "Session",
]

CPU_BATCH_SLOTS = 2_048
"""Atoms x slots of one matrix on a CPU. One [atoms, slots, 128] tensor then takes 1 MB, so that what one node of the
graph writes is in the cache when the next one reads it; a matrix eight times as large took a fifth longer a structure
on two cores, and eight times the memory."""

GPU_BATCH_SLOTS = 131_072
"""The same on a GPU, which wants far more at once; some 2 GB at 128 features."""


class EngineInfo(TypedDict):
    """The engine that runs, as its session reports it.

    Attributes:
        backend: name, as in the manifest.
        version: of the backend here.
        device: what the session runs on, such as `cpu` or `cuda:0`.
        precision: of the engine, as in the manifest.
        bundle_sha256: of the bundle's manifest.
    """

    backend: str
    version: str
    device: str
    precision: str
    bundle_sha256: str


T = TypeVar("T")


class Closing:
    """Mixin: a `with` block calls `close()` at its end."""

    def close(self) -> None:
        """Give back memory and threads; may be called twice."""
        raise TypeError(f"{type(self).__name__} does not say how it is closed.")

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@runtime_checkable
class Session(Protocol):
    """A loaded engine. It belongs to one thread at a time; open one for each."""

    @property
    def info(self) -> EngineInfo:
        """Backend, version, device, precision and bundle that run."""

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """Energies, forces and virials of one padded neighbour matrix.

        Raises:
            ShapeError: arrays that do not keep the graph contract, or lie outside every profile.
            EngineError: the engine failed, or the session is closed.
        """

    def close(self) -> None:
        """Give back memory and threads; may be called twice."""


@dataclass(frozen=True)
class ResidentGraph:
    """One structure without its positions: these arrays stay on the device while its neighbours stand.

    Attributes:
        atomic_numbers: Z.
        neighbours: as in the graph contract.
        reverse: as in the graph contract.
        shifts: S·cell of each slot, Å.
        stored: 1 for a slot that holds a pair, within the cutoff or the skin.
        cutoff: Å.
    """

    atomic_numbers: Int32[np.ndarray, " atoms"]
    neighbours: Int32[np.ndarray, "atoms slots"]
    reverse: Int32[np.ndarray, "atoms slots"]
    shifts: Float64[np.ndarray, "atoms slots 3"]
    stored: UInt8[np.ndarray, "atoms slots"]
    cutoff: float


@runtime_checkable
class FollowingSession(Session, Protocol):
    """A session whose device keeps a structure, so that a step of dynamics uploads positions alone."""

    @property
    def following(self) -> ResidentGraph | None:
        """The structure that the device holds; None after anything else was run."""

    def follow(self, resident: ResidentGraph) -> None:
        """Upload what stays while the neighbours stand.

        Raises:
            ShapeError: it lies outside the profile.
        """

    def step(self, positions: Float64[np.ndarray, "atoms 3"]) -> GraphOutputs:
        """Energies, forces and virials at new positions, Å.

        Raises:
            EngineError: nothing is followed, or the engine failed.
            ShapeError: positions of another number of atoms.
        """


@runtime_checkable
class OverlappingSession(Session, Protocol):
    """A session that uploads one batch while it computes another."""

    def run_many(self, batches: Iterable[GraphInputs]) -> Iterator[GraphOutputs]:
        """One result for each batch, in order.

        Raises:
            ShapeError: as for `run`.
            EngineError: as for `run`.
        """


class DeviceTime(NamedTuple):
    """Milliseconds of one evaluation on a device.

    Attributes:
        launched: the engine alone, launched kernel by kernel, on inputs that are there.
        replayed: a CUDA graph of it, the copies of inputs and results included; None where there is none.
    """

    launched: float
    replayed: float | None


@runtime_checkable
class CudaGraphs(Session, Protocol):
    """A session that can replay a size which comes again as a CUDA graph.

    Attributes:
        cuda_graphs: whether it does; may be changed between calls.
    """

    cuda_graphs: bool

    @property
    def refused_graphs(self) -> Mapping[tuple[Any, ...], str]:
        """Why a size could not be recorded, by its kind, atoms and slots; such a size is launched kernel by kernel."""

    def device_time(self, inputs: GraphInputs, calls: int = ...) -> DeviceTime:
        """Time of one evaluation on the device, by CUDA events around many of them sent at once.

        Args:
            inputs: of one evaluation, repeated.
            calls: how many.

        Raises:
            ShapeError: as for `run`.
            EngineError: as for `run`.
        """


@dataclass(frozen=True)
class BuildOptions:
    """Sizes and devices that an engine is built for. A backend ignores those that its engines do not depend on.

    Attributes:
        compute_capabilities: of GPUs, such as `86`; empty for the backend's own choice.
        profile: ranges of atoms and slots.
        device: `cpu`, `cuda` or `cuda:1`, where an engine is bound to one kind; `auto` for the first that is here.
        tf32: let FP32 products round their operands to ten bits, for speed; only where a user asks for it.
        form: of the graph that `inductor` compiles, see `painn_deploy.engines.forms`; empty for those of the device.
    """

    compute_capabilities: tuple[str, ...] = ()
    profile: Profile = DEFAULT_PROFILE
    device: str = "auto"
    tf32: bool = False
    form: str = ""


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
        extra: of painn-deploy, that installs the library.
        packages: distributions that take part, and the extra of painn-deploy that installs each.
        precisions: that it builds engines in.
        rest_precision: of what is not INT8 in an INT8 graph, `fp16` where that is fast, else `fp32`.
    """

    name: str
    extra: str
    packages: Mapping[str, str]
    precisions: tuple[str, ...]
    rest_precision: str = "fp32"

    def lower(self, model: "onnx.ModelProto") -> "onnx.ModelProto":
        """The graph as the engine likes it best: the same values up to the order of sums, and the same contract.

        It is lowered before its tensors are typed as FP16 or INT8, and a bundle holds the result.

        Args:
            model: in FP32; it is not changed.
        """
        return model

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

    def honours_tf32(self, device: str) -> bool:
        """Whether the FP32 products of an engine can round their operands to ten bits, on a GPU, where a user asks.

        Args:
            device: that the engine is built for, as in `BuildOptions`.

        Raises:
            EngineUnavailableError: the library is not installed, and the answer depends on what is here.
        """
        return False

    def bound_to(self, options: BuildOptions) -> str:
        """The part of this machine that an engine depends on, such as the GPU's kind; empty for none. The cache uses it.

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

    def build(self, model: bytes, options: BuildOptions, tell: Callable[[str], None] = ...) -> BuiltEngine:
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
