"""Energies, forces and stresses of the students of `CASES`, computed by SchNetPack's own classes in float64.

    PYTHONPATH=PACKAGES python -m tests.peers.make_schnetpack [FOLDER]

It runs in this repository's own environment, from its root; PACKAGES is a folder into which

    install(SCHNETPACK, PACKAGES, SHIM)

of tests/export/originals/installed.py put SchNetPack. FOLDER is `figures`, unless another is given. The figures in
there were made with SchNetPack 2.1.1 and torch 2.13.0.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import schnetpack as spk
import torch
from ase import Atoms
from safetensors.torch import load_file
from schnetpack.interfaces import AtomsConverter
from schnetpack.transform import MatScipyNeighborList

from tests import peers

NAMES = ("schnetpack-gaussian", "schnetpack-bessel")


def model_of(name: str, student: Path) -> spk.model.NeuralNetworkPotential:
    """SchNetPack's own PaiNN with the weights of ours, every one of which must have its place."""
    sizes = peers.CASES[name].sizes
    features, cutoff = sizes["hidden_dim"], sizes["cutoff"]
    basis = spk.nn.BesselRBF if name.endswith("bessel") else spk.nn.GaussianRBF
    radial, function = basis(sizes["num_rbf"], cutoff), spk.nn.CosineCutoff(cutoff)
    model = spk.model.NeuralNetworkPotential(
        representation=spk.representation.PaiNN(features, sizes["num_interactions"], radial, function),
        input_modules=[spk.atomistic.Strain(), spk.atomistic.PairwiseDistances()],
        output_modules=[spk.atomistic.Atomwise(features, output_key="energy"), spk.atomistic.Forces(calc_stress=True)],
    )
    model.load_state_dict(load_file(student))
    return model.double().eval()


def results(model: spk.model.NeuralNetworkPotential, atoms: Atoms, cutoff: float) -> dict[str, np.ndarray]:
    """Energy in eV, forces in eV/Å, and stress in eV/Å³ where the structure is periodic in three directions."""
    found = model(AtomsConverter(MatScipyNeighborList(cutoff=cutoff), dtype=torch.float64)(atoms))
    found = {key: value.detach().numpy() for key, value in found.items()}
    stress = {"stress": found["stress"].reshape(3, 3)} if atoms.pbc.all() else {}
    return {"energy": found["energy"].reshape(()), "forces": found["forces"], **stress}


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else peers.FIGURES
    for name in NAMES:
        with tempfile.TemporaryDirectory() as temporary:
            student = peers.write(Path(temporary), name)
            model, cutoff = model_of(name, student), peers.CASES[name].sizes["cutoff"]
            found = {each: results(model, atoms, cutoff) for each, atoms in peers.structures(name).items()}
            peers.keep(folder, name, student, found, f"SchNetPack {version('schnetpack')}")


if __name__ == "__main__":
    main()
