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
from ase import Atoms
from ase.build import molecule
from rich.console import Console

from painn_deploy.calibration.physics.verdicts import largest
from painn_deploy.calibration.structures import aspirin
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.model.force_head import explicit_forces
from painn_deploy.export.model.student import Student
from painn_deploy.scripts.benchmarks.force_methods import (
    AUTOGRAD,
    EAGER,
    EXPLICIT,
    engine_method,
    prepare,
    torch_methods,
)
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
from painn_deploy.scripts.studies.analytical_forces import HEAD_TOLERANCE

__all__ = ["Row", "cases", "study"]

ENGINE = "onnxruntime"
CLOSE, FAR = 0.7, 50.0
"""Å."""


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
        return self.head64 <= HEAD_TOLERANCE * max(1.0, self.force)


def cases(species: Sequence[int], *, quick: bool) -> list[tuple[str, Atoms]]:
    """What a head could get wrong, and then molecules by size; those alone whose elements are among the species."""
    heavy = 6 if 6 in species else species[-1]
    squeezed = molecule("CH3CH2OH")
    squeezed.set_distance(2, 3, CLOSE, fix=0)
    found = [
        ("single atom", Atoms([heavy])),
        (f"two atoms {FAR:g} Å apart", Atoms([heavy] * 2, [[0, 0, 0], [0, 0, FAR]])),
        (f"two atoms {CLOSE:g} Å apart", Atoms([heavy] * 2, [[0, 0, 0], [0.3, 0.2, (CLOSE**2 - 0.13) ** 0.5]])),
        (f"ethanol, O-H of {CLOSE:g} Å", squeezed),
        ("water", molecule("H2O")),
        ("ethanol", molecule("CH3CH2OH")),
        ("benzene", molecule("C6H6")),
        ("aspirin", aspirin()),
        *((f"alkane C{carbons}", _alkane(carbons)) for carbons in (16, 32, 64)),
    ]
    if quick:
        found = found[:6]
    return [(name, atoms) for name, atoms in found if set(atoms.numbers.tolist()) <= set(species)]


def _alkane(carbons: int) -> Atoms:
    """All-trans, C-C 1.53 Å and C-H 1.09 Å at tetrahedral angles; ends capped with hydrogen along the chain."""
    bond, hydrogen, half = 1.53, 1.09, np.arccos(-1 / 3) / 2
    step, height = bond * np.sin(half), bond * np.cos(half)
    symbols, positions = [], []
    for index in range(carbons):
        side = 1 if index % 2 else -1
        carbon = np.array([index * step, side * height / 2, 0.0])
        outwards = np.array([0.0, side * np.cos(half), np.sin(half)])
        symbols += ["C", "H", "H"]
        positions += [carbon, carbon + hydrogen * outwards, carbon + hydrogen * outwards * [1, 1, -1]]
        if index in (0, carbons - 1):
            along = np.array([-1.0 if index == 0 else 1.0, -side * height / step, 0.0])
            symbols.append("H")
            positions.append(carbon + hydrogen * along / np.linalg.norm(along))
    return Atoms(symbols, positions)


def study(checkpoint: str, chosen: Sequence[tuple[str, Atoms]], threads: int | None, pace: Pace) -> list[Row]:
    """Measure every structure, moved a little: at a symmetric geometry some students have a cusp."""
    double, single = load_student(checkpoint, dtype=torch.float64), load_student(checkpoint)
    methods = torch_methods(single)
    with exported(checkpoint, [atoms for _, atoms in chosen], [ENGINE]) as bundles:
        session = open_session(bundles[ENGINE], threads)
        try:
            methods[ENGINE] = engine_method(session)
            return [_row(double, single, methods, name, atoms, pace) for name, atoms in chosen]
        finally:
            session.close()


def _row(double: Student, single: Student, methods: dict, name: str, atoms: Atoms, pace: Pace) -> Row:  # type: ignore[type-arg]
    cutoff = single.configuration.cutoff
    move = mover([atoms], np.random.default_rng(len(atoms)))
    structures = move()
    exact = prepare(structures, cutoff, torch.float64)
    wanted = torch_methods(double)[AUTOGRAD](exact)
    rounded = prepare(structures, cutoff)
    return Row(
        structure=name,
        atoms=len(atoms),
        force=largest(wanted),
        head64=largest(explicit_forces(double, exact.graph).forces.numpy() - wanted),
        errors={method: largest(compute(rounded) - wanted) for method, compute in methods.items()},
        milliseconds=medians(methods, lambda: prepare(move(), cutoff), **pace.as_dict()),
    )


def main(
    checkpoint: Checkpoint,
    threads: Threads = None,
    processor_time: ProcessorTime = False,
    quick: Annotated[bool, typer.Option("--quick", help="Six structures, few calls.")] = False,
    output: Output = None,
) -> None:
    """Hold the explicit force head against autograd: errors and times by size; exit status 1 where it is not exact."""
    console = Console()
    pace = chosen_pace(quick=quick, processor=processor_time, threads=threads)
    set_threads(threads)
    chosen = cases(load_student(checkpoint).species, quick=quick)
    rows = study(checkpoint, chosen, threads, pace)
    columns = ["structure", "atoms", "largest force", "explicit, float64", *(f"{m}, float32" for m in rows[0].errors)]
    cells = [
        [r.structure, str(r.atoms), f"{r.force:.1e}", f"{r.head64:.1e}", *(f"{e:.1e}" for e in r.errors.values())]
        for r in rows
    ]
    console.print(made_table(f"{checkpoint}: largest error of a force against float64 autograd (eV/Å)", columns, cells))
    names = [EAGER, AUTOGRAD, EXPLICIT, ENGINE]
    cells = [[r.structure, str(r.atoms), *compared(r.milliseconds, names, EAGER)] for r in rows]
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
