"""A PaiNN of curator in parts, as the modules say it that a checkpoint holds as a pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.archive import kind_of
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["BASES", "CUTOFFS", "INPUTS", "MOST", "OUTPUTS", "Described", "Part", "from_modules", "refuse"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "forward")
"""Attributes that change what a module computes."""

MOST = 100
"""Modules in a list."""

TENSORS = {
    "Linear": {"weight", "bias"},
    "Embedding": {"weight"},
    "GaussianBasis": {"offsets", "widths"},
    "BesselBasis": {"bessel_weights"},
    "GlobalRescaleShift": {"atomwise_normalization", "scale_by", "shift_by", "shift_by_E0", "atomic_energies"},
    "PerSpeciesRescaleShift": {"scales", "shifts", "atomwise_normalization"},
    "TorchNeighborList": {"disp_mat"},
}
"""Parameters and buffers that a class may have; another class has none."""

CHILDREN = {
    "PainnModel": ("atom_embedding", "message_layers", "update_layers", "readout_mlp"),
    "PainnMessage": ("cutoff_fn", "radial_basis", "scalar_message_mlp", "filter_layer"),
    "PainnUpdate": ("update_U", "update_V", "update_mlp"),
    "PairwiseDistance": ("batch_nl",),
    "BatchNeighborList": ("neighbor_list",),
}
BASES = ("SineBasis", "GaussianBasis", "BesselBasis")
CUTOFFS = ("CosineCutoff", "PolynomialCutoff")
INPUTS = ("PairwiseDistance", "Strain")
NEIGHBOURS = ("TorchNeighborList", "Asap3NeighborList", "MatScipyNeighborList")
OUTPUTS = ("AtomwiseReduce", "GradientOutput", "GlobalRescaleShift", "PerSpeciesRescaleShift")


@dataclass(frozen=True)
class Part:
    """One module.

    Attributes:
        kind: its class.
        values: attributes that it has, or is made with.
        tensors: stand-ins of its parameters and buffers.
    """

    kind: str
    values: Mapping[str, Any]
    tensors: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """A model.

    Attributes:
        cutoff: of its neighbours.
        weights: stand-ins of tensors of the PaiNN by their names, those of bases and of cutoff functions left out.
        bases: the radial basis of each interaction.
        cutoffs: the cutoff function of each interaction.
        inputs: what prepares its structures.
        outputs: what makes an energy of its read-outs, in order.
    """

    cutoff: Any
    weights: Mapping[str, Any]
    bases: Sequence[Part]
    cutoffs: Sequence[Part]
    inputs: Sequence[Part]
    outputs: Sequence[Part]


def refuse(source: str, what: str) -> NoReturn:
    """Raise for what stands in the way.

    Args:
        source: the file.
        what: it is.

    Raises:
        CheckpointError: always.
    """
    raise CheckpointError(f"{source}: {what}. What can be deployed of curator is PainnModel with its own read-outs.")


def from_modules(source: str, model: StandIn) -> Described:
    """Take apart the modules that a checkpoint holds as a pickle.

    Args:
        source: the file, for messages.
        model: the NeuralNetworkPotential.

    Raises:
        CheckpointError: a module is not what a PaiNN of curator has, or has more than it.
    """
    walk = _Walk(source)
    painn = walk.module(model.part("representation"), ("PainnModel",), "the representation")
    embedding = walk.module(painn.part("atom_embedding"), ("Embedding",), "the embedding")
    if embedding.part("max_norm") is not None:
        refuse(source, "the embedding renormalises its rows (max_norm)")
    weights = {f"atom_embedding.{name}": thing for name, thing in walk.tensors(embedding).items()}
    weights |= walk.network(painn.part("readout_mlp"), "readout_mlp")
    bases, cutoffs = list[Part](), list[Part]()
    for i, thing in enumerate(walk.members(painn.part("message_layers"), "the messages")):
        at = f"message_layers.{i}"
        message = walk.module(thing, ("PainnMessage",), at)
        weights |= walk.network(message.part("scalar_message_mlp"), f"{at}.scalar_message_mlp")
        weights |= walk.linear(message.part("filter_layer"), f"{at}.filter_layer")
        bases.append(walk.part(message.part("radial_basis"), BASES, f"the radial basis of {at}"))
        cutoffs.append(walk.part(message.part("cutoff_fn"), CUTOFFS, f"the cutoff function of {at}"))
    for i, thing in enumerate(walk.members(painn.part("update_layers"), "the updates")):
        at = f"update_layers.{i}"
        update = walk.module(thing, ("PainnUpdate",), at)
        weights |= walk.network(update.part("update_mlp"), f"{at}.update_mlp")
        for name in ("update_U", "update_V"):
            weights |= walk.linear(update.part(name), f"{at}.{name}")
    inputs = [walk.input(thing) for thing in walk.members(model.part("input_modules"), "the input modules")]
    outputs = walk.members(model.part("output_modules"), "the output modules")
    made = [walk.part(thing, OUTPUTS, f"the output module {i}") for i, thing in enumerate(outputs)]
    return Described(painn.part("cutoff"), weights, bases, cutoffs, inputs, made)


class _Walk:
    """Takes modules that are of known classes and have nothing else than these."""

    def __init__(self, source: str) -> None:
        self._source = source

    def module(self, thing: Any, kinds: tuple[str, ...], what: str) -> StandIn:
        """A module of some kinds, without hooks and with the parts of its class."""
        ours = isinstance(thing, StandIn) and thing.name.module.split(".")[0] in ("curator", "torch")
        if not ours or thing.kind not in kinds:
            name = thing.kind if isinstance(thing, StandIn) else kind_of(thing)
            refuse(self._source, f"{what} is {name}, not {' or '.join(kinds)}")
        held: StandIn = thing
        if hooks := [hook for hook in HOOKS if held.state.get(hook)]:
            refuse(self._source, f"{what} has {hooks[0]}, which may change what it computes")
        if extra := sorted(self.tensors(held).keys() - TENSORS.get(held.kind, set())):
            refuse(self._source, f"{what} has tensors that {held.kind} has not: {', '.join(extra)}")
        expected = CHILDREN.get(held.kind, ())
        listed = held.kind in ("ModuleList", "CallbackModuleList", "Sequential")
        if extra := sorted({name for name, _ in held.children()} - set(expected)) if not listed else []:
            refuse(self._source, f"{what} has modules that {held.kind} has not: {', '.join(extra)}")
        return held

    def tensors(self, thing: StandIn) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in ("_parameters", "_buffers"):
            held = thing.state.get(key)
            found |= {str(n): t for n, t in held.items() if t is not None} if isinstance(held, Mapping) else {}
        return found

    def part(self, thing: Any, kinds: tuple[str, ...], what: str) -> Part:
        held = self.module(thing, kinds, what)
        return Part(held.kind, held.state, self.tensors(held))

    def members(self, thing: Any, what: str) -> list[Any]:
        held = self.module(thing, ("ModuleList", "CallbackModuleList"), what)
        children = dict(held.children())
        if len(children) > MOST or list(children) != [str(index) for index in range(len(children))]:
            refuse(self._source, f"{what} hold modules by names that are no numbers")
        return list(children.values())

    def linear(self, thing: Any, at: str) -> dict[str, Any]:
        return {f"{at}.{n}": t for n, t in self.tensors(self.module(thing, ("Linear",), at)).items()}

    def network(self, thing: Any, at: str) -> dict[str, Any]:
        """Two layers with SiLU between them."""
        children = dict(self.module(thing, ("Sequential",), at).children())
        if list(children) != ["0", "1", "2"]:
            refuse(self._source, f"{at} has the modules {', '.join(children)}, not two layers and what is between them")
        self.module(children["1"], ("SiLU",), f"the activation of {at}")
        return self.linear(children["0"], f"{at}.0") | self.linear(children["2"], f"{at}.2")

    def input(self, thing: Any) -> Part:
        held = self.module(thing, INPUTS, "an input module")
        neighbours = held.part("batch_nl")
        if neighbours is None:
            return Part(held.kind, {})
        inner = self.module(neighbours, ("BatchNeighborList",), "the neighbour list").part("neighbor_list")
        return Part(held.kind, {"cutoff": self.module(inner, NEIGHBOURS, "the neighbour list").part("cutoff")})
