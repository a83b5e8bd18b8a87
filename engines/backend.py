"""What a backend is: it builds engines from the graph, and opens sessions that run them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from painn_deploy.engines.profiles import DEFAULT_PROFILE, Profile
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.fields import GraphInputs, GraphOutputs

__all__ = [
    "Backend",
    "BuildOptions",
    "BuiltEngine",
    "Closing",
    "EngineInfo",
    "FollowingSession",
    "ResidentGraph",
    "Session",
]


class EngineInfo(TypedDict):
    """What runs, said by the session that runs it.

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
    """What has a `close` is closed at the end of a with block."""

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
    """What stays on the device while the neighbours stand.

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


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for; a backend that is bound to none of it ignores it.

    Attributes:
        compute_capabilities: of GPUs, such as `86`; empty for the backend's own choice.
        profile: ranges of atoms and slots.
        device: that an engine is built for which is bound to a kind of device, `auto` for the first that is here.
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
    """What a bundle holds for a backend beside model.onnx.

    Attributes:
        files: contents by name.
        compute_capability: what the engine is bound to, as its backend names it; empty where it is bound to nothing.
        profiles: that the engine serves; empty where it serves any size.
        warnings: of the builder, in its words.
        tf32: whether its FP32 products round their operands to ten bits, as was asked for.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    compute_capability: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()
    warnings: tuple[str, ...] = ()
    tf32: bool = False


@runtime_checkable
class Backend(Protocol):
    """One way to run a graph; a module each, found by name in `painn_deploy.engines`."""

    name: str
    extra: str
    precisions: tuple[str, ...]

    def bound_to(self, options: BuildOptions) -> str:
        """What an engine that is built here depends on beside graph, version and options, such as this machine's GPU.

        Raises:
            EngineUnavailableError: the library is not installed.
        """

    def version(self) -> str:
        """Of the library.

        Raises:
            EngineUnavailableError: it is not installed; the message names the extra to install.
        """

    def devices(self) -> tuple[str, ...]:
        """Devices that sessions can run on here, the preferred one first; none where it can build alone.

        Raises:
            EngineUnavailableError: the library is not installed.
        """

    def build(self, model: bytes, options: BuildOptions, tell: Callable[[str], None] = ...) -> BuiltEngine:
        """Build an engine from model.onnx, telling of its progress line by line.

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
