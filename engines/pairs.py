"""The two slots of each pair, which a graph needs that computes filters once a pair."""

import numpy as np
from jaxtyping import Int32

from painn_deploy.export.errors import ShapeError
from painn_deploy.export.fields import PairInputs

__all__ = ["pair_inputs"]


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
