"""Verlet lists of many structures that move together: what batched dynamics needs at every step.

The criterion is that of `painn_deploy.runtime.skin`, for each structure on its own; only those that it fails for are
searched again. Displacements and masks of all are renewed at every step, in one piece of array code a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int

from painn_deploy.export.errors import StructureError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.neighbours import (
    ONE_SPOT,
    Pairs,
    SlotLayout,
    check_structure,
    find_pairs,
    periodic_cell,
)
from painn_deploy.runtime.packing import pack
from painn_deploy.runtime.skin import ROUNDING, still_covered

__all__ = ["Batch", "ReplicaList"]


@dataclass
class _Found:
    """One structure when its pairs were found."""

    positions: Float64[np.ndarray, "atoms 3"]
    cell: Float64[np.ndarray, "3 3"]
    pairs: Pairs

    @property
    def size(self) -> tuple[int, int]:
        """Atoms and slots."""
        ends = np.concatenate([self.pairs.first, self.pairs.second])
        return len(self.positions), max(1, int(np.bincount(ends, minlength=1).max()))


@dataclass
class Batch:
    """Structures that go through the engine together.

    Attributes:
        systems: their indices.
        rows: of their atoms, in the order of the matrix.
        inputs: of the graph contract; overwritten by the next step.
    """

    systems: list[int]
    rows: Int[np.ndarray, " atoms"]
    inputs: GraphInputs
    pairs: Pairs
    owners: Int[np.ndarray, " pairs"]
    layout: SlotLayout


class ReplicaList:
    """Graph inputs of many structures that move.

    Args:
        cutoff: Å.
        skin: Å; 0 searches at every step.
        batch_slots: atoms x slots of a batch.
        most_atoms: of a batch, or None.

    Attributes:
        searches: how many structures were searched so far.
    """

    def __init__(self, cutoff: float, skin: float, batch_slots: int, most_atoms: int | None = None) -> None:
        self.cutoff, self.skin, self.searches = cutoff, skin, 0
        self._batch_slots, self._most_atoms = batch_slots, most_atoms
        self._key: tuple[bytes, ...] = ()
        self._found: list[_Found] = []
        self._positions: np.ndarray = np.zeros((0, 3))
        self._grouping: list[list[int]] = []
        self._batches: list[Batch] = []

    def batches(
        self,
        numbers: Int[np.ndarray, " atoms"],
        positions: Float64[np.ndarray, "atoms 3"],
        cells: Float64[np.ndarray, "systems 3 3"],
        periodic: Bool[np.ndarray, "3"],
        starts: Int[np.ndarray, " bounds"],
    ) -> list[Batch]:
        """Inputs of all structures; their arrays are overwritten by the next call.

        Args:
            numbers: atomic numbers of all atoms, structure after structure.
            positions: Å.
            cells: rows are cell vectors, Å.
            periodic: in which directions all of them repeat.
            starts: first atom of each structure, and the number of atoms at the end.

        Raises:
            StructureError: one of them is nothing that a force field can answer for; the message says which.
        """
        key = (numbers.tobytes(), starts.tobytes(), periodic.tobytes())
        if key != self._key:
            self._key, self._found, self._grouping = key, [], []
        try:
            self._refresh(numbers, positions, cells, periodic, starts)
            for batch in self._batches:
                self._renew(batch, positions, cells)
        except StructureError:
            self._key = ()  # what was half done must not be believed
            raise
        return self._batches

    def _refresh(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        cells: np.ndarray,
        periodic: np.ndarray,
        starts: np.ndarray,
    ) -> None:
        """Search what must be searched, and lay it out anew."""
        stale = self._stale(positions, cells, periodic, starts)
        for system in stale:
            rows = slice(int(starts[system]), int(starts[system + 1]))
            atoms = Atoms(numbers[rows], positions[rows], cell=cells[system], pbc=periodic)
            found = self._search(atoms, system)
            if system < len(self._found):
                self._found[system] = found
            else:
                self._found.append(found)
        if stale:
            self._arrange(set(stale), numbers, starts)
            self._positions = np.concatenate([found.positions for found in self._found])

    def _stale(
        self, positions: np.ndarray, cells: np.ndarray, periodic: np.ndarray, starts: np.ndarray
    ) -> Sequence[int]:
        """Structures that must be searched."""
        if not self._found or self.skin == 0:
            return range(len(cells))
        moved = positions - self._positions
        farthest = np.sqrt(np.maximum.reduceat(np.einsum("ac,ac->a", moved, moved), starts[:-1]))
        # NaN compares as false, so that a structure that diverged is searched, and then refused
        calm = self.skin - 2 * farthest >= ROUNDING
        if periodic.any():
            for system, found in enumerate(self._found):
                now = periodic_cell(Atoms(cell=cells[system], pbc=periodic))
                if not np.array_equal(now, found.cell):
                    rows = slice(int(starts[system]), int(starts[system + 1]))
                    calm[system] = still_covered(
                        found.positions, found.cell, positions[rows], now, self.cutoff, self.skin
                    )
        return [int(system) for system in np.flatnonzero(~calm)]

    def _search(self, atoms: Atoms, system: int) -> _Found:
        self.searches += 1
        try:
            check_structure(atoms)
            found = find_pairs(atoms, self.cutoff + self.skin)
        except StructureError as error:
            raise StructureError(f"Structure {system}: {error}") from error
        return _Found(atoms.positions.copy(), found.cell, found.pairs)

    def _arrange(self, stale: set[int], numbers: np.ndarray, starts: np.ndarray) -> None:
        """Lay out the batches that hold structures that were searched."""
        if not self._grouping:
            sizes = [found.size for found in self._found]
            self._grouping = [sorted(batch) for batch in pack(sizes, self._batch_slots, self._most_atoms)]
            self._batches = [self._laid_out(group, numbers, starts) for group in self._grouping]
            return
        for index, group in enumerate(self._grouping):
            if not stale.isdisjoint(group):
                self._batches[index] = self._laid_out(group, numbers, starts)

    def _laid_out(self, systems: list[int], numbers: np.ndarray, starts: np.ndarray) -> Batch:
        rows = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in systems])
        found = [self._found[system] for system in systems]
        offsets = np.cumsum([0, *(len(one.positions) for one in found)])[:-1]
        first = np.concatenate([one.pairs.first + offset for one, offset in zip(found, offsets, strict=True)])
        second = np.concatenate([one.pairs.second + offset for one, offset in zip(found, offsets, strict=True)])
        shifts = [one.pairs.shifts for one in found if one.pairs.shifts is not None]
        owners = np.repeat(systems, [len(one.pairs.first) for one in found])
        layout = SlotLayout.of(first, second, len(rows))
        displacements = np.zeros((layout.atoms, layout.slots, 3), np.float32)
        inputs = GraphInputs(
            numbers[rows].astype(np.int32),
            displacements,
            layout.neighbours,
            layout.reverse,
            np.zeros((layout.atoms, layout.slots), np.float32),
        )
        return Batch(
            systems, rows, inputs, Pairs(first, second, np.concatenate(shifts) if shifts else None), owners, layout
        )

    def _renew(self, batch: Batch, positions: np.ndarray, cells: np.ndarray) -> None:
        """Displacements and mask of now; pairs are subtracted in float64."""
        pairs, here = batch.pairs, positions[batch.rows]
        vectors = here[pairs.second] - here[pairs.first]
        if pairs.shifts is not None:
            vectors += np.einsum("ps,psc->pc", pairs.shifts, cells[batch.owners])
        squared = np.einsum("pc,pc->p", vectors, vectors)
        if len(squared) and squared.min() < ONE_SPOT**2:
            system = int(batch.owners[int(squared.argmin())])
            raise StructureError(
                f"Structure {system}: two atoms are on one spot, {squared.min() ** 0.5:.2e} Å apart. A simulation that "
                "got here has diverged; use a shorter time step."
            )
        batch.layout.scatter_into(
            batch.inputs.displacements, batch.inputs.mask, vectors, np.sqrt(squared) < self.cutoff
        )
