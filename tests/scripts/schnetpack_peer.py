"""What a SchNetPack user does, run in SchNetPack's own environment: train a tiny PaiNN, save it, ask it for forces.

    python schnetpack_peer.py FOLDER

Writes FOLDER/BASIS/best_model for two radial bases, and FOLDER/BASIS/peer.npz with energies (eV) and forces (eV/Å) that
SchNetPack computed in float64.
The model is in kcal/mol and Bohr, with a mean and atomic references of its own.
"""

import sys
from pathlib import Path

import numpy as np
import schnetpack as spk
import torch
from ase import units
from ase.build import molecule
from schnetpack.interfaces import AtomsConverter
from schnetpack.transform import AddOffsets, CastTo64, MatScipyNeighborList

CUTOFF = 4.0 / units.Bohr  # in Bohr; 4 Å
NAMES = ("H2O", "CH3CH2OH", "C6H6", "NH3", "CO")


def build(basis: str) -> spk.model.NeuralNetworkPotential:
    radial = {"gaussian": spk.nn.GaussianRBF, "bessel": spk.nn.BesselRBF}[basis](n_rbf=10, cutoff=CUTOFF)
    offsets = AddOffsets("energy_U0", add_mean=True, add_atomrefs=True)
    offsets.mean = torch.tensor([-7.5], dtype=torch.float64)
    offsets.atomref = torch.linspace(0, -4000, 100, dtype=torch.float64)
    return spk.model.NeuralNetworkPotential(
        representation=spk.representation.PaiNN(24, 2, radial, spk.nn.CosineCutoff(CUTOFF), epsilon=2e-8),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=24, output_key="energy_U0"),
            spk.atomistic.Forces(energy_key="energy_U0"),
        ],
        postprocessors=[CastTo64(), offsets],
    )


def structures() -> list:
    rng = np.random.default_rng(0)
    made = [molecule(name) for name in NAMES]
    for atoms in made:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    return made


def inputs(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    converter = AtomsConverter(neighbor_list=MatScipyNeighborList(cutoff=CUTOFF), dtype=dtype)
    in_bohr = structures()
    for atoms in in_bohr:
        atoms.positions /= units.Bohr
    return converter(in_bohr)


def train(basis: str, folder: Path) -> None:
    folder.mkdir()
    model = build(basis)
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin at zero: what is not read would not be missed
            parameter += 0.15 * torch.randn_like(parameter)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.do_postprocessing = False
    for _ in range(10):  # towards forces that are no force field's: enough to leave the initial weights
        results = model(inputs(torch.float32))
        target = torch.arange(results["forces"].numel()).reshape(results["forces"].shape).sin()
        loss = (results["forces"] - target).square().mean() + (results["energy_U0"] - 3).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.do_postprocessing = True
    torch.save(model, folder / "best_model")
    results = model.double().eval()(inputs(torch.float64))
    kcal = units.kcal / units.mol
    np.savez(
        folder / "peer.npz",
        energies=results["energy_U0"].detach().numpy() * kcal,
        forces=results["forces"].detach().numpy() * kcal / units.Bohr,
        positions=np.concatenate([atoms.positions for atoms in structures()]),
    )


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for basis in ("gaussian", "bessel"):
        train(basis, Path(sys.argv[1]) / basis)


if __name__ == "__main__":
    main()
