"""Parts that the stand-alone validation studies share: candidates, structures, and options."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms

from painn_deploy.calibration.accuracy.domain import find_domain
from painn_deploy.calibration.accuracy.left_out import summary
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.physics.subjects import choose_subjects
from painn_deploy.calibration.structures import read_known, seed_structures, trusted_species
from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.declaration import Declaration, declaration_of
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.manifest import MANIFEST, read_bundle
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator

__all__ = [
    "Candidate",
    "CompareTo",
    "Device",
    "JsonFile",
    "OfStudent",
    "Structures",
    "choose",
    "declared_in",
    "labels",
    "open_candidate",
]

OfStudent = Annotated[str, typer.Option("--checkpoint", help="A .safetensors or .pt file, or a student that ships.")]
CompareTo = Annotated[
    str | None, typer.Option(help="A bundle, or another checkpoint; the student in float32 otherwise.")
]
Structures = Annotated[Path | None, typer.Option(help="In any format that ASE reads.")]
Device = Annotated[str, typer.Option(help="For a bundle: auto, or what its engine names.")]
JsonFile = Annotated[Path | None, typer.Option(help="JSON file to write.")]
"""Options that mean the same to every study of errors."""


@dataclass(frozen=True)
class Candidate:
    """A model that a student is compared with.

    Attributes:
        name: of the bundle or checkpoint, and what runs it.
        evaluate: structures to results.
        same_student: whether it was made from the very checkpoint; differences are then errors.
    """

    name: str
    evaluate: Callable[[Sequence[Atoms]], list[dict[str, Any]]]
    same_student: bool


def declared_in(compare_to: Path | str | None, checkpoint: str) -> Declaration | None:
    """What was declared of a checkpoint when the bundle was made that it is compared with; None where nothing was.

    Args:
        compare_to: what is named; only a bundle of this very checkpoint counts.
        checkpoint: the student.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: the checkpoint cannot be read.
    """
    if compare_to is None or not (Path(compare_to) / MANIFEST).is_file():
        return None
    manifest = read_bundle(compare_to).manifest
    return declaration_of(manifest) if manifest.checkpoint_sha256 == resolve_checkpoint(checkpoint).sha256 else None


@contextmanager
def open_candidate(compare_to: Path | str | None, checkpoint: str, device: str) -> Iterator[Candidate]:
    """A bundle, another checkpoint in float64, or the student itself in float32 where nothing is named.

    Args:
        compare_to: what is named.
        checkpoint: the student.
        device: for a bundle, `auto` or what its engine names.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: the checkpoint cannot be read.
        EngineUnavailableError: the bundle's engine or the device is not here.
    """
    source = resolve_checkpoint(checkpoint)
    if compare_to is None:
        single = load_student(checkpoint)
        yield Candidate(f"{source.name} in PyTorch, float32", lambda atoms: reference_results(single, atoms), True)
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
            lambda atoms: reference_results(other, atoms),
            found.sha256 == source.sha256,
        )


def choose(given: Path | None, student: Student) -> tuple[list[Atoms], str]:
    """Structures of a file, or the seed project's eight cases and a few small crystals; and what to call them.

    Those on which the student cannot be judged are left out, which the name says.

    Args:
        given: the file, in any format that ASE reads.
        student: in float64; it must know their elements.

    Raises:
        DatasetError: the file cannot be read, holds an element that the student does not know, or nothing that the
            student can be judged on.
    """
    if given is not None:
        structures, name = read_known(given, student), given.name
    else:
        configuration, species = student.configuration, trusted_species(student)
        crystals = choose_subjects(species, verified=configuration.species is not None).crystals
        cases = seed_structures(species, symmetric=configuration.architecture == "painn")
        structures, name = [*cases, *crystals], "the seed project's eight cases, and small crystals"
    domain = find_domain(student, structures, name, brought=given is not None)
    return list(domain.structures), "; ".join([name, *summary(domain.left_out)])


def labels(structures: Sequence[Atoms], source: str) -> list[Mapping[str, Any]]:
    """Energies and forces that structures carry, such as a teacher's.

    Args:
        structures: of which each has a calculator with results.
        source: what to call them.

    Returns:
        `energy` in eV and `forces` [atoms, 3] in eV/Å of each.

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
