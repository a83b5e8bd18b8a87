"""The main job, start to finish, on the student that ships: export, validate, simulate, and show what came out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.calibration.report.validation import Options, Samples, Validation, validate
from painn_deploy.calibration.structures import aspirin
from painn_deploy.calibration.timing import milliseconds
from painn_deploy.export import load_student
from painn_deploy.export.files import prepare_output, to_json
from painn_deploy.export.progress import TellProgress
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import machine
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.commands.md import Plan, Record, simulate
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["Demo", "print_demo", "run_demo"]

STUDENT = "student:base"
TIMESTEP = 0.5
MOLECULE = "aspirin"
BLOCKS, CALLS = 10, 40


@dataclass(frozen=True)
class Demo:
    """Results of the demo.

    Attributes:
        verdict: errors against the student in float64.
        record: of the dynamics.
        milliseconds: median time of an ASE call with new positions, engine and PyTorch.
        files: that it wrote.
    """

    verdict: Validation
    record: Record
    milliseconds: dict[str, float]
    files: tuple[Path, ...]

    def rows(self) -> list[tuple[str, str]]:
        """The table, as text."""
        accuracy, engine = self.verdict.accuracy, self.verdict.engine
        eager, ours = self.milliseconds["PyTorch eager, autograd"], self.milliseconds["engine"]
        return [
            ("machine", machine([engine["device"]])),
            ("engine", f"{engine['backend']} {engine['version']}, {engine['device']}, {engine['precision']}"),
            ("structures", f"{accuracy.structures}; {len(self.verdict.left_out)} left out, where forces pass 50 eV/Å"),
            ("energy against the student in float64", f"{1e3 * accuracy.energy_mae:.4f} meV/atom (MAE)"),
            ("forces against the student in float64", f"{1e3 * accuracy.force_rmse:.4f} meV/Å (RMSE)"),
            ("dynamics", f"{MOLECULE}, {self.record.atoms} atoms, NVE, {self.record.steps * TIMESTEP / 1e3:g} ps"),
            ("energy drift", f"{self.record.drift:+.4f} meV/atom/ps"),
            ("energy fluctuation", f"{self.record.fluctuation:.4f} meV/atom"),
            ("MD step through ASE", f"{1e3 * self.record.seconds / self.record.steps:.2f} ms"),
            ("energy and forces through ASE", f"{ours:.2f} ms"),
            ("the same in PyTorch eager, autograd", f"{eager:.2f} ms"),
            ("speed-up", f"{eager / ours:.1f}x"),
        ]

    def table(self) -> Table:
        """The table, for a terminal."""
        made = Table(title="painn-deploy demo", show_header=False)
        made.add_column()
        made.add_column(justify="right")
        for row in self.rows():
            made.add_row(*row)
        return made


def print_demo(output: Path, *, picoseconds: float, out: Console, err: Console) -> None:
    """Run the demo, and print its table and the files that it wrote.

    Args:
        output: folder for the files.
        picoseconds: of dynamics.
        out: console for the table.
        err: console for progress.

    Raises:
        OutputError: the folder cannot be written.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def tell(line: str, done: int | None = None, total: int | None = None) -> None:
            progress.update(task, description=escape(line), completed=done, total=total)

        results = run_demo(output, picoseconds=picoseconds, tell=tell)
    out.print(results.table())
    for path in results.files:
        out.print(f"wrote {escape(str(path))}", soft_wrap=True)


def run_demo(output: Path, *, picoseconds: float = 2.0, tell: TellProgress = lambda *_, **__: None) -> Demo:
    """Run it all and write the bundle, demo.json, demo.md and demo.png into `output`.

    Args:
        output: folder for the files.
        picoseconds: of dynamics.
        tell: called with a line about each step.

    Raises:
        OutputError: the folder cannot be written.
    """
    import matplotlib as mpl  # noqa: F401  what would be missing at the end is missed at the start

    prepare_output(output)
    (bundle,) = export_engines(STUDENT, output, overwrite=True, tell=tell)
    (verdict,) = validate([bundle], STUDENT, Options(physics=False), tell=tell)
    with PaiNNCalculator(bundle) as calculator:
        eager = TorchCalculator(load_student(STUDENT))
        candidates = {"engine": calculator, "PyTorch eager, autograd": eager}
        told = "timing the engine against PyTorch eager with autograd"
        times = milliseconds(
            candidates, [aspirin()], calls=CALLS, blocks=BLOCKS, progress=lambda n: tell(told, n, BLOCKS)
        )
        atoms = aspirin()
        atoms.calc = calculator
        plan = Plan(steps=round(1e3 * picoseconds / TIMESTEP), timestep=TIMESTEP, every=10)
        record = simulate(
            atoms,
            plan,
            trajectory=output / "md.extxyz",
            log=output / "md.csv",
            progress=lambda n: tell(f"{MOLECULE}, NVE", n, plan.steps),
        )
    if record.interrupted:
        raise KeyboardInterrupt
    files = tuple(output / name for name in ("demo.png", "demo.md", "demo.json"))
    demo = Demo(verdict, record, times, (bundle, *files))
    tell("drawing")
    _plot(verdict.samples, record, files[0])
    files[1].write_text(f"{markdown(['`painn-deploy demo`', ''], demo.rows())}\n", encoding="utf-8")
    files[2].write_bytes(to_json(_facts(demo)))
    return demo


def _plot(samples: Samples, record: Record, path: Path) -> None:
    reference, got = (
        np.concatenate([result["forces"].ravel() for result in results])
        for results in (samples.wanted, samples.results)
    )
    with drawn(path, (10.0, 4.0), columns=2) as (left, right):
        left.plot(reference, got - reference, ".", markersize=3, alpha=0.5)
        left.set(
            xlabel="force, student in float64 (eV/Å)",
            ylabel="engine minus student (eV/Å)",
            title=f"Forces of the engine against its student, {len(samples.wanted)} structures",
        )
        left.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        picoseconds = record.column("time_fs") / 1e3
        for name, label in (("potential_eV", "potential"), ("total_eV", "total")):
            energy = 1e3 * (record.column(name) - record.column(name)[0]) / record.atoms
            right.plot(picoseconds, energy, label=label, linewidth=0.8 if name == "potential_eV" else 2)
        right.set(
            xlabel="time (ps)",
            ylabel="energy minus start (meV/atom)",
            title=f"NVE of {MOLECULE}: drift {record.drift:+.4f} meV/atom/ps",
        )
        right.legend(loc="lower right", bbox_to_anchor=(1.0, 0.12))


def _facts(demo: Demo) -> dict[str, Any]:
    return {
        "machine": machine([demo.verdict.engine["device"]]),
        "engine": dict(demo.verdict.engine),
        "torch": str(torch.__version__),
        "torch_threads": torch.get_num_threads(),
        "accuracy": demo.verdict.accuracy.as_dict(),
        "milliseconds": demo.milliseconds,
        "speed_up": demo.milliseconds["PyTorch eager, autograd"] / demo.milliseconds["engine"],
        "md_ms_per_step": 1e3 * demo.record.seconds / demo.record.steps,
        "drift_meV_per_atom_per_ps": demo.record.drift,
        "fluctuation_meV_per_atom": demo.record.fluctuation,
    }
