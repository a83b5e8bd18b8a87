"""Which slots are the two ends of a pair: what a graph needs to compute filters once a pair."""

import numpy as np
from jaxtyping import Int32

from painn_deploy.engines.contract import check_pairing
from painn_deploy.engines.known import Known
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
    check_pairing(flat, own)
    pairs = (flat > own).nonzero()[0].astype(np.int32)
    if 2 * len(pairs) < flat.size:
        pairs = np.append(pairs, (flat == own).argmax()).astype(np.int32)
    of_slot = np.full(flat.size, len(pairs) - 1, np.int32)
    of_slot[pairs] = of_slot[flat[pairs]] = own[: len(pairs)]
    if len(pairs) < least:
        pairs = np.resize(pairs, least)
    return PairInputs(pairs, np.ascontiguousarray(of_slot.reshape(reverse.shape).T))


class KnownPairs(Known[PairInputs]):
    """`pair_inputs`, kept for arrays in which nothing can change while they live."""

    def of(self, reverse: Int32[np.ndarray, "atoms slots"], least: int = 1) -> PairInputs:
        """As `pair_inputs`; the arrays may be those of a call before, and must not be written into.

        Args:
            reverse: as in the graph contract.
            least: how many pairs there must be; the last is repeated.

        Raises:
            ShapeError: `reverse` does not lead back from where it leads.
        """
        return self.made_of(reverse, least, lambda: pair_inputs(reverse, least))
