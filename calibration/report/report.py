"""A validation as one HTML page that needs nothing else: pictures are inside it, and it prints.

The page is `report.html.j2`, in which jinja2 escapes every name and sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase.units import GPa
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from painn_deploy.calibration.accuracy.errors import Accuracy
from painn_deploy.calibration.accuracy.left_out import summary
from painn_deploy.calibration.physics.verdicts import format_quantity
from painn_deploy.calibration.report.certainty import certainty_chart
from painn_deploy.calibration.report.charts import (
    Errors,
    as_data_uri,
    distributions,
    drift_curves,
    parity,
    sensitivity_bars,
)
from painn_deploy.calibration.report.comparison import Change
from painn_deploy.calibration.report.validation import Validation, changes, check_output, far_line
from painn_deploy.calibration.validation_set import group_of
from painn_deploy.export.files import write_output

__all__ = ["page", "write_report"]

VERDICT_CLASSES = {
    "holds": "holds",
    "within precision": "within",
    "not resolvable": "unresolved",
    "broken": "broken",
    "student: broken": "student",
}
"""CSS class of each verdict."""


def write_report(validations: Sequence[Validation], folder: Path, baseline: Validation | None = None) -> Path:
    """Write report.html.

    Args:
        validations: at least one.
        folder: to write into, never a bundle.
        baseline: of the bundle that they are compared to.

    Raises:
        OutputError: the folder is a bundle, or cannot be written.
    """
    path = check_output(folder) / "report.html"
    write_output(path, page(validations, baseline).encode())
    return path


def page(validations: Sequence[Validation], baseline: Validation | None = None) -> str:
    """The page's text.

    Args:
        validations: at least one; a section each.
        baseline: of the bundle that they are compared to.
    """
    first = validations[0]
    return _template().render(
        checkpoint=first.checkpoint,
        structures=first.accuracy.structures,
        measured_on=first.measured_on,
        left_out=summary(first.left_out, most=20),
        limits=first.limits,
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        all_engines=[(v.bundle.name, v.accuracy) for v in validations],
        baseline=None if baseline is None else baseline.bundle.name,
        sections=[_section(v, baseline) for v in validations],
    )


@dataclass(frozen=True)
class _Banner:
    """The verdict on a bundle: its CSS class, a title, and a line for each reason."""

    kind: str
    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class _Section:
    """All that the page says of one bundle; pictures are data URIs, and empty where there is none."""

    validation: Validation
    banner: _Banner
    groups: Sequence[tuple[str, Accuracy]]
    parity: str
    distributions: str
    certainty: str
    drifts: str
    sensitivity: str
    shares: str
    changes: Sequence[Change]


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "summary": summary,
        "far_line": far_line,
        "figure": _figure,
        "share": _share,
        "with_unit": format_quantity,
    }
    environment.globals |= {"GPa": GPa, "verdict_classes": VERDICT_CLASSES}
    return environment.get_template("report.html.j2")


def _figure(value: float | None, digits: int, scale: float = 1.0) -> str:
    """A number with so many decimals, times `scale`; a dash where there is none, or NaN."""
    return "–" if value is None or value != value else f"{scale * value:.{digits}f}"


def _share(value: float) -> str:
    """A share in per cent; a dash where there is none."""
    return f"{100 * value:.0f} %" if value == value else "–"


def _section(v: Validation, baseline: Validation | None) -> _Section:
    errors = _errors(v)
    return _Section(
        validation=v,
        banner=_banner(v),
        groups=[(f"{name} ({group.structures})", group) for name, group in v.breakdown.groups.items()],
        parity=as_data_uri(parity(errors)),
        distributions=as_data_uri(distributions(errors)),
        certainty="" if v.certainty is None else as_data_uri(certainty_chart(v.certainty)),
        drifts=as_data_uri(drift_curves(v.audit.drifts)) if v.audit is not None and v.audit.drifts else "",
        sensitivity=as_data_uri(sensitivity_bars(v.sensitivity)) if v.sensitivity else "",
        shares=_shares(v.sensitivity),
        changes=[] if baseline is None else changes(baseline, v),
    )


def _banner(v: Validation) -> _Banner:
    lines, lacks = list(v.failures), v.student_failures
    kind = "broken" if lines else "student" if lacks else "holds"
    title = "Fails" if lines else "Faithful to its student, which has defects of its own" if lacks else "Faithful"
    if v.audit is not None and not lines:
        kept = sum(f.engine_verdict in ("holds", "within precision") for f in v.audit.findings)
        lines.append(f"The engine keeps {kept} of {len(v.audit.findings)} properties that were audited.")
    if lacks and v.audit is not None:
        names = "; ".join(finding.name for finding in v.audit.student_lacks)
        lines.append(f"The student itself lacks: {names}. Another engine does not mend that.")
    return _Banner(kind, title, lines)


def _shares(sensitivity: Sequence[Mapping[str, Any]]) -> str:
    """The share of all multiply-adds that each precision has; empty where they were not counted."""
    totals: dict[str, int] = {}
    for row in sensitivity:
        totals[str(row["precision"])] = totals.get(str(row["precision"]), 0) + int(row.get("multiply_adds") or 0)
    whole = sum(totals.values())
    return ", ".join(f"{100 * n / whole:.0f} % in {p.upper()}" for p, n in sorted(totals.items())) if whole else ""


def _errors(v: Validation) -> Errors:
    groups: dict[str, tuple[list[np.ndarray], list[np.ndarray], list[float]]] = {}
    samples = v.samples
    for atoms, got, want in zip(samples.structures, samples.results, samples.wanted, strict=True):
        wanted, errors, energies = groups.setdefault(group_of(atoms), ([], [], []))
        wanted.append(np.ravel(want["forces"]))
        errors.append(np.ravel(got["forces"]) - np.ravel(want["forces"]))
        energies.append((got["energy"] - want["energy"]) / len(atoms))
    return {
        name: (np.concatenate(wanted), np.concatenate(errors), np.array(energies))
        for name, (wanted, errors, energies) in groups.items()
    }
