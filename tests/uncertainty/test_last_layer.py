"""The uncertainty of a last layer: fitted from frames, in a bundle, in results, and acted on."""

import copy
import hashlib
import json
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.uncertainty.fitting import REGULARISATION, Frames, fit_last_layer
from painn_deploy.calibration.uncertainty.training import last_layer_of
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import BundleError, DatasetError
from painn_deploy.export.manifest import MANIFEST, MODEL, UNCERTAINTY, manifest_digest
from painn_deploy.export.model.force_head import tensors
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.screening import screen
from painn_deploy.runtime.uncertainty.rigidity import LastLayer
from painn_deploy.runtime.uncertainty.watch import UncertaintyWarning
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.cli import app
from tests.students import without_weights

KEYS = {"uncertainty_ratio", "uncertainty_verdict", "energy_uncertainty", "energies_uncertainty"}


def perturbed(name: str, count: int, size: float = 0.05, seed: int = 0) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    frames = [molecule(name) for _ in range(count)]
    for atoms in frames:
        atoms.positions += rng.normal(0, size, atoms.positions.shape)
    return frames


def frames_of(student_path: Path, error: float = 0.05, shift: float = 0.0) -> list[Atoms]:
    """Frames whose labels are a student's energies with errors that grow with the number of atoms."""
    frames = [*perturbed("CH3CH2OH", 20), *perturbed("H2O", 20), *perturbed("CH3OH", 20)]
    frames = [frames[i] for i in np.random.default_rng(1).permutation(len(frames))]
    rng = np.random.default_rng(2)
    results = reference_results(load_student(student_path, dtype=torch.float64), frames)
    for atoms, wanted in zip(frames, results, strict=True):
        energy = wanted["energy"] + len(atoms) * (shift + error * rng.normal())
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return frames


@pytest.fixture(scope="module")
def training(painn: Path) -> list[Atoms]:
    return frames_of(painn)


