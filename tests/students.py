"""Small random students, and structures to try them on."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from ase import Atoms
from ase.build import bulk, graphene, molecule
from safetensors.torch import save_file

CONFIGURATION: dict[str, Any] = {"hidden_dim": 16, "num_interactions": 2, "num_rbf": 8, "cutoff": 4.0}


def write(folder: Path, kind: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write weights under the names of the training code, and the configuration beside them."""
    architecture = kind.split("-")[0]
    configuration = {"architecture": architecture, **CONFIGURATION, **changes}
    weights = {"painn": schnetpack_weights, "distiller": distiller_weights}[architecture](configuration, seed)
    if kind == "painn-bessel":
        rbf, cutoff = configuration["num_rbf"], configuration["cutoff"]
        del weights["representation.radial_basis.widths"], weights["representation.radial_basis.offsets"]
        weights["representation.radial_basis.freqs"] = torch.arange(1, rbf + 1) * torch.pi / cutoff
    configuration.pop("embeddings", None)  # the weights tell
    path = folder / f"{kind}.safetensors"
    save_file(weights, path)
    path.with_suffix(".json").write_text(json.dumps(configuration))
    return path


VARIANTS: dict[str, dict[str, Any]] = {
    "shifted softplus": {"activation": "shifted_softplus"},
    "mollifier": {"cutoff_fn": "mollifier"},
    "switch": {"cutoff_fn": "switch", "switch_on": 2.0},
    "polynomial": {"cutoff_fn": "polynomial", "cutoff_power": 6},
    "no epsilon": {"epsilon": 0.0},
    "a basis an interaction": {"bases": True},
    "a basis an interaction, and shared filters": {"bases": True, "shared_filters": True, "num_interactions": 3},
    "vectors mixed with a bias": {"mixing_bias": True},
    "scaled energies": {"scales": True},
    "repulsion": {"repulsion": "none"},
    "repulsion that ends early": {"repulsion": "switch", "repulsion_cutoff": 2.5},
    "one interaction": {"num_interactions": 1},
    "all at once": {
        "activation": "shifted_softplus",
        "cutoff_fn": "polynomial",
        "cutoff_power": 5,
        "epsilon": 3e-15,
        "bases": True,
        "mixing_bias": True,
        "scales": True,
        "repulsion": "mollifier",
        "repulsion_cutoff": 3.0,
    },
}
"""How a PaiNN may differ from the usual one: keys of a configuration, and of `write_variant`."""


PECULIAR = ("bases", "shared_filters", "mixing_bias", "scales", "repulsion_cutoff")
"""Of `VARIANTS`, what no configuration says."""


def write_variant(folder: Path, name: str, *, seed: int = 0) -> Path:
    """Write a student that differs as `VARIANTS` says; each term of it is large enough to be missed."""
    said = dict(VARIANTS[name])
    wanted = {key: said.pop(key, None) for key in PECULIAR}
    configuration = {"architecture": "painn", **CONFIGURATION, **said}
    weights = schnetpack_weights(configuration, seed)
    g, layers = torch.Generator().manual_seed(seed + 1), configuration["num_interactions"]
    if wanted["bases"]:
        for key in ("offsets", "widths"):
            shared = weights.pop(f"representation.radial_basis.{key}")
            for layer in range(layers):
                moved = shared * (1 + 0.1 * torch.rand(len(shared), generator=g))
                weights[f"representation.radial_basis.{layer}.{key}"] = moved
    if wanted["shared_filters"]:
        for key in ("weight", "bias"):
            name_of = f"representation.filter_net.{key}"
            weights[name_of] = weights[name_of][: 3 * configuration["hidden_dim"]].clone()
    if wanted["mixing_bias"]:
        for layer in range(layers):
            bias = 0.5 * torch.randn(2 * configuration["hidden_dim"], generator=g)
            weights[f"representation.mixing.{layer}.mu_channel_mix.bias"] = bias
    if wanted["scales"]:
        weights["energy_scales"] = 0.5 + torch.rand(20, generator=g)
    if "repulsion" in said:
        numbers = {"a_power": 0.23, "a_scale": 2.13, "strength": 14.4}
        if wanted["repulsion_cutoff"]:
            numbers["cutoff"] = wanted["repulsion_cutoff"]
        if said["repulsion"] == "switch":
            numbers["switch_on"] = 0.5
        weights |= {f"repulsion.{key}": torch.tensor([value]) for key, value in numbers.items()}
        weights["repulsion.coefficients"] = torch.tensor([0.18, 0.51, 0.28, 0.03])
        weights["repulsion.exponents"] = torch.tensor([3.2, 0.94, 0.4, 0.2])
    path = folder / f"{name.replace(' ', '_')}.safetensors"
    save_file(weights, path)
    path.with_suffix(".json").write_text(json.dumps(configuration))
    return path


