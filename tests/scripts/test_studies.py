"""The stand-alone studies, as a person runs them, and what they must find."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from painn_deploy.calibration.accuracy.breakdown import per_structure
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.physics import consistency
from painn_deploy.export import load_student
from painn_deploy.export.errors import DatasetError
from painn_deploy.scripts.studies import analytical_forces
from painn_deploy.scripts.studies.shared import labels, open_candidate
from tests import students
from tests.conftest import ROOT


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", *arguments]
    return subprocess.run([str(a) for a in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def labelled(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two molecules whose labels are the student's own results, off by 1 eV an atom and 10 meV/Å."""
    structures = [students.water(), students.perturbed(molecule("CH4"), 1)]
    student = load_student(painn, dtype=torch.float64)
    for atoms, result in zip(structures, reference_results(student, structures), strict=True):
        energy, forces = result["energy"] + len(atoms), result["forces"] + 0.01
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    path = tmp_path_factory.mktemp("labelled") / "labelled.extxyz"
    ase.io.write(path, structures)
    return path


def test_analytical_forces(painn: Path, bundle: Path, labelled: Path, tmp_path: Path) -> None:
    output = tmp_path / "forces.json"
    arguments = ["--checkpoint", painn, "--compare-to", bundle, "--structures", labelled, "--verbose"]
    done = run("validate_analytical_forces", *arguments, "--device", "cpu", "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "explicit forces are the gradient" in done.stdout
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["head64"] < 1e-12
        assert 0 < row["candidate"] < 1e-5
        assert row["differences"] < 1e-6


def test_a_wrong_explicit_head_is_found(painn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    double, single = load_student(painn, dtype=torch.float64), load_student(painn)
    right = consistency.explicit_forces

    def wrong(*arguments: Any) -> Any:
        outputs = right(*arguments)
        return outputs._replace(forces=outputs.forces * (1 + 1e-6))

    with open_candidate(None, str(painn), "auto") as candidate:
        (row,) = analytical_forces.study(double, single, [students.water()], candidate)
        assert row.exact
        monkeypatch.setattr(consistency, "explicit_forces", wrong)
        (row,) = analytical_forces.study(double, single, [students.water()], candidate)
        assert not row.exact
        assert row.head64 > 1e-8


def test_detailed_tables_and_labels(painn: Path, bundle: Path, labelled: Path, tmp_path: Path) -> None:
    output = tmp_path / "detailed.json"
    arguments = ["--checkpoint", painn, "--compare-to", bundle, "--structures", labelled, "--verbose", "--labels"]
    done = run("validate_model_detailed", *arguments, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Against the labels" in done.stdout
    assert "error x" in done.stdout
    written = json.loads(output.read_text())
    assert written["same_student"] is True
    assert written["against_labels"]["student"]["force_mae"] == pytest.approx(0.01, rel=1e-6)
    assert written["against_labels"]["student"]["energy_mae"] == pytest.approx(1.0, rel=1e-6)
    assert len(written["structures"]) == 2


def test_another_student_is_compared_and_not_failed(painn: Path, labelled: Path, tmp_path: Path) -> None:
    other = students.write(tmp_path, "painn", seed=3)
    done = run("validate_model_detailed", "--checkpoint", painn, "--compare-to", other, "--structures", labelled)
    assert done.returncode == 0, done.stderr
    assert "made from another student" in done.stdout
    with open_candidate(str(other), str(painn), "auto") as candidate:
        assert not candidate.same_student


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": None}, "Structure 1 .* carries no energy"),
        ({"forces": None}, "carries no forces"),
        ({"energy": float("nan")}, "NaN or infinity as a label"),
    ],
)
def test_labels_that_are_not_there(labelled: Path, change: dict[str, Any], message: str) -> None:
    structures = ase.io.read(labelled, index=":")
    results = {**structures[1].calc.results, **change}
    structures[1].calc = SinglePointCalculator(structures[1], **{k: v for k, v in results.items() if v is not None})
    with pytest.raises(DatasetError, match=message):
        labels(structures, "labelled.extxyz")


def test_bad_input_is_one_line(painn: Path, labelled: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "plain.xyz", students.water())
    cases = [
        (["--checkpoint", "absent.pt"], "There is no file"),
        (["--checkpoint", painn, "--compare-to", tmp_path], "not a bundle"),
        (
            ["--checkpoint", painn, "--structures", tmp_path / "plain.xyz", "--labels"],
            "carries no energy and no forces",
        ),
    ]
    for arguments, message in cases:
        done = run("validate_model_detailed", *arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_rows_by_hand() -> None:
    want = [{"energy": 1.0, "forces": np.array([[0, 0, 1.0], [0, 0, -1.0], [0, 0, 0]])}]
    got = [{"energy": 1.3, "forces": np.array([[0, 0, 1.0], [0, 0, -1.0], [0.3, 0, 0]])}]
    (row,) = per_structure([students.water()], got, want)
    assert row.energy_error_per_atom == pytest.approx(0.1)
    assert row.force_max == row.net_force == pytest.approx(0.3)
    assert row.force_rmse == pytest.approx(0.1)
    assert row.force_cosine == pytest.approx(1.0)
