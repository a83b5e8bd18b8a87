"""A state dict of SchNetPack's that nothing describes: what the weights do not say is taken as SchNetPack has it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.model.layout import fold_units
from painn_deploy.export.model.student import Configuration
from painn_deploy.export.readers.reader import Potential
from painn_deploy.export.schnetpack.cutoffs import fade_of
from painn_deploy.export.schnetpack.potential import embedded, with_references
from painn_deploy.export.schnetpack.repulsion import ZBL, complete, repulsion_of

__all__ = ["read_state"]

ASSUMED = {"activation": "activation silu", "epsilon": "epsilon 1e-8"}
"""What the JSON beside the weights can say, and what is taken where it does not."""

SHOWN = frozenset({"cutoff_fn", "switch_on", "repulsion"})
"""What the JSON can say too, and the weights show."""

EMBEDDING, FADE = "representation.embedding", "representation.cutoff_fn"


def read_state(
    source: str, weights: Mapping[str, Tensor], declared: Declaration, beside: Mapping[str, Any] | None
) -> Potential:
    """Read weights alone, with the JSON beside them for what they do not say, else with SchNetPack's defaults.

    Args:
        source: the file, for messages.
        weights: by SchNetPack's names.
        declared: units.
        beside: the configuration; None where there is none.

    Returns:
        What was read; its remarks name everything that was assumed.

    Raises:
        CheckpointError: it is no PaiNN, or the weights leave open which of several is the energy.
        ConfigurationError: the JSON is wrong, or contradicts the weights.
        DeclarationError: a unit was not named.
    """
    energy, length = declared.scales(source)
    if any(".activation." in name for name in weights):
        raise CheckpointError(
            f"{source} holds weights alone, and an activation's numbers among them: what they do is not said. Export "
            "best_model, which names it."
        )
    tensors = {name: t for name, t in weights.items() if name.startswith("representation.")}
    if f"{EMBEDDING}.element_embedding" in tensors:
        parts = ("element_embedding", "electron_config", "config_linear.weight")
        table = embedded(*(tensors.pop(f"{EMBEDDING}.{part}", None) for part in parts))
        if table is None:
            raise CheckpointError(f"{source}: its nuclear embedding is incomplete.")
        tensors[f"{EMBEDDING}.weight"] = table
    blocks = {name.split(".")[2] for name in tensors if name.startswith("representation.mixing.")}
    basis = tensors.get("representation.radial_basis.freqs", tensors.get("representation.radial_basis.offsets"))
    embedding, found = tensors.get(f"{EMBEDDING}.weight"), fade_of(_taken(tensors, f"{FADE}."))
    if embedding is None or found is None or basis is None or not blocks or embedding.dim() != 2:
        raise CheckpointError(
            f"{source} holds weights of SchNetPack, but not those of a PaiNN, which alone is deployed."
        )
    kind, fade = found
    tensors[f"{FADE}.cutoff"] = fade["cutoff"]
    if (widths := tensors.get("representation.radial_basis.widths")) is not None:
        tensors["representation.radial_basis.widths"] = widths.abs()  # squared in the equation
    layers, repulsion = _outputs(source, weights)
    last = f"output_modules.0.outnet.{max(int(name.split('.')[3]) for name in layers)}"
    tensors = fold_units(tensors | layers, last, energy, length)
    read: dict[str, Any] = {
        "architecture": "painn",
        "hidden_dim": embedding.shape[-1],
        "num_interactions": len(blocks),
        "num_rbf": len(basis),
        "cutoff": float(tensors[f"{FADE}.cutoff"]),
        "cutoff_fn": kind,
    }
    if "switch_on" in fade:
        read["switch_on"] = float(fade["switch_on"]) * length
    remarks: list[str] = []
    if repulsion is not None:
        if kind == "switch" and not any(name.startswith("cutoff_fn.") for name in repulsion):
            raise CheckpointError(
                f"{source} holds weights alone, and {ZBL} without a cutoff function beside PaiNN's SwitchFunction: how "
                "far it reaches is not said. Export best_model, which may say it."
            )
        read["repulsion"], pairs, remarks = _repulsion(source, repulsion, fade["cutoff"], (energy, length))
        tensors |= pairs
    added, added_up = _offsets(source, weights)
    tensors, short = with_references(tensors, added * energy)
    if beside is not None:
        said = Configuration.from_mapping(beside, f"the JSON beside {source}")
        for key in SHOWN & beside.keys():
            if (shown := read.get(key)) != (says := getattr(said, key)) and not _near(shown, says):
                raise ConfigurationError(f"The JSON beside {source} has {key} = {says!r}, and the tensors {shown!r}.")
        read |= {key: value for key, value in beside.items() if key not in SHOWN}
    assumed = ASSUMED | ({"cutoff_fn": "cutoff function CosineCutoff"} if kind == "cosine" else {})
    open_questions = [words for key, words in assumed.items() if key not in (beside or {})]
    remark = (
        "The file holds weights alone. Taken as in SchNetPack's defaults: "
        f"{', '.join([*open_questions, 'energies summed over atoms'])}. Forces are wrong if it was trained otherwise: "
        "export best_model instead, or say it in JSON beside the file."
    )
    return Potential(tensors, read, (remark, *remarks, *added_up, *([short] if short else [])))


def _near(one: Any, other: Any) -> bool:
    return isinstance(one, float) and isinstance(other, float) and abs(one - other) <= 1e-6


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without that; they are taken out."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _outputs(source: str, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The layers of the only read-out, at the first place; the tensors of the only repulsion, by their names in it."""
    left = {name: tensor for name, tensor in weights.items() if name.startswith("output_modules.")}
    modules = {place: _taken(left, f"output_modules.{place}.") for place in {name.split(".")[1] for name in left}}
    repulsions = [found for found in modules.values() if "a_pow" in found]
    read_outs = [found for found in modules.values() if "a_pow" not in found]
    if len(read_outs) != 1 or len(repulsions) > 1:
        several = f" and {len(repulsions)} repulsions" if len(repulsions) > 1 else ""
        raise CheckpointError(
            f"{source} holds weights alone, and {len(read_outs) or 'no'} read-outs among them{several}: which is the "
            "energy is not said. Export best_model, which names them."
        )
    layers = {f"output_modules.0.{name}": tensor for name, tensor in read_outs[0].items()}
    split = [name.split(".") for name in layers]
    if not all(len(parts) == 5 and parts[2] == "outnet" and parts[3].isdigit() for parts in split):
        raise CheckpointError(f"{source}: its read-out is none of Atomwise. Export best_model, which says what it is.")
    return layers, repulsions[0] if repulsions else None


