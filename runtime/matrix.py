"""The padded neighbour matrix of the graph contract: two slots for each pair, structures side by side.

The other end of a pair is written down with the exact negative displacement and the same mask, so that an edge and its
reverse can never disagree, whatever the rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int32, Int64
from numpy.typing import DTypeLike

from painn_deploy.export.errors import StructureError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.neighbours import Pairs, find_pairs, slots_for
from painn_deploy.runtime.pairs import compiled
from painn_deploy.runtime.structures import as_elements, check_structure

__all__ = ["LocalGraph", "NeighbourMatrix", "graph_inputs", "join", "local_graphs"]


class NeighbourMatrix:
    """Slots for the two ends of each pair, in the order of the pairs; displacements and mask may be written again.

    Args:
        numbers: atomic numbers of the rows.
        pairs: of neighbours.
        slot_step: that the number of columns is a multiple of.
        dtype: of displacements and mask: float32, or float64 for references and engines in `fp64`.
        slots: columns, where somebody has counted them.

    Attributes:
        forward: flat slot of each pair seen from its first atom.
        backward: flat slot of each pair seen from its second atom.
        filled: slots of each atom that hold a pair.
        inputs: of the graph contract. Displacements and mask are zero until they are written; every write is into the
            same arrays. The others, which say where a pair sits, are never written again.
    """

    def __init__(
        self,
        numbers: Int32[np.ndarray, " atoms"],
        pairs: Pairs,
        slot_step: int = 1,
        dtype: DTypeLike = np.float32,
        slots: int | None = None,
    ) -> None:
        atoms = len(numbers)
        if slots is None:
            slots = slots_for(pairs.counts(atoms), slot_step)
        shape = (atoms, slots)
        neighbours = np.empty(shape, np.int32)
        reverse = np.empty(shape, np.int32)  # of its own, and no view, so that it can be closed for writing
        self.forward, self.backward, self.filled = _laid_out(pairs, neighbours, reverse)
        self.inputs = GraphInputs(
            atomic_numbers=numbers,
            displacements=np.zeros((*shape, 3), dtype),
            neighbours=neighbours,
            reverse=reverse,
            mask=np.zeros(shape, dtype),
            weights=np.ones(atoms, dtype),
        )

    _rounded: np.ndarray | None = None

    def write(
        self, vectors: Float64[np.ndarray, "pairs 3"], edges: Bool[np.ndarray, " pairs"] | bool = True
    ) -> GraphInputs:
        """Displacements and mask of both ends of each pair.

        Args:
            vectors: from the first atom to the second, Å; rounded here.
            edges: which pairs are within the cutoff.
        """
        displacements, mask = self.inputs.displacements.reshape(-1, 3), self.inputs.mask.reshape(-1)  # views
        loops = compiled.loops()
        if loops is not None and edges is True:
            loops.write_slots(vectors, self.forward, self.backward, displacements, mask)
            return self.inputs
        if self._rounded is None:
            self._rounded = np.empty(vectors.shape, displacements.dtype)
        rounded = self._rounded
        np.copyto(rounded, vectors, casting="same_kind")
        displacements[self.forward] = rounded
        displacements[self.backward] = np.negative(rounded, out=rounded)
        mask[self.forward] = mask[self.backward] = edges
        return self.inputs


def _laid_out(
    pairs: Pairs, neighbours: Int32[np.ndarray, "atoms slots"], reverse: Int32[np.ndarray, "atoms slots"]
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"], Int64[np.ndarray, " atoms"]]:
    """Write who sits in which slot, an atom's slots in the order of pairs, first those that it is the first atom of.

    Args:
        pairs: of neighbours.
        neighbours: written.
        reverse: written.

    Returns:
        Flat slots of each pair seen from its first atom, and from its second; and how many each atom has.
    """
    (atoms, slots), count = neighbours.shape, len(pairs.first)
    neighbour_of, reverse_of = neighbours.reshape(-1), reverse.reshape(-1)  # views
    if (loops := compiled.loops()) is not None:
        forward, backward, taken = np.empty(count, np.int64), np.empty(count, np.int64), np.empty((2, atoms), np.int64)
        loops.lay_out(pairs.first, pairs.second, slots, forward, backward, neighbour_of, reverse_of, taken)
        return forward, backward, taken[1]
    ends = np.concatenate([pairs.first, pairs.second])
    # numbers of 16 bits are sorted by their digits, in a tenth of the time
    order = np.argsort(ends.astype(np.uint16) if atoms <= 2**16 else ends, kind="stable")
    sorted_ends = ends[order]
    starts = np.searchsorted(sorted_ends, np.arange(atoms))
    flat = np.empty(len(ends), np.int64)
    flat[order] = sorted_ends * slots + np.arange(len(ends)) - starts[sorted_ends]
    forward, backward = flat[:count], flat[count:]
    neighbours[:] = np.arange(atoms, dtype=np.int32)[:, None]
    reverse_of[:] = np.arange(atoms * slots)
    neighbour_of[forward], neighbour_of[backward] = pairs.second, pairs.first
    reverse_of[forward], reverse_of[backward] = backward, forward
    return forward, backward, np.diff(np.append(starts, len(ends)))


@dataclass(frozen=True)
class LocalGraph:
    """One structure with its neighbours found, ready to be put beside others.

    Attributes:
        numbers: atomic numbers.
        pairs: of neighbours, each once.
        vectors: displacement of each pair, Å, float64.
        slots: that the busiest atom needs, at least 1.
    """

    numbers: Int32[np.ndarray, " atoms"]
    pairs: Pairs
    vectors: Float64[np.ndarray, "pairs 3"]
    slots: int

    @classmethod
    def of(cls, atoms: Atoms, cutoff: float) -> "LocalGraph":
        """Find the neighbours of a structure.

        Args:
            atoms: a structure that `check_structure` gave back.
            cutoff: Å.

        Raises:
            StructureError: an atom is no element's, two are on one spot, or more are crowded than in any matter.
        """
        numbers, found = as_elements(atoms.numbers), find_pairs(atoms, cutoff)
        return cls(numbers, found.pairs, found.vectors, slots_for(found.pairs.counts()))

    @property
    def size(self) -> tuple[int, int]:
        """Atoms and slots."""
        return len(self.numbers), self.slots


def local_graphs(structures: Sequence[Atoms], cutoff: float) -> list[LocalGraph]:
    """Every structure with its neighbours.

    Args:
        structures: any number of them.
        cutoff: Å.

    Raises:
        StructureError: one of them is nothing that a force field can answer for; the message says which.
    """
    graphs = []
    for index, atoms in enumerate(structures):
        try:
            graphs.append(LocalGraph.of(check_structure(atoms), cutoff))
        except StructureError as error:
            if len(structures) == 1:
                raise
            raise StructureError(f"Structure {index} ({atoms.symbols}): {error}") from error
    return graphs


def join(graphs: Sequence[LocalGraph], dtype: DTypeLike = np.float32, slot_step: int = 1) -> GraphInputs:
    """Structures side by side in one padded neighbour matrix, in their order.

    Args:
        graphs: at least one.
        dtype: float32, or float64 for references and engines in `fp64`.
        slot_step: that the number of columns is a multiple of.
    """
    pairs = Pairs.joined([graph.pairs for graph in graphs], [len(graph.numbers) for graph in graphs])
    numbers = np.concatenate([graph.numbers for graph in graphs])
    vectors = np.concatenate([graph.vectors for graph in graphs])
    return NeighbourMatrix(numbers, pairs, slot_step, dtype).write(vectors)


def graph_inputs(
    structures: Sequence[Atoms], cutoff: float, dtype: DTypeLike = np.float32, slot_step: int = 1
) -> GraphInputs:
    """Structures side by side in one padded neighbour matrix, whatever its size; the calculator groups them first.

    Args:
        structures: at least one; molecules and crystals may be mixed.
        cutoff: Å.
        dtype: float32, or float64 for references and engines in `fp64`.
        slot_step: that the number of columns is a multiple of; a session on a GPU names its own.

    Raises:
        StructureError: one of them is nothing that a force field can answer for; the message says which.
    """
    if not structures:
        raise StructureError("No structures were given.")
    return join(local_graphs(structures, cutoff), dtype, slot_step)
