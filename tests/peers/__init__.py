"""What peers' own code computed in float64 from students that are made here, kept as numbers in `figures/`.

Nothing of a peer is kept but its answers: `make_schnetpack.py` and `make_distiller.py` ask it for them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, graphene, molecule
from safetensors.torch import load_file, save_file

from tests import students

FIGURES = Path(__file__).with_name("figures")


@dataclass(frozen=True)
class Case:
    """A student that a peer was asked about.

    Attributes:
        kind: of `students.write`.
        seed: of its weights, and of how far its structures' atoms were moved.
        configuration: what differs from `students.CONFIGURATION`.
    """

    kind: str
    seed: int
    configuration: Mapping[str, Any]

    @property
    def sizes(self) -> dict[str, Any]:
        """Its whole configuration: features, interactions, radial functions, and the cutoff in Å."""
        return {**students.CONFIGURATION, **self.configuration}


# Sizes for which every radial centre is a float32 without rounding: they are then the same wherever they are made.
CASES = {
    "schnetpack-gaussian": Case(
        "painn", 1, {"hidden_dim": 32, "num_interactions": 3, "num_rbf": 10, "cutoff": 4.5, "embeddings": 100}
    ),
    "schnetpack-bessel": Case("painn-bessel", 2, {"embeddings": 100}),
    "distiller": Case("distiller", 3, {"hidden_dim": 24, "num_interactions": 3, "num_rbf": 9, "embeddings": 101}),
}
BASIS = ("offsets", "widths", "centers", "freqs", "cutoff")
"""Last parts of the names of tensors that no training changes."""

FILTERS = 0.1
"""How much smaller filters are than other weights: a message is a sum over dozens of neighbours."""


def write(folder: Path, name: str) -> Path:
    """Write the student of a case, and give its path.

    Args:
        folder: for the weights, and the configuration beside them.
        name: of the case.
    """
    case = CASES[name]
    path = students.write(folder, case.kind, **case.configuration)
    weights = load_file(path)
    # torch's random numbers differ in their last bit from processor to processor; those of RandomState never do
    stream = np.random.RandomState(case.seed)
    for key in sorted(weights):
        if key.rpartition(".")[2] not in BASIS:
            weights[key] = _drawn(stream, key, weights[key].shape)
    save_file(weights, path)
    return path


def _drawn(stream: np.random.RandomState, key: str, shape: torch.Size) -> torch.Tensor:
    """Weights that keep the size of what they multiply, and biases that are no smaller than it."""
    numbers = 2 * stream.random_sample(tuple(shape)) - 1
    match key.rpartition(".")[2]:
        case "bias":
            numbers *= 0.5
        case "mixing_matrix":
            numbers = np.eye(3) + 0.5 * numbers
        case _:
            numbers *= math.sqrt(3 / (1 if "embedding" in key else shape[-1]))
    if "filter_net" in key or "rbf_to_scalar.2" in key:
        numbers *= FILTERS
    return torch.from_numpy(numbers.astype(np.float32))


def structures(name: str) -> dict[str, Atoms]:
    """Structures of a case by their names: small and large, in no cell and in cells of three and of two directions.

    Args:
        name: of the case, whose seed says how far atoms are moved.
    """
    made = {
        "atom": Atoms("O"),
        "water": molecule("H2O"),
        "ethanol": molecule("CH3CH2OH"),
        "biphenyl": molecule("biphenyl"),
        "crystal": bulk("C", "diamond", a=3.57, cubic=True),
        "triclinic": students.zoo()["triclinic"],
        "primitive": bulk("NaCl", "rocksalt", a=5.0),  # whose atoms see their own images, 3.54 Å away
        "layer": graphene("BN", a=2.5, size=(2, 2, 1), vacuum=5.0),
    }
    seed = CASES[name].seed
    return {each: students.perturbed(atoms, seed) if len(atoms) > 1 else atoms for each, atoms in made.items()}


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors: of their names, types, shapes and bytes."""
    found = hashlib.sha256()
    for key in sorted(weights):
        tensor = weights[key].contiguous()
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def figures(name: str, student: Path) -> Path:
    """The file of a case's figures, which `reference_systems` reads.

    Args:
        name: of the case.
        student: weights that are to be held against them.

    Raises:
        ValueError: the peer computed with other weights.
    """
    made = json.loads((FIGURES / f"{name}.json").read_text())
    if (found := digest(load_file(student))) != made["weights_sha256"]:
        raise ValueError(
            f"{student} holds other weights than those of which {made['peer']} computed the figures of {name!r}: their "
            f"SHA-256 is {found}, that of the figures {made['weights_sha256']}. The student is made here from random "
            f"numbers: either those differ on this machine, or the student was changed and its figures were not made "
            "again."
        )
    return FIGURES / f"{name}.npz"


def keep(folder: Path, name: str, student: Path, results: Mapping[str, Mapping[str, np.ndarray]], peer: str) -> None:
    """Write the figures of a case.

    Args:
        folder: for NAME.npz, and for NAME.json, which says of which weights they are.
        name: of the case.
        student: weights that the peer computed with.
        results: of every structure of the case energy (eV), forces (eV/Å), and stress (eV/Å³) where there is one.
        peer: who computed them, and in which version.
    """
    arrays = {}
    for system, atoms in structures(name).items():
        geometry = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
        arrays |= {f"{system}/{key}": value for key, value in {**geometry, **results[system]}.items()}
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    made = {"peer": peer, "torch": torch.__version__, "weights_sha256": digest(load_file(student))}
    (folder / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")