def _layers(generator: torch.Generator, prefix: str, sizes: list[int], step: int = 1) -> dict[str, torch.Tensor]:
    weights = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weights[f"{prefix}.{step * i}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        weights[f"{prefix}.{step * i}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return weights


def schnetpack_weights(configuration: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    g, f, rbf = torch.Generator().manual_seed(seed), configuration["hidden_dim"], configuration["num_rbf"]
    layers = configuration["num_interactions"]
    cutoff = configuration["cutoff"]
    weights = {
        "representation.embedding.weight": torch.randn(configuration.get("embeddings", 20), f, generator=g),
        "representation.cutoff_fn.cutoff": torch.tensor([cutoff]),
        "representation.radial_basis.offsets": torch.linspace(0, cutoff, rbf),
        "representation.radial_basis.widths": torch.full((rbf,), cutoff / (rbf - 1)),
        "representation.filter_net.weight": torch.randn(3 * f * layers, rbf, generator=g) / rbf**0.5,
        "representation.filter_net.bias": 0.1 * torch.randn(3 * f * layers, generator=g),
    }
    for i in range(layers):
        weights |= _layers(g, f"representation.interactions.{i}.interatomic_context_net", [f, f, 3 * f])
        weights |= _layers(g, f"representation.mixing.{i}.intraatomic_context_net", [2 * f, f, 3 * f])
        weights[f"representation.mixing.{i}.mu_channel_mix.weight"] = torch.randn(2 * f, f, generator=g) / f**0.5
    return weights | _layers(g, "output_modules.0.outnet", [f, f // 2, 1])


def distiller_weights(configuration: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    g, f, rbf = torch.Generator().manual_seed(seed), configuration["hidden_dim"], configuration["num_rbf"]
    weights = {
        "embedding.weight": torch.randn(configuration.get("embeddings", 20), f, generator=g),
        "rbf.centers": torch.linspace(0, configuration["cutoff"], rbf),
        "rbf.widths": torch.full((rbf,), configuration["cutoff"] / rbf),
    }
    for i in range(configuration["num_interactions"]):
        weights |= _layers(g, f"interactions.{i}.message.rbf_to_scalar", [rbf, f, 3 * f], 2)
        weights |= _layers(g, f"interactions.{i}.update.update_mlp", [2 * f, f, 3 * f], 2)
        weights[f"interactions.{i}.update.mixing_matrix"] = torch.eye(3) + 0.3 * torch.randn(3, 3, generator=g)
    return weights | _layers(g, "energy_head", [f, f // 2, f // 4, 1], 2)


def without_weights(model: bytes) -> bytes:
    """A graph as bundles held it before format 3: every weight is 1, and no input says so."""
    graph = onnx.load_from_string(model)
    (weights,) = (value for value in graph.graph.input if value.name == "weights")
    graph.graph.input.remove(weights)
    lowest = onnx.numpy_helper.from_array(np.array(-1, np.int32), "lowest")
    graph.graph.initializer.append(lowest)
    kind = weights.type.tensor_type.elem_type
    graph.graph.node.insert(0, onnx.helper.make_node("Cast", ["are_atoms"], ["weights"], "ones", to=kind))
    graph.graph.node.insert(0, onnx.helper.make_node("Greater", ["atomic_numbers", "lowest"], ["are_atoms"], "atoms"))
    return graph.SerializeToString()


def perturbed(atoms: Atoms, seed: int = 0, sigma: float = 0.1) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0, sigma, atoms.positions.shape)
    return atoms


def water(seed: int = 0) -> Atoms:
    return perturbed(molecule("H2O"), seed)


def zoo() -> dict[str, Atoms]:
    """Structures that show what goes wrong: alone, apart, small and odd cells, outside the cell, mixed directions."""
    skewed = bulk("C", "diamond", a=3.57)
    skewed.set_cell(skewed.cell.array + np.array([[0, 0, 0], [0.4, 0, 0], [0.2, -0.5, 0.1]]), scale_atoms=True)
    outside = perturbed(bulk("Na", "bcc", a=4.2, cubic=True), 4)
    outside.positions += [[25.0, -13.0, 7.0], [-40.0, 3.0, 0.5]]
    wire = Atoms("CO", [[0, 0, 0], [0.3, 0.2, 1.2]], cell=[0, 0, 2.9], pbc=[False, False, True])
    return {
        "single atom": Atoms("O"),
        "far apart": Atoms("OC", [[0, 0, 0], [0, 0, 30.0]]),
        "water": water(),
        "ethanol": perturbed(molecule("CH3CH2OH"), 1),
        "benzene": perturbed(molecule("C6H6"), 2),
        "one atom in a cell shorter than the cutoff": bulk("Al", a=4.05),
        "triclinic": perturbed(skewed, 3),
        "outside the cell": outside,
        "slab": perturbed(graphene(a=2.46, vacuum=5.0), 5),
        "slab without a third vector": perturbed(graphene(a=2.46, size=(2, 2, 1), vacuum=None), 6),
        "wire": wire,
        "molecule in a box": Atoms(molecule("NH3"), cell=[9, 9, 9], pbc=True),
    }
