"""What SchNetPack writes, made by SchNetPack 2.1.1 in its own environment, with tiny random weights.

    python make_files.py FOLDER

Each model file is what a user would have; reference.npz holds energies (eV) and forces (eV/Å) that SchNetPack computed
from them in float64. `gaussian` is in kcal/mol and Å, `bessel` in Hartree and Bohr with a NuclearEmbedding.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import schnetpack as spk
import torch
import torchmetrics
from ase import units
from ase.build import molecule
from schnetpack.interfaces import AtomsConverter
from schnetpack.transform import AddOffsets, CastTo64, MatScipyNeighborList

FEATURES, CUTOFF = 6, 4.0  # Å
NAMES = ("H2O", "CH3CH2OH", "CO")
UNITS = {"gaussian": (units.kcal / units.mol, 1.0), "bessel": (units.Hartree, units.Bohr)}


def build(kind: str) -> spk.model.NeuralNetworkPotential:
    length = UNITS.get(kind, (1.0, 1.0))[1]
    radial = (spk.nn.BesselRBF if kind == "bessel" else spk.nn.GaussianRBF)(n_rbf=5, cutoff=CUTOFF / length)
    cutoff = spk.nn.CosineCutoff(CUTOFF / length)
    if kind == "schnet":
        representation = spk.representation.SchNet(FEATURES, 1, radial, cutoff)
    elif kind == "so3net":
        representation = spk.representation.SO3net(FEATURES, 1, lmax=1, radial_basis=radial, cutoff_fn=cutoff)
    else:
        options = {}
        if kind == "bessel":
            options["nuclear_embedding"] = spk.nn.embedding.NuclearEmbedding(101, FEATURES, zero_init=False)
        if kind == "shared":
            options |= {"shared_interactions": True, "shared_filters": True}
        representation = spk.representation.PaiNN(FEATURES, 2, radial, cutoff, epsilon=2e-8, **options)
    offsets = AddOffsets("energy", add_mean=True, add_atomrefs=True)
    offsets._atomrefs_initialized = offsets._mean_initialized = True
    offsets.mean = torch.tensor([-7.25], dtype=torch.float64)
    offsets.atomref = torch.linspace(0, -4000, 100, dtype=torch.float64)
    made = spk.model.NeuralNetworkPotential(
        representation=representation,
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[spk.atomistic.Atomwise(n_in=FEATURES, output_key="energy"), spk.atomistic.Forces()],
        postprocessors=[CastTo64(), offsets],
    )
    for parameter in made.parameters():  # biases begin at zero: what is not read would not be missed
        parameter.data += 0.15 * torch.randn_like(parameter)
    return made


def structures() -> list:
    rng = np.random.default_rng(0)
    made = [molecule(name) for name in NAMES]
    for atoms in made:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    return made


def batch(length: float, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    scaled = structures()
    for atoms in scaled:
        atoms.positions /= length
    return AtomsConverter(neighbor_list=MatScipyNeighborList(cutoff=CUTOFF / length), dtype=dtype)(scaled)


def deployed(folder: Path, name: str) -> None:
    """As `spkdeploy` writes it: casts are left out, since TorchScript has none, and the mean is in float32."""
    model = torch.load(folder / name, weights_only=False)
    offsets = model.postprocessors[1]
    offsets.mean = offsets.mean.float()
    model.postprocessors = torch.nn.ModuleList([offsets])
    torch.jit.save(torch.jit.script(model), folder / "deployed.pt", _extra_files={"cutoff": b"4.0"})


class Data(pl.LightningDataModule):
    def loader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader([0], batch_size=None, collate_fn=self.collate)

    train_dataloader = val_dataloader = loader

    def collate(self, _: int) -> dict[str, torch.Tensor]:
        made = batch(1.0, torch.float32)
        return made | {"energy": torch.zeros(len(NAMES)), "forces": torch.zeros(len(made["_positions"]), 3)}


def lightning(folder: Path, name: str) -> None:
    model = torch.load(folder / name, weights_only=False)
    metrics = {"mae": torchmetrics.MeanAbsoluteError()}
    outputs = [spk.task.ModelOutput(key, torch.nn.MSELoss(), 1.0, metrics) for key in ("energy", "forces")]
    task = spk.task.AtomisticTask(model, outputs, torch.optim.AdamW, {"lr": 1e-3})
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, inference_mode=False, enable_progress_bar=False,
        enable_checkpointing=False, default_root_dir=folder, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=Data())
    trainer.save_checkpoint(folder / "last.ckpt", weights_only=True)
    torch.save(task.model, folder / "best_inference_model")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for kind in ("gaussian", "bessel", "shared", "schnet", "so3net"):
        torch.save(build(kind), folder / f"{kind}.best_model")
    deployed(folder, "gaussian.best_model")
    lightning(folder, "gaussian.best_model")
    found = {}
    for name in ("gaussian.best_model", "bessel.best_model", "shared.best_model", "best_inference_model"):
        energy, length = UNITS.get(name.split(".")[0], UNITS["gaussian"])
        model = torch.load(folder / name, weights_only=False).double().eval()
        results = model(batch(length, torch.float64))
        found[f"{name}/energies"] = results["energy"].detach().numpy() * energy
        found[f"{name}/forces"] = results["forces"].detach().numpy() * energy / length
    found["positions"] = np.concatenate([atoms.positions for atoms in structures()])
    found["numbers"] = np.concatenate([atoms.numbers for atoms in structures()])
    found["sizes"] = np.array([len(atoms) for atoms in structures()])
    np.savez(folder / "reference.npz", **found)


if __name__ == "__main__":
    main()
