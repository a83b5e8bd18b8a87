"""Modules of graph-pes as a pickle holds them: each of the very class that a PaiNN has there, and nothing beside.

A class is known by its full name. What an object holds beside what graph-pes gives its class is refused, hooks too: it
may change what is computed.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.archive import Archive, kind_of
from painn_deploy.export.readers.blocks import Linear
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["OFFSETS", "PAINN", "SUM", "Parts", "registered"]

PAINN = "graph_pes.models.painn.PaiNN"
SUM = "graph_pes.models.addition.AdditionModel"
OFFSETS = tuple(f"graph_pes.models.offsets.{kind}" for kind in ("FixedOffset", "LearnableOffset", "EnergyOffset"))
MODEL = ("cutoff", "_has_been_pre_fit", "three_body_cutoff", "_GRAPH_PES_VERSION", "implemented_properties")
PARTS: Mapping[str, tuple[str, ...]] = {
    PAINN: (*MODEL, "channels", "z_embedding", "interactions", "updates", "read_out", "scaler"),
    SUM: (*MODEL, "models", "_all_models_same_properties"),
    **dict.fromkeys(OFFSETS, (*MODEL, "_offsets", "_pre_specified_Zs")),
    "graph_pes.models.painn.Interaction": ("channels", "filter_generator", "Phi"),
    "graph_pes.models.painn.Update": ("channels", "U", "V", "mlp"),
    "graph_pes.models.painn.VectorLinear": ("_linear",),
    "graph_pes.models.components.scaling.LocalEnergiesScaler": ("per_element_scaling",),
    "graph_pes.models.components.distances.Bessel": ("n_features", "cutoff", "trainable", "frequencies", "pre_factor"),
    "graph_pes.models.components.distances.PolynomialEnvelope": ("cutoff", "p", "coefficients", "powers"),
    "graph_pes.utils.nn.HaddamardProduct": ("components", "left_aligned"),
    "graph_pes.utils.nn.MLP": ("activation", "activate_last", "linear_layers"),
    "graph_pes.utils.nn.PerElementEmbedding": ("_embeddings",),
    "torch.nn.modules.linear.Linear": ("in_features", "out_features", "weight", "bias"),
    "torch.nn.modules.activation.SiLU": ("inplace",),
}
"""What an object of each class may hold: tensors, modules and values."""

LISTS = (
    *("torch.nn.modules.container.ModuleList", "torch.nn.modules.container.Sequential"),
    *("graph_pes.utils.nn.UniformModuleList", "graph_pes.utils.nn.UniformModuleDict"),
)
CONTAINERS = ("_modules", "_parameters", "_buffers")
ALWAYS = {*CONTAINERS, "training", "_non_persistent_buffers_set"}
MOST = 100
"""Members of a list: interactions, layers, models of a sum."""

BY_ELEMENT = "graph_pes.utils.nn._rebuild_per_element_parameter"


class Parts:
    """Gives modules and tensors of one file, and raises for what graph-pes's PaiNN does not have.

    Args:
        archive: of the file.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive

    def refuse(self, what: str) -> NoReturn:
        """Raise for what stands in the way.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"{self.archive.source}: {what}. Of graph-pes a PaiNN is deployed, alone or in an AdditionModel with "
            "energies of elements (FixedOffset, LearnableOffset)."
        )

    def module(self, thing: Any, kind: str, at: str) -> StandIn:
        """A module of that very class, which holds nothing else than graph-pes gives it.

        Args:
            thing: of the tree.
            kind: full name of the class.
            at: what it is, for the message.

        Raises:
            CheckpointError: it is another one, or holds more.
        """
        if not isinstance(thing, StandIn) or str(thing.name) != kind:
            self.refuse(f"{at} is {kind_of(thing)}, and that of graph-pes's PaiNN {kind}")
        held = {str(n) for n, value in thing.state.items() if n not in ALWAYS and value not in (None, False, {}, [])}
        for container in CONTAINERS:
            parts = thing.state.get(container, {})
            if not isinstance(parts, dict):
                self.refuse(f"{at} is no module that Python pickled")
            if kind in PARTS or container != "_modules":
                held |= {str(name) for name, value in parts.items() if value is not None}
        if unknown := sorted(held.difference(PARTS.get(kind, ()))):
            names = ", ".join(unknown)
            self.refuse(f"{at} holds {names}, which {thing.kind} of graph-pes does not: it may change what is computed")
        return thing

    def members(self, thing: Any, at: str) -> dict[str, Any]:
        """Modules of a list, or of a dict, in order, by name.

        Args:
            thing: of the tree.
            at: what it is, for the message.

        Raises:
            CheckpointError: it is neither, or has too many.
        """
        kind = str(thing.name) if isinstance(thing, StandIn) else kind_of(thing)
        held = self.module(thing, kind if kind in LISTS else LISTS[0], at).state.get("_modules", {})
        if len(held) > MOST:
            self.refuse(f"{at} holds {len(held):,} modules, and no more than {MOST} are read")
        if not kind.endswith("Dict") and list(held) != [str(index) for index in range(len(held))]:
            self.refuse(f"{at} has members by names that are no numbers")
        return {str(name): module for name, module in held.items()}

    def network(self, thing: Any, at: str) -> list[Linear]:
        """Two layers with silu between them.

        Args:
            thing: of the tree.
            at: what it is, for the message.

        Raises:
            CheckpointError: it has others, or another activation.
        """
        network = self.module(thing, "graph_pes.utils.nn.MLP", at)
        self.module(network.part("activation"), "torch.nn.modules.activation.SiLU", f"the activation of {at}")
        layers = [self.linear(one, at) for one in self.members(network.part("linear_layers"), at).values()]
        if len(layers) != 2 or network.part("activate_last") is not False:
            self.refuse(f"{at} has {len(layers)} layers or an activation behind the last; graph-pes's has 2, and none")
        return layers

    def linear(self, thing: Any, at: str) -> Linear:
        """A layer's numbers.

        Args:
            thing: of the tree.
            at: what it is, for the message.

        Raises:
            CheckpointError: it is no such layer.
        """
        layer = self.module(thing, "torch.nn.modules.linear.Linear", f"a layer of {at}")
        bias = None if layer.part("bias") is None else self.tensor(layer, "bias", at)
        return Linear(self.tensor(layer, "weight", at), bias)

    def tensor(self, owner: StandIn, name: str, at: str, *, integers: bool = False) -> Tensor:
        """A tensor, a parameter, or a parameter that graph-pes indexes by element.

        Args:
            owner: of it.
            name: of it there.
            at: what the owner is, for the message.
            integers: whether 64-bit integers will do, too.

        Raises:
            CheckpointError: it is none of numbers.
        """
        thing = owner.part(name)
        if isinstance(thing, StandIn) and str(thing.name) == BY_ELEMENT and thing.args:
            thing = thing.args[0]
        return self.archive.tensor(thing, f"{name} of {at}", integers=integers)

    def number(self, owner: StandIn, name: str, at: str) -> float:
        """The only number of a tensor.

        Args:
            owner: of it.
            name: of it there.
            at: what the owner is, for the message.

        Raises:
            CheckpointError: it is no tensor of one number.
        """
        found = self.tensor(owner, name, at, integers=True)
        if found.numel() != 1:
            self.refuse(f"{name} of {at} holds {found.numel()} numbers, not one")
        return float(found)

    def column(self, owner: StandIn, name: str, at: str, rows: int) -> Tensor:
        """A number for each element, float64 [rows].

        Args:
            owner: of it.
            name: of it there.
            at: what the owner is, for the message.
            rows: of the embedding.

        Raises:
            CheckpointError: it has another shape.
        """
        found = self.tensor(owner, name, at).double()
        if tuple(found.shape) != (rows, 1):
            self.refuse(f"{name} of {at} has the shape {tuple(found.shape)}, and the embedding {rows} rows")
        return found[:, 0]


def registered(owner: StandIn, name: str) -> list[Any]:
    """Elements that graph-pes registered with a parameter; empty where it says none.

    Args:
        owner: of the parameter.
        name: of it there.
    """
    thing = owner.part(name)
    state = thing.args[-1] if isinstance(thing, StandIn) and str(thing.name) == BY_ELEMENT and thing.args else None
    listed = state.get("_accessed_Zs") if isinstance(state, Mapping) else None
    return listed if isinstance(listed, list) else []
