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
from ase.stress import voigt_6_to_full_3x3_stress

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


KCAL = 23.060547830619  # kcal/mol in an eV: 96485.33212331 C/mol / 4184 J


def build(
    lammps: Any,
    atoms: Atoms,
    symbols: list[str],
    unit_system: str = "metal",
    order: np.ndarray | None = None,
    boundary: str = "",
) -> None:
    """A box that holds `atoms`, whose cell is triangular as LAMMPS wants it, with their velocities.

    Atom ids are the atoms' own places, from 1; `order` is that in which LAMMPS is given them. `boundary` is LAMMPS's;
    without one it is fixed where the atoms do not repeat.
    """
    order = np.arange(len(atoms)) if order is None else order
    picoseconds = {"metal": 1.0, "real": 1e-3}.get(unit_system, 1.0)
    cell = atoms.cell.array
    lammps.command(f"units {unit_system}")
    lammps.command("atom_style atomic")
    lammps.command("boundary " + (boundary or " ".join("p" if flag else "f" for flag in atoms.pbc)))
    lengths = " ".join(f"0 {length:.17g}" for length in np.diag(cell))
    tilts = " ".join(f"{tilt:.17g}" for tilt in (cell[1, 0], cell[2, 0], cell[2, 1]))
    lammps.command(f"region box prism {lengths} {tilts} units box")
    lammps.command(f"create_box {len(symbols)} box")
    types = [1 + symbols.index(atoms.symbols[place]) for place in order]
    velocities = atoms.get_velocities()[order] * 1e3 * units.fs * picoseconds
    places = atoms.positions[order].ravel().tolist()
    lammps.create_atoms(len(atoms), (order + 1).tolist(), types, places, velocities.ravel().tolist())
    for kind, symbol in enumerate(symbols, start=1):
        lammps.command(f"mass {kind} {Atoms(symbol).get_masses()[0]:.17g}")
    lammps.command(f"timestep {TIMESTEP * 1e-3 / picoseconds}")


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
        for unit_system in ("lj", "si", "cgs", "electron", "micro", "nano"):
            build(lammps, periodic(), ["C"], unit_system=unit_system)
            with pytest.raises(EngineError, match=f"in {unit_system} units.*`units metal`.*`units real`"):
                LammpsForces(lammps, calculator, {1: "C"})
            lammps.command("clear")
        lammps.commands_string("units metal\ndimension 2\nregion box block 0 9 0 9 -0.5 0.5\ncreate_box 1 box")
        with pytest.raises(EngineError, match="2 dimensions"):
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


def alloy() -> Atoms:
    """A triclinic crystal of three species, perturbed and moving."""
    atoms = periodic().repeat((2, 2, 1))
    atoms.symbols[::3], atoms.symbols[1::5] = "N", "O"
    return hot(students.perturbed(atoms, 5, 0.05), 500)


PER_ATOM = """
compute pe all pe/atom
compute ke all ke/atom
compute virial all stress/atom NULL virial
compute fix all stress/atom NULL fix
compute whole all stress/atom thermo_temp
compute flux all heat/flux ke pe virial
compute energy all reduce sum c_pe
compute virials all reduce sum c_virial[*]
compute fixes all reduce sum c_fix[*]
compute wholes all reduce sum c_whole[*]
compute pressure all pressure NULL virial
thermo_style custom step pe ke press vol c_energy c_virials[*] c_fixes[*] c_wholes[*] c_pressure[*] c_flux[*]
"""


def vector(lammps: Any, name: str) -> np.ndarray:
    return np.array(lammps.numpy.extract_compute(name, 0, 1))


def by_id(lammps: Any, values: np.ndarray) -> np.ndarray:
    """In the order of atom ids."""
    return np.array(values)[np.argsort(lammps.numpy.extract_atom("id")[: lammps.extract_setting("nlocal")])]


