"""Running averages of weights, which the callbacks of SchNetPack and of curator keep in a checkpoint of Lightning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["holds_average"]


def holds_average(archive: Archive, tree: Mapping[Any, Any], weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights are the running average, where a callback of the training kept one.

    They are in a checkpoint that was written after a validation, and are not in one that was written between steps.

    Args:
        archive: of the file.
        tree: of the archive, a checkpoint of Lightning.
        weights: that were read of it.
    """
    for name, callback in _items(tree.get("callbacks")).items():
        shadows = _items(_items(callback).get("ema")).get("shadow_params")
        if "MovingAverage" in str(name) and isinstance(shadows, list):
            tensors = [archive.tensor(thing, f"{name}, weight {i}") for i, thing in enumerate(shadows)]
            return all(any(torch.equal(tensor, weight) for weight in weights.values()) for tensor in tensors)
    return True


def _items(thing: Any) -> Mapping[Any, Any]:
    held = thing.items if isinstance(thing, StandIn) else thing
    return held if isinstance(held, Mapping) else {}
