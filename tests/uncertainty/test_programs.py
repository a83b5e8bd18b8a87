"""Uncertainties in the programs that move the atoms: LAMMPS's fix has a vector of them, i-PI has extras."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.calculators.socketio import SocketIOCalculator

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.lammps import LammpsForces, start_lammps
from painn_deploy.runtime.sockets import drive
from painn_deploy.scripts import export_engines
from tests import students
from tests.runtime import test_sockets
from tests.runtime.test_lammps import KCAL, build, hot
from tests.runtime.test_sockets import address, driver, in_a_box, ipi

__all__ = ["address"]


def frames(energies: bool) -> list[Atoms]:
    made, rng = [students.perturbed(molecule("CH3OH"), seed, 0.05) for seed in range(40)], np.random.default_rng(0)
    for atoms in made:
        if energies:
            atoms.calc = SinglePointCalculator(atoms, energy=rng.normal())
    return made


@pytest.fixture(scope="module")
def bundles(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    other = students.write(folder, "painn", seed=1)
    options: dict[str, Any] = {"structures": frames(False)[:5]}
    (full,) = export_engines(painn, folder / "full", training=frames(True), **options)
    (bare,) = export_engines(painn, folder / "bare", training=frames(False), **options)
    (committee,) = export_engines([painn, other], folder / "committee", committee=True, **options)
    return {"full": full, "bare": bare, "committee": committee}


KINDS = ("full", "bare", "committee")


@pytest.fixture
def lammps() -> Iterator[Any]:
    instance = start_lammps()
    yield instance
    instance.close()


def methanol() -> Atoms:
    atoms = hot(students.perturbed(molecule("CH3OH"), 1, 0.02), 300)
    atoms.set_cell([12.0, 12.0, 12.0])
    atoms.center()
    return atoms


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit_system", ["metal", "real"])
def test_lammps_has_the_numbers_of_a_structure(
    bundles: dict[str, Path], lammps: Any, kind: str, unit_system: str
) -> None:
    atoms = methanol()
    build(lammps, atoms, ["C", "H", "O"], unit_system)
    with PaiNNCalculator(bundles[kind]) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C", 2: "H", 3: "O"})
        assert link.uncertainties == ("uncertainty_ratio", "energy_uncertainty")
        lammps.command("fix move all nve")
        link.command("thermo_style custom step pe f_painn[1] f_painn[2]")
        link.command("run 7")
        got = [lammps.extract_fix("painn", 0, 1, nrow=place) for place in range(2)]
        wanted = [calculator.results.get(name, np.inf) for name in link.uncertainties]
    assert np.isfinite(wanted).tolist() == [kind != "committee", kind != "bare"]
    wanted[1] *= KCAL if unit_system == "real" else 1
    assert got == pytest.approx(wanted, rel=1e-6)


def test_lammps_halts_where_it_is_told_to(bundles: dict[str, Path], lammps: Any) -> None:
    atoms = hot(methanol(), 3000)
    build(lammps, atoms, ["C", "H", "O"])
    with PaiNNCalculator(bundles["full"]) as calculator:
        (first,) = calculator.calculate_batch([atoms])
        limit = 1.02 * first["uncertainty_ratio"]
        link = LammpsForces(lammps, calculator, {1: "C", 2: "H", 3: "O"})
        lammps.command("fix move all nve")
        lammps.command("variable doubt equal f_painn[1]")
        lammps.command(f"fix stop all halt 1 v_doubt > {limit} error soft message no")
        link.command("run 3000")
        assert lammps.extract_fix("painn", 0, 1, nrow=0) > limit
        assert 0 < lammps.extract_global("ntimestep") < 3000


def test_lammps_has_none_of_a_bundle_without(bundle: Path, lammps: Any) -> None:
    atoms = methanol()
    build(lammps, atoms, ["C", "H", "O"])
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C", 2: "H", 3: "O"})
        assert link.uncertainties == ()
        link.command("run 0")


def test_an_element_that_no_frame_held_is_infinite_in_lammps(painn: Path, lammps: Any, tmp_path: Path) -> None:
    water = [students.perturbed(molecule("H2O"), seed) for seed in range(40)]
    for seed, each in enumerate(water):
        each.calc = SinglePointCalculator(each, energy=float(seed % 7))
    (path,) = export_engines(painn, tmp_path, training=water)
    atoms = methanol()
    build(lammps, atoms, ["C", "H", "O"])
    with PaiNNCalculator(path) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C", 2: "H", 3: "O"})
        link.command("run 0")
        assert [lammps.extract_fix("painn", 0, 1, nrow=place) for place in range(2)] == [np.inf, np.inf]


EXTRAS = """<trajectory filename='ratio' stride='1' extra_type='uncertainty_ratio'> extras </trajectory>
    <trajectory filename='each' stride='1' extra_type='energies_uncertainty'> extras </trajectory>
    <trajectory filename='pos'"""


def test_ipi_writes_them_as_extras(
    bundles: dict[str, Path], tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_sockets, "INPUT", test_sockets.INPUT.replace("<trajectory filename='pos'", EXTRAS))
    atoms = in_a_box()
    with PaiNNCalculator(bundles["full"]) as calculator, ipi(tmp_path, atoms, address, 3) as server:
        assert drive(atoms.copy(), calculator, unixsocket=address, timeout=60.0) == 4
        output, _ = server.communicate(timeout=60)
        assert server.returncode == 0, output
        positions = [frame.positions for frame in ase.io.read(tmp_path / "nvt.pos_0.extxyz", ":")]
        frames = [Atoms(atoms.numbers, each, cell=atoms.cell, pbc=True) for each in positions]
        wanted = calculator.calculate_batch(frames)
    assert np.loadtxt(tmp_path / "nvt.ratio_0") == pytest.approx([one["uncertainty_ratio"] for one in wanted], rel=1e-3)
    each = np.loadtxt(tmp_path / "nvt.each_0").reshape(len(wanted), -1)
    assert each == pytest.approx(np.array([one["energies_uncertainty"] for one in wanted]), rel=1e-3)


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_ase_s_server_gets_energies_and_forces_all_the_same(
    bundles: dict[str, Path], bundle: Path, address: str, kind: str
) -> None:
    atoms = in_a_box()
    with PaiNNCalculator(bundles.get(kind, bundle)) as calculator, PaiNNCalculator(bundles.get(kind, bundle)) as other:
        (wanted,) = other.calculate_batch([atoms])
        run = lambda: drive(atoms.copy(), calculator, unixsocket=address, timeout=60.0)  # noqa: E731
        with driver(run) as found, SocketIOCalculator(unixsocket=address, timeout=60.0) as server:
            moved = atoms.copy()
            moved.calc = server
            assert moved.get_potential_energy() == pytest.approx(wanted["energy"], abs=1e-5)
            assert moved.get_forces() == pytest.approx(wanted["forces"], abs=1e-5)
    assert found == [1]
