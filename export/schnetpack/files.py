"""Which kind of SchNetPack's files one is, and where in it the model and its weights are."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from painn_deploy.export.declaration import Declaration
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.archive import Archive, kind_of
from painn_deploy.export.readers.averages import holds_average
from painn_deploy.export.readers.reader import Opened, Potential, Reader
from painn_deploy.export.readers.stand_ins import CONVERTER, StandIn
from painn_deploy.export.schnetpack.potential import read_potential
from painn_deploy.export.schnetpack.state import read_state

__all__ = ["SCHNETPACK", "is_plain", "read_model"]

LIGHTNING = "pytorch-lightning_version"
WRAPPER = "model."
"""What SchNetPack's task puts before the names of its model's tensors."""


def is_plain(tree: Any, suffix: str) -> bool:
    """Whether a file holds tensors alone, and is none of Lightning's: a checkpoint of our own format.

    Args:
        tree: of the file, see `Archive.tree`.
        suffix: of the file's name.
    """
    return not isinstance(tree, StandIn) and not (isinstance(tree, Mapping) and lightning(tree, suffix))


def lightning(tree: Mapping[Any, Any], suffix: str) -> bool:
    """Whether a mapping is a checkpoint that Lightning wrote."""
    return isinstance(tree.get("state_dict"), Mapping) and (LIGHTNING in tree or suffix == ".ckpt")


def read_model(opened: Opened, declared: Declaration) -> Potential:
    """Read a model that SchNetPack saved: `best_model`, a task, a checkpoint of Lightning, or TorchScript.

    Args:
        opened: the file; the JSON beside it describes weights alone.
        declared: units, and what the model calls the energy.

    Raises:
        CheckpointError: it is no model that can be deployed; the message says what stands in the way.
        ConfigurationError: the JSON beside the file is wrong.
        DeclarationError: a unit was not named, or the model calls its energy otherwise.
    """
    archive, tree = opened.archive, opened.tree
    if isinstance(tree, StandIn):
        inner = tree.part("model")  # a task holds its model
        return read_potential(archive, inner if isinstance(inner, StandIn) else tree, declared)
    if not isinstance(tree, Mapping) or not isinstance(state := tree.get("state_dict"), Mapping):
        raise CheckpointError(f"{archive.source} holds {kind_of(tree)}, which is no model of SchNetPack.")
    weights = _weights(archive, state)
    model = _items(tree.get("hyper_parameters")).get("model")
    if not isinstance(model, StandIn):
        return read_state(archive.source, weights, declared, opened.beside)
    found = read_potential(archive, model, declared, weights)
    if not holds_average(archive, tree, weights):
        remark = "It also holds averaged weights (ExponentialMovingAverage) that differ from its state dict, which is "
        remark += "what was read. SchNetPack's best_inference_model holds the average."
        return Potential(found.tensors, found.configuration, (*found.remarks, remark))
    return found


def _items(thing: Any) -> Mapping[Any, Any]:
    held = thing.items if isinstance(thing, StandIn) else thing
    return held if isinstance(held, Mapping) else {}


def _weights(archive: Archive, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a model by their names in it."""
    names = [name for name in state if isinstance(name, str)]
    wrapped = any(name.startswith(f"{WRAPPER}representation.") for name in names)
    prefix = WRAPPER if wrapped else ""
    found = {name.removeprefix(prefix): state[name] for name in names if name.startswith(prefix)}
    if not any(name.startswith("representation.") for name in found):
        raise CheckpointError(
            f"{archive.source} is a checkpoint of Lightning, but its state dict is not that of a "
            f"NeuralNetworkPotential of SchNetPack. For a task of your own, {CONVERTER} may help."
        )
    if learnt := [name for name in found if name.startswith("input_modules.")]:
        raise CheckpointError(
            f"{archive.source}: an input module has numbers of its own ({learnt[0]}), and those that are known have "
            "none: what it does to structures is not said."
        )
    kept = {n: t for n, t in found.items() if n.startswith(("representation.", "output_modules.", "postprocessors."))}
    return {name: archive.tensor(thing, name, integers=True) for name, thing in kept.items()}


def _claims(opened: Opened) -> bool:
    """Whether its classes are SchNetPack's, or its tensors have the names that SchNetPack gives a PaiNN's."""
    tree = opened.tree
    if isinstance(tree, StandIn):
        return "schnetpack" in tree.name.module.split(".")
    if not isinstance(tree, Mapping) or not lightning(tree, opened.path.suffix):
        return False
    return any(".interatomic_context_net." in name for name in tree["state_dict"] if isinstance(name, str))


SCHNETPACK = Reader("SchNetPack", _claims, read_model)
