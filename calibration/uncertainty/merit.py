"""How good uncertainties are: whether the uncertain are the wrong ones, and whether errors are as large as they say."""

import numpy as np
from jaxtyping import Bool, Float, Float64

__all__ = ["COVERED", "DEVIATIONS", "ONE_SIGMA", "coverage", "rank_correlation", "ranks", "separation"]

COVERED, DEVIATIONS = 0.95, 1.96
"""Of errors, within so many standard deviations of a Gaussian."""

ONE_SIGMA = 0.6827
"""Of a Gaussian's errors, within one standard deviation."""


def ranks(values: Float[np.ndarray, " values"]) -> Float64[np.ndarray, " values"]:
    """From 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], dtype=np.float64)


def rank_correlation(one: Float[np.ndarray, " values"], other: Float[np.ndarray, " values"]) -> float:
    """Spearman's; NaN where all values of one are the same.

    Args:
        one: values.
        other: of the same things.
    """
    first, second = ranks(one), ranks(other)
    if not first.std() * second.std() > 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def separation(score: Float[np.ndarray, " values"], wanted: Bool[np.ndarray, " values"]) -> float:
    """Area under the curve of finding what is wanted by a high score; NaN where all or nothing is wanted.

    Args:
        score: of each thing.
        wanted: whether it should be found.
    """
    found, others = int(wanted.sum()), int((~wanted).sum())
    if not found or not others:
        return float("nan")
    return float((ranks(score)[wanted].sum() - found * (found + 1) / 2) / (found * others))


def coverage(z: Float[np.ndarray, " values"]) -> tuple[float, float]:
    """Shares of errors within one and within 1.96 standard deviations: of a Gaussian 0.68 and 0.95.

    Args:
        z: errors over uncertainties.
    """
    return float((np.abs(z) < 1).mean()), float((np.abs(z) < DEVIATIONS).mean())
