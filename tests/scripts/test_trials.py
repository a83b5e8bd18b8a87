"""What judges an export and what it is fitted on: never the same structures, and that is said."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.export import load_student
from painn_deploy.export.errors import DatasetError, StructureError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.export.model.student import Student
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.commands.trials import MOST, choose_trial
from tests import students

WIDE = Tolerances(energy=1.0, forces=10.0)


@pytest.fixture(scope="module")
def student(painn: Path) -> Student:
    return load_student(painn, dtype=torch.float64)


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return [students.perturbed(students.water(), seed) for seed in range(23)]


def places(some: list[Atoms], of: list[Atoms]) -> list[int]:
    return [of.index(atoms) for atoms in some]


def test_nothing_is_held_out_where_nothing_is_fitted(student: Student, frames: list[Atoms]) -> None:
    trial = choose_trial(student, frames, None, fits=False)
    assert (len(trial.domain), trial.fitted, len(trial.sizes)) == (23, [], 23)


def test_every_fifth_frame_is_held_out(student: Student, frames: list[Atoms]) -> None:
    trial = choose_trial(student, frames, None, fits=True)
    assert places(list(trial.domain.structures), frames) == [4, 9, 14, 19]
    assert places(list(trial.fitted), frames) == [i for i in range(23) if i not in (4, 9, 14, 19)]
    assert "every fifth of 23 structures, held out" in trial.domain.name
    assert "19 of 23 structures, all but every fifth" in trial.fitted_on
    assert len(trial.sizes) == 23


def test_few_frames_do_both_and_that_is_said(student: Student, frames: list[Atoms]) -> None:
    trial = choose_trial(student, frames[:3], None, fits=True)
    assert (len(trial.domain), len(trial.fitted)) == (3, 3)
    assert "3 structures both fit and judge" in trial.domain.name


def test_training_fits_and_structures_judge(student: Student, frames: list[Atoms], tmp_path: Path) -> None:
    trial = choose_trial(student, frames[:6], frames[6:], fits=True)
    assert places(list(trial.domain.structures), frames) == [0, 1, 2, 3, 4, 5]
    assert places(list(trial.fitted), frames) == list(range(6, 23))
    ase.io.write(tmp_path / "a.extxyz", frames)
    (tmp_path / "sub").mkdir()
    same = tmp_path / "sub" / ".." / "a.extxyz"
    trial = choose_trial(student, tmp_path / "a.extxyz", same, fits=True)
    assert (len(trial.domain), len(trial.fitted), len(trial.sizes)) == (4, 19, 23)
    trial = choose_trial(student, None, frames, fits=True)
    assert not trial.domain.brought
    assert len(trial.fitted) == 23


def test_a_long_trajectory_is_thinned_and_that_is_said(student: Student) -> None:
    trial = choose_trial(student, [students.water()] * (MOST + 1), None, fits=False)
    assert len(trial.domain) == MOST
    assert f"{MOST} of {MOST + 1}, evenly spread" in trial.domain.name


def test_bad_training_structures(student: Student, frames: list[Atoms], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Cannot read structures from .*none\.extxyz"):
        choose_trial(student, frames, tmp_path / "none.extxyz", fits=True)
    frames = [atoms.copy() for atoms in frames]
    frames[9].positions[0, 0] = np.nan
    for given in ((frames, None), (None, frames)):
        with pytest.raises(StructureError, match=r"Structure 9 .*NaN"):
            choose_trial(student, *given, fits=True)
    with pytest.raises(DatasetError, match="holds Og"):
        choose_trial(student, frames, [Atoms("Og")], fits=True)


def test_a_bundle_says_what_it_was_fitted_and_judged_on(painn: Path, frames: list[Atoms], tmp_path: Path) -> None:
    (path,) = export_engines(painn, tmp_path, precisions=["int8"], structures=frames, limits=WIDE)
    validation = json.loads(read_bundle(path).file("validation.json"))
    assert "every fifth of 23 structures" in validation["measured_on"]
    assert validation["structures"] == 4
    assert "19 of 23 structures" in validation["typed"]["calibrated_on_set"]
    assert sum(validation["typed"]["calibrated_on"]) == 19
