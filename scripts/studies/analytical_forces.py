"""Study: whether the explicit forces of a student are the gradient of its energy, to its precision's last digit.

For every structure the explicit head is held against plain autograd, which shares no adjoint with it, in float64 and in
float32; autograd against finite differences of the energy; and an engine, or another student, against autograd.

    python scripts/validate_analytical_forces.py --checkpoint student:base --compare-to BUNDLE --verbose
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from painn_deploy.calibration.accuracy.errors import describe
from painn_deploy.calibration.accuracy.reference import batched_results
from painn_deploy.calibration.physics.consistency import finite_differences
from painn_deploy.calibration.physics.verdicts import format_number, largest
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.model.force_head import autograd_forces, explicit_forces, tensors
from painn_deploy.export.model.student import Student
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.shared import Candidate, choose, open_candidate, write_result

__all__ = ["Row", "study"]

HEAD_TOLERANCE = 1e-10
"""Of the largest force, or of 1 eV/Å: what separates two orders of summation in float64."""

DIFFERENCE_TOLERANCE = 1e-5
"""Of the largest force, or of 1 eV/Å, at the best of STEPS."""

STEPS, MOST_DIRECTIONS = (1e-4, 1e-5, 1e-6), 30
"""Å: beside a cusp only the shorter ones stay on its one side."""


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
        scale = max(1.0, self.force)
        return self.head64 <= HEAD_TOLERANCE * scale and self.differences <= DIFFERENCE_TOLERANCE * scale


def study(double: Student, single: Student, structures: Sequence[Atoms], candidate: Candidate) -> list[Row]:
    """Measure every structure.

    Args:
        double: the student in float64.
        single: the student in float32.
        structures: what to measure.
        candidate: what is compared to.
    """
    rows = []
    for atoms in structures:
        heads = []
        for student, kind, dtype in ((double, np.float64, torch.float64), (single, np.float32, torch.float32)):
            graph = tensors(graph_inputs([atoms], student.configuration.cutoff, kind), dtype)
            plain, explicit = autograd_forces(student, graph).forces, explicit_forces(student, graph).forces
            heads.append((plain.double().numpy(), explicit.double().numpy()))
        (wanted, explicit64), (plain32, explicit32) = heads
        directions = _directions(len(atoms))

        def move(start: Atoms, step: float, which: int, directions: np.ndarray = directions) -> Atoms:
            moved = start.copy()
            moved.positions += step * directions[which]
            return moved

        slopes = -np.einsum("nac,ac->n", directions, wanted)
        missed = [
            finite_differences(lambda a: batched_results(double, a), atoms, move, len(directions), step) - slopes
            for step in STEPS
        ]
        rows.append(
            Row(
                structure=describe(atoms),
                atoms=len(atoms),
                force=largest(wanted),
                head64=largest(explicit64 - wanted),
                head32=largest(explicit32 - plain32),
                float32=largest(plain32 - wanted),
                differences=largest(np.abs(missed).min(0)),
                candidate=largest(np.asarray(candidate.evaluate([atoms])[0]["forces"]) - wanted),
            )
        )
    return rows


def main(
    checkpoint: Annotated[str, typer.Option(help="A .safetensors or .pt file, or student:base.")],
    compare_to: Annotated[
        str | None, typer.Option(help="A bundle, or another checkpoint; the student in float32 otherwise.")
    ] = None,
    structures: Annotated[Path | None, typer.Option(help="In any format that ASE reads.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="A line for every structure.")] = False,
    device: Annotated[str, typer.Option(help="For a bundle: auto, or what its engine names.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Hold explicit forces against autograd and finite differences; exit status 1 where they are not the gradient."""
    console = Console()
    double, single = load_student(checkpoint, dtype=torch.float64), load_student(checkpoint)
    chosen, named = choose(structures, double)
    with open_candidate(compare_to, checkpoint, device) as candidate:
        rows = study(double, single, chosen, candidate)
        console.print(_table(rows, f"{checkpoint}: forces on {len(rows)} structures (eV/Å, largest error)", verbose))
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


def _table(rows: Sequence[Row], title: str, verbose: bool) -> Table:
    made = Table(title=escape(title))
    made.add_column("structure", overflow="fold")
    headings = ("largest\nforce", "head\nfloat64", "head\nfloat32", "float32\nitself", "finite\ndiff.", "compared\nto")
    for heading in headings:
        made.add_column(heading, justify="right")
    keys = ("force", "head64", "head32", "float32", "differences", "candidate")
    if verbose:
        for row in rows:
            made.add_row(escape(row.structure), *(f"{getattr(row, key):.1e}" for key in keys))
        made.add_section()
    made.add_row("largest of all", *(f"{max(getattr(row, key) for row in rows):.1e}" for key in keys))
    return made


def _directions(atoms: int) -> np.ndarray:
    """Every coordinate, or random unit displacements where there are many [directions, atoms, 3]."""
    if 3 * atoms <= MOST_DIRECTIONS:
        return np.eye(3 * atoms).reshape(3 * atoms, atoms, 3)
    random = np.random.default_rng(atoms).normal(size=(MOST_DIRECTIONS // 3, atoms, 3))
    return np.asarray(random / np.linalg.norm(random, axis=(1, 2), keepdims=True))


if __name__ == "__main__":
    run_command(main)
