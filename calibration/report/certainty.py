"""Pictures of how good uncertainties are: beside errors of energies and forces, and how many errors they cover."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from painn_deploy.calibration.report.charts import COLOURS, styled_svg
from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.calibration.uncertainty.calibrated import Calibrated
from painn_deploy.calibration.uncertainty.merit import COVERED, DEVIATIONS, ONE_SIGMA

__all__ = ["certainty_chart", "draw_certainty"]

SMALLEST = 1e-3
"""meV an atom and meV/Å: smaller values are drawn there."""


def certainty_chart(calibrated: Calibrated) -> str:
    """Draw how good uncertainties are, as SVG.

    Args:
        calibrated: of an engine.
    """
    return styled_svg(lambda axes: _draw(axes, calibrated), columns=3, height=4.0)


def draw_certainty(calibrated: Calibrated, path: Path) -> None:
    """Draw the same into a file.

    Args:
        calibrated: of an engine.
        path: of the picture.
    """
    with drawn(path, (11.0, 4.2), columns=3) as axes:
        _draw(axes, calibrated)


def _draw(axes: Any, calibrated: Calibrated) -> None:
    left, middle, right = axes
    scores = 1e3 * calibrated.scores
    groups = np.array(calibrated.groups)
    errors = 1e3 * np.abs(calibrated.errors) / calibrated.sizes
    for colour, name in zip(cycle(COLOURS), dict.fromkeys(calibrated.groups), strict=False):
        some = groups == name
        options = {"markersize": 2.5, "alpha": 0.4, "rasterized": True, "color": colour}
        left.plot(scores[some], np.maximum(errors[some], SMALLEST), ".", label=name, **options)
        middle.plot(scores[some], np.maximum(1e3 * calibrated.forces[some], SMALLEST), ".", **options)
    ends = np.array([scores.min(), scores.max()])
    for factor, style in ((1.0, "-"), (DEVIATIONS, "--")):
        left.plot(ends, factor * ends, style, color="black", linewidth=0.8, label=f"{factor:g} σ")
    left.set(title="Energy", xlabel="uncertainty (meV/atom)", ylabel="error (meV/atom)", xscale="log", yscale="log")
    left.figure.legend(loc="outside lower center", ncols=4, markerscale=3, fontsize=8)
    middle.set(title="Forces", xlabel="uncertainty of the energy (meV/atom)", xscale="log")
    if np.isfinite(calibrated.forces).any():
        middle.set(ylabel="force MAE (meV/Å)", yscale="log")
    else:
        middle.text(0.5, 0.5, "the structures came\nwithout forces", ha="center", transform=middle.transAxes)
    expected = np.linspace(0.02, 0.98, 49)
    z = np.sort(np.abs(calibrated.z))
    found = np.searchsorted(z, _two_sided(expected)) / len(z)
    right.plot([0, 100], [0, 100], color="black", linewidth=0.8, label="of a Gaussian")
    right.plot(100 * expected, 100 * found, color=COLOURS[0], linewidth=1.6, label="found")
    for share in (ONE_SIGMA, COVERED):
        right.axvline(100 * share, color="black", linewidth=0.5, linestyle=":")
    right.set(title="Errors covered", xlabel="% that should be within", ylabel="% that are", aspect="equal")
    right.legend(loc="upper left")


def _two_sided(shares: np.ndarray) -> np.ndarray:
    """Standard deviations within which so many of a Gaussian's values are."""
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf((1 + share) / 2) for share in shares.tolist()])
