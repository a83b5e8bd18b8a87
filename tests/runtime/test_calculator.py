import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE

from painn_deploy.calibration.accuracy.reference import TorchCalculator, reference_results
from painn_deploy.engines.contract import check_inputs
from painn_deploy.export import load_student
from painn_deploy.export.errors import (
    EngineError,
    EngineUnavailableError,
    ShapeError,
    SpeciesError,
    StructureError,
)
from painn_deploy.export.manifest import read_bundle
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts import export_engines
from tests import students
from tests.conftest import Peer

ZOO = students.zoo()


@pytest.fixture(scope="module")
def calculator(bundle: Path) -> PaiNNCalculator:
    return PaiNNCalculator(bundle, device="cpu")


@pytest.mark.parametrize("name", ZOO)
def test_results_are_the_student_s(calculator: PaiNNCalculator, painn: Path, name: str) -> None:
    atoms = ZOO[name].copy()
    (want,) = reference_results(load_student(painn, dtype=torch.float64), [atoms])
    atoms.calc = calculator
    n = len(atoms)
    assert atoms.get_potential_energy() == pytest.approx(want["energy"], abs=3e-6 * n)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), want["forces"], rtol=1e-6, atol=1e-5)
    if atoms.cell.rank == 3:
        np.testing.assert_allclose(atoms.get_stress(), want["stress"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(atoms.get_stresses().sum(0), atoms.get_stress(), atol=1e-12)
    else:
        with pytest.raises(PropertyNotImplementedError, match="volume"):
            atoms.get_stress()
        assert np.isfinite(atoms.get_forces()).all()


def test_a_batch_is_what_its_structures_are_alone(calculator: PaiNNCalculator) -> None:
    structures = list(ZOO.values())
    before = [atoms.copy() for atoms in structures]
    batch = calculator.calculate_batch(structures)
    again = calculator.calculate_batch(structures)
    assert structures == before
    for atoms, together, repeated in zip(structures, batch, again, strict=True):
        (alone,) = calculator.calculate_batch([atoms])
        assert together.keys() == alone.keys()
        assert ("stress" in together) == (atoms.cell.rank == 3)
        assert abs(together["energy"] - alone["energy"]) <= 3e-6 * len(atoms)
        np.testing.assert_allclose(together["forces"], alone["forces"], rtol=0, atol=1e-5)
        for key, value in together.items():
            assert np.array_equal(value, repeated[key]), key
            assert isinstance(value, float) or value.dtype == np.float64
    assert calculator.calculate_batch([]) == []
    streamed = calculator.calculate_batch(atoms for atoms in structures)
    assert [result["energy"] for result in streamed] == [result["energy"] for result in batch]


def test_stress_is_the_slope_of_the_energy(calculator: PaiNNCalculator) -> None:
    atoms = students.perturbed(bulk("C", "diamond", a=3.57), 1, 0.05)
    atoms.calc = calculator
    # float32 energies leave about three digits to a difference quotient
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=2e-3), rtol=2e-2, atol=2e-3)


def test_the_engine_says_what_runs(calculator: PaiNNCalculator, bundle: Path) -> None:
    info = calculator.engine_info
    assert (info["backend"], info["device"], info["precision"]) == ("onnxruntime", "cpu", "fp32")
    assert info["bundle_sha256"] == read_bundle(bundle).sha256
    assert info["version"]


def test_ase_s_cache_sees_every_change(calculator: PaiNNCalculator) -> None:
    atoms = bulk("Al", a=4.05).repeat(2)
    atoms.calc = calculator
    energies = [atoms.get_potential_energy()]
    atoms.positions[0] += 0.1
    energies.append(atoms.get_potential_energy())
    atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
    energies.append(atoms.get_potential_energy())
    atoms.pbc = [True, True, False]
    energies.append(atoms.get_potential_energy())
    atoms.numbers[0] = 6
    energies.append(atoms.get_potential_energy())
    assert len(set(energies)) == len(energies)
    forces = atoms.get_forces()
    forces += 1
    assert not np.array_equal(forces, atoms.get_forces())


def test_structures_are_not_touched(calculator: PaiNNCalculator) -> None:
    for atoms in ZOO.values():
        before, copy = atoms.copy(), atoms.copy()
        copy.calc = calculator
        copy.get_forces()
        assert copy == before


