"""A property of physics, judged: its figures on each structure, its limit, a verdict, and a sentence about it.

A property is measured as numbers that are zero where it holds: the change of an energy under rotation, a net force. The
same numbers are taken from the student in float64 and from the engine, on the same geometries. Their size for the
student is the student's own defect; the size of their *difference* is what the engine lost. So a defect of the student
never hides one of the engine, nor is it blamed on it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from ase.units import GPa

__all__ = [
    "Case",
    "Finding",
    "Property",
    "Sentences",
    "Verdict",
    "format_number",
    "format_quantity",
    "judge",
    "largest",
    "length",
    "rms",
]


class Verdict(StrEnum):
    """The verdict on one property."""

    HOLDS = "holds"
    WITHIN = "within precision"
    UNRESOLVED = "not resolvable"
    BROKEN = "broken"


SCALES = {
    "meV": 1e3,
    "meV/atom": 1e3,
    "meV/Å": 1e3,
    "GPa": 1 / GPa,
    "meV/atom/ps": 1.0,
    "numbers": 1.0,
}
"""Factors from eV, eV/Å and eV/Å³ to the units of findings; drifts are in meV/atom/ps already, and counts have none."""


@dataclass(frozen=True)
class Case:
    """The defects of student and engine in one property on one structure, in eV, eV/Å or eV/Å³.

    Attributes:
        subject: name of the structure, pair or path.
        student: size of the student's defect.
        engine: size of the engine's defect.
        lost: size of the difference of the two, as vectors: the engine is answerable for it.
        allowance: how much of `lost` the precision explains here.
        student_allowance: uncertainty of the student's defect.
    """

    subject: str
    student: float
    engine: float
    lost: float
    allowance: float
    student_allowance: float = 0.0

    @classmethod
    def of(
        cls,
        subject: str,
        student: np.ndarray | float,
        engine: np.ndarray | float,
        allowance: float,
        size: Callable[[np.ndarray], float] | None = None,
    ) -> "Case":
        """Make a case from the numbers that are zero where the property holds.

        Args:
            subject: name of the structure, pair or path.
            student: the student's numbers, an array of any shape; eV, eV/Å or eV/Å³.
            engine: the engine's, in the same shape and unit.
            allowance: how much of their difference the precision explains, in the same unit.
            size: one number for an array of them; `largest` by default.
        """
        one, other = np.atleast_1d(np.asarray(student, float)), np.atleast_1d(np.asarray(engine, float))
        size = size or largest
        return cls(subject, size(one), size(other), size(other - one), float(allowance))


@dataclass(frozen=True)
class Sentences:
    """The sentences of a property, with places for `{subject}` and for figures with their unit.

    These figures are `{student}`, `{engine}`, `{lost}`, `{limit}` and `{allowance}`.

    Attributes:
        holds: the sentence if engine and student have the property.
        student: the sentence if the student lacks it, and the engine follows the student.
        engine: the sentence about what the engine adds, and nothing about the student: whether the student has the
            property is said after it.
    """

    holds: str
    student: str
    engine: str


@dataclass(frozen=True)
class Property:
    """A property, and how its cases are judged.

    Attributes:
        name: of the property.
        family: `symmetry`, `consistency`, `dynamics` or `reproducibility`.
        unit: of the finding, one of `SCALES`.
        limit: largest defect with which the property holds, in eV, eV/Å or eV/Å³.
        ceiling: largest defect that rounding can excuse, in the same unit; infinite if all measured rounding excuses.
        sentences: about the verdict.
        statistical: whether a figure may be within the limit by chance, as a fitted slope may. Then it proves nothing
            if its uncertainty could hide a defect above the ceiling.
    """

    name: str
    family: str
    unit: str
    limit: float
    ceiling: float
    sentences: Sentences
    statistical: bool = False

    def finding(self, cases: Sequence[Case]) -> "Finding":
        """Judge each case by its own allowance, and report the worst.

        A case that the precision cannot resolve is left to the others; only if none can be is there no verdict.
        """
        owns = [
            Verdict.HOLDS if c.student <= self.limit + c.student_allowance else Verdict.BROKEN for c in cases
        ]  # NaN is not
        own = Verdict.BROKEN if Verdict.BROKEN in owns else Verdict.HOLDS
        student = _worst([case for case, verdict in zip(cases, owns, strict=True) if verdict == own], "student")
        verdicts = [judge(c.lost, c.allowance, self.limit, self.ceiling, statistical=self.statistical) for c in cases]
        judged = [c for c, verdict in zip(cases, verdicts, strict=True) if verdict != Verdict.UNRESOLVED] or cases
        resolved = [verdict for verdict in verdicts if verdict != Verdict.UNRESOLVED]
        gravest = max(resolved or verdicts, key=list(Verdict).index)
        engine = _worst([case for case, verdict in zip(cases, verdicts, strict=True) if verdict == gravest], "lost")
        worst = student if own == Verdict.BROKEN and gravest != Verdict.BROKEN else engine
        found = Finding(
            name=self.name,
            family=self.family,
            subject=worst.subject,
            student=self._in_unit(student.student),
            engine=self._in_unit(_worst(judged, "engine").engine),
            lost=self._in_unit(engine.lost),
            limit=self._in_unit(self.limit),
            allowance=self._in_unit(min(engine.allowance, self.ceiling)),
            unit=self.unit,
            student_verdict=own,
            engine_verdict=gravest,
            sentence="",
        )
        return found.with_sentence(self._sentence(worst, own, gravest) + self._beside(student, own, gravest))

    def _beside(self, case: Case, own: Verdict, engine: Verdict) -> str:
        """What the student does, after a sentence about what its engine adds."""
        if engine != Verdict.BROKEN:
            return ""
        if own != Verdict.BROKEN:
            return " Its student does not show this."
        size = self._in_unit(case.student)
        figure = f", by {format_quantity(size, self.unit)}" if math.isfinite(size) else ""
        return f" Its student shows it too{figure} on {case.subject}; the engine adds to that."

    def _sentence(self, case: Case, own: Verdict, engine: Verdict) -> str:
        values = {
            name: format_quantity(self._in_unit(getattr(case, name)), self.unit)
            for name in ("student", "engine", "lost", "allowance")
        }
        values |= {"subject": case.subject, "limit": format_quantity(self._in_unit(self.limit), self.unit)}
        if engine == Verdict.BROKEN:
            return self.sentences.engine.format(**values)
        if own == Verdict.BROKEN:
            return self.sentences.student.format(**values)
        if engine == Verdict.UNRESOLVED:
            return (
                f"No verdict: on {case.subject} the engine differs from its student by {values['lost']}, and its "
                f"rounding alone may be {values['allowance']}."
            )
        sentence = self.sentences.holds.format(**values)
        if engine == Verdict.WITHIN:
            sentence += (
                f" The engine adds {values['lost']} to its student's, which this precision's rounding explains "
                f"({values['allowance']})."
            )
        return sentence

    def _in_unit(self, value: float) -> float:
        return float(value * SCALES[self.unit])


@dataclass(frozen=True)
class Finding:
    """The finding on one property: one line of an audit.

    Attributes:
        name: of the property.
        family: `symmetry`, `consistency`, `dynamics` or `reproducibility`.
        subject: name of the worst structure, pair or path.
        student: largest defect of the student in float64.
        engine: largest defect of the engine.
        lost: largest difference of the two, for which the engine is answerable.
        limit: largest defect with which the property holds.
        allowance: largest `lost` that the engine's measured rounding explains.
        unit: of these five figures.
        student_verdict: `holds` or `broken`.
        engine_verdict: the verdict on `lost`.
        sentence: about both verdicts.
    """

    name: str
    family: str
    subject: str
    student: float
    engine: float
    lost: float
    limit: float
    allowance: float
    unit: str
    student_verdict: Verdict
    engine_verdict: Verdict
    sentence: str

    @property
    def verdict(self) -> str:
        """One verdict for both: a loss of the engine goes before a defect of the student."""
        if self.engine_verdict != Verdict.BROKEN and self.student_verdict == Verdict.BROKEN:
            return "student: broken"
        return str(self.engine_verdict)

    def with_sentence(self, sentence: str) -> "Finding":
        """A copy with another sentence."""
        return Finding(**{**self.__dict__, "sentence": sentence})

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; a figure that is not finite becomes None."""
        values = {key: str(value) if isinstance(value, Verdict) else value for key, value in asdict(self).items()}
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return values | {"verdict": self.verdict}