@pytest.fixture(scope="module")
def certain(painn: Path, training: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says how sure it is."""
    folder = tmp_path_factory.mktemp("certain")
    (path,) = export_engines(painn, folder, training=training, structures=perturbed("CH3OH", 6, seed=9))
    return path


@pytest.fixture
def calculator(certain: Path) -> Iterator[PaiNNCalculator]:
    with PaiNNCalculator(certain) as opened:
        yield opened


def test_the_factor_covers_errors_of_the_size_that_the_labels_have() -> None:
    rng = np.random.default_rng(0)
    frames, width = 4000, 6
    features = [rng.normal(size=(3, width)) for _ in range(frames)]
    numbers = [np.array([8, 1, 1])] * frames
    found = fit_last_layer(Frames("none", numbers, features, np.zeros(frames), np.zeros(frames) + 1.0))
    assert found.factor is None  # one shift of the elements explains all
    sums = np.array([found.rigidities(n, f).sum() for n, f in zip(numbers, features, strict=True)])
    errors = 0.3 * sums * rng.normal(size=frames)
    fitted = fit_last_layer(Frames("gaussian", numbers, features, errors, np.zeros(frames)))
    assert fitted.factor == pytest.approx(0.3, rel=0.05)
    assert fitted.scale.frames == (3200, 800)
    assert fitted.scale.remarks == ()
    ratios = sums / 3 / fitted.scale.typical
    assert np.median(ratios) == pytest.approx(1.0, abs=0.03)
    assert np.mean(ratios > fitted.scale.threshold) == pytest.approx(0.01, abs=0.008)


def test_a_direction_that_no_frame_showed_is_the_least_certain() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2, 3)) * [1.0, 1.0, 0.0]
    found = fit_last_layer(Frames("flat", [np.array([1, 1])] * 50, list(flat), np.zeros(50), np.full(50, np.nan)))
    seen, unseen = found.rigidities(np.array([1, 1]), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert unseen / seen > 0.5 * REGULARISATION**-0.5


def test_few_atoms_and_no_energies_are_said_and_never_a_zero() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(2, 8)) for _ in range(10)]
    found = fit_last_layer(Frames("ten", [np.array([6, 1])] * 10, features, np.zeros(10), np.full(10, np.nan)))
    assert found.factor is None
    assert len([r for r in found.scale.remarks if "lower rank" in r and "H (8), C (8)" not in r]) == 0
    assert any("0 of the frames" in remark for remark in found.scale.remarks)
    results = found.results(np.array([6, 1]), found.digest(np.array([6, 1]), {"features": features[0]}))
    assert results.keys() == {"uncertainty_ratio", "uncertainty_verdict"}
    few = fit_last_layer(Frames("three", [np.array([6, 1])] * 3, features[:3], np.zeros(3), np.zeros(3)))
    assert any("too few to hold some out" in remark for remark in few.scale.remarks)
    assert any("lower rank" in remark and "H (3), C (3)" in remark for remark in few.scale.remarks)


def test_labels_on_another_scale_are_told_from_errors(painn: Path) -> None:
    student = load_student(painn, dtype=torch.float64)
    plain = last_layer_of(student, frames_of(painn, 1e-3), "plain")
    shifted = last_layer_of(student, frames_of(painn, 1e-3, shift=5.0), "shifted")
    assert plain.scale.remarks == tuple(remark for remark in plain.scale.remarks if "another scale" not in remark)
    assert any("another scale" in remark for remark in shifted.scale.remarks)
    assert plain.factor is not None
    assert shifted.factor == pytest.approx(plain.factor, rel=0.6)


def test_energies_that_are_its_own_calibrate_nothing(painn: Path) -> None:
    student = load_student(painn, dtype=torch.float64)
    found = last_layer_of(student, frames_of(painn, 1e-7), "rounded")
    assert found.factor is None
    assert any("Energies of rounded are the student's own" in remark for remark in found.scale.remarks)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_number(wrong: float) -> None:
    features = [np.ones((1, 2)) for _ in range(6)]
    features[4][0, 1] = wrong
    with pytest.raises(DatasetError, match="Structure 4 of frames"):
        fit_last_layer(Frames("frames", [np.array([1])] * 6, features, np.zeros(6), np.zeros(6)))
    with pytest.raises(DatasetError, match="holds no structure"):
        fit_last_layer(Frames("nothing", [], [], np.zeros(0), np.zeros(0)))


def test_results_carry_it_alone_in_batches_and_in_streams(calculator: PaiNNCalculator, training: list[Atoms]) -> None:
    unseen = [*perturbed("CH3CH2OH", 3, seed=5), *perturbed("H2O", 2, 0.2, seed=6)]
    together = calculator.calculate_batch(unseen)
    streamed = [outcome.results for outcome in calculator.stream(unseen)]
    for atoms, one, other in zip(unseen, together, streamed, strict=True):
        assert one.keys() >= KEYS
        assert other is not None
        assert other["energy_uncertainty"] == one["energy_uncertainty"]
        atoms.calc = calculator
        atoms.get_potential_energy()
        alone = calculator.results
        assert alone["energy_uncertainty"] == pytest.approx(one["energy_uncertainty"], rel=1e-3)
        assert alone["energies_uncertainty"] == pytest.approx(one["energies_uncertainty"], rel=1e-3)
        assert alone["energies_uncertainty"].sum() == pytest.approx(alone["energy_uncertainty"])
        assert not alone["energies_uncertainty"].flags.writeable
        assert calculator.get_property("energy_uncertainty", atoms) == alone["energy_uncertainty"]
        assert "energy_uncertainty" not in calculator.calculate_properties(atoms, ["energy"])
    for atoms in unseen:
        atoms.calc = None


def test_it_is_that_of_the_student_and_does_not_change_energies(
    certain: Path, bundle: Path, painn: Path, calculator: PaiNNCalculator
) -> None:
    unseen = perturbed("CH3OH", 4, seed=7)
    student = load_student(painn, dtype=torch.float64)
    found = calculator.evaluator.uncertainty
    assert isinstance(found, LastLayer)
    inputs = tensors(graph_inputs(unseen, student.configuration.cutoff, np.float64), torch.float64)
    with torch.no_grad():
        answer = student.answer(inputs)
    last = student.readout[-1]
    # the energy is linear in the features: what the rigidity is of is what the energy is made of
    made = answer.features @ last.weight[0] + last.bias
    assert torch.allclose(made, answer.energies, atol=1e-12)
    wanted = found.rigidities(np.concatenate([a.numbers for a in unseen]), answer.features.numpy())
    got = np.concatenate([r["energies_uncertainty"] for r in calculator.calculate_batch(unseen)])
    assert got == pytest.approx(found.factor * wanted, rel=5e-3)
    with PaiNNCalculator(bundle) as plain:
        for one, other in zip(plain.calculate_batch(unseen), calculator.calculate_batch(unseen), strict=True):
            assert not KEYS & one.keys()
            assert one["energy"] == pytest.approx(other["energy"], abs=1e-6)
            assert one["forces"] == pytest.approx(other["forces"], abs=1e-5)


def test_an_element_that_no_frame_held_is_beyond_any_limit_and_has_no_number(painn: Path, tmp_path: Path) -> None:
    frames = [atoms for atoms in frames_of(painn) if "C" not in atoms.get_chemical_symbols()]
    (path,) = export_engines(painn, tmp_path, training=frames)
    with PaiNNCalculator(path, warn_above=1e6) as opened:
        with pytest.warns(UncertaintyWarning, match="inf times"):
            (results,) = opened.calculate_batch([molecule("CH4")])
        assert results["uncertainty_ratio"] == float("inf")
        assert not {"energy_uncertainty", "energies_uncertainty"} & results.keys()


@pytest.mark.parametrize("precision", ["fp16", "fp64"])
def test_every_precision_has_it(painn: Path, training: list[Atoms], tmp_path: Path, precision: str) -> None:
    (path,) = export_engines(painn, tmp_path, precisions=[precision], training=training)
    said = read_bundle(path).json("validation.json")["uncertainty"]
    assert said["largest_relative_error"] < (1e-6 if precision == "fp64" else 0.1)
    assert said["fitted_on"].startswith("60 structures")
    assert said["frames"] == [48, 12]


def test_inductor_gives_the_same(certain: Path, painn: Path, training: list[Atoms], tmp_path: Path) -> None:
    (path,) = export_engines(painn, tmp_path, engines=["inductor"], form="sums+frozen", training=training)
    unseen = perturbed("CH3CH2OH", 3, seed=5)
    with PaiNNCalculator(path) as one, PaiNNCalculator(certain) as other:
        for got, want in zip(one.calculate_batch(unseen), other.calculate_batch(unseen), strict=True):
            assert got["energy_uncertainty"] == pytest.approx(want["energy_uncertainty"], rel=1e-2)


def test_a_plan_for_a_gpu_is_built_with_it(painn: Path, training: list[Atoms], tmp_path: Path) -> None:
    (path,) = export_engines(painn, tmp_path, engines=["tensorrt-rtx"], training=training)
    assert read_bundle(path).manifest.axes == {"width": 8}
    assert "largest_relative_error" not in read_bundle(path).json("validation.json")["uncertainty"]


def test_a_limit_warns_once_and_counts(certain: Path, training: list[Atoms]) -> None:
    with PaiNNCalculator(certain, warn_above=1e-6) as opened:
        with pytest.warns(UncertaintyWarning, match="times as uncertain") as caught:
            opened.calculate_batch(training[:7])
        assert len(caught) == 1
        assert opened.evaluator.doubts.count == 7
        again = pickle.loads(pickle.dumps(opened))
        assert again.evaluator.doubts.limit == copy.deepcopy(opened).evaluator.doubts.limit == 1e-6
    with PaiNNCalculator(certain, warn_above=1e-6) as opened:  # nothing was answered: there is nothing to doubt
        assert [outcome.results for outcome in opened.stream([Atoms()])] == [None]
    with PaiNNCalculator(certain, warn_above=1e6) as opened, warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.calculate_batch(training[:7])
        assert opened.evaluator.doubts.count == 0


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_makes_no_sense_is_refused(certain: Path, limit: float) -> None:
    with pytest.raises(ValueError, match="is no limit: give a number above 0"):
        PaiNNCalculator(certain, warn_above=limit)


def test_a_limit_for_a_bundle_without_says_how_to_export_it(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="--training FRAMES"):
        PaiNNCalculator(bundle, warn_above=2.0)
    start = tmp_path / "start.xyz"
    ase.io.write(start, molecule("CH3OH"))
    ran = CliRunner().invoke(app, ["md", str(bundle), str(start), "-o", str(tmp_path / "md"), "--stop-above", "2"])
    assert ran.exit_code != 0
    assert "--training FRAMES" in str(ran.exception)


def test_dynamics_end_at_the_first_frame_past_the_limit(certain: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.xyz"
    ase.io.write(start, molecule("CH3OH"))
    options = ["--steps", "400", "--every", "50", "--temperature", "3000", "--ensemble", "langevin"]
    common = ["md", str(certain), str(start), *options]
    with PaiNNCalculator(certain) as opened:
        (first,) = opened.calculate_batch([molecule("CH3OH")])
    limit = 1.02 * first["uncertainty_ratio"]
    ran = CliRunner().invoke(app, [*common, "-o", str(tmp_path / "md"), "--stop-above", f"{limit}"])
    assert ran.exit_code == 3, ran.output
    frames = ase.io.read(tmp_path / "md" / "md.extxyz", ":")
    with PaiNNCalculator(certain) as opened:
        ratios = [results["uncertainty_ratio"] for results in opened.calculate_batch(frames)]
    assert ratios[-1] > limit
    assert max(ratios[:-1]) <= limit
    rows = (tmp_path / "md" / "md.csv").read_text().splitlines()
    assert len(rows) == 1 + len(frames)
    for wrong in ("0", "-1", "nan"):
        ran = CliRunner().invoke(app, [*common, "-o", str(tmp_path / "x"), "--stop-above", wrong])
        assert ran.exit_code == 2
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("suffix", ["extxyz", "db", "parquet"])
def test_a_screening_writes_it(certain: Path, training: list[Atoms], tmp_path: Path, suffix: str) -> None:
    ase.io.write(tmp_path / "in.extxyz", perturbed("CH3OH", 3, seed=3))
    screen(certain, tmp_path / "in.extxyz", tmp_path / f"out.{suffix}")
    with PaiNNCalculator(certain) as opened:
        wanted = opened.calculate_batch(perturbed("CH3OH", 3, seed=3))
    if suffix == "extxyz":
        rows = ase.io.read(tmp_path / "out.extxyz", ":")
        got = [row.info["energy_uncertainty"] for row in rows]
        assert rows[0].arrays["energies_uncertainty"] == pytest.approx(wanted[0]["energies_uncertainty"], rel=1e-3)
    elif suffix == "db":
        with ase.db.connect(tmp_path / "out.db") as database:
            got = [row.energy_uncertainty for row in database.select()]
    else:
        from pyarrow import parquet

        rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
        got = [row["energy_uncertainty"] for row in rows]
        assert [row["uncertainty_verdict"] for row in rows] == [each["uncertainty_verdict"] for each in wanted]
        assert rows[0]["energies_uncertainty"] == pytest.approx(wanted[0]["energies_uncertainty"], rel=1e-3)
        assert rows[0]["info"] is rows[0]["arrays"] is None
    assert got == pytest.approx([each["energy_uncertainty"] for each in wanted], rel=1e-3)


def edited(certain: Path, folder: Path, **changes: object) -> Path:
    """The bundle with another uncertainty.json, hashed anew."""
    bundle = read_bundle(certain)
    values = {**bundle.json(UNCERTAINTY), **changes}
    made = replace(bundle, path=None, _held={})
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    files[UNCERTAINTY] = json.dumps(values).encode()
    return type(made).in_memory(bundle.manifest, files).write(folder / "edited.engine").path or folder


@pytest.mark.parametrize(
    "changes",
    [
        {"roots": {}},
        {"roots": {"H": "AAAA"}},
        {"roots": {"Xx": "AAAA"}},
        {"roots": []},
        {"factor": -1.0},
        {"factor": float("nan")},
        {"typical": 0.0},
        {"threshold": float("inf")},
        {"frames": [1]},
        {"frames": [True, 1]},
        {"kind": "other"},
        {"remarks": [1]},
        {"fitted_on": None},
    ],
)
def test_a_file_that_makes_no_sense_is_refused(certain: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(BundleError, match=r"uncertainty\.json of .*edited\.engine cannot be read"):
        PaiNNCalculator(edited(certain, tmp_path, **changes))


@pytest.mark.parametrize("axes", [{}, {"width": 9}, {"width": 0}, {"members": 2}, {"other": 3}, []])
def test_a_manifest_that_says_other_outputs_is_refused(certain: Path, tmp_path: Path, axes: object) -> None:
    target = tmp_path / "other.engine"
    target.mkdir()
    for file in certain.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    values = json.loads((certain / MANIFEST).read_text()) | {"axes": axes}
    values["manifest_sha256"] = manifest_digest(values)
    (target / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"axes|members|makes no sense|features"):
        PaiNNCalculator(target)


def test_a_bundle_of_the_first_format_opens_as_before(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "old.engine"
    target.mkdir()
    for file in bundle.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    model = without_weights((bundle / MODEL).read_bytes())
    (target / MODEL).write_bytes(model)
    values = json.loads((bundle / MANIFEST).read_text()) | {"format_version": 1}
    values["files"][MODEL] = hashlib.sha256(model).hexdigest()
    del values["axes"], values["members"]
    values["manifest_sha256"] = manifest_digest(values)
    (target / MANIFEST).write_text(json.dumps(values))
    frames = perturbed("CH3OH", 2)
    with PaiNNCalculator(target) as old, PaiNNCalculator(bundle) as new:
        assert old.manifest.format_version == 1
        for one, other in zip(old.calculate_batch(frames), new.calculate_batch(frames), strict=True):
            assert one["energy"] == other["energy"]
            assert not KEYS & one.keys()
