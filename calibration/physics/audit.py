"""The physics audit: a verdict on each property of an engine, beside that of its student."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from painn_deploy.calibration.accuracy.domain import Domain
from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.calibration.accuracy.left_out import LeftOut
from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.calibration.physics import consistency, continuity, motion, reproducibility, symmetry
from painn_deploy.calibration.physics.choosing import frames_of, sound_subjects
from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.calibration.physics.resolution import Evaluate, Resolution, measure_resolution, noise_findings
from painn_deploy.calibration.physics.subjects import Audited, Subjects, choose_subjects
from painn_deploy.calibration.physics.verdicts import Finding, Verdict
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, silent

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
    "crossing the cutoff": continuity.cross_cutoff,
    "perfect symmetry": continuity.cusp,
    "stretching bonds": continuity.bond_stretch,
    "batch against single": reproducibility.batch_and_single,
    "molecules far apart": reproducibility.size_consistency,
}
"""Properties that are measured on results alone, by the line that announces each."""


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        findings: one for each property.
        resolution: of the engine's precision.
        drifts: total energies along dynamics by the names `engine` and `student`; empty if none ran.
        left_out: structures that nothing was judged on, since the student cannot be judged there.
    """

    findings: tuple[Finding, ...]
    resolution: Resolution
    drifts: Mapping[str, Drift]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def lost(self) -> list[Finding]:
        """Findings on properties that the student has and the engine lost."""
        return [f for f in self.findings if f.engine_verdict == Verdict.BROKEN]

    @property
    def student_lacks(self) -> list[Finding]:
        """Findings on properties that the student never had."""
        return [f for f in self.findings if f.student_verdict == Verdict.BROKEN]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "resolution": self.resolution.as_dict(),
            "drifts": {name: drift.as_dict() for name, drift in self.drifts.items()},
            "left_out": [each.as_dict() for each in self.left_out],
        }


@dataclass(frozen=True)
class References:
    """A student that engines are audited against; its results are kept, so that the second engine costs less.

    Attributes:
        student: an ASE calculator of the student in float64.
        single: an ASE calculator of the student in float32.
        subjects: the structures.
        cutoff: Å.
    """

    student: TorchCalculator
    single: TorchCalculator
    subjects: Subjects
    cutoff: float

    @classmethod
    def of(cls, student: Student, *, periodic: bool = True, domain: Domain | None = None) -> "References":
        """Prepare a student to be compared with, on structures that it can be judged on.

        Args:
            student: in float64.
            periodic: whether crystals of the default set are audited too.
            domain: the user's structures, as `find_domain` returned them: all that is audited are some of these. A
                default set, or None, is for subjects of the student's elements, those on which it is sane.

        Raises:
            DatasetError: the student cannot be judged on any structure.
        """
        calculator = TorchCalculator(student, remember=True)
        single = TorchCalculator(copy.deepcopy(student).float(), remember=True)
        evaluators = (calculator.calculate_batch, single.calculate_batch)
        if domain is not None and domain.brought:
            subjects = frames_of(domain, *evaluators)
        else:
            verified = student.configuration.species is not None
            chosen = choose_subjects(student.species, verified=verified, periodic=periodic)
            subjects = sound_subjects(chosen, *evaluators)
        return cls(calculator, single, subjects, student.configuration.cutoff)


def prepare(engine: Any, references: References, precision: str, limits: Tolerances | None = None) -> Audited:
    """Measure the resolution of an engine's precision, before any property is judged.

    Args:
        engine: an ASE calculator with `calculate_batch`, such as `PaiNNCalculator`.
        references: of the student that it was made from.
        precision: of the engine, `fp64`, `fp32`, `tf32`, `fp16` or `int8`.
        limits: errors that the user accepts; the seed project's by default.
    """
    limits, subjects = limits or Tolerances(), references.subjects
    evaluators = (
        engine.calculate_batch,
        references.student.calculate_batch,
        references.single.calculate_batch,
    )
    resolution = measure_resolution(*evaluators, subjects.perturbed, precision=precision, limits=limits)
    return Audited(*evaluators, references.cutoff, precision, limits, subjects, resolution)


def audit(
    engine: Any,
    references: References,
    *,
    precision: str,
    limits: Tolerances | None = None,
    again: Evaluate | None = None,
    picoseconds: float = 1.0,
    tell: Tell = silent,
) -> Audit:
    """Audit an engine: measure every property, of the engine and of its student, and judge each.

    Args:
        engine: an ASE calculator with `calculate_batch`, such as `PaiNNCalculator`.
        references: of the student that it was made from.
        precision: of the engine, `fp64`, `fp32`, `tf32`, `fp16` or `int8`; it bounds what rounding may excuse.
        limits: errors that the user accepts; the seed project's by default.
        again: the same engine opened a second time, to compare its results bit by bit; None for one opening.
        picoseconds: length of the dynamics; 0 for none.
        tell: called with a line about each step as it begins.
    """
    tell("measuring the engine's rounding")
    audited = prepare(engine, references, precision, limits)
    findings = noise_findings(audited.resolution, audited.limits)
    for index, (name, measure) in enumerate(PROPERTIES.items()):
        tell(f"{name}, {index + 1} of {len(PROPERTIES)} kinds of trials")
        findings += measure(audited)
    tell("two runs")
    findings += reproducibility.equal_to_the_bit(audited, again)
    findings += motion.relaxation(audited, engine, references.student, tell, single=references.single)
    drifts: Mapping[str, Drift] = {}
    if picoseconds > 0:
        found, drifts = motion.energy_drift(
            audited, engine, references.student, picoseconds=picoseconds, single=references.single, tell=tell
        )
        findings += found
    order = ("symmetry", "consistency", "dynamics", "reproducibility")
    findings.sort(key=lambda finding: order.index(finding.family))
    return Audit(tuple(findings), audited.resolution, drifts, references.subjects.left_out)
