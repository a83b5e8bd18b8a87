"""`painn-deploy convert`: whatever file a student is in becomes weights in eV and Å with their configuration beside."""

import os
from pathlib import Path

import safetensors.torch
import torch
from ase.data import chemical_symbols

from painn_deploy.export.checkpoint import Checkpoint, build_student, read_weights
from painn_deploy.export.declaration import Declaration, species_text
from painn_deploy.export.errors import OutputError
from painn_deploy.export.files import prepare_output, to_json, write_output
from painn_deploy.export.model.student import Student

__all__ = ["convert_checkpoint", "summary"]


def convert_checkpoint(
    checkpoint: str | Path, output: Path, *, declared: Declaration | None = None, overwrite: bool = False
) -> tuple[Checkpoint, Student]:
    """Write a student's weights and configuration as files that say what they are.

    Args:
        checkpoint: a file, see `painn_deploy.export.load_student`.
        output: NAME.safetensors; NAME.json is written beside it. Weights keep the precision that they were stored in,
            and those that units were folded into are in float64.
        declared: units, elements and the energy's name, of a checkpoint that does not say.
        overwrite: replace files that are there.

    Returns:
        The checkpoint that was read, and its student in float64.

    Raises:
        CheckpointError: it cannot be read.
        OutputError: the output is there already, does not end in .safetensors, or cannot be written.
    """
    beside = output.with_suffix(".json")
    if output.suffix != ".safetensors":
        raise OutputError(f"{output} does not end in .safetensors, as what convert writes does.")
    there = [path for path in (output, beside) if os.path.lexists(path)]
    if there and not overwrite:
        raise OutputError(f"{there[0]} exists. Give --overwrite to replace it, or another file with -o.")
    if any(path.is_dir() for path in there):
        raise OutputError(f"{there[0]} is a folder; move it away.")
    state, configuration, made = read_weights(checkpoint, declared)
    student = build_student(state, configuration, str(made.path), dtype=torch.float64)
    values = {key: value for key, value in configuration.as_dict().items() if value is not None}
    if configuration.species is not None:
        values["species"] = [chemical_symbols[z] for z in configuration.species]
    values["description"] = " ".join([f"converted from {made.path.name}.", *made.remarks])
    prepare_output(output.parent)
    # the configuration first: weights without one are refused, and an old one with new weights would not be
    write_output(beside, to_json(values))
    write_output(output, safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in state.items()}))
    return made, student


def summary(output: Path, student: Student) -> str:
    """One line about what was written.

    Args:
        output: the file.
        student: that is in it.
    """
    configuration = student.configuration
    elements = species_text(student.species, verified=configuration.species is not None)
    return (
        f"wrote {output} and {output.with_suffix('.json').name}: {configuration.architecture}, "
        f"{student.num_parameters:,} parameters, cutoff {configuration.cutoff:g} Å, elements {elements}"
    )
