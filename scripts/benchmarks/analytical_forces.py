"""Study: the explicit force head against autograd, in accuracy and in time, from one atom to a hundred and more.

    python scripts/benchmark_analytical_forces.py student:base -o analytical.json

Errors are against autograd of the student in float64. Exit status 1 where the explicit head in float64 is not what
autograd says, to the last digits.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer

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
    Study,
    Threads,
    compared,
)
from painn_deploy.scripts.benchmarks.contenders.bundles import exported, opened
from painn_deploy.scripts.benchmarks.contenders.contender import Contender
from painn_deploy.scripts.benchmarks.contenders.pytorch import AUTOGRAD, EXPLICIT, LIST_OF_EDGES, Eager, Padded
from painn_deploy.scripts.benchmarks.run import measured
from painn_deploy.scripts.commands.entry import run_command

__all__ = ["study"]

ENGINE = "onnxruntime"


def study(checkpoint: str, cases: Sequence[Case], threads: int | None, pace: Pace) -> list[dict[str, Any]]:
    """Measure every structure, moved a little: at a symmetric geometry some students have a cusp.

    Args:
        checkpoint: a file, or a student that ships.
        cases: of one structure each.
        threads: of the engine; None for what it chooses.
        pace: of the times.

    Returns:
        Rows with `structure`, `atoms`, `force`, its largest component in float64, eV/Å; `head64`, the largest error of
        the explicit head against autograd in float64, and `errors` of each method in float32, eV/Å; `milliseconds` of
        energy and forces, neighbours found before; `exact`, whether the head is the gradient.
    """
    double, single = load_student(checkpoint, dtype=torch.float64), load_student(checkpoint)
    structures = [atoms for case in cases for atoms in case.given]
    with exported(checkpoint, structures, [ENGINE]) as bundles, opened(bundles, "cpu", threads) as engines:
        contenders = [Eager(single, name=LIST_OF_EDGES), Padded(single, AUTOGRAD), Padded(single, EXPLICIT), *engines]
        return [_row(double, contenders, case, pace) for case in cases]


def _row(double: Student, contenders: Sequence[Contender], case: Case, pace: Pace) -> dict[str, Any]:
    rng = np.random.default_rng(case.atoms)
    (atoms,) = structures = mover(case.given, rng)()
    wanted, explicit = head_forces(double, atoms)
    force, head64 = largest(wanted), largest(explicit - wanted)
    return {
        "structure": case.name,
        "atoms": case.atoms,
        "force": force,
        "head64": head64,
        "errors": {c.name: largest(c.forces(c.run(c.prepare(structures))) - wanted) for c in contenders},
        "milliseconds": measured(contenders, case, pace, rng, alone=True),
        "exact": is_gradient(head64, force),
    }


def main(
    checkpoint: Checkpoint = STUDENT,
    threads: Threads = None,
    processor_time: ProcessorTime = False,
    quick: Annotated[bool, typer.Option("--quick", help="Six structures, few calls.")] = False,
    output: Output = None,
) -> None:
    """Hold the explicit force head against autograd: errors and times by size; exit status 1 where it is not exact."""
    made = Study.begin(threads, output, quick=quick, processor=processor_time)
    rows = study(checkpoint, extremes(load_student(checkpoint).species, quick=quick), threads, made.pace)
    names, head = list(rows[0]["milliseconds"]), [[row["structure"], str(row["atoms"])] for row in rows]
    columns = ["structure", "atoms", "largest force", "explicit, float64", *(f"{name}, float32" for name in names)]
    errors = [[f"{e:.1e}" for e in (row["force"], row["head64"], *row["errors"].values())] for row in rows]
    title = f"{checkpoint}: largest error of a force against float64 autograd (eV/Å)"
    made.show(title, columns, [[*start, *cells] for start, cells in zip(head, errors, strict=True)])
    times = [[*start, *compared(row["milliseconds"], LIST_OF_EDGES)] for start, row in zip(head, rows, strict=True)]
    made.show(f"energy and forces, {made.pace.unit} (ratio to eager)", ["structure", "atoms", *names], times)
    wrong = [f"{row['structure']}: {row['head64']:.1e} eV/Å" for row in rows if not row["exact"]]
    for off in wrong:
        made.console.print(f"[red]not the gradient[/] on {off} off autograd in float64")
    if not wrong:
        made.console.print("[green]explicit forces are the gradient of the energy[/]")
    made.finish({"checkpoint": checkpoint, "unit": made.pace.unit, "rows": rows})
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_command(main)
