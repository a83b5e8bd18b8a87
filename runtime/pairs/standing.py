"""`StandingPairs`: pairs that stand for many steps, while the atoms move."""

import numpy as np
from jaxtyping import Float64, Int32, Int64
from numpy.typing import DTypeLike

from painn_deploy.engines.session import ResidentGraph
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.matrix import NeighbourMatrix
from painn_deploy.runtime.neighbours import Displacements, Nearest
from painn_deploy.runtime.pairs import compiled
from painn_deploy.runtime.pairs.images import image_vectors
from painn_deploy.runtime.pairs.standing_images import ImageTable

__all__ = ["StandingPairs"]

_NO_TABLE = np.empty((0, 3))


class StandingPairs:
    """Pairs within cutoff and skin, and the matrix that displacements and mask are written into at every step.

    The matrix's `reverse` is closed for writing. As long as it is the same array, the same pairs stand in the same
    slots, so that an engine may keep what it made of it.

    Args:
        numbers: atomic numbers of the rows.
        found: the pairs.
        slot_step: that the number of columns is a multiple of.
        dtype: of displacements and mask.
        owners: which structure each pair is of, from 0, where there are several with cells of their own.
        structures: how many there are.

    Attributes:
        found: the same, with displacements as they were found.
        matrix: of the graph contract.
    """

    def __init__(
        self,
        numbers: Int32[np.ndarray, " atoms"],
        found: Displacements,
        slot_step: int = 1,
        dtype: DTypeLike = np.float32,
        owners: Int64[np.ndarray, " pairs"] | None = None,
        structures: int = 1,
    ) -> None:
        self.found, self.matrix = found, NeighbourMatrix(numbers, found.pairs, slot_step, dtype)
        self.matrix.inputs.reverse.flags.writeable = False
        self._table: ImageTable | None = None
        self._images = np.empty((len(numbers), 0), np.int32)
        if compiled.loops() is not None and found.pairs.shifts is not None:
            shifts, matrix = found.pairs.shifts, self.matrix
            self._table = ImageTable(shifts, np.zeros(len(shifts), np.int64) if owners is None else owners, structures)
            self._images = self._table.in_slots(matrix.forward, matrix.backward, matrix.inputs.mask.shape)

    def renew(
        self, positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "*structures 3 3"], cutoff: float
    ) -> Nearest:
        """Write displacements and mask of now; the nearest pair.

        Args:
            positions: Å.
            cell: completed, Å; one, or one for each structure where there are several.
            cutoff: Å.
        """
        inputs, loops = self.matrix.inputs, compiled.loops()
        if loops is None:
            self.found.form(positions, cell)
            self.write(cutoff)
            return self.found.nearest()
        table = _NO_TABLE if self._table is None else self._table.vectors(cell.reshape(-1, 3, 3))
        standing = inputs.neighbours, self.matrix.filled, self._images
        written = inputs.displacements, inputs.mask
        return Nearest(*loops.renew(positions, *standing, table, loops.square_of(cutoff), *written))

    def write(self, cutoff: float) -> GraphInputs:
        """Inputs of the graph contract, with displacements as they were formed last."""
        return self.matrix.write(self.found.vectors, self.found.within(cutoff))

    def resident(self, cell: Float64[np.ndarray, "3 3"], cutoff: float) -> ResidentGraph:
        """The arrays by which a device forms displacements itself: shifts S·cell of both ends of each pair, in float64.

        Args:
            cell: completed cell of now, Å.
            cutoff: Å.
        """
        matrix, shifts = self.matrix, self.found.pairs.shifts
        inputs, (atoms, slots) = matrix.inputs, matrix.inputs.mask.shape
        images, held = np.zeros((atoms * slots, 3)), np.zeros(atoms * slots, np.uint8)
        if shifts is not None:
            vectors = image_vectors(shifts.astype(np.float64), cell)
            images[matrix.forward], images[matrix.backward] = vectors, -vectors
        held[matrix.forward] = held[matrix.backward] = 1
        return ResidentGraph(
            inputs.atomic_numbers,
            inputs.neighbours,
            inputs.reverse,
            images.reshape(atoms, slots, 3),
            held.reshape(atoms, slots),
            cutoff,
            inputs.weights,
        )
