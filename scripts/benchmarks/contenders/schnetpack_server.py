"""SchNetPack's own ASE calculator as a server, run in SchNetPack's environment by `scripts/benchmark_inference.py`.

    python schnetpack_server.py WEIGHTS.npz

Reads JSON lines with numbers, positions (Å), cell and pbc, and answers each with energy (eV) and forces (eV/Å). The
weights are under SchNetPack's names, hyperparameters beside them. It imports nothing of painn-deploy.
"""

import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import schnetpack as spk
import torch
from ase import Atoms
from schnetpack.interfaces import SpkCalculator
from schnetpack.transform import MatScipyNeighborList


def build(weights: dict[str, np.ndarray]) -> spk.model.NeuralNetworkPotential:
    features, layers, rbf = (int(weights.pop(name)) for name in ("hidden_dim", "num_interactions", "num_rbf"))
    cutoff, epsilon = float(weights.pop("cutoff")), float(weights.pop("epsilon"))
    model = spk.model.NeuralNetworkPotential(
        representation=spk.representation.PaiNN(
            features, layers, spk.nn.GaussianRBF(rbf, cutoff), spk.nn.CosineCutoff(cutoff), epsilon=epsilon
        ),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=features, output_key="energy"),
            spk.atomistic.Forces(energy_key="energy", force_key="forces"),
        ],
    )
    rows = len(weights["representation.embedding.weight"])
    model.representation.embedding = torch.nn.Embedding(rows, features, padding_idx=0)
    state = model.state_dict()
    state.update({name: torch.from_numpy(array) for name, array in weights.items()})
    model.load_state_dict(state)
    return model.eval()


def main() -> None:
    with np.load(sys.argv[1]) as file:
        weights = {name: file[name] for name in file.files}
    cutoff = float(weights["cutoff"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        torch.save(build(weights), path)
        torch.load = functools.partial(torch.load, weights_only=False)  # a file that was written a line above
        calculator = SpkCalculator(
            str(path), MatScipyNeighborList(cutoff=cutoff), energy_key="energy", force_key="forces",
            energy_unit="eV", position_unit="Ang",
        )  # fmt: skip
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        atoms = Atoms(asked["numbers"], asked["positions"], cell=asked["cell"], pbc=asked["pbc"])
        # both at once: asked for one after the other, as ASE would, it runs the model for each
        calculator.calculate(atoms, ["energy", "forces"])
        found = {"energy": float(calculator.results["energy"]), "forces": calculator.results["forces"].tolist()}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
