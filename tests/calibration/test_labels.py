"""The student beside the labels of structures: what wrong units look like, and what does not look like them."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from painn_deploy.calibration.labels import Labelled
from painn_deploy.export.declaration import Declaration
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from tests.scripts.test_cli import run


def labelled(count: int = 4) -> tuple[list[Atoms], list[dict]]:
    """Frames with forces, and a student's answers that are these."""
    rng, frames, answers = np.random.default_rng(0), [], []
    for _ in range(count):
        atoms = molecule("CH3OH")
        forces = rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces)
        frames.append(atoms)
        answers.append({"forces": forces.copy()})
    return frames, answers


def test_a_student_that_knows_its_labels_is_not_doubted() -> None:
    frames, answers = labelled()
    rng = np.random.default_rng(1)
    for answer in answers:
        answer["forces"] += 0.2 * rng.normal(size=answer["forces"].shape)
    found = Labelled.of(frames, answers)
    assert found is not None
    assert found.structures == 4
    assert found.force_rmse == pytest.approx(0.2, rel=0.2)
    assert found.factor == pytest.approx(1, abs=0.2)
    assert not found.doubt


def test_other_units_are_a_factor() -> None:
    frames, answers = labelled()
    for answer in answers:
        answer["forces"] *= 23.06
    found = Labelled.of(frames, answers)
    assert found is not None
    assert "times 0.04337 they would agree: its units are not those that were said" in found.doubt


def test_other_labels_are_none() -> None:
    frames, answers = labelled()
    rng = np.random.default_rng(1)
    for answer in answers:
        answer["forces"] = rng.normal(size=answer["forces"].shape)
    found = Labelled.of(frames, answers)
    assert found is not None
    assert "or it was not trained on such labels" in found.doubt


def test_what_is_no_label_is_left_out() -> None:
    frames, answers = labelled()
    frames[0].calc = None
    frames[1].positions += 0.1  # they were of other positions
    frames[2].calc.results["forces"] = frames[2].calc.results["forces"] * np.nan
    found = Labelled.of(frames, answers)
    assert found is not None
    assert found.structures == 1
    frames[3].calc.results.pop("forces")
    assert Labelled.of(frames, answers) is None
    still = [Atoms("O", calculator=SinglePointCalculator(Atoms("O"), forces=np.zeros((1, 3))))]
    found = Labelled.of(still, [{"forces": np.zeros((1, 3))}])
    assert found is not None
    assert not found.doubt


def test_a_trained_student_in_wrong_units_is_doubted_and_in_right_ones_is_not(references: Path, tmp_path: Path) -> None:
    model = references / "schnetpack_trained" / "ethanol_1.best_model"
    rng, frames = np.random.default_rng(0), []
    for _ in range(4):
        atoms = molecule("CH3CH2OH")
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        frames.append(atoms)
    (right,) = export_engines(
        model, tmp_path, structures=frames, declared=Declaration.of("kcal/mol", "Ang", "H,C,O", None)
    )
    with PaiNNCalculator(right) as calculator:
        for atoms, answer in zip(frames, calculator.calculate_batch(frames), strict=True):
            atoms.calc = SinglePointCalculator(atoms, energy=answer["energy"], forces=answer["forces"])
    ase.io.write(path := tmp_path / "labelled.extxyz", frames)
    said = {}
    for unit in ("kcal/mol", "kJ/mol"):
        units = ("--energy-unit", unit, "--length-unit", "Ang", "--species", "H,C,O")
        done = run("export", model, *units, "--structures", path, "-o", tmp_path / unit.replace("/", "-"))
        assert done.returncode == 0, done.stderr
        said[unit] = " ".join(done.stdout.split())
        assert "the student against labels: forces" in said[unit]
    assert "units are not" not in said["kcal/mol"]
    assert "times 4.184 they would agree: its units are not those that were said" in said["kJ/mol"]
    (wrong,) = (tmp_path / "kJ-mol").glob("*.engine")
    assert "times 4.184" in " ".join(run("inspect", wrong).stdout.split())
    checked = run("validate", wrong, "--reference", model, "--structures", path, "--no-audit")
    assert "times 4.184 they would agree" in " ".join(checked.stdout.split())
