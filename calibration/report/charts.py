"""Charts of a validation as SVG: forces against the student's, error distributions, dynamics, sensitivity."""

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from painn_deploy.calibration.physics.drift import Drift

__all__ = ["Errors", "as_data_uri", "distributions", "drift_curves", "parity", "sensitivity_bars", "styled_svg"]

COLOURS = ("#4363a8", "#c8553d", "#3a8a6b", "#8d6bb0", "#b58b00", "#555555")
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "path",
}
PRECISION_COLOURS = {"fp64": "#3b7d4f", "int8": "#4363a8", "fp16": "#b58b00", "fp32": "#c8553d"}
MOST_BARS = 40

Draw = TypeVar("Draw", bound=Callable[..., str])

Errors = Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""By group of structures three arrays: force components of the student (eV/Å) [components], their errors (eV/Å)
[components], and errors of energies (eV an atom) [structures]."""


def _styled(draw: Draw) -> Draw:
    """Draw in our style, and leave the user's own settings alone."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> str:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*arguments, **options)

    return cast(Draw, drawn)


@_styled
def parity(errors: Errors) -> str:
    """Draw the engine's forces against its student's, and the errors against the size of the force."""
    figure, (left, right) = _figure(2)
    for colour, (name, (wanted, error, _)) in zip(_colours(errors), errors.items(), strict=True):
        options = {"markersize": 2, "alpha": 0.5, "rasterized": True, "color": colour}
        left.plot(wanted, wanted + error, ".", label=name, **options)
        right.plot(np.abs(wanted), np.maximum(1e3 * np.abs(error), 1e-7), ".", **options)
    ends = _ends([wanted for wanted, _, _ in errors.values()])
    left.plot(ends, ends, color="black", linewidth=0.6, zorder=0)
    left.set(title="Force components", xlabel="student in float64 (eV/Å)", ylabel="engine (eV/Å)")
    left.legend(markerscale=4)
    right.set(
        title="Errors by the size of the force",
        xlabel="force component of the student (eV/Å)",
        ylabel="error (meV/Å)",
        xscale="log",
        yscale="log",
        xlim=(1e-3, None),
    )
    return _svg(figure)


@_styled
def distributions(errors: Errors) -> str:
    """Draw histograms of force and energy errors."""
    figure, (left, right) = _figure(2)
    forces = {name: np.maximum(1e3 * np.abs(error), 1e-7) for name, (_, error, _) in errors.items()}
    energies = {name: 1e3 * energy for name, (_, _, energy) in errors.items()}
    every = np.concatenate(list(forces.values()))
    bins = np.geomspace(every.min(), max(every.max(), 1.01 * every.min()), 40)
    for colour, name in zip(_colours(errors), errors, strict=True):
        weights = np.full(len(forces[name]), 100 / len(forces[name]))
        left.hist(forces[name], bins, weights=weights, histtype="step", color=colour, linewidth=1.4, label=name)
    left.set(title="Force errors", xlabel="error of a component (meV/Å)", ylabel="% of components", xscale="log")
    left.legend()
    low, high = _ends(list(energies.values()))
    edges = np.linspace(low, high, 31)
    right.hist(
        list(energies.values()), edges, stacked=True, color=list(_colours(errors)), label=list(energies), rwidth=0.9
    )
    right.set(title="Energy errors", xlabel="error (meV/atom)", ylabel="structures")
    return _svg(figure)


@_styled
def drift_curves(drifts: Mapping[str, Drift]) -> str:
    """Draw the total energy without a thermostat, of the engine and of its student."""
    figure, (axes,) = _figure(1)
    for name, colour, width in (("student", "#c8553d", 2.5), ("engine", "#4363a8", 1.0)):
        drift = drifts[name]
        label = f"{name}: {drift.slope:+.3f} ± {drift.uncertainty:.3f} meV/atom/ps"
        axes.plot(drift.times, drift.energies, color=colour, linewidth=width, label=label)
    axes.set(title="Total energy in dynamics at 300 K", xlabel="time (ps)", ylabel="energy less start (meV/atom)")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))
    axes.legend(loc="upper left")
    return _svg(figure)


@_styled
def sensitivity_bars(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the force error of each GEMM in INT8, largest first, coloured by the precision that it was given.

    Args:
        rows: of `gemm` (name), `force_rmse` (meV/Å), `precision` and `multiply_adds`.
    """
    from matplotlib.patches import Patch

    ranked = sorted(rows, key=lambda row: -float(row["force_rmse"]))[:MOST_BARS]
    figure, (axes,) = _figure(1, height=1.2 + 0.19 * len(ranked))
    axes.barh(
        np.arange(len(ranked)),
        [float(row["force_rmse"]) for row in ranked],
        color=[PRECISION_COLOURS.get(str(row["precision"]), "#555555") for row in ranked],
    )
    axes.set_yticks(np.arange(len(ranked)), [str(row["gemm"]) for row in ranked], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    more = f", the worst {MOST_BARS} of {len(rows)}" if len(rows) > MOST_BARS else ""
    axes.set(title=f"What each GEMM costs when it alone is in INT8{more}", xlabel="force error (meV/Å, RMSE)")
    kept = [p for p in PRECISION_COLOURS if p in {str(row["precision"]) for row in ranked}]
    axes.legend(handles=[Patch(color=PRECISION_COLOURS[p], label=f"now in {p.upper()}") for p in kept])
    return _svg(figure)


@_styled
def styled_svg(draw: Callable[[Any], None], columns: int, height: float) -> str:
    """Draw in our style.

    Args:
        draw: called with matplotlib's axes.
        columns: how many of them.
        height: inches.
    """
    figure, axes = _figure(columns, height)
    draw(axes)
    return _svg(figure)


def as_data_uri(svg: str) -> str:
    """The address of an HTML image that holds a picture of one of the functions above."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _figure(columns: int, height: float = 3.3) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, columns))


def _svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", dpi=200, metadata={"Date": None})
    return file.getvalue()


def _colours(errors: Errors) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(errors))]


def _ends(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    """The smallest and the largest number, apart."""
    values = np.concatenate(arrays)
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 1e-6, high + 1e-6)
