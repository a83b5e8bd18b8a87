"""Validation: bundles compared with the student that they were made from, in float64 and float32, and audited."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.breakdown import Breakdown, break_down
from painn_deploy.calibration.accuracy.domain import find_domain
from painn_deploy.calibration.accuracy.double import allowed_error
from painn_deploy.calibration.accuracy.errors import ERROR_UNITS, Accuracy, Tolerances, compare, describe
from painn_deploy.calibration.accuracy.left_out import LeftOut, named
from painn_deploy.calibration.accuracy.reference import one_thread
from painn_deploy.calibration.labels import Labelled
from painn_deploy.calibration.origin import Reference, load_origin
from painn_deploy.calibration.physics.audit import Audit, References, audit
from painn_deploy.calibration.report.comparison import Change, by_group, compare_accuracies, compare_findings
from painn_deploy.calibration.uncertainty.calibrated import Calibrated
from painn_deploy.calibration.validation_set import choose_validation_set, group_of
from painn_deploy.engines import EngineInfo
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.checkpoint import Checkpoint
from painn_deploy.export.errors import BundleError, OutputError
from painn_deploy.export.files import prepare_output, to_json, write_output
from painn_deploy.export.manifest import MANIFEST, VALIDATION
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, silent
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.familiarity import Judged, far_structures
from painn_deploy.runtime.matrix import local_graphs
from painn_deploy.runtime.periodicity import warned_already

__all__ = [
    "Options",
    "Samples",
    "Validation",
    "changes",
    "check_output",
    "far_line",
    "validate",
    "write_validations",
]

LARGEST = 2**63
"""Of a number that is drawn."""

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Options:
    """Options of a validation.

    Attributes:
        structures: a file that ASE reads; None for the default validation set.
        limits: errors above which a bundle fails; the seed project's by default.
        device: to run the engines on.
        physics: whether physics is audited too.
        picoseconds: length of the dynamics in the audit; 0 for none.
    """

    structures: Path | None = None
    limits: Tolerances = field(default_factory=Tolerances)
    device: str = "auto"
    physics: bool = True
    picoseconds: float = 1.0


@dataclass(frozen=True)
class Samples:
    """Structures with all results on them, for pictures and tables.

    Attributes:
        structures: the validation set.
        results: of the engine on each structure.
        wanted: of the student in float64 on each structure.
    """

    structures: Sequence[Atoms]
    results: Results
    wanted: Results


@dataclass(frozen=True)
class Validation:
    """One bundle's errors, and its failures against the tolerances.

    Attributes:
        bundle: path.
        checkpoint: name of the student's file.
        engine: the session that ran.
        measured_on: name of the structures.
        limits: tolerances that the errors were compared with.
        accuracy: errors against the student in float64.
        float32: errors of the student itself in PyTorch and float32 against float64: the cost of float32.
        added: errors of the engine against the student in float32: the engine's own share.
        breakdown: errors against float64 by group, element, size of the force, and structure.
        single: errors of structures evaluated one by one against the same structures in a batch.
        audit: of its physics; None if it was not audited.
        sensitivity: of each GEMM, if the bundle's own validation.json holds it.
        samples: structures with all results on them.
        left_out: structures of the set on which the student cannot be judged.
        far: structures that are far from all that the bundle was judged on at export, with what of them is.
        certainty: the engine's uncertainties beside errors against labels that structures came with; None where it
            gives none, or too few came with an energy.
        labelled: the student's forces against those that structures came with; None where none did.
        exact: eV/Å, the largest RMSE of forces of an engine in `fp64`; infinite for the others.
    """

    bundle: Path
    checkpoint: str
    engine: EngineInfo
    measured_on: str
    limits: Tolerances
    accuracy: Accuracy
    float32: Accuracy
    added: Accuracy
    breakdown: Breakdown
    single: Accuracy
    audit: Audit | None
    sensitivity: Sequence[Mapping[str, Any]]
    samples: Samples = field(repr=False)
    left_out: Sequence[LeftOut] = ()
    far: Sequence[LeftOut] = ()
    certainty: Calibrated | None = None
    labelled: Labelled | None = None
    exact: float = float("inf")

    @property
    def failures(self) -> list[str]:
        """One message a reason to fail: an error above its tolerance, over all or in a group, or a lost property."""
        found = [f"past its limit: {failure}" for failure in self.accuracy.failures(self.limits)]
        for name, group in self.breakdown.groups.items():
            if len(self.breakdown.groups) > 1:  # stress is that of the few periodic ones anyway
                without_stress = dataclasses.replace(group, stress_mae=None)
                found += [f"past its limit on {name}: {failure}" for failure in without_stress.failures(self.limits)]
        if not self.accuracy.force_rmse <= self.exact:
            off = f"{1e3 * self.accuracy.force_rmse:.1e} meV/Å (RMSE)"
            found.append(f"it is in fp64, and its forces are off by {off}: it computes in less")
        lost = [] if self.audit is None else self.audit.lost
        return found + [f"lost {finding.name}: {finding.sentence}" for finding in lost]

    @property
    def student_failures(self) -> list[str]:
        """One message for each property that the student never had."""
        lacks = [] if self.audit is None else self.audit.student_lacks
        return [f"{finding.name}: {finding.sentence}" for finding in lacks]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; errors are in the units that `units` names, findings in their own."""
        return {
            "bundle": self.bundle.name,
            "checkpoint": self.checkpoint,
            "engine": dict(self.engine),
            "measured_on": self.measured_on,
            "left_out": [each.as_dict() for each in self.left_out],
            "far": [each.as_dict() for each in self.far],
            "units": dict(ERROR_UNITS),
            "limits": vars(self.limits),
            "failures": self.failures,
            "student_failures": self.student_failures,
            **self.accuracy.as_dict(),
            "float32_against_float64": self.float32.as_dict(),
            "engine_against_float32": self.added.as_dict(),
            "single_against_batch": self.single.as_dict(),
            **self.breakdown.as_dict(),
            "certainty": None if self.certainty is None else self.certainty.as_dict(),
            "labels": None if self.labelled is None else self.labelled.as_dict(),
            "audit": None if self.audit is None else self.audit.as_dict(),
            "sensitivity": [dict(row) for row in self.sensitivity],
        }


