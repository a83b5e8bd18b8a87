"""Files of SchNetPack's variants, and what SchNetPack computes from them; run in SchNetPack's own environment.

    python schnetpack_peer.py FOLDER

Writes a file for each of `VARIANTS` and of `REFUSED`, and FOLDER/peer.npz with energies (eV), forces (eV/Å) and, for
crystals, stresses (eV/Å³) of `structures` that SchNetPack computes in float64. All files are in kcal/mol and Bohr.
"""

import copy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import schnetpack as spk
import torch
import torchmetrics
from ase import units
from schnetpack.transform import AddOffsets, CastTo32, CastTo64
from schnetpack_refused import REFUSED, doubles
from schnetpack_variants import SCRIPTED, TASKS, VARIANTS, batch, potential, structures
from torch import nn

KCAL = units.kcal / units.mol


def reference(model: nn.Module, key: str, forces: str = "forces", stress: str = "stress") -> dict[str, np.ndarray]:
    model = copy.deepcopy(model).double().eval()
    kept = [step for step in model.postprocessors if not isinstance(step, CastTo32)]  # it rounds, and does nothing else
    model.postprocessors = nn.ModuleList(kept)
    results = model(batch(torch.float64))
    found = {name: results[each].detach().numpy() for name, each in (("energies", key), ("forces", forces))}
    found["stresses"] = results[stress].detach().numpy()[-3:] * KCAL / units.Bohr**3
    return found | {"energies": found["energies"] * KCAL, "forces": found["forces"] * KCAL / units.Bohr}


def scripted(model: nn.Module, path: Path) -> None:
    """As `spkdeploy` writes it: casts are left out, since TorchScript has none, and means are in float32."""
    kept = [step for step in model.postprocessors if not isinstance(step, CastTo64 | CastTo32)]
    for step in kept:
        if isinstance(step, AddOffsets):
            step.mean = step.mean.float()
    model.postprocessors = nn.ModuleList(kept)
    torch.jit.save(torch.jit.script(model), path)


def as_task(model: nn.Module, path: Path, key: str) -> None:
    metrics = {"mae": torchmetrics.MeanAbsoluteError()}
    outputs = [spk.task.ModelOutput(each, nn.MSELoss(), 1.0, metrics) for each in (key, "forces")]
    task = spk.task.AtomisticTask(copy.deepcopy(model), outputs, torch.optim.AdamW, {"lr": 1e-3})
    torch.save(task, path.with_suffix(".task"))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=path.parent)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path.with_suffix(".ckpt"), weights_only=True)
    saved = torch.load(path.with_suffix(".ckpt"), weights_only=False)
    torch.save({"state_dict": saved["state_dict"]}, path.with_name(f"{path.stem}, weights.ckpt"))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found: dict[str, np.ndarray] = {}
    for seed, (name, build) in enumerate(VARIANTS.items()):
        torch.manual_seed(seed)
        model = build()
        torch.save(model, folder / f"{name}.best_model")
        key = "U0" if name == "several outputs" else "energy"
        keys = ("energy_3", "forces_3", "stress_3") if name == "scaled to another name" else (key,)
        found |= {f"{name}/{what}": value for what, value in reference(model, *keys).items()}
        if name in TASKS:
            as_task(model, folder / name, key)
        if name in SCRIPTED:
            scripted(model, folder / f"{name}.pt")
    made = structures()
    found |= {
        "pbc": np.array([atoms.pbc for atoms in made]),
        "numbers": np.concatenate([atoms.numbers for atoms in made]),
        "positions": np.concatenate([atoms.positions for atoms in made]),
        "sizes": np.array([len(atoms) for atoms in made]),
        "cells": np.array([atoms.cell.array for atoms in made]),
    }
    np.savez(folder / "peer.npz", **found)
    for name, build in REFUSED.items():
        torch.manual_seed(0)
        torch.save(build(), folder / f"{name}.refused")
    hooked = potential()
    hooked.representation.mixing[0].register_forward_hook(doubles)
    scripted(hooked, folder / "hook in TorchScript.refused")


if __name__ == "__main__":
    main()
