"""A session of the kernel on a CPU: threads take groups one after the other, or share the phases of a large one.

Neither changes a bit of a result, since each sum has one owner and one order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from painn_deploy.engines.contract import check_indices, check_mask
from painn_deploy.engines.cores import CORES, cores_here
from painn_deploy.engines.fused.groups import groups_of, pieces_of
from painn_deploy.engines.fused.host import Library, Sizes
from painn_deploy.engines.fused.packed import Packed, round_up
from painn_deploy.engines.fused.team import Job, Team
from painn_deploy.engines.host_session import HostSession
from painn_deploy.engines.known import Known
from painn_deploy.engines.session import EngineInfo
from painn_deploy.export.fields import OUTPUTS, Field, GraphInputs

__all__ = ["FusedHostSession"]

GROUP = 27
"""Rows that small pieces are put together to: three tiles. More gained nothing, and fewer leave tiles half empty."""

SLOTS_A_ROW, SLOTS_A_THREAD = 50, 1150
"""What takes as long as a row's products takes, in slots that hold a pair; and how much of that each thread has at
least: four tenths of a millisecond's work. To wake a thread for less gains little, and where other programs have the
cores it costs much."""

ROWS_A_THREAD = 18
"""Rows that each thread has at least of a group that several share: two tiles."""

FEW = 4
"""Groups for each thread below which one more or less than the others' is seen in how long a call takes."""

LINE = 64
"""Bytes of a cache line, at which memory begins."""


class FusedHostSession(HostSession):
    """A loaded engine on a CPU.

    Args:
        library: the kernel.
        packed: the student's weights.
        threads: of its calls; None for as many as there are cores, and fewer while others want them.
        info: what the session says of itself.
        outputs: of the graph.
    """

    def __init__(
        self,
        library: Library,
        packed: Packed,
        threads: int | None,
        info: EngineInfo,
        outputs: Sequence[Field] = OUTPUTS,
    ) -> None:
        super().__init__(info, outputs=outputs)
        self._library, self._packed, self._threads = library, packed, threads
        self._elements = int(packed.macros["ELEMENTS"])
        self._weights = _aligned(len(packed.weights))
        self._weights[:] = packed.weights
        self._rooms: list[_Room] = []
        self._team: Team | None = None
        self._known = Known[_Work]()

    def _evaluate(self, inputs: GraphInputs) -> list[np.ndarray]:
        if inputs.atomic_numbers.view(np.uint32).max() >= self._elements:
            check_indices(inputs.atomic_numbers, inputs.neighbours, inputs.reverse, self._elements - 1)
        most = cores_here() if self._threads is None else self._threads
        reverse, packed, near = inputs.reverse, self._packed, self._library.near
        work = self._known.made_of(reverse, most, lambda: _Work.of(reverse, packed, near, most))
        outputs = [np.empty(field.sized(atoms=len(inputs.mask)), np.float32) for field in self.outputs]
        threads = min(work.threads, CORES.threads(most) if self._threads is None else most)
        shared = min(threads, work.shared) > 1
        threads = min(threads, work.shared if shared else int(work.groups[0]))
        rooms = self._rooms_for(work.sizes, 1 if shared else threads)
        memory = np.array([address for room in rooms for address in room.addresses], np.int64)
        arrays = self._weights, inputs.atomic_numbers, inputs.displacements, inputs.reverse, inputs.mask, inputs.weights
        given = (array.ctypes.data for array in (*arrays, *outputs))
        lists = (array.ctypes.data for array in (work.groups, work.sizes_array, memory))
        self._team_of(threads).run(Job(threads, shared, inputs.mask.shape[1], *lists, *given))
        if self._threads is None:
            CORES.look(most)
        if np.isnan(outputs[0]).any():
            check_mask(inputs.mask, inputs.reverse)
        return outputs

    def _rooms_for(self, sizes: Sizes, threads: int) -> "list[_Room]":
        """Memory of each thread, with room for groups of some size."""
        rooms = self._rooms  # another thread may close the session, which has none then
        rooms = self._rooms = rooms + [_Room(self._packed) for _ in range(len(rooms), threads)]
        for room in rooms[:threads]:
            room.grow(sizes)
        return rooms[:threads]

    def _team_of(self, threads: int) -> Team:
        """The session's threads, at least as many."""
        team = self._team
        if team is None or team.threads < threads:
            smaller, team = team, Team(self._library, threads)
            self._team = team
            if smaller is not None:
                smaller.close()
        return team

    def close(self) -> None:
        """See `Session.close`."""
        super().close()
        team, self._team = self._team, None
        if team is not None:
            team.close()
        self._rooms = []
        self._known.forget()


class _Work(NamedTuple):
    """What a matrix is divided into.

    Attributes:
        groups: of the whole matrix, see `painn_deploy.engines.fused.groups.groups_of`.
        threads: how many have enough to do.
        shared: how many of them share each group; 1 where more of them have something to do with one each.
        sizes: of the largest group.
        sizes_array: the same, as the kernel reads them.
    """

    groups: Int32[np.ndarray, " groups_and_two"]
    threads: int
    shared: int
    sizes: Sizes
    sizes_array: Int32[np.ndarray, "5"]

    @classmethod
    def of(cls, reverse: Int32[np.ndarray, "atoms slots"], packed: Packed, near: int, threads: int) -> "_Work":
        pieces, atoms = pieces_of(reverse), len(reverse)
        amount = packed.members * (atoms * SLOTS_A_ROW + int(pieces.slots[-1]))
        most = max(1, min(threads, amount // SLOTS_A_THREAD))
        groups = groups_of(pieces, GROUP, reverse.size)
        if groups[0] < FEW * most and groups[0] % most:  # cut so that every thread has as many
            even = round_up(int(groups[0]), most)
            groups = groups_of(pieces, min(GROUP, -(-atoms // even) + pieces.most_rows - 1), reverse.size)
        count, bounds = int(groups[0]), groups[1:]
        stored = pieces.slots[np.searchsorted(pieces.bounds, bounds)]
        rows, pairs = int(np.diff(bounds).max()), int(np.diff(stored).max()) // 2
        together = min(rows // ROWS_A_THREAD, most)
        shared = together if together > min(count, most) else 1
        sizes = Sizes.of(packed, rows, pairs, near * shared, 1 if shared > 1 else min(count, most))
        return cls(groups, most, shared, sizes, np.array(sizes, np.int32))


class _Room:
    """Memory of one thread, which grows and is kept from call to call.

    Args:
        packed: the student's weights.
    """

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._near, self._far = _aligned(0), _aligned(0)

    @property
    def addresses(self) -> tuple[int, int]:
        """Of its two parts, see `Sizes.memory`."""
        return self._near.ctypes.data, self._far.ctypes.data

    def grow(self, sizes: Sizes) -> None:
        """Have room for groups of some size.

        Args:
            sizes: of them.
        """
        near, far = sizes.memory(self._packed)
        if len(self._near) < near:
            self._near = _aligned(near)
        if len(self._far) < far:
            self._far = _aligned(far)


def _aligned(numbers: int) -> Float32[np.ndarray, " numbers"]:
    """Zeros that begin at a cache line."""
    spare = LINE // 4
    room = np.zeros(numbers + spare, np.float32)
    start = -(room.ctypes.data // 4) % spare
    return room[start : start + numbers]
