"""Modules of graph-pes as a pickle holds them: each of the very class that a PaiNN has there, and nothing beside.

A class is known by its full name. What an object holds beside what graph-pes gives its class is refused, hooks too: it
may change what is computed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.blocks import Linear
from painn_deploy.export.readers.modules import Code, Holds, Modules
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["LISTS", "OFFSETS", "PAINN", "SUM", "Parts", "registered"]

PAINN = "graph_pes.models.painn.PaiNN"
SUM = "graph_pes.models.addition.AdditionModel"
OFFSETS = tuple(f"graph_pes.models.offsets.{kind}" for kind in ("FixedOffset", "LearnableOffset", "EnergyOffset"))
LISTS = ("ModuleList", "UniformModuleList")
VALUES = "_GRAPH_PES_VERSION implemented_properties"
TENSORS = "cutoff three_body_cutoff _has_been_pre_fit"
"""What every model has."""

CODE = Code(
    "Of graph-pes a PaiNN is deployed, alone or in an AdditionModel with energies of elements (FixedOffset, "
    "LearnableOffset).",
    {
        PAINN: Holds(f"{VALUES} channels", f"{TENSORS} z_embedding interactions updates read_out scaler"),
        SUM: Holds(VALUES, f"{TENSORS} models _all_models_same_properties"),
        **dict.fromkeys(OFFSETS, Holds(VALUES, f"{TENSORS} _offsets _pre_specified_Zs")),
        "graph_pes.models.painn.Interaction": Holds("channels", "filter_generator Phi"),
        "graph_pes.models.painn.Update": Holds("channels", "U V mlp"),
        "graph_pes.models.painn.VectorLinear": Holds("", "_linear"),
        "graph_pes.models.components.scaling.LocalEnergiesScaler": Holds("", "per_element_scaling"),
        "graph_pes.models.components.distances.Bessel": Holds("n_features trainable pre_factor", "cutoff frequencies"),
        "graph_pes.models.components.distances.PolynomialEnvelope": Holds("cutoff p", "coefficients powers"),
        "graph_pes.utils.nn.HaddamardProduct": Holds("left_aligned", "components"),
        "graph_pes.utils.nn.MLP": Holds("activate_last", "activation linear_layers"),
        "graph_pes.utils.nn.PerElementEmbedding": Holds("", "_embeddings"),
        **{f"graph_pes.utils.nn.UniformModule{kind}": Holds(parts=None) for kind in ("List", "Dict")},
    },
)
BY_ELEMENT = "graph_pes.utils.nn._rebuild_per_element_parameter"


class Parts(Modules):
    """Gives modules and tensors of one file, and raises for what graph-pes's PaiNN does not have.

    Args:
        archive: of the file.
    """

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive, CODE)

    def network(self, thing: Any, at: str) -> list[Linear]:
        """Two layers with silu between them.

        Args:
            thing: of the tree.
            at: what it is, for the message.

        Raises:
            CheckpointError: it has others, or another activation.
        """
        network = self.module(thing, at, "MLP")
        self.module(network.part("activation"), f"the activation of {at}", "SiLU")
        layers = [self.linear(one, at) for one in self.members(network.part("linear_layers"), at, *LISTS).values()]
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
        layer = self.module(thing, f"a layer of {at}", "Linear")
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
