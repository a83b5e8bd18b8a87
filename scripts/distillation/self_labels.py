"""Frames without labels as a training set: the labels are what the student itself gives, before it is quantised."""

from pathlib import Path

import numpy as np
from rich.progress import track

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.structures import read_known
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.scripts.distillation.labels import Label, arrays_of, write_arrays
from painn_deploy.scripts.distillation.plan import SPLITS
from painn_deploy.scripts.distillation.structures import Structure

__all__ = ["LEAST_FRAMES", "label_by_itself"]

LEAST_FRAMES = 40
HELD_OUT = 10
"""Of so many frames in a row one validates and one tests; a trajectory is sampled evenly by all three."""
AT_ONCE = 64


def label_by_itself(student: PaiNN, frames: Path, output: Path, max_force: float) -> None:
    """Write train.npz, validation.npz and test.npz with the student's own energies and forces.

    Args:
        student: in float64.
        frames: a file of any format that ASE reads, of elements that the student knows.
        output: folder.
        max_force: eV/Å; frames with a larger one are left out, since no student knows them.

    Raises:
        DatasetError: the file cannot be read, holds other elements, or too few frames.
        StructureError: a frame is nothing that a force field can answer for; the message gives its number.
    """
    structures = read_known(frames, student)
    labels = [
        Label(Structure("frame", atoms), float(found["energy"]), found["forces"])
        for start in track(range(0, len(structures), AT_ONCE), "labels of its own")
        for atoms, found in zip(
            structures[start : start + AT_ONCE],
            reference_results(student, structures[start : start + AT_ONCE]),
            strict=True,
        )
    ]
    kept = [label for label in labels if label.largest_force <= max_force]
    if len(kept) < LEAST_FRAMES:
        raise DatasetError(
            f"{frames} has {len(kept)} frames with forces of at most {max_force:g} eV/Å, and {LEAST_FRAMES} are the "
            "least: of ten in a row eight train, one validates and one tests. Give more, such as a longer trajectory."
        )
    places = {"train": range(HELD_OUT - 2), "validation": (HELD_OUT - 2,), "test": (HELD_OUT - 1,)}
    for split in SPLITS:
        chosen = [label for number, label in enumerate(kept) if number % HELD_OUT in places[split]]
        write_arrays(
            output / f"{split}.npz",
            **arrays_of(chosen),
            cells=np.array([label.structure.atoms.cell.array for label in chosen]),
            pbc=np.array([label.structure.atoms.pbc for label in chosen]),
        )
