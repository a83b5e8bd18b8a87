"""A PaiNN of curator in parts, as the modules say it that a checkpoint holds as a pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from painn_deploy.export.readers.archive import Archive
from painn_deploy.export.readers.modules import Code, Holds, Modules
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["BASES", "CODE", "CUTOFFS", "INPUTS", "OUTPUTS", "Described", "Part", "from_modules", "refuse"]

BASES = ("SineBasis", "GaussianBasis", "BesselBasis")
CUTOFFS = ("CosineCutoff", "PolynomialCutoff")
INPUTS = ("PairwiseDistance", "Strain")
NEIGHBOURS = ("TorchNeighborList", "Asap3NeighborList", "MatScipyNeighborList")
OUTPUTS = ("AtomwiseReduce", "GradientOutput", "GlobalRescaleShift", "PerSpeciesRescaleShift")

LAYER, LISTS = "curator.layer", "curator.data._neighborlist"
FOUND = "cutoff requires_grad return_distance"
CODE = Code(
    "What can be deployed of curator is PainnModel with its own read-outs.",
    {
        "curator.model.base.NeuralNetworkPotential": Holds(
            "model_outputs _initialized", "representation input_modules output_modules"
        ),
        "curator.model.base.CallbackModuleList": Holds("on_register_callback", None),
        "curator.model.painn.PainnModel": Holds(
            "cutoff num_basis num_features num_interactions", "atom_embedding message_layers update_layers readout_mlp"
        ),
        f"{LAYER}._painn_message.PainnMessage": Holds(
            "cutoff num_basis num_features", "cutoff_fn radial_basis scalar_message_mlp filter_layer"
        ),
        f"{LAYER}._painn_update.PainnUpdate": Holds(parts="update_U update_V update_mlp"),
        f"{LAYER}.cutoff.CosineCutoff": Holds("cutoff"),
        f"{LAYER}.cutoff.PolynomialCutoff": Holds("cutoff p _factor"),
        f"{LAYER}.radial_basis.SineBasis": Holds("cutoff num_basis irreps_out"),
        f"{LAYER}.radial_basis.GaussianBasis": Holds("cutoff n_rbf irreps_out", "offsets widths"),
        f"{LAYER}.radial_basis.BesselBasis": Holds("cutoff num_basis irreps_out trainable prefactor", "bessel_weights"),
        f"{LAYER}._pairwise_distance.PairwiseDistance": Holds(
            "compute_neighbor_list compute_distance_from_R compute_forces batch_nl", "batch_nl"
        ),
        f"{LAYER}._strain.Strain": Holds(),
        f"{LISTS}.BatchNeighborList": Holds("requires_grad return_distance", "neighbor_list"),
        f"{LISTS}.TorchNeighborList": Holds(f"{FOUND} wrap_atoms", "disp_mat"),
        f"{LISTS}.Asap3NeighborList": Holds(f"{FOUND} return_cell_displacements"),
        f"{LISTS}.MatScipyNeighborList": Holds(f"{FOUND} return_cell_displacements"),
        f"{LAYER}._atomwise_reduce.AtomwiseReduce": Holds("aggregation_mode model_outputs output_key per_atom_output"),
        f"{LAYER}._grad_output.GradientOutput": Holds(
            "grad_on_edge_diff grad_on_positions model_outputs update_callback"
        ),
        f"{LAYER}._rescale.GlobalRescaleShift": Holds(
            "model_outputs output_keys scale_keys shift_keys _initialized",
            "atomwise_normalization scale_by shift_by shift_by_E0 atomic_energies",
        ),
        f"{LAYER}._rescale.PerSpeciesRescaleShift": Holds(
            "scales_keys shifts_keys atomwise_normalization _initialized", "scales shifts"
        ),
    },
)
"""Its classes since December 2024; before, they had other attributes, such as has_scale, and other neighbour lists."""

refuse = CODE.refuse


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


def from_modules(archive: Archive, model: StandIn) -> Described:
    """Take apart the modules that a checkpoint holds as a pickle.

    Args:
        archive: of the file.
        model: the NeuralNetworkPotential.

    Raises:
        CheckpointError: a module is not what a PaiNN of curator has, or has more than it.
    """
    walk = _Walk(archive, CODE)
    model = walk.module(model, "the model", "NeuralNetworkPotential")
    painn = walk.module(model.part("representation"), "the representation", "PainnModel")
    embedding = walk.module(painn.part("atom_embedding"), "the embedding", "Embedding")
    if embedding.part("max_norm") is not None:
        walk.refuse("the embedding renormalises its rows (max_norm)")
    weights = {f"atom_embedding.{name}": thing for name, thing in _tensors(embedding).items()}
    weights |= walk.network(painn.part("readout_mlp"), "readout_mlp")
    bases, cutoffs = list[Part](), list[Part]()
    for i, thing in enumerate(walk.listed(painn.part("message_layers"), "the list of messages")):
        at = f"message_layers.{i}"
        message = walk.module(thing, at, "PainnMessage")
        weights |= walk.network(message.part("scalar_message_mlp"), f"{at}.scalar_message_mlp")
        weights |= walk.linear(message.part("filter_layer"), f"{at}.filter_layer")
        bases.append(walk.described(message.part("radial_basis"), f"the radial basis of {at}", *BASES))
        cutoffs.append(walk.described(message.part("cutoff_fn"), f"the cutoff function of {at}", *CUTOFFS))
    for i, thing in enumerate(walk.listed(painn.part("update_layers"), "the list of updates")):
        at = f"update_layers.{i}"
        update = walk.module(thing, at, "PainnUpdate")
        weights |= walk.network(update.part("update_mlp"), f"{at}.update_mlp")
        for name in ("update_U", "update_V"):
            weights |= walk.linear(update.part(name), f"{at}.{name}")
    inputs = [walk.input(thing) for thing in walk.listed(model.part("input_modules"), "the list of input modules")]
    outputs = walk.listed(model.part("output_modules"), "the list of output modules")
    made = [walk.described(thing, f"the output module {i}", *OUTPUTS) for i, thing in enumerate(outputs)]
    return Described(painn.part("cutoff"), weights, bases, cutoffs, inputs, made)


class _Walk(Modules):
    """Of a PaiNN of curator: its tensors stay stand-ins, which are compared with those of its state dict."""

    def described(self, thing: Any, at: str, *kinds: str) -> Part:
        held = self.module(thing, at, *kinds)
        return Part(held.kind, held.state, _tensors(held))

    def listed(self, thing: Any, at: str) -> list[Any]:
        return list(self.members(thing, at, "ModuleList", "CallbackModuleList").values())

    def linear(self, thing: Any, at: str) -> dict[str, Any]:
        return {f"{at}.{name}": held for name, held in _tensors(self.module(thing, at, "Linear")).items()}

    def network(self, thing: Any, at: str) -> dict[str, Any]:
        """Two layers with SiLU between them."""
        layers = self.members(thing, at, "Sequential")
        if len(layers) != 3:
            self.refuse(f"{at} has the modules {', '.join(layers)}, not two layers and what is between them")
        self.module(layers["1"], f"the activation of {at}", "SiLU")
        return self.linear(layers["0"], f"{at}.0") | self.linear(layers["2"], f"{at}.2")

    def input(self, thing: Any) -> Part:
        held = self.module(thing, "an input module", *INPUTS)
        if (neighbours := held.part("batch_nl")) is None:
            return Part(held.kind, {})
        inner = self.module(neighbours, "the neighbour list", "BatchNeighborList").part("neighbor_list")
        return Part(held.kind, {"cutoff": self.module(inner, "the neighbour list", *NEIGHBOURS).part("cutoff")})


def _tensors(thing: StandIn) -> dict[str, Any]:
    """Stand-ins of a module's parameters and buffers by name."""
    held = {**thing.state.get("_parameters", {}), **thing.state.get("_buffers", {})}
    return {name: tensor for name, tensor in held.items() if tensor is not None}
