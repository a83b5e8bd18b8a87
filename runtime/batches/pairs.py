"""Pairs of neighbours of many structures, which are those of each alone, to the bit and in the same order.

Pairs of small molecules come from one pass over all of them, and so do those of small cells where loops are compiled;
a large structure is searched by itself, as `find_pairs` does.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from painn_deploy.export.errors import StructureError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.batches.frames import Faults, Frames, ranges
from painn_deploy.runtime.limits import too_many_neighbours
from painn_deploy.runtime.matrix import NeighbourMatrix
from painn_deploy.runtime.neighbours import FEW, Pairs, all_pairs, find_pairs
from painn_deploy.runtime.pairs import compiled
from painn_deploy.runtime.pairs.images import MOST_TRIED, FoundPairs, image_pairs, image_reach
from painn_deploy.runtime.structures import ONE_SPOT, bounds_of, periodic_cell

__all__ = ["PairLists", "refuse_one_spot"]


@dataclass(frozen=True)
class PairLists:
    """Pairs of structures side by side.

    Attributes:
        first: the one atom of each pair, counted from its structure's first.
        second: the other.
        vectors: from the one to the other, Å, float64.
        offsets: first pair of each structure, and the number of pairs at the end.
        slots: that each structure's busiest atom needs, at least 1.
    """

    first: Int64[np.ndarray, " pairs"]
    second: Int64[np.ndarray, " pairs"]
    vectors: Float64[np.ndarray, "pairs 3"]
    offsets: Int64[np.ndarray, " bounds"]
    slots: Int64[np.ndarray, " frames"]

    @classmethod
    def of(
        cls, frames: Frames, cutoff: float, faults: Faults, left: Bool[np.ndarray, " frames"] | None = None
    ) -> "PairLists":
        """Find the pairs of structures.

        Args:
            frames: structures.
            cutoff: Å.
            faults: those that have one are left out; written: why others have no answer.
            left: those that are left to a device.
        """
        sound = np.ones(len(frames), bool) if left is None else ~left
        sound[list(faults)] = False
        repeats = frames.pbc.any(1)
        molecules = sound & ~repeats & (frames.counts <= FEW)
        chosen = molecules.nonzero()[0]
        parts, one_by_one = [(chosen, _of_molecules(frames, chosen, cutoff, faults))], sound & ~molecules
        if compiled.loops() is not None and (sound & repeats).any():
            chosen, found = _of_small_cells(frames, (sound & repeats).nonzero()[0], cutoff, faults)
            parts.append((chosen, found))
            one_by_one[chosen] = False
        parts += [_of_one(frames, index, cutoff, faults) for index in one_by_one.nonzero()[0].tolist()]
        return cls._joined(frames, [part for part in parts if len(part[0])])

    @classmethod
    def _joined(cls, frames: Frames, parts: list[tuple[np.ndarray, FoundPairs]]) -> "PairLists":
        """Pairs of parts, each of structures of rising index, in the order of structures."""
        sizes, slots = np.zeros(len(frames), np.int64), np.ones(len(frames), np.int64)
        for chosen, found in parts:
            sizes[chosen] = found.ends
            sizes[chosen[1:]] -= found.ends[:-1]
            busiest = np.maximum.reduceat(found.counts, bounds_of(frames.counts[chosen])[:-1])
            slots[chosen] = np.maximum(busiest, 1)
        offsets = bounds_of(sizes)
        if len(parts) == 1:
            found = parts[0][1]
            return cls(found.first, found.second, found.vectors, offsets, slots)
        total = int(offsets[-1])
        first, second, vectors = np.empty(total, np.int64), np.empty(total, np.int64), np.empty((total, 3))
        for chosen, found in parts:
            places = ranges(offsets[:-1][chosen], sizes[chosen])
            first[places], second[places], vectors[places] = found.first, found.second, found.vectors
        return cls(first, second, vectors, offsets, slots)

    def slots_of_all(self, frames: Frames, left: Bool[np.ndarray, " frames"]) -> Int64[np.ndarray, " frames"]:
        """Slots of each structure, where some have one for every other atom.

        Args:
            frames: structures.
            left: which.
        """
        return np.where(left, np.maximum(frames.counts - 1, 1), self.slots)

    def packed(
        self, frames: Frames, chosen: Int64[np.ndarray, " chosen"], dtype: np.dtype, slot_step: int
    ) -> GraphInputs:
        """Some of the structures in one padded neighbour matrix, in their order.

        Args:
            frames: all of them.
            chosen: indices of those.
            dtype: of displacements and mask.
            slot_step: that the number of columns is a multiple of.
        """
        counts = frames.counts[chosen]
        numbers = frames.numbers[frames.rows_of(chosen)].astype(np.int32)
        slots = slot_step * -(-int(self.slots[chosen].max()) // slot_step)
        if (loops := compiled.loops()) is not None:
            rows = len(numbers)
            neighbours, reverse = np.empty((rows, slots), np.int32), np.empty((rows, slots), np.int32)
            displacements, mask = np.empty((rows, slots, 3), dtype), np.empty((rows, slots), dtype)
            flat = neighbours.reshape(-1), reverse.reshape(-1), displacements.reshape(-1, 3), mask.reshape(-1)
            taken = np.empty((2, int(counts.max())), np.int64)
            pairs = self.offsets, self.first, self.second, self.vectors
            loops.pack(chosen, frames.offsets, *pairs, slots, *flat, taken)
            return GraphInputs(numbers, displacements, neighbours, reverse, mask, np.ones(rows, dtype))
        sizes = (self.offsets[1:] - self.offsets[:-1])[chosen]
        places, before = ranges(self.offsets[:-1][chosen], sizes), np.repeat(bounds_of(counts)[:-1], sizes)
        joined = Pairs(self.first[places] + before, self.second[places] + before, None)
        return NeighbourMatrix(numbers, joined, slot_step, dtype, slots=slots).write(self.vectors[places])


def _of_molecules(frames: Frames, chosen: Int64[np.ndarray, " chosen"], cutoff: float, faults: Faults) -> FoundPairs:
    starts, counts = frames.offsets[:-1][chosen], frames.counts[chosen]
    loops = compiled.loops()
    if loops is None:
        found = _of_molecules_in_arrays(frames.positions, starts, counts, cutoff)
    else:
        room, own = int((counts * (counts - 1) // 2).sum()), np.zeros(len(frames.positions), np.int64)
        first, second, vectors = np.empty(room, np.int64), np.empty(room, np.int64), np.empty((room, 3))
        ends, nearest = np.empty(len(chosen), np.int64), np.empty(len(chosen))
        written = first, second, vectors, ends, own, nearest
        loops.molecule_pairs(frames.positions, starts, starts + counts, cutoff, *written)
        last = int(ends[-1]) if len(ends) else 0
        own = own[ranges(starts, counts)]
        found = FoundPairs(first[:last], second[:last], None, vectors[:last], ends, own, nearest)
    refuse_one_spot(frames, chosen, found.nearest, cutoff, faults)
    return found


def _of_molecules_in_arrays(
    positions: Float64[np.ndarray, "atoms 3"],
    starts: Int64[np.ndarray, " molecules"],
    counts: Int64[np.ndarray, " molecules"],
    cutoff: float,
) -> FoundPairs:
    """Pairs of molecules in one pass for each number of atoms."""
    nearest, sizes = np.full(len(starts), np.inf), np.zeros(len(starts), np.int64)
    parts: list[tuple[np.ndarray, ...]] = []
    for atoms in np.unique(counts).tolist():
        alike, pairs = np.flatnonzero(counts == atoms), all_pairs(atoms)
        if atoms < 2:
            continue
        places = positions[starts[alike][:, None] + np.arange(atoms)]
        vectors = places[:, pairs.second] - places[:, pairs.first]
        squares = vectors * vectors
        distances = np.sqrt((squares[..., 0] + squares[..., 1]) + squares[..., 2])
        nearest[alike] = distances.min(1)
        within = distances < cutoff
        sizes[alike] = within.sum(1)
        molecule, pair = np.nonzero(within)
        parts.append((alike[molecule], pairs.first[pair], pairs.second[pair], vectors[within]))
    if not parts:
        nothing = np.empty(0, np.int64)
        parts.append((nothing, nothing, nothing, np.empty((0, 3))))
    owners, first, second, vectors = (np.concatenate(one) for one in zip(*parts, strict=True))
    if len(parts) > 1:
        order = np.argsort(owners, kind="stable")
        owners, first, second, vectors = owners[order], first[order], second[order], vectors[order]
    rows = bounds_of(counts)[owners]
    own = np.bincount(np.concatenate([first + rows, second + rows]), minlength=int(counts.sum()))
    return FoundPairs(first, second, None, vectors, np.cumsum(sizes), own, nearest)


def _of_small_cells(
    frames: Frames, repeating: Int64[np.ndarray, " repeating"], cutoff: float, faults: Faults
) -> tuple[Int64[np.ndarray, " chosen"], FoundPairs]:
    """Pairs of those cells whose images are few enough to look at all of them."""
    cells = frames.cells[repeating]
    for place in np.flatnonzero(~frames.pbc[repeating].all(1)).tolist():
        cells[place] = periodic_cell(frames.atoms(int(repeating[place])))
    counts = frames.counts[repeating]
    starts = bounds_of(counts)[:-1]
    positions = frames.positions[frames.rows_of(repeating)]
    reach, tried = image_reach(positions, starts, cells, frames.pbc[repeating], cutoff)
    small = np.flatnonzero(tried <= MOST_TRIED)
    found = image_pairs(positions, starts[small], (starts + counts)[small], cells[small], reach[small], cutoff)
    found = found._replace(counts=found.counts[ranges(starts[small], counts[small])])
    chosen = repeating[small]
    refuse_one_spot(frames, chosen, found.nearest, cutoff, faults)
    return chosen, found


def _of_one(frames: Frames, index: int, cutoff: float, faults: Faults) -> tuple[np.ndarray, FoundPairs]:
    atoms = frames.atoms(index)
    try:
        found = find_pairs(atoms, cutoff)
    except StructureError as error:
        faults[index] = error
        return np.empty(0, np.int64), _NONE
    except MemoryError as error:
        faults[index] = too_many_neighbours(len(atoms), error)
        return np.empty(0, np.int64), _NONE
    pairs, nearest = found.pairs, found.distances.min(initial=np.inf)
    ends = np.array([len(pairs.first)])
    counts = pairs.counts(len(atoms))
    made = FoundPairs(pairs.first, pairs.second, pairs.shifts, found.vectors, ends, counts, np.array([nearest]))
    return np.array([index]), made


_NONE = FoundPairs(
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    None,
    np.empty((0, 3)),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.empty(0),
)


def refuse_one_spot(
    frames: Frames,
    chosen: Int64[np.ndarray, " chosen"],
    nearest: Float64[np.ndarray, " chosen"],
    cutoff: float,
    faults: Faults,
) -> None:
    """Note structures that have two atoms on one spot, in the words of a search of each.

    Args:
        frames: structures.
        chosen: indices of some.
        nearest: the shortest distance in each of these, Å.
        cutoff: Å.
        faults: written.
    """
    for place in np.flatnonzero(nearest < ONE_SPOT).tolist():
        index = int(chosen[place])
        try:
            find_pairs(frames.atoms(index), cutoff)
        except StructureError as error:
            faults[index] = error