def judge(lost: float, allowance: float, limit: float, ceiling: float, *, statistical: bool = False) -> Verdict:
    """The verdict on the defect that an engine adds to its student's; NaN is broken. All four figures have one unit.

    Args:
        lost: size of the added defect.
        allowance: largest defect that the engine's measured rounding explains.
        limit: largest defect with which the property holds.
        ceiling: largest defect that rounding can excuse.
        statistical: whether `lost` may be small by chance.
    """
    if lost <= limit:
        return Verdict.UNRESOLVED if statistical and allowance > max(limit, ceiling) else Verdict.HOLDS
    if lost <= min(allowance, ceiling):
        return Verdict.WITHIN
    return Verdict.UNRESOLVED if ceiling < allowance and lost <= allowance else Verdict.BROKEN


def largest(values: np.ndarray) -> float:
    """The largest absolute value of an array of any shape; NaN if one is NaN."""
    return float(np.abs(values).max())


def rms(values: np.ndarray) -> float:
    """The root mean square of an array of any shape."""
    return float(np.sqrt(np.square(values).mean()))


def length(vector: np.ndarray) -> float:
    """The Euclidean length of a vector."""
    return float(np.linalg.norm(vector))


def format_number(value: float) -> str:
    """A number with three digits, and with an exponent only if it is very small or very large."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def format_quantity(value: float, unit: str) -> str:
    """A number with its unit; thousands of meV become eV.

    Args:
        value: in the unit.
        unit: one of `SCALES`.
    """
    if unit.startswith("meV") and 1000 <= abs(value) < math.inf:
        return f"{format_number(value / 1000)} {unit.removeprefix('m')}"
    return f"{format_number(value)} {unit}"


def _worst(cases: Sequence[Case], key: str) -> Case:
    return max(cases, key=lambda case: math.inf if math.isnan(getattr(case, key)) else getattr(case, key))