def validate(
    bundles: Sequence[Path], reference: Reference, options: Options | None = None, *, tell: Tell = silent
) -> list[Validation]:
    """Measure each bundle's errors against the student, and audit its physics.

    Args:
        bundles: folders NAME.engine.
        reference: the checkpoint that they were made from, or those of all members of a committee.
        options: of the validation.
        tell: called with a line about each step as it begins.

    Raises:
        CheckpointError: the reference is not what a bundle was made from.
        DatasetError: the structures cannot be read, hold an element that the student does not know, or are none that
            it can be judged on.
        StructureError: a structure holds NaN, no atoms, or two atoms on one spot; the message says which.

    Warns:
        PeriodicityWarning: structures look like crystals and have no periodic direction; once, counting them.
    """
    options = options or Options()
    opened = [read_bundle(path) for path in bundles]
    student, source = load_origin(opened, reference, torch.float64)
    with one_thread():
        return _validations([Path(path) for path in bundles], opened, student, source, options, tell)


def _validations(
    paths: Sequence[Path],
    opened: Sequence[Bundle],
    student: Student,
    source: Checkpoint,
    options: Options,
    tell: Tell,
) -> list[Validation]:
    tell("reading structures")
    candidates, named = choose_validation_set(options.structures, student)
    local_graphs(candidates, student.configuration.cutoff)  # of many, it says which is wrong
    double, brought = [each.manifest.precision == "fp64" for each in opened], options.structures is not None
    domain = find_domain(student, candidates, named, brought=brought, in_double=all(double), tell=tell)
    chosen, wanted, single = domain.structures, domain.wanted, domain.single
    periodic = any(atoms.pbc.any() for atoms in chosen)  # who brings molecules alone has no use for crystals
    references = References.of(student, periodic=periodic, domain=domain) if options.physics else None
    exact = allowed_error(student, chosen, wanted) if any(double) else float("inf")
    labelled = Labelled.of(chosen, wanted)
    validations, groups = [], [group_of(atoms) for atoms in chosen]
    for path, bundle in zip(paths, opened, strict=True):
        label = f"{path.name}: " if len(opened) > 1 else ""
        tell(f"{label}evaluating {len(chosen)} structures with the engine")
        with warned_already(), PaiNNCalculator(bundle, device=options.device, threads=1) as calculator:
            results = calculator.calculate_batch(chosen)
            scale = None if calculator.evaluator.uncertainty is None else calculator.evaluator.uncertainty.scale
            some = _some(chosen)
            alone = [calculator.calculate_batch([chosen[index]])[0] for index in some]
            audited = None
            if references is not None:
                audited = audit(
                    calculator,
                    references,
                    precision=bundle.manifest.arithmetic,
                    limits=options.limits,
                    again=lambda structures, path=path: _anew(path, options.device, structures),  # type: ignore[misc]
                    picoseconds=options.picoseconds,
                    tell=lambda line, label=label: tell(f"{label}{line}"),  # type: ignore[misc]
                )
            validations.append(
                Validation(
                    bundle=path,
                    checkpoint=source.name,
                    engine=calculator.engine_info,
                    measured_on=named,
                    limits=options.limits,
                    accuracy=compare(chosen, results, wanted),
                    float32=compare(chosen, single, wanted),
                    added=compare(chosen, results, single),
                    breakdown=break_down(chosen, results, wanted, domain.numbers),
                    single=compare([chosen[i] for i in some], alone, [results[i] for i in some]),
                    audit=audited,
                    sensitivity=_sensitivity(bundle),
                    samples=Samples(chosen, results, wanted),
                    left_out=domain.left_out,
                    far=_far(bundle, chosen, domain.numbers),
                    certainty=Calibrated.of(chosen, results, groups, scale, domain.numbers),
                    labelled=labelled,
                    exact=exact if bundle.manifest.precision == "fp64" else float("inf"),
                )
            )
    return validations


