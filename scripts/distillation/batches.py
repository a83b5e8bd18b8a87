"""Labelled structures as batches to learn from: neighbours found once, structures of like size together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from painn_deploy.export.errors import DatasetError
from painn_deploy.export.model.force_head import tensors
from painn_deploy.export.model.student import NeighbourGraph
from painn_deploy.runtime.matrix import LocalGraph, join

__all__ = ["Batch", "Split", "fit_references"]


class Split:
    """One split of a dataset, with the neighbours of every structure found once.

    Args:
        path: npz of `make_dataset.py`: numbers, positions (Å), forces (eV/Å), energies (eV), offsets, kinds; where
            structures are periodic also cells (Å) and pbc.
        cutoff: Å.
    """

    def __init__(self, path: Path, cutoff: float) -> None:
        try:
            with np.load(path) as file:
                data = {key: file[key] for key in file.files}
        except (OSError, ValueError) as error:
            raise DatasetError(f"Cannot read {path}: {error}. Make it with scripts/make_dataset.py.") from error
        if len(data["energies"]) == 0:
            raise DatasetError(f"{path} is empty. Add molecules, or change the split.")
        self.numbers: Int64[np.ndarray, " all_atoms"] = data["numbers"].astype(np.int64)
        self.positions: Float64[np.ndarray, "all_atoms 3"] = data["positions"]
        self.forces: Float32[np.ndarray, "all_atoms 3"] = data["forces"]
        self.energies: Float64[np.ndarray, " structures"] = data["energies"]
        self.offsets: Int64[np.ndarray, " structures_and_one"] = data["offsets"]
        self.cells: Float64[np.ndarray, "structures 3 3"] = data.get("cells", np.zeros((len(self), 3, 3)))
        self.pbc: Bool[np.ndarray, "structures 3"] = data.get("pbc", np.zeros((len(self), 3), bool))
        self.graphs = [LocalGraph.of(self.atoms(i), cutoff) for i in range(len(self))]
        self.slots = np.array([graph.slots for graph in self.graphs])

    def __len__(self) -> int:
        return len(self.energies)

    def rows(self, index: int) -> slice:
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def atoms(self, index: int) -> Atoms:
        rows = self.rows(index)
        return Atoms(self.numbers[rows], self.positions[rows], cell=self.cells[index], pbc=self.pbc[index])

    def sizes(self) -> Int64[np.ndarray, " structures"]:
        """Atoms of each structure."""
        return np.diff(self.offsets)

    def composition(self, species: list[int]) -> Float64[np.ndarray, "structures species"]:
        """How many atoms of each element each structure has."""
        structure = np.repeat(np.arange(len(self)), self.sizes())
        counts = np.zeros((len(self), len(species)))
        for column, z in enumerate(species):
            counts[:, column] = np.bincount(structure[self.numbers == z], minlength=len(self))
        return counts

    def batches(self, budget: int, rng: np.random.Generator | None) -> list[Int64[np.ndarray, " batch"]]:
        """Structures of like size together, about `budget` slots in each batch; shuffled where there is a generator.

        Args:
            budget: atoms x slots of a batch.
            rng: shuffles structures and batches; None keeps their order.
        """
        jitter = rng.uniform(0, 4, len(self)) if rng is not None else np.zeros(len(self))
        order = np.argsort(self.slots + jitter, kind="stable")
        batches: list[np.ndarray] = []
        batch: list[int] = []
        atoms, slots = 0, 0
        for index, size in zip(order, self.sizes()[order], strict=True):
            slots = max(slots, int(self.slots[index]))
            if batch and (atoms + size) * slots > budget:
                batches.append(np.array(batch))
                batch, atoms, slots = [], 0, int(self.slots[index])
            batch.append(int(index))
            atoms += int(size)
        batches.append(np.array(batch))
        if rng is not None:
            rng.shuffle(batches)
        return batches


@dataclass(frozen=True)
class Batch:
    """A graph and its labels: energies without atomic references [structures], forces [atoms, 3]."""

    graph: NeighbourGraph
    structure: Tensor
    sizes: Tensor
    energies: Tensor
    forces: Tensor

    @classmethod
    def of(cls, split: Split, indices: Int64[np.ndarray, " batch"], residuals: np.ndarray, device: str) -> "Batch":
        """The tensors of some structures, concatenated with offset indices.

        Args:
            split: the structures and their labels.
            indices: of those in the batch.
            residuals: energy of every structure of the split, less its atoms' references, eV.
            device: where the tensors are to be.
        """
        sizes = split.sizes()[indices]
        rows = np.concatenate([np.arange(split.offsets[i], split.offsets[i + 1]) for i in indices])
        graph = tensors(join([split.graphs[i] for i in indices]), torch.float32)
        return cls(
            NeighbourGraph(*(t.to(device) for t in graph)),
            torch.as_tensor(np.repeat(np.arange(len(indices)), sizes)).to(device),
            torch.as_tensor(sizes).to(device),
            torch.as_tensor(residuals[indices], dtype=torch.float32).to(device),
            torch.as_tensor(split.forces[rows]).to(device),
        )


def fit_references(split: Split) -> tuple[list[int], Float64[np.ndarray, " species"]]:
    """Energy of each element, by least squares over molecules: what is left for the student is chemistry."""
    species = sorted(set(split.numbers.tolist()))
    bound = split.sizes() > 1
    if not bound.any():
        raise DatasetError("The training split holds single atoms alone; add molecules.")
    composition = split.composition(species) / split.sizes()[:, None]
    per_atom = split.energies / split.sizes()
    references, *_ = np.linalg.lstsq(composition[bound], per_atom[bound], rcond=None)
    return species, references
