"""Images of pairs that stand: a number for each, and a table of displacements that is made again with the cell."""

import numpy as np
from jaxtyping import Float64, Int32, Int64

from painn_deploy.runtime.pairs.images import image_vectors

__all__ = ["ImageTable"]

MOST_ROWS = 2**16
"""Of a table that holds every image up to the farthest one; where atoms were never wrapped, only those that occur."""


class ImageTable:
    """Which image each pair's other end is, seen from both, in a few numbers.

    Args:
        shifts: S of each pair, seen from its first atom, whole cells.
        owners: structure of each pair, from 0.
        structures: how many there are.

    Attributes:
        forward: row of the table of each pair, seen from its first atom.
        backward: and from its second.
    """

    def __init__(
        self, shifts: Int64[np.ndarray, "pairs 3"], owners: Int64[np.ndarray, " pairs"], structures: int
    ) -> None:
        most = np.abs(shifts).max(axis=0, initial=0)
        widths = 2 * most + 1
        rows = structures * float(np.prod(widths.astype(np.float64)))
        if rows <= MOST_ROWS:
            a, b, c = widths.tolist()
            codes = ((shifts[:, 0] + most[0]) * b + (shifts[:, 1] + most[1])) * c + (shifts[:, 2] + most[2])
            self.forward, self.backward = owners * (a * b * c) + codes, owners * (a * b * c) + (a * b * c - 1 - codes)
            grid = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most.tolist()), indexing="ij"), axis=-1)
            self._shifts: np.ndarray = np.tile(grid.reshape(-1, 3), (structures, 1)).astype(np.float64)
            self._owners: np.ndarray = np.repeat(np.arange(structures), a * b * c)
        else:
            both = np.concatenate([shifts, -shifts])
            table, places = np.unique(np.column_stack([np.tile(owners, 2), both]), axis=0, return_inverse=True)
            self.forward, self.backward = places.reshape(2, -1)
            self._owners, self._shifts = table[:, 0], table[:, 1:].astype(np.float64)
        self._cells: np.ndarray | None = None
        self._vectors: np.ndarray = np.empty((0, 3))

    def in_slots(
        self, forward: Int64[np.ndarray, " pairs"], backward: Int64[np.ndarray, " pairs"], shape: tuple[int, int]
    ) -> Int32[np.ndarray, "atoms slots"]:
        """Row of the table of each slot; 0 in padding.

        Args:
            forward: flat slot of each pair seen from its first atom.
            backward: and from its second.
            shape: of the matrix.
        """
        images = np.zeros(shape, np.int32)
        images.reshape(-1)[forward], images.reshape(-1)[backward] = self.forward, self.backward
        return images

    def vectors(self, cells: Float64[np.ndarray, "structures 3 3"]) -> Float64[np.ndarray, "images 3"]:
        """The table: displacement of each image, Å.

        Args:
            cells: of now, Å.
        """
        if self._cells is None or not np.array_equal(cells, self._cells):
            self._cells, self._vectors = cells.copy(), image_vectors(self._shifts, cells[self._owners])
        return self._vectors
