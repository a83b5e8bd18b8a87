"""Study: drug-like molecules in batches, through the calculator, against PyTorch eager one by one and batched.

    python scripts/benchmark_batched_forces_druglike.py student:base -o druglike.json

Everything that a caller waits for is in the times: neighbour search, packing, energies and forces. The molecules are
conformers that RDKit makes of SMILES, each moved anew at every call; a batch mixes sizes, as a screening does.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from rich.console import Console

from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import DatasetError, EngineError
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.benchmarks.eager import EagerModel, edges_of
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
    set_threads,
)
from painn_deploy.scripts.benchmarks.timing import medians, mover
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.distillation.molecules import embedded
from painn_deploy.scripts.distillation.plan import MOLECULES, read_molecules

__all__ = ["druglike", "study"]

BATCHES = (1, 2, 4, 8, 16)
ONE_BY_ONE, BATCHED = "eager, one by one", "eager, batched"
ENGINE_ONE_BY_ONE, ENGINE = "engine, one by one", "engine, batched"
TOLERANCE = 1e-3
"""eV/Å, of the largest force or of 1 eV/Å: what float32 explains."""

NAMES = (
    "aspirin",
    "caffeine",
    "ibuprofen",
    "paracetamol",
    "lidocaine",
    "nicotine",
    "naproxen",
    "melatonin",
    "salbutamol",
    "phenobarbital",
    "carbamazepine",
    "diphenhydramine",
    "trimethoprim",
    "thalidomide",
    "methylphenidate",
    "metronidazole",
)
"""Of molecules.smi: 20 to 40 atoms."""


def druglike(count: int, species: Sequence[int]) -> list[Atoms]:
    """The first so many, as conformers; the same ones every time.

    Raises:
        DatasetError: the student does not know one's elements, or one is not in the list of molecules.
    """
    smiles = read_molecules(MOLECULES)
    found = []
    for name in NAMES[:count]:
        if name not in smiles:
            raise DatasetError(f"molecules.smi has no {name}; take it out of NAMES, or put it back.")
        (atoms,) = embedded(smiles[name], 1, seed=1).conformers
        if unknown := set(atoms.symbols[[z not in species for z in atoms.numbers]]):
            raise DatasetError(f"{name} has {' '.join(sorted(unknown))}, which this student does not know.")
        atoms.info["name"] = name
        found.append(atoms)
    return found


def study(
    student: Student, calculator: PaiNNCalculator, molecules: Sequence[Atoms], batches: Sequence[int], pace: Pace
) -> list[dict[str, Any]]:
    """Time every batch: the first so many of the molecules.

    Returns:
        For each batch: `batch`, `atoms` in it, `milliseconds` a structure and `ratio` to eager one by one, by method,
        and the `largest_difference` of a force between the engine and eager (eV/Å).

    Raises:
        EngineError: the engine's forces are not those of the student in eager mode.
    """
    eager, cutoff = EagerModel(student), student.configuration.cutoff
    methods: dict[str, Callable[[list[Atoms]], Any]] = {
        ONE_BY_ONE: lambda batch: [eager(edges_of([atoms], cutoff)) for atoms in batch],
        BATCHED: lambda batch: eager(edges_of(batch, cutoff)),
        ENGINE_ONE_BY_ONE: lambda batch: [calculator.calculate_batch([atoms]) for atoms in batch],
        ENGINE: calculator.calculate_batch,
    }
    rng, rows = np.random.default_rng(0), []
    for size in batches:
        move = mover(molecules[:size], rng)
        batch = move()
        wanted = methods[BATCHED](batch)[1].numpy()
        difference = float(np.abs(np.concatenate([r["forces"] for r in methods[ENGINE](batch)]) - wanted).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
            raise EngineError(
                f"The engine's forces are {difference:.1e} eV/Å off the student's in a batch of {size}: run "
                "`painn-deploy validate` on it before you time it."
            )
        times = medians(methods, move, **pace.as_dict())
        rows.append(
            {
                "batch": size,
                "atoms": sum(len(atoms) for atoms in batch),
                "milliseconds": {name: spent / size for name, spent in times.items()},
                "ratio": {name: times[ONE_BY_ONE] / spent for name, spent in times.items()},
                "largest_difference": difference,
            }
        )
    return rows


def main(
    checkpoint: Checkpoint,
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
    batches = (1, 4) if quick else BATCHES
    molecules = druglike(max(batches), student.species)
    with (
        exported(checkpoint, molecules[:2], [engine]) as bundles,
        PaiNNCalculator(bundles[engine], device="cpu", threads=threads) as calculator,
    ):
        info = calculator.engine_info
        rows = study(student, calculator, molecules, batches, pace)
    methods = (ONE_BY_ONE, BATCHED, ENGINE_ONE_BY_ONE, ENGINE)
    cells = [
        [
            str(row["batch"]),
            str(row["atoms"]),
            *compared(row["milliseconds"], methods, ONE_BY_ONE),
        ]
        for row in rows
    ]
    title = f"{checkpoint}: drug-like molecules, {pace.unit} a molecule (ratio to the first)"
    console.print(made_table(title, ["batch", "atoms", *methods], cells))
    worst = max(row["largest_difference"] for row in rows)
    console.print(f"engine: {info['backend']} {info['version']}; its forces are within {worst:.1e} eV/Å of eager's")
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
