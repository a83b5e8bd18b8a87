"""`painn-deploy validate`: errors, groups, verdicts, and what got worse than in another bundle."""

from collections.abc import Sequence
from pathlib import Path

from ase.units import GPa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from painn_deploy.calibration.accuracy.errors import Accuracy, Tolerances
from painn_deploy.calibration.accuracy.left_out import summary
from painn_deploy.calibration.origin import Reference
from painn_deploy.calibration.physics.verdicts import Finding, Verdict, format_number
from painn_deploy.calibration.report.comparison import Change
from painn_deploy.calibration.report.validation import (
    Options,
    Validation,
    changes,
    check_output,
    far_line,
    validate,
    write_validations,
)
from painn_deploy.scripts.commands.progress import steps

__all__ = [
    "audit_table",
    "change_table",
    "coloured",
    "error_table",
    "group_table",
    "print_validations",
    "run_validation",
]

COLOURS = {"holds": "green", "within precision": "cyan", "not resolvable": "yellow", "broken": "bold red"}


def run_validation(
    bundles: Sequence[Path],
    reference: Reference,
    options: Options,
    *,
    compare_to: Path | None,
    output: Path | None,
    strict: bool,
    out: Console,
    err: Console,
) -> bool:
    """Validate bundles, print everything, and write the report if it is wanted.

    Args:
        bundles: folders NAME.engine.
        reference: the checkpoint that they were made from, or those of all members of a committee.
        options: how to validate.
        compare_to: another bundle of the same student.
        output: folder for validation.json and report.html; None for none.
        strict: whether a property that the student itself lacks fails a bundle.
        out: console for the results.
        err: console for progress.

    Returns:
        Whether any bundle failed.

    Raises:
        PaiNNDeployError: see `painn_deploy.calibration.report.validation.validate`.
    """
    if output is not None:
        import matplotlib as mpl  # noqa: F401  what would be missing at the end is missed at the start

        check_output(output)
    with steps(err) as tell:
        compared = [] if compare_to is None else [compare_to]
        validations = validate([*bundles, *compared], reference, options, tell=tell)
    baseline = None if compare_to is None else validations.pop()
    failed = print_validations(out, validations, baseline, strict=strict)
    if output is not None:
        from painn_deploy.calibration.report.report import write_report

        for write in (write_validations, write_report):
            out.print(f"wrote {escape(str(write(validations, output, baseline)))}", soft_wrap=True)
    return failed


def print_validations(
    console: Console, validations: Sequence[Validation], baseline: Validation | None, *, strict: bool
) -> bool:
    """Print every bundle's errors, findings and verdict, and what got worse than in the baseline.

    Args:
        console: to print on.
        validations: at least one.
        baseline: of the bundle that they are compared to.
        strict: whether what the student itself lacks fails a bundle.

    Returns:
        Whether any bundle failed.
    """
    console.print(error_table(validations, validations[0].limits))
    for line in summary(validations[0].left_out):
        console.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    if (labelled := validations[0].labelled) is not None:
        console.print(labelled.sentence, soft_wrap=True, highlight=False)
        if labelled.doubt:
            console.print(f"[yellow]{escape(labelled.doubt)}[/]", soft_wrap=True)
    for validation in validations:
        console.print(group_table(validation))
        if validation.far:
            console.print(f"[yellow]{escape(far_line(validation))}[/]", soft_wrap=True)
        if validation.certainty is not None:
            console.print(f"uncertainty: {escape(validation.certainty.sentence)}", soft_wrap=True, highlight=False)
        if validation.audit is not None:
            findings = validation.audit.findings
            for line in summary(validation.audit.left_out):
                console.print(f"[yellow]physics: {escape(line)}[/]", soft_wrap=True)
            console.print(audit_table(findings, f"{validation.bundle.name}: physics"))
            for finding in (each for each in findings if each.verdict != Verdict.HOLDS):
                console.print(f"{coloured(finding)} {finding.name}: {escape(finding.sentence)}", soft_wrap=True)
        if baseline is not None:
            found = changes(baseline, validation)
            console.print(change_table(found, baseline.bundle.name, validation.bundle.name))
            worse = [change for change in found if change.worse]
            if worse:
                named = "; ".join(str(change) for change in worse if ", " not in change.name)
                console.print(
                    f"[red]worse[/] than {escape(baseline.bundle.name)} in {len(worse)} of {len(found)} figures: "
                    f"{escape(named)}",
                    soft_wrap=True,
                )
    failed = False
    for validation in validations:
        name, lacks = escape(validation.bundle.name), validation.student_failures
        for failure in validation.failures:
            what, _, rest = failure.partition(":")
            console.print(f"{name}: [red]{escape(what)}[/]:{escape(rest)}", soft_wrap=True)
        if not validation.failures:
            console.print(f"{name}: [green]faithful[/]", soft_wrap=True)
        if lacks:
            names = "; ".join(finding.name for finding in validation.audit.student_lacks) if validation.audit else ""
            end = "failed by --strict" if strict else "the engine follows it; --strict fails it"
            console.print(f"{name}: [magenta]its student lacks[/] {names} ({end})", soft_wrap=True)
        failed |= bool(validation.failures or (strict and lacks))
    return failed


