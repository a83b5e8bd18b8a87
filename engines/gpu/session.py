"""A session on an NVIDIA GPU, the same for every engine."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from painn_deploy.engines.contract import check_boxes, check_indices, check_inputs, check_molecules
from painn_deploy.engines.gpu.arena import Arena
from painn_deploy.engines.gpu.cuda import on_device, runtime
from painn_deploy.engines.gpu.executor import Executor
from painn_deploy.engines.gpu.lane import Lane
from painn_deploy.engines.owner import SoleUse
from painn_deploy.engines.session import (
    Admit,
    Boxes,
    Closing,
    DeviceTime,
    EngineInfo,
    MoleculesOutputs,
    Nearest,
    ResidentGraph,
)
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphInputs, GraphOutputs

__all__ = ["GpuSession"]


class GpuSession(Closing):
    """An engine on one GPU. It belongs to one thread.

    Inputs go up in one copy from pinned memory, results come down in one, and a call waits once. With `cuda_graphs`, a
    size that came twice is replayed as a CUDA graph, copies included: a small molecule waits for launches more than for
    arithmetic. A session that is dropped without `close` gives its memory back all the same.

    Args:
        make: makes an executor of the engine for a lane, given the lane's stream and memory.
        index: of the GPU.
        info: what the session says of itself.
        species: atomic numbers that the engine has rows for; a larger one would be read from beyond its table.
        lanes: how many evaluations may be under way at once.
        cuda_graphs: whether a size that comes again is replayed as a CUDA graph.
        release: gives back what is shared by the lanes, after them.

    Attributes:
        cuda_graphs: the same; may be changed between calls.
        slot_step: a matrix whose number of slots is a multiple of this is uploaded as it is.

    Raises:
        EngineUnavailableError: cuda-bindings is not installed.
        EngineError: the engine cannot be loaded here.
    """

    def __init__(
        self,
        make: Callable[[int, Arena], Executor],
        index: int,
        info: EngineInfo,
        *,
        species: Iterable[int] = (),
        lanes: int = 1,
        cuda_graphs: bool = True,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._cuda, self._index, self._info, self._make = runtime(), index, info, make
        self.cuda_graphs = cuda_graphs
        self._most_number = max(species, default=None)
        self._most_lanes = lanes
        self._sole = SoleUse(f"This session of {info['backend']}")
        self._lanes: list[Lane] = []
        self._held = (self._cuda, index, self._lanes, release)
        self._dropped = weakref.finalize(self, _dropped, *self._held)
        with self._on_lane(0) as lane:
            self.slot_step = lane.slot_step

    @property
    def info(self) -> EngineInfo:
        """See `Session.info`."""
        return self._info.copy()

    @property
    def graphs(self) -> bool:
        """The former name of `cuda_graphs`."""
        return self.cuda_graphs

    @graphs.setter
    def graphs(self, wanted: bool) -> None:
        self.cuda_graphs = wanted

    @property
    def refused_graphs(self) -> dict[tuple[Any, ...], str]:
        """Why a size could not be recorded, by its kind, atoms and slots; such a size is launched kernel by kernel."""
        return {key: reason for lane in self._lanes for key, reason in lane.recordings.refused.items()}

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """See `Session.run`."""
        self._check(inputs)
        with self._on_lane(0) as lane:
            lane.submit(inputs)
            return lane.collect()

    def run_many(self, batches: Iterable[GraphInputs]) -> Iterator[GraphOutputs]:
        """One result for each batch, in order; where there are two lanes, one is uploaded while another is computed.

        Raises:
            ShapeError: as for `run`.
            EngineError: as for `run`.
        """
        waiting: int | None = None
        with self._sole:  # what was submitted is not collected yet
            for number, inputs in enumerate(batches):
                self._check(inputs)
                chosen = number % self._most_lanes
                if waiting == chosen:
                    yield self._collected(waiting)
                    waiting = None
                with self._on_lane(chosen) as lane:
                    lane.submit(inputs)
                if waiting is not None:
                    yield self._collected(waiting)
                waiting = chosen
            if waiting is not None:
                yield self._collected(waiting)

    def _collected(self, number: int) -> GraphOutputs:
        with self._on_lane(number) as lane:
            return lane.collect()

    @property
    def following(self) -> ResidentGraph | Boxes | None:
        """See `FollowingSession.following`."""
        return self._lanes[0].resident if self._lanes else None

    def follow(self, resident: ResidentGraph | Boxes) -> None:
        """Upload what stays while the neighbours stand; `step` then needs positions alone.

        Args:
            resident: the structure; one that was given to `search` is searched again, with the same neighbours.

        Raises:
            ShapeError: the engine does not serve this size.
            EngineUnavailableError: what compiles the kernel that forms displacements is not here.
        """
        if isinstance(resident, Boxes):
            self.search(resident, lambda atoms, slots: None)  # noqa: ARG005  it was admitted before
            return
        check_indices(resident.atomic_numbers, resident.neighbours, resident.reverse, self._most_number)
        with self._on_lane(0) as lane:
            lane.follow(resident)

    def search(self, boxes: Boxes, admit: Admit) -> Nearest:
        """See `SearchingSession.search`."""
        check_boxes(boxes, self._most_number)
        with self._on_lane(0) as lane:
            return lane.search(boxes, admit)

    def step(self, positions: Float64[np.ndarray, "atoms 3"]) -> GraphOutputs:
        """Energies, forces and virials at new positions of the structure that was given to `follow`.

        Args:
            positions: Å, contiguous.

        Raises:
            EngineError: there is none, or the engine failed.
            ShapeError: positions of another number of atoms.
        """
        with self._on_lane(0) as lane:
            lane.submit_positions(positions)
            return lane.collect()

    def run_molecules(
        self,
        numbers: Int32[np.ndarray, " atoms"],
        positions: Float64[np.ndarray, "atoms 3"],
        starts: Int64[np.ndarray, " molecules"],
        cutoff: float,
    ) -> MoleculesOutputs:
        """See `MoleculesSession.run_molecules`."""
        check_molecules(numbers, positions, starts, self._most_number)
        with self._on_lane(0) as lane:
            lane.submit_molecules(numbers, positions, starts, cutoff)
            return lane.collect_molecules()

    def device_time(self, inputs: GraphInputs, calls: int = 100) -> DeviceTime:
        """Milliseconds of one evaluation on the device, by CUDA events around many of them sent at once.

        Args:
            inputs: of one evaluation, repeated.
            calls: how many.

        Raises:
            ShapeError: as for `run`.
            EngineError: as for `run`.
        """
        self._check(inputs)
        with self._on_lane(0) as lane:
            return lane.device_time(inputs, calls)

    def _check(self, inputs: GraphInputs) -> None:
        check_inputs(inputs)
        check_indices(inputs.atomic_numbers, inputs.neighbours, inputs.reverse, self._most_number)

    @contextmanager
    def _on_lane(self, number: int) -> Iterator[Lane]:
        """A lane, with its GPU the current one of this thread, which is put back afterwards."""
        if not self._dropped.alive:
            raise EngineError("This session is closed; open another one.")
        with self._sole, on_device(self._cuda, self._index):
            while len(self._lanes) <= number:
                self._lanes.append(Lane(self._cuda, self._index, self._make))
            lane = self._lanes[number]
            lane.recordings.wanted = self.cuda_graphs
            yield lane

    def close(self) -> None:
        """See `Session.close`."""
        if self._dropped.detach() is not None:
            _give_back(*self._held)


def _give_back(cuda: Any, index: int, lanes: list[Lane], release: Callable[[], None]) -> None:
    """Close lanes before what they share: graphs, buffers and contexts before the engine."""
    with on_device(cuda, index):
        while lanes:
            lanes.pop().close()
        release()


def _dropped(cuda: Any, index: int, lanes: list[Lane], release: Callable[[], None]) -> None:
    """Close what nobody closed; when the process ends, the driver may be gone before us."""
    with suppress(Exception):
        _give_back(cuda, index, lanes, release)
