"""The physics audit: every property, of an engine and of its student, with a verdict each."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from painn_deploy.calibration import consistency, continuity, motion, reproducibility, symmetry
from painn_deploy.calibration.accuracy import Limits
from painn_deploy.calibration.motion import Drift
from painn_deploy.calibration.reference import TorchCalculator
from painn_deploy.calibration.resolution import Evaluate, Resolution, measure_resolution, noise_findings
from painn_deploy.calibration.subjects import Audited, choose_subjects
from painn_deploy.calibration.verdicts import Finding, Verdict
from painn_deploy.export.student import Student

__all__ = ["PROPERTIES", "Audit", "audit"]

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


def audit(
    engine: Any,
    student: Student,
    *,
    precision: str,
    limits: Limits | None = None,
    again: Evaluate | None = None,
    picoseconds: float = 1.0,
    only: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Audit an engine.

    Args:
        engine: an ASE calculator with `calculate_batch`, such as `PaiNNCalculator`.
        student: what it was made from, in float64.
        precision: of the engine, `fp32`, `fp16` or `int8`; it bounds what rounding may excuse.
        limits: errors that the user accepts; the seed project's by default.
        again: the same engine, opened a second time, to show that its answers are the same to the bit.
        picoseconds: of dynamics; 0 for none.
        only: some of `PROPERTIES`, without simulations and second runs; all by default.
        tell: called with a line about each step as it begins.
    """
    limits, double = limits or Limits(), TorchCalculator(student)
    subjects = choose_subjects(student.species, verified=student.configuration.species is not None)
    single = TorchCalculator(copy.deepcopy(student).float())
    tell("measuring the engine's rounding")
    probes = [*subjects.shaken, *subjects.crystals]
    resolution = measure_resolution(
        engine.calculate_batch,
        double.calculate_batch,
        single.calculate_batch,
        probes,
        precision=precision,
        limits=limits,
    )
    audited = Audited(
        engine.calculate_batch,
        double.calculate_batch,
        single.calculate_batch,
        student.configuration.cutoff,
        precision,
        limits,
        subjects,
        resolution,
    )
    findings = noise_findings(resolution, limits)
    drifts: Mapping[str, Drift] = {}
    for name, measure in PROPERTIES.items():
        if only is None or name in only:
            tell(name)
            findings += measure(audited)
    if only is None:
        tell("two runs")
        findings += reproducibility.equal_to_the_bit(audited, again)
        findings += motion.relaxation(audited, engine, double, tell)
        if picoseconds > 0:
            found, drifts = motion.energy_drift(audited, engine, double, picoseconds=picoseconds, tell=tell)
            findings += found
    order = ("symmetry", "consistency", "dynamics", "reproducibility")
    return Audit(tuple(sorted(findings, key=lambda f: order.index(f.family))), resolution, drifts)
