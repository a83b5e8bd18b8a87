"""A figure in our style, written to a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from painn_deploy.calibration.report.charts import STYLE

__all__ = ["drawn"]

RESOLUTION = 150
"""Dots an inch, of a picture made of dots."""


@contextmanager
def drawn(path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1) -> Iterator[Any]:
    """Axes to draw in; the figure is written when the block ends, unless by an error.

    Args:
        path: of the file, whose suffix says which kind; its folder is made.
        size: width and height, inches.
        rows: of axes.
        columns: of axes.

    Yields:
        matplotlib's axes, or an array of them where there are several.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")  # without pyplot, which would want a screen
        yield figure.subplots(rows, columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=RESOLUTION)
