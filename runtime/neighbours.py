"""Neighbour search into the padded matrix of the graph contract.

vesin finds each pair once; in a small molecule, where calling it would take longer, every pair is looked at. The other
end of a pair is written down with the exact negative displacement and the same mask, so that an edge and its reverse
can never disagree, whatever the rounding.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import vesin
from ase import Atoms
from ase.geometry import complete_cell
from jaxtyping import Bool, Float64, Int32, Int64

from painn_deploy.export.errors import StructureError
from painn_deploy.export.fields import GraphInputs

__all__ = [
    "Displacements",
    "LocalGraph",
    "Pairs",
    "SlotLayout",
    "check_structure",
    "find_pairs",
    "graph_inputs",
    "join",
    "local_graphs",
    "periodic_cell",
    "refuse_one_spot",
]

ONE_SPOT = 1e-3
"""Å; atoms closer than this are one atom written twice, not chemistry."""

NARROW = 20
"""Cutoffs; a molecule that is no longer needs no narrowing."""

FEW = 48
"""Atoms of a molecule whose pairs are all looked at; vesin is faster beyond."""

MOST_CELLS = 2e4
"""Of vesin's search grid; past 1e5 it scales the grid down, thin directions to nothing."""

MOST_IMAGES = 3e6
"""Atoms times images of the cell within the cutoff, past which a search would take minutes and gigabytes."""

FLAT = 1e-6
"""Volume, area or length of the periodic vectors, over the product of their lengths, below which they are dependent."""


@dataclass(frozen=True)
class Pairs:
    """Each pair of neighbours once: atom `first`, and atom `second` moved by `shifts` cells.

    Attributes:
        first: index of one atom.
        second: index of the other.
        shifts: S, whole cells that the second atom is moved by; None where no atom has images.
    """

    first: Int64[np.ndarray, " pairs"]
    second: Int64[np.ndarray, " pairs"]
    shifts: Int64[np.ndarray, "pairs 3"] | None

    def only(self, chosen: Bool[np.ndarray, " pairs"]) -> "Pairs":
        """Some of the pairs."""
        shifts = None if self.shifts is None else self.shifts[chosen]
        return Pairs(self.first[chosen], self.second[chosen], shifts)


class Displacements:
    """From the first atom of each pair to the second, in arrays that are written again at every step.

    This is the one place in Python that forms displacements and compares distances with a cutoff, in float64. A GPU
    that follows a structure does both in a kernel (`painn_deploy.engines.device_positions`); a test compares the two.

    Args:
        pairs: of neighbours.

    Attributes:
        pairs: the same.
        vectors: r_second + S·cell - r_first, Å.
        distances: their lengths, Å.
        cell: that they were formed with.
    """

    def __init__(self, pairs: Pairs) -> None:
        count = len(pairs.first)
        self.pairs = pairs
        self.vectors: np.ndarray = np.empty((count, 3))
        self.distances: np.ndarray = np.empty(count)
        self.cell: np.ndarray = np.zeros((3, 3))
        self._scratch: np.ndarray = np.empty((count, 3))
        self._edges: np.ndarray = np.empty(count, bool)
        self._shifts: np.ndarray | None = None

    def form(self, positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "3 3"]) -> None:
        """Write `vectors` and `distances` for positions of now.

        Args:
            positions: Å.
            cell: rows are cell vectors, Å.
        """
        pairs, vectors, scratch = self.pairs, self.vectors, self._scratch
        self.cell = cell
        np.take(positions, pairs.second, axis=0, out=vectors, mode="clip")  # other modes make a copy
        np.take(positions, pairs.first, axis=0, out=scratch, mode="clip")
        np.subtract(vectors, scratch, out=vectors)
        if pairs.shifts is not None:
            if self._shifts is None:
                self._shifts = pairs.shifts.astype(np.float64)
            np.matmul(self._shifts, cell, out=scratch)
            np.add(vectors, scratch, out=vectors)
        np.einsum("pc,pc->p", vectors, vectors, out=self.distances)
        np.sqrt(self.distances, out=self.distances)

    def within(self, cutoff: float) -> Bool[np.ndarray, " pairs"]:
        """Which pairs are closer than a cutoff, Å; the array is overwritten by the next call."""
        np.less(self.distances, cutoff, out=self._edges)
        return self._edges

    def only(self, chosen: Bool[np.ndarray, " pairs"]) -> "Displacements":
        """Those of some of the pairs."""
        part = Displacements(self.pairs.only(chosen))
        part.vectors, part.distances, part.cell = self.vectors[chosen], self.distances[chosen], self.cell
        return part