def _repulsion(
    source: str, found: dict[str, Tensor], cutoff: Tensor, units: tuple[float, float]
) -> tuple[str, dict[str, Tensor], list[str]]:
    """What a configuration calls its cutoff function, its tensors in eV and Å, and remarks."""
    distances = _taken(found, "cutoff_fn.")
    fade = fade_of(distances) if distances else ("none", {})
    if fade is None or not complete(found):
        raise CheckpointError(f"{source}: {ZBL} is incomplete. Export best_model, which says what it is.")
    kind, ends = fade
    if ends and float(ends["cutoff"]) > float(cutoff):
        raise CheckpointError(f"{source}: {ZBL} reaches beyond PaiNN's messages, where there are no edges.")
    tensors, remarks = repulsion_of(found, ends, *units)
    return kind, tensors, [f"It holds {ZBL}, taken to be a part of the energy.", *remarks]


def _offsets(source: str, weights: Mapping[str, Tensor]) -> tuple[Tensor, list[str]]:
    """Mean and atomic references in the model's unit, float64 [elements] or [1], and sentences about them."""
    added, remarks = torch.zeros(1, dtype=torch.float64), []
    steps = {name: t for name, t in weights.items() if name.startswith("postprocessors.")}
    found = {n: t for n, t in steps.items() if (t != 1 if n.endswith(".scale") else t).any()}
    kinds = [name.split(".")[-1] for name in found]
    if len(set(kinds)) != len(kinds) or not {"mean", "atomref"}.issuperset(kinds):
        raise CheckpointError(f"{source}: its postprocessors hold {', '.join(found)}, whose meaning is not said.")
    for name, tensor in found.items():
        mean = name.endswith(".mean")
        if tensor.numel() != 1 if mean else tensor.dim() != 1 or len(tensor) < 2:
            raise CheckpointError(f"{source}: {name} has {tensor.numel()} numbers in {tensor.dim()} dimensions.")
        added = added + tensor.double().flatten()
        what = "a mean" if mean else "atomic references"
        remarks.append(f"It holds {what}, taken to be added to the energy of every atom.")
    return added, remarks
