"""SchNetPack's functions that fade to zero at a distance: PaiNN's filters have one, and a pair repulsion may."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from painn_deploy.export.readers.archive import is_tensor
from painn_deploy.export.schnetpack.architecture import Checker

__all__ = ["CUTOFFS", "Fade", "fade_of", "read_fade"]

CUTOFFS = {"CosineCutoff": "cosine", "MollifierCutoff": "mollifier", "SwitchFunction": "switch"}
"""Classes, and what a configuration calls them."""

DISTANCES = {"cosine": {"cutoff"}, "mollifier": {"cutoff", "eps"}, "switch": {"switch_on", "switch_off"}}
"""Tensors of each, by which a state dict tells them apart. A mollifier is below exp(-1e6) within eps of its cutoff."""

Fade = dict[str, Tensor]
"""`cutoff` [1], and `switch_on` [1] of a switch."""


def fade_of(found: Mapping[str, Tensor]) -> tuple[str, Fade] | None:
    """Tell a function by its tensors.

    Args:
        found: by their names in the function; a switch may have a cutoff besides, which its user set for PaiNN.

    Returns:
        What a configuration calls it, and its distances; None if there is no such function.
    """
    names = found.keys() - {"cutoff"} if "switch_off" in found else found.keys()
    kind = next((kind for kind, needed in DISTANCES.items() if names == needed), None)
    if kind is None or any(tensor.numel() != 1 for tensor in found.values()):
        return None
    if kind != "switch":
        return kind, {"cutoff": found["cutoff"].reshape(1)}
    return kind, {"cutoff": found["switch_off"].reshape(1), "switch_on": found["switch_on"].reshape(1)}


def read_fade(check: Checker, function: Any, path: str) -> tuple[str, Fade]:
    """Read one.

    Args:
        check: of the file.
        function: of the tree.
        path: of it in the state dict.

    Returns:
        What a configuration calls it, and its distances in the model's unit.

    Raises:
        CheckpointError: it is another one, or its distances make no sense.
    """
    module = check.module(function, tuple(CUTOFFS), "the cutoff function")
    names = {name for name in {"cutoff"}.union(*DISTANCES.values()) if is_tensor(module.part(name))}
    read = {name.rpartition(".")[2]: tensor for name, tensor in check.tensors.some(module, path, names).items()}
    found = fade_of(read)
    if found is None or found[0] != CUTOFFS[module.kind]:
        check.refuse(f"the cutoff function {module.kind} does not hold one number for each of its distances")
    kind, fade = found
    if kind == "switch" and not 0 <= float(fade["switch_on"]) < float(fade["cutoff"]):
        on, off = float(fade["switch_on"]), float(fade["cutoff"])
        check.refuse(f"the SwitchFunction falls from {on:g} to {off:g}, not from a distance to a longer one")
    return kind, fade
