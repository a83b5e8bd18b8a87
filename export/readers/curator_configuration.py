"""A PaiNN of curator in parts, as the configuration says it that a checkpoint holds beside a state dict.

The configuration is OmegaConf's, pickled: mappings and lists of nodes, whose texts may refer to other places of it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from painn_deploy.export.readers.archive import kind_of
from painn_deploy.export.readers.curator_parts import BASES, CUTOFFS, INPUTS, OUTPUTS, Described, Part, refuse
from painn_deploy.export.readers.modules import MOST
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["from_configuration", "plain"]

REPRESENTATION = "representation."
DEEPEST, LARGEST = 40, 10_000
"""Mappings inside each other in a configuration, and values in it."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "PolynomialCutoff": {"power": 6},
    "BesselBasis": {"num_basis": 8, "sqrt_prefactor": False},
    "AtomwiseReduce": {"output_key": "energy", "aggregation_mode": "sum"},
    "GradientOutput": {"model_outputs": ["forces"]},
    "GlobalRescaleShift": {"scale_keys": ["energy"], "shift_keys": ["energy"]},
    "PerSpeciesRescaleShift": {"scales_keys": ["atomic_energy"], "shifts_keys": ["atomic_energy"]},
}
"""What curator's classes take where a configuration says nothing."""

READ = frozenset({"_target_", "_convert_", "_recursive_"})
"""Keys of Hydra's that change no argument; `_args_` and `_partial_` do."""

REFERENCE = re.compile(r"\$\{([\w.]+)\}")
"""Another place of a configuration."""


def from_configuration(source: str, state: Mapping[str, Any], said: Any, data: Any) -> Described:
    """Take a model apart that a checkpoint holds as a state dict and the configuration that it is made by.

    Args:
        source: the file, for messages.
        state: stand-ins of tensors by their names in the NeuralNetworkPotential.
        said: what `model_params` say, see `plain`.
        data: what `data_params` say.

    Raises:
        CheckpointError: the configuration makes another model than a PaiNN of curator.
    """
    model = _made(source, said, ("NeuralNetworkPotential",), "the model")
    painn = _made(source, model.values.get("representation"), ("PainnModel",), "the representation")
    taken: set[str] = set()

    def tensors(prefix: str) -> dict[str, Any]:
        found = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        taken.update(f"{prefix}{name}" for name in found)
        return found

    cutoff, count = painn.values.get("cutoff"), painn.values.get("num_interactions")
    if type(count) is not int or not 0 < count <= MOST:
        refuse(source, f"its configuration says num_interactions = {count!r}")
    functions = painn.values.get("num_basis", 20)
    defaults = {
        "radial_basis": {"_target_": "curator.layer.SineBasis", "num_basis": functions, "cutoff": cutoff},
        "cutoff_fn": {"_target_": "curator.layer.CosineCutoff", "cutoff": cutoff},
    }
    bases, cutoffs = list[Part](), list[Part]()
    for i in range(count):
        for name, kinds, found in (("radial_basis", BASES, bases), ("cutoff_fn", CUTOFFS, cutoffs)):
            given = painn.values.get(name, defaults[name])
            part = _made(source, given, kinds, f"the {name} of its configuration")
            found.append(Part(part.kind, part.values, tensors(f"{REPRESENTATION}message_layers.{i}.{name}.")))
    outputs = []
    for i, given in enumerate(_listed(source, model, "output_modules")):
        part = _made(source, given, OUTPUTS, f"the output module {i}")
        values = dict(part.values)
        if part.kind == "GlobalRescaleShift" and values.get("scale_by") is None and values.get("shift_by") is None:
            # such a one takes what its data give when training starts, and scales forces if they say so
            scaled = isinstance(data, Mapping) and data.get("scale_forces") is True
            keys = values["scale_keys"]
            if scaled and isinstance(keys, list) and "forces" not in keys:
                values["scale_keys"] = [*keys, "forces"]
        outputs.append(Part(part.kind, values, tensors(f"output_modules.{i}.")))
    inputs = [_made(source, one, INPUTS, "an input module") for one in _listed(source, model, "input_modules")]
    others = {n.removeprefix(REPRESENTATION): t for n, t in state.items() if n not in taken}
    return Described(cutoff, others, bases, cutoffs, inputs, outputs)


def _made(source: str, said: Any, kinds: tuple[str, ...], what: str) -> Part:
    """What one mapping of a configuration makes."""
    target = said.get("_target_") if isinstance(said, Mapping) else None
    package, _, kind = str(target).rpartition(".")
    if package.split(".")[0] != "curator" or kind not in kinds:
        refuse(source, f"{what} is {target or kind_of(said)}, not {' or '.join(kinds)}")
    if unread := sorted(key for key in said if key.startswith("_") and key not in READ):
        refuse(source, f"{what} is made with {', '.join(unread)}; name its arguments in its configuration")
    return Part(kind, {**DEFAULTS.get(kind, {}), **{key: value for key, value in said.items() if value is not None}})


def _listed(source: str, model: Part, name: str) -> list[Any]:
    found = model.values.get(name, [])
    if not isinstance(found, list):
        refuse(source, f"the {name} of its configuration are no list")
    return found


def plain(source: str, node: Any, keys: Sequence[str] | None = None) -> Any:
    """A configuration of OmegaConf in plain values, where places that refer to others hold what is there.

    Args:
        source: the file, for messages.
        node: the stand-in of a DictConfig.
        keys: of it that are wanted, those that there are; None for all.

    Raises:
        CheckpointError: it computes a value, refers to nothing, or refers in circles.
    """
    root = node
    for _ in range(DEEPEST):
        if not isinstance(root, StandIn) or not isinstance(above := root.part("_parent"), StandIn):
            break
        root = above
    resolver = _Resolver(source, root)
    if keys is None:
        return resolver.plain(node, DEEPEST)
    content = node.part("_content") if isinstance(node, StandIn) else node
    found = content if isinstance(content, Mapping) else {}
    return {key: resolver.plain(found[key], DEEPEST) for key in keys if key in found}


class _Resolver:
    """Makes plain values of one configuration, a bounded number of them."""

    def __init__(self, source: str, root: Any) -> None:
        self._source, self._root, self._left = source, root, LARGEST

    def plain(self, node: Any, depth: int) -> Any:
        self._left -= 1
        if depth == 0 or self._left < 0:
            refuse(self._source, "its configuration refers to itself, or is nested without end")
        if isinstance(node, StandIn):
            return self.plain(node.part("_content", node.part("_val")), depth - 1)
        if isinstance(node, Mapping):
            return {str(key): self.plain(value, depth - 1) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self.plain(value, depth - 1) for value in node]
        if not isinstance(node, str) or "${" not in node:
            return node
        if (found := REFERENCE.fullmatch(node)) is None:
            refuse(self._source, f"its configuration computes a value, {node[:80]!r}")
        return self.plain(self._at(found[1]), depth - 1)

    def _at(self, path: str) -> Any:
        there = self._root
        for key in path.split("."):
            content = there.part("_content") if isinstance(there, StandIn) else None
            if not isinstance(content, Mapping) or key not in content:
                refuse(self._source, f"its configuration refers to {path[:80]!r}, which is not there")
            there = content[key]
        return there
