"""Hold bundles against the student that they were made from, in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ase.units import GPa
from rich.markup import escape
from rich.table import Table

from painn_deploy.calibration.accuracy import UNITS, Accuracy, Limits, compare
from painn_deploy.calibration.reference import reference_results
from painn_deploy.calibration.structures import choose_structures
from painn_deploy.engines import EngineInfo
from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import CheckpointError, OutputError
from painn_deploy.export.manifest import MANIFEST, prepare_output, read_bundle, to_json
from painn_deploy.runtime import PaiNNCalculator

__all__ = ["Verdict", "table", "validate", "write_verdicts"]


@dataclass(frozen=True)
class Verdict:
    """One bundle's errors, and what of them is past a limit.

    Attributes:
        bundle: path.
        engine: what ran.
        measured_on: which structures.
        accuracy: errors against the student in float64.
        failures: in words; empty where all is within the limits.
    """

    bundle: Path
    engine: EngineInfo
    measured_on: str
    accuracy: Accuracy
    failures: tuple[str, ...]


def validate(
    bundles: Sequence[Path],
    reference: str | Path,
    *,
    structures: Path | None = None,
    limits: Limits | None = None,
    device: str = "auto",
    tell: Callable[[str], None] = lambda _: None,
) -> list[Verdict]:
    """Measure each bundle's errors against the student in float64 with plain autograd.

    Args:
        bundles: folders NAME.engine.
        reference: the checkpoint that they were made from.
        structures: a file that ASE reads; a default set otherwise.
        limits: past which a bundle fails; the seed project's by default.
        device: to run the engines on.
        tell: called with a line about each step as it begins.

    Raises:
        CheckpointError: the reference is not what a bundle was made from.
        DatasetError: the structures cannot be read, or hold an element that the student does not know.
    """
    opened = [read_bundle(path) for path in bundles]
    source = resolve_checkpoint(reference)
    for bundle in opened:
        if bundle.manifest.checkpoint_sha256 != source.sha256:
            raise CheckpointError(
                f"{bundle.path} was not made from {source.path} (its SHA-256 is "
                f"{bundle.manifest.checkpoint_sha256[:12]}..., the file's {source.sha256[:12]}...). "
                "Give the checkpoint that it was made from, or export it again."
            )
    student = load_student(reference, dtype=torch.float64)
    chosen, named = choose_structures(structures, student.species)
    tell(f"computing {len(chosen)} structures with the student in float64")
    wanted = reference_results(student, chosen)
    verdicts = []
    for bundle in opened:
        tell(f"running {bundle.path.name}")
        with PaiNNCalculator(bundle.path, device=device) as calculator:
            accuracy = compare(chosen, calculator.calculate_batch(chosen), wanted)
            failures = tuple(accuracy.failures(limits or Limits()))
            verdicts.append(Verdict(bundle.path, calculator.engine_info, named, accuracy, failures))
    return verdicts


def table(verdicts: Sequence[Verdict], limits: Limits) -> Table:
    """Errors of every bundle at a glance."""
    first = verdicts[0]
    made = Table(title=f"Errors against the student in float64, {first.accuracy.structures} structures")
    made.caption = escape(first.measured_on)
    made.add_column("bundle", overflow="fold")
    for heading in ("energy\nMAE\nmeV/atom", "force\nRMSE\nmeV/Å", "force\nmax\nmeV/Å", "stress\nMAE\nGPa"):
        made.add_column(heading, justify="right")
    made.add_column("worst on")
    for verdict in verdicts:
        a = verdict.accuracy
        made.add_row(
            escape(verdict.bundle.name),
            f"{1e3 * a.energy_mae:.4f}",
            f"{1e3 * a.force_rmse:.4f}",
            f"{1e3 * a.force_max:.4f}",
            "-" if a.stress_mae is None else f"{a.stress_mae / GPa:.6f}",
            escape(a.force_worst),
        )
    made.add_section()
    made.add_row("limit", f"{1e3 * limits.energy:g}", f"{1e3 * limits.forces:g}", "", f"{limits.stress / GPa:g}", "")
    return made


def write_verdicts(verdicts: Sequence[Verdict], folder: Path) -> Path:
    """Write validation.json, never into a bundle.

    Raises:
        OutputError: the folder cannot be written.
    """
    if any((parent / MANIFEST).exists() for parent in (folder, *folder.resolve().parents)):
        raise OutputError(
            f"{folder} is a bundle or inside one, and a bundle never changes. Choose another folder with -o."
        )
    path = prepare_output(folder) / "validation.json"
    rows = [
        {
            "bundle": v.bundle.name,
            "engine": dict(v.engine),
            "measured_on": v.measured_on,
            "units": dict(UNITS),
            "failures": list(v.failures),
            **v.accuracy.as_dict(),
        }
        for v in verdicts
    ]
    path.write_bytes(to_json({"bundles": rows}))
    return path
