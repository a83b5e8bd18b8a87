"""Checkpoints of DTU's PaiNN-model, and of cPaiNN, which grew from it: one layout, and one set of equations.

Both are dicts with a state dict under `model`. PaiNN-model's first version keeps no cutoff in it, and its sine basis is
no tensor either: the arguments of the training, beside the file, say it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.declaration import ENERGY_KEY, Declaration
from painn_deploy.export.errors import CheckpointError, DeclarationError
from painn_deploy.export.model.weights import check_names
from painn_deploy.export.readers.archive import Archive, is_tensor, kind_of
from painn_deploy.export.readers.blocks import Block, Linear, Order, canonical, in_our_terms
from painn_deploy.export.readers.dtu_arguments import read_cutoff
from painn_deploy.export.readers.reader import Opened, Potential, Reader, named_by_model

__all__ = ["DTU", "in_ase_units", "painn_tensors", "sine"]

ORDER = Order(("vector", "direction", "scalar"), ("vector", "product", "scalar"), norms_first=True)
FUNCTIONS = 20
"""Of the radial basis, written into their code."""

EMBEDDING = "atom_embedding.weight"
FLAGS, NUMBERS = ("normalization", "atomwise_normalization"), ("normalize_stddev", "normalize_mean")
HEADS = {"linear_magmom": "magnetic moments", "linear_bader_charge": "charges", "linear": "magnetic moments or charges"}
"""Of cPaiNN: they read an inner layer, and nothing reads them."""

WRAPPED = ("model", "state_dict", "model_state_dict")
"""Where a checkpoint has its state dict; `model` is DTU's own."""


def sine(count: int, cutoff: float) -> dict[str, Tensor]:
    """The basis sin(n π d / cutoff) / d of n = 1 ... count, as frequencies in float64.

    Args:
        count: of its functions.
        cutoff: where all of them vanish, in the model's unit of length.
    """
    return {"freqs": torch.arange(1, count + 1, dtype=torch.float64) * math.pi / cutoff}


def painn_tensors(state: Mapping[str, Tensor], bases: Sequence[Mapping[str, Tensor]], source: str) -> dict[str, Tensor]:
    """Tensors of a PaiNN that DTU's codes define, under SchNetPack's names and in the units that they came in.

    Args:
        state: all of its tensors but those of radial bases, under their names.
        bases: the radial basis of each interaction.
        source: the file, for messages.

    Raises:
        CheckpointError: tensors are missing or left over, or have other shapes than such a PaiNN's.
    """
    embedding = state.get(EMBEDDING, torch.empty(0))
    rows, features = embedding.shape if embedding.dim() == 2 else (0, 0)
    wanted = {EMBEDDING: (rows, features)} | _linear("readout_mlp.0", features, features)
    wanted |= _linear("readout_mlp.2", features, 1)
    for i, basis in enumerate(bases):
        message, update = f"message_layers.{i}", f"update_layers.{i}"
        wanted |= _linear(f"{message}.filter_layer", len(next(iter(basis.values()))), 3 * features)
        wanted |= _linear(f"{message}.scalar_message_mlp.0", features, features)
        wanted |= _linear(f"{message}.scalar_message_mlp.2", features, 3 * features)
        wanted |= _linear(f"{update}.update_U", features, features) | _linear(f"{update}.update_V", features, features)
        wanted |= _linear(f"{update}.update_mlp.0", 2 * features, features)
        wanted |= _linear(f"{update}.update_mlp.2", features, 3 * features)
    check_names(wanted, state, f"its code's PaiNN with {len(bases)} interactions", source)
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise CheckpointError(
                f"{source}: {name} has the shape {tuple(state[name].shape)}, and a PaiNN of {features} features with "
                f"its radial basis {shape}."
            )

    def linear(name: str) -> Linear:
        return Linear(state[f"{name}.weight"], state[f"{name}.bias"])

    blocks = []
    for i, basis in enumerate(bases):
        message, update = f"message_layers.{i}", f"update_layers.{i}"
        blocks.append(
            Block(
                message=[linear(f"{message}.scalar_message_mlp.{layer}") for layer in (0, 2)],
                filters=linear(f"{message}.filter_layer"),
                basis=basis,
                multiplied=linear(f"{update}.update_U"),
                measured=linear(f"{update}.update_V"),
                update=[linear(f"{update}.update_mlp.{layer}") for layer in (0, 2)],
            )
        )
    return canonical(blocks, ORDER, state[EMBEDDING], [linear(f"readout_mlp.{i}") for i in (0, 2)], source)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def in_ase_units(declared: Declaration, source: str) -> tuple[float, float, tuple[str, ...]]:
    """The units of a model that was trained on ASE's structures, in eV and Å, and a remark on them.

    ASE is in eV and Å, and DTU's codes convert nothing; an owner who kept other units in its files can say so.

    Args:
        declared: what its owner says.
        source: the file, for messages.

    Raises:
        DeclarationError: it names an energy that there is not.
    """
    if declared.energy_key not in (None, ENERGY_KEY):
        raise DeclarationError(
            f"{source}: its code gives one energy, {ENERGY_KEY!r}, and --energy-key says {declared.energy_key!r}. "
            "Leave it out."
        )
    energy, length = Declaration(declared.energy_unit or "eV", declared.length_unit or "Ang").scales(source)
    if declared.energy_unit is not None and declared.length_unit is not None:
        return energy, length, ()
    remark = "Its code trains on ASE's structures and converts nothing, so what was not declared is taken as ASE's: "
    return energy, length, (f"{remark}energies in eV, lengths in Å.",)