def check_structure(atoms: Atoms) -> None:
    """Refuse what no force field can answer for.

    Raises:
        StructureError: no atoms, positions or cell not finite, or linearly dependent periodic cell vectors.
    """
    if len(atoms) == 0:
        raise StructureError("The structure has no atoms.")
    finite = np.isfinite(atoms.positions)
    if not finite.all():
        index = int(np.argmin(finite.all(1)))
        raise StructureError(
            f"Atom {index} ({atoms.symbols[index]}) is at {atoms.positions[index]}: NaN or infinite positions. "
            "A simulation that got here has diverged; look at the frames before, or use a shorter time step."
        )
    periodic = np.asarray(atoms.pbc)
    if not periodic.any():
        return
    vectors = np.asarray(atoms.cell)[periodic]
    if not np.isfinite(vectors).all():
        raise StructureError(f"The cell holds NaN or infinity: {np.asarray(atoms.cell).tolist()}.")
    lengths = np.linalg.norm(vectors, axis=1)
    volume = np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))
    if volume <= FLAT * lengths.prod():
        axes = ", ".join(axis for axis, flag in zip("abc", periodic, strict=True) if flag)
        raise StructureError(
            f"The periodic cell vectors {axes} are linearly dependent: {vectors.tolist()}. "
            "Set a cell, or switch pbc off in the directions that do not repeat."
        )


def find_pairs(atoms: Atoms, cutoff: float) -> Displacements:
    """Every pair with d < cutoff, once, images of an atom itself among them.

    Args:
        atoms: a structure that `check_structure` let pass; any cell, any mix of periodic directions.
        cutoff: Å.

    Raises:
        StructureError: two atoms are on one spot.
    """
    few, cell = len(atoms) <= FEW and not atoms.pbc.any(), periodic_cell(atoms)
    found = Displacements(_all_pairs(len(atoms)) if few else _candidates(atoms, cell, cutoff))
    found.form(atoms.positions, cell)
    refuse_one_spot(atoms, found)
    within = found.within(cutoff)
    return found if within.all() else found.only(within)


@functools.cache
def _all_pairs(atoms: int) -> Pairs:
    first, second = np.triu_indices(atoms, 1)
    first.flags.writeable = second.flags.writeable = False  # every molecule of that size shares them
    return Pairs(first, second, None)


def _candidates(atoms: Atoms, cell: Float64[np.ndarray, "3 3"], cutoff: float) -> Pairs:
    """Every pair within the cutoff, and perhaps some that are a rounding beyond it."""
    periodic = np.asarray(atoms.pbc)
    points, moved, reach = _searchable(atoms.positions, cell, periodic, cutoff)
    search = vesin.NeighborList(cutoff=reach, full_list=False, n_threads=1)
    indices, shifts = search.compute(points, cell, periodic, "PS", copy=True)
    first, second = indices[:, 0].astype(np.int64), indices[:, 1].astype(np.int64)
    images = None
    if periodic.any():
        images = shifts.astype(np.int64)
        if moved is not None:
            images += moved[first] - moved[second]
    return Pairs(first, second, images)


def periodic_cell(atoms: Atoms) -> Float64[np.ndarray, "3 3"]:
    """The periodic cell vectors, and unit vectors across them where there are fewer than three; zero where none is."""
    periodic = np.asarray(atoms.pbc)
    if not periodic.any():
        return np.zeros((3, 3))
    cell = np.where(periodic[:, None], np.asarray(atoms.cell), 0.0)
    return np.ascontiguousarray(complete_cell(cell), dtype=float)


def _searchable(
    positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "3 3"], periodic: np.ndarray, cutoff: float
) -> tuple[Float64[np.ndarray, "atoms 3"], Int64[np.ndarray, "atoms 3"] | None, float]:
    """Positions with the same neighbours that vesin's grid of cells can hold, the cells they were moved by, its cutoff.

    vesin divides by zero where its grid is long in one direction and thin in another, as when a molecule has flown
    apart or an atom was never wrapped. So atoms are wrapped along periodic directions, gaps wider than the cutoff are
    narrowed along the others, which brings no pair within the cutoff, and cells are widened while there are too many.
    """
    reach = cutoff * (1 + 1e-9)
    if not periodic.any():
        extents = np.ptp(positions, axis=0)
        if extents.max() <= NARROW * cutoff:
            return positions, None, reach
        points = _narrowed(positions, cutoff)
        return points, None, _widened(np.ptp(points, axis=0), reach)
    inverse = np.linalg.inv(cell)
    fractions = positions @ inverse
    whole = np.where(periodic, np.floor(fractions), 0.0)
    if np.abs(whole).max() > 2**52:
        raise StructureError("An atom is so many cells away that float64 cannot place it; wrap the structure.")
    fractions -= whole
    if not periodic.all():
        fractions[:, ~periodic] = _narrowed(fractions[:, ~periodic], cutoff)  # along unit vectors: Å
    heights = np.where(periodic, 1 / np.linalg.norm(inverse, axis=0), np.ptp(fractions, axis=0))
    images = float(np.prod(2 * np.ceil(cutoff / heights[periodic]) + 1))
    if images * len(positions) > MOST_IMAGES:
        raise StructureError(
            f"The cell is so small that {images:.1e} of its images lie within {cutoff:g} Å; check its units."
        )
    return fractions @ cell, whole.astype(np.int64), _widened(heights, reach)


