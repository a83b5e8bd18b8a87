"""What SchNetPack can vary in a PaiNN, built and run in SchNetPack's own environment with small, seeded weights.

    python schnetpack_variants.py FOLDER

Writes a file for each of `VARIANTS` and of `REFUSED`, and FOLDER/peer.npz with energies (eV), forces (eV/Å) and, for
crystals, stresses (eV/Å³) of `structures` that SchNetPack computes in float64. All files are in kcal/mol and Bohr.
"""

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import schnetpack as spk
import torch
import torchmetrics
from ase import Atoms, units
from ase.build import bulk, graphene, molecule
from schnetpack.atomistic import (
    Aggregation,
    Atomwise,
    DipoleMoment,
    Forces,
    Polarizability,
    Response,
    ZBLRepulsionEnergy,
)
from schnetpack.interfaces import AtomsConverter
from schnetpack.nn import CosineCutoff, MollifierCutoff, SwitchFunction
from schnetpack.nn.activations import ShiftedSoftplus, shifted_softplus
from schnetpack.transform import AddOffsets, CastTo32, CastTo64, MatScipyNeighborList, RemoveOffsets, ScaleProperty
from torch import nn

FEATURES, FUNCTIONS = 8, 6
REACH = 4.0  # Å
CUTOFF = REACH / units.Bohr
KCAL = units.kcal / units.mol
ELEMENTS = 100


def structures() -> list[Atoms]:
    """Ten: molecules, pairs closer than any bond, crystals of one and two atoms, and a slab; all off their places."""
    sodium = bulk("Na", "bcc", a=3.9, cubic=True)
    skewed = bulk("C", "diamond", a=3.57)
    skewed.set_cell(skewed.cell.array + np.array([[0, 0, 0], [0.4, 0, 0], [0.2, -0.5, 0.1]]), scale_atoms=True)
    close = Atoms("CO", [[0, 0, 0], [0.1, 0.2, 0.5]])
    made = [molecule(name) for name in ("H2O", "CH3CH2OH", "NH3", "CO", "C6H6")]
    made += [close, Atoms("H2", [[0, 0, 0], [0.3, 0, 0.1]]), sodium, skewed, graphene(a=2.46, vacuum=5.0)]
    rng = np.random.default_rng(0)
    for atoms in made:
        atoms.positions += rng.normal(0, 0.07, atoms.positions.shape)
    return made