@pytest.mark.parametrize("unit_system", ["metal", "real"])
def test_field_3_and_17_what_atoms_have_sums_to_the_totals(bundle: Path, lammps: Any, unit_system: str) -> None:
    atoms, symbols = alloy(), ["N", "C", "O"]
    lammps.command("atom_modify sort 2 3.0 map array")
    order = np.random.default_rng(4).permutation(len(atoms))
    build(lammps, atoms, symbols, unit_system, order)
    lammps.commands_string(PER_ATOM)
    energy, bar = (1.0, units.bar) if unit_system == "metal" else (KCAL, 101325 * units.Pascal)
    with PaiNNCalculator(bundle) as here, PaiNNCalculator(bundle) as there:
        link = LammpsForces(lammps, there, dict(enumerate(symbols, start=1)))
        lammps.command("fix move all nve")
        for steps in (0, 7, 4):
            link.command(f"run {steps}")
            count, volume = len(atoms), lammps.get_thermo("vol")
            assert lammps.numpy.extract_compute("energy", 0, 0) == pytest.approx(lammps.get_thermo("pe"), rel=1e-12)
            pressure = vector(lammps, "pressure")
            np.testing.assert_allclose(-vector(lammps, "virials") / volume, pressure, rtol=0, atol=1e-6)
            np.testing.assert_allclose(-vector(lammps, "fixes") / volume, pressure, rtol=0, atol=1e-6)
            whole = -vector(lammps, "wholes")[:3].sum() / (3 * volume)
            assert whole == pytest.approx(
                (pressure[:3].sum() + 2 * kinetic(lammps, bar, energy) / volume) / 3, rel=1e-6
            )

            atoms.positions = by_id(lammps, lammps.numpy.extract_atom("x")[:count])
            here.calculate(atoms)
            got = by_id(lammps, lammps.numpy.extract_compute("pe", 1, 1)[:count])
            np.testing.assert_allclose(got / energy, here.results["energies"], rtol=1e-6, atol=1e-6)
            got = by_id(lammps, lammps.numpy.extract_compute("virial", 1, 2)[:count])
            want = here.results["stresses"][:, [0, 1, 2, 5, 4, 3]] * volume
            np.testing.assert_allclose(got * bar, want, rtol=0, atol=1e-5)
            want = heat_flux(lammps, here.results, energy, volume)
            np.testing.assert_allclose(vector(lammps, "flux"), want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
        assert lammps.numpy.extract_atom("id")[:count].tolist() != (order + 1).tolist()  # it did sort


def kinetic(lammps: Any, bar: float, energy: float) -> float:
    """Kinetic energy as a pressure x volume."""
    return float(lammps.get_thermo("ke") / energy / bar)


def heat_flux(lammps: Any, results: dict[str, Any], energy: float, volume: float) -> np.ndarray:
    """By its definition, sum of (e + w) v, in LAMMPS's units: total, and the convective part."""
    count = len(results["energies"])
    velocities = by_id(lammps, lammps.numpy.extract_atom("v")[:count])
    kinetic = by_id(lammps, lammps.numpy.extract_compute("ke", 1, 1)[:count])
    convective = (energy * results["energies"] + kinetic) @ velocities
    stresses = voigt_6_to_full_3x3_stress(results["stresses"]) * volume * energy
    return np.concatenate([convective - np.einsum("aij,aj->i", stresses, velocities), convective])


def test_what_atoms_have_comes_when_it_is_asked_for(bundle: Path, lammps: Any) -> None:
    """And at no other step, where it would cost time."""
    atoms = periodic()
    build(lammps, atoms, ["C"])
    lammps.commands_string(PER_ATOM.replace("thermo_style", "#"))
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C"})
        lammps.command("fix move all nve")
        lammps.command("fix mean all ave/time 3 1 3 c_energy c_thermo_pe")
        asked: list[int] = []
        give = lammps.numpy.fix_external_set_virial_peratom
        lammps.numpy.fix_external_set_virial_peratom = lambda *given: (asked.append(1), give(*given))
        link.command("run 9")
        assert lammps.extract_fix("mean", 0, 1, 0) == pytest.approx(lammps.extract_fix("mean", 0, 1, 1), rel=1e-12)
        assert len(asked) == 4  # of ten calculations: steps 0, 3, 6 and 9


def test_field_17_real_units_give_the_trajectory_of_metal_units(bundle: Path) -> None:
    seen = []
    for unit_system, energy, pressure in (("metal", 1.0, 1.0), ("real", KCAL, 1 / 1.01325)):
        instance, atoms = start_lammps(), periodic()
        build(instance, atoms, ["C"], unit_system)
        with PaiNNCalculator(bundle, skin=0.3) as calculator:
            link = LammpsForces(instance, calculator, {1: "C"})
            instance.command("fix move all nve")
            link.command("run 50")
            thermo = [instance.get_thermo(name) for name in ("pe", "ke", "press", "pxx", "pyz", "temp")]
            forces = by_id(instance, instance.numpy.extract_atom("f")[: len(atoms)]) / energy
            scales = np.array([energy, energy, pressure, pressure, pressure, 1.0])
            seen.append((positions(instance, atoms), forces, np.array(thermo) / scales))
        instance.close()
    (places, forces, thermo), (others, other_forces, other_thermo) = seen
    assert np.abs(places - periodic().positions).max() > 0.02  # it moved
    np.testing.assert_allclose(others, places, rtol=0, atol=2e-7)
    np.testing.assert_allclose(other_forces, forces, rtol=0, atol=2e-5)
    np.testing.assert_allclose(other_thermo, thermo, rtol=2e-6)


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        (
            ["compute c all centroid/stress/atom NULL"],
            "compute c .centroid/stress/atom.*use compute stress/atom.*uncompute c",
        ),
        (["compute c all centroid/stress/atom NULL virial"], "compute c .centroid/stress/atom"),
        (["compute c all group/group all"], "compute c .group/group.*forces of pairs"),
        (["compute c all stress/mop x center total"], "compute c .stress/mop"),
        (["compute c all pe/tally all"], "compute c .pe/tally"),
        (["compute v all pressure NULL virial", "compute c all born/matrix numdiff 1e-4 v"], "compute c .born/matrix"),
        (["compute c all fep/ta 300 xy 1.0005"], "compute c .fep/ta"),
        (["fix c all numdiff 1 1e-4"], "fix c .numdiff.*without the engine.*unfix c"),
        (["fix c all numdiff/virial 1 1e-4"], "fix c .numdiff/virial"),
        (["fix c all widom 1 2 1 123 300"], "fix c .widom.*trial"),
        (["fix c all hmc 5 123 300"], "fix c .hmc.*trial that it rejects.*unfix c"),
        (["run_style respa 2 2"], "run_style respa.*run_style verlet"),
    ],
)
@pytest.mark.parametrize("directly", [False, True])
def test_field_3_what_lammps_would_take_from_pairs_is_refused(
    bundle: Path, lammps: Any, commands: list[str], message: str, directly: bool
) -> None:
    lammps.command("atom_modify map array")
    build(lammps, periodic(), ["C"])
    lammps.commands_string("pair_style zero 4.0\npair_coeff * *")
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C"})
        for text in commands[:-1]:
            link.command(text)
        if directly:
            lammps.command(commands[-1])
        with pytest.raises(EngineError, match=message):
            link.command("run 0" if directly else commands[-1])
        with pytest.raises(EngineError, match=message):
            link.command("minimize 0 0.1 10 10")
        name, identity, *_ = commands[-1].split()
        link.command("run_style verlet" if name == "run_style" else f"un{name} {identity}")
        link.command("run 1")


