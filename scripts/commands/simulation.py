"""Molecular dynamics through ASE: its conditions, the run itself, and frames and log on disk as they come."""

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.export.errors import OutputError, StructureError
from painn_deploy.runtime.uncertainty.scale import RATIO, VERDICT
from painn_deploy.scripts.commands.choices import ENSEMBLES

__all__ = ["COLUMNS", "STEPS", "Plan", "Record", "simulate"]

STEPS = 2000
"""Of a simulation whose length nobody gave."""

LARGEST_MOVE = 1.0
"""Å that an atom may move in one step: ten times what a sane step moves the fastest hydrogen of a hot molecule."""

COLUMNS = ("step", "time_fs", "potential_eV", "kinetic_eV", "total_eV", "temperature_K")


@dataclass(frozen=True)
class Plan:
    """Conditions of a simulation.

    Attributes:
        ensemble: `nve` (velocity Verlet), `langevin` or `bussi` (constant temperature), `npt` (isotropic MTK).
        steps: how many.
        timestep: fs.
        temperature: K; of the thermostat, and of the initial velocities where the structure brings none.
        pressure: bar, for `npt`.
        every: steps between frames and log lines.
        seed: of velocities and thermostat.
        stop_above: how many times as uncertain as the frames of its calibration a structure may be before the
            simulation ends; None for no limit.
    """

    ensemble: str = "nve"
    steps: int = STEPS
    timestep: float = 0.5
    temperature: float = 300.0
    pressure: float = 1.0
    every: int = 10
    seed: int = 0
    stop_above: float | None = None


@dataclass
class Record:
    """Outcome of a simulation.

    Attributes:
        rows: `COLUMNS` of every logged step.
        atoms: number of atoms.
        steps: done.
        seconds: wall time of the steps alone.
        interrupted: whether it was stopped before its end.
        uncertain: the uncertainty at which it was ended, of `Plan.stop_above`; None where it was not.
        verdict: the same in words.
    """

    rows: list[tuple[float | int, ...]] = field(default_factory=list)
    atoms: int = 0
    steps: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    uncertain: float | None = None
    verdict: str = ""

    def column(self, name: str) -> np.ndarray:
        """One column of `COLUMNS` over time."""
        return np.array([row[COLUMNS.index(name)] for row in self.rows])

    @property
    def drift(self) -> float:
        """meV/atom/ps, slope of a straight line fitted to the total energy; NaN with fewer than three rows."""
        return Drift.of(self.column("time_fs") / 1e3, 1e3 * self.column("total_eV") / self.atoms).slope

    @property
    def fluctuation(self) -> float:
        """meV/atom, standard deviation of the total energy."""
        return float(1e3 * self.column("total_eV").std() / self.atoms)


