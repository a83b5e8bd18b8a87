"""Committees: several students in one bundle, their mean and their spread."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from typer.testing import CliRunner

from painn_deploy.calibration.report.validation import Options, validate
from painn_deploy.calibration.uncertainty.spread import spread_of
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.checkpoint import load_committee, load_student
from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import BundleError, CheckpointError, ConfigurationError, ExportError, ParityError
from painn_deploy.export.manifest import MANIFEST, manifest_digest
from painn_deploy.export.model.committee import Committee
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.uncertainty.watch import UncertaintyWarning
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.cli import app
from painn_deploy.scripts.commands import certainty
from tests import students

ENERGY, FORCES = 1e-5, 3e-5
"""eV and eV/Å, of a committee's engine against the engines of its members."""


def unseen(seed: int = 0) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    found = [molecule("CH3CH2OH"), molecule("CH3OH"), molecule("H2O"), bulk("C", "diamond", 3.6)]
    for atoms in found:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return found


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three students of other seeds, each with atomic references of its own."""
    paths = []
    for seed in range(3):
        folder = tmp_path_factory.mktemp(f"member{seed}")
        path = students.write(folder, "painn", seed=seed, species=["H", "C", "O"])
        paths.append(path.rename(folder / f"seed{seed}.safetensors"))
        (folder / "painn.json").rename(folder / f"seed{seed}.json")
    return paths


@pytest.fixture(scope="module")
def committee(members: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = export_engines(members, tmp_path_factory.mktemp("committee"), committee=True)
    return path


def spread(results: Sequence[dict]) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Mean energy, its deviation, mean forces, and the root of the variance summed over components."""
    energies, forces = (np.array([one[key] for one in results]) for key in ("energy", "forces"))
    return energies.mean(), energies.std(ddof=1), forces.mean(0), np.sqrt(forces.var(0, ddof=1).sum(-1))


def compare(committee: Path, members: Sequence[Path], structures: list[Atoms], energy: float, forces: float) -> None:
    each = []
    for path in members:
        with PaiNNCalculator(path) as one:
            each.append(one.calculate_batch(structures))
    with PaiNNCalculator(committee) as together:
        batched = together.calculate_batch(structures)
        for atoms, got, *others in zip(structures, batched, *each, strict=True):
            mean, deviation, mean_forces, of_forces = spread(others)
            assert deviation > 100 * energy, "the members agree: nothing is tested"
            assert of_forces.min() > 0
            assert got["energy"] == pytest.approx(mean, abs=energy)
            assert got["energy_uncertainty"] == pytest.approx(deviation, abs=energy)
            assert got["forces"] == pytest.approx(mean_forces, abs=forces)
            assert got["forces_uncertainty"] == pytest.approx(of_forces, abs=forces)
            assert "energies_uncertainty" not in got
            if "stress" in got:
                wanted = np.mean([one["stress"] for one in others], axis=0)
                assert got["stress"] == pytest.approx(wanted, abs=forces)
            atoms.calc = together
            assert atoms.get_potential_energy() == pytest.approx(got["energy"], abs=energy)
            assert together.results["forces_uncertainty"] == pytest.approx(of_forces, abs=forces)
            atoms.calc = None


def exported(members: Sequence[Path], folder: Path, **options: object) -> list[Path]:
    """Each member in a bundle of its own."""
    return [export_engines(path, folder, **options)[0] for path in members]


def test_mean_and_spread_are_those_of_the_engines_one_by_one(
    committee: Path, members: list[Path], tmp_path: Path
) -> None:
    assert committee.name == "seed0+2-onnxruntime-fp32.engine"
    compare(committee, exported(members, tmp_path), unseen(), ENERGY, FORCES)
    manifest = read_bundle(committee).manifest
    assert [one["name"] for one in manifest.members] == ["seed0", "seed1", "seed2"]
    assert manifest.axes == {"members": 3}
    said = read_bundle(committee).json("validation.json")["committee"]
    assert said["forces_median"] < 1e-5


