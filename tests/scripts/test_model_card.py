"""A card's figures: what they are made of, and that they are kept and put where they belong."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import molecule

from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.export import load_student
from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.scripts.benchmarks.cases import box_of_water
from painn_deploy.scripts.commands.outputs import write_between_marks
from painn_deploy.scripts.distillation.labels import load_teacher
from painn_deploy.scripts.studies import card_studies, model_card, trade
from painn_deploy.scripts.studies.card_text import sections
from tests import students


def test_the_box_is_64_whole_waters_as_dense_as_the_liquid() -> None:
    box = box_of_water()
    assert len(box) == 192
    density = box.get_masses().sum() / units.kg / (box.get_volume() * 1e-30)
    assert density == pytest.approx(997)
    assert card_studies._longest_bond(box) == pytest.approx(molecule("H2O").get_distance(0, 1))
    box.positions[4] += [3.0, 0.0, 0.0]
    assert card_studies._longest_bond(box) > 1.5
    oxygens = box[box.numbers == 8]
    assert oxygens.get_all_distances(mic=True)[np.triu_indices(64, 1)].min() > 3.0


def test_a_torsion_is_relaxed_at_each_angle() -> None:
    profile = dict(card_studies.butane(load_teacher("tblite:GFN2-xTB")(), (0.0, 120.0, 180.0)))
    assert profile[180.0] == 0
    assert 90 < profile[120.0] < 130  # meV; experiment has 140 or so, GFN2-xTB 111
    assert 190 < profile[0.0] < 240


def test_two_waters_are_bound_as_the_calculators_say() -> None:
    teacher = load_teacher("tblite:GFN2-xTB")()
    rows = card_studies.water_dimer(teacher, teacher, (2.6, 2.9, 5.0))
    assert all(ours == pytest.approx(theirs) for _, ours, theirs in rows)
    assert rows[1][1] < rows[0][1]
    assert -220 < rows[1][1] < -150  # meV


def test_frequencies_are_those_of_a_known_surface() -> None:
    atoms = molecule("H2O")
    teacher = load_teacher("tblite:GFN2-xTB")()
    modes = card_studies.frequencies(card_studies.relaxed(atoms, teacher))
    assert len(modes) == 3
    np.testing.assert_allclose(modes, [1539, 3643, 3651], atol=2)  # as ASE's Vibrations has them


def test_results_are_kept_for_the_same_weights_only(tmp_path: Path) -> None:
    path, calls = tmp_path / "kept.json", []

    def study() -> list[int]:
        calls.append(1)
        return [1, 2]

    assert model_card.Kept(path, {"weights": "a"}).get("x", study) == [1, 2]
    assert model_card.Kept(path, {"weights": "a"}).get("x", study) == [1, 2]
    assert len(calls) == 1
    with pytest.raises(DatasetError, match="other weights or settings"):
        model_card.Kept(path, {"weights": "b"})


RUN = {"name": "a", "atoms": 3, "drift": -0.02, "error": 0.001, "fluctuation": 0.1, "temperature": 300.0}
RESULTS = {
    "claim": {"picoseconds": 100.0},
    "kinds": [["md", 3, 1.0, 2.0, 3.0]],
    "vibrations": [["H2O", 0.96, 0.96, 1.0, 2.0]],
    "butane": [
        [[0.0, 200.0], [60.0, 30.0], [120.0, 100.0], [180.0, 0.0]],
        [[0.0, 210.0], [60.0, 31.0], [120.0, 111.0], [180.0, 0.0]],
    ],
    "dimer": [[2.6, -100.0, -110.0], [3.0, -190.0, -180.0], [6.0, 0.0, -25.0]],
    "nve": [RUN, RUN | {"name": "b", "drift": 0.0001, "error": 0.001}],
}


def test_a_card_says_what_was_measured(tmp_path: Path) -> None:
    text = "\n".join(sections(RESULTS))
    assert "Largest difference 11 meV, at 120°" in text
    assert "lowest at 3.0 Å with -190 meV; the teacher at 3.0 Å with -180 meV" in text
    assert "1 of 2 are below 0.01 meV/atom/ps; the largest is -0.02 ± 0.001 (a); 1 differ from zero" in text
    path = tmp_path / "card.md"
    path.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    write_between_marks(path, "new")
    assert path.read_text() == "before\n<!-- figures -->\n\nnew\n\n<!-- /figures -->\nafter\n"
    for lacking in ("no marks", "<!-- figures -->", "<!-- /figures -->", "<!-- /figures --><!-- figures -->"):
        path.write_text(lacking)
        with pytest.raises(OutputError, match="no marks"):
            write_between_marks(path, "new")
        assert path.read_text() == lacking
    write_between_marks(tmp_path / "started.md", "new")
    assert (tmp_path / "started.md").read_text() == "<!-- figures -->\n\nnew\n\n<!-- /figures -->\n"


def test_the_trade_is_measured_and_drawn(painn: Path, tmp_path: Path) -> None:
    structures = [students.perturbed(molecule(name), seed) for name in ("H2O", "CH4") for seed in range(2)]
    student = load_student(painn)
    calculator = TorchCalculator(student)
    forces = np.concatenate([calculator.get_forces(atoms) for atoms in structures])
    np.savez(
        tmp_path / "test.npz",
        numbers=np.concatenate([a.numbers for a in structures]),
        positions=np.concatenate([a.positions for a in structures]),
        forces=forces + 0.5,
        energies=np.array([calculator.get_potential_energy(a) + len(a) for a in structures]),
        offsets=np.cumsum([0, *map(len, structures)]),
        kinds=np.full(4, "md"),
    )
    trade.trade([str(painn)], data=tmp_path, output=tmp_path / "trade.png", precision=["fp32"], engine="onnxruntime")
    (row,) = json.loads((tmp_path / "trade.json").read_text())
    assert row["force"] == pytest.approx(500, rel=1e-3)
    assert row["energy"] == pytest.approx(1000, rel=1e-3)
    assert row["milliseconds"] > 0
    assert (row["interactions"], row["parameters"]) == (2, student.num_parameters)
    assert (tmp_path / "trade.png").stat().st_size > 1000
    assert "| painn fp32 | fp32 | 2 |" in (tmp_path / "trade.md").read_text()