def test_field_3_what_a_file_makes_is_refused_too(bundle: Path, lammps: Any, tmp_path: Path) -> None:
    build(lammps, periodic(), ["C"])
    (tmp_path / "in.more").write_text("compute c all centroid/stress/atom NULL\nrun 0\n")
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C"})
        with pytest.raises(EngineError, match="compute c .centroid"):
            link.command(f"include {tmp_path / 'in.more'}")


def test_a_pair_style_adds_to_what_atoms_have(bundle: Path, lammps: Any) -> None:
    atoms = periodic()
    build(lammps, atoms, ["C"])
    lammps.commands_string("pair_style lj/cut 3.0\npair_coeff * * 0.01 2.0\ncompute pairs all pe pair")
    lammps.commands_string(PER_ATOM.replace("vol", "vol c_pairs"))
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C"})
        link.command("run 0")
        (want,) = calculator.calculate_batch([atoms])
        pairs = lammps.numpy.extract_compute("pairs", 0, 0)
        assert abs(pairs) > 0.01
        assert lammps.get_thermo("pe") == pytest.approx(want["energy"] + pairs, abs=1e-5)
        assert lammps.numpy.extract_compute("energy", 0, 0) == pytest.approx(lammps.get_thermo("pe"), rel=1e-10)
        volume = lammps.get_thermo("vol")
        np.testing.assert_allclose(-vector(lammps, "virials") / volume, vector(lammps, "pressure"), rtol=1e-9)
        np.testing.assert_allclose(
            vector(lammps, "fixes") / volume * units.bar, want["stress"][[0, 1, 2, 5, 4, 3]], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("style", ["cg", "fire"])
def test_field_3_a_minimisation_has_energies_of_atoms(bundle: Path, lammps: Any, tmp_path: Path, style: str) -> None:
    """In a minimisation LAMMPS does not say to a fix external that they are wanted; the last run's word stands."""
    build(lammps, periodic(), ["C"])
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C"})
        for earlier in (None, "run 3"):
            if earlier:
                lammps.command("thermo_style custom step pe")
                link.command("uncompute total")
                link.command("uncompute each")
                link.command(earlier)
            lammps.commands_string("compute each all pe/atom\ncompute total all reduce sum c_each")
            lammps.commands_string(f"thermo 1\nthermo_style custom step pe c_total\nmin_style {style}")
            lammps.commands_string(f"dump it all custom 1 {tmp_path / 'dump'} c_each\nmin_modify dmax 0.005")
            link.command("minimize 0 0 3 9")
            assert lammps.numpy.extract_compute("total", 0, 0) == pytest.approx(lammps.get_thermo("pe"), rel=1e-10)
            lammps.command("undump it")
            table = (tmp_path / "dump").read_text().split("ITEM: ATOMS c_each")[1:]
            sums = [sum(map(float, part.split("ITEM")[0].split())) for part in table]
            assert len(sums) > 3
            assert sums[-1] == pytest.approx(lammps.get_thermo("pe"), abs=1e-3)
            assert max(sums) < 0


def test_field_3_before_the_forces_are_given_too(bundle: Path, lammps: Any) -> None:
    build(lammps, periodic(), ["C"])
    lammps.command("compute c all centroid/stress/atom NULL")
    with PaiNNCalculator(bundle) as calculator, pytest.raises(EngineError, match="compute c"):
        LammpsForces(lammps, calculator, {1: "C"})
    assert not lammps.has_id("fix", FIX)


def test_a_fix_that_overwrites_forces_comes_after_the_engine(bundle: Path, lammps: Any) -> None:
    """LAMMPS runs fixes in their order: atoms that an earlier one holds would be moved by the engine all the same."""
    atoms = periodic()
    build(lammps, atoms, ["C"])
    lammps.commands_string("group held id 1:3\nvelocity held set 0 0 0\nfix hold held setforce 0 0 0")
    with PaiNNCalculator(bundle) as calculator:
        with pytest.raises(EngineError, match="fix hold .setforce. acts on forces before.*after the LammpsForces"):
            LammpsForces(lammps, calculator, {1: "C"})
        lammps.command("unfix hold")
        link = LammpsForces(lammps, calculator, {1: "C"})
        link.command("fix hold held setforce 0 0 0")
        lammps.command("fix move all nve")
        link.command("run 5")
        np.testing.assert_allclose(positions(lammps, atoms)[:3], atoms.positions[:3], rtol=0, atol=1e-14)
        assert np.abs(positions(lammps, atoms)[3:] - atoms.positions[3:]).max() > 1e-4
        link.command("unfix hold")
        link.command("run 1")
        link.command(f"unfix {FIX}")
        with pytest.raises(EngineError, match=f"no fix {FIX} any more.*new LammpsForces"):
            link.command("run 1")
        lammps.command("fix hold held setforce 0 0 0")
        with pytest.raises(EngineError, match="fix hold"):
            LammpsForces(lammps, calculator, {1: "C"})


@pytest.mark.parametrize("style", ["rigid", "rigid/nve", "poems"])
def test_rigid_bodies_feel_the_engine_from_the_first_step(bundle: Path, lammps: Any, style: str) -> None:
    """Such a fix sums forces where a run begins: made before the engine's it would find none, and a body would stay."""
    atoms, other = molecule("H2O"), molecule("H2O")
    other.translate([2.8, 0.5, 0.3])
    atoms += other
    atoms.center(vacuum=6)
    atoms.set_pbc(True)
    build(lammps, atoms, ["O", "H"])
    lammps.commands_string("group one id 1:3\ngroup two id 4:6")
    bodies = f"fix bodies all {style} group{'' if style == 'poems' else ' 2'} one two"
    lammps.command(bodies)
    with PaiNNCalculator(bundle) as calculator:
        with pytest.raises(EngineError, match=f"fix bodies .{style}. acts on forces before.*after the LammpsForces"):
            LammpsForces(lammps, calculator, {1: "O", 2: "H"})
        lammps.command("unfix bodies")
        link = LammpsForces(lammps, calculator, {1: "O", 2: "H"})
        link.command(bodies)
        forces = calculator.calculate_batch([atoms])[0]["forces"]
        link.command("run 1")
    moved = positions(lammps, atoms) - atoms.positions
    masses = atoms.get_masses()
    for rows in (slice(0, 3), slice(3, 6)):
        centre = masses[rows] @ moved[rows] / masses[rows].sum()
        want = forces[rows].sum(axis=0) / masses[rows].sum() * (TIMESTEP * units.fs) ** 2 / 2
        np.testing.assert_allclose(centre, want, rtol=1e-4, atol=1e-3 * np.abs(want).max())


def test_box_boundaries_of_every_kind_have_energies_and_virials(bundle: Path, lammps: Any) -> None:
    """LAMMPS's box always has a volume, and a molecule in it a virial, whose value does not depend on the box."""
    for boundary in ("f f f", "s s s", "p p p", "p p f"):
        atoms = in_a_box()
        build(lammps, atoms, ["C", "H", "O"])
        lammps.command("change_box all boundary " + boundary)
        lammps.commands_string(PER_ATOM.replace("thermo_temp", "NULL virial"))
        with PaiNNCalculator(bundle) as calculator:
            link = LammpsForces(lammps, calculator, {1: "C", 2: "H", 3: "O"})
            link.command("run 0")
            (want,) = calculator.calculate_batch([atoms])
            assert lammps.numpy.extract_compute("energy", 0, 0) == pytest.approx(want["energy"], abs=1e-5)
            virials = vector(lammps, "virials") * units.bar
            np.testing.assert_allclose(virials, want["stress"][[0, 1, 2, 5, 4, 3]] * atoms.get_volume(), atol=1e-4)
        lammps.command("clear")


def test_a_minimisation_and_a_rerun_ask_the_engine(bundle: Path, lammps: Any, tmp_path: Path) -> None:
    atoms = periodic()
    build(lammps, atoms, ["C"])
    with PaiNNCalculator(bundle) as here, PaiNNCalculator(bundle) as there:
        link = LammpsForces(lammps, there, {1: "C"})
        lammps.command("min_modify dmax 0.01")
        link.command("minimize 0 1e-6 5 20")
        atoms.positions, atoms.calc = positions(lammps, atoms), here
        assert lammps.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        forces = by_id(lammps, lammps.numpy.extract_atom("f")[: len(atoms)])
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-5)
        lammps.command("fix move all nve")
        lammps.command(f"dump it all custom 1 {tmp_path / 'dump'} id type x y z")
        lammps.command('dump_modify it format float "%20.15g"')
        link.command("run 6")
        energy = lammps.get_thermo("pe")
        lammps.command("undump it")
        lammps.command("displace_atoms all random 0.1 0.1 0.1 7")
        link.command(f"rerun {tmp_path / 'dump'} dump x y z")
        assert lammps.get_thermo("pe") == pytest.approx(energy, abs=1e-5)


