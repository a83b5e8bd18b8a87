"""The drift of an energy that dynamics should conserve, with the uncertainty that its fluctuations leave.

That uncertainty is estimated in two ways. In a short trajectory, of a few picoseconds, a drift may bend: `Drift.of`
subtracts a cubic, and counts one point in every correlation length of the remainder. In a long one slow fluctuations
outlast that length, and a cubic would hide them: `Drift.of_blocks` takes the scatter of the means of long blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["Drift"]

LEAST_FOR_A_LINE, LEAST_FOR_ITS_UNCERTAINTY = 3, 8
"""Points: fewer leave the slope of a line, or its uncertainty, unknown."""


@dataclass(frozen=True)
class Drift:
    """A straight line through the total energy along a trajectory without a thermostat.

    Attributes:
        times: ps [points].
        energies: meV an atom [points], from any zero.
        slope: meV/atom/ps, of the line; NaN if there are too few points for one.
        uncertainty: meV/atom/ps, one standard deviation of the slope; infinite if there are too few points to tell.
        fluctuation: meV/atom, standard deviation about the line.
    """

    times: Float[np.ndarray, " points"]
    energies: Float[np.ndarray, " points"]
    slope: float
    uncertainty: float
    fluctuation: float

    @classmethod
    def of(cls, times: Float[np.ndarray, " points"], energies: Float[np.ndarray, " points"]) -> "Drift":
        """Fit a line to all points of a short trajectory; if it diverged, all three figures are infinite.

        Args:
            times: ps [points].
            energies: meV an atom [points]; NaN or infinite where the trajectory diverged.
        """
        if not np.isfinite(energies).all():
            return cls(times, energies, float("inf"), float("inf"), float("inf"))
        if len(times) < LEAST_FOR_A_LINE:
            return cls(times, energies, float("nan"), float("inf"), float("nan"))
        slope, start = np.polyfit(times, energies, 1)
        fluctuation = float((energies - (slope * times + start)).std())
        if len(times) < LEAST_FOR_ITS_UNCERTAINTY:
            return cls(times, energies, float(slope), float("inf"), fluctuation)
        noise = energies - np.polyval(np.polyfit(times, energies, 3), times)  # a drift that bends is no noise
        independent = max(5.0, len(noise) / _correlation_length(noise))
        spread = float(np.sqrt(np.square(noise).mean() * independent / (independent - 4)))
        return cls(times, energies, float(slope), spread / (float(times.std()) * independent**0.5), fluctuation)

    @classmethod
    def of_blocks(
        cls, times: Float[np.ndarray, " points"], energies: Float[np.ndarray, " points"], blocks: int = 10
    ) -> "Drift":
        """Fit a line to the means of equal blocks of a long trajectory.

        The uncertainty is that of a least-squares slope, from the scatter of the means about the line: they are
        independent if a block outlasts every fluctuation (Flyvbjerg and Petersen 1989, doi:10.1063/1.457480).

        Args:
            times: ps [points].
            energies: meV an atom [points].
            blocks: how many.
        """
        middles = np.array([part.mean() for part in np.array_split(times, blocks)])
        means = np.array([part.mean() for part in np.array_split(energies, blocks)])
        (slope, start), covariance = np.polyfit(middles, means, 1, cov=True)
        fluctuation = float((energies - (slope * times + start)).std())
        return cls(times, energies, float(slope), float(np.sqrt(covariance[0, 0])), fluctuation)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; a figure that is not finite becomes None."""
        values = {k: v if np.isfinite(v) else None for k, v in vars(self).items() if isinstance(v, float)}
        return values | {"times": self.times.tolist(), "energies": self.energies.tolist()}


def _correlation_length(values: Float[np.ndarray, " points"]) -> float:
    """How many neighbouring points count as one: 1 + 2 Σ of the autocorrelation until it first vanishes."""
    size = len(values)
    spectrum = np.fft.rfft(values, 2 * size)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[:size]
    if correlation[0] <= 0:
        return 1.0
    correlation /= correlation[0]
    negative = np.flatnonzero(correlation <= 0)
    end = int(negative[0]) if len(negative) else size
    return float(1 + 2 * correlation[1:end].sum())