def test_a_committee_is_validated_against_its_members_in_any_order(committee: Path, members: list[Path]) -> None:
    shuffled, options = [members[2], members[0], members[1]], Options(physics=False)
    (found,) = validate([committee], shuffled, options)
    assert not found.failures
    assert found.checkpoint == "seed0+2"
    assert found.accuracy.force_max < FORCES
    with PaiNNCalculator(committee) as together:
        got = together.calculate_batch(found.samples.structures)
    for each, wanted in zip(got, found.samples.wanted, strict=True):
        np.testing.assert_allclose(each["forces"], wanted["forces"], rtol=0, atol=FORCES)


def test_a_committee_is_validated_against_all_its_members_and_nobody_else(
    committee: Path, members: list[Path], tmp_path: Path
) -> None:
    stranger, options = students.write(tmp_path, "painn", seed=9, species=["H", "C", "O"]), Options(physics=False)
    for given, message in (
        (members[:2], "of a committee of 3, and of seed2 no checkpoint was given. Give those of all members"),
        (members[0], "of a committee of 3, and of seed1, seed2 no checkpoint"),
        ([*members[:2], stranger], r"was not made from .*painn.* but from seed0 .*seed1 .*seed2 .*of all members"),
        ([*members, members[0]], "given twice"),
    ):
        with pytest.raises(CheckpointError, match=message):
            validate([committee], given, options)
    (alone,) = export_engines(members[0], tmp_path / "alone", uncertainty=False)
    with pytest.raises(CheckpointError, match=r"was not made from .*seed1.* but from a file of SHA-256"):
        validate([alone], members[:2], options)


def test_commands_take_a_committee_s_checkpoints_as_a_list(committee: Path, members: list[Path]) -> None:
    shown = "".join(CliRunner().invoke(app, ["inspect", str(committee)]).stdout.split())
    for path in members:
        assert f"{path.stem},sha256" in shown
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:24] in shown
    command = ["validate", str(committee), "--no-audit", "--reference", ",".join(map(str, reversed(members)))]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "faithful" in done.stdout


def test_trained_ethanols(references: Path, tmp_path: Path) -> None:
    files = [references / "schnetpack_trained" / f"ethanol_{number}.best_model" for number in (1, 2, 3)]
    declared = Declaration.of("kcal/mol", "Ang", "H,C,O", None)
    rng, frames = np.random.default_rng(1), []
    for _ in range(6):
        atoms = molecule("CH3CH2OH")
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        frames.append(atoms)
    (path,) = export_engines(files, tmp_path, committee=True, declared=declared, structures=frames)
    assert path.name == "ethanol_1+2-onnxruntime-fp32.engine"
    each = exported(files, tmp_path, declared=declared, structures=frames)
    with PaiNNCalculator(path) as together:
        got = together.calculate_batch(frames)
    wanted = []
    for one in each:
        with PaiNNCalculator(one) as alone:
            wanted.append(alone.calculate_batch(frames))
    for results, *others in zip(got, *wanted, strict=True):
        mean, deviation, mean_forces, of_forces = spread(others)
        assert results["energy"] == pytest.approx(mean, abs=ENERGY)
        assert results["energy_uncertainty"] == pytest.approx(deviation, abs=ENERGY)
        assert results["forces"] == pytest.approx(mean_forces, abs=FORCES)
        assert results["forces_uncertainty"] == pytest.approx(of_forces, abs=FORCES)


def test_in_double_precision(members: list[Path], tmp_path: Path) -> None:
    (path,) = export_engines(members, tmp_path / "k", committee=True, precisions=["fp64"])
    compare(path, exported(members, tmp_path, precisions=["fp64"]), unseen(), 1e-8, 1e-8)


def test_with_radial_tables_and_in_half_precision(members: list[Path], tmp_path: Path) -> None:
    paths = export_engines(
        members, tmp_path, committee=True, precisions=["fp32", "fp16"], radial_table=True, max_table_error=1e-3
    )
    compare(paths[0], exported(members, tmp_path), unseen(), 1e-3, 1e-2)
    said = read_bundle(paths[1]).json("validation.json")["committee"]
    assert 0 < said["forces_largest"] < 0.05


