"""What an export says of each bundle: the errors that were measured, and what to know about them."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from painn_deploy.export.manifest import VALIDATION, read_bundle

__all__ = ["print_errors"]


def print_errors(path: Path, out: Console) -> None:
    """Say what validation.json of a bundle holds.

    Args:
        path: of the bundle.
        out: where to print.
    """
    bundle = read_bundle(path)
    errors = json.loads(bundle.file(VALIDATION))
    if "not_executed" in errors:
        out.print(f"  [yellow]built, not executed[/]: {errors['not_executed']}", soft_wrap=True)
    else:
        out.print(f"  against the student in float64: {_errors(errors)}", soft_wrap=True)
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


def _errors(found: dict[str, Any]) -> str:
    return (
        f"energy {1e3 * found['energy_mae']:.4f} meV/atom (MAE), forces {1e3 * found['force_rmse']:.4f} meV/Å (RMSE), "
        f"{found['structures']} structures"
    )
