"""A watch over uncertainties: it warns once of results beyond a limit, and counts them all."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from painn_deploy.export.errors import BundleError
from painn_deploy.export.fields import FORCES_UNCERTAINTY

__all__ = ["RATIO", "Doubts", "UncertaintyWarning", "check_limit"]

RATIO = "uncertainty_ratio"
"""Name of the result that a limit is for."""


class UncertaintyWarning(UserWarning):
    """A structure is less certain than the limit that the user set."""


def check_limit(limit: float, name: str, names: Sequence[str], source: object) -> float:
    """Refuse a limit that makes no sense, or that nothing can be held against.

    Args:
        limit: as often the calibration's own uncertainty.
        name: of the option, for messages.
        names: of results that the bundle adds to the usual ones.
        source: of the results: the bundle.

    Raises:
        ValueError: it is no positive number.
        BundleError: results of the bundle have no such ratio.
    """
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
        raise ValueError(
            f"{name} = {limit!r} is no limit: give a number above 0, as often the uncertainty of the frames that it "
            "was calibrated on, such as 2."
        )
    if FORCES_UNCERTAINTY.name in names:
        raise BundleError(
            f"{source} is a committee, whose spread has no calibration that {name} could be a multiple of. Compare "
            "results['energy_uncertainty'] (eV) or results['forces_uncertainty'] (eV/Å) yourself, or export one of "
            "its members with --training."
        )
    if RATIO not in names:
        raise BundleError(
            f"{source} does not say how sure it is, so that {name} can hold nothing against it. Export it again with "
            "`painn-deploy export CHECKPOINT --training FRAMES`, where FRAMES are what the student was trained on, or "
            "some of it."
        )
    return float(limit)


class Doubts:
    """Counts results beyond a limit, and warns of the first.

    Args:
        limit: of `RATIO`; None for no limit.

    Attributes:
        count: results beyond the limit so far.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit, self.count = limit, 0

    def look(self, results: Mapping[str, Any], name: str) -> None:
        """Look at the results of one structure.

        Args:
            results: of it.
            name: of it, for the message.

        Warns:
            UncertaintyWarning: they are the first beyond the limit.
        """
        if self.limit is None or not results.get(RATIO, 0.0) > self.limit:
            return
        self.count += 1
        if self.count == 1:
            warnings.warn(
                f"{name}: its atoms are {results[RATIO]:.3g} times as uncertain as those of the calibration's "
                f"frames, and the limit is {self.limit:g}. Further ones are counted, and not named.",
                UncertaintyWarning,
                stacklevel=2,
            )
