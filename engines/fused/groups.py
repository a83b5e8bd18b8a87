"""Groups of rows that no pair leads out of: what is evaluated in one piece, at whatever place in a matrix."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from painn_deploy.engines.contract import check_pairing

__all__ = ["Pieces", "groups_of", "pieces_of", "pieces_of_molecules"]


class Pieces(NamedTuple):
    """Runs of rows that no pair leads out of, and that cannot be cut further.

    Attributes:
        bounds: first row of each, and the number of rows at the end.
        slots: slots that hold a pair before each bound.
    """

    bounds: Int64[np.ndarray, " pieces_and_one"]
    slots: Int64[np.ndarray, " pieces_and_one"]

    @property
    def most_rows(self) -> int:
        """Rows of the largest."""
        return int(np.diff(self.bounds).max())


def pieces_of(reverse: Int32[np.ndarray, "atoms slots"]) -> Pieces:
    """Where a matrix can be cut.

    Args:
        reverse: as in the graph contract.

    Raises:
        ShapeError: `reverse` does not lead back from where it leads.
    """
    atoms, slots = reverse.shape
    flat, own = reverse.reshape(-1), np.arange(reverse.size, dtype=np.int32)
    check_pairing(flat, own)
    farthest = np.maximum.accumulate(
        reverse.max(1) // slots
    )  # a pair is seen from both ends: no row looks back further
    bounds = np.append(0, np.flatnonzero(farthest <= np.arange(atoms)) + 1)
    stored = np.append(0, np.cumsum((reverse != own.reshape(reverse.shape)).sum(1)))
    return Pieces(bounds, stored[bounds])


def pieces_of_molecules(starts: Int64[np.ndarray, " molecules"], atoms: int, rows: int) -> Pieces:
    """The same for molecules side by side, each of which has all its pairs.

    Args:
        starts: first row of each molecule.
        atoms: rows of all.
        rows: of the matrix, at least as many; each row of padding is a piece.
    """
    bounds = np.concatenate([starts, np.arange(atoms, rows + 1)])
    sizes = np.diff(bounds)
    return Pieces(bounds, np.append(0, np.cumsum(sizes * (sizes - 1))))


def groups_of(pieces: Pieces, rows: int, slots: int) -> Int32[np.ndarray, " groups_and_two"]:
    """Pieces side by side put into groups, as many into each as fit; a piece that is larger is a group by itself.

    Args:
        pieces: of the matrix.
        rows: of a group.
        slots: of a group that hold a pair.

    Returns:
        How many groups there are, the first row of each, and the number of rows at the end.
    """
    bounds, stored = pieces
    by_rows = np.searchsorted(bounds, bounds[:-1] + rows, side="right") - 1
    by_slots = np.searchsorted(stored, stored[:-1] + slots, side="right") - 1
    following = np.maximum(np.minimum(by_rows, by_slots), np.arange(1, len(bounds))).tolist()
    chosen, piece = [0], 0
    while piece < len(following):
        piece = following[piece]
        chosen.append(piece)
    return np.concatenate([[len(chosen) - 1], bounds[chosen]]).astype(np.int32)
