"""What a model of graph-pes is made of, as a pickle holds it."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from painn_deploy.export.readers.modules import Code, Holds
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["CODE", "LISTS", "OFFSETS", "PAINN", "SUM", "by_element", "elements_of"]

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
        "graph_pes.models.painn.VectorLinear": Holds(parts="_linear"),
        "graph_pes.models.components.scaling.LocalEnergiesScaler": Holds(parts="per_element_scaling"),
        "graph_pes.models.components.distances.Bessel": Holds("n_features trainable pre_factor", "cutoff frequencies"),
        "graph_pes.models.components.distances.PolynomialEnvelope": Holds("cutoff p", "coefficients powers"),
        "graph_pes.utils.nn.HaddamardProduct": Holds("left_aligned", "components"),
        "graph_pes.utils.nn.MLP": Holds("activate_last", "activation linear_layers"),
        "graph_pes.utils.nn.PerElementEmbedding": Holds(parts="_embeddings"),
        **{f"graph_pes.utils.nn.UniformModule{kind}": Holds(parts=None) for kind in ("List", "Dict")},
    },
)
ELEMENTS = range(1, 119)
BY_ELEMENT = "graph_pes.utils.nn._rebuild_per_element_parameter"


def by_element(thing: Any) -> tuple[Any, list[Any]]:
    """The tensor of a parameter that graph-pes indexes by element, and the elements that it registered with it.

    Another thing is given back, with no elements.
    """
    if not isinstance(thing, StandIn) or str(thing.name) != BY_ELEMENT or not thing.args:
        return thing, []
    state = thing.args[-1]
    listed = state.get("_accessed_Zs") if isinstance(state, Mapping) else None
    return thing.args[0], listed if isinstance(listed, list) else []


def elements_of(embedding: StandIn, scales: Float[Tensor, " rows"]) -> tuple[int, ...]:
    """Elements of the training: registered ones, else those whose energies it scaled; empty where neither says.

    graph-pes registers them, and forgets them in the deep copy that graph-pes-train saves. Scales begin at 1, and those
    of elements that the training never saw stay so, unless its optimiser shrinks all of them, that of no element too.

    Args:
        embedding: of elements.
        scales: of their energies.
    """
    listed = by_element(embedding.part("_embeddings"))[1]
    if not listed and scales[0] == 1:
        listed = (scales != 1).nonzero().flatten().tolist()
    return tuple(sorted({z for z in listed if type(z) is int and z in ELEMENTS}))
