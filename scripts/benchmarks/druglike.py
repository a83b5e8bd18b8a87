"""Study: drug-like molecules in batches, through the calculator, against PyTorch eager one by one and batched.

    python scripts/benchmark_batched_forces_druglike.py student:base -o druglike.json

Everything that a caller waits for is in the times: neighbour search, packing, energies and forces. The molecules are
conformers that RDKit makes of SMILES, each moved anew at every call; a batch mixes sizes, as a screening does.
"""

from typing import Annotated

import typer

from painn_deploy.export.checkpoint import load_student
from painn_deploy.scripts.benchmarks.cases import Case, druglike
from painn_deploy.scripts.benchmarks.conditions import STUDENT, Checkpoint, Output, ProcessorTime, Study, Threads
from painn_deploy.scripts.benchmarks.contenders.bundles import exported, opened
from painn_deploy.scripts.benchmarks.contenders.contender import OneByOne
from painn_deploy.scripts.benchmarks.contenders.pytorch import Eager
from painn_deploy.scripts.benchmarks.run import batches
from painn_deploy.scripts.commands.entry import run_command

BATCHES = (1, 2, 4, 8, 16)


def main(
    checkpoint: Checkpoint = STUDENT,
    engine: Annotated[str, typer.Option(help="onnxruntime or inductor.")] = "onnxruntime",
    threads: Threads = None,
    processor_time: ProcessorTime = False,
    quick: Annotated[bool, typer.Option("--quick", help="Batches of 1 and 4, few calls.")] = False,
    output: Output = None,
) -> None:
    """Time batches of drug-like molecules from neighbour search to forces."""
    study = Study.begin(threads, output, quick=quick, processor=processor_time)
    student, counts = load_student(checkpoint), (1, 4) if quick else BATCHES
    molecules = druglike(max(counts), student.species)
    cases = [Case(f"{count} drug-like molecules", tuple(molecules[:count])) for count in counts]
    title = f"{checkpoint}: drug-like molecules, {study.pace.unit} a molecule (ratio to the first)"
    eager = Eager(student, name="eager, batched")
    with (
        exported(checkpoint, molecules[:2], [engine]) as bundles,
        opened({"engine, batched": bundles[engine]}, "cpu", threads, ase=False) as (ours,),
    ):
        one_by_one = OneByOne("eager, one by one", eager), OneByOne("engine, one by one", ours)
        rows = batches(study, title, [one_by_one[0], eager, one_by_one[1], ours], cases)
        values = {"checkpoint": checkpoint, "unit": study.pace.unit, "engine": dict(ours.calculator.engine_info)}
    study.console.print(f"engine: {ours.version}")
    study.finish(values | {"molecules": {atoms.info["name"]: len(atoms) for atoms in molecules}, "rows": rows})


if __name__ == "__main__":
    run_command(main)
