"""The uncertainty that lies beside a checkpoint: found, made by a command, and refused where it is of other weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from painn_deploy.calibration.uncertainty.brought import brought_with
from painn_deploy.calibration.uncertainty.training import last_layer_of
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.checkpoint import load_checkpoint, resolve_checkpoint
from painn_deploy.export.errors import CheckpointError, DatasetError
from painn_deploy.export.fields import outputs_of
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.studies.fitted_uncertainty import MARKS, fit_uncertainty
from tests import students
from tests.uncertainty.test_study import write_split

SHIPPED = ("small", "base", "large")


@pytest.fixture(scope="module")
def checkpoint(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with an uncertainty beside it, made by the command from splits of a data set."""
    folder, data = tmp_path_factory.mktemp("brought"), tmp_path_factory.mktemp("data")
    for path in (painn, painn.with_suffix(".json")):
        shutil.copy(path, folder)
    write_split(data / "train.npz", ("CH4", "H2O", "CH3OH"), "md")
    write_split(data / "validation.npz", ("C2H6", "H2O2"), "md", 40)
    write_split(data / "test.npz", ("C2H4", "CH3CHO"), "conformer", 20)
    target = folder / painn.name
    card, picture = folder / "card.md", folder / "card.png"
    output = folder / f"{painn.stem}.uncertainty.json"
    fit_uncertainty(str(target), data=data, output=output, card=card, picture=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = card.read_text()
    assert MARKS[0] in text
    assert "| all | 20 |" in text
    assert "The training split (120 structures) makes the matrices, the validation split (40) calibrates" in text
    return target


def test_export_carries_it_without_further_options(checkpoint: Path, tmp_path: Path) -> None:
    (path,) = export_engines(checkpoint, tmp_path / "with")
    said = read_bundle(path).json("validation.json")["uncertainty"]
    assert said["frames"] == [120, 40]
    assert said["largest_relative_error"] < 0.01
    with PaiNNCalculator(path) as calculator:
        (results,) = calculator.calculate_batch([molecule("CH3OH")])
    assert results["energy_uncertainty"] > 0
    (path,) = export_engines(checkpoint, tmp_path / "without", uncertainty=False)
    assert "uncertainty" not in read_bundle(path).json("validation.json")
    assert "features" not in {field.name for field in outputs_of(read_bundle(path).manifest.axes)}
    frames = [students.perturbed(molecule("CH3OH"), seed) for seed in range(10)]
    (path,) = export_engines(checkpoint, tmp_path / "own", training=frames)
    assert read_bundle(path).json("validation.json")["uncertainty"]["frames"] == [8, 2]


def test_it_is_what_fitting_gives(checkpoint: Path) -> None:
    student, made = load_checkpoint(checkpoint, dtype=torch.float64)
    found = brought_with(made, student.feature_width)
    assert found is not None
    frames = [students.perturbed(molecule("CH3OH"), seed) for seed in range(30)]
    again = last_layer_of(student, frames, "frames")
    assert found.roots.keys() == {1, 6, 8}
    assert again.roots.keys() == {1, 6, 8}
    assert found.factor is not None


@pytest.mark.parametrize("size", SHIPPED)
def test_students_that_ship_bring_theirs(size: str) -> None:
    student, made = load_checkpoint(f"student:{size}")
    found = brought_with(made, student.feature_width)
    assert found is not None, "make it again: the weights have changed"
    assert found.factor is not None
    assert found.roots.keys() == {1, 6, 7, 8}
    assert found.scale.remarks == ()
    assert found.scale.frames[1] > 2000
    assert all(np.isfinite(root).all() for root in found.roots.values())


def test_that_of_other_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = students.write(tmp_path, "painn", seed=7)
    beside = checkpoint.with_name(f"{checkpoint.stem}.uncertainty.json")
    shutil.copy(beside, tmp_path / f"{other.stem}.uncertainty.json")
    with pytest.raises(CheckpointError, match="made of other weights, units or elements"):
        export_engines(other, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.engine"))
    frames = [students.perturbed(molecule("CH3OH"), seed) for seed in range(10)]
    assert export_engines(other, tmp_path / "fitted", training=frames)
    assert export_engines(other, tmp_path / "plain", uncertainty=False)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"made_of": {}}', "no JSON", "cut"])
def test_what_is_none_is_refused(checkpoint: Path, tmp_path: Path, text: str) -> None:
    beside = checkpoint.with_name(f"{checkpoint.stem}.uncertainty.json")
    for path in (checkpoint, checkpoint.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    made = resolve_checkpoint(tmp_path / checkpoint.name)
    (tmp_path / beside.name).write_text(beside.read_text()[:2000] if text == "cut" else text)
    student: Student = load_checkpoint(made.path)[0]
    with pytest.raises(CheckpointError, match="is no uncertainty that can be read|made of other weights"):
        brought_with(made, student.feature_width)
    values = json.loads(beside.read_text())
    for key in ("roots", "factor", "typical", "frames"):
        (tmp_path / beside.name).write_text(json.dumps({**values, key: "nonsense"}))
        with pytest.raises(CheckpointError, match="is no uncertainty that can be read"):
            brought_with(made, student.feature_width)


def test_data_without_conformers_is_refused_before_any_work(painn: Path, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_split(tmp_path / f"{name}.npz", ("CH4",), "md", 10)
    with pytest.raises(DatasetError, match="no conformers"):
        fit_uncertainty(str(painn), data=tmp_path, output=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