def error_table(validations: Sequence[Validation], limits: Tolerances) -> Table:
    """A table of every bundle's errors, of the errors that float32 costs the student itself, and of the limits.

    Args:
        validations: at least one; a row each.
        limits: that they were held to.
    """
    first = validations[0]
    made = _errors(f"Errors against the student in float64, {first.accuracy.structures} structures", "bundle")
    made.caption = escape(first.measured_on)
    for validation in validations:
        made.add_row(escape(validation.bundle.name), *_figures(validation.accuracy))
    made.add_row("the student itself, in float32", *_figures(first.float32))
    made.add_section()
    made.add_row("limit", f"{1e3 * limits.energy:g}", f"{1e3 * limits.forces:g}", "", f"{limits.stress / GPa:g}", "")
    return made


def group_table(validation: Validation) -> Table:
    """Errors of one bundle, group by group, and in a batch against one by one."""
    made = _errors(f"{escape(validation.bundle.name)}: where its errors are", "structures")
    for name, accuracy in validation.breakdown.groups.items():
        made.add_row(f"{escape(name)} ({accuracy.structures})", *_figures(accuracy))
    made.add_section()
    made.add_row("against float32", *_figures(validation.added))
    made.add_row("batch against single", *_figures(validation.single))
    return made


def audit_table(findings: Sequence[Finding], title: str) -> Table:
    """A table of findings, one line a property.

    Args:
        findings: of one bundle, family by family.
        title: of the table.
    """
    made = Table(title=escape(title), box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("property", "student", "engine", "limit", "unit", "verdict"):
        made.add_column(heading, justify="right" if heading in ("student", "engine", "limit") else "left")
    family = findings[0].family if findings else ""
    for finding in findings:
        if finding.family != family:
            made.add_section()
            family = finding.family
        figures = [format_number(x) for x in (finding.student, finding.engine, finding.limit)]
        made.add_row(finding.name, *figures, finding.unit, coloured(finding))
    return made


def coloured(finding: Finding) -> str:
    """The verdict, in its colour."""
    colour = "magenta" if finding.verdict == "student: broken" else COLOURS[finding.verdict]
    return f"[{colour}]{finding.verdict}[/]"


def change_table(changes: Sequence[Change], before: str, after: str) -> Table:
    """A table of two bundles' figures side by side.

    Args:
        changes: of each figure.
        before: name of the bundle that is compared to.
        after: name of the bundle.
    """
    made = Table(title=escape(f"{after} compared to {before}"))
    made.add_column("figure")
    made.add_column("before", justify="right")
    made.add_column("after", justify="right")
    made.add_column("unit")
    for change in changes:
        after_text = f"[red]{change.after}, worse[/]" if change.worse else change.after
        made.add_row(escape(change.name), change.before, after_text, change.unit)
    return made


def _errors(title: str, subject: str) -> Table:
    made = Table(title=title)
    made.add_column(subject, overflow="fold")
    for heading in ("energy\nMAE\nmeV/atom", "force\nRMSE\nmeV/Å", "force\nmax\nmeV/Å", "stress\nMAE\nGPa"):
        made.add_column(heading, justify="right")
    made.add_column("worst on")
    return made


def _figures(accuracy: Accuracy) -> list[str]:
    return [
        f"{1e3 * accuracy.energy_mae:.4f}",
        f"{1e3 * accuracy.force_rmse:.4f}",
        f"{1e3 * accuracy.force_max:.4f}",
        "-" if accuracy.stress_mae is None else f"{accuracy.stress_mae / GPa:.6f}",
        escape(accuracy.force_worst),
    ]