def _narrowed(coordinates: Float64[np.ndarray, "atoms axes"], cutoff: float) -> Float64[np.ndarray, "atoms axes"]:
    """Coordinates with every empty stretch longer than twice the cutoff cut down to that."""
    order = np.argsort(coordinates, axis=0, kind="stable")
    steps = np.minimum(np.diff(np.take_along_axis(coordinates, order, axis=0), axis=0), 2 * cutoff)
    narrowed = np.zeros_like(coordinates)
    np.put_along_axis(narrowed, order, np.concatenate([narrowed[:1], np.cumsum(steps, axis=0)]), axis=0)
    return narrowed


def _widened(extents: Float64[np.ndarray, " axes"], reach: float) -> float:
    """A cutoff, no smaller than `reach`, of which a grid holds no more than `MOST_CELLS`."""
    while np.prod(np.maximum(extents / reach, 1.0)) > MOST_CELLS:
        reach *= 1.3
    return reach


def refuse_one_spot(atoms: Atoms, found: Displacements) -> None:
    """Refuse a structure that has two atoms on one spot.

    Args:
        atoms: the structure.
        found: its pairs, with distances of now.

    Raises:
        StructureError: naming both atoms.
    """
    distances = found.distances
    if len(distances) == 0 or distances.min() >= ONE_SPOT:
        return
    worst = int(distances.argmin())
    one, other = int(found.pairs.first[worst]), int(found.pairs.second[worst])
    raise StructureError(
        f"Atoms {one} ({atoms.symbols[one]}) and {other} ({atoms.symbols[other]}) are on one spot, "
        f"{distances[worst]:.2e} Å apart; remove the one that was written twice."
    )


