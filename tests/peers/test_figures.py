"""The figures of peers are of the weights that are made here, would show another weight, and are what a peer gives."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from tests import peers
from tests.conftest import ROOT, reference_systems
from tests.export.originals.installed import run

MOST_BYTES = 200_000  # of all figures
UNREAD = ("cutoff", "interactions.2.update.mixing_matrix")
"""Ends of the names of weights that a configuration says again, or that nothing reads."""


@pytest.fixture(scope="module", params=peers.CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_figures_are_small() -> None:
    files = list(peers.FIGURES.iterdir())
    assert {file.stem for file in files} == peers.CASES.keys()
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES


def test_structures_are_those_that_the_peer_computed(name: str, tmp_path: Path) -> None:
    kept = reference_systems(peers.figures(name, peers.write(tmp_path, name)))
    made = peers.structures(name)
    assert {system for system, _, _ in kept} == made.keys()
    for system, atoms, want in kept:
        np.testing.assert_allclose(atoms.positions, made[system].positions, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(atoms.numbers, made[system].numbers)
        np.testing.assert_allclose(atoms.cell.array, made[system].cell.array, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(atoms.pbc, made[system].pbc)
        assert ("stress" in want) == atoms.pbc.all()
        assert len(atoms) == 1 or np.abs(want["forces"]).max() > 1e-3


def test_every_weight_counts(name: str, tmp_path: Path) -> None:
    path = peers.write(tmp_path, name)
    weights = load_file(path)
    systems = reference_systems(peers.figures(name, path))
    atoms, want = next((atoms, want) for system, atoms, want in systems if system == "ethanol")
    for key in (key for key in weights if not key.endswith(UNREAD)):
        moved = weights[key].clone()
        moved[(8,) if "embedding" in key else (0,)] += 1e-3  # of oxygen, which is there
        save_file(weights | {key: moved}, path)
        (got,) = reference_results(load_student(path, dtype=torch.float64), [atoms])
        error = max(abs(got["energy"] - want["energy"]), np.abs(got["forces"] - want["forces"]).max())
        assert error > 1e-7, f"{key} might be another, and the figures would not show it"


def test_other_weights_than_the_peer_s_are_refused(name: str, tmp_path: Path) -> None:
    path = peers.write(tmp_path, name)
    assert peers.figures(name, path).is_file()
    weights = load_file(path)
    key = next(key for key in weights if key.endswith("bias"))
    weights[key][0] += 1e-3
    save_file(weights, path)
    with pytest.raises(ValueError, match="holds other weights than those of which .* computed the figures"):
        peers.figures(name, path)


def test_schnetpack_gives_these_figures(schnetpack_environment: dict[str, str], tmp_path: Path) -> None:
    paths = os.pathsep.join((schnetpack_environment["PYTHONPATH"], str(ROOT)))
    done = run({**schnetpack_environment, "PYTHONPATH": paths}, "-m", "tests.peers.make_schnetpack", tmp_path)
    assert done.returncode == 0, done.stderr
    for case in ("schnetpack-gaussian", "schnetpack-bessel"):
        now, then = (json.loads((folder / f"{case}.json").read_text()) for folder in (tmp_path, peers.FIGURES))
        assert (now["peer"], now["weights_sha256"]) == (then["peer"], then["weights_sha256"])
        with np.load(tmp_path / f"{case}.npz") as made, np.load(peers.FIGURES / f"{case}.npz") as kept:
            assert set(made.files) == set(kept.files)
            for key in kept.files:
                np.testing.assert_allclose(made[key], kept[key], rtol=0, atol=1e-11, err_msg=f"{case}: {key}")
