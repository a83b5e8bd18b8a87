"""`painn-deploy` on a file that SchNetPack wrote: export, validate, inspect; and convert, which writes our own."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.origin import load_origin
from painn_deploy.export import load_student
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.declaration import Declaration, declaration_of
from painn_deploy.export.errors import CheckpointError, DeclarationError, OutputError, SpeciesError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.commands.convert import convert_checkpoint
from tests import students
from tests.export.schnetpack.edits import FILES, KCAL
from tests.export.schnetpack.test_reading import bare
from tests.scripts.test_cli import run

MODEL = FILES / "gaussian.best_model"
UNITS = ("--energy-unit", "kcal/mol", "--length-unit", "Ang")


@pytest.mark.parametrize("file", ["gaussian.best_model", "bessel.best_model", "deployed.pt", "last.ckpt"])
@pytest.mark.parametrize("species", [None, (1, 6, 8)])
def test_what_convert_writes_is_the_very_same_student(tmp_path: Path, file: str, species: tuple[int, ...]) -> None:
    declared = Declaration("kcal/mol", "Bohr", species)
    output = tmp_path / "new" / "student.safetensors"
    convert_checkpoint(FILES / file, output, declared=declared)
    for dtype in (torch.float64, torch.float32):
        given, made = load_student(FILES / file, dtype=dtype, declared=declared), load_student(output, dtype=dtype)
        assert made.configuration == given.configuration
        assert made.species == given.species
        state, wanted = made.state_dict(), given.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
        assert torch.equal(made.atomic_references, given.atomic_references)


def test_convert_takes_our_own_files_too_and_never_replaces_one_unasked(painn: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.safetensors"
    convert_checkpoint(painn, output)
    before = output.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        convert_checkpoint(MODEL, output, declared=KCAL)
    output.unlink()
    with pytest.raises(OutputError, match=r"s\.json exists"):
        convert_checkpoint(painn, output)
    convert_checkpoint(painn, output, overwrite=True)
    assert output.read_bytes() == before
    with pytest.raises(OutputError, match=r"does not end in \.safetensors"):
        convert_checkpoint(painn, tmp_path / "s.pt")
    with pytest.raises(DeclarationError, match="--energy-unit"):
        convert_checkpoint(MODEL, tmp_path / "t.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json", "s.safetensors"]


def test_convert_as_a_person_types_it(tmp_path: Path) -> None:
    output = tmp_path / "s.safetensors"
    done = run("convert", MODEL, "-o", output, *UNITS)
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    assert "unverified: the embedding's rows" in done.stdout
    done = run("convert", MODEL, "-o", output, *UNITS, "--species", "H", "C", "O", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "elements H C O" in done.stdout
    assert json.loads(output.with_suffix(".json").read_text())["species"] == ["H", "C", "O"]
    for units, message in (
        (("--energy-unit", "kcal", "--length-unit", "Ang"), "did you mean kcal/mol"),
        (("--energy-unit", "eV"), "--length-unit"),
    ):
        done = run("convert", MODEL, "-o", tmp_path / "t.safetensors", *units)
        assert done.returncode == 2
        assert message in done.stderr
        assert not (tmp_path / "t.safetensors").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    ase.io.write(folder / "water.extxyz", [students.water(seed) for seed in range(3)])
    done = run("export", MODEL, "-o", folder, *UNITS, "--structures", folder / "water.extxyz", "--species", "H,O")
    assert done.returncode == 0, done.stderr
    return folder / "gaussian-onnxruntime-fp32.engine"


def test_a_bundle_knows_what_was_declared(exported: Path) -> None:
    manifest = read_bundle(exported).manifest
    assert declaration_of(manifest) == Declaration("kcal/mol", "Ang", (1, 8))
    assert (manifest.species, manifest.species_verified) == ((1, 8), True)
    done = run("inspect", exported)
    assert "energy_unit kcal/mol, length_unit Ang, species H O" in done.stdout
    wanted = reference_results(load_student(MODEL, dtype=torch.float64, declared=KCAL), [students.water()])[0]
    with PaiNNCalculator(exported) as calculator:
        found = calculator.calculate_batch([students.water()])[0]
    np.testing.assert_allclose(found["forces"], wanted["forces"], rtol=0, atol=1e-4)


def test_validate_takes_units_and_elements_from_the_bundle(exported: Path) -> None:
    structures = exported.parent / "water.extxyz"
    done = run("validate", exported, "--reference", MODEL, "--structures", structures, "--no-audit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faithful" in done.stdout


def test_bundles_of_one_file_in_two_units_are_of_two_students(exported: Path, tmp_path: Path) -> None:
    (other,) = export_engines(MODEL, tmp_path, structures=[students.water()], declared=Declaration("eV", "Ang", (1, 8)))
    with pytest.raises(CheckpointError, match="with other units or elements"):
        load_origin([read_bundle(exported), read_bundle(other)], MODEL)


def test_elements_that_nobody_named_are_unverified_in_every_message(tmp_path: Path) -> None:
    (bundle,) = export_engines(FILES / "bessel.best_model", tmp_path, structures=[students.water()], declared=KCAL)
    assert not read_bundle(bundle).manifest.species_verified
    assert "unverified: the embedding's rows" in run("inspect", bundle).stdout
    unknown = molecule("H2O")
    unknown.numbers[0] = 110
    with PaiNNCalculator(bundle) as calculator, pytest.raises(SpeciesError, match="unverified"):
        calculator.get_potential_energy(unknown)


def test_what_was_assumed_is_printed_at_export_and_by_inspect(tmp_path: Path) -> None:
    (bundle,) = export_engines(bare(tmp_path), tmp_path, structures=[students.water()], declared=KCAL)
    for done in (run("inspect", bundle), run("convert", bare(tmp_path), *UNITS, "-o", tmp_path / "s.safetensors")):
        assert done.returncode == 0, done.stderr
        assert "Forces are wrong if it was trained otherwise" in done.stdout


def test_options_for_files_that_do_not_say_are_refused_for_those_that_do(painn: Path) -> None:
    for declared, option in (
        (Declaration("kcal/mol"), "--energy-unit"),
        (Declaration(length_unit="Bohr"), "--length-unit"),
        (Declaration(energy_key="U"), "--energy-key"),
    ):
        with pytest.raises(DeclarationError, match=f"{option}.*for files that do not say"):
            load_student(painn, declared=declared)
    said = Declaration("eV", "Angstrom", (1, 8))
    student, checkpoint = load_checkpoint(painn, declared=said)
    assert (student.species, checkpoint.declared) == ((1, 8), said)


def test_elements_may_be_added_and_not_contradicted(tmp_path: Path) -> None:
    path = students.write(tmp_path, "painn", species=["H", "O"])
    assert load_student(path, declared=Declaration(species=(1, 8))).species == (1, 8)
    with pytest.raises(DeclarationError, match="trained on H O, as its configuration says, and --species says H C"):
        load_student(path, declared=Declaration(species=(1, 6)))
