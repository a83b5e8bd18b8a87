"""Study: a student and an engine of it, structure by structure, atom by atom, and against labels where there are any.

    python scripts/validate_model_detailed.py --checkpoint student:base --compare-to BUNDLE --verbose
    python scripts/validate_model_detailed.py --checkpoint student:base --structures held_out.extxyz --labels

Errors and their parts are those of `painn-deploy validate`, which also judges groups and physics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from painn_deploy.calibration.accuracy.breakdown import Breakdown, StructureErrors, break_down, per_structure
from painn_deploy.calibration.accuracy.errors import Accuracy, Tolerances, compare, describe
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export.checkpoint import load_student
from painn_deploy.scripts.benchmarks.conditions import STUDENT
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import made_table, write_result
from painn_deploy.scripts.studies.shared import (
    CompareTo,
    Device,
    JsonFile,
    OfStudent,
    Structures,
    choose,
    declared_in,
    labels,
    open_candidate,
)

Results = Sequence[Mapping[str, Any]]


def main(
    checkpoint: OfStudent = STUDENT,
    compare_to: CompareTo = None,
    structures: Structures = None,
    against_labels: Annotated[
        bool, typer.Option("--labels", help="Also against the energies and forces that the structures carry.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Every atom's force, too.")] = False,
    device: Device = "auto",
    output: JsonFile = None,
) -> None:
    """Tables of every structure; exit status 1 where an engine of this student is past the default limits."""
    console = Console()
    student = load_student(checkpoint, dtype=torch.float64, declared=declared_in(compare_to, checkpoint))
    chosen, named = choose(structures, student)
    labelled = labels(chosen, named) if against_labels else None
    wanted = reference_results(student, chosen)
    with open_candidate(compare_to, checkpoint, device) as candidate:
        results = candidate.evaluate(chosen)
    accuracy, parts = compare(chosen, results, wanted), break_down(chosen, results, wanted)
    rows = per_structure(chosen, results, wanted)
    console.print(_structures_table(rows, f"{candidate.name} against {checkpoint} in float64"))
    console.print(_parts_table(parts))
    if verbose:
        for atoms, got, want in zip(chosen, results, wanted, strict=True):
            console.print(_atoms_table(atoms, got, want))
    console.print(f"structures: {escape(named)}", soft_wrap=True)
    values: dict[str, Any] = {
        "checkpoint": checkpoint,
        "measured_on": named,
        "compared_to": candidate.name,
        "same_student": candidate.same_student,
        "units": {"energy": "eV", "force": "eV/Angstrom", "stress": "eV/Angstrom^3"},
        "accuracy": accuracy.as_dict(),
        "structures": [asdict(row) for row in rows],
        **parts.as_dict(),
    }
    if labelled is not None:
        compared = {"student": wanted, candidate.name: results}
        against = {name: compare(chosen, found, labelled) for name, found in compared.items()}
        console.print(_labels_table(against, chosen, compared, labelled))
        values["against_labels"] = {name: found.as_dict() for name, found in against.items()}
    failures = accuracy.failures(Tolerances()) if candidate.same_student else []
    if not candidate.same_student:
        console.print("[yellow]it was made from another student[/]: these are differences, not errors")
    for failure in failures:
        console.print(f"[red]past its limit[/]: {failure}", soft_wrap=True)
    if output is not None:
        write_result(values, output)
        console.print(f"wrote {escape(str(output))}", soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _structures_table(rows: Sequence[StructureErrors], title: str) -> Table:
    headings = ["structure", "atoms", "energy\neV", "error\nmeV/atom", "force\nRMSE\nmeV/Å", "max\nmeV/Å", "cosine"]
    cells = [
        [
            row.structure,
            str(row.atoms),
            f"{row.energy:.4f}",
            f"{1e3 * row.energy_error_per_atom:+.4f}",
            f"{1e3 * row.force_rmse:.4f}",
            f"{1e3 * row.force_max:.4f}",
            "-" if row.force_cosine is None else f"{row.force_cosine:.6f}",
        ]
        for row in rows
    ]
    return made_table(title, headings, cells)


def _parts_table(parts: Breakdown) -> Table:
    cells = [
        [part.name, str(part.atoms), *(f"{1e3 * x:.4f}" for x in (part.mae, part.rmse, part.max))]
        for part in (*parts.elements, *parts.magnitudes)
    ]
    title = "Force errors by element, and by the size of the force (meV/Å)"
    return made_table(title, ["which", "atoms", "MAE", "RMSE", "max"], cells)


def _atoms_table(atoms: Atoms, got: Mapping[str, Any], want: Mapping[str, Any]) -> Table:
    cells = [
        [f"{index} {atoms.symbols[index]}", *(f"{x:+.5f}" for x in force), *(f"{1e3 * x:+.4f}" for x in error)]
        for index, (force, error) in enumerate(zip(want["forces"], got["forces"] - want["forces"], strict=True))
    ]
    title = f"{describe(atoms)}: forces (eV/Å) and errors (meV/Å)"
    return made_table(title, ["atom", "x", "y", "z", "error x", "error y", "error z"], cells)


def _labels_table(
    against: Mapping[str, Accuracy], structures: Sequence[Atoms], results: Mapping[str, Results], labelled: Results
) -> Table:
    """Energies twice: as they are, and less a constant an atom, since two methods may count from different zeros."""
    cells = []
    for name, accuracy in against.items():
        errors = np.array([row.energy_error_per_atom for row in per_structure(structures, results[name], labelled)])
        centred = float(np.abs(errors - np.median(errors)).mean())
        figures = (accuracy.energy_mae, centred, accuracy.force_mae, accuracy.force_rmse)
        cells.append([name, *(f"{1e3 * x:.3f}" for x in figures)])
    headings = ["what", "energy MAE\nmeV/atom", "less a\nconstant", "force MAE\nmeV/Å", "force RMSE\nmeV/Å"]
    return made_table("Against the labels", headings, cells)


if __name__ == "__main__":
    run_command(main)