def simulate(
    atoms: Atoms,
    plan: Plan,
    *,
    trajectory: Path | None = None,
    log: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Record:
    """Run dynamics on `atoms`, which carry a calculator, in place.

    Frames and log lines are on disk as they come, so an interruption loses none.

    Args:
        atoms: start; velocities are drawn at `plan.temperature` where it has none.
        plan: ensemble, length and conditions.
        trajectory: extended XYZ file to write.
        log: CSV file to write.
        progress: called with the number of steps done.

    Raises:
        StructureError: `npt` without a periodic cell, or a simulation that diverged; its frames until then are written.
        OutputError: a file cannot be written.
    """
    if plan.ensemble == "npt" and not atoms.pbc.all():
        raise StructureError("Constant pressure needs a cell that is periodic in all directions.")
    if not np.any(atoms.get_momenta()):
        rng = np.random.default_rng(plan.seed)
        thermalize_momenta(atoms, plan.temperature, rng=rng)
        if len(atoms) > 1 and plan.temperature > 0:
            Stationary(atoms)
        if plan.temperature > 0 and not atoms.pbc.any() and len(atoms) > 2:
            ZeroRotation(atoms)
    record = Record(atoms=len(atoms))
    try:
        dynamics = _dynamics(atoms, plan)
    except NotImplementedError as error:
        raise StructureError(f"{plan.ensemble} cannot run this structure: {error}") from error
    dynamics.attach(_check_moves, 1, atoms, dynamics, plan.timestep)
    if plan.stop_above is not None:
        dynamics.attach(_stop, 1, atoms, plan.stop_above)
    record.rows.append(_row(atoms, plan, 0))  # what cannot be computed must not replace what an earlier run left
    writer = _Writer(trajectory, log)

    def note() -> None:
        record.rows.append(_row(atoms, plan, record.steps))
        writer.write(atoms, record.rows[-1])

    try:
        writer.write(atoms, record.rows[0])
        while record.steps < plan.steps:
            started = time.perf_counter()
            some = min(plan.every, plan.steps - record.steps)
            try:
                dynamics.run(some)
            except _UncertainError as error:
                record.uncertain, record.verdict = error.ratio, error.verdict
                some = dynamics.nsteps - record.steps
            record.seconds += time.perf_counter() - started
            record.steps += some
            if some:  # else it is the first frame, which is written
                note()
            progress(record.steps)
            if record.uncertain is not None:
                break
    except KeyboardInterrupt:
        record.interrupted = True
    finally:
        writer.close()
    return record


def _check_moves(atoms: Atoms, dynamics: MolecularDynamics, timestep: float) -> None:
    """End what no time step can follow: afterwards all is far apart, finite, and looks like atoms at rest.

    Raises:
        StructureError: an atom moves by a bond's length in one step.
    """
    moves = np.linalg.norm(atoms.get_velocities(), axis=1) * (timestep * units.fs)
    fastest = int(moves.argmax())
    if not moves[fastest] <= LARGEST_MOVE:
        raise StructureError(
            f"The simulation diverged at step {dynamics.nsteps}: atom {fastest} ({atoms.symbols[fastest]}) would move "
            f"by {moves[fastest]:.3g} Å in a step of {timestep:g} fs. Use a shorter time step, or relax the structure "
            "first."
        )


class _UncertainError(Exception):
    """A structure is past the limit of `Plan.stop_above`."""

    def __init__(self, ratio: float, verdict: str) -> None:
        super().__init__(ratio, verdict)
        self.ratio, self.verdict = ratio, verdict


def _stop(atoms: Atoms, limit: float) -> None:
    ratio = atoms.calc.get_property(RATIO, atoms)
    if not ratio <= limit:
        raise _UncertainError(ratio, atoms.calc.results[VERDICT])


def _dynamics(atoms: Atoms, plan: Plan) -> MolecularDynamics:
    step, rng = plan.timestep * units.fs, np.random.default_rng(plan.seed + 1)
    match plan.ensemble:
        case "nve":
            return VelocityVerlet(atoms, step)
        case "langevin":
            return Langevin(atoms, step, temperature_K=plan.temperature, friction=0.01 / units.fs, fixcm=False, rng=rng)
        case "bussi":
            return Bussi(atoms, step, temperature_K=plan.temperature, taut=100 * units.fs, rng=rng)
        case "npt":
            return IsotropicMTKNPT(
                atoms,
                step,
                temperature_K=plan.temperature,
                pressure_au=plan.pressure * units.bar,
                tdamp=100 * units.fs,
                pdamp=1000 * units.fs,
            )
    raise StructureError(f"There is no ensemble {plan.ensemble!r}; there are {', '.join(ENSEMBLES)}.")


def _row(atoms: Atoms, plan: Plan, step: int) -> tuple[int, float, float, float, float, float]:
    potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
    if not np.isfinite(potential + kinetic):
        raise StructureError(f"The simulation diverged before step {step}; use a shorter time step.")
    return (step, step * plan.timestep, potential, kinetic, potential + kinetic, float(atoms.get_temperature()))


class _Writer:
    """Frames and rows to disk as they come."""

    def __init__(self, trajectory: Path | None, log: Path | None) -> None:
        self._files: list[Any] = []
        self._trajectory = self._open(trajectory)
        self._log = self._open(log)
        self._csv = csv.writer(self._log) if self._log else None
        if self._csv:
            self._csv.writerow(COLUMNS)

    def _open(self, path: Path | None) -> Any:
        if path is None:
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
        self._files.append(file)
        return file

    def write(self, atoms: Atoms, row: tuple[float | int, ...]) -> None:
        try:
            if self._trajectory:
                ase.io.write(self._trajectory, atoms, format="extxyz")
            if self._csv:
                self._csv.writerow(row)
            for file in self._files:
                file.flush()
        except OSError as error:
            raise OutputError(f"Cannot go on writing the trajectory: {error.strerror or error}.") from error

    def close(self) -> None:
        for file in self._files:
            file.close()
