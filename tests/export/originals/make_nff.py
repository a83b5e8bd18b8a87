"""What users of NeuralForceField have on disk, made by it with tiny random weights; and its own energies and forces.

    python make_nff.py SOURCE FOLDER

SOURCE is a checkout of github.com/learningmatter-mit/NeuralForceField, which does not install beside a new torch: what
its modules import and PaiNN never calls (MACE, CHGNet and others) is stood in for by empty modules. FOLDER gets the
files and reference.npz, whose energies and forces NeuralForceField computed in float64 on ten perturbed structures; it
has them in kcal/mol and Å, and here they are in eV and eV/Å.
"""

import importlib.abc
import importlib.machinery
import json
import shutil
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list

UNIT = units.kcal / units.mol
CUTOFF = 4.0  # Å
LACKING = ("nvidia_smi", "sklearn", "e3fp", "chgnet", "pymatgen", "e3nn", "mace", "rdkit", "sympy")
MOLECULES = ("H2O", "NH3", "CH3CH2OH", "CH3SH", "C2H4", "HCOOH")
SHARED = {"feat_dim": 8, "n_rbf": 5, "cutoff": CUTOFF, "activation": "swish", "grad_keys": ["energy_grad"]}
PARAMETERS = {
    "swish": {
        **SHARED,
        "num_conv": 3,
        "output_keys": ["energy"],
        "means": {"energy": -41.5},
        "stddevs": {"energy": 2.5},
    },
    "learnable": {
        **SHARED,
        "num_conv": 2,
        "learnable_k": True,
        "activation": "shifted_softplus",
        "output_keys": ["energy_0", "energy_1"],
        "grad_keys": ["energy_0_grad", "energy_1_grad"],
        "skip_connection": {"energy_0": False, "energy_1": True},
        "pool_dic": {"energy_0": {"name": "sum", "param": {}}, "energy_1": {"name": "mean", "param": {}}},
        "conv_dropout": 0.1,
        "readout_dropout": 0.2,
        "compute_delta": True,
    },
    "old": {**SHARED, "num_conv": 2, "output_keys": ["energy"]},
    "trained": {**SHARED, "num_conv": 1, "output_keys": ["energy"], "stddevs": {"energy": 0.5}},
}
"""Of each model, as its users write them."""

NOISE = {"swish": 0.15, "learnable": 0.3, "old": 0.2, "trained": 0.3}
"""Added to the weights of each, so that forces are some eV/Å."""

ENERGY = {"swish": "energy", "learnable": "energy_0", "old": "energy", "trained": "energy"}


class Empty(types.ModuleType):
    """A module of classes that do nothing."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LACKING:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module) -> None:
        pass


def structures() -> list[Atoms]:
    rng = np.random.default_rng(7)
    crystals = [bulk("C", "diamond", a=3.57), bulk("NaCl", "rocksalt", a=5.64), fcc111("Al", (1, 1, 2), vacuum=8.0)]
    made = [*(molecule(name) for name in MOLECULES), *crystals, bulk("SiC", "zincblende", a=4.36, cubic=True)]
    for atoms in made:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        if atoms.pbc.all():  # a cell that is skewed, too
            atoms.set_cell(atoms.cell.array + rng.normal(0, 0.1, (3, 3)), scale_atoms=True)
    return made


def batch(atoms: Atoms, cutoff: float) -> dict[str, torch.Tensor]:
    """As NeuralForceField's AtomsBatch gives it: directed pairs, offsets as vectors; but in float64."""
    i, j, shifts = neighbor_list("ijS", atoms, cutoff)
    return {
        "nxyz": torch.tensor(np.concatenate([atoms.numbers[:, None], atoms.positions], 1)),
        "num_atoms": torch.tensor([len(atoms)]),
        "nbr_list": torch.tensor(np.stack([i, j], 1)),
        "offsets": torch.tensor(shifts @ atoms.cell.array),
    }


def moved(model: torch.nn.Module, amount: float) -> torch.nn.Module:
    """The same with weights in which every term counts: biases begin at zero, and frequencies at equal steps."""
    for parameter in model.parameters():
        parameter.data += amount * torch.randn_like(parameter)
    return model


def aged(model: torch.nn.Module) -> torch.nn.Module:
    """As it was before attributes were added for which the code has defaults 'for backwards compatability'."""
    for name in ("cutoff", "excl_vol", "compute_delta"):
        delattr(model, name)
    del model.__dict__["pool_dic"]
    model.skip = False
    for module in model.modules():
        if "dropout" in module._modules:
            del module._modules["dropout"]
    return model


def trained(model: torch.nn.Module, folder: Path) -> None:
    """Files of its Trainer: a checkpoint, params.json, and best_model.pth.tar as where pickling the model failed."""
    from nff.train import Trainer

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    trainer = Trainer(str(folder), model, None, optimizer, [], [])
    trainer.epoch = 3
    trainer.store_checkpoint()
    (folder / "checkpoints" / "checkpoint-0.pth.tar").unlink()
    params = {
        "details": {**PARAMETERS["trained"], "model_type": "Painn", "batch_size": 20},
        "weightpath": str(folder.name),
    }
    (folder / "params.json").write_text(json.dumps(params, indent=1))


def evaluated(model: torch.nn.Module, atoms: Atoms, key: str) -> tuple[float, np.ndarray]:
    results = model(batch(atoms, CUTOFF))
    return results[key].item() * UNIT, -results[f"{key}_grad"].detach().numpy() * UNIT


def main() -> None:
    warnings.simplefilter("ignore")
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    sys.meta_path.append(Finder())
    sys.path.insert(0, str(source))
    from nff.nn.models.painn import Painn

    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    found = {}
    for seed, (name, parameters) in enumerate(PARAMETERS.items()):
        torch.manual_seed(seed)
        model = moved(Painn(parameters), NOISE[name])
        if name == "old":
            aged(model)
        if name == "trained":
            trained(model, folder)
        else:
            torch.save(model, folder / f"{name}.best_model")
        model = model.double().eval()
        results = [evaluated(model, atoms, ENERGY[name]) for atoms in structures()]
        found[f"{name}/energies"] = np.array([energy for energy, _ in results])
        found[f"{name}/forces"] = np.concatenate([forces for _, forces in results])
    made = structures()
    found["positions"] = np.concatenate([atoms.positions for atoms in made])
    found["numbers"] = np.concatenate([atoms.numbers for atoms in made])
    found["sizes"] = np.array([len(atoms) for atoms in made])
    found["cells"] = np.stack([atoms.cell.array for atoms in made])
    found["pbc"] = np.stack([atoms.pbc for atoms in made])
    np.savez_compressed(folder / "reference.npz", **found)


if __name__ == "__main__":
    main()
