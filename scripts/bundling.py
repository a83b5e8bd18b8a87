"""One student on its way to bundles: the graph and its gate, the precisions, the engines, their measured errors."""

import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from painn_deploy.calibration.accuracy import UNITS, Accuracy, Limits, compare
from painn_deploy.calibration.parity import check_parity
from painn_deploy.calibration.reference import reference_results
from painn_deploy.calibration.structures import (
    CALIBRATION_NAME,
    calibration_structures,
    choose_structures,
    default_structures,
    trusted_species,
    within_reach,
)
from painn_deploy.calibration.tabling import Tabled, find_table
from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import BuildOptions
from painn_deploy.engines.cache import build_cached
from painn_deploy.engines.profiles import plan_profile
from painn_deploy.export.checkpoint import Checkpoint, load_student
from painn_deploy.export.errors import PrecisionError
from painn_deploy.export.manifest import MODEL, SUFFIX, VALIDATION, Manifest, to_json, write_bundle
from painn_deploy.export.onnx_graph import export_onnx
from painn_deploy.export.student import Student
from painn_deploy.export.versions import installed
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.neighbours import local_graphs
from painn_deploy.runtime.packing import pack, padding_waste
from painn_deploy.scripts.precision import INT8_LIMITS, TypedGraph, TypedGraphs
from painn_deploy.scripts.timing import milliseconds

__all__ = ["GATE", "Bundler", "Made", "Tell"]

GATE = "onnxruntime"
"""The engine that the graph itself is held against the student with, whatever is built of it."""

REFERENCE = "the student in PyTorch, float64, plain autograd"
SIMULATED = "every half tensor of the graph rounded to half, in ONNX Runtime on the CPU: no engine loses more"
PACKAGES = ("painn-deploy", "torch", "onnx", "numpy", "ase", "vesin")
TIMED = 12
"""Structures that each candidate of `auto` is timed on."""

SHARES = (0.75, 0.5)
"""Of the limits, that INT8 is searched for again within, one after the other."""

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Made:
    """A bundle that is not written yet.

    Attributes:
        manifest: its own.
        files: contents by name.
        accuracy: against FP32, the worst of what was measured and simulated; None for FP32 itself.
    """

    manifest: Manifest
    files: dict[str, bytes]
    accuracy: Accuracy | None


class _OverLimitsError(PrecisionError):
    """An engine is further from FP32 than it may be."""


