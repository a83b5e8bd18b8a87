"""Frames without labels as a training set: the labels are what the student itself gives, before it is quantised."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from rich.progress import track

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.structures import read_known
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.runtime.structures import bounds_of
from painn_deploy.scripts.distillation.labels import write_arrays
from painn_deploy.scripts.distillation.plan import SPLITS

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
    results = [
        result
        for start in track(range(0, len(structures), AT_ONCE), "labels of its own")
        for result in reference_results(student, structures[start : start + AT_ONCE])
    ]
    kept = [i for i, found in enumerate(results) if np.linalg.norm(found["forces"], axis=1).max() <= max_force]
    if len(kept) < LEAST_FRAMES:
        raise DatasetError(
            f"{frames} has {len(kept)} frames with forces of at most {max_force:g} eV/Å, and {LEAST_FRAMES} are the "
            "least: of ten in a row eight train, one validates and one tests. Give more, such as a longer trajectory."
        )
    places = {"train": range(HELD_OUT - 2), "validation": (HELD_OUT - 2,), "test": (HELD_OUT - 1,)}
    for split in SPLITS:
        chosen = [index for number, index in enumerate(kept) if number % HELD_OUT in places[split]]
        _write(output / f"{split}.npz", [structures[i] for i in chosen], [results[i] for i in chosen])


def _write(path: Path, structures: Sequence[Atoms], results: Sequence[Mapping[str, Any]]) -> None:
    write_arrays(
        path,
        numbers=np.concatenate([atoms.numbers for atoms in structures]).astype(np.int8),
        positions=np.concatenate([atoms.positions for atoms in structures]),
        cells=np.array([atoms.cell.array for atoms in structures]),
        pbc=np.array([atoms.pbc for atoms in structures]),
        forces=np.concatenate([found["forces"] for found in results]).astype(np.float32),
        energies=np.array([float(found["energy"]) for found in results]),
        offsets=bounds_of(np.array([len(atoms) for atoms in structures])),
        kinds=np.full(len(structures), "frame"),
    )
