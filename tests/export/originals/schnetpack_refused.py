"""What SchNetPack can do, or its users do to its models, that cannot be deployed; see schnetpack_peer.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import schnetpack as spk
import torch
from schnetpack.atomistic import Aggregation, Atomwise, DipoleMoment
from schnetpack.nn import CosineCutoff
from schnetpack.nn.activations import ShiftedSoftplus, shifted_softplus
from schnetpack.transform import CastTo64, RemoveOffsets
from schnetpack_variants import (
    CUTOFF,
    ELEMENTS,
    FEATURES,
    FUNCTIONS,
    Build,
    all_scaled,
    offsets,
    painn,
    potential,
    readout,
    references,
    repelled,
    scale,
    switch,
    zbl,
)
from torch import nn


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
