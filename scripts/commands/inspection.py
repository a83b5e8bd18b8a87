"""What a bundle is, and the errors that were measured at its export: what `inspect` and `export` print."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from painn_deploy.calibration.accuracy.left_out import LeftOut, summary
from painn_deploy.engines import BACKENDS, get_backend
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.declaration import species_text
from painn_deploy.export.manifest import VALIDATION

__all__ = ["print_bundle", "print_errors", "print_remarks"]


def print_bundle(path: Path, out: Console) -> None:
    """Check every file of a bundle, and print what the bundle is, what it was made of, and its errors.

    Args:
        path: of the bundle's folder.
        out: console to print on.

    Raises:
        BundleError: the bundle is damaged, foreign or of a newer format.
    """
    bundle = read_bundle(path)
    m = bundle.manifest
    made = Table(title=escape(path.name), show_header=False)
    made.add_column()
    made.add_column(overflow="fold")
    made.add_row("engine", f"{m.engine} {m.engine_version}, {m.precision}")
    made.add_row("bound to", ", ".join(m.bound_to) or "nothing: it runs on any machine")
    made.add_row("architecture", f"{m.architecture}: {json.dumps(dict(m.configuration))}")
    made.add_row("cutoff", f"{m.cutoff:g} Å")
    made.add_row("species", species_text(m.species, verified=m.species_verified))
    if said := {key: value for key, value in m.declared.items() if key != "remarks"}:
        made.add_row("declared", ", ".join(f"{key} {_words(value)}" for key, value in said.items()))
    made.add_row("profiles", "any atoms, any slots" if not m.profiles else json.dumps(list(m.profiles)))
    made.add_row("radial table", "none" if m.radial_table is None else json.dumps(dict(m.radial_table)))
    made.add_row("checkpoint", f"sha256 {m.checkpoint_sha256}")
    made.add_row("bundle", f"sha256 {bundle.sha256}, format {m.format_version}")
    made.add_row("built", f"{m.built_at} with " + ", ".join(f"{k} {v}" for k, v in m.built_with.items()))
    if m.engine in BACKENDS:
        for heading, words in get_backend(m.engine).contents(bundle).items():
            made.add_row(heading, words)
    for name in m.files:
        made.add_row("file", f"{name}, {len(bundle.file(name)) / 1e6:.2f} MB, as written at export")
    out.print(made)
    if VALIDATION in m.files:
        print_errors(bundle, out)


def print_errors(bundle: Bundle, out: Console) -> None:
    """Print what a bundle's validation.json holds: its errors, and what a user should know about them.

    Args:
        bundle: which holds one.
        out: console to print on.

    Raises:
        BundleError: the file is gone, was altered, or never was there.
    """
    errors = json.loads(bundle.file(VALIDATION))
    print_remarks(bundle.manifest.declared.get("remarks", ()), out)
    if not bundle.manifest.species_verified:
        out.print("  [yellow]elements unverified[/]: nobody said which the student was trained on", soft_wrap=True)
    if "not_executed" in errors:
        out.print(f"  [yellow]built, not executed[/]: {errors['not_executed']}", soft_wrap=True)
    else:
        out.print(f"  against the student in float64: {_errors(errors)}", soft_wrap=True)
    if "left_out" in errors:
        out.print(f"  judged on: {escape(errors['measured_on'])}", soft_wrap=True)
        for line in summary([LeftOut(**each) for each in errors["left_out"]]):
            out.print(f"    [yellow]{escape(line)}[/]", soft_wrap=True)
    if (table := bundle.manifest.radial_table) is not None:
        out.print(
            f"  radial table of {table['rank']} functions: it changes forces by at most "
            f"{1e3 * table['max_force_error']:.4f} meV/Å ({table['structures']} structures)",
            soft_wrap=True,
        )
    if "against_fp32" in errors:
        out.print(f"  against FP32: {_errors(errors['against_fp32'])}", soft_wrap=True)
    if "simulated" in errors:
        out.print(f"  at most, by simulated rounding: {_errors(errors['simulated']['against_fp32'])}", soft_wrap=True)
    if "int8_multiply_adds" in (typed := errors.get("typed", {})):
        shares = typed["int8_multiply_adds"]
        out.print(
            f"  in INT8: {typed['int8_products']} products, {shares['forward']:.0%} of the forward and "
            f"{shares['backward']:.0%} of the backward multiply-adds; the others in {typed['other_products'].upper()}",
            soft_wrap=True,
        )
    for row in errors.get("chosen_from", []):
        found = row.get("refused") or f"{row['milliseconds']:.3f} ms a structure"
        out.print(f"  {row['precision']}: {escape(found)}", soft_wrap=True)
    if (blur := errors["graph_parity"]["float32_forces"]) > 1e-4:
        out.print(
            f"  [yellow]float32 blurs this student[/]: its own forces, in PyTorch, are up to {1e3 * blur:.2f} meV/Å "
            "from float64, most on symmetric molecules",
            soft_wrap=True,
        )


def print_remarks(remarks: Sequence[str], out: Console) -> None:
    """Print what a user should know about how a checkpoint was read.

    Args:
        remarks: see `painn_deploy.export.checkpoint.Checkpoint`.
        out: console to print on.
    """
    for remark in remarks:
        out.print(f"  [yellow]of the checkpoint[/]: {escape(str(remark))}", soft_wrap=True)


def _words(value: Any) -> str:
    return escape(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def _errors(found: dict[str, Any]) -> str:
    return (
        f"energy {1e3 * found['energy_mae']:.4f} meV/atom (MAE), forces {1e3 * found['force_rmse']:.4f} meV/Å (RMSE), "
        f"{found['structures']} structures"
    )
