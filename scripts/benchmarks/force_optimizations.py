"""Study: what batches and each way of computing forces gain over PyTorch eager with autograd, in one run.

    python scripts/benchmark_force_optimizations.py student:base -o optimizations.json

Every method gets the same structures with neighbours already found, moved anew at every call; times are medians, taken
in turns. Read ratios along a row: they compare methods within one run.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase.build import molecule
from rich.console import Console

from painn_deploy.calibration.structures import check_species, read_structures
from painn_deploy.engines import get_backend
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.scripts.benchmarks.cases import ETHANOL, copies
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
from painn_deploy.scripts.benchmarks.contenders.pytorch import EXPLICIT, LIST_OF_EDGES, Eager, Padded
from painn_deploy.scripts.benchmarks.run import batch_row
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import made_table

BATCHES = (1, 2, 4, 8, 16, 32, 64)


def main(
    checkpoint: Checkpoint = STUDENT,
    structure: Annotated[
        Path | None, typer.Option(help="A molecule, in any format that ASE reads; ethanol otherwise.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engines; onnxruntime and inductor otherwise.")] = None,
    threads: Threads = None,
    processor_time: ProcessorTime = False,
    quick: Annotated[bool, typer.Option("--quick", help="Two batches, few calls, onnxruntime alone.")] = False,
    output: Output = None,
) -> None:
    """Time energy and forces of batches: eager, explicit adjoints, engines."""
    console = Console()
    pace = chosen_pace(quick=quick, processor=processor_time, threads=threads)
    set_threads(threads)
    student = load_student(checkpoint)
    start = molecule(ETHANOL) if structure is None else read_structures(structure)[0]
    check_species([start], student.species, "the molecule" if structure is None else structure.name)
    engines = engine or (["onnxruntime"] if quick else ["onnxruntime", "inductor"])
    for name in engines:
        if "cpu" not in get_backend(name).devices():
            raise EngineUnavailableError(
                f"{name} does not run on a CPU, where this study times; name another --engine."
            )
    cases, rng = copies(start, (1, 4) if quick else BATCHES), np.random.default_rng(0)
    with exported(checkpoint, [start], engines) as bundles, opened(bundles, "cpu", threads) as sessions:
        contenders = [Eager(student, name=LIST_OF_EDGES), Padded(student, EXPLICIT), *sessions]
        rows = [batch_row(contenders, case, LIST_OF_EDGES, pace, rng, alone=True) for case in cases]
    names = [contender.name for contender in contenders]
    formula = start.get_chemical_formula()
    title = f"{checkpoint}: energy and forces of {formula}, {pace.unit} a structure (ratio to eager)"
    cells = [[str(row["batch"]), *compared(row["milliseconds"], LIST_OF_EDGES)] for row in rows]
    console.print(made_table(title, ["batch", *names], cells))
    worst = max(row["largest_difference"] for row in rows)
    console.print(f"largest difference between methods: {worst:.1e} eV/Å")
    values = {"checkpoint": checkpoint, "unit": pace.unit, "structure": formula, "rows": rows}
    finish(console, values, threads, output)


if __name__ == "__main__":
    run_command(main)
