"""What an audit says of one property: its figures, its limit, a verdict, and a sentence.

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

__all__ = ["Case", "Finding", "Measure", "Verdict", "Words", "judge", "largest", "length", "rms", "say", "show"]


class Verdict(StrEnum):
    """On one property."""

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
"""From eV, eV/Å and eV/Å³ to the units that findings are told in; drifts come as meV/atom/ps, counts as they are."""


@dataclass(frozen=True)
class Case:
    """A property on one structure.

    Attributes:
        subject: which structure, pair or path.
        student: size of the student's own defect.
        engine: size of the engine's.
        lost: size of the difference of the two, as vectors; what the engine is answerable for.
        allowance: how much of `lost` the precision explains here.
        student_allowance: by how much the student's figure is uncertain.
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
        """From the numbers that would be zero; `size` makes one of them, the largest where it is not given."""
        one, other = np.atleast_1d(np.asarray(student, float)), np.atleast_1d(np.asarray(engine, float))
        size = size or largest
        return cls(subject, size(one), size(other), size(other - one), float(allowance))


@dataclass(frozen=True)
class Words:
    """What to say. `{subject}`, `{student}`, `{engine}`, `{lost}` and `{limit}` are filled in, with units.

    Attributes:
        holds: where engine and student hold.
        student: where the student is broken, and the engine follows it.
        engine: where the engine lost it.
    """

    holds: str
    student: str
    engine: str


@dataclass(frozen=True)
class Measure:
    """How a property is judged.

    Attributes:
        name: of the property.
        family: `symmetry`, `consistency`, `dynamics` or `reproducibility`.
        unit: one of `SCALES`.
        limit: below which it holds, in eV, eV/Å or eV/Å³.
        ceiling: above which no precision is an excuse; infinity where any that was measured is.
        words: what to say.
        statistical: whether a figure within the limit may be so by chance, as a fitted slope is, so that it proves
            nothing where its uncertainty hides a defect past the ceiling.
    """

    name: str
    family: str
    unit: str
    limit: float
    ceiling: float
    words: Words
    statistical: bool = False

    def finding(self, cases: Sequence[Case]) -> "Finding":
        """The verdict on the worst of the cases, each judged by its own allowance.

        What cannot be resolved on one structure is judged by the others; only where all cannot is there no verdict.
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
        told = student if own == Verdict.BROKEN and gravest != Verdict.BROKEN else engine
        found = Finding(
            name=self.name,
            family=self.family,
            subject=told.subject,
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
        return found.told(self._say(told, own, gravest))

    def _say(self, case: Case, own: Verdict, engine: Verdict) -> str:
        values = {
            name: say(self._in_unit(getattr(case, name)), self.unit)
            for name in ("student", "engine", "lost", "allowance")
        }
        values |= {"subject": case.subject, "limit": say(self._in_unit(self.limit), self.unit)}
        if engine == Verdict.BROKEN:
            return self.words.engine.format(**values)
        if own == Verdict.BROKEN:
            return self.words.student.format(**values)
        if engine == Verdict.UNRESOLVED:
            return (
                f"No verdict: on {case.subject} the engine differs from its student by {values['lost']}, and its "
                f"rounding alone may be {values['allowance']}."
            )
        sentence = self.words.holds.format(**values)
        if engine == Verdict.WITHIN:
            sentence += f" More than the student's, and explained by this precision's rounding ({values['allowance']})."
        return sentence

    def _in_unit(self, value: float) -> float:
        return float(value * SCALES[self.unit])


@dataclass(frozen=True)
class Finding:
    """One line of an audit.

    Attributes:
        name: of the property.
        family: `symmetry`, `consistency`, `dynamics` or `reproducibility`.
        subject: where it is worst.
        student: the largest defect of the student in float64.
        engine: the largest of the engine.
        lost: the largest difference of the two, for which the engine is answerable.
        limit: below which the property holds.
        allowance: up to which the engine's measured rounding explains `lost`.
        unit: of these five.
        student_verdict: `holds` or `broken`.
        engine_verdict: of what the engine lost.
        sentence: in words.
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
        """One for the line: what the engine lost goes before what the student never had."""
        if self.engine_verdict != Verdict.BROKEN and self.student_verdict == Verdict.BROKEN:
            return "student: broken"
        return str(self.engine_verdict)

    def told(self, sentence: str) -> "Finding":
        """The same with another sentence."""
        return Finding(**{**self.__dict__, "sentence": sentence})

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite becomes None."""
        values = {key: str(value) if isinstance(value, Verdict) else value for key, value in asdict(self).items()}
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        return values | {"verdict": self.verdict}


def judge(lost: float, allowance: float, limit: float, ceiling: float, *, statistical: bool = False) -> Verdict:
    """The verdict on what an engine adds to its student; NaN is broken.

    Args:
        lost: its size.
        allowance: up to which the engine's measured rounding explains it.
        limit: below which a property holds.
        ceiling: above which a property cannot be said to be kept, whatever explains it.
        statistical: whether `lost` may be small by chance.
    """
    if lost <= limit:
        return Verdict.UNRESOLVED if statistical and allowance > max(limit, ceiling) else Verdict.HOLDS
    if lost <= min(allowance, ceiling):
        return Verdict.WITHIN
    return Verdict.UNRESOLVED if ceiling < allowance and lost <= allowance else Verdict.BROKEN


def largest(values: np.ndarray) -> float:
    """Of all numbers, without sign; NaN where one is."""
    return float(np.abs(values).max())


def rms(values: np.ndarray) -> float:
    """Root of the mean square of all numbers."""
    return float(np.sqrt(np.square(values).mean()))


def length(vector: np.ndarray) -> float:
    """Of a vector."""
    return float(np.linalg.norm(vector))


def show(value: float) -> str:
    """Three digits, with an exponent only where it is worth one."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def say(value: float, unit: str) -> str:
    """A figure with its unit, in eV where there are thousands of meV."""
    if unit.startswith("meV") and 1000 <= abs(value) < math.inf:
        return f"{show(value / 1000)} {unit.removeprefix('m')}"
    return f"{show(value)} {unit}"


def _worst(cases: Sequence[Case], key: str) -> Case:
    return max(cases, key=lambda case: math.inf if math.isnan(getattr(case, key)) else getattr(case, key))