def batch(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    scaled = structures()
    for atoms in scaled:
        atoms.set_cell(atoms.cell / units.Bohr)
        atoms.positions /= units.Bohr
    return AtomsConverter(neighbor_list=MatScipyNeighborList(cutoff=CUTOFF), dtype=dtype)(scaled)


def switch(on: float = 0.4, off: float = 1.0, **attributes: Any) -> SwitchFunction:
    """SchNetPack's PaiNN reads an attribute that a switch lacks; users set it."""
    made = SwitchFunction(on * CUTOFF, off * CUTOFF)
    made.cutoff = attributes.get("cutoff", off * CUTOFF)
    return made


def painn(**changes: Any) -> spk.representation.PaiNN:
    """A PaiNN of two interactions, with whatever is given instead."""
    basis = changes.pop("basis", None) or spk.nn.GaussianRBF(FUNCTIONS, CUTOFF)
    function = changes.pop("function", None) or CosineCutoff(CUTOFF)
    return spk.representation.PaiNN(FEATURES, changes.pop("n", 2), basis, function, **{"epsilon": 2e-8, **changes})


def potential(
    representation: nn.Module | None = None,
    outputs: list[nn.Module] | None = None,
    steps: list[nn.Module] = (),
    *,
    key: str = "energy",
    forces: str | None = "energy",
    **changes: Any,
) -> spk.model.NeuralNetworkPotential:
    modules = list(outputs or [Atomwise(FEATURES, output_key=key)])
    if forces is not None:
        modules.append(Forces(calc_stress=True, energy_key=forces))
    inputs = changes.pop("inputs", [spk.atomistic.Strain(), spk.atomistic.PairwiseDistances()])
    made = spk.model.NeuralNetworkPotential(representation or painn(), inputs, modules, list(steps), **changes)
    for name, parameter in made.named_parameters():  # biases begin at zero: what is not read would not be missed
        size = 0.2 if name.startswith("representation") else 0.6 if "outnet" in name else 0.3
        parameter.data += size * torch.randn_like(parameter)
    return made


def zbl(function: nn.Module | None = None, key: str = "energy_zbl", **changes: Any) -> ZBLRepulsionEnergy:
    return ZBLRepulsionEnergy(changes.pop("unit", "kcal/mol"), "Bohr", key, cutoff_fn=function, **changes)


def repelled(function: nn.Module | None = None, **changes: Any) -> spk.model.NeuralNetworkPotential:
    """A PaiNN and a repulsion, added up."""
    outputs = [Atomwise(FEATURES, output_key="energy_nn"), zbl(function)]
    return potential(outputs=[*outputs, Aggregation(["energy_nn", "energy_zbl"], "energy")], **changes)


def references(elements: int = ELEMENTS) -> torch.Tensor:
    return torch.linspace(1.0, -200.0, elements, dtype=torch.float64).sin() * 30


def offsets(
    mean: float | None = None, table: torch.Tensor | None = None, *, key: str = "energy", extensive: bool = True
) -> AddOffsets:
    """With what a data module leaves: its statistics, float64 without a dimension, and its row of references."""
    made = AddOffsets(key, add_mean=mean is not None, add_atomrefs=table is not None, is_extensive=extensive)
    statistics = (torch.tensor(mean or 0.0, dtype=torch.float64), torch.tensor(2.0))
    data = SimpleNamespace(get_stats=lambda *_: statistics, train_dataset=SimpleNamespace(atomrefs={key: table}))
    made.datamodule(data)
    return made


def scale(read: str, factor: float = 2.5, written: str | None = None) -> ScaleProperty:
    made = ScaleProperty(read, output_key=written)
    made.scale = torch.tensor(factor, dtype=torch.float64)  # as a data module leaves it, without a dimension
    return made


def all_scaled(factor: float = 2.5) -> list[ScaleProperty]:
    return [scale(key, factor) for key in ("energy", "forces", "stress")]


def trained_gaussians(kind: type[nn.Module]) -> nn.Module:
    made = kind(FUNCTIONS, CUTOFF, trainable=True)
    made.widths.data[2] *= -1  # the sign of a width does nothing
    made.widths.data *= 1 + 0.3 * torch.rand(FUNCTIONS)
    made.offsets.data += 0.2 * torch.randn(FUNCTIONS)
    return made


def without_attribute() -> spk.model.NeuralNetworkPotential:
    made = potential(painn(function=switch(0.0, 0.9)))
    del made.representation.cutoff_fn.cutoff
    return made


def with_buffer() -> spk.model.NeuralNetworkPotential:
    function = SwitchFunction(0.2 * CUTOFF, 0.95 * CUTOFF)
    function.register_buffer("cutoff", torch.tensor([CUTOFF]))
    return potential(painn(function=function))


def soft(module: bool = False) -> spk.model.NeuralNetworkPotential:
    activation = ShiftedSoftplus() if module else shifted_softplus
    readout = Atomwise(FEATURES, output_key="energy", activation=activation)
    return potential(painn(activation=activation), [readout])


def readout(**changes: Any) -> spk.model.NeuralNetworkPotential:
    return potential(outputs=[Atomwise(FEATURES, output_key="energy", **changes)])


def several_outputs() -> spk.model.NeuralNetworkPotential:
    outputs = [
        Atomwise(FEATURES, output_key="gap", aggregation_mode="avg"),
        DipoleMoment(FEATURES, use_vector_representation=True),
        Atomwise(FEATURES, output_key="U0", n_layers=3),
        Polarizability(FEATURES),
    ]
    steps = [CastTo64(), offsets(-1.0, key="gap", extensive=False), scale("gap"), offsets(-2.0, key="U0")]
    return potential(outputs=outputs, forces="U0", steps=steps)


def charged() -> spk.model.NeuralNetworkPotential:
    """Electrostatics beside the energy, and not in it."""
    ewald = spk.atomistic.EnergyCoulomb(
        "kcal/mol", "Bohr", spk.atomistic.CoulombPotential(), "energy_q", use_neighbors_lr=False
    )
    dipole = DipoleMoment(FEATURES, return_charges=True)
    return potential(outputs=[dipole, ewald, Atomwise(FEATURES, output_key="energy")])


def nuclear() -> spk.model.NeuralNetworkPotential:
    table = spk.nn.embedding.NuclearEmbedding(101, FEATURES, zero_init=False)
    steps = [offsets(0.5, references(119))]  # of more elements than the embedding has rows
    return potential(painn(nuclear_embedding=table, basis=spk.nn.BesselRBF(FUNCTIONS, CUTOFF)), steps=steps)


def doubled() -> spk.model.NeuralNetworkPotential:
    """What is added up twice, and under a name that something else had."""
    outputs = [Atomwise(FEATURES, output_key="energy"), zbl(CosineCutoff(0.7 * CUTOFF))]
    return potential(outputs=[*outputs, Aggregation(["energy", "energy_zbl", "energy_zbl"], "energy")])


def unit_that_is_none() -> spk.model.NeuralNetworkPotential:
    outputs = [Atomwise(FEATURES, output_key="a"), zbl(CosineCutoff(0.5 * CUTOFF), unit="eV")]
    return potential(outputs=[*outputs, Aggregation(["a", "energy_zbl"], "energy")])


Build = Callable[[], spk.model.NeuralNetworkPotential]
VARIANTS: dict[str, Build] = {
    "plain": potential,
    "mollifier": lambda: potential(painn(function=MollifierCutoff(CUTOFF))),
    "switch": lambda: potential(painn(function=switch(cutoff=torch.tensor(CUTOFF)))),
    "switch without attribute": without_attribute,
    "switch with buffer": with_buffer,
    "trained gaussians": lambda: potential(painn(basis=trained_gaussians(spk.nn.GaussianRBF))),
    "late gaussians": lambda: potential(painn(basis=spk.nn.GaussianRBF(FUNCTIONS, CUTOFF, start=0.8))),
    "centred gaussians": lambda: potential(painn(basis=spk.nn.GaussianRBFCentered(FUNCTIONS, CUTOFF, start=0.5))),
    "trained centred gaussians": lambda: potential(painn(basis=trained_gaussians(spk.nn.GaussianRBFCentered))),
    "bessel": lambda: potential(painn(basis=spk.nn.BesselRBF(FUNCTIONS, CUTOFF), function=MollifierCutoff(CUTOFF))),
    "shared interactions": lambda: potential(painn(shared_interactions=True)),
    "shared filters": lambda: potential(painn(n=3, shared_filters=True)),
    "all shared": lambda: potential(painn(shared_filters=True, shared_interactions=True)),
    "one interaction": lambda: potential(painn(n=1)),
    "softplus": soft,
    "softplus module": lambda: soft(module=True),
    "silu module": lambda: potential(painn(activation=nn.SiLU())),
    "one layer": lambda: readout(n_layers=1),
    "four layers": lambda: readout(n_layers=4),
    "wide layers": lambda: readout(n_hidden=[11, 5], n_layers=3),
    "even layers": lambda: readout(n_hidden=7, n_layers=3, per_atom_output_key="energies"),
    "mean": lambda: potential(steps=[CastTo64(), offsets(-3.5)]),
    "references": lambda: potential(steps=[offsets(None, references())]),
    "several offsets": lambda: potential(steps=[offsets(-3.5, references()), CastTo64(), offsets(1.25), CastTo32()]),
    "nuclear embedding": nuclear,
    "short references": lambda: potential(steps=[offsets(-1.0, references(20))]),
    "no mean of structures": lambda: potential(steps=[offsets(0.0, extensive=False)]),
    "switched off": lambda: potential(steps=[offsets(-3.5), scale("energy")], do_postprocessing=False),
    "scaled": lambda: potential(steps=[offsets(-3.5), *all_scaled(), offsets(1.0, references())]),
    "scaled by one": lambda: potential(steps=[scale("energy", 1.0)]),
    "scaled to another name": lambda: potential(
        steps=[scale(k, 3.0, f"{k}_3") for k in ("energy", "forces", "stress")]
    ),
    "several outputs": several_outputs,
    "charges": charged,
    "repulsion": repelled,
    "repulsion, cosine": lambda: repelled(CosineCutoff(0.6 * CUTOFF)),
    "repulsion, mollifier": lambda: repelled(MollifierCutoff(CUTOFF), representation=painn(function=switch())),
    "repulsion, switch": lambda: repelled(
        switch(0.2, 0.8), representation=painn(function=MollifierCutoff(CUTOFF)), steps=all_scaled(0.5)
    ),
    "repulsion twice": doubled,
    "unfaded beside a switch": lambda: repelled(representation=painn(function=switch())),
    "repulsion in another unit": unit_that_is_none,
    "response": lambda: potential(
        outputs=[Atomwise(FEATURES, output_key="energy"), Response("energy", ["forces", "stress"])], forces=None
    ),
}
SCRIPTED = ("mollifier", "softplus", "silu module", "switch with buffer", "repulsion", "repulsion, switch", "scaled")
"""Saved as TorchScript, too."""

TASKS = ("softplus module", "repulsion, mollifier", "mean", "several outputs", "unfaded beside a switch")
"""Saved as a task, too; and as a checkpoint of Lightning, with its hyperparameters and without."""


def changed(change: Callable[[Any], Any], build: Build = potential) -> Build:
    def make() -> spk.model.NeuralNetworkPotential:
        made = build()
        change(made)
        return made

    return make


def hooked(module: nn.Module) -> None:
    module.register_forward_hook(torch.nn.functional.silu)


def doubles(
    self: Any, given: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A hook that TorchScript can write."""
    return 2 * found[0], found[1]


def electronic() -> spk.model.NeuralNetworkPotential:
    charge = spk.nn.embedding.ElectronicEmbedding("total_charge", FEATURES, is_charged=True)
    return potential(painn(electronic_embeddings=[charge]))


def in_field() -> spk.model.NeuralNetworkPotential:
    inputs = [spk.atomistic.PairwiseDistances(), spk.atomistic.StaticExternalFields()]
    return potential(inputs=inputs)


def summed(*modules: nn.Module, keys: tuple[str, ...]) -> spk.model.NeuralNetworkPotential:
    outputs = [Atomwise(FEATURES, output_key="a"), *modules, Aggregation(["a", *keys], "energy")]
    return potential(outputs=outputs)


def coulomb() -> nn.Module:
    return spk.atomistic.EnergyCoulomb("kcal/mol", "Bohr", spk.atomistic.CoulombPotential(), "q")


def removed() -> RemoveOffsets:
    return RemoveOffsets("energy", remove_mean=True)


def part_of_forces() -> spk.model.NeuralNetworkPotential:
    outputs = [Atomwise(FEATURES, output_key="a"), zbl(), Aggregation(["a", "energy_zbl"], "energy")]
    return potential(outputs=outputs, forces="a")


def first(model: Any) -> Any:
    return model.output_modules[0]


REFUSED: dict[str, Build] = {
    "activation": lambda: potential(painn(activation=torch.nn.functional.softplus)),
    "module as activation": lambda: potential(painn(activation=nn.Tanh())),
    "shape of softplus": lambda: potential(painn(activation=ShiftedSoftplus(1.0, 2.0))),
    "two activations": lambda: potential(painn(activation=shifted_softplus)),
    "activation at the end": changed(lambda m: setattr(first(m).outnet[1], "activation", nn.SiLU())),
    "switch off before on": lambda: potential(painn(function=switch(1.0, 0.5))),
    "attribute below switch": lambda: potential(painn(function=switch(cutoff=0.5 * CUTOFF))),
    "attribute of numpy": lambda: potential(painn(function=switch(cutoff=np.float64(CUTOFF)))),
    "representation": lambda: potential(
        spk.representation.SchNet(FEATURES, 1, spk.nn.GaussianRBF(FUNCTIONS, CUTOFF), CosineCutoff(CUTOFF))
    ),
    "electrons": electronic,
    "field": in_field,
    "filter of short range": lambda: potential(
        inputs=[spk.atomistic.PairwiseDistances(), spk.atomistic.FilterShortRange(CUTOFF)]
    ),
    "epsilon": changed(lambda m: setattr(m.representation.mixing[0], "epsilon", 1e-3)),
    "hook": changed(lambda m: hooked(m.representation.mixing[0])),
    "hook of the model": changed(hooked),
    "backward hook": changed(
        lambda m: m.representation.radial_basis.register_full_backward_hook(torch.nn.functional.silu)
    ),
    "another forward": changed(lambda m: setattr(m.representation.cutoff_fn, "forward", torch.nn.functional.silu)),
    "hook of a postprocessor": changed(
        lambda m: hooked(m.postprocessors[0]), lambda: potential(steps=[CastTo64()])
    ),
    "average": lambda: readout(aggregation_mode="avg"),
    "no aggregation": lambda: readout(aggregation_mode=None, per_atom_output_key="e"),
    "two numbers": lambda: potential(outputs=[Atomwise(FEATURES, n_out=2, output_key="energy")], forces=None),
    "another key": lambda: potential(key="U0", forces="U0"),
    "key of a dipole": lambda: potential(outputs=[DipoleMoment(FEATURES, dipole_key="energy")], forces=None),
    "charges": lambda: summed(DipoleMoment(FEATURES, return_charges=True), coulomb(), keys=("q",)),
    "two read-outs": lambda: summed(Atomwise(FEATURES, output_key="b"), keys=("b",)),
    "repulsion alone": lambda: potential(outputs=[zbl(key="energy")]),
    "what is added is no output": lambda: summed(keys=("_n_atoms",)),
    "one name twice": lambda: potential(outputs=[Atomwise(FEATURES, output_key="energy"), zbl(key="energy")]),
    "repulsion beyond": lambda: repelled(CosineCutoff(1.2 * CUTOFF)),
    "unfaded repulsion beyond": lambda: repelled(representation=painn(function=switch(0.3, 0.9, cutoff=CUTOFF))),
    "forces of a part": part_of_forces,
    "scaled energy": lambda: potential(steps=[scale("energy")]),
    "scaled forces": lambda: potential(steps=[scale("forces")]),
    "scaled energy and forces": lambda: potential(
        steps=[scale("energy", 2.0), scale("forces", 3.0), scale("stress", 2.0)]
    ),
    "forces scaled by axes": changed(
        lambda m: setattr(m.postprocessors[0], "scale", torch.tensor([1.0, 1.0, 2.0])),
        lambda: potential(steps=[scale("forces")]),
    ),
    "scaled by nothing": lambda: potential(steps=all_scaled(0.0)),
    "mean of structures": lambda: potential(steps=[offsets(-1.0, extensive=False)]),
    "references of structures": lambda: potential(steps=[offsets(None, references(), extensive=False)]),
    "mean of two numbers": changed(
        lambda m: setattr(m.postprocessors[0], "mean", torch.ones(2)), lambda: potential(steps=[offsets(1.0)])
    ),
    "references in a table": changed(
        lambda m: setattr(m.postprocessors[0], "atomref", torch.ones(ELEMENTS, 1)),
        lambda: potential(steps=[offsets(None, references())]),
    ),
    "offsets that are removed": lambda: potential(steps=[removed()]),
    "integers": lambda: potential(steps=[spk.transform.CastMap({"float32": "int64"})]),
}  # fmt: skip


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
