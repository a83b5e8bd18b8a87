"""Study: what batches and each way of computing forces gain over PyTorch eager with autograd, in one run.

    python scripts/benchmark_force_optimizations.py student:base -o optimizations.json

Every method gets the same structures with neighbours already found, moved anew at every call; times are medians, taken
in turns. Read ratios along a row: they compare methods within one run.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from ase.build import molecule
from rich.console import Console

from painn_deploy.calibration.structures import check_species, read_structures
from painn_deploy.engines import get_backend
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.model.student import Student
from painn_deploy.scripts.benchmarks.force_methods import AUTOGRAD, EAGER, Method, engine_method, prepare, torch_methods
from painn_deploy.scripts.benchmarks.speed_studies import (
    Checkpoint,
    Output,
    Pace,
    ProcessorTime,
    Threads,
    chosen_pace,
    compared,
    exported,
    finish,
    made_table,
    open_session,
    set_threads,
)
from painn_deploy.scripts.benchmarks.timing import medians, mover
from painn_deploy.scripts.commands.entry import run_command

__all__ = ["study"]

BATCHES = (1, 2, 4, 8, 16, 32, 64)
TOLERANCE = 1e-3
"""eV/Å between methods in float32: beyond it they do not compute the same thing, and times mean nothing."""


def study(
    student: Student, methods: dict[str, Method], start: Atoms, batches: tuple[int, ...], pace: Pace
) -> list[dict[str, Any]]:
    """Time every batch.

    Args:
        student: in float32.
        methods: by name, `EAGER` among them.
        start: the molecule.
        batches: how many copies of it.
        pace: calls of a time.

    Returns:
        For each batch: `batch`, `milliseconds` a structure and `ratio` to eager by method, `largest_difference` of
        forces between a method and eager (eV/Å).

    Raises:
        EngineError: methods differ by more than their precision does.
    """
    rng, rows = np.random.default_rng(0), []
    cutoff = student.configuration.cutoff
    for batch in batches:
        move = mover([start] * batch, rng)
        made = prepare(move(), cutoff)
        forces = {name: method(made) for name, method in methods.items()}
        difference = max(float(np.abs(found - forces[EAGER]).max()) for found in forces.values())
        scale = max(1.0, float(np.abs(forces[EAGER]).max()))
        if not difference <= TOLERANCE * scale:
            raise EngineError(
                f"Methods differ by {difference:.1e} eV/Å at batch {batch}, more than float32 explains: validate the "
                "student with scripts/validate_analytical_forces.py before you time it."
            )
        times = medians(methods, lambda move=move: prepare(move(), cutoff), **pace.as_dict())  # type: ignore[misc]
        rows.append(
            {
                "batch": batch,
                "milliseconds": {name: spent / batch for name, spent in times.items()},
                "ratio": {name: times[EAGER] / spent for name, spent in times.items()},
                "largest_difference": difference,
            }
        )
    return rows


def main(
    checkpoint: Checkpoint,
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
    start = molecule("CH3CH2OH") if structure is None else read_structures(structure)[0]
    check_species([start], student.species, "the molecule" if structure is None else structure.name)
    engines = engine or (["onnxruntime"] if quick else ["onnxruntime", "inductor"])
    for name in engines:
        if "cpu" not in get_backend(name).devices():
            raise EngineUnavailableError(
                f"{name} does not run on a CPU, where this study times; name another --engine."
            )
    methods = {name: method for name, method in torch_methods(student).items() if name != AUTOGRAD}
    with exported(checkpoint, [start], engines) as bundles, ExitStack() as opened:
        for name, bundle in bundles.items():
            session = open_session(bundle, threads)
            opened.callback(session.close)
            methods[name] = engine_method(session)
        rows = study(student, methods, start, (1, 4) if quick else BATCHES, pace)
    cells = [
        [
            str(row["batch"]),
            *compared(row["milliseconds"], [*methods], EAGER),
        ]
        for row in rows
    ]
    title = (
        f"{checkpoint}: energy and forces of {start.get_chemical_formula()}, {pace.unit} a structure (ratio to eager)"
    )
    console.print(made_table(title, ["batch", *methods], cells))
    worst = max(row["largest_difference"] for row in rows)
    console.print(f"largest difference between methods: {worst:.1e} eV/Å")
    values = {"checkpoint": checkpoint, "unit": pace.unit, "structure": start.get_chemical_formula(), "rows": rows}
    finish(console, values, threads, output)


if __name__ == "__main__":
    run_command(main)
