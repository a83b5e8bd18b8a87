"""Uncertainties beside the errors against labels: figures, sentences, the report and the picture."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from painn_deploy.calibration.report.certainty import certainty_chart
from painn_deploy.calibration.uncertainty.calibrated import Calibrated
from painn_deploy.calibration.uncertainty.fitting import on_one_scale
from painn_deploy.export.reading import read_json
from painn_deploy.runtime.uncertainty.scale import Scale
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.cli import app
from tests import students

SIGMA = 0.02


def labelled(count: int, factor: float = 1.0, shift: float = 0.0, *, forces: bool = True) -> tuple[list[Atoms], list]:
    """Structures whose errors are normally distributed, `factor` times as wide as what results say of them."""
    rng, structures, results = np.random.default_rng(0), [], []
    for index in range(count):
        atoms = molecule(("CH3OH", "H2O", "CH4")[index % 3])
        sigma = SIGMA * rng.uniform(1, 5)
        label = {"energy": -10.0 + shift * len(atoms) - factor * sigma * rng.normal()}
        if forces:
            label["forces"] = sigma * rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, **label)
        structures.append(atoms)
        results.append({"energy": -10.0, "forces": np.zeros((len(atoms), 3)), "energy_uncertainty": sigma})
        results[-1] |= {"uncertainty_ratio": sigma / SIGMA}
    return structures, results


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_errors_as_large_as_said_are_covered_as_they_should_be(shift: float) -> None:
    structures, results = labelled(3000, shift=shift)
    groups = ["one", "two"] * 1500
    found = Calibrated.of(structures, results, groups, Scale(1.0, 4.0, "frames", (1, 1)))
    assert found is not None
    one, two, whole = found.table
    assert (one.name, two.name, whole.name) == ("one", "two", "all")
    assert one.structures == two.structures == 1500
    assert whole.within_one == pytest.approx(0.683, abs=0.03)
    assert whole.within_two == pytest.approx(0.95, abs=0.02)
    assert whole.unfamiliar == pytest.approx(0.25, abs=0.03)
    assert found.correlation[1] == "force MAE"
    assert found.correlation[0] > 0.6
    assert bool(found.shifts) == (shift != 0)
    assert ("after shifts of" in found.sentence) == (shift != 0)
    assert "3000 structures came with energies" in found.sentence
    worst = found.worst(3)
    assert np.abs(found.z)[worst].min() >= np.delete(np.abs(found.z), worst).max()
    values = found.as_dict()
    assert values["groups"][2]["within_two"] == whole.within_two
    assert [row["index"] for row in values["worst"][:3]] == worst


def test_errors_larger_than_said_show(tmp_path: Path) -> None:
    structures, results = labelled(900, factor=3.0, forces=False)
    found = Calibrated.of(structures, results, ["all"] * 900, None)
    assert found is not None
    (whole,) = found.table
    assert whole.within_one == pytest.approx(0.26, abs=0.04)
    assert np.isnan(whole.forces)
    assert np.isnan(whole.unfamiliar)
    assert found.correlation[1] == "energy error an atom"
    assert certainty_chart(found).lstrip().startswith("<?xml")


def test_noise_of_few_frames_is_no_shift() -> None:
    rng = np.random.default_rng(0)
    numbers = [molecule(name).numbers for name in ("CH3OH", "H2O", "CH4", "NH3", "CH3Cl")]
    errors = rng.normal(0, 3.0, len(numbers))
    left, words = on_one_scale(errors, numbers)
    assert words == ""
    assert left is errors
    many = numbers * 4
    shifted = np.array([3.0 * len(each) for each in many]) + rng.normal(0, 0.01, len(many))
    left, words = on_one_scale(shifted, many)
    assert "O -3.0" in words
    assert np.abs(left).max() < 0.1


def test_what_has_no_uncertainty_is_counted_and_what_is_within_it_is_no_failure() -> None:
    structures, results = labelled(20, factor=1e-3)
    for result in results[:4]:
        del result["energy_uncertainty"]
    found = Calibrated.of(structures, results, [""] * 20, None, places=range(100, 120))
    assert found is not None
    assert found.unknown == found.as_dict()["unknown"] == 4
    assert found.sentence.endswith("; 4 more hold elements that no frame held")
    assert found.worst() == []
    assert found.indices.tolist() == list(range(104, 120))
    assert "NaN" not in json.dumps(found.as_dict())


def test_nothing_is_said_of_too_few_or_of_none() -> None:
    structures, results = labelled(12)
    assert Calibrated.of(structures[:4], results[:4], [""] * 4, None) is None
    bare = [{key: value for key, value in one.items() if key != "energy_uncertainty"} for one in results]
    assert Calibrated.of(structures, bare, [""] * 12, None) is None
    for atoms in structures[:6]:
        atoms.calc = None
    structures[6].calc.results["energy"] = float("nan")
    found = Calibrated.of(structures, results, [""] * 12, None)
    assert found is not None
    assert found.indices.tolist() == [7, 8, 9, 10, 11]


@pytest.fixture(scope="module")
def frames(painn: Path) -> list[Atoms]:
    made = [students.perturbed(molecule(name), seed) for seed in range(20) for name in ("CH3OH", "H2O")]
    rng = np.random.default_rng(0)
    for atoms in made:
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
    return made


def test_validate_says_and_draws_it(painn: Path, frames: list[Atoms], tmp_path: Path) -> None:
    (bundle,) = export_engines(painn, tmp_path, training=frames)
    ase.io.write(tmp_path / "frames.extxyz", frames)
    common = ["validate", str(bundle), "--reference", str(painn), "--no-audit", "-o", str(tmp_path / "report")]
    ran = CliRunner().invoke(app, [*common, "--structures", str(tmp_path / "frames.extxyz")])
    assert ran.exit_code == 0, ran.output
    assert "uncertainty: 40 structures came with energies" in ran.output
    said = read_json(tmp_path / "report" / "validation.json", 1 << 20)["bundles"][0]["certainty"]
    assert said["structures"] == 40
    page = (tmp_path / "report" / "report.html").read_text()
    assert "How sure it is, against the labels" in page
    assert said["rank_correlation_with"] in page
    ran = CliRunner().invoke(app, common)  # the default set has no labels
    assert ran.exit_code == 0, ran.output
    assert "uncertainty:" not in ran.output
    assert "How sure it is" not in (tmp_path / "report" / "report.html").read_text()