def test_lattice_shifts_and_permutations_change_nothing(calculator: PaiNNCalculator) -> None:
    atoms = ZOO["triclinic"]
    shifted, order = atoms.copy(), [1, 0]
    shifted.positions[1] += atoms.cell[0] - 2 * atoms.cell[2]
    one, other, permuted = calculator.calculate_batch([atoms, shifted, atoms[order]])
    np.testing.assert_allclose(other["forces"], one["forces"], atol=2e-5)
    np.testing.assert_allclose(permuted["forces"], one["forces"][order], atol=2e-5)
    np.testing.assert_allclose(one["forces"].sum(0), 0, atol=1e-5)


def test_optimisers_and_cell_filters(calculator: PaiNNCalculator) -> None:
    atoms = students.perturbed(molecule("CH3OH"), 3, 0.02)
    atoms.calc = calculator
    start = atoms.get_potential_energy()
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=30)
    assert atoms.get_potential_energy() < start
    crystal = students.perturbed(bulk("C", "diamond", a=3.57), 2, 0.05)
    crystal.calc = calculator
    start = crystal.get_potential_energy()
    FIRE(FrechetCellFilter(crystal), logfile=None).run(fmax=0.05, steps=20)
    assert crystal.get_potential_energy() < start


def test_dynamics_in_three_ensembles(calculator: PaiNNCalculator) -> None:
    rng = np.random.default_rng(0)
    crystal = bulk("C", "diamond", a=3.57, cubic=True)
    crystal.calc = calculator
    thermalize_momenta(crystal, 100, rng=rng)
    step = 0.25 * units.fs
    start = crystal.get_total_energy()
    VelocityVerlet(crystal, step).run(40)
    assert abs(crystal.get_total_energy() - start) / len(crystal) < 5e-3
    Langevin(crystal, step, temperature_K=100, friction=0.01, fixcm=False, rng=rng).run(10)
    volume = crystal.get_volume()
    options = {"temperature_K": 100, "pressure_au": 1e-6, "tdamp": 100 * step, "pdamp": 1000 * step}
    IsotropicMTKNPT(crystal, step, **options).run(10)
    assert crystal.get_volume() != volume
    assert np.isfinite(crystal.get_forces()).all()


@pytest.mark.parametrize(
    ("atoms", "error", "message"),
    [
        (Atoms(), StructureError, "no atoms"),
        (Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), StructureError, "NaN"),
        (Atoms("H2"), StructureError, "on one spot"),
        (Atoms("H", pbc=True), StructureError, "dependent"),
        (Atoms("HU", [[0, 0, 0], [0, 0, 2.0]]), SpeciesError, r"Atom 1 is U \(Z = 92\).*it knows H He"),
        (Atoms("HX", [[0, 0, 0], [0, 0, 2.0]]), SpeciesError, "Atom 1 is X"),
        (Atoms([1, 500], [[0, 0, 0], [0, 0, 2.0]]), SpeciesError, r"Atom 1 is no element \(Z = 500\)"),
    ],
)
def test_structures_without_an_answer(
    calculator: PaiNNCalculator, atoms: Atoms, error: type[Exception], message: str
) -> None:
    atoms.calc = calculator
    with pytest.raises(error, match=message):
        atoms.get_potential_energy()
    with pytest.raises(error, match="Structure 1"):
        calculator.calculate_batch([molecule("H2O"), atoms])


