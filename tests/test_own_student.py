"""A user's own PaiNN, from the file that SchNetPack wrote to engines, their errors and their physics."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, DeclarationError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from tests import students
from tests.conftest import reference_systems
from tests.scripts.test_cli import run

DECLARED = Declaration.of("kcal/mol", "Ang", ["H,C,O"])
OPTIONS = ("--energy-unit", "kcal/mol", "--length-unit", "Ang", "--species", "H,C,O")


@pytest.mark.parametrize("name", ["ethanol_1", "ethanol_2", "ethanol_3", "aspirin"])
def test_an_engine_gives_schnetpack_s_energies_and_forces(references: Path, name: str, tmp_path: Path) -> None:
    """Also where the default structures are none of its own: nothing that it never saw stops a right engine."""
    path = references / "schnetpack_trained" / f"{name}.best_model"
    (bundle,) = export_engines(path, tmp_path, declared=DECLARED)
    assert bundle.name == f"{name}-onnxruntime-fp32.engine"
    validation = json.loads(read_bundle(bundle).file("validation.json"))
    assert validation["force_max"] < 2e-3
    assert validation["left_out"]
    systems = reference_systems(path.with_name(f"{name}.reference.npz"))
    with PaiNNCalculator(bundle) as calculator:
        results = calculator.calculate_batch([atoms for _, atoms, _ in systems])
    for result, (_, atoms, want) in zip(results, systems, strict=True):
        assert abs(result["energy"] - want["energy"]) < 1e-5 * len(atoms)
        np.testing.assert_allclose(result["forces"], want["forces"], rtol=0, atol=5e-5)


def test_the_commands_of_the_readme(references: Path, tmp_path: Path) -> None:
    """Export, and validate with units and elements from the bundle."""
    path = references / "schnetpack_trained" / "ethanol_1.best_model"
    done = run("export", path, *OPTIONS, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out, since the student's forces are beyond 50 eV/Å there" in done.stdout
    assert "unverified" not in done.stdout
    bundle = tmp_path / "ethanol_1-onnxruntime-fp32.engine"
    done = run("validate", bundle, "--reference", path, "--picoseconds", "0", "-o", tmp_path / "report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faithful" in done.stdout
    (found,) = json.loads((tmp_path / "report" / "validation.json").read_text())["bundles"]
    assert found["failures"] == []
    figures = [each[key] for each in found["audit"]["findings"] for key in ("student", "engine", "lost")]
    assert max(abs(x) for x in figures if x is not None) < 1e4
    assert run("export", path, "-o", tmp_path, "--overwrite", *OPTIONS[:4]).returncode == 0
    assert "unverified" in run("inspect", bundle).stdout


@pytest.mark.slow
def test_lower_precisions_and_the_audit_live_on_the_user_s_frames(references: Path, tmp_path: Path) -> None:
    path = references / "schnetpack_trained" / "ethanol_1.best_model"
    near = [atoms for name, atoms, _ in reference_systems(path.with_name("ethanol_1.reference.npz")) if "md" in name]
    frames = [students.perturbed(atoms, seed, 0.03) for seed in range(4) for atoms in near]
    ase.io.write(tmp_path / "frames.extxyz", frames)
    options = ("--structures", tmp_path / "frames.extxyz")
    done = run("export", path, *OPTIONS, *options, "--precision", "fp16", "--precision", "int8", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "every fifth of 40 structures, held out" in done.stdout
    bundles = [tmp_path / f"ethanol_1-onnxruntime-{precision}.engine" for precision in ("fp16", "int8")]
    for bundle in bundles:
        found = json.loads(read_bundle(bundle).file("validation.json"))
        assert found["structures"] == 8
        assert found["against_fp32"]["force_rmse"] < 20e-3
    done = run("validate", *bundles, "--reference", path, *options, "--picoseconds", "0")
    assert done.returncode == 0, done.stdout
    assert "far from all" not in done.stdout
    foreign = [students.perturbed(students.zoo()["water"])]
    ase.io.write(tmp_path / "foreign.extxyz", foreign)
    done = run("validate", bundles[0], "--reference", path, "--structures", tmp_path / "foreign.extxyz", "--no-audit")
    assert "1 of 1 structures are far from all that ethanol_1-onnxruntime-fp16.engine was judged on" in done.stdout


def test_a_file_that_says_no_units_is_never_guessed_at(references: Path, tmp_path: Path) -> None:
    path = references / "schnetpack_trained" / "ethanol_1.best_model"
    with pytest.raises(DeclarationError, match=r"ethanol_1\.best_model does not say its units.*--energy-.*--length"):
        export_engines(path, tmp_path)
    with pytest.raises(CheckpointError, match="did you mean kcal/mol"):
        export_engines(path, tmp_path, declared=Declaration("kcal", "Ang"))
    assert list(tmp_path.glob("*.engine")) == []
