import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_sim
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from torch_sim import autobatching
from torch_sim.models.interface import validate_model_outputs
from torch_sim.models.lennard_jones import LennardJonesModel

from painn_deploy.export.errors import EngineError, SpeciesError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime import torchsim as adapter
from painn_deploy.runtime.torchsim import PaiNNModel
from tests import students

BinningAutoBatcher, InFlightAutoBatcher = autobatching.BinningAutoBatcher, autobatching.InFlightAutoBatcher
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


MOLECULES = [students.perturbed(molecule(name), seed, 0.02) for seed, name in enumerate(["H2O", "CH4", "CH3OH", "H2O"])]


def crystals() -> list[Atoms]:
    return [students.perturbed(bulk("C", "diamond", a=3.57, cubic=True), seed, 0.05) for seed in range(3)]


@pytest.mark.parametrize("make", [lambda: MOLECULES, lambda: [boxed(atoms) for atoms in MOLECULES], crystals])
@pytest.mark.parametrize("batcher", ["true", "default", "limited", "metric"])
def test_field_11_batchers_take_molecules_and_crystals(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], list[Atoms]], batcher: str
) -> None:
    structures, model = make(), PaiNNModel(bundle)
    want = [result["energy"] for result in PaiNNCalculator(bundle).calculate_batch(structures)]
    arguments: dict[str, Any] = {"true": {}, "default": {}}.get(batcher, {"max_memory_scaler": 9})
    if batcher == "metric":
        arguments["memory_scales_with"] = model.memory_scales_with

    def batched(kind: type) -> Any:
        return True if batcher == "true" else kind(model, **arguments)

    sizes: list[int] = []
    forward = PaiNNModel.forward
    monkeypatch.setattr(
        PaiNNModel, "forward", lambda self, state: (sizes.append(len(state.positions)), forward(self, state))[1]
    )
    results = torch_sim.static(structures, model, autobatcher=batched(BinningAutoBatcher))
    energies = [result["potential_energy"].item() for result in results]
    np.testing.assert_allclose(energies, want, rtol=0, atol=1e-5)
    assert max(sizes) <= (9 if arguments else 24)
    state = torch_sim.integrate(
        structures,
        model,
        integrator=torch_sim.integrators.nve,
        n_steps=3,
        temperature=100.0,
        timestep=0.0002,
        autobatcher=batched(BinningAutoBatcher),
    )
    assert torch.isfinite(state.energy).all()
    relaxed = torch_sim.optimize(
        structures,
        model,
        optimizer=torch_sim.optimizers.fire,
        convergence_fn=lambda state, _: torch.ones(state.n_systems, dtype=torch.bool),  # after five steps
        steps_between_swaps=5,
        autobatcher=batched(InFlightAutoBatcher),
    )
    after = PaiNNCalculator(bundle).calculate_batch(relaxed.to_atoms())
    np.testing.assert_allclose(relaxed.energy.numpy(), [result["energy"] for result in after], rtol=0, atol=1e-4)
    assert [atoms.get_chemical_formula() for atoms in relaxed.to_atoms()] == [
        atoms.get_chemical_formula() for atoms in structures
    ]
    assert max(sizes) <= (9 if arguments else 24)