def test_int8_counts_no_constant_shift_as_spread(members: list[Path], tmp_path: Path) -> None:
    from painn_deploy.calibration.accuracy.errors import Tolerances

    wide = Tolerances(energy=1.0, forces=1.0)
    (path,) = export_engines(members, tmp_path, committee=True, precisions=["int8"], limits=wide)
    manifest = read_bundle(path).manifest
    exact = load_committee(members)[0]
    shifts = [
        np.array(one["atomic_references"]) - member.atomic_references[list(manifest.species)].numpy()
        for one, member in zip(manifest.members, exact.members, strict=True)
    ]
    assert np.ptp(shifts, axis=0).max() > 0
    said = read_bundle(path).json("validation.json")["committee"]
    assert said["energy_median"] < 0.05


def test_a_plan_for_a_gpu_is_built(members: list[Path], tmp_path: Path) -> None:
    (path,) = export_engines(members, tmp_path, committee=True, engines=["tensorrt-rtx"])
    assert read_bundle(path).manifest.axes == {"members": 3}


def test_inductor_runs_it(committee: Path, members: list[Path], tmp_path: Path) -> None:
    (path,) = export_engines(members[:2], tmp_path, committee=True, engines=["inductor"], form="sums+frozen")
    compare(path, exported(members[:2], tmp_path), unseen(), ENERGY, FORCES)


def test_a_committee_is_itself_a_student(members: list[Path]) -> None:
    committee, whole, each = load_committee(members, dtype=torch.float64)
    assert committee.species == (1, 6, 8)
    assert committee.dtype == torch.float64
    assert whole.name == "seed0+2"
    assert len({whole.sha256, *(one.sha256 for one in each)}) == 4
    wanted = torch.stack([one.atomic_references for one in committee.members]).mean(0)
    assert torch.equal(committee.atomic_references, wanted)


