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
from painn_deploy.runtime.grouping import group
from painn_deploy.runtime.matrix import NeighbourMatrix
from painn_deploy.runtime.neighbours import Displacements, Pairs, find_pairs, slots_for
from painn_deploy.runtime.skin import ROUNDING, still_covered
from painn_deploy.runtime.structures import ONE_SPOT, check_structure, periodic_cell

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
        return len(self.positions), slots_for(self.pairs.counts())


@dataclass
class Batch:
    """Structures that go through the engine together.

    Attributes:
        systems: their indices.
        rows: of their atoms, in the order of the matrix.
    """

    systems: list[int]
    rows: Int[np.ndarray, " atoms"]
    owners: Int[np.ndarray, " pairs"]
    found: Displacements
    matrix: NeighbourMatrix

    @property
    def inputs(self) -> GraphInputs:
        """Of the graph contract; overwritten by the next step."""
        return self.matrix.inputs


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
            self._grouping = [sorted(batch) for batch in group(sizes, self._batch_slots, self._most_atoms)]
            self._batches = [self._laid_out(systems, numbers, starts) for systems in self._grouping]
            return
        for index, systems in enumerate(self._grouping):
            if not stale.isdisjoint(systems):
                self._batches[index] = self._laid_out(systems, numbers, starts)

    def _laid_out(self, systems: list[int], numbers: np.ndarray, starts: np.ndarray) -> Batch:
        rows = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in systems])
        found = [self._found[system] for system in systems]
        pairs = Pairs.joined([one.pairs for one in found], [len(one.positions) for one in found])
        owners = np.repeat(systems, [len(one.pairs.first) for one in found])
        matrix = NeighbourMatrix(numbers[rows].astype(np.int32), pairs)
        return Batch(systems, rows, owners, Displacements(pairs, owners), matrix)

    def _renew(self, batch: Batch, positions: np.ndarray, cells: np.ndarray) -> None:
        """Displacements and mask of now."""
        found = batch.found
        found.form(positions[batch.rows], cells)
        distances = found.distances
        if len(distances) and distances.min() < ONE_SPOT:
            system = int(batch.owners[int(distances.argmin())])
            raise StructureError(
                f"Structure {system}: two atoms are on one spot, {distances.min():.2e} Å apart. A simulation that "
                "got here has diverged; use a shorter time step."
            )
        batch.matrix.write(found.vectors, found.within(self.cutoff))
