"""The protocols of sessions: an opened engine, and what some of them can do beside `run`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from painn_deploy.export.fields import GraphInputs, GraphOutputs

__all__ = [
    "Admit",
    "Boxes",
    "Closing",
    "CudaGraphs",
    "DeviceTime",
    "EngineInfo",
    "Finder",
    "FollowingSession",
    "MoleculesOutputs",
    "MoleculesSession",
    "Nearest",
    "OverlappingSession",
    "ResidentGraph",
    "SearchingSession",
    "Session",
]


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
        weights: as in the graph contract.
    """

    atomic_numbers: Int32[np.ndarray, " atoms"]
    neighbours: Int32[np.ndarray, "atoms slots"]
    reverse: Int32[np.ndarray, "atoms slots"]
    shifts: Float64[np.ndarray, "atoms slots 3"]
    stored: UInt8[np.ndarray, "atoms slots"]
    cutoff: float
    weights: Float32[np.ndarray, " atoms"]


@dataclass(frozen=True)
class Boxes:
    """One structure whose atoms are sorted into boxes, for a device that finds its neighbours.

    Boxes are numbered with the third direction running fastest. A neighbour within `reach` lies in a box that is at
    most `shape[3:6]` boxes away, in the structure itself or, where a direction repeats, in an image of it.

    Attributes:
        atomic_numbers: Z.
        positions: Å.
        weights: as in the graph contract.
        whole: cells that each atom was moved by before it was put into its box; whole numbers.
        cell: completed, Å.
        box: number of the box that each atom is in.
        order: atoms by their boxes, and those of one box by their indices.
        starts: where each box starts in `order`, and the number of atoms at the end.
        shape: numbers of boxes along three directions, how many boxes away a neighbour may be, and 1 for a direction
            that repeats.
        cutoff: Å, within which a neighbour is an edge.
        reach: Å, within which it is stored.
    """

    atomic_numbers: Int32[np.ndarray, " atoms"]
    positions: Float64[np.ndarray, "atoms 3"]
    weights: Float32[np.ndarray, " atoms"]
    whole: Float64[np.ndarray, "atoms 3"]
    cell: Float64[np.ndarray, "3 3"]
    box: Int32[np.ndarray, " atoms"]
    order: Int32[np.ndarray, " atoms"]
    starts: Int32[np.ndarray, " boxes_and_one"]
    shape: Int32[np.ndarray, "9"]
    cutoff: float
    reach: float


@runtime_checkable
class FollowingSession(Session, Protocol):
    """A session whose device keeps a structure, so that a step of dynamics uploads positions alone."""

    @property
    def following(self) -> ResidentGraph | Boxes | None:
        """The structure that the device holds; None after anything else was run."""

    def follow(self, resident: Any) -> None:
        """Upload what stays while the neighbours stand: a `ResidentGraph`, or what was given to `search`.

        Raises:
            ShapeError: it lies outside the profile.
        """

    def step(self, positions: Float64[np.ndarray, "atoms 3"]) -> GraphOutputs:
        """Energies, forces and virials at new positions, Å.

        Raises:
            EngineError: nothing is followed, or the engine failed.
            ShapeError: positions of another number of atoms.
        """


class Nearest(NamedTuple):
    """The shortest of some distances.

    Attributes:
        distance: Å; infinite where there is none.
        one: index of the one atom; -1 where there is none.
        other: index of the other.
    """

    distance: float
    one: int
    other: int


Admit = Callable[[int, int], None]
"""Called with the atoms and slots of a matrix before it is made; raises `ShapeError` where one is too large."""

Finder = Callable[[Boxes, Admit], Nearest]
"""`SearchingSession.search`."""


@runtime_checkable
class SearchingSession(FollowingSession, Protocol):
    """A session whose device also finds the neighbours of a large structure, and keeps it."""

    def search(self, boxes: Boxes, admit: Admit) -> Nearest:
        """Find the neighbours of a structure, which is followed from then on.

        Each atom's neighbours are in the order in which its boxes are looked through, which depends on nothing but the
        structure.

        Args:
            boxes: the structure.
            admit: asked whether there may be a matrix of such a size.

        Returns:
            The nearest of all neighbours.

        Raises:
            ShapeError: the structure lies outside the profile, or `boxes` does not fit together; or as `admit` raises.
            EngineUnavailableError: what compiles the kernels is not here.
            EngineError: the device failed, or the session is closed.
        """


class MoleculesOutputs(NamedTuple):
    """What a session gives for molecules whose pairs its device formed.

    Attributes:
        outputs: of the graph, rows in the order given.
        nearest: distance of each atom to the nearest other one of its molecule, Å; infinite for an atom alone. The
            device sees every pair and the host none, so that who refuses two atoms on one spot looks here.
    """

    outputs: GraphOutputs
    nearest: Float64[np.ndarray, " atoms"]


@runtime_checkable
class MoleculesSession(Session, Protocol):
    """A session whose device forms every pair of small molecules, so that a batch of them uploads atoms alone."""

    def run_molecules(
        self,
        numbers: Int32[np.ndarray, " atoms"],
        positions: Float64[np.ndarray, "atoms 3"],
        starts: Int64[np.ndarray, " molecules"],
        cutoff: float,
    ) -> MoleculesOutputs:
        """Energies, forces and virials of molecules side by side, none of which repeats in any direction.

        Every atom has a slot for each other one of its molecule, whatever the cutoff: the matrix is as wide as the
        largest molecule is long, less one. What lies beyond the cutoff is masked. So a molecule that is much longer
        than the cutoff is better searched for neighbours and given to `run`.

        Args:
            numbers: Z.
            positions: Å.
            starts: first row of each molecule, rising from 0; each ends where the next one starts.
            cutoff: Å.

        Raises:
            ShapeError: the arrays do not fit together, or the matrix lies outside every profile.
            EngineUnavailableError: what compiles the kernel that forms the pairs is not here.
            EngineError: the engine failed, or the session is closed.
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
