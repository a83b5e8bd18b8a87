"""Trains DTU's PaiNN-model and cPaiNN for no step with seeded weights, and keeps what they save and what they compute.

    python make.py SOURCES

SOURCES holds checkouts named PaiNN-model and cPaiNN; asap3 and toml have to be importable. Their code counts in float32
(`torch.float`, `Tensor.float()`): while figures are made, both names mean float64.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import write
from structures import arrays, labelled, numerical_stress, seed_weights, structures

HERE = Path(__file__).parent
CUTOFF, FEATURES = 4.5, 8


@contextmanager
def in_double() -> Iterator[None]:
    """What their code calls float is float64."""
    single, method = torch.float, torch.Tensor.float
    torch.float, torch.Tensor.float = torch.float64, torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float, torch.Tensor.float = single, method
        torch.set_default_dtype(torch.float32)


def trained(train: Any, arguments: list[str], seed: int) -> None:
    """Run its training as its command line does, of a model with seeded weights."""
    model_class = train.PainnModel

    def made(*args: Any, **kwargs: Any) -> torch.nn.Module:
        model = model_class(*args, **kwargs)
        seed_weights(model, seed)
        return model

    train.PainnModel = made
    sys.argv = ["train.py", *arguments]
    with suppress(SystemExit):
        train.main()


def figures(model: torch.nn.Module, reader: Any, atoms: Atoms) -> dict[str, Any]:
    with in_double():
        return {key: value.detach().numpy() for key, value in model(reader(atoms)).items()}


def forget(*names: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]


def make_dtu(sources: Path, scratch: Path) -> None:
    sys.path[:0] = [str(sources / "PaiNN-model/PaiNN"), str(sources / "PaiNN-model/scripts")]
    train = import_module("train")
    dataset = labelled(structures(boxed=True))
    from ase.io import Trajectory

    with Trajectory(str(scratch / "set.traj"), "w") as written:
        for atoms in dataset:
            written.write(atoms)
    out = scratch / "dtu"
    options = {"dataset": scratch / "set.traj", "output_dir": out, "device": "cpu", "cutoff": CUTOFF, "max_steps": 1}
    options |= {"node_size": FEATURES, "num_interactions": 3, "initial_lr": 0.0, "batch_size": 4}
    trained(train, [f"--{key}={value}" for key, value in options.items()], seed=11)
    saved = torch.load(out / "best_model.pth", weights_only=False)
    with in_double():
        model = import_module("model").PainnModel(3, FEATURES, CUTOFF)
        model.load_state_dict(saved["model"])
        model.double()
        reader = import_module("data").AseDataReader(CUTOFF)
    found = labelled(structures(boxed=True))  # its reader wants labels of structures that it predicts, too
    computed = [figures(model, reader, atoms) for atoms in found]
    energies, forces = [one["energy"][0] for one in computed], [one["forces"] for one in computed]
    shutil.copy(out / "best_model.pth", HERE / "best_model.pth")
    said = json.loads((out / "arguments.json").read_text())
    said |= {"dataset": "set.traj", "output_dir": "runs/model_output"}  # folders of the machine that made it
    (HERE / "arguments.json").write_text(json.dumps(said))
    np.savez_compressed(HERE / "figures.npz", **arrays(found, energies, forces))
    forget("train", "model", "data")
    del sys.path[:2]


def make_cpainn(sources: Path, scratch: Path) -> None:
    sys.path[:0] = [str(sources / "cPaiNN")]
    os.environ.setdefault("CONDA_DEFAULT_ENV", "none")
    train = import_module("train")
    train.__dict__["print"] = lambda *_: None
    write(scratch / "set.xyz", labelled([atoms for atoms in structures() if atoms.pbc.any()]))
    out = scratch / "cpainn"
    config = scratch / "config.toml"
    config.write_text(
        f"cutoff = {CUTOFF}\nval_ratio = 0.2\nnode_size = {FEATURES}\nnum_interactions = 2\noutput_dir = '{out}'\n"
        f"dataset = '{scratch / 'set.xyz'}'\nmax_steps = 1\nbatch_size = 4\ninitial_lr = 0.0\nforces_weight = 0.98\n"
        "charge_weight = 0.1\nstress_weight = 1000\nlog_interval = 2000\nplateau_scheduler = true\n"
        "normalization = true\natomwise_normalization = true\nstop_patience = 1000\nrandom_seed = 0\n"
        "compute_forces = true\ncompute_stress = true\ncompute_magmom = true\ncompute_bader_charge = true\n"
    )
    trained(train, ["--cfg", str(config)], seed=12)
    saved = torch.load(out / "best_model.pth", weights_only=False)
    names = ("compute_forces", "compute_stress", "compute_magmom", "compute_bader_charge")
    with in_double():  # as its relax.py opens a checkpoint
        make = import_module("cPaiNN.model").PainnModel
        model = make(saved["num_layer"], saved["node_size"], saved["cutoff"], **{name: saved[name] for name in names})
        model.load_state_dict(saved["model"])
        model.double()
        reader = import_module("cPaiNN.data").AseDataReader(saved["cutoff"])
    found = structures()
    model.compute_stress = False
    computed = [figures(model, reader, atoms) for atoms in found]
    energies, forces = [one["energy"][0] for one in computed], [one["forces"] for one in computed]

    def energy(atoms: Atoms) -> float:
        return float(figures(model, reader, atoms)["energy"][0])

    periodic = [atoms.pbc.all() for atoms in found]
    derived = [numerical_stress(energy, a) if p else [np.nan] * 6 for a, p in zip(found, periodic, strict=True)]
    model.compute_stress = True
    given = [
        figures(model, reader, a)["stress"][0] if p else np.full((3, 3), np.nan)
        for a, p in zip(found, periodic, strict=True)
    ]
    folder = HERE.parent / "cpainn"
    shutil.copy(out / "best_model.pth", folder / "best_model.pth")
    np.savez_compressed(
        folder / "figures.npz", **arrays(found, energies, forces, stresses=given, numerical_stresses=derived)
    )


if __name__ == "__main__":
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # there is no card to pin for
    sources = Path(sys.argv[1])  # their training reads the command line, too
    with tempfile.TemporaryDirectory() as scratch:
        make_dtu(sources, Path(scratch))
        make_cpainn(sources, Path(scratch))
