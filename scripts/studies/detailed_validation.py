"""Study: a student and an engine of it, structure by structure, atom by atom, and against labels where there are any.

python scripts/validate_model_detailed.py --checkpoint student:base --compare-to BUNDLE --verbose
python scripts/validate_model_detailed.py --checkpoint student:base --structures held_out.extxyz --labels
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from painn_deploy.calibration.accuracy.breakdown import Breakdown, break_down
from painn_deploy.calibration.accuracy.errors import Accuracy, Limits, compare, describe, mean_cosine
from painn_deploy.calibration.accuracy.reference import batched_results
from painn_deploy.calibration.physics.verdicts import largest, rms
from painn_deploy.export.checkpoint import load_student
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.studies.shared import choose, labels, open_candidate, write_result

__all__ = ["per_structure"]

Results = Sequence[Mapping[str, Any]]


def per_structure(structures: Sequence[Atoms], results: Results, wanted: Results) -> list[dict[str, Any]]:
    """Figures of each structure, in eV and eV/Å: energies, and errors of `results` against `wanted`."""
    rows = []
    for atoms, got, want in zip(structures, results, wanted, strict=True):
        forces, errors = np.asarray(want["forces"]), np.asarray(got["forces"]) - np.asarray(want["forces"])
        rows.append(
            {
                "structure": describe(atoms),
                "atoms": len(atoms),
                "energy": float(want["energy"]),
                "energy_error_per_atom": float(got["energy"] - want["energy"]) / len(atoms),
                "largest_force": largest(forces),
                "force_rmse": rms(errors),
                "force_max": largest(errors),
                "force_cosine": mean_cosine(np.asarray(got["forces"]), forces),
                "net_force": float(np.linalg.norm(np.asarray(got["forces"]).sum(0))),
            }
        )
    return rows


def main(
    checkpoint: Annotated[str, typer.Option(help="A .safetensors or .pt file, or student:base.")],
    compare_to: Annotated[
        str | None, typer.Option(help="A bundle, or another checkpoint; the student in float32 otherwise.")
    ] = None,
    structures: Annotated[Path | None, typer.Option(help="In any format that ASE reads.")] = None,
    against_labels: Annotated[
        bool, typer.Option("--labels", help="Also against the energies and forces that the structures carry.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Every atom's force, too.")] = False,
    device: Annotated[str, typer.Option(help="For a bundle: auto, or what its engine names.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Tables of every structure; exit status 1 where an engine of this student is past the default limits."""
    console = Console()
    student = load_student(checkpoint, dtype=torch.float64)
    chosen, named = choose(structures, student)
    labelled = labels(chosen, named) if against_labels else None
    wanted = batched_results(student, chosen)
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
        "structures": rows,
        **parts.as_dict(),
    }
    if labelled is not None:
        against = {"student": compare(chosen, wanted, labelled), candidate.name: compare(chosen, results, labelled)}
        console.print(_labels_table(against, chosen, {"student": wanted, candidate.name: results}, labelled))
        values["against_labels"] = {name: found.as_dict() for name, found in against.items()}
    failures = accuracy.failures(Limits()) if candidate.same_student else []
    if not candidate.same_student:
        console.print("[yellow]it was made from another student[/]: these are differences, not errors")
    for failure in failures:
        console.print(f"[red]past its limit[/]: {failure}", soft_wrap=True)
    if output is not None:
        write_result(values, output)
        console.print(f"wrote {escape(str(output))}", soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _structures_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    made = Table(title=escape(title))
    made.add_column("structure", overflow="fold")
    for heading in ("atoms", "energy\neV", "error\nmeV/atom", "force\nRMSE\nmeV/Å", "max\nmeV/Å", "cosine"):
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(
            escape(row["structure"]),
            str(row["atoms"]),
            f"{row['energy']:.4f}",
            f"{1e3 * row['energy_error_per_atom']:+.4f}",
            f"{1e3 * row['force_rmse']:.4f}",
            f"{1e3 * row['force_max']:.4f}",
            "-" if row["force_cosine"] is None else f"{row['force_cosine']:.6f}",
        )
    return made


def _parts_table(parts: Breakdown) -> Table:
    made = Table(title="Force errors by element, and by the size of the force (meV/Å)")
    made.add_column("which")
    for heading in ("atoms", "MAE", "RMSE", "max"):
        made.add_column(heading, justify="right")
    for group in (parts.elements, parts.magnitudes):
        for part in group:
            made.add_row(part.name, str(part.atoms), *(f"{1e3 * x:.4f}" for x in (part.mae, part.rmse, part.max)))
        made.add_section()
    return made


def _atoms_table(atoms: Atoms, got: Mapping[str, Any], want: Mapping[str, Any]) -> Table:
    made = Table(title=f"{escape(describe(atoms))}: forces (eV/Å) and errors (meV/Å)")
    for heading in ("atom", "x", "y", "z", "error x", "error y", "error z"):
        made.add_column(heading, justify="right")
    for index, (force, error) in enumerate(zip(want["forces"], got["forces"] - want["forces"], strict=True)):
        figures = [*(f"{x:+.5f}" for x in force), *(f"{1e3 * x:+.4f}" for x in error)]
        made.add_row(f"{index} {atoms.symbols[index]}", *figures)
    return made


def _labels_table(
    against: Mapping[str, Accuracy], structures: Sequence[Atoms], results: Mapping[str, Results], labelled: Results
) -> Table:
    """Energies twice: as they are, and less a constant an atom, since two methods may count from different zeros."""
    made = Table(title="Against the labels")
    made.add_column("what", overflow="fold")
    for heading in ("energy MAE\nmeV/atom", "less a\nconstant", "force MAE\nmeV/Å", "force RMSE\nmeV/Å"):
        made.add_column(heading, justify="right")
    for name, accuracy in against.items():
        errors = np.array(
            [(r["energy"] - w["energy"]) / len(a) for a, r, w in zip(structures, results[name], labelled, strict=True)]
        )
        centred = float(np.abs(errors - np.median(errors)).mean())
        figures = (accuracy.energy_mae, centred, accuracy.force_mae, accuracy.force_rmse)
        made.add_row(escape(name), *(f"{1e3 * x:.3f}" for x in figures))
    return made


if __name__ == "__main__":
    run_command(main)
