"""A validation as one HTML page that needs nothing else: pictures are inside it, and it prints."""

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from ase.units import GPa

from painn_deploy.calibration.accuracy.breakdown import ForceErrors
from painn_deploy.calibration.accuracy.errors import Accuracy
from painn_deploy.calibration.physics.verdicts import Finding, say
from painn_deploy.calibration.report.charts import (
    Errors,
    as_image,
    distributions,
    drift_curves,
    parity,
    sensitivity_bars,
)
from painn_deploy.calibration.report.validation import Validation, changes, check_output
from painn_deploy.calibration.validation_set import group_of
from painn_deploy.export.errors import OutputError

__all__ = ["page", "write_report"]

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; color: #1c2330;
  background: #fff; margin: 2.5rem auto; max-width: 58rem; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.3rem; margin: 2.2rem 0 .5rem;
  border-bottom: 2px solid #1c2330; padding-bottom: .2rem; overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; } p { margin: .4rem 0; }
.lead, .note { color: #566070; } .note { font-size: .87rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; margin: .3rem 0 .8rem; }
th, td { padding: .28rem .55rem; border-bottom: 1px solid #dfe3ea; text-align: left; vertical-align: top; }
th { border-bottom: 1.5px solid #8b94a3; font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:first-child, th:first-child { min-width: 8.5rem; }
tr.open td { border-bottom: none; padding-bottom: 0; } td.said { color: #3c4554; padding: .1rem .55rem .5rem; }
tr.limit td { color: #566070; font-style: italic; }
.tag { display: inline-block; padding: 0 .45rem; border-radius: .6rem; border: 1.5px solid; font-size: .8rem;
  font-weight: 600; white-space: nowrap; }
.holds { color: #1d6b4c; } .within { color: #1f5f8b; } .unresolved { color: #8a6500; } .broken { color: #b3261e; }
.student { color: #7a3f9d; }
.banner { border-left: .4rem solid; padding: .5rem .9rem; margin: .8rem 0; background: #f6f7f9; }
.banner p { color: #1c2330; } .banner strong { font-size: 1.05rem; }
img { width: 100%; height: auto; } figure { margin: .6rem 0; }
@page { size: A4; margin: 16mm 14mm; }
@media print { body { font-size: 10pt; margin: 0; max-width: none; padding: 0; }
  section + section { break-before: page; } h2, h3 { break-after: avoid; }
  figure, tr, .banner { break-inside: avoid; } tr.open { break-after: avoid; } thead { display: table-header-group; }
  .banner { background: none; border-top: 1px solid #dfe3ea; border-bottom: 1px solid #dfe3ea; } }
@media (max-width: 40rem) { table { display: block; overflow-x: auto; } }
"""
CLASSES = {
    "holds": "holds",
    "within precision": "within",
    "not resolvable": "unresolved",
    "broken": "broken",
    "student: broken": "student",
}


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
    try:
        path.write_text(page(validations, baseline), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def page(validations: Sequence[Validation], baseline: Validation | None = None) -> str:
    """The page's text."""
    first = validations[0]
    count = "1 engine" if len(validations) == 1 else f"{len(validations)} engines"
    parts = [
        f"<h1>Validation of {_e(first.checkpoint)}</h1>",
        f'<p class="lead">{count} against the student in float64, '
        f"on {first.accuracy.structures} structures: {_e(first.measured_on)}. "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, painn-deploy.</p>",
    ]
    if len(validations) > 1:
        rows = [(_e(v.bundle.name), v.accuracy) for v in validations]
        parts.append(f"<h3>All engines</h3>{_accuracies('engine', rows, first)}")
    parts += [_section(validation, baseline) for validation in validations]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Validation of {_e(first.checkpoint)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _section(v: Validation, baseline: Validation | None) -> str:
    errors = _errors(v)
    references = [
        ("engine, against float64", v.accuracy),
        ("engine, against float32", v.added),
        ("student in float32, against float64", v.float32),
        ("one by one, against a batch", v.single),
    ]
    engine = v.engine
    parts = [
        f"<section><h2>{_e(v.bundle.name)}</h2>",
        f'<p class="lead">{_e(engine["backend"])} {_e(engine["version"])} on {_e(engine["device"])}, '
        f"{_e(engine['precision'].upper())}.</p>",
        _banner(v),
        "<h3>Errors</h3>",
        _accuracies("", references, v),
        '<p class="note">The first line is judged. The second is what the engine adds to float32, the third what '
        "float32 itself costs the student in PyTorch.</p>",
        _picture(parity(errors), "Forces of the engine against the student's, and errors by the size of the force"),
        _picture(distributions(errors), "Distributions of force and energy errors"),
        "<h3>By group of structures</h3>",
        _accuracies("group", [(f"{_e(n)} ({a.structures})", a) for n, a in v.breakdown.groups.items()], v),
    ]
    if v.audit is not None:
        parts += ["<h3>Physics</h3>", _findings(v.audit.findings)]
        if v.audit.drifts:
            parts.append(_picture(drift_curves(v.audit.drifts), "Total energy of engine and student in dynamics"))
    parts += [
        "<h3>By element, and by the size of the student's force</h3>",
        _force_errors([*v.breakdown.elements, *v.breakdown.magnitudes]),
        "<h3>Structures with the largest force errors</h3>",
        _worst(v),
    ]
    if v.sensitivity:
        parts += ["<h3>Sensitivity</h3>", _picture(sensitivity_bars(v.sensitivity), "Force error that each GEMM costs")]
        parts.append(_multiply_adds(v))
    if baseline is not None:
        parts += [f"<h3>Compared to {_e(baseline.bundle.name)}</h3>", _changes(baseline, v)]
    return "\n".join([*parts, "</section>"])


def _banner(v: Validation) -> str:
    failures, lacks = v.failures, v.student_failures
    kind = "broken" if failures else "student" if lacks else "holds"
    title = "Fails" if failures else "Faithful to its student, which has defects of its own" if lacks else "Faithful"
    lines = [f"<p>{_e(line)}</p>" for line in failures]
    if v.audit is not None and not failures:
        kept = sum(f.engine_verdict in ("holds", "within precision") for f in v.audit.findings)
        lines.append(f"<p>The engine keeps {kept} of {len(v.audit.findings)} properties that were audited.</p>")
    if lacks and v.audit is not None:
        names = "; ".join(_e(finding.name) for finding in v.audit.student_lacks)
        lines.append(f"<p>The student itself lacks: {names}. Another engine does not mend that.</p>")
    return f'<div class="banner {kind}"><strong>{title}</strong>{"".join(lines)}</div>'


def _accuracies(subject: str, rows: Sequence[tuple[str, Accuracy]], v: Validation) -> str:
    heads = ("energy MAE<br>meV/atom", "max", "force MAE<br>meV/Å", "RMSE", "max", "cosine")
    head = "".join(f'<th class="n">{name}</th>' for name in (*heads, "stress MAE<br>GPa", "max"))
    lines = []
    for name, a in rows:
        figures = [1e3 * x for x in (a.energy_mae, a.energy_max, a.force_mae, a.force_rmse, a.force_max)]
        cells = [f"{x:.4f}" for x in figures] + ["–" if a.force_cosine is None else f"{a.force_cosine:.7f}"]
        cells += ["–" if x is None else f"{x / GPa:.5f}" for x in (a.stress_mae, a.stress_max)]
        lines.append(f"<tr><td>{name}</td>{_numbers(cells)}</tr>")
    limits = [
        f"{1e3 * v.limits.energy:g}",
        "",
        "",
        f"{1e3 * v.limits.forces:g}",
        "",
        "",
        f"{v.limits.stress / GPa:g}",
        "",
    ]
    lines.append(f'<tr class="limit"><td>limit</td>{_numbers(limits)}</tr>')
    return f"<table><thead><tr><th>{subject}</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _force_errors(rows: Sequence[ForceErrors]) -> str:
    head = "".join(f'<th class="n">{x}</th>' for x in ("atoms", "MAE<br>meV/Å", "RMSE", "max", "cosine"))
    lines = []
    for row in rows:
        cells = [str(row.atoms), *(f"{1e3 * x:.4f}" for x in (row.mae, row.rmse, row.max))]
        cells.append("–" if row.cosine is None else f"{row.cosine:.7f}")
        lines.append(f"<tr><td>{_e(row.name)}</td>{_numbers(cells)}</tr>")
    return f"<table><thead><tr><th>which</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _worst(v: Validation) -> str:
    head = "".join(f'<th class="n">{x}</th>' for x in ("force max<br>meV/Å", "force RMSE", "energy<br>meV/atom"))
    lines = []
    for w in v.breakdown.worst:
        cells = [f"{1e3 * w.force_max:.4f}", f"{1e3 * w.force_rmse:.4f}", f"{1e3 * w.energy:+.4f}"]
        lines.append(
            f"<tr><td>{w.index}</td><td>{_e(w.name)}</td><td>{_e(w.group)}</td><td>{w.atom}</td>{_numbers(cells)}</tr>"
        )
    names = "<th>no.</th><th>structure</th><th>group</th><th>atom</th>"
    return f"<table><thead><tr>{names}{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _findings(findings: Sequence[Finding]) -> str:
    lines = []
    for f in findings:
        figures = [say(x, f.unit) for x in (f.student, f.engine, f.limit)]
        tag = f'<span class="tag {CLASSES[f.verdict]}">{f.verdict}</span>'
        lines.append(
            f'<tr class="open"><td><strong>{_e(f.name)}</strong></td>{_numbers(figures)}<td>{tag}</td></tr>'
            f'<tr><td colspan="5" class="said">{_e(f.sentence)}</td></tr>'
        )
    head = "<th>property</th>" + "".join(f'<th class="n">{x}</th>' for x in ("student", "engine", "limit"))
    note = (
        '<p class="note">Student: its own defect, in float64. Engine: its own. The verdict is on what the engine adds. '
        "<em>Within precision</em>: more than the limit, and explained by the rounding that was measured. <em>Not "
        "resolvable</em>: rounding hides whether it holds. <em>Student: broken</em>: the student never had it.</p>"
    )
    return f"<table><thead><tr>{head}<th>verdict</th></tr></thead><tbody>{''.join(lines)}</tbody></table>{note}"


def _multiply_adds(v: Validation) -> str:
    totals: dict[str, int] = {}
    for row in v.sensitivity:
        totals[str(row["precision"])] = totals.get(str(row["precision"]), 0) + int(row.get("multiply_adds") or 0)
    whole = sum(totals.values())
    if not whole:
        return ""
    shares = ", ".join(f"{100 * n / whole:.0f} % in {_e(p.upper())}" for p, n in sorted(totals.items()))
    return f'<p class="note">Of all multiply-adds in GEMMs: {shares}.</p>'


def _changes(baseline: Validation, v: Validation) -> str:
    lines = []
    for change in changes(baseline, v):
        tag = '<span class="tag broken">worse</span>' if change.worse else ""
        figures = _numbers([change.before, change.after])
        lines.append(f"<tr><td>{_e(change.name)}</td>{figures}<td>{change.unit}</td><td>{tag}</td></tr>")
    head = '<th>figure</th><th class="n">before</th><th class="n">after</th><th>unit</th><th></th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


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


def _picture(svg: str, text: str) -> str:
    return f"<figure>{as_image(svg, text)}</figure>"


def _numbers(cells: Sequence[str]) -> str:
    return "".join(f'<td class="n">{_e(cell)}</td>' for cell in cells)


def _e(text: object) -> str:
    return html.escape(str(text))