def _far(bundle: Bundle, structures: Sequence[Atoms], places: Sequence[int]) -> list[LeftOut]:
    found = far_structures(Judged.in_bundle(bundle), structures)
    return [LeftOut(places[index], describe(structures[index]), words) for index, words in found]


def changes(before: Validation, after: Validation) -> list[Change]:
    """Compare every figure of two engines, and the verdicts on every property.

    Args:
        before: of the engine that is compared to.
        after: of the engine that is validated.
    """
    found = compare_accuracies(before.accuracy, after.accuracy)
    found += by_group(before.breakdown.groups, after.breakdown.groups)
    if before.audit is not None and after.audit is not None:
        found += compare_findings(before.audit.findings, after.audit.findings)
    return found


def far_line(validation: Validation, most: int = 4) -> str:
    """One line about the structures that are far from all that a bundle was judged on; empty where none is.

    Args:
        validation: of the bundle.
        most: structures that are named.
    """
    if not (far := validation.far):
        return ""
    return (
        f"{len(far)} of {validation.accuracy.structures} structures are far from all that {validation.bundle.name} was "
        f"judged on at export: {named(far, most)}. Of {far[0].index}, {far[0].reason}."
    )


def check_output(folder: Path) -> Path:
    """Make the folder of a report, which is in no bundle, and prove that it can be written, before any long work.

    Raises:
        OutputError: it is a bundle or inside one, or cannot be written.
    """
    if any((parent / MANIFEST).exists() for parent in (folder, *folder.resolve().parents)):
        raise OutputError(
            f"{folder} is a bundle or inside one, and a bundle never changes. Choose another folder with -o."
        )
    return prepare_output(folder)


def write_validations(validations: Sequence[Validation], folder: Path, baseline: Validation | None = None) -> Path:
    """Write validation.json.

    Args:
        validations: of the bundles.
        folder: to write into, see `check_output`.
        baseline: of the bundle that they are compared to.

    Raises:
        OutputError: the folder cannot be written.
    """
    values: dict[str, Any] = {"bundles": [validation.as_dict() for validation in validations]}
    if baseline is not None:
        values["compared_to"] = baseline.as_dict()
        values["changes"] = {v.bundle.name: [vars(change) for change in changes(baseline, v)] for v in validations}
    path = check_output(folder) / "validation.json"
    write_output(path, to_json(values))
    return path


def _anew(path: Path, device: str, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
    """Results of a bundle opened anew, with one thread as before: the number of threads decides the size of a batch."""
    with PaiNNCalculator(path, device=device, threads=1) as calculator:
        return calculator.calculate_batch(structures)


def _some(structures: Sequence[Atoms]) -> list[int]:
    """Indices of up to eight structures of each group, spread over it."""
    groups: dict[str, list[int]] = {}
    for index, atoms in enumerate(structures):
        groups.setdefault(group_of(atoms), []).append(index)
    return sorted(
        {members[int(i)] for members in groups.values() for i in np.linspace(0, len(members) - 1, min(8, len(members)))}
    )


def _sensitivity(bundle: Bundle) -> Sequence[Mapping[str, Any]]:
    """Force errors of each GEMM quantised alone, as export measured them."""
    if VALIDATION not in bundle.manifest.files:
        return []
    rows = bundle.json(VALIDATION).get("sensitivity") or []
    if not (isinstance(rows, list) and all(map(_is_sensitivity, rows))):
        raise BundleError(f"{VALIDATION} of {bundle}: sensitivity holds what makes no sense. Export the bundle again.")
    return rows


def _is_sensitivity(row: Any) -> bool:
    """Whether a row is one that can be drawn."""
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) and "$" not in row[key] for key in ("gemm", "precision"))
        and isinstance(row.get("force_rmse"), int | float)
        and abs(row["force_rmse"]) < LARGEST  # and is no NaN
        and type(row.get("multiply_adds", 0)) is int
        and 0 <= row.get("multiply_adds", 0) < LARGEST
    )
