"""The study that compares uncertainties runs on any folder that make_dataset.py writes."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from ase.build import molecule

from painn_deploy.calibration.uncertainty.merit import coverage, rank_correlation, separation
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import BundleError, DatasetError
from painn_deploy.scripts.distillation.labels import write_arrays
from painn_deploy.scripts.studies import uncertainty_costs
from painn_deploy.scripts.studies.uncertainty import VARIANTS, study, uncertainty
from painn_deploy.scripts.studies.yardstick import yardstick
from tests import students


def write_split(path: Path, names: tuple[str, ...], kind: str, count: int = 120) -> None:
    rng, every = np.random.default_rng(0), []
    for i in range(count):
        every.append(molecule(names[i % len(names)]))
        every[-1].positions += rng.normal(0, 0.05, every[-1].positions.shape)
    sizes = [len(atoms) for atoms in every]
    write_arrays(
        path,
        numbers=np.concatenate([atoms.numbers for atoms in every]).astype(np.int8),
        positions=np.concatenate([atoms.positions for atoms in every]),
        forces=rng.normal(size=(sum(sizes), 3)).astype(np.float32),
        energies=rng.normal(size=count),
        offsets=np.cumsum([0, *sizes]),
        kinds=np.array([kind] * count),
        names=np.array([names[i % len(names)] for i in range(count)]),
    )


def test_every_variant_is_measured_and_what_ships_is_one_of_them(
    painn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "train.npz", ("CH4", "H2O", "CH3OH"), "md")
    write_split(tmp_path / "test.npz", ("C2H6", "H2O2"), "conformer")
    uncertainty(str(painn), data=tmp_path, output=tmp_path / "found.json", most=110)
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["variants"]
    assert rows.keys() == {*VARIANTS, "what ships"}
    assert found["structures"] == {"train": 110, "test": 110, "distorted": 110}
    assert all(0 <= row[key] <= 1 for row in rows.values() for key in ("AUC distorted", "68 %", "95 %"))
    assert all(-1 <= row["rank correlation"] <= 1 and row["z"] > 0 for row in rows.values())
    for name, value in rows["a matrix an element, summed widths"].items():
        if name not in ("z", "68 %", "95 %"):  # which depend on how alpha is chosen
            assert rows["what ships"][name] == pytest.approx(value, rel=1e-6, nan_ok=True)
    assert found["scales"].keys() == {"root mean square", "quantile 0.683", "quantile 0.95"}
    assert "| what ships |" in capsys.readouterr().out


def test_a_folder_without_conformers_is_refused(painn: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_split(tmp_path / f"{name}.npz", ("CH4",), "md", 10)
    with pytest.raises(DatasetError, match="no conformers"):
        study(load_student(painn, dtype=torch.float64), tmp_path, 10)


def test_figures_of_merit() -> None:
    values = np.array([1.0, 2.0, 2.0, 5.0])
    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert separation(values, np.array([False, False, False, True])) == 1
    assert separation(values, np.array([False, True, False, False])) == pytest.approx(0.5)
    assert np.isnan(separation(values, np.zeros(4, bool)))
    assert np.isnan(rank_correlation(values, np.ones(4)))
    assert coverage(np.array([0.5, -0.9, 1.5, -2.5])) == (0.5, 0.75)


def test_a_committee_is_held_beside_a_last_layer(
    painn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "validation"):
        write_split(tmp_path / f"{name}.npz", ("CH4", "H2O", "CH3OH"), "md")
    write_split(tmp_path / "test.npz", ("C2H6", "H2O2"), "conformer", 30)
    other = students.write(tmp_path, "painn", seed=1)
    yardstick([str(painn), str(other)], data=tmp_path, most=20)
    printed = capsys.readouterr().out
    assert "20 structures of the test split" in printed
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith(("| last", "| spread", "| the"))]
    assert len(rows) == 3
    for row in rows:
        assert -1 <= float(row[2]) <= 1
        assert 0 <= float(row[4]) <= 1
    # the committee's own errors are those of its mean, and not of its first member
    assert float(rows[0][1]) != float(rows[1][1]) == float(rows[2][1])


def test_costs_are_ratios_to_an_engine_without(
    painn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncertainty_costs, "BATCHES", (1,))
    monkeypatch.setattr(uncertainty_costs, "ROWS", (9,))
    with pytest.raises(BundleError, match="its cost has nothing to go by"):
        uncertainty_costs.uncertainty_costs([str(painn)])
    other = students.write(tmp_path, "painn", seed=1)
    uncertainty_costs.uncertainty_costs([str(painn), str(other)])
    printed = capsys.readouterr().out
    assert "onnxruntime" in printed
    tables = [line.split("|")[2:4] for line in printed.splitlines() if line.startswith(("| 1 |", "| 9 |"))]
    assert len(tables) == 2
    assert all(0.3 < float(cell) < 10 for row in tables for cell in row)


def test_stacked_products_are_those_of_the_members() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    apart, stacked = (
        onnxruntime.InferenceSession(uncertainty_costs._products(3, kind, 4), providers=["CPUExecutionProvider"])
        for kind in (False, True)
    )
    assert len(apart.get_outputs()) == 3
    (found,) = stacked.run(None, {"x": rows})
    assert found.shape == (3, 5, 4)
