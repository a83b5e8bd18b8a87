"""Verlet lists of many structures that move together: what batched dynamics needs at every step.

The criterion is that of `painn_deploy.runtime.verlet`, for each structure on its own; only those that it fails for are
searched again. Displacements and masks of all are renewed at every step, in one piece of array code a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int
from numpy.typing import DTypeLike

from painn_deploy.export.errors import StructureError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.batches.evaluation import Engine
from painn_deploy.runtime.grouping import group
from painn_deploy.runtime.neighbours import Displacements, Pairs, find_pairs, slots_for
from painn_deploy.runtime.pairs.standing import StandingPairs
from painn_deploy.runtime.structures import ONE_SPOT, as_elements, check_structure, periodic_cell
from painn_deploy.runtime.verlet import slack, still_covered

__all__ = ["AtomResults", "Batch", "ReplicaList", "answered"]

NOTHING = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), None)
"""Pairs of a structure that was not searched yet."""


@dataclass(frozen=True)
class Batch:
    """Structures that go through the engine together.

    Attributes:
        systems: their indices.
        rows: of their atoms, in the order of the matrix.
        standing: their pairs, and the matrix.
    """

    systems: list[int]
    rows: Int[np.ndarray, " atoms"]
    standing: StandingPairs

    @property
    def inputs(self) -> GraphInputs:
        """Of the graph contract; overwritten by the next step."""
        return self.standing.matrix.inputs


class AtomResults(NamedTuple):
    """An engine's outputs of all structures, in the order of their atoms.

    Attributes:
        energies: eV, without atomic references.
        forces: eV/Å.
        virials: eV.
        extras: whatever else the graph has, digested.
    """

    energies: Float64[np.ndarray, " atoms"]
    forces: Float64[np.ndarray, "atoms 3"]
    virials: Float64[np.ndarray, "atoms 3 3"]
    extras: Mapping[str, np.ndarray]


def answered(engine: Engine, batches: Sequence[Batch]) -> AtomResults:
    """Run batches, and put what comes back in the order of the structures.

    Args:
        engine: an `Evaluator`.
        batches: of all structures.

    Raises:
        EngineError: the engine failed.
    """
    atoms = sum(len(batch.rows) for batch in batches)
    energies, forces, virials = np.empty(atoms), np.empty((atoms, 3)), np.empty((atoms, 3, 3))
    extras: dict[str, np.ndarray] = {}
    for batch in batches:
        with engine.timings.phase("engine"):
            outputs = engine.digested(batch.inputs.atomic_numbers, engine.run(batch.inputs))
        for name, array in outputs.extras.items():
            extras.setdefault(name, np.empty((atoms, *array.shape[1:])))[batch.rows] = array
        energies[batch.rows], forces[batch.rows] = outputs.atomic_energies, outputs.forces
        virials[batch.rows] = outputs.virials
    return AtomResults(energies, forces, virials, extras)


@dataclass(frozen=True)
class _Frame:
    """All structures at a step, as `ReplicaList.batches` takes them."""

    numbers: Int[np.ndarray, " atoms"]
    positions: Float64[np.ndarray, "atoms 3"]
    cells: Float64[np.ndarray, "systems 3 3"]
    periodic: Bool[np.ndarray, "3"]
    starts: Int[np.ndarray, " bounds"]

    def rows(self, system: int) -> slice:
        """Of the atoms of one structure."""
        return slice(int(self.starts[system]), int(self.starts[system + 1]))

    def atoms(self, system: int) -> Atoms:
        """One structure."""
        rows = self.rows(system)
        return Atoms(self.numbers[rows], self.positions[rows], cell=self.cells[system], pbc=self.periodic)


class ReplicaList:
    """Graph inputs of many structures that move.

    Args:
        cutoff: Å.
        skin: Å; 0 searches at every step.
        batch_slots: atoms x slots of a batch.
        most_atoms: of a batch, or None.
        dtype: of displacements and mask.

    Attributes:
        searches: how many structures were searched so far.
    """

    def __init__(
        self,
        cutoff: float,
        skin: float,
        batch_slots: int,
        most_atoms: int | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.cutoff, self.skin, self.dtype, self.searches = cutoff, skin, dtype, 0
        self._batch_slots, self._most_atoms = batch_slots, most_atoms
        self._key: tuple[bytes, ...] = ()
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
        now = _Frame(numbers, positions, cells, periodic, starts)
        key = (numbers.tobytes(), starts.tobytes(), periodic.tobytes())
        if key != self._key:
            self._key = key
            self._begin(now)
        try:
            if stale := self._stale(now):
                for system in stale:
                    self._search(now, system)
                self._arrange(now, stale)
            for batch in self._batches:
                self._renew(batch, now)
        except StructureError:
            self._key = ()  # what was half done must not be believed
            raise
        return self._batches

    def _begin(self, now: _Frame) -> None:
        """Forget everything: atoms that are nowhere are covered by nothing."""
        self._positions = np.full_like(now.positions, np.nan)
        self._cells, self._completed = now.cells.copy(), now.cells.copy()
        self._pairs: list[Pairs] = [NOTHING] * len(now.cells)
        self._batches = []

    def _stale(self, now: _Frame) -> list[int]:
        """Structures that must be searched; one that diverged is, and then refused."""
        moved = now.positions - self._positions
        farthest = np.sqrt(np.maximum.reduceat(np.einsum("ac,ac->a", moved, moved), now.starts[:-1]))
        covered = slack(1.0, farthest, self.cutoff, self.skin) >= 0
        changed: list[int] = np.flatnonzero((now.cells != self._cells)[:, now.periodic].any((1, 2))).tolist()
        for system in changed:
            atoms, before = now.atoms(system), self._positions[now.rows(system)]
            covered[system] = bool(np.isfinite(now.cells[system]).all()) and still_covered(
                before, self._completed[system], atoms.positions, periodic_cell(atoms), self.cutoff, self.skin
            )
        stale: list[int] = np.flatnonzero(~covered).tolist()
        return stale

    def _search(self, now: _Frame, system: int) -> None:
        self.searches += 1
        try:
            atoms = check_structure(now.atoms(system))
            found = find_pairs(atoms, self.cutoff + self.skin)
        except StructureError as error:
            raise StructureError(f"Structure {system}: {error}") from error
        self._pairs[system], self._completed[system] = found.pairs, found.cell
        self._positions[now.rows(system)], self._cells[system] = atoms.positions, now.cells[system]

    def _arrange(self, now: _Frame, stale: list[int]) -> None:
        """Lay out the batches that hold structures that were searched."""
        if self._batches:
            changed = set(stale)
            for index, batch in enumerate(self._batches):
                if not changed.isdisjoint(batch.systems):
                    self._batches[index] = self._laid_out(batch.systems, now)
            return
        sizes = [(int(n), slots_for(p.counts())) for n, p in zip(np.diff(now.starts), self._pairs, strict=True)]
        grouping = group(sizes, self._batch_slots, self._most_atoms)
        self._batches = [self._laid_out(sorted(systems), now) for systems in grouping]

    def _laid_out(self, systems: list[int], now: _Frame) -> Batch:
        rows = [np.arange(now.starts[system], now.starts[system + 1]) for system in systems]
        parts, together = [self._pairs[system] for system in systems], np.concatenate(rows)
        owners = np.repeat(np.arange(len(systems)), [len(part.first) for part in parts])
        found = Displacements(Pairs.joined(parts, [len(own) for own in rows]), owners)
        several: dict[str, Any] = {"owners": owners, "structures": len(systems)}
        standing = StandingPairs(as_elements(now.numbers[together]), found, dtype=self.dtype, **several)
        return Batch(systems, together, standing)

    def _renew(self, batch: Batch, now: _Frame) -> None:
        """Displacements and mask of now."""
        nearest = batch.standing.renew(now.positions[batch.rows], now.cells[batch.systems], self.cutoff)
        if nearest.distance < ONE_SPOT:
            system = int(np.searchsorted(now.starts, batch.rows[nearest.one], side="right")) - 1
            raise StructureError(
                f"Structure {system}: two atoms are on one spot, {nearest.distance:.2e} Å apart. A simulation that "
                "got here has diverged; use a shorter time step."
            )
