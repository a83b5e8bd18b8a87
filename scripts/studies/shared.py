"""What the stand-alone validation studies share: what to run against a student, structures, and the result's file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.reference import batched_results
from painn_deploy.calibration.physics.subjects import choose_subjects
from painn_deploy.calibration.structures import check_species, read_structures, seed_structures
from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.export.files import prepare_output, to_json
from painn_deploy.export.manifest import MANIFEST, read_bundle
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator

__all__ = ["Candidate", "choose", "labels", "open_candidate", "write_result"]


@dataclass(frozen=True)
class Candidate:
    """What a student is compared to.

    Attributes:
        name: of the bundle or checkpoint, and what runs it.
        evaluate: structures to results.
        same_student: whether it was made from the very checkpoint; differences are then errors.
    """

    name: str
    evaluate: Callable[[Sequence[Atoms]], list[dict[str, Any]]]
    same_student: bool


@contextmanager
def open_candidate(compare_to: Path | str | None, checkpoint: str, device: str) -> Iterator[Candidate]:
    """A bundle, another checkpoint in float64, or the student itself in float32 where nothing is named.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: the checkpoint cannot be read.
        EngineUnavailableError: the bundle's engine or the device is not here.
    """
    source = resolve_checkpoint(checkpoint)
    if compare_to is None:
        single = load_student(checkpoint)
        yield Candidate(f"{source.name} in PyTorch, float32", lambda atoms: batched_results(single, atoms), True)
    elif (Path(compare_to) / MANIFEST).is_file() or Path(compare_to).is_dir():
        manifest = read_bundle(compare_to).manifest
        with PaiNNCalculator(compare_to, device=device) as calculator:
            info = calculator.engine_info
            name = (
                f"{Path(compare_to).name} ({info['backend']} {info['version']}, {info['device']}, {info['precision']})"
            )
            yield Candidate(name, calculator.calculate_batch, manifest.checkpoint_sha256 == source.sha256)
    else:
        other = load_student(compare_to, dtype=torch.float64)
        found = resolve_checkpoint(compare_to)
        yield Candidate(
            f"{found.name} in PyTorch, float64",
            lambda atoms: batched_results(other, atoms),
            found.sha256 == source.sha256,
        )


def choose(given: Path | None, student: Student) -> tuple[list[Atoms], str]:
    """Structures of a file, or the seed project's eight cases and a few small crystals; and what to call them.

    Raises:
        DatasetError: the file cannot be read, or holds an element that the student does not know.
    """
    if given is not None:
        structures = read_structures(given)
        check_species(structures, student.species, given.name)
        return structures, given.name
    configuration = student.configuration
    verified = configuration.species is not None
    crystals = choose_subjects(student.species, verified=verified).crystals
    cases = seed_structures(student.species, symmetric=configuration.architecture == "painn")
    return [*cases, *crystals], "the seed project's eight cases, and small crystals"


def labels(structures: Sequence[Atoms], source: str) -> list[Mapping[str, Any]]:
    """Energies and forces that structures carry, such as a teacher's.

    Raises:
        DatasetError: one carries no energy or no forces, or NaN; the message says which.
    """
    found: list[Mapping[str, Any]] = []
    for index, atoms in enumerate(structures):
        results = {} if atoms.calc is None else atoms.calc.results
        missing = [name for name in ("energy", "forces") if name not in results]
        if missing:
            raise DatasetError(
                f"Structure {index} ({atoms.symbols}) of {source} carries no {' and no '.join(missing)}, "
                "and --labels compares with them. Write them as a calculator's results, in extended XYZ."
            )
        if not (np.isfinite(results["energy"]) and np.isfinite(results["forces"]).all()):
            raise DatasetError(f"Structure {index} ({atoms.symbols}) of {source} carries NaN or infinity as a label.")
        found.append({"energy": float(results["energy"]), "forces": np.asarray(results["forces"], float)})
    return found


def write_result(values: Mapping[str, Any], path: Path) -> None:
    """Write JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    prepare_output(path.parent)
    try:
        path.write_bytes(to_json(values))
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
