"""The PaiNN of the Open Catalyst Project (fairchem, OC20), which nablaDFT has as painn_pyg: known, and not deployed."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.reader import Opened, Reader
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["FAIRCHEM"]

SHOWN = ("message_layers.0.x_proj.0.weight", "message_layers.0.rbf_proj.weight", "update_layers.0.vec_proj.weight")
"""Ends of names of tensors that no other PaiNN has."""

HEADS = ("out_forces.", "output_network.")
"""Parts of names of tensors that make forces."""

HELD = ("state_dict", "model", "model_state_dict")
"""Where wrappers keep a state dict."""

DIRECT = (
    "its forces are an output of their own (out_forces) and no gradient of its energy. A path that ends where it began "
    "does work on the atoms, so nothing conserves energy; and the energy beside them, which they do not follow from, "
    "has other forces"
)
GRADIENT = (
    "the bias of its filters (rbf_proj) is not faded, so that every pair enters at the cutoff with a jump, and of an "
    "atom's pairs it keeps only max_neighbors. Its energy jumps, and an engine that fades pairs would have other forces"
)


def _names(tree: Any) -> Iterator[str]:
    """Names of the tensors of a file, whatever they are wrapped in."""
    held = [tree, *(tree.get(key) for key in HELD)] if isinstance(tree, Mapping) else []
    for each in held:
        if isinstance(each, Mapping):
            yield from (name for name in each if isinstance(name, str))
    module = tree.part("model", tree) if isinstance(tree, StandIn) else None  # of a task, or by itself
    if isinstance(module, StandIn) and module.has("message_layers") and module.has("update_layers"):
        yield from SHOWN
        yield from HEADS if module.has("out_forces") else ()


def claims(opened: Opened) -> bool:
    """Whether a file holds such a PaiNN: by the names of its tensors."""
    names = list(_names(opened.tree))
    return all(any(name.endswith(shown) for name in names) for shown in SHOWN)


def read(opened: Opened, _declared: Declaration) -> NoReturn:
    """Refuse it.

    Args:
        opened: the file.
        _declared: what its owner says of it; nothing would help.

    Raises:
        CheckpointError: always, with the reason.
    """
    direct = any(head in name for name in _names(opened.tree) for head in HEADS)
    raise CheckpointError(
        f"{opened.path} holds the PaiNN of Open Catalyst (OC20, fairchem; nablaDFT's painn_pyg), which is not "
        f"deployed: {DIRECT if direct else GRADIENT}. Train a PaiNN whose forces are the gradient of an energy that "
        "fades at the cutoff, such as SchNetPack's."
    )


FAIRCHEM = Reader("fairchem", claims, read)
