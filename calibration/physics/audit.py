"""The physics audit: every property, of an engine and of its student, with a verdict each."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from painn_deploy.calibration.accuracy.errors import Limits
from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.calibration.physics import consistency, continuity, motion, reproducibility, symmetry
from painn_deploy.calibration.physics.motion import Drift
from painn_deploy.calibration.physics.resolution import Evaluate, Resolution, measure_resolution, noise_findings
from painn_deploy.calibration.physics.subjects import Audited, Subjects, choose_subjects
from painn_deploy.calibration.physics.verdicts import Finding, Verdict
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell

__all__ = ["PROPERTIES", "Audit", "References", "audit", "prepare"]

PROPERTIES: Mapping[str, Callable[[Audited], list[Finding]]] = {
    "turning molecules": symmetry.rotation,
    "torques": symmetry.torque,
    "net forces": symmetry.net_force,
    "moving structures": symmetry.translation,
    "renumbering atoms": symmetry.permutation,
    "choosing other cells": symmetry.lattice_shift,
    "forces against finite differences": consistency.force_gradient,
    "stress against finite differences": consistency.stress_gradient,
    "crossing the cutoff": continuity.cutoff,
    "perfect symmetry": continuity.cusp,
    "stretching bonds": continuity.bond_stretch,
    "batch against single": reproducibility.batch_and_single,
    "molecules far apart": reproducibility.size_consistency,
}
"""What is measured on results alone, by the line that says so; those with a simulation or a second run come after."""


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        findings: one for each property.
        resolution: what the engine's precision lets one see.
        drifts: total energies of `engine` and `student` along dynamics; empty where none ran.
    """

    findings: tuple[Finding, ...]
    resolution: Resolution
    drifts: Mapping[str, Drift]

    @property
    def lost(self) -> list[Finding]:
        """Properties that the student has and the engine lost."""
        return [f for f in self.findings if f.engine_verdict == Verdict.BROKEN]

    @property
    def student_lacks(self) -> list[Finding]:
        """Properties that the student never had."""
        return [f for f in self.findings if f.student_verdict == Verdict.BROKEN]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "resolution": self.resolution.as_dict(),
            "drifts": {name: drift.as_dict() for name, drift in self.drifts.items()},
        }


@dataclass(frozen=True)
class References:
    """What every engine of a student is held against; results are kept, so that the second engine costs less.

    Attributes:
        student: in float64, an ASE calculator.
        single: in float32: what float32 itself does.
        subjects: structures.
        cutoff: Å.
    """

    student: TorchCalculator
    single: TorchCalculator
    subjects: Subjects
    cutoff: float

    @classmethod
    def of(cls, student: Student, *, periodic: bool = True) -> "References":
        """From a student in float64; `periodic` says whether crystals are audited, too."""
        return cls(
            TorchCalculator(student, remember=True),
            TorchCalculator(copy.deepcopy(student).float(), remember=True),
            choose_subjects(student.species, verified=student.configuration.species is not None, periodic=periodic),
            student.configuration.cutoff,
        )


def prepare(engine: Any, references: References, precision: str, limits: Limits | None = None) -> Audited:
    """Measure what an engine's precision lets one see, before any property is judged; arguments as of `audit`."""
    limits, subjects = limits or Limits(), references.subjects
    evaluators = (
        engine.calculate_batch,
        references.student.calculate_batch,
        references.single.calculate_batch,
    )
    probes = [*subjects.shaken, *subjects.crystals]
    resolution = measure_resolution(*evaluators, probes, precision=precision, limits=limits)
    return Audited(*evaluators, references.cutoff, precision, limits, subjects, resolution)


def audit(
    engine: Any,
    references: References,
    *,
    precision: str,
    limits: Limits | None = None,
    again: Evaluate | None = None,
    picoseconds: float = 1.0,
    tell: Tell = lambda _: None,
) -> Audit:
    """Audit an engine.

    Args:
        engine: an ASE calculator with `calculate_batch`, such as `PaiNNCalculator`.
        references: of the student that it was made from.
        precision: of the engine, `fp32`, `fp16` or `int8`; it bounds what rounding may excuse.
        limits: errors that the user accepts; the seed project's by default.
        again: the same engine, opened a second time, to show that its answers are the same to the bit.
        picoseconds: of dynamics; 0 for none.
        tell: called with a line about each step as it begins.
    """
    tell("measuring the engine's rounding")
    audited = prepare(engine, references, precision, limits)
    findings = noise_findings(audited.resolution, audited.limits)
    for name, measure in PROPERTIES.items():
        tell(name)
        findings += measure(audited)
    tell("two runs")
    findings += reproducibility.equal_to_the_bit(audited, again)
    findings += motion.relaxation(audited, engine, references.student, tell)
    drifts: Mapping[str, Drift] = {}
    if picoseconds > 0:
        found, drifts = motion.energy_drift(audited, engine, references.student, picoseconds=picoseconds, tell=tell)
        findings += found
    order = ("symmetry", "consistency", "dynamics", "reproducibility")
    return Audit(tuple(sorted(findings, key=lambda f: order.index(f.family))), audited.resolution, drifts)
