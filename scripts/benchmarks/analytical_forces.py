"""Study: the explicit force head against autograd, in accuracy and in time, from one atom to a hundred and more.

    python scripts/benchmark_analytical_forces.py student:base -o analytical.json

Errors are against autograd of the student in float64. Exit status 1 where the explicit head in float64 is not what
autograd says, to the last digits.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from painn_deploy.calibration.physics.consistency import head_forces, is_gradient
from painn_deploy.calibration.physics.verdicts import largest
from painn_deploy.calibration.timing import Pace, mover
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.model.student import Student
from painn_deploy.scripts.benchmarks.cases import Case, extremes
from painn_deploy.scripts.benchmarks.conditions import (
    STUDENT,
    Checkpoint,
    Output,
    ProcessorTime,
    Threads,
    chosen_pace,
    compared,
    finish,
    set_threads,
)
from painn_deploy.scripts.benchmarks.contenders.bundles import exported, opened
from painn_deploy.scripts.benchmarks.contenders.contender import Contender
from painn_deploy.scripts.benchmarks.contenders.pytorch import AUTOGRAD, EXPLICIT, LIST_OF_EDGES, Eager, Padded
from painn_deploy.scripts.benchmarks.run import measured
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import made_table

__all__ = ["Row", "study"]

ENGINE = "onnxruntime"


@dataclass(frozen=True)
class Row:
    """One structure.

    Attributes:
        structure: its name.
        atoms: how many.
        force: largest component of the force in float64, eV/Å.
        head64: explicit head against autograd, both in float64; largest error of a component, eV/Å.
        errors: of each method in float32, the same.
        milliseconds: of energy and forces, neighbours found before.
    """

    structure: str
    atoms: int
    force: float
    head64: float
    errors: dict[str, float]
    milliseconds: dict[str, float]

    @property
    def exact(self) -> bool:
        """Whether the explicit head is the gradient."""
        return is_gradient(self.head64, self.force)


def study(checkpoint: str, cases: Sequence[Case], threads: int | None, pace: Pace) -> list[Row]:
    """Measure every structure, moved a little: at a symmetric geometry some students have a cusp.

    Args:
        checkpoint: a file, or a student that ships.
        cases: of one structure each.
        threads: of the engine; None for what it chooses.
        pace: of the times.
    """
    double, single = load_student(checkpoint, dtype=torch.float64), load_student(checkpoint)
    structures = [atoms for case in cases for atoms in case.given]
    with exported(checkpoint, structures, [ENGINE]) as bundles, opened(bundles, "cpu", threads) as engines:
        contenders = [Eager(single, name=LIST_OF_EDGES), Padded(single, AUTOGRAD), Padded(single, EXPLICIT), *engines]
        return [_row(double, contenders, case, pace) for case in cases]


def _row(double: Student, contenders: Sequence[Contender], case: Case, pace: Pace) -> Row:
    rng = np.random.default_rng(case.atoms)
    (atoms,) = structures = mover(case.given, rng)()
    wanted, explicit = head_forces(double, atoms)
    return Row(
        structure=case.name,
        atoms=case.atoms,
        force=largest(wanted),
        head64=largest(explicit - wanted),
        errors={c.name: largest(c.forces(c.run(c.prepare(structures))) - wanted) for c in contenders},
        milliseconds=measured(contenders, case, pace, rng, alone=True),
    )


def main(
    checkpoint: Checkpoint = STUDENT,
    threads: Threads = None,
    processor_time: ProcessorTime = False,
    quick: Annotated[bool, typer.Option("--quick", help="Six structures, few calls.")] = False,
    output: Output = None,
) -> None:
    """Hold the explicit force head against autograd: errors and times by size; exit status 1 where it is not exact."""
    console = Console()
    pace = chosen_pace(quick=quick, processor=processor_time, threads=threads)
    set_threads(threads)
    rows = study(checkpoint, extremes(load_student(checkpoint).species, quick=quick), threads, pace)
    names = list(rows[0].milliseconds)
    columns = ["structure", "atoms", "largest force", "explicit, float64", *(f"{name}, float32" for name in names)]
    cells = [
        [r.structure, str(r.atoms), f"{r.force:.1e}", f"{r.head64:.1e}", *(f"{e:.1e}" for e in r.errors.values())]
        for r in rows
    ]
    console.print(made_table(f"{checkpoint}: largest error of a force against float64 autograd (eV/Å)", columns, cells))
    cells = [[row.structure, str(row.atoms), *compared(row.milliseconds, LIST_OF_EDGES)] for row in rows]
    console.print(made_table(f"energy and forces, {pace.unit} (ratio to eager)", ["structure", "atoms", *names], cells))
    wrong = [row for row in rows if not row.exact]
    for row in wrong:
        console.print(f"[red]not the gradient[/] on {row.structure}: {row.head64:.1e} eV/Å off autograd in float64")
    if not wrong:
        console.print("[green]explicit forces are the gradient of the energy[/]")
    values = {"checkpoint": checkpoint, "unit": pace.unit, "rows": [asdict(row) | {"exact": row.exact} for row in rows]}
    finish(console, values, threads, output)
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main)
