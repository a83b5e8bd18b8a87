"""A checkpoint as nablaDFT's training writes it, and its own forces; run by hand, where SchNetPack and hydra are.

    python make_nabladft.py CLONE FOLDER

CLONE is https://github.com/AIRI-Institute/nablaDFT at 67ca402809806e5dd55095e1f095ec9b2683ac41. Its configuration
`painn.yaml`, its task and its data module are used as they are, on the database of its tests, for a few steps with few
features; what they import and do not need here (torch_geometric, wandb, downloads) is left empty. FOLDER then holds
last.ckpt, as its callback wrote it, painn.ckpt without the state of the optimiser, and reference.npz with energies (eV)
and forces (eV/Å) of structures that the model was asked for in float64.
"""

import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk, graphene
from ase.db import connect
from omegaconf import DictConfig, open_dict
from schnetpack.interfaces import AtomsConverter
from schnetpack.transform import ASENeighborList

CUTOFF = 5.0  # Å


def empty(name: str, folder: Path | None = None, **contents: Any) -> None:
    """A module that holds no more than this, and whose folder is not run."""
    made = sys.modules[name] = ModuleType(name)
    made.__path__ = [str(folder)] if folder else []
    vars(made).update(contents)


def configured(clone: Path, folder: Path) -> DictConfig:
    (raw := folder / "raw").mkdir(parents=True)
    (raw / "test_database.db").write_bytes((clone / "tests" / "data" / "raw" / "test_database.db").read_bytes())
    changes = ["model.model.representation.n_atom_basis=4", "model.model.output_modules.0.n_in=4", "max_steps=4"]
    changes += ["batch_size=8", "num_workers=0", "dataset_name=test_database", f"root={raw}"]
    with hydra.initialize_config_dir(str(clone / "config"), version_base="1.2"):
        made = hydra.compose("painn.yaml", changes)
    with open_dict(made):  # no GPU; the rest is as its pipeline sets it
        made.trainer.update({"accelerator": "cpu", "devices": 1, "inference_mode": False, "enable_progress_bar": False})
        made.callbacks.model_checkpoint.dirpath = str(folder)
    return made


def structures(database: Path) -> list[Atoms]:
    with connect(database) as rows:
        made = [rows.get_atoms(index) for index in (27, 60, 72, 8, 88, 53, 18)]
    made += [bulk("C", "diamond", a=3.57), bulk("C", "sc", a=2.2), graphene(a=2.46, vacuum=5.0)]
    rng = np.random.default_rng(0)
    for atoms in made:
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return made


def main() -> None:
    warnings.simplefilter("ignore")
    clone, folder = (Path(argument).resolve() for argument in sys.argv[1:])
    empty("torch_geometric")
    empty("torch_geometric.loader", DataLoader=None)
    empty("nablaDFT", clone / "nablaDFT")
    empty("nablaDFT.utils", download_file=None)
    empty("nablaDFT.dataset.pyg_datasets", PyGHamiltonianNablaDFT=None, PyGNablaDFT=None)
    empty("nablaDFT.dataset", clone / "nablaDFT" / "dataset")
    from nablaDFT.dataset.nablaDFT_dataset import ASENablaDFT

    sys.modules["nablaDFT.dataset"].ASENablaDFT = ASENablaDFT
    torch.manual_seed(23)
    torch.set_num_threads(1)
    config = configured(clone, folder)
    task = hydra.utils.instantiate(config.model)
    for parameter in task.parameters():  # biases begin at zero: what is not read would not be missed
        parameter.data += 0.02 * torch.randn_like(parameter)
    callbacks = [hydra.utils.instantiate(config.callbacks.model_checkpoint)]
    trainer = hydra.utils.instantiate(config.trainer, callbacks=callbacks, logger=False)
    trainer.fit(model=task, datamodule=hydra.utils.instantiate(config.datamodule))
    trainer.save_checkpoint(folder / "painn.ckpt", weights_only=True)  # the same without what the optimiser keeps
    model = task.model.double().eval()
    asked = structures(folder / "raw" / "test_database.db")
    converter = AtomsConverter(neighbor_list=ASENeighborList(cutoff=CUTOFF), dtype=torch.float64)
    found = [model(converter([atoms])) for atoms in asked]
    np.savez(
        folder / "reference.npz",
        energies=np.concatenate([each["energy"].detach().numpy() for each in found]) * units.Hartree,
        forces=np.concatenate([each["forces"].detach().numpy() for each in found]) * units.Hartree,
        numbers=np.concatenate([atoms.numbers for atoms in asked]),
        positions=np.concatenate([atoms.positions for atoms in asked]),
        sizes=np.array([len(atoms) for atoms in asked]),
        cells=np.array([atoms.cell.array for atoms in asked]),
        pbc=np.array([atoms.pbc for atoms in asked]),
    )


if __name__ == "__main__":
    main()