def test_what_is_no_committee_is_refused(members: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="two students or more, and 1 was given"):
        export_engines(members[:1], tmp_path, committee=True)
    with pytest.raises(ExportError, match="3 students were given. Give --committee"):
        export_engines(members, tmp_path)
    with pytest.raises(CheckpointError, match="the same bytes"):
        export_engines([members[0], members[0]], tmp_path, committee=True)
    with pytest.raises(
        ConfigurationError, match=r"small\.safetensors and .*base\.safetensors differ in hidden_dim \(48 and 96\)"
    ):
        export_engines(["student:small", "student:base"], tmp_path, committee=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cutoff": 4.5}, "cutoff"),
        ({"species": ["H", "C", "N"]}, "species"),
        ({"num_interactions": 3}, "num_interactions"),
        ({"cutoff_fn": "mollifier"}, "cutoff_fn"),
        ({"epsilon": 1e-3}, "epsilon"),
    ],
)
def test_members_that_differ_are_named(
    members: list[Path], tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    other = students.write(tmp_path, "painn", **{"seed": 5, "species": ["H", "C", "O"], **changes})
    with pytest.raises(ConfigurationError, match=named):
        export_engines([members[0], other], tmp_path / "out", committee=True)


def test_of_another_architecture(members: list[Path], tmp_path: Path) -> None:
    other = students.write(tmp_path, "distiller", seed=5, species=["H", "C", "O"])
    with pytest.raises(ConfigurationError, match="architecture"):
        export_engines([members[0], other], tmp_path / "out", committee=True)


def test_from_the_command_line(members: list[Path], tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["export", *map(str, members[:2]), "--committee", "-o", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "seed0+1-onnxruntime-fp32.engine").is_dir()
    ran = CliRunner().invoke(app, ["export", *map(str, members[:2]), "-o", str(tmp_path)])
    assert "--committee" in str(ran.exception)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["members"].pop(),
        lambda values: values["members"][0].update(atomic_references=[0.0]),
        lambda values: values["members"][0].update(name=3),
        lambda values: values["members"][0].pop("checkpoint_sha256"),
        lambda values: values.update(axes={"members": 1}, members=values["members"][:1]),
        lambda values: values.update(axes={}, members=[]),
        lambda values: values.update(members={}),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(committee: Path, tmp_path: Path, change: object) -> None:
    target = tmp_path / "other.engine"
    target.mkdir()
    for file in committee.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    values = json.loads((committee / MANIFEST).read_text())
    change(values)  # type: ignore[operator]
    values["manifest_sha256"] = manifest_digest(values)
    (target / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleError):
        PaiNNCalculator(target)


def test_an_engine_whose_spread_is_not_its_members_is_not_written(
    members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_wide(committee: Committee, structures: Sequence[Atoms]) -> list[dict]:
        return [{key: 1.5 * value for key, value in one.items()} for one in spread_of(committee, structures)]

    monkeypatch.setattr(certainty, "spread_of", too_wide)
    with pytest.raises(ParityError, match="is not that of its members"):
        export_engines(members[:2], tmp_path, committee=True)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_is_for_what_is_calibrated(committee: Path) -> None:
    with pytest.raises(BundleError, match="is a committee whose spread no frames have calibrated"):
        PaiNNCalculator(committee, warn_above=2.0)


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return [students.perturbed(molecule("CH3CH2OH"), seed) for seed in range(30)]


@pytest.fixture(scope="module")
def calibrated(members: list[Path], frames: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = export_engines(members, tmp_path_factory.mktemp("calibrated"), committee=True, training=frames)
    return path


def test_frames_calibrate_the_spread(calibrated: Path, frames: list[Atoms], committee: Path) -> None:
    said = read_bundle(calibrated).json("validation.json")["uncertainty"]
    assert said["kind"] == "committee"
    assert said["frames"] == [30, 30]
    assert any("only 30 calibrate" in remark for remark in said["remarks"])
    with PaiNNCalculator(calibrated) as opened, PaiNNCalculator(committee) as plain:
        results, without = opened.calculate_batch(frames), plain.calculate_batch(frames)
        assert opened.evaluator.uncertainty.scale.threshold == said["threshold"]
        odd = frames[0].copy()
        odd.positions *= 0.6  # all its atoms pushed together
        (far,) = opened.calculate_batch([odd])
    assert far["uncertainty_verdict"] == "unfamiliar"
    ratios = np.array([one["uncertainty_ratio"] for one in results])
    assert np.median(ratios) == pytest.approx(1, abs=1e-3)
    means = np.array([one["forces_uncertainty"].mean() for one in without])
    assert ratios == pytest.approx(means / np.median(means), rel=1e-3)
    assert {one["uncertainty_verdict"] for one in results} <= {"familiar", "unfamiliar"}
    assert np.mean([one["uncertainty_verdict"] == "familiar" for one in results]) >= 0.9
    assert not any("uncertainty_ratio" in one for one in without)
    with (
        pytest.warns(UncertaintyWarning, match="is unfamiliar"),
        PaiNNCalculator(calibrated, warn_above="threshold") as o,
    ):
        o.calculate_batch([odd])


def test_an_element_that_no_frame_held_is_beyond_any_limit(members: list[Path], tmp_path: Path) -> None:
    water = [students.perturbed(molecule("H2O"), seed) for seed in range(10)]
    (path,) = export_engines(members[:2], tmp_path, committee=True, training=water)
    assert read_bundle(path).json("uncertainty.json")["elements"] == ["H", "O"]
    with PaiNNCalculator(path) as opened:
        known, unknown = opened.calculate_batch([molecule("H2O"), molecule("CH4")])
    assert np.isfinite(known["uncertainty_ratio"])
    assert unknown["uncertainty_ratio"] == np.inf
    assert unknown["uncertainty_verdict"] == "unknown element"
    assert unknown["energy_uncertainty"] > 0  # the members do differ


@pytest.mark.parametrize(
    "changes", [{"elements": []}, {"elements": 3}, {"elements": ["Xx"]}, {"typical": 0}, {"kind": "last_layer"}]
)
def test_a_calibration_without_sense_is_refused(calibrated: Path, changes: dict[str, object]) -> None:
    bundle = read_bundle(calibrated)
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    files["uncertainty.json"] = json.dumps({**bundle.json("uncertainty.json"), **changes}).encode()
    with pytest.raises(BundleError, match=r"uncertainty\.json of .* cannot be read"):
        PaiNNCalculator(type(bundle).in_memory(bundle.manifest, files))


def test_a_committee_is_there_for_its_spread(members: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there for its spread"):
        export_engines(members, tmp_path, committee=True, uncertainty=False)


def test_one_student_has_no_spread(bundle: Path, painn: Path) -> None:
    assert len(load_student(painn).members) == 1
    with PaiNNCalculator(bundle) as calculator:
        assert not {"energy_uncertainty", "forces_uncertainty"} & calculator.calculate_batch(unseen()[:1])[0].keys()
