"""Which rank owns an atom, and the way of what was computed for it back to there."""

import numpy as np
from jaxtyping import Float64, Int64

from painn_deploy.export.errors import EngineError
from painn_deploy.runtime.motion.ranks import Ranks

__all__ = ["Owners"]


class Owners:
    """The owners of the atoms that a rank evaluates for others, and whom it owns atoms for.

    Made by all ranks together. No rank holds a list of all atoms: that of tag t is looked up at rank t modulo their
    number.

    Args:
        ranks: that the atoms are divided among.
        owned: tags of this rank's own atoms, rising.
        foreign: tags of other ranks' atoms that it evaluates.

    Raises:
        EngineError: no rank owns one of these, or two own the same.
    """

    def __init__(
        self, ranks: Ranks, owned: Int64[np.ndarray, " owned"], foreign: Int64[np.ndarray, " foreign"]
    ) -> None:
        self._ranks = ranks
        entered = ranks.exchanged(_parts(owned, owned % ranks.size, ranks.size))
        tags = np.concatenate(entered)
        holders = np.repeat(np.arange(ranks.size), [len(part) for part in entered])
        order = np.argsort(tags, kind="stable")
        tags, holders = tags[order], holders[order]
        keepers = foreign % ranks.size
        asked = ranks.exchanged(_parts(foreign, keepers, ranks.size))
        with ranks.agreed():
            if (twice := tags[1:][tags[1:] == tags[:-1]]).size:
                raise EngineError(f"Two MPI ranks of LAMMPS own an atom of the ID {twice[0]}.")
            answers = [_looked_up(tags, holders, part) for part in asked]
        owners = np.empty(len(foreign), np.int64)
        owners[np.argsort(keepers, kind="stable")] = np.concatenate(ranks.exchanged(answers))
        self._order = np.argsort(owners, kind="stable")
        wanted = ranks.exchanged(_parts(foreign, owners, ranks.size))
        self._counts = np.bincount(owners, minlength=ranks.size)
        self._coming = np.array([len(part) for part in wanted])
        self._places = [np.searchsorted(owned, part) for part in wanted]

    def add(self, foreign: Float64[np.ndarray, "foreign width"], owned: Float64[np.ndarray, "owned width"]) -> None:
        """Add rows of other ranks' atoms to those ranks' rows, and what others have for this one's to `owned`.

        The order of the sum is that of ranks, so that the same division gives the same bits.

        Args:
            foreign: of the tags that were given.
            owned: of own atoms; added to in place.
        """
        arrived = self._ranks.sent(foreign[self._order], self._counts, self._coming)
        for places, rows in zip(self._places, arrived, strict=True):
            owned[places] += rows  # of one sender no atom comes twice


def _parts(
    tags: Int64[np.ndarray, " tags"], ranks: Int64[np.ndarray, " tags"], size: int
) -> list[Int64[np.ndarray, " part"]]:
    """Tags by the rank that each goes to, in the order in which they are."""
    return np.split(tags[np.argsort(ranks, kind="stable")], np.cumsum(np.bincount(ranks, minlength=size))[:-1])


def _looked_up(
    tags: Int64[np.ndarray, " tags"], holders: Int64[np.ndarray, " tags"], asked: Int64[np.ndarray, " asked"]
) -> Int64[np.ndarray, " asked"]:
    """Who holds each tag.

    Args:
        tags: that are known, rising.
        holders: of these.
        asked: tags.
    """
    places = np.searchsorted(tags, asked)
    found = places < len(tags)
    found[found] = tags[places[found]] == asked[found]
    if not found.all():
        raise EngineError(f"No MPI rank of LAMMPS owns the atom of the ID {asked[~found][0]} any more: it was lost.")
    return holders[places]
