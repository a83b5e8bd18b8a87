"""`painn-deploy lammps` on several ranks: restarts, reruns, dynamics without drift, and what is measured of them."""

import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.optimize import FIRE

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.benchmarks import lammps_neighbours, ranks
from painn_deploy.scripts.benchmarks.cases import box_of_water
from painn_deploy.scripts.benchmarks.ghosts import by_formula
from tests.runtime.motion.cases import SYMBOLS, gas
from tests.runtime.motion.commands import run_lammps
from tests.runtime.test_lammps import hot

BEGIN = """
units metal
read_data start.data
pair_style zero 5
pair_coeff * *
timestep 0.0005
neighbor 0.6 bin
"""


def dump(name: str, every: int) -> str:
    """Commands that write positions and forces into NAME.dump."""
    return f"""
dump {name} all custom {every} {name}.dump id element x y z fx fy fz
dump_modify {name} element {" ".join(SYMBOLS)} sort id format float %.12g
"""


def ran(bundle: Path, folder: Path, text: str, count: int) -> str:
    """What an input on so many ranks wrote on standard output."""
    done = run_lammps(bundle, folder, text, count, "--elements", ",".join(SYMBOLS), timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f" on {count} procs for " in done.stdout
    return done.stdout


def frames(folder: Path, name: str) -> list[Atoms]:
    return ase.io.read(folder / f"{name}.dump", index=":", format="lammps-dump-text")


def start(atoms: Atoms, folder: Path) -> None:
    """Write the structure that inputs begin with."""
    options = {"specorder": list(SYMBOLS), "masses": True, "velocities": True}
    ase.io.write(folder / "start.data", atoms, format="lammps-data", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Molecules that cross the border between two ranks."""
    start(gas(), tmp_path)
    return tmp_path


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_a_restart_goes_on_with_the_trajectory(bundle: Path, folder: Path, before: int, after: int) -> None:
    half = f"fix m all nve\nrun 12\nwrite_restart half\n{dump('whole', 1)}run 12\n"
    ran(bundle, folder, BEGIN + half, before)
    ran(bundle, folder, f"read_restart half\nfix m all nve\n{dump('again', 1)}run 12\n", after)
    want, got = frames(folder, "whole"), frames(folder, "again")
    assert len(want) == len(got) == 13
    np.testing.assert_allclose(got[0].get_forces(), want[0].get_forces(), rtol=0, atol=2e-5)
    for one, other in zip(want, got, strict=True):
        np.testing.assert_allclose(other.positions, one.positions, rtol=0, atol=1e-5)
        np.testing.assert_allclose(other.get_forces(), one.get_forces(), rtol=0, atol=2e-4)


def test_a_rerun_has_the_forces_of_each_frame(bundle: Path, folder: Path) -> None:
    """Also of frames between which atoms move further than ranks would let them in a run."""
    ran(bundle, folder, f"{BEGIN}fix m all nve\n{dump('far', 60)}run 240\n", 1)
    far = frames(folder, "far")
    assert min(np.abs(a.positions - b.positions).max() for a, b in zip(far[1:], far[:-1], strict=True)) > 0.6
    text = BEGIN + "".join(
        f"{dump(name, 1)}rerun far.dump {every}dump x y z\nundump {name}\n"
        for name, every in (("each", ""), ("second", "every 120 "))
    )
    ran(bundle, folder, text, 2)
    with PaiNNCalculator(bundle, threads=1) as calculator:
        for name, step in (("each", 1), ("second", 2)):
            found = frames(folder, name)
            assert len(found) == len(far[::step])
            for one, want in zip(found, far[::step], strict=True):
                calculator.calculate(want)
                np.testing.assert_allclose(one.positions, want.positions, rtol=0, atol=1e-9)
                np.testing.assert_allclose(one.get_forces(), calculator.results["forces"], rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def water(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that is trained: with random weights, molecules run together and away."""
    folder = tmp_path_factory.mktemp("water")
    (path,) = export_engines("student:small", folder, structures=[box_of_water()[:12]], uncertainty=False)
    return path


def test_ranks_drift_no_more_than_one(water: Path, tmp_path: Path) -> None:
    """Of 64 waters; how far energies lie from a line tells how sure its slope is."""
    with PaiNNCalculator(water, threads=1) as calculator:
        atoms = box_of_water()
        atoms.calc = calculator
        FIRE(atoms, logfile=None).run(fmax=0.3, steps=200)
        atoms.calc = None
    start(hot(atoms, 600), tmp_path)
    columns = "thermo_style custom step etotal\nthermo_modify format float %.10f\nthermo 5\n"
    slopes, scatters = [], []
    for count in (1, 2):
        text = ran(water, tmp_path, f"{BEGIN}{columns}fix m all nve\nrun 600\n", count)
        steps, energies = np.array(re.findall(r"^ +(\d+) +(-\d+\.\d{10}) *$", text, re.MULTILINE), float).T
        assert len(steps) == 121
        line = np.polynomial.Polynomial.fit(steps * 5e-4, 1e3 * energies / len(atoms), 1).convert()
        slopes.append(line.coef[1])
        scatters.append(np.std(1e3 * energies / len(atoms) - line(steps * 5e-4)))
    assert np.abs(slopes).max() < 0.1, "meV/atom/ps"
    assert abs(slopes[1] - slopes[0]) < 0.05
    assert scatters[1] < 1.2 * scatters[0] < 0.1


def test_the_measurements_run(water: Path, tmp_path: Path) -> None:
    (name, atoms), (longer, _) = ranks.boxes(128).items()
    assert (name, longer) == ("cube of 64 waters", "long box of 128 waters")
    ranks.write_water(atoms, tmp_path)
    one, two = (ranks.run(water, tmp_path, count, 2) for count in (1, 2))
    assert (one.grid, two.grid) == ((1, 1, 1), (1, 1, 2))
    assert min(one.milliseconds, two.milliseconds) > 0
    assert two.energy == pytest.approx(one.energy, abs=1e-6 * len(atoms))
    np.testing.assert_allclose(two.forces, one.forces, rtol=0, atol=2e-5)
    _, own = lammps_neighbours.by_search(atoms)
    *times, others = lammps_neighbours.by_lammps(atoms, tmp_path)
    assert own == others
    assert min(times) > 0


def test_atoms_that_a_rank_evaluates_by_the_formula() -> None:
    """Of a part of a box: all directions, two and one that end before the box does, and none."""
    edges, box, reach = np.array([10.0, 20.0, 30.0]), np.array([100.0, 100.0, 100.0]), 5.0
    shell = 2 * reach * (200 + 600 + 300) + np.pi * reach**2 * 60 + 4 / 3 * np.pi * reach**3
    assert by_formula(edges, box, reach, 0.1) == pytest.approx(0.1 * (6000 + shell))
    box[2] = 40.0
    assert by_formula(edges, box, reach, 0.1) == pytest.approx(0.1 * 40 * (200 + 2 * reach * 30 + np.pi * reach**2))
    box[1] = 25.0
    assert by_formula(edges, box, reach, 0.1) == pytest.approx(0.1 * 40 * 25 * 20)
    box[0] = 15.0
    assert by_formula(edges, box, reach, 0.1) == pytest.approx(0.1 * 40 * 25 * 15)
