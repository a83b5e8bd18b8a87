"""What SchNetPack can vary in a PaiNN, built with small, seeded weights; see schnetpack_peer.py."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import schnetpack as spk
import torch
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
from schnetpack.transform import AddOffsets, CastTo32, CastTo64, MatScipyNeighborList, ScaleProperty
from torch import nn

FEATURES, FUNCTIONS = 8, 6
REACH = 4.0  # Å
CUTOFF = REACH / units.Bohr
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