def test_a_cell_is_relaxed_by_the_engine_s_virial(bundle: Path, lammps: Any) -> None:
    atoms = periodic()
    build(lammps, atoms, ["C"])
    with PaiNNCalculator(bundle) as here, PaiNNCalculator(bundle) as there:
        link = LammpsForces(lammps, there, {1: "C"})
        lammps.commands_string("compute virial all pressure NULL virial\nthermo_style custom pe c_virial vol")
        lammps.commands_string("min_modify dmax 0.005\nfix relax all box/relax tri 0 vmax 0.001")
        link.command("minimize 0 0 5 30")
        assert abs(lammps.get_thermo("vol") / atoms.get_volume() - 1) > 1e-4
        low, high, xy, yz, xz, *_ = lammps.extract_box()
        x, y, z = np.subtract(high, low)
        places = by_id(lammps, lammps.numpy.extract_atom("x")[: len(atoms)])
        relaxed = Atoms(atoms.numbers, places, cell=[[x, 0, 0], [xy, y, 0], [xz, yz, z]], pbc=True, calculator=here)
        assert lammps.get_thermo("pe") == pytest.approx(relaxed.get_potential_energy(), abs=1e-5)
        pressure = lammps.numpy.extract_compute("virial", 0, 0) * units.bar
        assert pressure == pytest.approx(-relaxed.get_stress()[:3].mean(), abs=1e-6)


def test_an_interrupt_ends_the_run_and_is_raised(bundle: Path, lammps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback's exceptions are lost in LAMMPS, this one too, and the forces of before would be used again."""
    build(lammps, periodic(), ["C"])
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(lammps, calculator, {1: "C"})
        lammps.command("fix move all nve")
        link.command("run 2")

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(calculator, "calculate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            link.command("run 1000")
        assert lammps.extract_global("ntimestep") <= 3


def test_lammps_s_own_errors_are_ours(bundle: Path) -> None:
    instance = start_lammps()
    build(instance, periodic(), ["C"])
    with PaiNNCalculator(bundle) as calculator:
        link = LammpsForces(instance, calculator, {1: "C"})
        with pytest.raises(
            EngineError, match="LAMMPS does not run `compute x all nonsense`: ERROR: Unrecognized compute"
        ):
            link.command("compute x all nonsense")
        instance.close()
        with pytest.raises(EngineError, match="was closed"):
            link.command("run 1")