def test_energies_that_overflow_are_an_error_not_a_result(
    calculator: PaiNNCalculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = calculator.run_graph(graph_inputs([students.water()], 4.0))
    for name in outputs._fields:
        poisoned = outputs._replace(**{name: np.full_like(getattr(outputs, name), np.inf)})
        monkeypatch.setattr(calculator.session, "run", lambda _, p=poisoned: p)
        with pytest.raises(EngineError, match="NaN or infinity"):
            calculator.calculate_batch([students.water()])


def test_the_engine_s_door() -> None:
    inputs = graph_inputs([students.water()], 4.0)
    for name, array in [
        ("displacements", inputs.displacements.astype(np.float64)),
        ("displacements", np.asfortranarray(inputs.displacements)),
        ("neighbours", inputs.neighbours.astype(np.int64)),
        ("mask", inputs.mask[:, :1]),
        ("reverse", inputs.reverse[:2]),
        ("atomic_numbers", inputs.atomic_numbers[:, None]),
    ]:
        with pytest.raises(ShapeError, match="reads a contiguous"):
            check_inputs(inputs._replace(**{name: array}))


def test_a_cell_that_is_flat_but_for_rounding_has_no_stress(calculator: PaiNNCalculator) -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for cell in (np.array([[5, 0, 0], [0, 5, 0], [5, 5, 0]]) @ turn, np.diag([np.inf] * 3), np.zeros((3, 3))):
        atoms = students.water()
        atoms.cell[:] = cell
        (results,) = calculator.calculate_batch([atoms])
        assert "stress" not in results
        assert np.isfinite(results["forces"]).all()


def test_copies_and_pickles_open_the_bundle_again(calculator: PaiNNCalculator) -> None:
    import copy
    import pickle

    atoms = students.water()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    for other in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert other.calc is not calculator
        assert other.get_potential_energy() == energy


def test_arguments_of_the_wrong_kind_are_named(bundle: Path) -> None:
    """In a process of its own: here the tests' type checker would come first."""
    program = f"""
from ase.build import molecule
from painn_deploy.runtime import PaiNNCalculator
def told(call):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
calc = PaiNNCalculator({str(bundle)!r})
for structures in (molecule("H2O"), "water.xyz", [molecule("H2O"), None]):
    told(lambda: calc.calculate_batch(structures))
told(calc.calculate)
for options in ({{"threads": 0}}, {{"threads": 1.5}}, {{"device": "cpu:3"}}, {{"device": "cuda:x"}}):
    told(lambda: PaiNNCalculator({str(bundle)!r}, **options))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        *["StructureError"] * 4,
        *["ValueError"] * 2,
        *["EngineUnavailableError"] * 2,
    ]
    assert all("list of" in line for line in lines[:3])


def test_closing(bundle: Path) -> None:
    with PaiNNCalculator(bundle) as calculator:
        calculator.calculate_batch([students.water()])
    with pytest.raises(EngineError, match="closed"):
        calculator.calculate_batch([students.water()])
    calculator.close()


def test_a_device_that_is_not_here(bundle: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"cannot run on 'cuda:0' here, only on cpu.*painn-deploy\[cuda\]"):
        PaiNNCalculator(bundle, device="cuda:0")


def test_atomic_references_are_added_in_float64(painn: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / painn.name
    references = torch.linspace(-2000, -7, 20, dtype=torch.float64) / 3
    save_file(load_file(painn) | {"atomic_references": references}, path)
    path.with_suffix(".json").write_text(painn.with_suffix(".json").read_text())
    (bundle,) = export_engines(path, tmp_path / "out", structures=[students.water()])
    atoms = students.water()
    (got,) = PaiNNCalculator(bundle).calculate_batch([atoms])
    (want,) = reference_results(load_student(path, dtype=torch.float64), [atoms])
    assert got["energy"] == pytest.approx(want["energy"], abs=3e-6)
    assert got["energy"] < -1000


def test_engines_agree_with_the_peers(peer: Peer, tmp_path: Path) -> None:
    structures = [atoms for _, atoms, _ in peer.systems]
    (bundle,) = export_engines(peer.student, tmp_path, structures=structures[:3])
    calculator = PaiNNCalculator(bundle)
    batch = calculator.calculate_batch(structures)
    for (_, atoms, want), together in zip(peer.systems, batch, strict=True):
        (alone,) = calculator.calculate_batch([atoms])
        for got in (alone, together):
            assert abs(got["energy"] - want["energy"]) < 3e-6 * len(atoms)
            np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=2e-5)
            if "stress" in want:
                symmetric = (want["stress"] + want["stress"].T) / 2  # as ASE's six numbers are
                stress = symmetric[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
                np.testing.assert_allclose(got["stress"], stress, rtol=0, atol=1e-6)


def test_the_torch_calculator_is_a_calculator(painn: Path) -> None:
    atoms = students.water()
    atoms.calc = TorchCalculator(load_student(painn))
    assert atoms.get_forces().shape == (3, 3)
    assert np.isfinite(atoms.get_potential_energy())
