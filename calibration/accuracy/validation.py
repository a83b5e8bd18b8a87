"""Hold bundles against the student that they were made from: in float64, in float32, and by the laws of physics."""

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.breakdown import Breakdown, break_down
from painn_deploy.calibration.accuracy.comparison import Change, by_group, compare_accuracies, compare_findings
from painn_deploy.calibration.accuracy.errors import UNITS, Accuracy, Limits, compare
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.physics.audit import Audit, References, audit
from painn_deploy.calibration.validation_set import choose_validation_set, group_of
from painn_deploy.engines import EngineInfo
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.checkpoint import Checkpoint, load_student, resolve_checkpoint
from painn_deploy.export.errors import CheckpointError, OutputError
from painn_deploy.export.manifest import MANIFEST, VALIDATION, prepare_output, to_json
from painn_deploy.export.progress import Tell
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import local_graphs

__all__ = ["Options", "Validation", "changes", "check_output", "open_bundles", "validate", "write_validations"]

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Options:
    """How to validate.

    Attributes:
        structures: a file that ASE reads; the default validation set otherwise.
        limits: past which a bundle fails; the seed project's by default.
        device: to run the engines on.
        physics: whether to audit physics too.
        picoseconds: of dynamics in the audit; 0 for none.
    """

    structures: Path | None = None
    limits: Limits = field(default_factory=Limits)
    device: str = "auto"
    physics: bool = True
    picoseconds: float = 1.0


@dataclass(frozen=True)
class Samples:
    """What was computed, for pictures and tables.

    Attributes:
        structures: the validation set.
        results: the engine's.
        wanted: the student's, in float64.
    """

    structures: Sequence[Atoms]
    results: Results
    wanted: Results


