"""Uncertainties in TorchSim: of systems and of their atoms, as the calculator gives them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_sim
from ase.build import molecule

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.torchsim import PaiNNModel
from painn_deploy.scripts import export_engines
from tests import students

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundles(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("doubts")
    other = students.write(folder, "painn", seed=1)
    frames = [students.perturbed(molecule("CH3OH"), seed) for seed in range(20)]
    (layer,) = export_engines(painn, folder / "layer", training=frames, structures=frames[:5])
    (committee,) = export_engines([painn, other], folder / "committee", committee=True, structures=frames[:5])
    return {"layer": layer, "committee": committee}


@pytest.mark.parametrize("kind", ["layer", "committee"])
def test_systems_and_atoms_carry_what_the_calculator_gives(bundles: dict[str, Path], kind: str) -> None:
    structures = [students.perturbed(molecule(name), 3) for name in ("CH3OH", "H2O", "CH4", "NH3")]
    state = torch_sim.io.atoms_to_state(structures, CPU, torch.float64)
    got = PaiNNModel(bundles[kind])(state)
    with PaiNNCalculator(bundles[kind]) as calculator:
        wanted = calculator.calculate_batch(structures)
        names = calculator.evaluator.uncertainty.names
    assert set(names) <= got.keys() | {"energy_uncertainty", "energies_uncertainty", "uncertainty_verdict"}
    starts = np.cumsum([0, *map(len, structures)])
    for name in names:
        if name not in got:
            assert name == "uncertainty_verdict" or not any(name in each for each in wanted)
            continue
        for system, each in enumerate(wanted):
            value = got[name].numpy()
            own = value[system] if len(value) == len(structures) else value[starts[system] : starts[system + 1]]
            expected = each.get(name, np.full(np.shape(own), np.nan))
            np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "committee"])
def test_an_integrator_runs_on_it(bundles: dict[str, Path], kind: str) -> None:
    final = torch_sim.integrate(
        [molecule("CH3OH"), molecule("H2O")],
        PaiNNModel(bundles[kind]),
        integrator=torch_sim.integrators.nve,
        n_steps=3,
        temperature=300.0,
        timestep=0.0005,
    )
    assert torch.isfinite(final.positions).all()
