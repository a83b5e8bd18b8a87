"""LAMMPS on several MPI ranks: energies, forces and virials are those of one rank, and of ASE."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from filelock import FileLock

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.uncertainty.scale import NUMBERS
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.programs.ranks import launcher
from tests import students
from tests.runtime.motion.cases import CASES, SYMBOLS
from tests.runtime.motion.rank_job import THERMO
from tests.runtime.test_lammps import KCAL

ROOT = Path(__file__).parents[3]
RANKS = (2, 4, 8)
CHAOTIC = ("moving across borders", "swapped", "in parts")
"""Trajectories that are too long, or too random, to be the same on any number of ranks; each frame is held to ASE."""

Seen = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workers of pytest-xdist share: ranks of two jobs at once would wait for each other's turns."""
    own = tmp_path_factory.getbasetemp()
    made = (own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / "ranks"
    made.mkdir(exist_ok=True)
    return made


@pytest.fixture(scope="session")
def bundles(folder: Path) -> dict[str, str]:
    """Small students by name."""
    named = folder / "bundles.json"
    with FileLock(folder / "lock"):
        if not named.exists():
            named.write_text(json.dumps(_exported(folder)))
    found: dict[str, str] = json.loads(named.read_text())
    return found


def _exported(folder: Path) -> dict[str, str]:
    painn = students.write(folder, "painn")
    variants = ("one interaction", "repulsion", "a basis an interaction, and shared filters")
    made: dict[str, list[Path]] = {
        "painn": export_engines(painn, folder, structures=[students.water()]),
        "distiller": export_engines(students.write(folder, "distiller"), folder, structures=[students.water()]),
        **{name: export_engines(students.write_variant(folder, name), folder) for name in variants},
    }
    rng = np.random.default_rng(0)
    frames = [students.perturbed(CASES["tiles"].make()[: 12 + n], int(rng.integers(99)), 0.1) for n in range(12)]
    made["uncertain"] = export_engines(painn, folder / "uncertain", training=frames)
    return {name: str(paths[0]) for name, paths in made.items()}


@pytest.fixture(scope="session")
def seen(bundles: dict[str, str], folder: Path) -> Callable[[str, int], list[Seen]]:
    """What a case looked like on so many ranks, after each block of its commands."""

    def job(ranks: int) -> tuple[Any, dict[str, str]]:
        out = folder / f"{ranks}.npz"
        told = out.with_suffix(".json")
        with FileLock(folder / "lock"):
            if not told.exists():
                program = "-m", "tests.runtime.motion.rank_job", str(folder / "bundles.json"), str(out)
                command = [launcher(), "-n", str(ranks), sys.executable, *program]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
                assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return np.load(out), json.loads(told.read_text())

    def looked(name: str, ranks: int) -> list[Seen]:
        found, failed = job(ranks)
        assert name not in failed, failed[name]
        keys = [key.split("/") for key in found.files if key.startswith(f"{name}/")]
        blocks = sorted({int(number) for _, number, _ in keys})
        return [{key: found[f"{name}/{n}/{key}"] for _, number, key in keys if int(number) == n} for n in blocks]

    return looked


def structure(one: Seen, periodic: np.ndarray) -> Atoms:
    low, high, (xy, yz, xz) = np.split(one["box"], [3, 6])
    lengths = high - low
    cell = [[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]]
    return Atoms([SYMBOLS[int(kind) - 1] for kind in one["types"]], one["positions"], cell=cell, pbc=periodic)


@pytest.mark.parametrize(
    ("name", "ranks"), [(name, ranks) for ranks in RANKS for name in CASES if ranks <= CASES[name].most_ranks]
)
def test_ranks_give_what_one_gives_and_ase(
    seen: Callable[[str, int], list[Seen]], bundles: dict[str, str], name: str, ranks: int
) -> None:
    case = CASES[name]
    energy = KCAL if case.units == "real" else 1.0
    bar = units.bar if case.units == "metal" else 101325 * units.Pascal
    alone, divided = seen(name, 1), seen(name, ranks)
    assert len(alone) == len(divided) == len(case.after)
    with PaiNNCalculator(bundles[case.student], threads=1) as calculator:
        for block, (one, other) in enumerate(zip(alone, divided, strict=True)):
            np.testing.assert_array_equal(other["ids"], one["ids"])
            if name not in CHAOTIC or (block == 0 and name != "swapped"):
                atol = 2e-5 if block == 0 else 2e-4
                np.testing.assert_allclose(other["forces"] / energy, one["forces"] / energy, rtol=0, atol=atol)
                np.testing.assert_allclose(other["energies"] / energy, one["energies"] / energy, rtol=0, atol=1e-5)
                np.testing.assert_allclose(other["positions"], one["positions"], rtol=0, atol=1e-5)
                assert other["totals"][1] / energy == pytest.approx(
                    one["totals"][1] / energy, abs=1e-6 * len(one["ids"])
                )
            atoms = structure(other, case.make().pbc)
            calculator.calculate(atoms)
            results, volume = calculator.results, atoms.get_volume()
            assert other["totals"][1] / energy == pytest.approx(results["energy"], abs=1e-6 * len(atoms))
            assert other["totals"][-1] == pytest.approx(other["totals"][1], rel=1e-9)
            np.testing.assert_allclose(other["forces"] / energy, results["forces"], rtol=0, atol=2e-5)
            np.testing.assert_allclose(other["energies"] / energy, results["energies"], rtol=0, atol=1e-5)
            want = results["stresses"][:, [0, 1, 2, 5, 4, 3]] * volume
            scale = np.abs(want.sum(0)).max()
            got = other["virials"] * bar
            np.testing.assert_allclose(got.sum(0), want.sum(0), rtol=0, atol=1e-4 * scale)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
            if case.student == "uncertain":
                want = [results.get(name, np.inf) for name in NUMBERS]
                assert np.isfinite(want[0])
                np.testing.assert_allclose(other["doubts"], want, rtol=1e-4)
            else:
                assert len(other["doubts"]) == 0


def test_the_virial_is_in_the_pressure(seen: Callable[[str, int], list[Seen]]) -> None:
    for name in ("tiles", "triclinic", "pressure"):
        for one, other in zip(seen(name, 1), seen(name, 4), strict=True):
            for place, column in enumerate(THERMO[3:], start=3):
                assert other["totals"][place] == pytest.approx(one["totals"][place], rel=1e-4, abs=10), column


def test_cases_try_what_they_say(seen: Callable[[str, int], list[Seen]]) -> None:
    assert seen("vacuum", 8)[0]["owned"] == len(seen("vacuum", 8)[0]["ids"])  # the first owns all, and others none
    first, last = seen("moving across borders", 2)
    assert np.abs(first["positions"] - last["positions"]).max() > 6  # across, and around
    totals = np.array([one["totals"] for one in seen("pressure", 4)])
    assert totals[0, -2] != totals[1, -2]  # the volume
    assert len(seen("deleted atoms", 4)[-1]["ids"]) == len(seen("deleted atoms", 4)[0]["ids"]) - 31
    for ranks in (1, 2):
        hot = [one["totals"][2] for one in seen("moving across borders", ranks)]
        assert abs(hot[1] - hot[0]) < 0.02 * abs(seen("moving across borders", 1)[0]["totals"][1] - hot[0])
