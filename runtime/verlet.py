"""Verlet lists: pairs found once within cutoff and skin, and reused while it is proved that none can be missing.

The proof. Let R0, H0 be positions and (completed) cell when the pairs were found, R, H those of now, and A = H0⁻¹H.
A pair's displacement was d0 = R0_j - R0_i + S·H0 and is d = R_j - R_i + S·H = d0·A + u_j - u_i, u_i = R_i - R0_i·A. So

    |d| ≥ σ_min(A)·|d0| - 2·max|u|,

and a pair that was not stored, |d0| ≥ cutoff + skin, is no edge now as long as

    σ_min(A)·(cutoff + skin) - 2·max|u| ≥ cutoff.

With a fixed cell, A = 1, this is the half-skin criterion. Whether a stored pair is an edge is decided anew from d in
float64 at every step, so that results are those of a fresh search.

`VerletList` here follows one structure, `painn_deploy.runtime.replicas.ReplicaList` many at once. They share the
criterion and the pairs that stand. The step is each one's own: as one of many, a molecule would look up its rows and
its cell and be compared as if there were several, which takes half as many array operations again as its whole step.
"""

import math
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from ase import Atoms
from jaxtyping import Float32, Float64
from numpy.typing import DTypeLike

from painn_deploy.engines.session import Admit, Boxes, Finder, ResidentGraph
from painn_deploy.export.errors import ShapeError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.matrix import NeighbourMatrix
from painn_deploy.runtime.neighbours import Displacements, Pairs, find_pairs, slots_for
from painn_deploy.runtime.pairs.boxes import boxes_of
from painn_deploy.runtime.pairs.standing import StandingPairs
from painn_deploy.runtime.structures import as_elements, periodic_cell, refuse_one_spot

__all__ = ["DEFAULT_SKIN", "MANY", "WIDER", "VerletList", "slack", "still_covered"]

DEFAULT_SKIN = 0.5
"""Å; of 0.25 to 1.5 Å as good as any for molecules at 300 K (docs/dynamics.md)."""

WIDER = 1.15
"""Columns of the matrix with the default skin, over those without, on a CPU; past it an engine's time on them exceeds
that of the searches that are saved. A molecule not much longer than the cutoff stays below, a liquid or a crystal does
not. On a GPU, whose evaluation takes a fraction of a search's time, the skin is always worth it."""

ROUNDING = 1e-8
"""Å; what the criterion yields to the rounding of its own numbers."""

ASKED_AGAIN = 0.05
"""Change of the volume, as a share of it, past which it is asked again whether the default skin is worth it. So far a
neighbour moves by 1.7 % of its distance, which at a cutoff of 5 Å is a sixth of the default skin: what lies in the skin
changes no faster. Dynamics at constant pressure stay within it; a compression to half the volume asks 13 times."""

MANY = 128
"""Atoms from which on a device that can finds the neighbours. Those of fewer are found here in less than a millisecond,
about as long as it takes to ask three times for an answer. Not measured on a GPU yet."""

F = TypeVar("F", float, np.ndarray)


def slack(shrink: float, farthest: F, cutoff: float, skin: float) -> F:
    """The margin of the criterion, Å: the pairs cover a structure where it is 0 or more.

    Args:
        shrink: σ_min(A), 1 where the cell has not changed.
        farthest: max|u| in Å, of one structure or of each of several; NaN, of one that diverged, covers nothing.
        cutoff: Å.
        skin: Å.
    """
    return (shrink * (cutoff + skin) - 2 * farthest) - (cutoff + ROUNDING)


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
    return slack(shrink, farthest, cutoff, skin) >= 0


@dataclass(frozen=True)
class _Seen:
    """A structure that was searched: its atomic numbers, periodic directions and completed cell."""

    numbers: bytes
    periodic: bytes
    cell: Float64[np.ndarray, "3 3"]

    def resembles(self, atoms: Atoms) -> bool:
        """Whether a structure has the same atoms, and repeats in the same directions."""
        return bool(self.numbers == atoms.numbers.tobytes() and self.periodic == atoms.pbc.tobytes())

    def cell_of(self, atoms: Atoms) -> Float64[np.ndarray, "3 3"]:
        """The completed cell of a structure that resembles it; where it has not changed, the very same array."""
        if not any(self.periodic):
            return self.cell
        periodic = atoms.pbc
        return self.cell if np.array_equal(atoms.cell.array[periodic], self.cell[periodic]) else periodic_cell(atoms)

    def is_like(self, atoms: Atoms) -> bool:
        """Whether a structure resembles it in about the same volume."""
        if not self.resembles(atoms):
            return False
        cell = self.cell_of(atoms)
        change = 0.0 if cell is self.cell else abs(np.linalg.det(cell) / np.linalg.det(self.cell)) - 1
        return bool(abs(change) <= ASKED_AGAIN)


