"""Screenings with uncertainties: rows that are flagged, and structures that are chosen for labels."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from typer.testing import CliRunner

from painn_deploy.export.errors import BundleError, DatasetError, OutputError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.labelling import select
from painn_deploy.runtime.screening import screen
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.cli import app
from tests import students

NAMES = ("CH3OH", "H2O", "CH4", "CH3CH2OH")


@pytest.fixture(scope="module")
def certain(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = [students.perturbed(molecule(name), seed) for seed in range(15) for name in ("CH3OH", "H2O")]
    (path,) = export_engines(painn, tmp_path_factory.mktemp("certain"), training=frames, structures=frames[:5])
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = []
    for seed in range(12):
        for name in NAMES:
            rows.append(molecule(name))
            rows[-1].rattle(0.02 + 0.03 * seed, seed=seed)
            rows[-1].info["id"] = f"{name}-{seed}"
    rows.append(rows[0].copy())
    rows[-1].positions[1] = rows[-1].positions[0]  # two atoms on one spot: a row without results
    rows[-1].info["id"] = "broken"
    path = tmp_path_factory.mktemp("given") / "in.extxyz"
    ase.io.write(path, rows)
    return path


def ratios(bundle: Path, given: Path) -> np.ndarray:
    with PaiNNCalculator(bundle) as calculator:
        return np.array([r["uncertainty_ratio"] for r in calculator.calculate_batch(ase.io.read(given, ":-1"))])


@pytest.mark.parametrize("suffix", ["extxyz", "parquet", "db"])
def test_rows_above_the_limit_are_flagged_and_counted(certain: Path, given: Path, tmp_path: Path, suffix: str) -> None:
    wanted = ratios(certain, given)
    limit = float(np.median(wanted))
    summary = screen(certain, given, tmp_path / f"out.{suffix}", flag_above=limit, chunk_rows=10)
    if suffix == "extxyz":
        flags = [row.info.get("uncertainty_flag") for row in ase.io.read(tmp_path / "out.extxyz", ":")]
    elif suffix == "parquet":
        from pyarrow import parquet

        flags = parquet.read_table(tmp_path / "out.parquet").column("uncertainty_flag").to_pylist()
    else:
        with ase.db.connect(tmp_path / "out.db") as database:
            flags = [row.get("uncertainty_flag") for row in database.select()]
    clear = np.abs(wanted / limit - 1) > 1e-3  # a ratio is that of a batch up to rounding
    assert np.array(flags[:-1], bool)[clear].tolist() == (wanted > limit)[clear].tolist()
    assert flags[-1] is None
    count, example = summary.remarks["structures above --flag-above"]
    assert count == sum(map(bool, flags))
    assert example.startswith(f"row {flags.index(True)}: it is ")
    assert not any("columns of atoms" in kind for kind in summary.remarks)


def test_the_threshold_is_a_limit_that_a_resumed_run_keeps(certain: Path, given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.extxyz"
    screen(certain, given, out, flag_above="threshold")
    for row in ase.io.read(out, ":-1"):
        assert row.info["uncertainty_flag"] == (row.info["uncertainty_verdict"] != "familiar")
    with pytest.raises(OutputError, match="flag_above was"):
        screen(certain, given, out, flag_above=3.0, resume=True)
    with pytest.raises(OutputError, match="flag_above was .* and is None"):
        screen(certain, given, out, resume=True)
    assert screen(certain, given, out, flag_above="threshold", resume=True).computed == 0
    screen(certain, given, tmp_path / "plain.extxyz")
    with pytest.raises(OutputError, match="flag_above was None"):
        screen(certain, given, tmp_path / "plain.extxyz", flag_above=3.0, resume=True)


def test_a_screening_of_a_screening_keeps_no_old_verdicts(certain: Path, given: Path, tmp_path: Path) -> None:
    for source, target in ((given, "one"), (tmp_path / "one.extxyz", "two")):
        summary = screen(certain, source, tmp_path / f"{target}.extxyz", flag_above="threshold")
    assert not any(key.startswith("input_unc") for row in ase.io.read(tmp_path / "two.extxyz", ":") for key in row.info)
    assert summary.remarks["kept under another name"] == (1, "row 48: 'screen_error' is 'input_screen_error'")


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf"), "often"])
def test_a_limit_that_makes_no_sense_is_refused_first(
    certain: Path, given: Path, tmp_path: Path, limit: object
) -> None:
    with pytest.raises(ValueError, match="is no limit"):
        screen(certain, given, tmp_path / "out.extxyz", flag_above=limit)  # type: ignore[arg-type]
    ran = CliRunner().invoke(
        app, ["screen", str(certain), str(given), "-o", str(tmp_path / "out.extxyz"), "--flag-above", str(limit)]
    )
    assert ran.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_bundle_without_says_how_to_export_it(bundle: Path, given: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="--training FRAMES"):
        screen(bundle, given, tmp_path / "out.extxyz", flag_above=2)
    ran = CliRunner().invoke(app, ["screen", str(bundle), str(given), "-o", str(tmp_path / "o.db"), "--select", "3"])
    assert isinstance(ran.exception, BundleError)
    assert "--select has nothing to go by" in str(ran.exception)
    assert not list(tmp_path.iterdir())
    screen(bundle, given, tmp_path / "plain.extxyz")
    with pytest.raises(DatasetError, match="No row of .* says how uncertain it is"):
        select(tmp_path / "plain.extxyz", 3, 5.0, tmp_path / "chosen.extxyz")


@pytest.mark.parametrize("suffix", ["extxyz", "parquet", "db", "extxyz.gz"])
def test_the_chosen_are_uncertain_and_differ(certain: Path, given: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out.{suffix}"
    ran = CliRunner().invoke(app, ["screen", str(certain), str(given), "-o", str(out), "--select", "6"])
    assert ran.exit_code == 3, ran.output  # one row has no results
    chosen = ase.io.read(tmp_path / "out.selected.extxyz", ":")
    wanted, rows = ratios(certain, given), ase.io.read(given, ":")
    assert len(chosen) == 6
    assert chosen[0].info["selected_row"] == wanted.argmax()
    assert len({atoms.info["selected_row"] for atoms in chosen}) == 6
    for atoms in chosen:
        row = atoms.info["selected_row"]
        assert atoms.info["uncertainty_ratio"] == pytest.approx(wanted[row], rel=1e-3)
        assert atoms.info["id"] == rows[row].info["id"]
        assert atoms.positions == pytest.approx(rows[row].positions, abs=1e-6)
        assert atoms.calc is None  # the engine's own energies are no labels
    # the six most uncertain are of two kinds of molecules; the chosen are of more
    assert len({len(atoms) for atoms in chosen}) > len({len(rows[row]) for row in np.argsort(-wanted)[:2]})
    ran = CliRunner().invoke(app, ["screen", str(certain), str(given), "-o", str(tmp_path / "x.db"), "--select", "0"])
    assert ran.exit_code == 2


def test_a_choice_is_not_overwritten_unasked(certain: Path, given: Path, tmp_path: Path) -> None:
    (tmp_path / "out.selected.extxyz").write_text("mine")
    command = ["screen", str(certain), str(given), "-o", str(tmp_path / "out.db"), "--select", "2"]
    ran = CliRunner().invoke(app, command)
    assert isinstance(ran.exception, OutputError)
    assert [path.name for path in tmp_path.iterdir()] == ["out.selected.extxyz"]
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 3
    assert len(ase.io.read(tmp_path / "out.selected.extxyz", ":")) == 2


def written(path: Path, structures: list[Atoms], weights: list[float]) -> Path:
    for atoms, weight in zip(structures, weights, strict=True):
        atoms.info["uncertainty_ratio"] = weight
    ase.io.write(path, structures)
    return path


def test_the_same_structure_is_chosen_once(tmp_path: Path) -> None:
    water, methane = molecule("H2O"), molecule("CH4")
    turned = water.copy()
    turned.rotate(40, (1, 2, 3))
    path = written(tmp_path / "in.extxyz", [water, turned, water.copy(), methane], [5.0, 4.0, 3.0, 1.0])
    found = select(path, 4, 5.0, tmp_path / "out.extxyz")
    assert found.rows == [0, 3]
    assert found.candidates == 4


def test_an_unknown_element_comes_first_and_equal_rows_in_their_order(tmp_path: Path) -> None:
    rows = [molecule("H2O"), molecule("CH4"), molecule("NH3")]
    path = written(tmp_path / "in.extxyz", rows, [2.0, float("inf"), 2.0])
    assert select(path, 1, 5.0, tmp_path / "out.extxyz").rows == [1]
    path = written(tmp_path / "in2.extxyz", rows, [2.0, 2.0, 2.0])
    assert select(path, 1, 5.0, tmp_path / "out.extxyz").rows == [0]


def test_only_the_most_uncertain_are_candidates(tmp_path: Path) -> None:
    rows = [molecule("H2O") for _ in range(30)] + [molecule("CH4")]
    for seed, atoms in enumerate(rows):
        atoms.rattle(0.1, seed=seed)
    path = written(tmp_path / "in.extxyz", rows, [*np.linspace(2, 3, 30).tolist(), 1.0])
    found = select(path, 2, 5.0, tmp_path / "out.extxyz")
    assert found.candidates == 20
    assert found.rows[0] == 29
    assert 30 not in found.rows


def test_a_choice_never_replaces_its_input(certain: Path, given: Path, tmp_path: Path) -> None:
    source = tmp_path / "round.selected.extxyz"
    source.write_bytes(given.read_bytes())
    command = ["screen", str(certain), str(source), "-o", str(tmp_path / "round.db"), "--select", "2", "--overwrite"]
    ran = CliRunner().invoke(app, command)
    assert isinstance(ran.exception, OutputError)
    assert "is the input" in str(ran.exception)
    assert source.read_bytes() == given.read_bytes()


def test_a_second_round_keeps_where_rows_were_in_the_first(certain: Path, given: Path, tmp_path: Path) -> None:
    screen(certain, given, tmp_path / "one.extxyz")
    first = select(tmp_path / "one.extxyz", 5, 5.0, tmp_path / "chosen.extxyz")
    screen(certain, tmp_path / "chosen.extxyz", tmp_path / "two.extxyz")
    second = select(tmp_path / "two.extxyz", 3, 5.0, tmp_path / "again.extxyz")
    for place, atoms in zip(second.rows, ase.io.read(tmp_path / "again.extxyz", ":"), strict=True):
        assert atoms.info["selected_row"] == place
        assert atoms.info["input_selected_row"] == first.rows[place]
