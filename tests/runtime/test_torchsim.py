from pathlib import Path

import numpy as np
import pytest
import torch
import torch_sim
from ase import Atoms
from ase.build import bulk, molecule
from torch_sim.models.interface import validate_model_outputs

from painn_deploy.export.errors import EngineError, SpeciesError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.torchsim import PaiNNModel
from tests import students

CPU = torch.device("cpu")


def state_of(structures: list[Atoms]) -> torch_sim.SimState:
    return torch_sim.io.atoms_to_state(structures, CPU, torch.float64)


@pytest.fixture(scope="module")
def iron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that knows silicon and iron, which TorchSim's own check is made of."""
    from painn_deploy.scripts import export_engines

    folder = tmp_path_factory.mktemp("iron")
    path = students.write(folder, "painn", embeddings=27)
    (bundle,) = export_engines(path, folder, structures=[students.water()])
    return bundle


def test_torchsim_s_own_check(iron: Path) -> None:
    for skin in (0.0, 0.5):
        validate_model_outputs(PaiNNModel(iron, skin=skin), CPU, torch.float64)


@pytest.mark.parametrize("skin", [0.0, 0.4])
def test_forces_and_stress_are_those_of_the_ase_route(bundle: Path, skin: float) -> None:
    molecules = [students.perturbed(molecule(name), seed) for seed, name in enumerate(["H2O", "CH3CH2OH", "C6H6"] * 7)]
    crystals = [students.perturbed(bulk("C", "diamond", a=3.57, cubic=True), seed, 0.05) for seed in range(3)]
    for structures in (molecules, crystals):
        model, rng = PaiNNModel(bundle, skin=skin), np.random.default_rng(0)
        model.neighbours._batch_slots = 150
        for step in range(6):
            got = model(state_of(structures))
            want = PaiNNCalculator(bundle).calculate_batch(structures)
            forces = np.concatenate([result["forces"] for result in want])
            np.testing.assert_allclose(got["forces"].numpy(), forces, rtol=0, atol=1e-5)
            energies = np.array([result["energy"] for result in want])
            np.testing.assert_allclose(got["energy"].numpy(), energies, rtol=0, atol=1e-4)
            for stress, result in zip(got["stress"].numpy(), want, strict=True):
                if "stress" in result:
                    np.testing.assert_allclose(stress[[0, 1, 2], [0, 1, 2]], result["stress"][:3], rtol=0, atol=1e-6)
                    np.testing.assert_allclose(stress[[1, 0, 0], [2, 2, 1]], result["stress"][3:], rtol=0, atol=1e-6)
                else:
                    assert np.isnan(stress).all()
            for atoms in structures:
                atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
                if step == 2 and atoms.cell.rank == 3:
                    atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
        assert (model.neighbours.searches < 6 * len(structures)) == (skin > 0)


def test_nve_of_32_replicas_conserves_energy(bundle: Path) -> None:
    start = students.perturbed(molecule("CH3OH"), 0, 0.02)
    start.set_initial_magnetic_moments(None)
    model = PaiNNModel(bundle)
    energies: list[torch.Tensor] = []

    def total(state: torch_sim.SimState) -> torch.Tensor:
        kinetic = torch_sim.quantities.calc_kinetic_energy(
            masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
        )
        return state.energy + kinetic

    begin, step = torch_sim.integrators.nve(model, dt=torch.tensor(2e-3), kT=torch.tensor(0.02), seed=3)
    current = begin(state_of([start] * 32))
    for _ in range(60):
        energies.append(total(current))
        current = step(current)
    drift = (torch.stack(energies) - energies[0]).abs().max() / len(start)
    assert drift < 2e-4
    assert len(torch.unique(current.positions[:, 0])) > 32


def test_what_has_no_answer_is_an_error(bundle: Path) -> None:
    model = PaiNNModel(bundle)
    water = students.water()
    model(state_of([water, water]))
    broken = students.water()
    broken.positions[1] = np.nan
    with pytest.raises(StructureError, match="Structure 1.*NaN"):
        model(state_of([water, broken]))
    broken.positions[1] = broken.positions[2]
    with pytest.raises(StructureError, match="one spot"):
        model(state_of([water, broken]))
    with pytest.raises(SpeciesError, match="U"):
        model(state_of([Atoms("U")]))
    assert torch.isfinite(model(state_of([water, water]))["energy"]).all()
    model.calculator.close()
    with pytest.raises(EngineError, match="closed"):
        model(state_of([water, water]))
