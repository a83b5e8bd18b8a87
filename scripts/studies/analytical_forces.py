"""Study: whether the explicit forces of a student are the gradient of its energy, to its precision's last digit.

For every structure the explicit head is held against plain autograd, which shares no adjoint with it, in float64 and in
float32; autograd against finite differences of the energy; and an engine, or another student, against autograd.

    python scripts/validate_analytical_forces.py --checkpoint student:base --compare-to BUNDLE --verbose
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.markup import escape

from painn_deploy.calibration.accuracy.errors import describe
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.physics.consistency import displacements, gradient_errors, head_forces, is_gradient
from painn_deploy.calibration.physics.verdicts import format_number, largest
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.model.student import Student
from painn_deploy.scripts.benchmarks.conditions import STUDENT
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import made_table, write_result
from painn_deploy.scripts.studies.shared import (
    Candidate,
    CompareTo,
    Device,
    JsonFile,
    OfStudent,
    Structures,
    choose,
    declared_in,
    open_candidate,
)

__all__ = ["Row", "study"]

DIFFERENCE_TOLERANCE = 1e-5
"""Of the largest force, or of 1 eV/Å, at the best of STEPS."""

STEPS = (1e-4, 1e-5, 1e-6)
"""Å: beside a cusp only the shorter ones stay on its one side."""

COLUMNS = {
    "force": "largest\nforce",
    "head64": "head\nfloat64",
    "head32": "head\nfloat32",
    "float32": "float32\nitself",
    "differences": "finite\ndiff.",
    "candidate": "compared\nto",
}


@dataclass(frozen=True)
class Row:
    """One structure; errors are the largest of a component, in eV/Å.

    Attributes:
        structure: its name.
        atoms: how many.
        force: largest component of the student's force in float64.
        head64: explicit head against autograd, float64.
        head32: the same in float32.
        float32: autograd in float32 against float64.
        differences: autograd against finite differences of the energy, float64.
        candidate: what is compared to, against autograd in float64.
    """

    structure: str
    atoms: int
    force: float
    head64: float
    head32: float
    float32: float
    differences: float
    candidate: float

    @property
    def exact(self) -> bool:
        """Whether the explicit head and the finite differences say what autograd says."""
        same = self.differences <= DIFFERENCE_TOLERANCE * max(1.0, self.force)
        return is_gradient(self.head64, self.force) and same


def study(double: Student, single: Student, structures: Sequence[Atoms], candidate: Candidate) -> list[Row]:
    """Measure every structure.

    Args:
        double: the student in float64.
        single: the student in float32.
        structures: what to measure.
        candidate: what is compared to.
    """
    return [_row(double, single, atoms, candidate) for atoms in structures]


def _row(double: Student, single: Student, atoms: Atoms, candidate: Candidate) -> Row:
    (wanted, explicit64), (plain32, explicit32) = head_forces(double, atoms), head_forces(single, atoms)
    directions = displacements(atoms)
    missed = [gradient_errors(lambda a: reference_results(double, a), atoms, directions, step) for step in STEPS]
    return Row(
        structure=describe(atoms),
        atoms=len(atoms),
        force=largest(wanted),
        head64=largest(explicit64 - wanted),
        head32=largest(explicit32 - plain32),
        float32=largest(plain32 - wanted),
        differences=largest(np.abs(missed).min(0)),
        candidate=largest(np.asarray(candidate.evaluate([atoms])[0]["forces"]) - wanted),
    )


def main(
    checkpoint: OfStudent = STUDENT,
    compare_to: CompareTo = None,
    structures: Structures = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="A line for every structure.")] = False,
    device: Device = "auto",
    output: JsonFile = None,
) -> None:
    """Hold explicit forces against autograd and finite differences; exit status 1 where they are not the gradient."""
    console = Console()
    said = declared_in(compare_to, checkpoint)
    double, single = (load_student(checkpoint, dtype=dtype, declared=said) for dtype in (torch.float64, torch.float32))
    chosen, named = choose(structures, double)
    with open_candidate(compare_to, checkpoint, device) as candidate:
        rows = study(double, single, chosen, candidate)
        lines = [[row.structure, *_cells([row])] for row in rows] if verbose else []
        lines.append(["largest of all", *_cells(rows)])
        title = f"{checkpoint}: forces on {len(rows)} structures (eV/Å, largest error)"
        console.print(made_table(title, ["structure", *COLUMNS.values()], lines))
        console.print(f"structures: {escape(named)}", soft_wrap=True)
        console.print(f"compared to: {escape(candidate.name)}", soft_wrap=True)
        if not candidate.same_student:
            console.print("[yellow]it was made from another student[/]: its column is a difference, not an error")
        wrong = [row for row in rows if not row.exact]
        for row in wrong:
            console.print(
                f"[red]not the gradient[/] on {escape(row.structure)}: explicit head {format_number(row.head64)}, "
                f"finite differences {format_number(row.differences)} eV/Å off autograd. Where the differences alone "
                "are off, the student has a cusp or a jump there.",
                soft_wrap=True,
            )
        if not wrong:
            console.print("[green]explicit forces are the gradient of the energy[/]")
        if output is not None:
            write_result(_result(checkpoint, named, candidate, rows), output)
            console.print(f"wrote {escape(str(output))}", soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


def _result(checkpoint: str, named: str, candidate: Candidate, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint,
        "measured_on": named,
        "compared_to": candidate.name,
        "same_student": candidate.same_student,
        "unit": "eV/Angstrom",
        "rows": [asdict(row) | {"exact": row.exact} for row in rows],
    }


def _cells(rows: Sequence[Row]) -> list[str]:
    """The largest figure of some structures in each column."""
    return [f"{max(getattr(row, key) for row in rows):.1e}" for key in COLUMNS]


if __name__ == "__main__":
    run_command(main)
