"""Molecular dynamics with an engine through ASE: `painn-deploy md`, and what the demo runs."""

import math
from dataclasses import replace
from pathlib import Path

import typer
from ase import Atoms
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from painn_deploy.calibration.structures import read_structures
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.errors import OutputError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.familiarity import Judged
from painn_deploy.runtime.uncertainty.watch import Limit, checked_limit
from painn_deploy.scripts.commands.choices import ENSEMBLES
from painn_deploy.scripts.commands.simulation import STEPS, Plan, Record, simulate

__all__ = ["ENSEMBLES", "Plan", "Record", "run_md", "simulate", "whole_steps"]

LONGEST_STEP, LONGEST = 1e3, 1e12
"""fs: of a time step, and of a simulation that anybody will see the end of."""

WHOLE = 1e-9
"""Of a number of steps: such a difference is rounding."""

STOPPED = 3
"""Exit status of a simulation that ended at a structure past its limit."""


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
    stop_above: Limit | None = None,
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
        stop_above: how many times as uncertain as the frames of its calibration a structure may be, or `threshold`,
            before the simulation ends; None for no limit.
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
        Exit: with status 130, the run was interrupted; with `STOPPED`, a structure was past the limit.
    """
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
        if stop_above is not None:
            limit = checked_limit(stop_above, "--stop-above", calculator.evaluator.uncertainty, bundle)
            plan = replace(plan, stop_above=limit)
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
        known = f"{record.drift:+.4f} meV/atom/ps (linear fit of the total energy)"
        unknown = f"unknown: a line takes three energies, and {len(record.rows)} were written (--every)"
        made.add_row("drift", unknown if math.isnan(record.drift) else known)
        made.add_row("fluctuation", f"{record.fluctuation:.4f} meV/atom (standard deviation of the total energy)")
    if watch.outcome:
        made.add_row("judged structures", watch.outcome)
    made.add_row("frames", escape(str(trajectory)))
    out.print(made)
    if record.uncertain is not None:
        err.print(
            f"[yellow]stopped[/] after {record.steps} of {plan.steps} steps: the last frame of "
            f"{escape(str(trajectory))} is {record.verdict}, {record.uncertain:.4g} times as uncertain as the frames "
            f"of the calibration, and the limit is {plan.stop_above:.4g}",
            soft_wrap=True,
            highlight=False,
        )
        raise typer.Exit(STOPPED)
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
