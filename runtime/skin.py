"""A Verlet list: pairs found once within cutoff and skin, and reused while it is proved that none can be missing.

The proof. Let R0, H0 be positions and (completed) cell when the pairs were found, R, H those of now, and A = H0⁻¹H.
A pair's displacement was d0 = R0_j - R0_i + S·H0 and is d = R_j - R_i + S·H = d0·A + u_j - u_i, u_i = R_i - R0_i·A. So

    |d| ≥ σ_min(A)·|d0| - 2·max|u|,

and a pair that was not stored, |d0| ≥ cutoff + skin, is no edge now as long as

    σ_min(A)·(cutoff + skin) - 2·max|u| ≥ cutoff.

With a fixed cell, A = 1, this is the half-skin criterion. Whether a stored pair is an edge is decided anew from d in
float64 at every step, so that results are those of a fresh search.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from jaxtyping import Float64

from painn_deploy.engines.session import ResidentGraph
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.neighbours import (
    LocalGraph,
    Pairs,
    SlotLayout,
    check_structure,
    find_pairs,
    join,
    periodic_cell,
    refuse_one_spot,
)

__all__ = ["DEFAULT_SKIN", "ROUNDING", "WIDER", "VerletList", "still_covered"]

DEFAULT_SKIN = 0.5
"""Å; of 0.25 to 1.5 Å as good as any for molecules at 300 K (docs/batching.md)."""

WIDER = 1.15
"""Columns of the matrix with the default skin, over those without, on a CPU; past it an engine's time on them exceeds
that of the searches that are saved. A molecule not much longer than the cutoff stays below, a liquid or a crystal does
not. On a GPU, whose evaluation takes a fraction of a search's time, the skin is always worth it."""

ROUNDING = 1e-8
"""Å; what the criterion yields to the rounding of its own numbers."""


@dataclass
class _Stored:
    """What was found, and for which structure."""

    numbers: np.ndarray
    periodic: np.ndarray
    positions: Float64[np.ndarray, "atoms 3"]
    cell: Float64[np.ndarray, "3 3"]
    pairs: Pairs
    layout: SlotLayout
    inputs: GraphInputs
    workspace: "_Workspace"
    resident: ResidentGraph | None = None
    resident_cell: Float64[np.ndarray, "3 3"] | None = None


class _Workspace:
    """Arrays over pairs that every step writes into again, so that a step asks for no memory of their size."""

    def __init__(self, pairs: Pairs) -> None:
        count = len(pairs.first)
        self._vectors, self._scratch, self._rounded = (
            np.empty((count, 3)),
            np.empty((count, 3)),
            np.empty((count, 3), "f4"),
        )
        self._squared, self._distances, self._edges = np.empty(count), np.empty(count), np.empty(count, bool)
        self._shifts = None if pairs.shifts is None else pairs.shifts.astype(np.float64)

    def renew(self, stored: _Stored, atoms: Atoms, cutoff: float) -> None:
        """Displacements and mask of now, to the bit those of `Pairs.displacements` and `SlotLayout.scatter`.

        Raises:
            StructureError: two atoms are on one spot.
        """
        pairs, layout, inputs = stored.pairs, stored.layout, stored.inputs
        np.take(atoms.positions, pairs.second, axis=0, out=self._vectors, mode="clip")  # other modes make a copy
        np.take(atoms.positions, pairs.first, axis=0, out=self._scratch, mode="clip")
        np.subtract(self._vectors, self._scratch, out=self._vectors)
        if self._shifts is not None:
            np.matmul(self._shifts, np.asarray(atoms.cell), out=self._scratch)
            np.add(self._vectors, self._scratch, out=self._vectors)
        np.einsum("pc,pc->p", self._vectors, self._vectors, out=self._squared)
        refuse_one_spot(atoms, pairs, self._squared)
        np.less(np.sqrt(self._squared, out=self._distances), cutoff, out=self._edges)
        np.copyto(self._rounded, self._vectors, casting="same_kind")
        displacements, mask = inputs.displacements.reshape(-1, 3), inputs.mask.reshape(-1)
        displacements[layout.forward] = self._rounded
        displacements[layout.backward] = np.negative(self._rounded, out=self._rounded)
        mask[layout.forward] = mask[layout.backward] = self._edges