@dataclass(frozen=True)
class SlotLayout:
    """Where the two ends of each pair sit in the matrix.

    Attributes:
        atoms: number of rows.
        slots: number of columns, at least 1.
        forward: flat slot of each pair seen from its first atom.
        backward: flat slot of each pair seen from its second atom.
        neighbours: as in the graph contract.
        reverse: as in the graph contract.
    """

    atoms: int
    slots: int
    forward: Int64[np.ndarray, " pairs"]
    backward: Int64[np.ndarray, " pairs"]
    neighbours: Int32[np.ndarray, "atoms slots"]
    reverse: Int32[np.ndarray, "atoms slots"]

    @classmethod
    def of(
        cls,
        first: Int64[np.ndarray, " pairs"],
        second: Int64[np.ndarray, " pairs"],
        atoms: int,
        slots: int = 1,
        slot_step: int = 1,
    ) -> "SlotLayout":
        """Give each end of each pair a slot, in the order of the pairs; as many slots as the busiest atom needs.

        Args:
            first: index of one atom of each pair.
            second: index of the other.
            atoms: how many rows; may be more than there are atoms, the rest is padding.
            slots: least number of columns.
            slot_step: that the number of columns is a multiple of; the rest is padding.
        """
        ends = np.concatenate([first, second])
        counts = np.bincount(ends, minlength=atoms)
        slots = slot_step * -(-max(slots, int(counts.max(initial=1))) // slot_step)
        order = np.argsort(ends, kind="stable")
        starts = np.cumsum(counts) - counts
        flat = np.empty(len(ends), np.int64)
        sorted_ends = ends[order]
        flat[order] = sorted_ends * slots + np.arange(len(ends)) - starts[sorted_ends]
        forward, backward = flat[: len(first)], flat[len(first) :]
        neighbours = np.repeat(np.arange(atoms, dtype=np.int32), slots)
        neighbours[forward] = second
        neighbours[backward] = first
        reverse = np.arange(atoms * slots, dtype=np.int32)
        reverse[forward] = backward
        reverse[backward] = forward
        return cls(atoms, slots, forward, backward, neighbours.reshape(atoms, slots), reverse.reshape(atoms, slots))

    def scatter(
        self,
        vectors: Float64[np.ndarray, "pairs 3"],
        edges: Bool[np.ndarray, " pairs"] | bool = True,
        dtype: type[np.floating] = np.float32,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Displacements [atoms, slots, 3] and mask [atoms, slots] of the contract.

        Args:
            vectors: displacements of the pairs, Å; rounded to `dtype` here.
            edges: which pairs are within the cutoff.
            dtype: float32 for engines, float64 for references.
        """
        displacements = np.zeros((self.atoms, self.slots, 3), dtype)
        mask = np.zeros((self.atoms, self.slots), dtype)
        self.scatter_into(displacements, mask, vectors, edges)
        return displacements, mask

    def scatter_into(
        self,
        displacements: np.ndarray,
        mask: np.ndarray,
        vectors: Float64[np.ndarray, "pairs 3"],
        edges: Bool[np.ndarray, " pairs"] | bool = True,
    ) -> None:
        """The same into arrays of this layout, whose padding is zero already."""
        displacements, mask = displacements.reshape(-1, 3), mask.reshape(-1)  # views
        rounded = vectors.astype(displacements.dtype)
        displacements[self.forward] = rounded
        displacements[self.backward] = -rounded
        mask[self.forward] = edges
        mask[self.backward] = edges


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
        """Check a structure and find its neighbours.

        Raises:
            StructureError: it is nothing that a force field can answer for.
        """
        check_structure(atoms)
        return cls.found(atoms, cutoff)

    @classmethod
    def found(cls, atoms: Atoms, cutoff: float) -> "LocalGraph":
        """The same for a structure that was checked."""
        found = find_pairs(atoms, cutoff)
        counts = np.bincount(np.concatenate([found.pairs.first, found.pairs.second]), minlength=1)
        return cls(atoms.numbers.astype(np.int32), found.pairs, found.vectors, max(1, int(counts.max())))


def local_graphs(structures: Sequence[Atoms], cutoff: float) -> list[LocalGraph]:
    """Every structure with its neighbours.

    Raises:
        StructureError: one of them is nothing that a force field can answer for; the message says which.
    """
    graphs = []
    for index, atoms in enumerate(structures):
        try:
            graphs.append(LocalGraph.of(atoms, cutoff))
        except StructureError as error:
            if len(structures) == 1:
                raise
            raise StructureError(f"Structure {index} ({atoms.symbols}): {error}") from error
    return graphs


def join(graphs: Sequence[LocalGraph], dtype: type[np.floating] = np.float32, slot_step: int = 1) -> GraphInputs:
    """Structures side by side in one padded neighbour matrix, in their order.

    Args:
        graphs: at least one.
        dtype: float32 for engines, float64 for references.
        slot_step: that the number of columns is a multiple of.
    """
    if len(graphs) == 1:  # a step of dynamics: nothing is copied
        (graph,) = graphs
        numbers, first, second, vectors = graph.numbers, graph.pairs.first, graph.pairs.second, graph.vectors
    else:
        starts = np.cumsum([0, *(len(graph.numbers) for graph in graphs)])
        first = np.concatenate([graph.pairs.first + start for graph, start in zip(graphs, starts, strict=False)])
        second = np.concatenate([graph.pairs.second + start for graph, start in zip(graphs, starts, strict=False)])
        vectors = np.concatenate([graph.vectors for graph in graphs])
        numbers = np.concatenate([graph.numbers for graph in graphs])
    layout = SlotLayout.of(first, second, len(numbers), slot_step=slot_step)
    displacements, mask = layout.scatter(vectors, dtype=dtype)
    return GraphInputs(numbers, displacements, layout.neighbours, layout.reverse, mask)


def graph_inputs(
    structures: Sequence[Atoms], cutoff: float, dtype: type[np.floating] = np.float32, slot_step: int = 1
) -> GraphInputs:
    """Structures side by side in one padded neighbour matrix, whatever its size; the calculator packs them first.

    Args:
        structures: at least one; molecules and crystals may be mixed.
        cutoff: Å.
        dtype: float32 for engines, float64 for references.
        slot_step: that the number of columns is a multiple of; a session on a GPU names its own.

    Raises:
        StructureError: one of them is nothing that a force field can answer for; the message says which.
    """
    if not structures:
        raise StructureError("No structures were given.")
    return join(local_graphs(structures, cutoff), dtype, slot_step)
