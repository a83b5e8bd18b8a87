"""One student on its way to bundles: the graph and its gate, the precisions, the engines; each bundle in memory."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.errors import Accuracy, Tolerances
from painn_deploy.calibration.accuracy.tabling import Tabled, find_table
from painn_deploy.calibration.labels import Labelled
from painn_deploy.calibration.structures import CALIBRATION_NAME, calibration_structures, trusted_species
from painn_deploy.calibration.timing import milliseconds
from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import BuildOptions, BuiltEngine, Closing
from painn_deploy.engines.cache import build_cached
from painn_deploy.engines.profiles import plan_profile
from painn_deploy.export.bundle import Bundle
from painn_deploy.export.checkpoint import Checkpoint, load_checkpoint, load_committee
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import PrecisionError
from painn_deploy.export.files import to_json
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.manifest import MODEL, VALIDATION, Manifest
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell
from painn_deploy.export.versions import installed
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.familiarity import JUDGED_ON, Judged
from painn_deploy.runtime.grouping import group, padding_waste
from painn_deploy.runtime.periodicity import warned_already
from painn_deploy.scripts.commands.certainty import Certainty
from painn_deploy.scripts.commands.measuring import GATE, Examiner
from painn_deploy.scripts.commands.trials import Given, choose_trial
from painn_deploy.scripts.commands.typed_graphs import INT8_LIMITS, TypedGraph, TypedGraphs, auto_choice

__all__ = ["Bundler", "Made"]

REFERENCE = "the student in PyTorch, float64, plain autograd"
PACKAGES = ("painn-deploy", "torch", "onnx", "numpy", "ase", "vesin")
TIMED = 12
"""Structures that each candidate of `auto` is timed on."""

SHARES = (1.0, 0.75, 0.5)
"""INT8 is searched for within these shares of the limits, one after the other, until an engine keeps the limits."""


@dataclasses.dataclass(frozen=True)
class Made:
    """An engine that passed every check, and is not written yet.

    Attributes:
        bundle: in memory, with its validation.json.
        accuracy: errors against FP32, the worst of those measured and simulated; None for an engine in FP32.
    """

    bundle: Bundle
    accuracy: Accuracy | None


@dataclasses.dataclass(frozen=True)
class _Traced:
    """One graph that was traced from the student, with all that is made of it.

    Attributes:
        student: in the graph's own type.
        exact: bundle in memory of the graph for the engine `GATE`.
        graphs: typed from it.
        examiner: of engines that are built of them.
    """

    student: Student
    exact: Bundle
    graphs: TypedGraphs
    examiner: Examiner


class Bundler(Closing):
    """Makes the bundles of one student; what they share is computed once. Nothing is written.

    Args:
        checkpoints: a .safetensors or .pt file, or a student that ships; several for a committee.
        structures: see `painn_deploy.scripts.export_engines`, as for the others.
        training: to fit on.
        uncertainty: whether a student, unless a committee, says how sure it is.
        engines: that will be asked for.
        precisions: likewise.
        compute_capabilities: of GPUs.
        limits: errors that lower precisions may cost.
        device: that engines are built for which are bound to a kind of device.
        tf32: for FP32 products on a GPU; of engines that honour it.
        form: of the graph, for `inductor`.
        table_error: eV/Å, the most that a radial table may cost a force component; None for no table.
        tell: called with a line about each step.
        declared: units, elements and the energy's name, of a checkpoint that does not say.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        EngineUnavailableError: an engine cannot be built here, or not of this student; before anything takes time.
        DatasetError: structures cannot be read, hold an element that the student does not know, or are none that it
            can be judged on.
    """

    def __init__(
        self,
        checkpoints: Sequence[str | Path],
        structures: Given,
        training: Given,
        compute_capabilities: Sequence[str],
        limits: Tolerances | None,
        *,
        engines: Sequence[str],
        precisions: Sequence[str],
        device: str,
        tf32: bool,
        form: str,
        table_error: float | None,
        uncertainty: bool,
        tell: Tell,
        declared: Declaration | None = None,
    ) -> None:
        self._tell = tell
        reference: Student
        self._members: list[Checkpoint] = []
        if len(checkpoints) == 1:
            reference, self._source = load_checkpoint(checkpoints[0], dtype=torch.float64, declared=declared)
        else:
            loaded = load_committee(checkpoints, dtype=torch.float64, declared=declared)
            reference, self._source, self._members = loaded
        self._options = BuildOptions(tuple(compute_capabilities), device=device, tf32=tf32, form=form)
        for engine in engines:
            for precision in precisions:
                get_backend(engine).check(self._options_for(precision))
        self._of_student = {engine: get_backend(engine).of_student(reference) for engine in engines}
        tell("reading structures")
        in_double = set(precisions) == {"fp64"}
        fits = "int8" in precisions or table_error is not None or training is not None
        self._trial = choose_trial(reference, structures, training, fits=fits, in_double=in_double, tell=tell)
        self._domain = self._trial.domain
        tell(f"noting the surroundings of atoms in {len(self._domain)} structures")
        self._judged_on = Judged.of(self._domain.structures, reference.configuration.cutoff).as_dict()
        labelled = Labelled.of(self._domain.structures, self._domain.wanted)
        self._labels = {} if labelled is None else {"labels": labelled.as_dict()}
        self._table: Tabled | None = None
        self._exported = reference
        if table_error is not None:
            tell("measuring radial tables")
            fitted, fitted_on = self._trial.fitted, self._trial.fitted_on
            if not fitted:
                fitted, fitted_on = self._domain.structures, self._domain.name
            self._table = find_table(reference, fitted, fitted_on, table_error, tell=tell)
            self._exported = reference.with_radial_table(self._table.rank, self._table.intervals)
            self._of_student = {engine: get_backend(engine).of_student(self._exported) for engine in engines}
        frames, named = (None if training is None else self._trial.fitted), self._trial.fitted_on
        self._certainty = Certainty(self._exported, self._source, frames, named, tell, wanted=uncertainty)
        self._sizes, self._limits = list(self._trial.sizes), limits
        self._options = dataclasses.replace(self._options, profile=plan_profile(self._sizes))
        self._traced: dict[str, _Traced] = {}

    def close(self) -> None:
        """Close the engines that gates opened; may be called twice."""
        for each in self._traced.values():
            each.examiner.close()

    def _traced_for(self, precision: str) -> _Traced:
        """The graph in double precision for `fp64`, and for all others the one in FP32; each is traced once.

        Raises:
            ParityError: the graph does not give the student's energies and forces.
        """
        exact = "fp64" if precision == "fp64" else "fp32"
        if exact not in self._traced:
            student = self._exported if exact == "fp64" else copy.deepcopy(self._exported).float()
            self._tell(f"deriving forces and writing the graph in {exact}")
            model = export_onnx(student, _provenance(self._source, student, self._table), exact)
            graph = TypedGraph(model.SerializeToString())
            manifest = self._manifest(GATE, exact, graph, BuiltEngine())
            bundle = Bundle.in_memory(manifest, {MODEL: graph.model, **self._certainty.files})
            cutoff, limits = student.configuration.cutoff, self._limits or INT8_LIMITS
            graphs = TypedGraphs(model, cutoff, self._calibration, limits, self._options.tf32, self._tell)
            self._tell(f"comparing the graph in {exact} with the student in float64")
            examiner = Examiner(self._exported, bundle, self._domain, self._limits, self._tell)
            self._traced[exact] = _Traced(student, bundle, graphs, examiner)
        return self._traced[exact]

    def _options_for(self, precision: str) -> BuildOptions:
        """What engines in a precision are built for: in double precision, the CPU."""
        options = dataclasses.replace(self._options, precision=precision)
        return dataclasses.replace(options, device="cpu", tf32=False) if precision == "fp64" else options

    @warned_already()
    def bundle(self, engine: str, precision: str) -> Made:
        """Build an engine and measure it.

        INT8 is searched for on some structures and measured on others. Where these find it past the limits, it is
        searched for again within a share of them.

        Args:
            engine: backend.
            precision: `fp64`, `fp32`, `fp16` or `int8`.

        Raises:
            ParityError: the graph, or an engine in `fp64` or FP32, does not give the student's energies and forces.
            PrecisionError: the engine costs more than the limits allow.
        """
        excess, traced = "", self._traced_for(precision)
        for share in SHARES if precision == "int8" else (1.0,):
            try:
                graph = traced.graphs.get(precision, engine, share)
            except PrecisionError:
                if excess:  # within less there is nothing, and the first attempt says why
                    continue
                raise
            bundle, facts = self._build(engine, precision, graph, traced)
            self._tell(f"measuring {engine} in {precision}")
            examined = traced.examiner.examine(bundle, graph)
            if not examined.excess:
                validation: dict[str, Any] = {"reference": REFERENCE, "measured_on": self._domain.name}
                validation |= {JUDGED_ON: self._judged_on}
                validation |= self._labels
                validation |= {"left_out": [each.as_dict() for each in self._domain.left_out]}
                validation |= {"graph_parity": traced.examiner.parity, **facts, **examined.found}
                validation |= self._certainty.measured(bundle.manifest, examined.structures, examined.results)
                return Made(bundle.with_file(VALIDATION, to_json(validation)), examined.accuracy)
            excess = excess or examined.excess
        raise PrecisionError(excess)

    @warned_already()
    def fastest(self, engine: str) -> Made:
        """Build every precision of `AUTO_CHOICE` that an engine has, and choose the fastest that keeps the limits.

        The times of all are in the validation.json of the chosen one.

        Raises:
            PrecisionError: the engine cannot run here.
        """
        backend = get_backend(engine)
        if not backend.devices():
            raise PrecisionError(
                f"--precision auto measures, and {engine} cannot run here. Run it where there is a GPU, or name "
                "precisions."
            )
        made: dict[str, Made] = {}
        table: list[dict[str, Any]] = []
        for precision in auto_choice(engine):
            if lacking := backend.lacks(precision, self._options.device):
                table.append({"precision": precision, "refused": lacking})
                continue
            try:
                made[precision] = self.bundle(engine, precision)
            except PrecisionError as error:
                table.append({"precision": precision, "refused": str(error)})
        if not made:  # FP32 keeps every limit, but for its products in TF32
            raise PrecisionError(" ".join(row["refused"] for row in table))
        self._tell(f"timing {engine} in {', '.join(made)}")
        structures = self._domain.structures
        with ExitStack() as stack:
            opened = {name: stack.enter_context(PaiNNCalculator(each.bundle)) for name, each in made.items()}
            times = milliseconds(opened, structures[:: max(1, len(structures) // TIMED)])
        for precision, each in made.items():
            row = {"precision": precision, "milliseconds": times[precision]}
            if each.accuracy is not None:
                row |= {"energy_mae": each.accuracy.energy_mae, "force_rmse": each.accuracy.force_rmse}
            table.append(row)
        chosen = made[min(times, key=lambda precision: times[precision])]
        validation = chosen.bundle.json(VALIDATION) | {"chosen_from": table}
        return Made(chosen.bundle.with_file(VALIDATION, to_json(validation)), chosen.accuracy)

    def _build(self, engine: str, precision: str, graph: TypedGraph, traced: _Traced) -> tuple[Bundle, dict[str, Any]]:
        """An engine in a bundle, and what validation.json says of how it was built."""
        self._tell(f"building {engine} in {precision}")
        if engine == GATE and graph.model == traced.exact.file(MODEL):  # the gate has loaded it
            bundle, built, before = traced.exact, BuiltEngine(), False
        else:
            options = dataclasses.replace(self._options_for(precision), of_student=self._of_student[engine])
            built, before = build_cached(get_backend(engine), graph.model, options, self._tell)
            manifest = self._manifest(engine, precision, graph, built)
            bundle = Bundle.in_memory(manifest, {MODEL: graph.model, **self._certainty.files, **built.files})
        facts: dict[str, Any] = {}
        if built.profiles and self._sizes:
            batches = group(self._sizes, most_atoms=self._options.profile.atoms[2])
            facts["padding_waste"] = padding_waste(self._sizes, batches)
        facts |= {"build_warnings": list(built.warnings)} if built.warnings else {}
        facts |= {"built": "earlier, of the very same graph and options"} if before else {}
        return bundle, facts

    def _members_of(self, graph: TypedGraph) -> tuple[dict[str, Any], ...]:
        """What a manifest says of a committee's members."""
        species = self._exported.species
        shifts: Sequence[Mapping[int, float]] = graph.corrections or [{}] * len(self._members)
        members = list(zip(self._members, self._exported.members, shifts, strict=True)) if self._members else []
        return tuple(
            {
                "name": made.name,
                "checkpoint_sha256": made.sha256,
                "atomic_references": tuple(float(one.atomic_references[z]) + shift.get(z, 0.0) for z in species),
            }
            for made, one, shift in members
        )

    def _calibration(self) -> tuple[Sequence[Atoms], str]:
        if self._trial.fitted:
            return self._trial.fitted, self._trial.fitted_on
        return calibration_structures(trusted_species(self._exported)), CALIBRATION_NAME

    def _manifest(self, engine: str, precision: str, graph: TypedGraph, built: BuiltEngine) -> Manifest:
        student, correction = self._exported, graph.correction
        references = zip(student.species, _references(student), strict=True)
        return Manifest(
            architecture=student.configuration.architecture,
            checkpoint_sha256=self._source.sha256,
            configuration=student.configuration.as_dict(),
            cutoff=student.configuration.cutoff,
            species=student.species,
            species_verified=student.configuration.species is not None,
            atomic_references=tuple(energy + correction.get(z, 0.0) for z, energy in references),
            engine=engine,
            engine_version=get_backend(engine).version(),
            precision=precision,
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            built_with=installed(PACKAGES),
            bound_to=built.bound_to,
            radial_table=None if self._table is None else self._table.as_dict(),
            profiles=tuple(profile.as_dict() for profile in built.profiles),
            axes=student.axes,
            members=self._members_of(graph),
            tf32=built.tf32,
            declared=self._source.as_declared(),
        )


def _provenance(source: Checkpoint, student: Student, table: Tabled | None) -> dict[str, Any]:
    configuration = student.configuration
    return {
        "radial_table": None if table is None else table.as_dict(),
        "architecture": configuration.architecture,
        "cutoff": configuration.cutoff,
        "species": list(student.species),
        "checkpoint_sha256": source.sha256,
        "configuration": configuration.as_dict(),
        "atomic_references": _references(student),
    }


def _references(student: Student) -> list[float]:
    return [float(student.atomic_references[z]) for z in student.species]
