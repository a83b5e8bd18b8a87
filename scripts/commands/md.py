"""Molecular dynamics with an engine through ASE: `painn-deploy md`, and what the demo runs."""

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import typer
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.errors import OutputError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.familiarity import Judged
from painn_deploy.scripts.commands.choices import ENSEMBLES

__all__ = ["ENSEMBLES", "Plan", "Record", "run_md", "simulate", "whole_steps"]

LONGEST_STEP, LONGEST = 1e3, 1e12
"""fs: of a time step, and of a simulation that anybody will see the end of."""

WHOLE = 1e-9
"""Of a number of steps: such a difference is rounding."""

STEPS = 2000
"""Of a simulation whose length nobody gave."""

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
    """

    ensemble: str = "nve"
    steps: int = STEPS
    timestep: float = 0.5
    temperature: float = 300.0
    pressure: float = 1.0
    every: int = 10
    seed: int = 0


@dataclass
class Record:
    """Outcome of a simulation.

    Attributes:
        rows: `COLUMNS` of every logged step.
        atoms: number of atoms.
        steps: done.
        seconds: wall time of the steps alone.
        interrupted: whether it was stopped before its end.
    """

    rows: list[tuple[float | int, ...]] = field(default_factory=list)
    atoms: int = 0
    steps: int = 0
    seconds: float = 0.0
    interrupted: bool = False

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


def whole_steps(steps: int | None, picoseconds: float | None, timestep: float, err: Console) -> int:
    """The number of time steps of a simulation whose length is given in either way, or in both if they agree.

    Args:
        steps: None where the length is not given so.
        picoseconds: None likewise; rounded to whole steps.
        timestep: fs.
        err: console for the word of a length that was rounded.

    Raises:
        BadParameter: both are given and differ, or the time is less than a step, or no number that makes sense.
    """
    if picoseconds is None or not 0 < timestep < LONGEST_STEP:  # `run_md` refuses such a time step
        return steps or STEPS
    if not timestep / 2 < 1e3 * picoseconds < LONGEST:
        raise typer.BadParameter(
            f"{picoseconds:g} ps are no length that makes sense with time steps of {timestep:g} fs.",
            param_hint="--picoseconds",
        )
    found = round(exact := 1e3 * picoseconds / timestep)
    if steps not in (None, found):
        raise typer.BadParameter(
            f"{picoseconds:g} ps are {found} steps of {timestep:g} fs, and --steps says {steps}. Give one of the two.",
            param_hint="--picoseconds",
        )
    if abs(exact - found) > WHOLE * found:
        length = f"{picoseconds:g} ps are rounded to {found} steps of {timestep:g} fs, {found * timestep / 1e3:g} ps"
        err.print(length, highlight=False, soft_wrap=True)
    return found


def run_md(
    bundle: Path,
    structure: Path,
    output: Path,
    plan: Plan,
    *,
    overwrite: bool,
    threads: int | None = None,
    device: str,
    out: Console,
    err: Console,
) -> None:
    """Simulate a structure with a bundle's engine; write md.extxyz and md.csv, and print a summary.

    A start or a frame that is far from all structures that the bundle was judged on is named once, and changes nothing.

    Args:
        bundle: folder NAME.engine.
        structure: a file that ASE reads; its last structure is the start.
        output: folder for the two files.
        plan: ensemble, length and conditions.
        overwrite: replace a trajectory that is there.
        threads: of the CPU; None for the engine's own choice.
        device: that the engine runs on.
        out: console for the summary.
        err: console for progress, for what is far from the judged structures, and for the word of an interruption.

    Raises:
        BadParameter: the plan makes no sense.
        BundleError: the bundle is damaged, foreign or of a newer format.
        DatasetError: the structure cannot be read.
        OutputError: a trajectory is there, or a file cannot be written.
        StructureError: the structure cannot be simulated so, or the simulation diverged.
        Exit: with status 130, the run was interrupted.
    """
    from painn_deploy.calibration.structures import read_structures  # it needs torch, which dynamics do not

    _check(plan)
    trajectory, log = output / "md.extxyz", output / "md.csv"
    for path in (trajectory, log):
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists. Give --overwrite to replace it, or another folder with -o.")
        if path.exists() and path.samefile(structure):
            raise OutputError(f"{path} is the structure to start from, and would be overwritten. Choose another -o.")
    atoms = read_structures(structure)[-1]
    if len(atoms) == 0:
        raise StructureError(f"{structure} holds no atoms.")
    opened = read_bundle(bundle)
    watch = _Watch(Judged.in_bundle(opened), plan, err)
    with PaiNNCalculator(opened, device=device, threads=threads) as calculator:
        atoms.calc = calculator
        info = calculator.engine_info
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
        with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
            task = progress.add_task(f"{plan.ensemble}, {len(atoms)} atoms", total=plan.steps)

            def note(done: int) -> None:
                progress.update(task, completed=done)
                watch.look(atoms, done)

            watch.look(atoms, 0)
            record = simulate(atoms, plan, trajectory=trajectory, log=log, progress=note)
    made = Table(
        title=f"{atoms.get_chemical_formula()}, {plan.ensemble}, {record.steps * plan.timestep / 1e3:g} ps",
        show_header=False,
    )
    made.add_row("engine", f"{info['backend']} {info['version']}, {info['device']}, {info['precision']}")
    if record.steps:
        made.add_row("speed", f"{1e3 * record.seconds / record.steps:.3f} ms/step")
    made.add_row("temperature", f"{record.column('temperature_K').mean():.0f} K (mean)")
    if plan.ensemble == "nve":
        made.add_row("drift", f"{record.drift:+.4f} meV/atom/ps (linear fit of the total energy)")
        made.add_row("fluctuation", f"{record.fluctuation:.4f} meV/atom (standard deviation of the total energy)")
    if watch.outcome:
        made.add_row("judged structures", watch.outcome)
    made.add_row("frames", escape(str(trajectory)))
    out.print(made)
    if record.interrupted:
        err.print(
            f"interrupted after {record.steps} of {plan.steps} steps; every frame until then is in "
            f"{escape(str(trajectory))}"
        )
        raise typer.Exit(130)


class _Watch:
    """Says once on a console when a simulation is far from all that the bundle was judged on."""

    def __init__(self, judged: Judged | None, plan: Plan, err: Console) -> None:
        self.outcome = "" if judged is None else "every frame is near one"
        self._judged, self._plan, self._err = judged, plan, err

    def look(self, atoms: Atoms, step: int) -> None:
        """Look at a frame; no longer once one was far."""
        if self._judged is None or not (words := self._judged.far(atoms)):
            return
        self._judged = None
        when = f"at step {step} ({step * self._plan.timestep:g} fs)" if step else "at the start"
        self.outcome = f"[yellow]far from all[/] {when}"
        self._err.print(
            f"[yellow]far from all that the bundle was judged on[/] {when}: {escape(words)}",
            soft_wrap=True,
            highlight=False,
        )


def _check(plan: Plan) -> None:
    """Refuse what no dynamics can be run with."""
    if plan.ensemble not in ENSEMBLES:
        raise typer.BadParameter(f"{plan.ensemble!r} is none of {', '.join(ENSEMBLES)}.", param_hint="--ensemble")
    if not (0 < plan.timestep < LONGEST_STEP and 0 <= plan.temperature < 1e6 and -1e9 < plan.pressure < 1e9):
        raise typer.BadParameter("Time step (fs), temperature (K) or pressure (bar) is no number that makes sense.")
    if plan.temperature == 0 and plan.ensemble in ("bussi", "npt"):
        raise typer.BadParameter(f"{plan.ensemble} needs a temperature above 0 K.", param_hint="--temperature")


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
        StructureError: `npt` without a periodic cell, or a simulation that diverged.
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
            dynamics.run(some)
            record.seconds += time.perf_counter() - started
            record.steps += some
            note()
            progress(record.steps)
    except KeyboardInterrupt:
        record.interrupted = True
    finally:
        writer.close()
    return record


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
