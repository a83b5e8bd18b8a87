"""What runs at constant energy say of engines: drift and its uncertainty, temperature, distances, vibrations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import units

from painn_deploy.calibration.report.charts import COLOURS
from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.scripts.dynamics.molecules import Conditions, Run
from painn_deploy.scripts.dynamics.observables import DISTANCES, FARTHEST, apart

__all__ = ["COLUMNS", "Told", "cells", "draw", "told"]

COLUMNS = (
    *("molecule", "engine", "ps", "drift (meV/atom/ns)", "temperature at the end (K)"),
    *("distances elsewhere", "vibrations elsewhere"),
)
"""Of the table."""

LAST = 0.1
"""Of a run, the part that is its end."""


@dataclass(frozen=True)
class Told:
    """What one molecule does with one engine.

    Attributes:
        picoseconds: of each replica.
        drift: meV/atom/ns, mean over the replicas of the slope of the total energy; None where there is none yet.
        uncertainty: meV/atom/ns, standard error of that mean.
        temperature: K, mean over the last tenth of all replicas.
        distances_elsewhere: share of the distances between atoms that is elsewhere than with the first engine; None for
            nothing to compare.
        vibrations_elsewhere: the same of the vibrational density of states.
        distances_by_chance: that share between two halves of the replicas of the first engine.
        vibrations_by_chance: likewise.
        ended: why the run could not go on.
    """

    picoseconds: float
    drift: float | None
    uncertainty: float | None
    temperature: float | None
    distances_elsewhere: float | None
    vibrations_elsewhere: float | None
    distances_by_chance: float | None
    vibrations_by_chance: float | None
    ended: str = ""


def told(run: Run, first: Run, atoms: int, vibrations: int, conditions: Conditions) -> Told:
    """The figures of a run.

    Args:
        run: of one molecule with one engine.
        first: of the same molecule with the first engine, which others are compared with.
        atoms: of the molecule.
        vibrations: of the molecule.
        conditions: of both runs.
    """
    drift = uncertainty = temperature = None
    if run.segments > 2:
        slopes = np.polyfit(_times(run, conditions) / 1e3, 1e3 * run.energies / atoms, 1)[0]
        drift, uncertainty = float(slopes.mean()), float(slopes.std(ddof=1) / len(slopes) ** 0.5)
    if run.segments:
        last = max(1, round(LAST * run.segments))
        temperature = float(2 * run.kinetic[-last:].mean() / (vibrations * units.kB))
    compared = run is not first and min(run.segments, first.segments) > 1
    by_chance, half = first.segments > 1, conditions.replicas // 2
    return Told(
        picoseconds=run.segments * conditions.length,
        drift=drift,
        uncertainty=uncertainty,
        temperature=temperature,
        distances_elsewhere=apart(run.distances.sum(0), first.distances.sum(0)) if compared else None,
        vibrations_elsewhere=apart(run.spectra.sum(0), first.spectra.sum(0)) if compared else None,
        distances_by_chance=_halves(first.distances, half) if by_chance else None,
        vibrations_by_chance=_halves(first.spectra, half) if by_chance else None,
        ended=run.ended,
    )


def _halves(values: np.ndarray, half: int) -> float:
    return apart(values[:half].sum(0), values[half:].sum(0))


def _times(run: Run, conditions: Conditions) -> np.ndarray:
    """Middles of the segments, ps."""
    times: np.ndarray = (np.arange(run.segments) + 0.5) * conditions.length
    return times


def cells(molecule: str, engine: str, figures: Told) -> list[str]:
    """A row of the table, see `COLUMNS`.

    Args:
        molecule: its name.
        engine: its name.
        figures: of the two.
    """
    drift = "-" if figures.drift is None else f"{figures.drift:+.3g} ± {figures.uncertainty:.2g}"
    temperature = "-" if figures.temperature is None else f"{figures.temperature:.0f}"

    def share(value: float | None, by_chance: float | None) -> str:
        if by_chance is None:
            return "-"
        return f"{by_chance:.1%} by chance" if value is None else f"{value:.1%}"

    return [
        *(molecule, engine, f"{figures.picoseconds:g}{', then diverged' if figures.ended else ''}", drift, temperature),
        share(figures.distances_elsewhere, figures.distances_by_chance),
        share(figures.vibrations_elsewhere, figures.vibrations_by_chance),
    ]


def draw(runs: Mapping[str, Mapping[str, Run]], atoms: Mapping[str, int], conditions: Conditions, path: Path) -> None:
    """Energy against time, distances between atoms, and vibrations: a row for each molecule, a colour for each engine.

    Args:
        runs: by molecule and engine.
        atoms: of each molecule.
        conditions: of all runs.
        path: of the picture.
    """
    with drawn(path, (12.0, 2.8 * len(runs)), len(runs), 3) as axes:
        for (molecule, own), (energy, distance, vibration) in zip(runs.items(), np.atleast_2d(axes), strict=True):
            for colour, (engine, run) in zip(_colours(own), own.items(), strict=True):
                _curves((energy, distance, vibration), run, atoms[molecule], conditions, engine, colour)
            energy.set(title=f"{molecule}: total energy", xlabel="time (ps)", ylabel="meV an atom")
            distance.set(title="distances between atoms", xlabel="Å", ylabel="share of an Å", xlim=(0.5, None))
            vibration.set(title="vibrations", xlabel="1/cm", ylabel="share of a 1/cm", xlim=(0, 4000))
            energy.legend()


def _colours(names: Mapping[str, Any]) -> Sequence[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(names))]


def _curves(axes: tuple[Any, Any, Any], run: Run, atoms: int, conditions: Conditions, engine: str, colour: str) -> None:
    energy, distance, vibration = axes
    if not run.segments:
        return
    values = 1e3 * (run.energies - run.energies[0]) / atoms
    energy.plot(_times(run, conditions), values, color=colour, linewidth=0.8, alpha=0.6)
    energy.plot([], [], color=colour, label=engine)
    if run.segments < 2:
        return
    width = FARTHEST / DISTANCES
    counts = run.distances.sum(0)
    seen = np.flatnonzero(counts)[-1] + 2
    distance.plot(
        (np.arange(DISTANCES)[:seen] + 0.5) * width, counts[:seen] / counts.sum() / width, color=colour, lw=0.8
    )
    spectrum, wavenumbers = run.spectra.sum(0), conditions.wavenumbers
    vibration.plot(wavenumbers, spectrum / spectrum.sum() / wavenumbers[1], color=colour, lw=0.8)
