"""Which slots are the two ends of a pair: what a graph needs to compute filters once a pair."""

import weakref

import numpy as np
from jaxtyping import Int32

from painn_deploy.export.errors import ShapeError
from painn_deploy.export.fields import PairInputs

__all__ = ["KnownPairs", "pair_inputs"]


def pair_inputs(reverse: Int32[np.ndarray, "atoms slots"], least: int = 1) -> PairInputs:
    """The inputs of `PAIR_INPUTS` for a graph.

    Args:
        reverse: as in the graph contract.
        least: how many pairs there must be; the last is repeated.

    Raises:
        ShapeError: `reverse` does not lead back from where it leads.
    """
    flat = reverse.reshape(-1)
    own = np.arange(flat.size, dtype=np.int32)
    if flat.min() < 0 or flat.max() >= flat.size or not np.array_equal(flat[flat], own):
        raise ShapeError("The input reverse is no pairing: the reverse of a slot's reverse must be that slot.")
    pairs = (flat > own).nonzero()[0].astype(np.int32)
    if 2 * len(pairs) < flat.size:
        pairs = np.append(pairs, (flat == own).argmax()).astype(np.int32)
    of_slot = np.full(flat.size, len(pairs) - 1, np.int32)
    of_slot[pairs] = of_slot[flat[pairs]] = own[: len(pairs)]
    if len(pairs) < least:
        pairs = np.resize(pairs, least)
    return PairInputs(pairs, np.ascontiguousarray(of_slot.reshape(reverse.shape).T))


class KnownPairs:
    """`pair_inputs`, kept for arrays in which nothing can change while they live.

    While neighbours stand, a Verlet list hands over the very same `reverse` at every step. It is known again by
    identity, where that is proof: where it is closed for writing and holds its own memory, so that neither it nor an
    array that it is a view of can be written. A Verlet list closes its `reverse`, and makes another one when neighbours
    change. What a caller may write into is looked at anew each time. Arrays are not kept alive for this: each is
    forgotten as it is freed, before another one can have its place.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[weakref.ref[np.ndarray], PairInputs]] = {}

    def of(self, reverse: Int32[np.ndarray, "atoms slots"], least: int = 1) -> PairInputs:
        """As `pair_inputs`; the arrays may be those of a call before, and must not be written into.

        Args:
            reverse: as in the graph contract.
            least: how many pairs there must be; the last is repeated.

        Raises:
            ShapeError: `reverse` does not lead back from where it leads.
        """
        if reverse.flags.writeable or reverse.base is not None:
            return pair_inputs(reverse, least)
        key, known = (id(reverse), least), self._known
        if key not in known or known[key][0]() is not reverse:
            found = pair_inputs(reverse, least)
            known[key] = weakref.ref(reverse, lambda _: known.pop(key, None)), found
        return known[key][1]
