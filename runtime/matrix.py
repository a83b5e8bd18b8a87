"""The padded neighbour matrix of the graph contract: two slots for each pair, structures side by side.

The other end of a pair is written down with the exact negative displacement and the same mask, so that an edge and its
reverse can never disagree, whatever the rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int32
from numpy.typing import DTypeLike

from painn_deploy.export.errors import StructureError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.neighbours import Pairs, find_pairs, slots_for
from painn_deploy.runtime.structures import as_elements, check_structure

__all__ = ["LocalGraph", "NeighbourMatrix", "graph_inputs", "join", "local_graphs"]


class NeighbourMatrix:
    """Slots for the two ends of each pair, in the order of the pairs; displacements and mask may be written again.

    Args:
        numbers: atomic numbers of the rows.
        pairs: of neighbours.
        slot_step: that the number of columns is a multiple of.
        dtype: of displacements and mask: float32, or float64 for references and engines in `fp64`.

    Attributes:
        forward: flat slot of each pair seen from its first atom.
        backward: flat slot of each pair seen from its second atom.
        inputs: of the graph contract. Displacements and mask are zero until they are written; every write is into the
            same arrays. The others, which say where a pair sits, are never written again.
    """

    def __init__(
        self,
        numbers: Int32[np.ndarray, " atoms"],
        pairs: Pairs,
        slot_step: int = 1,
        dtype: DTypeLike = np.float32,
    ) -> None:
        atoms = len(numbers)
        counts = pairs.counts(atoms)
        slots = slots_for(counts, slot_step)
        ends = np.concatenate([pairs.first, pairs.second])
        order = np.argsort(ends, kind="stable")
        starts = np.cumsum(counts) - counts
        flat = np.empty(len(ends), np.int64)
        sorted_ends = ends[order]
        flat[order] = sorted_ends * slots + np.arange(len(ends)) - starts[sorted_ends]
        self.forward, self.backward = flat[: len(pairs.first)], flat[len(pairs.first) :]
        neighbours = np.repeat(np.arange(atoms, dtype=np.int32), slots)
        neighbours[self.forward] = pairs.second
        neighbours[self.backward] = pairs.first
        shape = (atoms, slots)
        reverse = np.empty(shape, np.int32)  # of its own, and no view, so that it can be closed for writing
        flat_reverse = reverse.reshape(-1)
        flat_reverse[:] = np.arange(atoms * slots)
        flat_reverse[self.forward] = self.backward
        flat_reverse[self.backward] = self.forward
        self.inputs = GraphInputs(
            atomic_numbers=numbers,
            displacements=np.zeros((*shape, 3), dtype),
            neighbours=neighbours.reshape(shape),
            reverse=reverse,
            mask=np.zeros(shape, dtype),
        )
        self._rounded = np.empty((len(pairs.first), 3), dtype)

    def write(
        self, vectors: Float64[np.ndarray, "pairs 3"], edges: Bool[np.ndarray, " pairs"] | bool = True
    ) -> GraphInputs:
        """Displacements and mask of both ends of each pair.

        Args:
            vectors: from the first atom to the second, Å; rounded here.
            edges: which pairs are within the cutoff.
        """
        displacements, mask = self.inputs.displacements.reshape(-1, 3), self.inputs.mask.reshape(-1)  # views
        rounded = self._rounded
        np.copyto(rounded, vectors, casting="same_kind")
        displacements[self.forward] = rounded
        displacements[self.backward] = np.negative(rounded, out=rounded)
        mask[self.forward] = mask[self.backward] = edges
        return self.inputs


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
