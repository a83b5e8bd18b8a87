"""Trains curator's PaiNN for one epoch of no step with seeded weights, and keeps what it saves and what it computes.

    python make.py SOURCES default|species|gaussian

SOURCES holds a checkout named curator; asap3, hydra, e3nn, omegaconf, pytorch_lightning, torchmetrics, torch_ema and
toml have to be importable. curator's package imports all that it could need; its folder alone is put in its place. One
model a process, since instances of its GlobalRescaleShift share their list of scale_keys.
"""

import logging
import lzma
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from ase import Atoms

HERE = Path(__file__).absolute().parent
sys.path.append(str(HERE.parent / "dtu"))
from structures import arrays, labelled, numerical_stress, seed_weights, structures  # noqa: E402

FEATURES = 8
COMMON = ("device=cpu", "trainer.accelerator=cpu", "trainer.max_epochs=1", "++trainer.enable_progress_bar=false")
COMMON += ("trainer.num_sanity_val_steps=0", "trainer.enable_model_summary=false", "trainer.logger=false")
COMMON += (f"model.representation.num_features={FEATURES}", "task.optimizer.lr=0.0", "data.batch_size=4")
COMMON += ("~trainer.callbacks", "deploy_model=false", "data.pin_memory=false", "data.num_val=0.3")
MODELS: dict[str, tuple[str, ...]] = {
    "default": ("model.representation.num_interactions=2", "data.cutoff=4.5"),
    "species": (
        "model.representation.num_interactions=1",
        "data.cutoff=4.0",
        "~model.representation.radial_basis",
        "+model.representation.radial_basis={_target_:curator.layer.BesselBasis,cutoff:4.0,num_basis:7,trainable:true}",
        "model.representation.num_basis=7",
        "++model.representation.cutoff_fn={_target_:curator.layer.PolynomialCutoff,cutoff:4.0,power:5}",
        "model.output_modules=[{_target_:curator.layer.PerSpeciesRescaleShift,"
        "scales:{H:0.7,C:1.3,O:1.9,Cu:0.8,Fe:1.4},shifts:{H:-0.5,C:-2.0,Pt:-3.0}},"
        "{_target_:curator.layer.AtomwiseReduce},{_target_:curator.layer.GradientOutput}]",
        "task.save_entire_model=false",
    ),
    "gaussian": (
        "model.representation.num_interactions=1",
        "data.cutoff=4.2",
        "model.representation.num_basis=9",
        "~model.representation.radial_basis",
        "+model.representation.radial_basis={_target_:curator.layer.GaussianBasis,cutoff:4.2,n_rbf:9,trainable:true}",
        "model.output_modules=[{_target_:curator.layer.AtomwiseReduce},"
        "{_target_:curator.layer.GlobalRescaleShift,scale_by:1.7,shift_by:-0.3,atomic_energies:{H:-1.0,Na:-2.5}},"
        "{_target_:curator.layer.GradientOutput,model_outputs:[forces,stress,virial]}]",
    ),
}


def curator(sources: Path) -> None:
    package = ModuleType("curator")
    package.__path__ = [str(sources / "curator/curator")]
    sys.modules["curator"] = package


def train(sources: Path, overrides: tuple[str, ...], seed: int) -> dict[str, Any]:
    """What `curator-train` does with a configuration, of a model with seeded weights; the checkpoint."""
    from curator.utils import register_resolvers
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from pytorch_lightning import seed_everything

    register_resolvers()
    with initialize_config_dir(str((sources / "curator/curator/configs").absolute()), version_base=None):
        config = compose("train", [*COMMON, *overrides, "data.datapath=set.traj", "run_path=."])
    seed_everything(config.seed, workers=True)
    datamodule = instantiate(config.data)
    datamodule.setup()
    model = instantiate(config.model)
    seed_weights(model, seed)
    basis = model.representation.message_layers[0].radial_basis
    with torch.no_grad():
        for parameter in basis.parameters():
            parameter.mul_(torch.linspace(0.97, 1.06, len(parameter)))  # as training moves them
    task = instantiate(config.task, model=model)
    task.save_configuration(config)
    from curator.train import ExponentialMovingAverage

    trainer = instantiate(config.trainer, callbacks=[ExponentialMovingAverage(decay=0.995)])
    trainer.fit(model=task, datamodule=datamodule)
    trainer.save_checkpoint("best.ckpt")
    return torch.load("best.ckpt", weights_only=False)


def computed(model: torch.nn.Module, cutoff: float) -> Callable[[Atoms], dict[str, Any]]:
    from curator.data import AseDataReader

    reader = AseDataReader(cutoff, compute_neighbor_list=False, default_dtype=torch.float64)
    outputs = model.model_outputs

    def of(atoms: Atoms) -> dict[str, Any]:
        without = () if atoms.pbc.any() else ("stress",)  # it asks for a molecule's, and fails
        model.model_outputs = [name for name in outputs if name not in without]
        return {key: value.detach().numpy() for key, value in model(reader(atoms)).items()}

    return of


def make(sources: Path, name: str, scratch: Path, seed: int) -> None:
    from ase.io import Trajectory

    folder = scratch / name
    folder.mkdir()
    os.chdir(folder)  # a checkpoint keeps the paths of its configuration
    with Trajectory("set.traj", "w") as written:
        for atoms in labelled([atoms for atoms in structures() if atoms.pbc.any()]):
            written.write(atoms)
    saved = train(sources, MODELS[name], seed)
    if "model" in saved:
        model = saved["model"]
    else:
        from hydra.utils import instantiate

        model = instantiate(saved["model_params"])
        model.load_state_dict({key.removeprefix("model."): value for key, value in saved["state_dict"].items()})
    model.eval()
    model.double()
    of = computed(model, model.representation.cutoff)
    found = structures()
    results = [of(atoms) for atoms in found]
    periodic = [bool(atoms.pbc.all()) for atoms in found]
    nothing = np.full(6, np.nan)
    derived = [
        numerical_stress(lambda a: float(of(a)["energy"][0]), atoms) if p else nothing
        for atoms, p in zip(found, periodic, strict=True)
    ]
    given = [one["stress"][0] if "stress" in one and p else nothing for one, p in zip(results, periodic, strict=True)]
    energies, forces = [one["energy"][0] for one in results], [one["forces"] for one in results]
    figures = arrays(found, energies, forces, stresses=given, numerical_stresses=derived)
    np.savez_compressed(HERE / f"{name}.npz", **figures)
    (HERE / f"{name}.ckpt.xz").write_bytes(lzma.compress(Path("best.ckpt").read_bytes(), preset=9))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    root, model_name = Path(sys.argv[1]).absolute(), sys.argv[2]
    curator(root)
    with tempfile.TemporaryDirectory() as scratch:
        make(root, model_name, Path(scratch), seed=21 + list(MODELS).index(model_name))