@dataclass
class _Stored:
    """The pairs that were found, and where; `now` is the completed cell of the last step."""

    seen: _Seen
    positions: Float64[np.ndarray, "atoms 3"]
    now: Float64[np.ndarray, "3 3"]
    standing: StandingPairs
    resident: ResidentGraph | None = None
    resident_cell: Float64[np.ndarray, "3 3"] | None = None

    def covers(self, atoms: Atoms, cutoff: float, skin: float) -> bool:
        """Whether no pair can have come within the cutoff unseen."""
        if not self.seen.resembles(atoms):
            return False
        self.now = self.seen.cell_of(atoms)
        return still_covered(self.positions, self.seen.cell, atoms.positions, self.now, cutoff, skin)


@dataclass
class VerletList:
    """Graph inputs of one structure that moves.

    With `skin=None` the first search is a wide one, which decides whether the default skin is worth it; to a device
    that finds neighbours it always is. Where it is not, that is remembered, and every step makes one search of its own,
    as with `skin=0`. The first step does so too, after the wide one, because the order of pairs depends on how far one
    searches: only so does one structure give the same bits at every step. It is asked again when the composition or the
    periodic directions change, or the volume by more than `ASKED_AGAIN`.

    Attributes:
        cutoff: Å.
        skin: Å; 0 searches at every step; None for `DEFAULT_SKIN` where it widens the matrix little, and else 0.
        slot_step: that the number of columns is a multiple of.
        dtype: of displacements and mask, see `painn_deploy.export.fields.real_type`.
        most_widening: columns with `DEFAULT_SKIN` over those without, up to which it is used where `skin` is None.
        admit: asked about each new matrix before it is made.
        finder: finds the neighbours of what has `MANY` atoms or more on a device; None where there is none.
        weights: of the atoms, as in the graph contract; None for ones. `weigh` sets others.
        searches: how many searches there were.
        updates: how many steps reused one.
    """

    cutoff: float
    skin: float | None
    slot_step: int = 1
    dtype: DTypeLike = np.float32
    most_widening: float = WIDER
    admit: Admit = lambda atoms, slots: None  # noqa: ARG005
    finder: Finder | None = None
    weights: Float32[np.ndarray, " atoms"] | None = None
    searches: int = 0
    updates: int = 0
    _stored: _Stored | None = field(default=None, repr=False)
    _widened: tuple[_Seen, float] | None = field(default=None, repr=False)  # too much, and by which factor
    _boxed: tuple[_Seen, Boxes] | None = field(default=None, repr=False)  # what a device found, and of what

    @property
    def _reach(self) -> float:
        return DEFAULT_SKIN if self.skin is None else self.skin

    def inputs(self, atoms: Atoms) -> GraphInputs:
        """The contract's inputs for `atoms`, which `check_structure` gave back; overwritten by the next call.

        Raises:
            StructureError: two atoms are on one spot, or more are crowded than in any matter.
            ShapeError: as `admit` raises it.
        """
        stored = self._reused(atoms)
        if stored is not None:
            refuse_one_spot(atoms.numbers, *stored.standing.renew(atoms.positions, stored.now, self.cutoff))
            return stored.standing.matrix.inputs
        stored = self._searched(atoms)
        if stored is not None:
            return stored.standing.write(self.cutoff)
        found = self._find(atoms, self.cutoff)
        self._admitted(found.pairs, len(atoms))
        matrix = NeighbourMatrix(as_elements(atoms.numbers), found.pairs, self.slot_step, self.dtype)
        self._weigh(matrix)
        return matrix.write(found.vectors)

    def weigh(self, weights: Float32[np.ndarray, " atoms"]) -> None:
        """Give the atoms other weights, and search again at the next step.

        Args:
            weights: as in the graph contract.
        """
        self.weights, self._stored, self._boxed = weights, None, None

    def resident(self, atoms: Atoms, last: ResidentGraph | Boxes | None) -> ResidentGraph | Boxes | None:
        """What stays on a device while the neighbours stand; None where there is no skin: use `inputs`.

        Args:
            atoms: a structure that `check_structure` gave back.
            last: what was returned before; the very same again as long as it holds.

        Raises:
            StructureError: see `inputs`.
            ShapeError: see `inputs`.
        """
        if self.finder is not None and len(atoms) >= MANY:
            return self._found_on_device(self.finder, atoms)
        stored = self._reused(atoms) or self._searched(atoms)
        if stored is None:
            return None
        same_cell = stored.resident_cell is not None and np.array_equal(stored.now, stored.resident_cell)
        if last is None or stored.resident is not last or not same_cell:
            stored.resident, stored.resident_cell = stored.standing.resident(stored.now, self.cutoff), stored.now
        return stored.resident

    def _reused(self, atoms: Atoms) -> _Stored | None:
        """The pairs found before, where they cover a structure."""
        if self._stored is None or not self._stored.covers(atoms, self.cutoff, self._reach):
            return None
        self.updates += 1
        return self._stored

    def _searched(self, atoms: Atoms) -> _Stored | None:
        """Pairs within cutoff and skin, with displacements of now; None where there is no skin."""
        if self.skin == 0 or self._known_too_wide(atoms):
            return None
        found = self._find(atoms, self.cutoff + self._reach)
        seen, pairs = _Seen(atoms.numbers.tobytes(), atoms.pbc.tobytes(), found.cell), found.pairs
        if self.skin is None:
            within = pairs.only(found.within(self.cutoff))
            widening = slots_for(pairs.counts()) / slots_for(within.counts())
            if widening > self.most_widening:
                self._stored, self._widened = None, (seen, widening)
                return None
        try:
            self._admitted(pairs, len(atoms))
        except ShapeError:
            if self.skin is not None:
                raise
            self._stored, self._widened = None, (seen, math.inf)  # without a skin it may fit
            return None
        standing = StandingPairs(as_elements(atoms.numbers), found, self.slot_step, self.dtype)
        self._weigh(standing.matrix)
        self._stored = _Stored(seen, atoms.positions.copy(), found.cell, standing)
        return self._stored

    def _found_on_device(self, finder: Finder, atoms: Atoms) -> Boxes | None:
        """What the device was given, or finds anew; a changed cell is a new search."""
        if self.skin == 0 or self._known_too_wide(atoms):
            return None
        if self._boxed is not None and self._boxed[0].resembles(atoms):
            seen, boxes = self._boxed
            place = boxes.positions, seen.cell, atoms.positions, seen.cell
            if seen.cell_of(atoms) is seen.cell and still_covered(*place, self.cutoff, self._reach):
                self.updates += 1
                return boxes
        boxes = boxes_of(atoms, self.cutoff, self.cutoff + self._reach, self.weights)
        seen = _Seen(atoms.numbers.tobytes(), atoms.pbc.tobytes(), boxes.cell)
        self.searches, self._boxed = self.searches + 1, None
        try:
            nearest = finder(boxes, self.admit)
        except ShapeError:
            if self.skin is not None:
                raise
            self._widened = (seen, math.inf)  # without a skin it may fit
            return None
        refuse_one_spot(atoms.numbers, *nearest)
        self._boxed = seen, boxes
        return boxes

    def _weigh(self, matrix: NeighbourMatrix) -> None:
        if self.weights is not None:
            matrix.inputs.weights[:] = self.weights  # which a matrix is made with ones of

    def _find(self, atoms: Atoms, reach: float) -> Displacements:
        self.searches += 1
        return find_pairs(atoms, reach)

    def _admitted(self, pairs: Pairs, atoms: int) -> None:
        """Ask whether there may be a matrix before one is made."""
        self.admit(atoms, slots_for(pairs.counts(), self.slot_step))

    def _known_too_wide(self, atoms: Atoms) -> bool:
        """Whether the default skin was found to widen the matrix of such a structure too much."""
        if self._widened is None:
            return False
        seen, widening = self._widened
        return (widening > self.most_widening or widening == math.inf) and seen.is_like(atoms)