def boxed(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.set_cell([15.0, 15.0, 15.0])
    return atoms


def test_field_11_other_models_batch_as_before() -> None:
    """What they scale with, and how they are measured, is theirs."""
    model = LennardJonesModel(device=CPU, dtype=torch.float64)
    batcher = BinningAutoBatcher(model)
    with pytest.raises(ValueError, match="on CPU"):
        batcher.load_states(state_of(crystals()))
    assert batcher.memory_scales_with == "n_atoms_x_density"


def slabs() -> list[Atoms]:
    metal = fcc111("Al", (2, 2, 2), a=3.0, vacuum=5.0)
    metal.symbols[:] = "C"
    sheet = graphene(size=(2, 2, 1), vacuum=6.0)
    found = [students.perturbed(atoms, seed, 0.05) for seed, atoms in enumerate([metal, sheet, metal])]
    found[2].set_cell(metal.cell.array + np.diag([0.1, 0.2, 0.0]), scale_atoms=True)
    for atoms in found:
        atoms.pbc = (True, True, False)
        atoms.set_tags(None)
    return found


def test_field_11_batchers_ask_once_and_after_a_reload(bundle: Path) -> None:
    """Notebooks load modules again: nothing is wrapped twice, and models of before are still served."""
    before = [kind.load_states for kind in (BinningAutoBatcher, InFlightAutoBatcher)]
    model = PaiNNModel(bundle)
    again = importlib.reload(adapter)
    assert [kind.load_states for kind in (BinningAutoBatcher, InFlightAutoBatcher)] == before
    assert again.PaiNNModel is not PaiNNModel

    class Mine(BinningAutoBatcher):  # type: ignore[misc, valid-type]
        def load_states(self, states: Any) -> Any:
            return super().load_states(states)

    want = [result["energy"] for result in PaiNNCalculator(bundle).calculate_batch(MOLECULES)]
    for one in (model, again.PaiNNModel(bundle)):
        for batcher in (True, Mine(one)):
            got = [
                float(result["potential_energy"]) for result in torch_sim.static(MOLECULES, one, autobatcher=batcher)
            ]
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("skin", [0.0, 0.4])
def test_field_12_slabs_are_refused_or_right(bundle: Path, skin: float) -> None:
    structures = slabs()
    state = state_of(structures)
    assert not np.any(np.asarray(state.pbc))  # which is TorchSim's doing
    with pytest.raises(
        StructureError, match=r"Structure 0 repeats in no direction.*an image of atom .*pbc=.True, True, F"
    ):
        PaiNNModel(bundle, skin=skin)(state)
    with pytest.raises(StructureError, match="Structure 1 repeats in no direction"):
        PaiNNModel(bundle, skin=skin)(state_of([students.water(), structures[1]]))
    for pbc in ((True, True, False), np.array([True, True, False])):
        model, rng = PaiNNModel(bundle, skin=skin, pbc=pbc), np.random.default_rng(1)
        for _ in range(4):
            compare(model(state_of(structures)), PaiNNCalculator(bundle).calculate_batch(structures))
            for atoms in structures:
                atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    got = PaiNNModel(bundle, skin=skin, pbc=False)(state)
    want = PaiNNCalculator(bundle).calculate_batch([Atoms(atoms.numbers, atoms.positions) for atoms in slabs()])
    np.testing.assert_allclose(got["energy"].numpy(), [result["energy"] for result in want], rtol=0, atol=1e-4)


def test_field_12_a_sheet_whose_cell_has_two_vectors(bundle: Path) -> None:
    sheet = students.perturbed(graphene(size=(2, 2, 1)), 1, 0.05)
    assert sheet.cell.rank == 2
    with pytest.raises(StructureError, match="Structure 0 repeats in no direction"):
        PaiNNModel(bundle)(state_of([sheet]))
    got = PaiNNModel(bundle, pbc=(True, True, False))(state_of([sheet]))
    (want,) = PaiNNCalculator(bundle).calculate_batch([sheet])
    np.testing.assert_allclose(got["forces"].numpy(), want["forces"], rtol=0, atol=1e-5)
    assert got["energy"].item() == pytest.approx(want["energy"], abs=1e-4)


def compare(got: dict[str, torch.Tensor], want: list[dict[str, Any]]) -> None:
    forces = np.concatenate([result["forces"] for result in want])
    np.testing.assert_allclose(got["forces"].numpy(), forces, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got["energy"].numpy(), [result["energy"] for result in want], rtol=0, atol=1e-4)
    stresses = np.array([result["stress"][:3] for result in want])
    np.testing.assert_allclose(np.diagonal(got["stress"].numpy(), 0, 1, 2), stresses, rtol=0, atol=1e-6)


def test_field_12_dynamics_of_a_slab_is_ase_s(bundle: Path) -> None:
    slab = slabs()[0]
    momenta = np.random.default_rng(3).normal(0, 1.0, slab.positions.shape)
    slab.set_momenta(momenta - momenta.mean(0))
    model = PaiNNModel(bundle, pbc=slab.pbc)
    begin, step = torch_sim.integrators.nve(model, dt=torch.tensor(0.5 * fs), kT=torch.tensor(0.0), seed=1)
    current = begin(state_of([slab]))
    current.momenta = torch.as_tensor(slab.get_momenta())
    for _ in range(40):
        current = step(current)
    slab.calc = PaiNNCalculator(bundle)
    VelocityVerlet(slab, 0.5 * fs).run(40)
    np.testing.assert_allclose(current.positions.numpy(), slab.positions, rtol=0, atol=1e-5)


def test_what_torchsim_would_wrap_must_repeat(bundle: Path) -> None:
    """TorchSim moves atoms back into cells that it takes for periodic: through the vacuum of a slab, for instance."""
    slab = slabs()[0]
    slab.pbc = True
    with pytest.raises(StructureError, match=r"pbc is \[True, True, True\].*pbc=False"):
        PaiNNModel(bundle, pbc=(True, True, False))(state_of([slab]))
    with pytest.raises(StructureError, match="Structure 0"):  # a direction without a cell vector cannot repeat
        PaiNNModel(bundle, pbc=True)(state_of([students.water()]))


@pytest.mark.parametrize("pbc", [(), (True, True), [True] * 4])
def test_pbc_that_is_none(bundle: Path, pbc: Any) -> None:
    with pytest.raises(StructureError, match="three times true or false"):
        PaiNNModel(bundle, pbc=pbc)
    fields = {name: getattr(state_of([students.water()]), name) for name in ("positions", "cell", "atomic_numbers")}
    with pytest.raises(StructureError, match="three times true or false"):
        PaiNNModel(bundle)({**fields, "pbc": torch.tensor(pbc, dtype=torch.bool)})


def test_a_later_torchsim_may_keep_each_direction(bundle: Path) -> None:
    structures = slabs()[:1]
    state = state_of(structures)
    state.pbc = torch.tensor([True, True, False])
    compare(PaiNNModel(bundle)(state), PaiNNCalculator(bundle).calculate_batch(structures))


def test_systems_are_looked_at_once_for_each_cell(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(adapter, "unrepeated", lambda atoms, _: looked.append(len(atoms)))
    model, structures = PaiNNModel(bundle), [boxed(atoms) for atoms in MOLECULES]
    for _ in range(5):
        model(state_of(structures))
    assert looked == [len(atoms) for atoms in structures]
    structures[1].cell.array[0, 0] = 17.0
    model(state_of(structures))
    assert len(looked) == 2 * len(structures)
    model(state_of(MOLECULES))  # have no cell
    PaiNNModel(bundle, pbc=False)(state_of(structures))
    assert len(looked) == 2 * len(structures)
