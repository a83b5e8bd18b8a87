"""Minutes of dynamics of liquid water without a thermostat, resumed from checkpoints: energy, temperature, memory."""

import io
import time
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.calibration.structures import box_of
from painn_deploy.export.files import write_whole
from painn_deploy.runtime import PaiNNCalculator
from tests.endurance.record import Job, Outcome
from tests.endurance.resources import growth, usage

__all__ = ["run", "water"]

TEMPERATURE, TIMESTEP = 300.0, 0.5
"""K, fs."""

PER_SIDE, DENSITY = 3, 0.997
"""Waters along each side of the box; kg/l of the liquid at 25 °C."""

EVERY = 20
"""Steps between two energies that are kept."""

CHECKPOINTS, SAMPLES = 20, 40
"""In a run; at full size one a minute, and one each half a minute."""

FITTED = 4
"""Samples that the second half of a run has at least."""

SETTLED = 0.15
"""Time that a relaxation and a thermostat take to bring the box to its temperature, as a share of the run's."""

SHORTEST = 5.0
"""ps that a run has at least where its temperature and its memory are judged: in a few seconds nothing has settled."""

DRIFT, WARMEST, COLDEST, CONTINUES = 0.1, 420.0, 200.0, 1e-6
"""meV/atom/ps, K and K of the mean temperature; eV an atom by which a resumed run may differ from its checkpoint."""

BOUND, UNIT, MOST_MAPS = 1.0, 300, 64
"""MiB per so many seconds, and memory maps in the second half of the run."""

POINTS = 20
"""Energies that a drift needs; a shorter run tells none."""


def water(seed: int) -> Atoms:
    """A periodic box of 27 waters as dense as the liquid, each turned its own way.

    Args:
        seed: turns them.
    """
    mass = molecule("H2O").get_masses().sum() / units.kg
    spacing = (mass / (DENSITY * 1e3)) ** (1 / 3) * 1e10  # Å
    return box_of("H2O", PER_SIDE, spacing, np.random.default_rng([seed, 2]), on_first=True)


def run(job: Job) -> Outcome:
    """Relax and settle, then run until the time is up; every checkpoint holds all that a run needs to go on."""
    total, rng = float(job.stage.size), np.random.default_rng([job.options.seed, 3])
    atoms = water(job.options.seed)
    path = job.record.folder / "checkpoint.npz"
    samples: list[dict[str, Any]] = job.record.lines("samples")
    process = 1 + max((sample["process"] for sample in samples), default=-1)
    jumps: list[float] = []
    with PaiNNCalculator(job.bundle, threads=1) as calculator:
        atoms.calc = calculator
        if path.is_file():
            spent, steps, energies, temperatures = _restored(atoms, path.read_bytes())
            if energies:
                jumps = [abs(atoms.get_total_energy() - energies[-1]) / len(atoms)]
                job.record.append("jumps", jumps[0])
        else:
            job.tell("settling")
            _settled(atoms, SETTLED * total, rng)
            spent, steps, energies, temperatures = 0.0, 0, list[float](), list[float]()
        dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
        began, before, kept = time.monotonic(), spent, spent
        while True:
            dynamics.run(EVERY)
            steps += EVERY
            energies.append(atoms.get_total_energy())
            temperatures.append(atoms.get_temperature())
            spent = before + time.monotonic() - began
            if not samples or spent - samples[-1]["at"] >= total / SAMPLES or spent >= total:
                samples.append({"process": process, "at": spent, **usage()})
                job.record.append("samples", samples[-1])
                job.progress(spent, total, "s")
            if spent - kept >= total / CHECKPOINTS or spent >= total:
                kept = spent
                write_whole(path, _saved(atoms, spent, steps, energies, temperatures))
            # on a machine that stands still for a while, a short run goes on until there is something to fit a line to
            if spent >= total and sum(s["process"] == process and s["at"] >= spent / 2 for s in samples) >= FITTED:
                break
    return _judged(job, atoms, steps, np.array(energies), np.array(temperatures), samples)


def _settled(atoms: Atoms, seconds: float, rng: np.random.Generator) -> None:
    """Bring a box to its temperature, in about that time."""
    began, relaxation = time.monotonic(), FIRE(atoms, logfile=None)
    while time.monotonic() - began < seconds / 3 and not relaxation.run(fmax=0.3, steps=10):
        pass
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    Stationary(atoms)
    thermostat = Bussi(atoms, TIMESTEP * units.fs, temperature_K=TEMPERATURE, taut=50 * units.fs, rng=rng)
    while time.monotonic() - began < seconds:
        thermostat.run(EVERY)


def _saved(atoms: Atoms, spent: float, steps: int, energies: list[float], temperatures: list[float]) -> bytes:
    file = io.BytesIO()
    np.savez(
        file,
        positions=atoms.positions,
        momenta=atoms.get_momenta(),
        spent=spent,
        steps=steps,
        energies=energies,
        temperatures=temperatures,
    )
    return file.getvalue()


def _restored(atoms: Atoms, content: bytes) -> tuple[float, int, list[float], list[float]]:
    with np.load(io.BytesIO(content)) as found:
        atoms.positions = found["positions"]
        atoms.set_momenta(found["momenta"])
        lists = found["energies"].tolist(), found["temperatures"].tolist()
        return float(found["spent"]), int(found["steps"]), *lists


def _judged(
    job: Job, atoms: Atoms, steps: int, energies: np.ndarray, temperatures: np.ndarray, samples: list[dict[str, Any]]
) -> Outcome:
    picoseconds, mean = steps * TIMESTEP / 1e3, float(temperatures.mean())
    figures: dict[str, Any] = {"atoms": len(atoms), "steps": steps, "picoseconds": picoseconds, "temperature": mean}
    failures, jumps = [], job.record.lines("jumps")
    if not np.isfinite(energies).all():
        failures.append("an energy is not finite")
    if picoseconds >= SHORTEST and not COLDEST <= mean <= WARMEST:
        failures.append(f"the mean temperature is {mean:.0f} K")
    if any(jump > CONTINUES for jump in jumps):
        failures.append(f"a resumed run has another energy than its checkpoint by {max(jumps):.1e} eV/atom")
    if len(energies) >= POINTS:
        times = np.arange(len(energies)) * EVERY * TIMESTEP / 1e3
        drift = Drift.of_blocks(times, 1e3 * (energies - energies[0]) / len(atoms))
        figures |= {"drift": drift.slope, "uncertainty": drift.uncertainty, "fluctuation": drift.fluctuation}
        if not abs(drift.slope) <= DRIFT + 2 * drift.uncertainty:
            failures.append(f"the energy drifts by {drift.slope:.3f} meV/atom/ps, and {DRIFT:g} may be")
    longest = max(float(atoms.get_distances(i, [i + 1, i + 2], mic=True).max()) for i in range(0, len(atoms), 3))
    figures |= {"longest bond": longest, "resumed": len(jumps), "seconds of dynamics": samples[-1]["at"]}
    if longest > 1.5:
        failures.append(f"a molecule of water is broken: an O-H bond of {longest:.2f} Å")
    found = growth(samples, UNIT)
    figures["growth"] = found.as_dict()
    bound = BOUND if picoseconds >= SHORTEST else float("inf")  # some MiB of the first seconds come but once
    return Outcome(figures, failures + found.problems(bound, MOST_MAPS))