@dataclass
class VerletList:
    """Graph inputs of one structure that moves.

    Attributes:
        cutoff: Å.
        skin: Å; 0 searches at every step; None for `DEFAULT_SKIN` where it widens the matrix little, and else 0.
        slot_step: that the number of columns is a multiple of.
        most_widening: columns with `DEFAULT_SKIN` over those without, up to which it is used where `skin` is None.
        searches: how many searches there were.
        updates: how many steps reused one.
    """

    cutoff: float
    skin: float | None
    slot_step: int = 1
    most_widening: float = WIDER
    searches: int = 0
    updates: int = 0
    _stored: _Stored | None = field(default=None, repr=False)

    @property
    def _reach(self) -> float:
        return DEFAULT_SKIN if self.skin is None else self.skin

    def inputs(self, atoms: Atoms) -> GraphInputs:
        """The contract's inputs for `atoms`; their arrays are overwritten by the next call.

        Raises:
            StructureError: it is nothing that a force field can answer for.
        """
        stored = self._standing(atoms)
        if stored is None:
            return join([LocalGraph.found(atoms, self.cutoff)], slot_step=self.slot_step)
        stored.workspace.renew(stored, atoms, self.cutoff)
        return stored.inputs

    def resident(self, atoms: Atoms, last: ResidentGraph | None) -> ResidentGraph | None:
        """What stays on a device while the neighbours stand; None where there is no skin, and `inputs` must be used.

        Args:
            atoms: the structure.
            last: what was returned before; the very same again as long as it holds.

        Raises:
            StructureError: it is nothing that a force field can answer for.
        """
        stored = self._standing(atoms)
        if stored is None:
            return None
        cell = np.array(atoms.cell)
        same_cell = stored.resident_cell is not None and np.array_equal(cell, stored.resident_cell)
        if last is None or stored.resident is not last or not same_cell:
            stored.resident, stored.resident_cell = _resident(stored, cell, self.cutoff), cell
        return stored.resident

    def _standing(self, atoms: Atoms) -> _Stored | None:
        """Pairs that cover a structure, found now or before; None where every step searches for itself."""
        check_structure(atoms)
        if self.skin == 0:
            self.searches += 1
            return None
        if self._stored is not None and self._covers(self._stored, atoms):
            self.updates += 1
            return self._stored
        self.searches += 1
        self._stored = self._search(atoms)
        if self.skin is None and _widened(self._stored, self.cutoff) > self.most_widening:
            self._stored = None
        return self._stored

    def _search(self, atoms: Atoms) -> _Stored:
        """What is within cutoff and skin."""
        pairs, vectors = find_pairs(atoms, self.cutoff + self._reach)
        layout = SlotLayout.of(pairs.first, pairs.second, len(atoms), slot_step=self.slot_step)
        displacements, mask = layout.scatter(vectors)
        numbers = atoms.numbers.astype(np.int32)
        inputs = GraphInputs(numbers, displacements, layout.neighbours, layout.reverse, mask)
        periodic = np.array(atoms.pbc)
        cell, workspace = periodic_cell(atoms), _Workspace(pairs)
        return _Stored(atoms.numbers.copy(), periodic, atoms.positions.copy(), cell, pairs, layout, inputs, workspace)

    def _covers(self, stored: _Stored, atoms: Atoms) -> bool:
        """Whether no pair can have come within the cutoff unseen."""
        if stored.numbers.tobytes() != atoms.numbers.tobytes() or stored.periodic.tobytes() != atoms.pbc.tobytes():
            return False
        now = stored.cell
        if stored.periodic.any() and not np.array_equal(atoms.cell.array[stored.periodic], now[stored.periodic]):
            now = periodic_cell(atoms)
        return still_covered(stored.positions, stored.cell, atoms.positions, now, self.cutoff, self._reach)


def _resident(stored: _Stored, cell: Float64[np.ndarray, "3 3"], cutoff: float) -> ResidentGraph:
    """Shifts S·cell of both ends of each pair, in float64, and which slots hold a pair."""
    layout, pairs = stored.layout, stored.pairs
    shifts = np.zeros((layout.atoms * layout.slots, 3))
    if pairs.shifts is not None:
        vectors = pairs.shifts.astype(np.float64) @ cell
        shifts[layout.forward], shifts[layout.backward] = vectors, -vectors
    held = np.zeros(layout.atoms * layout.slots, np.uint8)
    held[layout.forward] = held[layout.backward] = 1
    shape = (layout.atoms, layout.slots)
    numbers = stored.inputs.atomic_numbers
    return ResidentGraph(
        numbers, layout.neighbours, layout.reverse, shifts.reshape(*shape, 3), held.reshape(shape), cutoff
    )


def _widened(stored: _Stored, cutoff: float) -> float:
    """Columns of the matrix that the skin asks for, over those that edges alone would."""
    vectors, held = stored.inputs.displacements, stored.inputs.mask > 0
    within = (np.einsum("asc,asc->as", vectors, vectors) < cutoff**2) & held
    return float(held.sum(1).max() / max(1, int(within.sum(1).max())))


def still_covered(
    before: Float64[np.ndarray, "atoms 3"],
    cell_before: Float64[np.ndarray, "3 3"],
    positions: Float64[np.ndarray, "atoms 3"],
    cell: Float64[np.ndarray, "3 3"],
    cutoff: float,
    skin: float,
) -> bool:
    """Whether no pair can have come within the cutoff unseen since all within cutoff and skin were found.

    Args:
        before: positions of then, Å.
        cell_before: completed cell of then (`periodic_cell`), Å.
        positions: of now, Å.
        cell: completed cell of now, Å.
        cutoff: Å.
        skin: Å.
    """
    shrink, expected = 1.0, before
    if cell is not cell_before and not np.array_equal(cell, cell_before):
        deformation = np.linalg.solve(cell_before, cell)
        shrink = float(np.linalg.svd(deformation, compute_uv=False)[-1])
        expected = before @ deformation
    moved = positions - expected
    farthest = math.sqrt(np.einsum("ac,ac->a", moved, moved).max())
    return shrink * (cutoff + skin) - 2 * farthest >= cutoff + ROUNDING
