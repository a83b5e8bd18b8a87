"""graph-pes's PaiNN as `graph-pes-train` saves it in model.pt: alone, or with energies of elements added to it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.declaration import Declaration, species_text
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.readers.archive import Archive, kind_of
from painn_deploy.export.readers.blocks import Block, Linear, Order, canonical, in_our_terms
from painn_deploy.export.readers.graph_pes_parts import CODE, LISTS, OFFSETS, PAINN, SUM, by_element, elements_of
from painn_deploy.export.readers.modules import MOST, Modules
from painn_deploy.export.readers.reader import Opened, Potential, Reader
from painn_deploy.export.readers.stand_ins import StandIn

__all__ = ["GRAPH_PES"]

VERSION = "_GRAPH_PES_VERSION"
FIRST, NEWEST, BEYOND = (0, 0, 21), (1, 0, 2), (2,)
"""Versions of graph-pes: up to 0.0.20 norms had no epsilon; 1.0.2 is the newest that was compared; 2 is unknown."""

EPSILON = 1e-8
"""Inside norms; it is in the code of these versions and in no file."""

ORDER = Order(message=("scalar", "direction", "vector"), update=("vector", "scalar", "product"))
NESTED = 8
"""Sums inside each other."""

REMEDY = "Give the model.pt that graph-pes-train writes into the folder of its run, or torch.save(model, 'model.pt')."


def read_graph_pes(opened: Opened, declared: Declaration) -> Potential:
    """Read a PaiNN of graph-pes, and the energies of elements that an AdditionModel adds to it.

    Args:
        opened: the file.
        declared: units, and the elements that it was trained on where somebody says so.

    Raises:
        CheckpointError: it is no model that can be deployed; the message says what stands in the way.
        DeclarationError: a unit was not named.
    """
    source, tree = opened.archive.source, opened.tree
    if not isinstance(tree, StandIn):
        raise CheckpointError(
            f"{source} is a state dict of graph-pes, which lacks what its classes hold beside tensors, such as the "
            f"factor of the radial basis. {REMEDY}"
        )
    if opened.archive.scripted:
        raise CheckpointError(
            f"{source} is TorchScript of graph-pes's {tree.kind}, a program whose equations are not read. {REMEDY}"
        )
    return _Walk(opened.archive).read(tree, declared)


class _Walk(Modules):
    """Along the paths that a PaiNN of graph-pes has."""

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive, CODE)
        self._left = MOST

    def read(self, model: StandIn, declared: Declaration) -> Potential:
        leaves = list(self._leaves(model, "the model", NESTED))
        painns = [leaf for leaf, _ in leaves if str(leaf.name) == PAINN]
        if len(painns) != 1:
            self.refuse(f"it holds {len(painns) or 'no'} PaiNNs, and one can be deployed")
        (painn,) = painns
        remarks = self._version(painn)
        units = declared.scales(self.archive.source)
        embedding = self.module(painn.part("z_embedding"), "the embedding of elements", "PerElementEmbedding")
        scaler = self.module(painn.part("scaler"), "the scaler of energies", "LocalEnergiesScaler")
        table = self._column(embedding, "_embeddings", "the embedding of elements")
        scales = self._column(scaler, "per_element_scaling", "the scaler of energies", len(table))
        offsets = [self._column(leaf, "_offsets", at, len(table)) for leaf, at in leaves if leaf is not painn]
        blocks, (cutoff, power) = self._blocks(painn)
        read_out = self._network(painn.part("read_out"), "the read-out")
        tensors = canonical(blocks, ORDER, table, read_out, self.archive.source)
        references = sum(offsets, torch.zeros(len(table), dtype=torch.float64))
        said = {
            "cutoff_fn": "polynomial",
            "cutoff_power": power,
            "epsilon": EPSILON,
            "description": f"read from a model of graph-pes {painn.part(VERSION)}",
        }
        if declared.species is None and (seen := elements_of(embedding, scales)):
            said["species"] = list(seen)
            remarks.append(
                f"It is taken to be trained on {species_text(seen, verified=True)}: these elements are registered in "
                "it, or have an energy scale that is not the 1 which training begins with. If that is wrong, say "
                "--species."
            )
        return in_our_terms(tensors, said, cutoff, units, scales, references, remarks)

    def _leaves(self, thing: Any, at: str, depth: int) -> Iterator[tuple[StandIn, str]]:
        """The PaiNN and the energies of elements that are added to it, and where each is; all else is refused."""
        name = str(thing.name) if isinstance(thing, StandIn) else kind_of(thing)
        self._left -= 1
        if self._left < 0 or depth < 0:
            self.refuse(f"its sums hold more than {MOST} models, or more than {NESTED} sums inside each other")
        if name == SUM:
            models = self.module(thing, at, "AdditionModel").part("models")
            for key, model in self.members(models, f"the models of {at}", "UniformModuleDict").items():
                yield from self._leaves(model, f"{key!r} of the sum", depth - 1)
        elif name == PAINN or name in OFFSETS:
            found = self.module(thing, at, thing.kind)
            if (given := found.part("implemented_properties")) != ["local_energies"]:
                self.refuse(f"{at} predicts {str(given)[:80]}, not energies of atoms alone")
            yield found, at
        elif name == "graph_pes.models.unit_converter.UnitConverter":
            self.refuse(
                f"{at} is graph-pes's UnitConverter, which converts energies, forces and stresses and leaves energies "
                "of atoms as they are, all that a PaiNN gives it. Save the model inside it, and name the units of that"
            )
        else:
            kind = f"graph-pes's {name.rpartition('.')[2]}" if name.startswith("graph_pes.") else name
            added = "" if at == "the model" else ": what else is added would be missing from the forces"
            self.refuse(f"{at} is {kind}, no PaiNN{added}")

    def _version(self, painn: StandIn) -> list[str]:
        """Remarks about the version that made the file."""
        said = painn.part(VERSION)
        numbers = str(said).split(".")
        version = tuple(int(number) for number in numbers if number.isdecimal())
        if not isinstance(said, str) or len(version) != len(numbers) or not FIRST <= version < BEYOND:
            self.refuse(
                f"it was made by version {said!r} of graph-pes, and those from {_dotted(FIRST)} on, before "
                f"{_dotted(BEYOND)}, are known to have the same equations"
            )
        if version <= NEWEST:
            return []
        return [
            f"It was made by graph-pes {said}. Up to {_dotted(NEWEST)} its forces were compared with graph-pes's own; "
            "compare some of yours."
        ]

    def _blocks(self, painn: StandIn) -> tuple[list[Block], tuple[float, int]]:
        """Interactions with their updates, and the cutoff and the power of the envelope that all share."""
        sides = [list(self.members(painn.part(name), name, *LISTS).values()) for name in ("interactions", "updates")]
        if len(sides[0]) != len(sides[1]) or not sides[0]:
            self.refuse(f"it has {len(sides[0])} interactions and {len(sides[1])} updates")
        made = [self._block(i, *pair) for i, pair in enumerate(zip(*sides, strict=True))]
        envelopes = {envelope for _, envelope in made}
        held = self.tensor(painn, "cutoff", "the model", integers=True)
        cutoff = self.number(painn.part("cutoff"), "cutoff of the model")
        # in the model's precision, at most in float32, and in each envelope as it was given
        rounding = max(1e-6, torch.finfo(held.dtype).eps if held.is_floating_point() else 0.0)
        if len(envelopes) > 1 or not abs(cutoff / made[0][1][0] - 1) <= rounding:
            words = ", ".join(f"{length} (p = {power})" for length, power in sorted(envelopes))
            self.refuse(f"its envelopes have the cutoffs {words}, and the model {cutoff}: they have to agree")
        return [block for block, _ in made], made[0][1]

    def _block(self, index: int, interaction: Any, update: Any) -> tuple[Block, tuple[float, int]]:
        at, filters_at = f"interaction {index}", f"the filters of interaction {index}"
        interaction = self.module(interaction, at, "Interaction")
        update = self.module(update, f"update {index}", "Update")
        product = self.module(interaction.part("filter_generator"), filters_at, "HaddamardProduct")
        factors = list(self.members(product.part("components"), filters_at, *LISTS).values())
        made = list(self.members(factors[0] if factors else None, filters_at, "Sequential").values())
        if len(factors) != 2 or len(made) != 2 or product.part("left_aligned") is not False:
            self.refuse(f"{filters_at} are made otherwise than in graph-pes's PaiNN")
        basis = self.module(made[0], f"the basis of {at}", "Bessel")
        freqs = self.tensor(basis, "frequencies", f"the basis of {at}").double()
        factor = self.number(basis.part("pre_factor"), f"pre_factor of the basis of {at}")
        filters = self._linear(made[1], filters_at)
        if filters.weight.shape[1:] != freqs.shape:
            self.refuse(f"{filters_at} are of the shape {tuple(filters.weight.shape)}, with {freqs.numel()} functions")
        # factor·sin(f d)/d of graph-pes is sin(|f| d)/d of ours: sign and factor go into the weights behind it
        filters = Linear(filters.weight.double() * (factor * freqs.sign()), filters.bias)
        block = Block(
            message=self._network(interaction.part("Phi"), f"Phi of {at}"),
            filters=filters,
            basis={"freqs": freqs.abs()},
            multiplied=self._vectors(update.part("U"), f"U of update {index}"),
            measured=self._vectors(update.part("V"), f"V of update {index}"),
            update=self._network(update.part("mlp"), f"the network of update {index}"),
        )
        return block, self._envelope(factors[1], f"the envelope of {at}")

    def _vectors(self, thing: Any, at: str) -> Linear:
        module = self.module(thing, at, "VectorLinear")
        return self._linear(module.part("_linear"), at)

    def _envelope(self, thing: Any, at: str) -> tuple[float, int]:
        """Cutoff in the model's unit, and power."""
        envelope = self.module(thing, at, "PolynomialEnvelope")
        cutoff, p = self.number(envelope.part("cutoff"), f"the cutoff of {at}"), envelope.part("p")
        if type(p) is not int or p < 2 or not 0 < cutoff < math.inf:
            self.refuse(f"{at} has the cutoff {cutoff:g} and the power {str(p)[:80]}")
        wanted = [-(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2]
        powers = self.tensor(envelope, "powers", at, integers=True)
        if self.tensor(envelope, "coefficients", at).tolist() != wanted or powers.tolist() != [p, p + 1, p + 2]:
            self.refuse(f"{at} has other coefficients than a polynomial of power {p} has")
        return cutoff, p

    def _network(self, thing: Any, at: str) -> list[Linear]:
        """Two layers with silu between them."""
        network = self.module(thing, at, "MLP")
        self.module(network.part("activation"), f"the activation of {at}", "SiLU")
        layers = [self._linear(one, at) for one in self.members(network.part("linear_layers"), at, *LISTS).values()]
        if len(layers) != 2 or network.part("activate_last") is not False:
            self.refuse(f"{at} has {len(layers)} layers or an activation behind the last; graph-pes's has 2, and none")
        return layers

    def _linear(self, thing: Any, at: str) -> Linear:
        layer = self.module(thing, f"a layer of {at}", "Linear")
        bias = None if layer.part("bias") is None else self.tensor(layer, "bias", at)
        return Linear(self.tensor(layer, "weight", at), bias)

    def _column(self, owner: StandIn, name: str, at: str, rows: int | None = None) -> Tensor:
        """A row for each element; of one number, float64 [rows], where their number is given."""
        found = self.archive.tensor(by_element(owner.part(name))[0], f"{name} of {at}")
        if rows is None and found.dim() == 2:
            return found
        if tuple(found.shape) != (rows, 1):
            self.refuse(f"{name} of {at} has the shape {tuple(found.shape)}, and the embedding {rows or 'no'} rows")
        return found[:, 0].double()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _claims(opened: Opened) -> bool:
    """Whether its class is one of graph-pes's, or its state dict says a version of graph-pes."""
    tree = opened.tree
    if isinstance(tree, StandIn):
        return "graph_pes" in tree.name.module.split(".")
    if not isinstance(tree, Mapping):
        return False
    inside = tree.get("state_dict")
    state = inside if isinstance(inside, Mapping) else tree
    return any(isinstance(value, Mapping) and VERSION in value for value in state.values())


GRAPH_PES = Reader("graph-pes", _claims, read_graph_pes)