class Bundler:
    """Makes the bundles of one student; what they share is computed once.

    Args:
        source: the checkpoint.
        checkpoint: the same, as `load_student` takes it.
        structures: see `painn_deploy.scripts.export_engines`, as for the others.
        compute_capabilities: of GPUs.
        limits: what lower precisions may cost.
        device: that engines are built for which are bound to a kind of device.
        tf32: for FP32 products on a GPU; of engines that honour it.
        form: of the graph, for `inductor`.
        table_error: eV/Å, the most that a radial table may cost a force component; None for no table.
        tell: called with a line about each step.

    Raises:
        ParityError: the graph is not the student.
    """

    def __init__(
        self,
        source: Checkpoint,
        checkpoint: str | Path,
        structures: str | Path | Sequence[Atoms] | None,
        compute_capabilities: Sequence[str],
        limits: Limits | None,
        *,
        device: str,
        tf32: bool,
        form: str,
        table_error: float | None,
        tell: Tell,
    ) -> None:
        self._source, self._limits, self._tell = source, limits, tell
        self._reference = load_student(checkpoint, dtype=torch.float64)
        self._given, self._named = choose_structures(structures, self._reference.species)
        self._wanted = reference_results(self._reference, self._given)
        self._table: Tabled | None = None
        self._exported = self._reference
        if table_error is not None:
            tell("measuring radial tables")
            self._table = find_table(self._reference, self._given, self._named, table_error, self._wanted)
            self._exported = self._reference.with_radial_table(self._table.rank, self._table.intervals)
        self._student = copy.deepcopy(self._exported).float()
        cutoff = self._student.configuration.cutoff
        tell("deriving forces and writing the graph")
        model = export_onnx(self._student, _provenance(source, self._student, self._table))
        self._graph = model.SerializeToString()
        tell("holding the graph against the student in float64")
        with self._open(TypedGraph(self._graph)) as calculator:
            self._parity = check_parity(calculator.run_graph, self._exported)
        self._sizes = [(len(g.numbers), g.slots) for g in local_graphs(self._given, cutoff)] if structures else []
        self._options = BuildOptions(tuple(compute_capabilities), plan_profile(self._sizes), device, tf32, form)
        self._mine = structures is not None
        self._graphs = TypedGraphs(model, cutoff, self._calibration, limits or INT8_LIMITS, tell)
        self._near: tuple[list[Atoms], list[dict[str, Any]], list[dict[str, Any]], int] | None = None

    def bundle(self, engine: str, precision: str) -> Made:
        """Build and measure.

        INT8 is searched for on some structures and measured on others. Where these find it past the limits, it is
        searched for again within a share of them.

        Raises:
            PrecisionError: it costs more than the limits allow.
        """
        try:
            return self._built(engine, precision, 1.0)
        except _OverLimitsError:
            if precision == "int8":
                for share in SHARES:
                    with suppress(PrecisionError):
                        return self._built(engine, precision, share)
            raise

    def _built(self, engine: str, precision: str, share: float) -> Made:
        """A bundle, of INT8 within a share of the limits."""
        backend = get_backend(engine)
        graph = self._graphs.get(precision, engine, share)
        self._tell(f"building {engine} in {precision}")
        built, before = build_cached(backend, graph.model, self._options, self._tell)
        files = {MODEL: graph.model, **built.files}
        manifest = dataclasses.replace(
            _manifest(self._source, self._student, engine, backend.version(), precision, graph),
            bound_to=built.bound_to,
            profiles=tuple(profile.as_dict() for profile in built.profiles),
            tf32=built.tf32,
            radial_table=None if self._table is None else self._table.as_dict(),
        )
        self._tell(f"measuring {engine} in {precision}")
        validation: dict[str, Any] = {"reference": REFERENCE, "measured_on": self._named, "graph_parity": self._parity}
        if built.profiles and self._sizes:
            batches = pack(self._sizes, most_atoms=self._options.profile.atoms[2])
            validation["padding_waste"] = padding_waste(self._sizes, batches)
        validation |= {"build_warnings": list(built.warnings)} if built.warnings else {}
        validation |= {"built": "earlier, of the very same graph and options"} if before else {}
        runs = bool(backend.devices())
        accuracy = None
        if not runs:
            reason = f"{engine} needs a GPU, and there is none here; run `validate` on one"
            validation |= {"not_executed": reason}
        if precision == "fp32":
            if runs:
                validation |= self._exact(manifest, files)
        else:
            lossy, accuracy = self._lossy(manifest, files, graph, runs=runs)
            validation |= lossy
        return Made(manifest, {**files, VALIDATION: to_json(validation)}, accuracy)

    def fastest(self, engine: str) -> Made:
        """Every precision of an engine, measured; the fastest within the limits, with the table that it came from.

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
        for precision in backend.precisions:
            try:
                made[precision] = self.bundle(engine, precision)
            except PrecisionError as error:
                table.append({"precision": precision, "refused": str(error)})
        self._tell(f"timing {engine} in {', '.join(made)}")
        calculators = {precision: self._trial(each.manifest, each.files) for precision, each in made.items()}
        times = milliseconds(calculators, self._given[:: max(1, len(self._given) // TIMED)])
        for precision, each in made.items():
            calculators[precision].close()
            row = {"precision": precision, "milliseconds": times[precision]}
            if each.accuracy is not None:
                row |= {"energy_mae": each.accuracy.energy_mae, "force_rmse": each.accuracy.force_rmse}
            table.append(row)
        chosen = made[min(times, key=lambda precision: times[precision])]
        validation = json.loads(chosen.files[VALIDATION]) | {"chosen_from": table}
        return dataclasses.replace(chosen, files={**chosen.files, VALIDATION: to_json(validation)})

    def _exact(self, manifest: Manifest, files: dict[str, bytes]) -> dict[str, Any]:
        """Errors of an FP32 engine, which must pass the gate before it is written to its place."""
        with self._trial(manifest, files) as calculator:
            parity = check_parity(calculator.run_graph, self._exported)
            accuracy = compare(self._given, calculator.calculate_batch(self._given), self._wanted)
        return {"units": dict(UNITS), "parity": parity, **accuracy.as_dict()}

    def _lossy(
        self, manifest: Manifest, files: dict[str, bytes], graph: TypedGraph, *, runs: bool
    ) -> tuple[dict[str, Any], Accuracy]:
        """Errors of an FP16 or INT8 engine, which must be within the limits.

        It is measured where it runs. Where it cannot, or where half tensors may have been kept wider than half, the
        simulation counts, which loses as much as any engine may.
        """
        structures, wanted, exact, left_out = self._reachable()
        report = dict(graph.report)
        found: dict[str, Any] = {"units": dict(UNITS), "left_out_for_large_forces": left_out}
        found |= {"sensitivity": report.pop("sensitivity")} if "sensitivity" in report else {}
        found["typed"] = report
        worst: list[Accuracy] = []
        if runs:
            with self._trial(manifest, files) as calculator:
                results = calculator.calculate_batch(structures)
            against_fp32 = compare(structures, results, exact)
            found |= {**compare(structures, results, wanted).as_dict(), "against_fp32": against_fp32.as_dict()}
            worst.append(against_fp32)
        if graph.simulated is not None:
            with self._open(dataclasses.replace(graph, model=graph.simulated)) as calculator:
                results = calculator.calculate_batch(structures)
            simulated = compare(structures, results, exact)
            found["simulated"] = {"how": SIMULATED, "against_fp32": simulated.as_dict()}
            worst.append(simulated)
        limits = self._limits or (INT8_LIMITS if manifest.precision == "int8" else Limits())
        for accuracy in worst:
            if failures := accuracy.failures(dataclasses.replace(limits, stress=float("inf"))):
                what, past = f"{manifest.engine} in {manifest.precision}", "; ".join(failures)
                self._tell(f"{what}: {past}, on {accuracy.force_worst}")
                raise _OverLimitsError(
                    f"{what} costs more than it may, against FP32: {past}, worst on {accuracy.force_worst}. Allow more "
                    "with --max-energy-error and --max-force-error, give structures like those that it is for with "
                    "--structures, or take fp32."
                )
        return found, max(worst, key=lambda accuracy: accuracy.force_rmse)

    def _reachable(self) -> tuple[list[Atoms], list[dict[str, Any]], list[dict[str, Any]], int]:
        """Structures that lower precisions are measured on, the float64 student's results, FP32's, how many left out.

        Where the student's forces are far beyond chemistry, FP32's own errors are too, and nothing is learnt.
        """
        if self._near is None:
            if self._mine:
                structures, wanted = self._given, self._wanted
            else:
                structures = default_structures(trusted_species(self._student))
                wanted = reference_results(self._reference, structures)
            kept = within_reach([result["forces"] for result in wanted])
            structures, wanted = [structures[i] for i in kept], [wanted[i] for i in kept]
            with self._open(TypedGraph(self._graph)) as calculator:
                exact = calculator.calculate_batch(structures)
            self._near = structures, wanted, exact, len(self._given if self._mine else kept) - len(kept)
        return self._near

    def _calibration(self) -> tuple[Sequence[Atoms], str]:
        if self._mine:
            return self._given, self._named
        return calibration_structures(trusted_species(self._student)), CALIBRATION_NAME

    def _trial(self, manifest: Manifest, files: dict[str, bytes]) -> PaiNNCalculator:
        """A calculator on a bundle in a temporary place, which it no longer needs once it is open."""
        with tempfile.TemporaryDirectory() as folder:
            return PaiNNCalculator(write_bundle(Path(folder) / f"trial{SUFFIX}", manifest, files).path)

    def _open(self, graph: TypedGraph) -> PaiNNCalculator:
        """A bare graph in ONNX Runtime, before there is a bundle."""
        version = get_backend(GATE).version()
        manifest = _manifest(self._source, self._student, GATE, version, "fp32", graph)
        with tempfile.TemporaryDirectory() as folder:
            path = write_bundle(Path(folder) / f"graph{SUFFIX}", manifest, {MODEL: graph.model}).path
            return PaiNNCalculator(path, device="cpu")


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


def _manifest(
    source: Checkpoint, student: Student, engine: str, version: str, precision: str, graph: TypedGraph
) -> Manifest:
    configuration = student.configuration
    corrected = [e + graph.correction.get(z, 0.0) for z, e in zip(student.species, _references(student), strict=True)]
    return Manifest(
        architecture=configuration.architecture,
        checkpoint_sha256=source.sha256,
        configuration=configuration.as_dict(),
        cutoff=configuration.cutoff,
        species=student.species,
        species_verified=configuration.species is not None,
        atomic_references=tuple(corrected),
        engine=engine,
        engine_version=version,
        precision=precision,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        built_with=installed(PACKAGES),
    )
