"""From a checkpoint to bundles: the graph, the parity gate, the engines, their measured errors, in that order."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from painn_deploy.calibration.accuracy import UNITS, compare
from painn_deploy.calibration.parity import check_parity
from painn_deploy.calibration.reference import reference_results
from painn_deploy.calibration.structures import choose_structures
from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import BuildOptions
from painn_deploy.engines.profiles import plan_profile
from painn_deploy.export.checkpoint import Checkpoint, load_student, resolve_checkpoint
from painn_deploy.export.errors import ExportError
from painn_deploy.export.manifest import (
    MODEL,
    SUFFIX,
    VALIDATION,
    Bundle,
    Manifest,
    check_free,
    prepare_output,
    to_json,
    write_bundle,
)
from painn_deploy.export.onnx_graph import export_onnx
from painn_deploy.export.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.neighbours import local_graphs

__all__ = ["PRECISIONS", "export_engines"]

PRECISIONS = ("fp32",)
"""Precisions that this version can make."""

GATE = "onnxruntime"
"""The engine that the graph itself is held against the student with, whatever is built of it."""

REFERENCE = "the student in PyTorch, float64, plain autograd"
PACKAGES = ("painn-deploy", "torch", "onnx", "numpy", "ase", "vesin")

Tell = Callable[[str], None]


def export_engines(
    checkpoint: str | Path,
    output: str | Path,
    *,
    engines: Sequence[str] = ("onnxruntime",),
    precisions: Sequence[str] = ("fp32",),
    structures: str | Path | Sequence[Atoms] | None = None,
    compute_capabilities: Sequence[str] = (),
    overwrite: bool = False,
    tell: Tell = lambda _: None,
) -> list[Path]:
    """Export a student to one bundle for each engine and precision.

    Args:
        checkpoint: a .safetensors or .pt file, or a student that ships, such as `student:base`.
        output: folder to write bundles NAME-ENGINE-PRECISION.engine into.
        engines: backends by name.
        precisions: `fp32`.
        structures: to measure the engines' errors on and to plan their shape profiles for, as Atoms or a file that
            ASE reads; a default set and a default profile otherwise.
        compute_capabilities: of the GPUs that TensorRT-RTX plans are built for, such as `86`.
        overwrite: replace bundles that are there.
        tell: called with a line about each step as it begins.

    Returns:
        The bundles' paths, engine by engine.

    Raises:
        PaiNNDeployError: see `painn_deploy.export.errors`. What was complete before the error stays, whole; nothing
            half-made does.
    """
    source = resolve_checkpoint(checkpoint)
    engines, precisions = list(dict.fromkeys(engines)), list(dict.fromkeys(precisions))
    _check_request(engines, precisions)
    targets = [(e, p, Path(output) / f"{source.name}-{e}-{p}{SUFFIX}") for e in engines for p in precisions]
    for _, _, path in targets:
        check_free(path, overwrite=overwrite)
    prepare_output(output)
    tell(f"reading {source.path.name}")
    student, reference = load_student(checkpoint), load_student(checkpoint, dtype=torch.float64)
    chosen, named = choose_structures(structures, student.species)
    tell("deriving forces and writing the graph")
    model = export_onnx(student, _provenance(source, student)).SerializeToString()
    tell("holding the graph against the student in float64")
    with _open_graph(model, source, student) as calculator:
        parity = check_parity(calculator.run_graph, reference)
    wanted = reference_results(reference, chosen)
    sizes = [] if structures is None else _sizes(chosen, student.configuration.cutoff)
    options = BuildOptions(tuple(compute_capabilities), plan_profile(sizes))
    paths = []
    for engine, precision, path in targets:
        tell(f"building {engine} in {precision}")
        backend = get_backend(engine)
        built = backend.build(model, options)
        files = {MODEL: model, **built.files}
        manifest = dataclasses.replace(
            _manifest(source, student, engine, backend.version(), precision),
            compute_capability=built.compute_capability,
            profiles=tuple(profile.as_dict() for profile in built.profiles),
        )
        tell(f"measuring {engine} in {precision}")
        validation = {"reference": REFERENCE, "measured_on": named, "graph_parity": parity}
        if backend.devices():
            validation |= _measured(path.name, manifest, files, reference, chosen, wanted)
        else:
            validation |= {"not_executed": f"{engine} needs a GPU, and there is none here; run `validate` on one"}
        paths.append(write_bundle(path, manifest, {**files, VALIDATION: to_json(validation)}, overwrite=overwrite).path)
    return paths


def _measured(
    name: str,
    manifest: Manifest,
    files: dict[str, bytes],
    reference: Student,
    structures: Sequence[Atoms],
    wanted: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Errors of an engine, which must pass the gate before it is written to its place."""
    with tempfile.TemporaryDirectory() as folder:
        trial = write_bundle(Path(folder) / name, manifest, files)
        with PaiNNCalculator(trial.path) as calculator:
            parity = check_parity(calculator.run_graph, reference)
            accuracy = compare(structures, calculator.calculate_batch(structures), wanted)
    return {"units": dict(UNITS), "parity": parity, **accuracy.as_dict()}


def _sizes(structures: Sequence[Atoms], cutoff: float) -> list[tuple[int, int]]:
    return [(len(graph.numbers), graph.slots) for graph in local_graphs(structures, cutoff)]


def _check_request(engines: Sequence[str], precisions: Sequence[str]) -> None:
    """Refuse now what would fail after minutes."""
    if not engines or not precisions:
        raise ExportError("Name at least one engine and one precision.")
    for engine in (*engines, GATE):
        get_backend(engine).version()
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ExportError(
                f"There is no precision {precision!r} in this version; there are: {', '.join(PRECISIONS)}."
            )


def _provenance(source: Checkpoint, student: Student) -> dict[str, Any]:
    configuration = student.configuration
    return {
        "architecture": configuration.architecture,
        "cutoff": configuration.cutoff,
        "species": list(student.species),
        "checkpoint_sha256": source.sha256,
        "configuration": configuration.as_dict(),
        "atomic_references": _references(student),
    }


def _references(student: Student) -> list[float]:
    return [float(student.atomic_references[z]) for z in student.species]


def _manifest(source: Checkpoint, student: Student, engine: str, version: str, precision: str) -> Manifest:
    configuration = student.configuration
    return Manifest(
        architecture=configuration.architecture,
        checkpoint_sha256=source.sha256,
        configuration=configuration.as_dict(),
        cutoff=configuration.cutoff,
        species=student.species,
        species_verified=configuration.species is not None,
        atomic_references=tuple(_references(student)),
        engine=engine,
        engine_version=version,
        precision=precision,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        built_with={name: metadata.version(name) for name in PACKAGES},
    )


def _open_graph(model: bytes, source: Checkpoint, student: Student) -> PaiNNCalculator:
    """The bare graph in ONNX Runtime, before there is a bundle."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = _manifest(source, student, GATE, get_backend(GATE).version(), "fp32")
        bundle: Bundle = write_bundle(Path(folder) / f"graph{SUFFIX}", manifest, {MODEL: model})
        return PaiNNCalculator(bundle.path, device="cpu")
