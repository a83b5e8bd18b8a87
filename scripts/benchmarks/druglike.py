"""Study: drug-like molecules in batches, through the calculator, against PyTorch eager one by one and batched.

    python scripts/benchmark_batched_forces_druglike.py student:base -o druglike.json

Everything that a caller waits for is in the times: neighbour search, packing, energies and forces. The molecules are
conformers that RDKit makes of SMILES, each moved anew at every call; a batch mixes sizes, as a screening does.
"""

from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from painn_deploy.export.checkpoint import load_student
from painn_deploy.scripts.benchmarks.cases import Case, druglike
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
from painn_deploy.scripts.benchmarks.contenders.contender import OneByOne
from painn_deploy.scripts.benchmarks.contenders.pytorch import Eager
from painn_deploy.scripts.benchmarks.run import batch_row
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import made_table

BATCHES = (1, 2, 4, 8, 16)
EAGER_ONE_BY_ONE = "eager, one by one"


def main(
    checkpoint: Checkpoint = STUDENT,
    engine: Annotated[str, typer.Option(help="onnxruntime or inductor.")] = "onnxruntime",
    threads: Threads = None,
    processor_time: ProcessorTime = False,
    quick: Annotated[bool, typer.Option("--quick", help="Batches of 1 and 4, few calls.")] = False,
    output: Output = None,
) -> None:
    """Time batches of drug-like molecules from neighbour search to forces."""
    console = Console()
    pace = chosen_pace(quick=quick, processor=processor_time, threads=threads)
    set_threads(threads)
    student = load_student(checkpoint)
    batches, rng = (1, 4) if quick else BATCHES, np.random.default_rng(0)
    molecules = druglike(max(batches), student.species)
    cases = [Case(f"{count} drug-like molecules", tuple(molecules[:count])) for count in batches]
    eager = Eager(student, name="eager, batched")
    with (
        exported(checkpoint, molecules[:2], [engine]) as bundles,
        opened({"engine, batched": bundles[engine]}, "cpu", threads, ase=False) as (ours,),
    ):
        info = ours.calculator.engine_info
        contenders = [OneByOne(EAGER_ONE_BY_ONE, eager), eager, OneByOne("engine, one by one", ours), ours]
        rows = [batch_row(contenders, case, EAGER_ONE_BY_ONE, pace, rng) for case in cases]
    cells = [[str(r["batch"]), str(r["atoms"]), *compared(r["milliseconds"], EAGER_ONE_BY_ONE)] for r in rows]
    title = f"{checkpoint}: drug-like molecules, {pace.unit} a molecule (ratio to the first)"
    console.print(made_table(title, ["batch", "atoms", *(contender.name for contender in contenders)], cells))
    worst = max(row["largest_difference"] for row in rows)
    console.print(f"engine: {ours.version}; all forces are within {worst:.1e} eV/Å of eager's")
    values = {
        "checkpoint": checkpoint,
        "unit": pace.unit,
        "engine": dict(info),
        "molecules": {atoms.info["name"]: len(atoms) for atoms in molecules},
        "rows": rows,
    }
    finish(console, values, threads, output)


if __name__ == "__main__":
    run_command(main)
