"""A watch over uncertainties: it warns once of results beyond a limit, and counts them all."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

from painn_deploy.export.errors import BundleError
from painn_deploy.runtime.uncertainty.scale import RATIO, VERDICT
from painn_deploy.runtime.uncertainty.source import Uncertainty

__all__ = ["THRESHOLD", "Doubts", "Limit", "UncertaintyWarning", "check_sense", "checked_limit", "without_uncertainty"]

THRESHOLD = "threshold"
"""A limit that is the bundle's own: 99 % of the frames that calibrated it are up to there."""

Limit = float | int | str
"""How many times the typical uncertainty of the calibration's frames a result may have; or `THRESHOLD`."""


class UncertaintyWarning(UserWarning):
    """A structure is less certain than the limit that the user set."""


def check_sense(limit: Limit, name: str) -> None:
    """Refuse a limit that makes no sense of any bundle.

    Args:
        limit: see `Limit`.
        name: of the option, for the message.

    Raises:
        ValueError: it is no positive number, and not `THRESHOLD`.
    """
    if limit != THRESHOLD and (isinstance(limit, bool | str) or not 0 < limit < math.inf):
        raise ValueError(
            f"{name} = {limit!r} is no limit: give a number above 0, as often the uncertainty of the frames that it "
            f"was calibrated on, such as 2, or {THRESHOLD!r} for what 99 % of these frames are up to."
        )


def checked_limit(limit: Limit, name: str, uncertainty: Uncertainty | None, source: object) -> float:
    """A limit as a number; what makes no sense, and what nothing can be held against, is refused.

    Args:
        limit: see `Limit`.
        name: of the option, for messages.
        uncertainty: of the bundle; None where it has none.
        source: of the results: the bundle.

    Raises:
        ValueError: it is no positive number, and not `THRESHOLD`.
        BundleError: results of the bundle have no such ratio.
    """
    check_sense(limit, name)
    if uncertainty is None:
        raise without_uncertainty(source, name)
    if uncertainty.scale is None:
        raise BundleError(
            f"{source} is a committee whose spread no frames have calibrated, so that {name} can be no multiple of "
            "anything. Export it again with --training FRAMES, where FRAMES are what its members were trained on, or "
            "some of it; or compare results['energy_uncertainty'] and results['forces_uncertainty'] yourself."
        )
    return uncertainty.scale.threshold if limit == THRESHOLD else float(limit)


def without_uncertainty(source: object, name: str) -> BundleError:
    """The error of a bundle that an option wants an uncertainty of, and that has none.

    Args:
        source: the bundle.
        name: of the option.
    """
    return BundleError(
        f"{source} does not say how sure it is, so that {name} has nothing to go by. Export it again with "
        "`painn-deploy export CHECKPOINT --training FRAMES`, where FRAMES are what the student was trained on, or some "
        "of it."
    )


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
                f"{name} is {results[VERDICT]}: its atoms are {results[RATIO]:.4g} times as uncertain as those of the "
                f"calibration's frames, and the limit is {self.limit:.4g}. Further ones are counted, and not named.",
                UncertaintyWarning,
                stacklevel=2,
            )