def _claims(opened: Opened) -> bool:
    return _state(opened.tree) is not None


def _state(tree: Any) -> Mapping[str, Any] | None:
    """The state dict, where a file holds one of this layout."""
    held = next((tree[key] for key in WRAPPED if key in tree), tree) if isinstance(tree, Mapping) else None
    state = named_by_model(held) if isinstance(held, Mapping) else {}
    ours = any(isinstance(name, str) and name.startswith("message_layers.0.scalar_message_mlp.") for name in state)
    return state if ours else None


def _read(opened: Opened, declared: Declaration) -> Potential:
    source, things = str(opened.path), _state(opened.tree)
    if things is None:
        raise CheckpointError(f"{source} holds no state dict of DTU's PaiNN-model or cPaiNN.")
    energy, length, remarks = in_ase_units(declared, source)
    heads = sorted(name for name in things if isinstance(name, str) and name.rpartition(".")[0] in HEADS)
    if heads:
        left = sorted({HEADS[name.rpartition(".")[0]] for name in heads})
        remarks += (f"It also predicts {' and '.join(left)}, from which no energy follows; they are left out.",)
    apart = {*FLAGS, *NUMBERS, *heads}
    if odd := [name for name, thing in things.items() if name not in apart and not is_tensor(thing)]:
        raise CheckpointError(f"{source}: {str(odd[0])[:80]!r} in its state dict is {kind_of(things[odd[0]])}.")
    state = {name: opened.archive.tensor(thing, name) for name, thing in things.items() if name not in apart}
    count = len({name.split(".")[1] for name in state if name.startswith("message_layers.")})
    embedding, inside = state.get(EMBEDDING), {} if things is opened.tree else opened.tree
    features = embedding.shape[1] if embedding is not None and embedding.dim() == 2 else None
    cutoff, where = read_cutoff(opened, inside, {"node_size": features, "num_interactions": count})
    if where != source:
        remarks += (f"Its cutoff, {cutoff:g}, is that of {where}: the file does not say it.",)
    if inside.get("compute_stress") is True:
        remarks += (
            "cPaiNN halves its stresses (it divides virials by 2, which count nothing twice). Those here are the "
            "derivative of the energy by strain, as ASE has it: twice cPaiNN's.",
        )
    tensors = painn_tensors(state, [sine(FUNCTIONS, cutoff)] * count, source)
    scale, mean = _normalisation(opened.archive, things)
    said = {
        "epsilon": 0.0,
        "description": f"read from a checkpoint of DTU's {'cPaiNN' if heads else 'PaiNN-model'}",
    }
    return in_our_terms(tensors, said | _species(opened), cutoff, (energy, length), scale, mean, remarks)


def _normalisation(archive: Archive, things: Mapping[str, Any]) -> tuple[float, float]:
    """What an energy of atoms is multiplied with, and what is added for each atom, in the model's unit."""
    there = [name for name in (*FLAGS, *NUMBERS) if name in things]
    if there and len(there) != len(FLAGS) + len(NUMBERS):
        raise CheckpointError(f"{archive.source} holds {', '.join(there)}, and not all that normalises its energies.")
    if not there or not archive.truth(things[FLAGS[0]], FLAGS[0]):
        return 1.0, 0.0
    found = [archive.tensor(things[name], name) for name in NUMBERS]
    if any(tensor.numel() != 1 or not torch.isfinite(tensor).all() for tensor in found):
        raise CheckpointError(f"{archive.source}: {' or '.join(NUMBERS)} is no finite number.")
    scale, mean = (float(tensor.double()) for tensor in found)
    if mean and not archive.truth(things[FLAGS[1]], FLAGS[1]):
        raise CheckpointError(
            f"{archive.source} adds {mean:g} to the energy of a structure whatever its size (atomwise_normalization is "
            "false). That is no energy of atoms, and two molecules apart would not have the sum of their energies; "
            "train it with atomwise_normalization, or set normalize_mean to 0 if energies may shift by a constant."
        )
    return scale, mean


def _species(opened: Opened) -> dict[str, Any]:
    said = (opened.beside or {}).get("species")
    return {} if said is None else {"species": said}


DTU = Reader("PaiNN-model", _claims, _read)
