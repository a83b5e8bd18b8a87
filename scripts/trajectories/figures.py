"""What runs at constant energy say of engines: drift and its uncertainty, temperature, distances, vibrations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from painn_deploy.calibration.report.charts import COLOURS
from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.scripts.trajectories.molecules import Conditions, Run, freedoms, turning
from painn_deploy.scripts.trajectories.observables import DISTANCES, FARTHEST, apart

__all__ = ["COLUMNS", "Told", "cells", "draw", "told"]

COLUMNS = (
    *("molecule", "engine", "ps", "drift (meV/atom/ns)", "temperature at the end (K)", "of its turning (K)"),
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
        turning: K, temperature of the rotation of the molecule as a whole at the end, mean over the replicas; all start
            at 0, and forces without a torque leave them there.
        distances_elsewhere: share of the distances between atoms that is elsewhere than in other replicas of the first
            engine; of the first engine itself, what chance does. None where there is nothing to compare yet.
        vibrations_elsewhere: the same of the vibrational density of states.
        is_first: whether it is the first engine itself.
        ended: why the run could not go on.
    """

    picoseconds: float
    drift: float | None
    uncertainty: float | None
    temperature: float | None
    turning: float
    distances_elsewhere: float | None
    vibrations_elsewhere: float | None
    is_first: bool
    ended: str = ""


def told(run: Run, first: Run, atoms: Atoms, conditions: Conditions) -> Told:
    """The figures of a run.

    Args:
        run: of one molecule with one engine.
        first: of the same molecule with the first engine, which others are compared with.
        atoms: the molecule.
        conditions: of both runs.
    """
    drift = uncertainty = temperature = None
    if run.segments > 2:
        slopes = np.polyfit(_times(run, conditions) / 1e3, 1e3 * run.energies / len(atoms), 1)[0]
        drift, uncertainty = float(slopes.mean()), float(slopes.std(ddof=1) / len(slopes) ** 0.5)
    if run.segments:
        last = max(1, round(LAST * run.segments))
        temperature = float(2 * run.kinetic[-last:].mean() / (freedoms(atoms) * units.kB))
    rotations = 3 * len(atoms) - 3 - freedoms(atoms)
    turned = turning(run.positions, run.velocities, atoms.get_masses())
    half = conditions.replicas // 2
    return Told(
        picoseconds=run.segments * conditions.length,
        drift=drift,
        uncertainty=uncertainty,
        temperature=temperature,
        turning=float(2 * turned.mean() / (rotations * units.kB)),
        distances_elsewhere=_elsewhere(run.distances, first.distances, half),
        vibrations_elsewhere=_elsewhere(run.spectra, first.spectra, half),
        is_first=run is first,
        ended=run.ended,
    )


def _elsewhere(values: np.ndarray, first: np.ndarray, half: int) -> float | None:
    """The share of some replicas that is elsewhere than in others of the first engine; None where one has nothing yet.

    Half of the replicas of the one and the other half of the other, so that what is compared is as long, and as
    independent, for two engines as it is for one.
    """
    if not (values.any() and first.any()):
        return None
    parts = ((values[:half], first[half:]), (values[half:], first[:half]))
    return float(np.mean([apart(one.sum(0), other.sum(0)) for one, other in parts]))


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

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}{' by chance' if figures.is_first else ''}"

    length = f"{figures.picoseconds:g}{', then diverged' if figures.ended else ''}"
    shares = [share(value) for value in (figures.distances_elsewhere, figures.vibrations_elsewhere)]
    return [molecule, engine, length, drift, temperature, f"{figures.turning:.0f}", *shares]


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
            vibration.legend(loc="upper center")


def _colours(names: Mapping[str, Any]) -> Sequence[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(names))]


def _curves(axes: tuple[Any, Any, Any], run: Run, atoms: int, conditions: Conditions, engine: str, colour: str) -> None:
    energy, distance, vibration = axes
    if not run.segments:
        return
    values = 1e3 * (run.energies - run.energies[0]) / atoms
    energy.plot(_times(run, conditions), values, color=colour, linewidth=0.8, alpha=0.6)
    vibration.plot([], [], color=colour, label=engine)
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
