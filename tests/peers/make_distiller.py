"""Energies, forces and stresses of a student, computed by MLFF-Distiller's own StudentForceField in float64.

    python -m tests.peers.make_distiller SOURCE [FOLDER]

It runs in this repository's own environment, from its root. SOURCE is a checkout of github.com/atfrank/MLFF-Distiller;
FOLDER is `figures`, unless another is given. The figures in there were made with its commit 914c63c (version 0.1.0)
and torch 2.13.0.

StudentForceField knows no cells. It is therefore asked about the atoms of a cell among all copies of them that they can
feel, and what its read-out says of the copies is left out: its energy of a periodic structure, by its own equations.
"""

import importlib.util
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from safetensors.torch import load_file
from torch import nn

from tests import peers

NAME = "distiller"
SOURCE = Path("src", "mlff_distiller", "models", "student_model.py")


def model_of(source: Path, student: Path) -> nn.Module:
    """MLFF-Distiller's own student with the weights of ours, every one of which must have its place."""
    # by its path: the package around it imports teachers and GPU code, which nothing here needs
    spec = importlib.util.spec_from_file_location("student_model", source / SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = dict(peers.CASES[NAME].sizes)
    sizes["max_z"] = sizes.pop("embeddings") - 1
    model = module.StudentForceField(**sizes, use_torch_cluster=False)
    model.load_state_dict(load_file(student))
    return model.double().eval()


def copies(atoms: Atoms, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and their periodic images within reach of any atom, those of the cell itself first.

    Args:
        atoms: in a cell or in none.
        reach: in Å.

    Returns:
        Of every copy, which atom it is of, and by how much it is displaced in Å.
    """
    extent = np.ptp(atoms.positions, axis=0).max()  # atoms may lie outside of their cell
    # between lattice planes lies the inverse of a reciprocal vector's length
    most = np.where(atoms.pbc, np.ceil((reach + 2 * extent) * atoms.cell.reciprocal().lengths()), 0).astype(int)
    shifts = np.array(list(itertools.product(*(range(-n, n + 1) for n in most))))
    shifts = shifts[np.argsort(np.abs(shifts).sum(1), kind="stable")] @ atoms.cell.array  # the cell itself first
    index, moved = np.tile(np.arange(len(atoms)), len(shifts)), np.repeat(shifts, len(atoms), axis=0)
    distances = np.linalg.norm((atoms.positions[index] + moved)[:, None] - atoms.positions, axis=-1).min(1)
    return index[distances <= reach], moved[distances <= reach]


def results(model: nn.Module, atoms: Atoms) -> dict[str, np.ndarray]:
    """Energy in eV, forces in eV/Å, and stress in eV/Å³ where the structure is periodic in three directions.

    The stress is dE/dF over the volume, and not symmetric: its energy changes when a structure is turned.
    """
    sizes = peers.CASES[NAME].sizes
    index, moved = copies(atoms, sizes["num_interactions"] * sizes["cutoff"])  # an interaction carries one cutoff far
    read: list[torch.Tensor] = []
    handle = model.energy_head.register_forward_hook(lambda module, inputs, output: read.append(output))
    positions = torch.from_numpy(atoms.positions.copy()).requires_grad_()
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    everywhere = positions[index] + torch.from_numpy(moved)
    model(torch.from_numpy(atoms.numbers[index]), everywhere + everywhere @ strain.T)
    handle.remove()
    energy = read[0][: len(atoms)].sum()
    gradient, virial = torch.autograd.grad(energy, (positions, strain))
    stress = {"stress": virial.numpy() / atoms.get_volume()} if atoms.pbc.all() else {}
    return {"energy": energy.detach().numpy(), "forces": -gradient.numpy(), **stress}


def main() -> None:
    torch.set_num_threads(1)
    source, folder = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else peers.FIGURES
    command = ["git", "-C", str(source), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as temporary:
        student = peers.write(Path(temporary), NAME)
        model = model_of(source, student)
        found = {each: results(model, atoms) for each, atoms in peers.structures(NAME).items()}
        peers.keep(folder, NAME, student, found, f"MLFF-Distiller 0.1.0 at {commit}")


if __name__ == "__main__":
    main()