@dataclass(frozen=True)
class Validation:
    """One bundle's errors, and what of them is past a limit.

    Attributes:
        bundle: path.
        checkpoint: name of the student's file.
        engine: what ran.
        measured_on: which structures.
        limits: that were applied.
        accuracy: errors against the student in float64.
        float32: errors of the student itself in PyTorch and float32, against float64: what float32 costs.
        added: errors of the engine against the student in float32: what the engine adds.
        breakdown: errors against float64 by group, element, size of the force, and structure.
        single: errors of structures evaluated one by one against the same in a batch.
        audit: of its physics; None where it was not asked for.
        sensitivity: of each GEMM, where the bundle's own validation.json holds it.
        samples: what was computed.
    """

    bundle: Path
    checkpoint: str
    engine: EngineInfo
    measured_on: str
    limits: Limits
    accuracy: Accuracy
    float32: Accuracy
    added: Accuracy
    breakdown: Breakdown
    single: Accuracy
    audit: Audit | None
    sensitivity: Sequence[Mapping[str, Any]]
    samples: Samples = field(repr=False)

    @property
    def failures(self) -> list[str]:
        """In words, what fails the bundle: an error past its limit, over all or in a group, or a property lost."""
        found = [f"past its limit: {failure}" for failure in self.accuracy.failures(self.limits)]
        for name, group in self.breakdown.groups.items():
            if len(self.breakdown.groups) > 1:  # stress is that of the few periodic ones anyway
                without_stress = dataclasses.replace(group, stress_mae=None)
                found += [f"past its limit on {name}: {failure}" for failure in without_stress.failures(self.limits)]
        lost = [] if self.audit is None else self.audit.lost
        return found + [f"lost {finding.name}: {finding.sentence}" for finding in lost]

    @property
    def student_failures(self) -> list[str]:
        """In words, the properties that the student never had."""
        lacks = [] if self.audit is None else self.audit.student_lacks
        return [f"{finding.name}: {finding.sentence}" for finding in lacks]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; errors are in the units that `units` names, findings in their own."""
        return {
            "bundle": self.bundle.name,
            "checkpoint": self.checkpoint,
            "engine": dict(self.engine),
            "measured_on": self.measured_on,
            "units": dict(UNITS),
            "limits": vars(self.limits),
            "failures": self.failures,
            "student_failures": self.student_failures,
            **self.accuracy.as_dict(),
            "float32_against_float64": self.float32.as_dict(),
            "engine_against_float32": self.added.as_dict(),
            "single_against_batch": self.single.as_dict(),
            **self.breakdown.as_dict(),
            "audit": None if self.audit is None else self.audit.as_dict(),
            "sensitivity": [dict(row) for row in self.sensitivity],
        }


def validate(
    bundles: Sequence[Path], reference: str | Path, options: Options | None = None, *, tell: Tell = lambda _: None
) -> list[Validation]:
    """Measure each bundle's errors against the student, and audit its physics.

    Args:
        bundles: folders NAME.engine.
        reference: the checkpoint that they were made from.
        options: how.
        tell: called with a line about each step as it begins.

    Raises:
        CheckpointError: the reference is not what a bundle was made from.
        DatasetError: the structures cannot be read, or hold an element that the student does not know.
        StructureError: a structure holds NaN, no atoms, or two atoms on one spot; the message says which.
    """
    options = options or Options()
    opened, source = open_bundles(bundles, reference)
    with _one_thread():
        return _validations([Path(path) for path in bundles], opened, source, reference, options, tell)


def _validations(
    paths: Sequence[Path],
    opened: Sequence[Bundle],
    source: Checkpoint,
    reference: str | Path,
    options: Options,
    tell: Tell,
) -> list[Validation]:
    student = load_student(reference, dtype=torch.float64)
    chosen, named = choose_validation_set(options.structures, student.species)
    local_graphs(chosen, student.configuration.cutoff)  # of many, it says which is wrong
    tell(f"{len(chosen)} structures with the student in float64")
    wanted = reference_results(student, chosen)
    tell(f"{len(chosen)} structures with the student in float32")
    single = reference_results(copy.deepcopy(student).float(), chosen)
    periodic = any(atoms.pbc.any() for atoms in chosen)  # who brings molecules alone has no use for crystals
    references = References.of(student, periodic=periodic) if options.physics else None
    validations = []
    for path, bundle in zip(paths, opened, strict=True):
        label = f"{path.name}: " if len(opened) > 1 else ""
        tell(f"{label}{len(chosen)} structures with the engine")
        with PaiNNCalculator(bundle, device=options.device, threads=1) as calculator:
            results = calculator.calculate_batch(chosen)
            some = _some(chosen)
            alone = [calculator.calculate_batch([chosen[index]])[0] for index in some]
            audited = None
            if references is not None:
                audited = audit(
                    calculator,
                    references,
                    precision=bundle.manifest.precision,
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
                    breakdown=break_down(chosen, results, wanted),
                    single=compare([chosen[i] for i in some], alone, [results[i] for i in some]),
                    audit=audited,
                    sensitivity=_sensitivity(bundle),
                    samples=Samples(chosen, results, wanted),
                )
            )
    return validations


def open_bundles(bundles: Sequence[Path], reference: str | Path) -> tuple[list[Bundle], Checkpoint]:
    """Read bundles, and hold the reference against what they were made from.

    Raises:
        BundleError: one is damaged.
        CheckpointError: the reference is not what a bundle was made from.
    """
    opened = [read_bundle(path) for path in bundles]
    source = resolve_checkpoint(reference)
    for bundle in opened:
        if bundle.manifest.checkpoint_sha256 != source.sha256:
            raise CheckpointError(
                f"{bundle} was not made from {source.path} (its SHA-256 is "
                f"{bundle.manifest.checkpoint_sha256[:12]}..., the file's {source.sha256[:12]}...). "
                "Give the checkpoint that it was made from, or export it again."
            )
    return opened, source


def changes(before: Validation, after: Validation) -> list[Change]:
    """Every figure of two engines side by side, and the properties whose verdict is another."""
    found = compare_accuracies(before.accuracy, after.accuracy)
    found += by_group(before.breakdown.groups, after.breakdown.groups)
    if before.audit is not None and after.audit is not None:
        found += compare_findings(before.audit.findings, after.audit.findings)
    return found


def check_output(folder: Path) -> Path:
    """Make the folder of a report and prove that it can be written, before any long work; never in a bundle.

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
    path.write_bytes(to_json(values))
    return path


def _anew(path: Path, device: str, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
    """Results of a bundle that is opened for them alone, with as many threads: they also decide the size of a batch."""
    with PaiNNCalculator(path, device=device, threads=1) as calculator:
        return calculator.calculate_batch(structures)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: structures are small, and on a busy machine threads wait for each other at every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _some(structures: Sequence[Atoms]) -> list[int]:
    """Up to eight structures of each group, spread over it."""
    groups: dict[str, list[int]] = {}
    for index, atoms in enumerate(structures):
        groups.setdefault(group_of(atoms), []).append(index)
    return sorted(
        {members[int(i)] for members in groups.values() for i in np.linspace(0, len(members) - 1, min(8, len(members)))}
    )


def _sensitivity(bundle: Bundle) -> Sequence[Mapping[str, Any]]:
    """What each GEMM costs in force error when it is quantised, as export measured it."""
    if VALIDATION not in bundle.manifest.files:
        return []
    rows = json.loads(bundle.file(VALIDATION)).get("sensitivity") or []
    return [row for row in rows if isinstance(row, dict)]
