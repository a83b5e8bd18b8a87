"""Study: what batches and each way of computing forces gain over PyTorch eager with autograd, in one run.

    python scripts/benchmark_force_optimizations.py student:base -o optimizations.json

Every method gets the same structures with neighbours already found, moved anew at every call; times are medians, taken
in turns. Read ratios along a row: they compare methods within one run.
"""

from pathlib import Path
from typing import Annotated

import typer
from ase.build import molecule

from painn_deploy.calibration.structures import check_species, read_structures
from painn_deploy.engines import get_backend
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.scripts.benchmarks.cases import ETHANOL, copies
from painn_deploy.scripts.benchmarks.conditions import STUDENT, Checkpoint, Output, ProcessorTime, Study, Threads
from painn_deploy.scripts.benchmarks.contenders.bundles import exported, opened
from painn_deploy.scripts.benchmarks.contenders.pytorch import EXPLICIT, LIST_OF_EDGES, Eager, Padded
from painn_deploy.scripts.benchmarks.run import batches
from painn_deploy.scripts.commands.entry import run_command

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
    study = Study.begin(threads, output, quick=quick, processor=processor_time)
    student = load_student(checkpoint)
    start = molecule(ETHANOL) if structure is None else read_structures(structure)[0]
    check_species([start], student.species, "the molecule" if structure is None else structure.name)
    engines = engine or (["onnxruntime"] if quick else ["onnxruntime", "inductor"])
    for name in engines:
        if "cpu" not in get_backend(name).devices():
            raise EngineUnavailableError(
                f"{name} does not run on a CPU, where this study times; name another --engine."
            )
    formula = start.get_chemical_formula()
    title = f"{checkpoint}: energy and forces of {formula}, {study.pace.unit} a structure (ratio to the first)"
    with exported(checkpoint, [start], engines) as bundles, opened(bundles, "cpu", threads) as sessions:
        contenders = [Eager(student, name=LIST_OF_EDGES), Padded(student, EXPLICIT), *sessions]
        rows = batches(study, title, contenders, copies(start, (1, 4) if quick else BATCHES), alone=True)
    study.finish({"checkpoint": checkpoint, "unit": study.pace.unit, "structure": formula, "rows": rows})


if __name__ == "__main__":
    run_command(main)
