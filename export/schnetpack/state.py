"""A state dict of SchNetPack's that nothing describes: what the weights do not say is taken as SchNetPack has it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.model.layout import fold_units
from painn_deploy.export.model.student import Configuration
from painn_deploy.export.readers.reader import Potential
from painn_deploy.export.schnetpack.potential import embedded

__all__ = ["read_state"]

ASSUMED = {
    "activation": "activation silu",
    "cutoff_fn": "cutoff function CosineCutoff",
    "epsilon": "epsilon 1e-8",
}
"""What the JSON beside the weights can say, and what is taken where it does not."""

EMBEDDING = "representation.embedding"


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
        ConfigurationError: the JSON is wrong.
        DeclarationError: a unit was not named.
    """
    energy, length = declared.scales(source)
    tensors = {name: t for name, t in weights.items() if name.startswith(("representation.", "output_modules."))}
    if f"{EMBEDDING}.element_embedding" in tensors:
        parts = ("element_embedding", "electron_config", "config_linear.weight")
        table = embedded(*(tensors.pop(f"{EMBEDDING}.{part}", None) for part in parts))
        if table is None:
            raise CheckpointError(f"{source}: its nuclear embedding is incomplete.")
        tensors[f"{EMBEDDING}.weight"] = table
    needed = {name: tensors.get(f"representation.{name}") for name in ("embedding.weight", "cutoff_fn.cutoff")}
    blocks = {name.split(".")[2] for name in tensors if name.startswith("representation.mixing.")}
    basis = tensors.get("representation.radial_basis.freqs", tensors.get("representation.radial_basis.offsets"))
    embedding, cutoff = needed["embedding.weight"], needed["cutoff_fn.cutoff"]
    if (
        embedding is None
        or cutoff is None
        or basis is None
        or not blocks
        or embedding.dim() != 2
        or cutoff.numel() != 1
    ):
        raise CheckpointError(
            f"{source} holds weights of SchNetPack, but not those of a PaiNN, which alone is deployed."
        )
    tensors = _one_read_out(source, tensors)
    last = f"output_modules.0.outnet.{max(int(n.split('.')[3]) for n in tensors if n.startswith('output_modules.'))}"
    added, remarks = _offsets(source, weights, len(embedding))
    tensors = fold_units(tensors, last, energy, length)
    if added.any():
        tensors["atomic_references"] = added * energy
    read: dict[str, Any] = {
        "architecture": "painn",
        "hidden_dim": embedding.shape[-1],
        "num_interactions": len(blocks),
        "num_rbf": len(basis),
        "cutoff": float(tensors["representation.cutoff_fn.cutoff"]),
    }
    if beside is not None:
        Configuration.from_mapping(beside, f"the JSON beside {source}")
        read |= beside
    open_questions = [words for key, words in ASSUMED.items() if key not in (beside or {})]
    remark = (
        "The file holds weights alone. Taken as in SchNetPack's defaults: "
        f"{', '.join([*open_questions, 'energies summed over atoms'])}. Forces are wrong if it was trained otherwise: "
        "export best_model instead, or say it in JSON beside the file."
    )
    return Potential(tensors, read, (remark, *remarks))


def _one_read_out(source: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with the only read-out at the first place."""
    places = sorted({name.split(".")[1] for name in tensors if name.startswith("output_modules.")})
    if len(places) != 1:
        raise CheckpointError(
            f"{source} holds weights alone, and {len(places) or 'no'} read-outs among them: which is the energy is "
            "not said. Export best_model, which names them."
        )
    head = f"output_modules.{places[0]}."
    found = {n.replace(head, "output_modules.0.", 1) if n.startswith(head) else n: t for n, t in tensors.items()}
    layers = [name.split(".") for name in found if name.startswith("output_modules.")]
    if not all(len(parts) == 5 and parts[2] == "outnet" and parts[3].isdigit() for parts in layers):
        raise CheckpointError(f"{source}: its read-out is none of Atomwise. Export best_model, which says what it is.")
    return found


def _offsets(source: str, weights: Mapping[str, Tensor], rows: int) -> tuple[Tensor, list[str]]:
    """Mean and atomic references in the model's unit, float64 [rows], and sentences about them."""
    added, remarks = torch.zeros(rows, dtype=torch.float64), []
    found = {name: t for name, t in weights.items() if name.startswith("postprocessors.") and t.any()}
    kinds = [name.split(".")[-1] for name in found]
    if len(set(kinds)) != len(kinds) or not {"mean", "atomref"}.issuperset(kinds):
        raise CheckpointError(f"{source}: its postprocessors hold {', '.join(found)}, whose meaning is not said.")
    for name, tensor in found.items():
        table = tensor.double().flatten()
        if name.endswith(".mean") and len(table) == 1:
            added += table
        elif name.endswith(".atomref") and not table[rows:].any():
            added[: len(table)] += table[:rows]
        else:
            raise CheckpointError(f"{source}: {name} has {len(table)} numbers, and the embedding {rows} rows.")
        what = "a mean" if name.endswith(".mean") else "atomic references"
        remarks.append(f"It holds {what}, taken to be added to the energy of every atom.")
    return added, remarks
