"""Comparison of two validations of one student's engines: every figure side by side, and whether it got worse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ase.units import GPa

from painn_deploy.calibration.accuracy.errors import Accuracy
from painn_deploy.calibration.physics.verdicts import Finding, Verdict

__all__ = ["Change", "by_group", "compare_accuracies", "compare_findings"]

WORSE = 1.1
"""An error is called worse if it grows by more than this factor, and by more than the figure's noise below."""

FIGURES: Sequence[tuple[str, str, str, float, float]] = (
    ("energy_mae", "energy MAE", "meV/atom", 1e3, 1e-3),
    ("energy_max", "energy max", "meV/atom", 1e3, 1e-2),
    ("force_rmse", "force RMSE", "meV/Å", 1e3, 1e-2),
    ("force_max", "force max", "meV/Å", 1e3, 1e-1),
    ("stress_mae", "stress MAE", "GPa", 1 / GPa, 1e-4),
)
"""Attribute of `Accuracy`, name, unit, factor to that unit, and the change in it that counts as noise."""


@dataclass(frozen=True)
class Change:
    """One figure of two engines.

    Attributes:
        name: of the figure.
        before: its value for the engine that is compared to.
        after: its value for the engine that is validated.
        unit: of both; empty if they are words.
        worse: whether it got worse.
    """

    name: str
    before: str
    after: str
    unit: str
    worse: bool

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name}: {self.before} to {self.after}{unit}"


def compare_accuracies(before: Accuracy, after: Accuracy, where: str = "") -> list[Change]:
    """Compare every figure that two accuracies have.

    Args:
        before: of the engine that is compared to.
        after: of the engine that is validated.
        where: group of structures, put behind the figures' names.
    """
    changes = []
    for key, name, unit, scale, noise in FIGURES:
        old, new = getattr(before, key), getattr(after, key)
        if old is None or new is None:
            continue
        old, new = scale * old, scale * new
        worse = not new <= max(WORSE * old, old + noise)  # NaN is worse
        changes.append(Change(f"{name}, {where}" if where else name, f"{old:.4f}", f"{new:.4f}", unit, worse))
    return changes


def compare_findings(before: Sequence[Finding], after: Sequence[Finding]) -> list[Change]:
    """Compare findings: a change for each property whose verdict is not the same.

    Args:
        before: of the engine that is compared to.
        after: of the engine that is validated.
    """
    order, old = list(Verdict), {finding.name: finding for finding in before}
    changes = []
    for finding in after:
        earlier = old.get(finding.name)
        if earlier is not None and earlier.engine_verdict != finding.engine_verdict:
            worse = order.index(finding.engine_verdict) > order.index(earlier.engine_verdict)
            changes.append(Change(finding.name, earlier.verdict, finding.verdict, "", worse))
    return changes


def by_group(before: Mapping[str, Accuracy], after: Mapping[str, Accuracy]) -> list[Change]:
    """Compare every figure of the groups that both have.

    Args:
        before: accuracies by group, of the engine that is compared to.
        after: the same of the engine that is validated.
    """
    return [
        change for name in after if name in before for change in compare_accuracies(before[name], after[name], name)
    ]
