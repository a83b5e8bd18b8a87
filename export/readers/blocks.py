"""Another code's blocks in SchNetPack's layout: each PaiNN orders its splits in its own way, and nothing else differs.

SchNetPack's order is that of `painn_deploy.export.model.painn`: of messages and filters (scalar, direction, vector), of
an update (scalar, vector, product), and of an update's input the scalars before the norms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.model.layout import fold_units
from painn_deploy.export.readers.reader import Potential

__all__ = ["Block", "Linear", "Order", "canonical", "in_our_terms"]

LAST = "output_modules.0.outnet.1"
"""The read-out's last layer: each code's has two."""

MESSAGE = ("scalar", "direction", "vector")
UPDATE = ("scalar", "vector", "product")


@dataclass(frozen=True)
class Linear:
    """A layer's numbers: weight [outputs, inputs], and bias [outputs] if it has one."""

    weight: Tensor
    bias: Tensor | None = None

    def rows(self, order: Sequence[str], wanted: Sequence[str]) -> "Linear":
        """The same with the equal parts of its output in another order.

        Args:
            order: what the parts are, as they come.
            wanted: the same, as they shall be.
        """
        places = [order.index(name) for name in wanted]

        def moved(tensor: Tensor) -> Tensor:
            chunks = tensor.chunk(len(order))
            return torch.cat([chunks[place] for place in places])

        return Linear(moved(self.weight), None if self.bias is None else moved(self.bias))

    def named(self, name: str) -> dict[str, Tensor]:
        """Its tensors, by names that begin so."""
        found = {f"{name}.weight": self.weight}
        return found if self.bias is None else found | {f"{name}.bias": self.bias}


@dataclass(frozen=True)
class Block:
    """One interaction and the update that follows it.

    Attributes:
        message: layers that make the messages of an atom's scalars.
        filters: from the radial basis to filters [3 features, functions].
        basis: of the radial basis: `freqs`, or `offsets` and `widths`.
        multiplied: what vectors go through that an update adds to them (U in the paper).
        measured: what vectors go through whose norms are taken (V in the paper).
        update: layers that make an update of scalars and norms.
    """

    message: Sequence[Linear]
    filters: Linear
    basis: Mapping[str, Tensor]
    multiplied: Linear
    measured: Linear
    update: Sequence[Linear]


@dataclass(frozen=True)
class Order:
    """How a code orders what it splits.

    Attributes:
        message: parts of messages and filters: `scalar` is summed into scalars, `direction` multiplies directions,
            `vector` multiplies the neighbours' vectors.
        update: parts of an update: `scalar` is added to scalars, `vector` multiplies U v, `product` multiplies
            U v · V v.
        norms_first: whether norms come before scalars in an update's input.
    """

    message: Sequence[str]
    update: Sequence[str]
    norms_first: bool = False


def canonical(
    blocks: Sequence[Block], order: Order, embedding: Tensor, readout: Sequence[Linear], source: str
) -> dict[str, Tensor]:
    """Tensors under SchNetPack's names, in the units that they came in.

    Args:
        blocks: of each interaction, in order.
        order: of the splits in them.
        embedding: a row of features for each Z.
        readout: layers from scalars to the energy of an atom.
        source: the file, for messages.

    Raises:
        CheckpointError: there are no blocks, or layers have other shapes than those of a PaiNN with such an embedding.
    """
    if not blocks or embedding.dim() != 2:
        raise CheckpointError(
            f"{source} has {len(blocks)} interactions and an embedding of the shape {tuple(embedding.shape)}; a PaiNN "
            "has at least one, and an embedding of a row for each element."
        )
    features = embedding.shape[-1]
    for index, block in enumerate(blocks):
        _check_block(block, features, f"{source}: interaction {index}")
    sizes = [features, *(size for layer in readout[:-1] for size in layer.weight.shape[:1]), 1]
    _check("energies", readout, [(rows, columns) for columns, rows in pairwise(sizes)], f"{source}: the read-out")
    found = {"representation.embedding.weight": embedding}
    bases = [dict(block.basis) for block in blocks]
    for index, basis in enumerate(bases[:1] if _same(bases) else bases):
        place = "representation.radial_basis" if _same(bases) else f"representation.radial_basis.{index}"
        found |= {f"{place}.{name}": tensor for name, tensor in basis.items()}
    filters = [block.filters.rows(order.message, MESSAGE) for block in blocks]
    found |= _side_by_side(filters).named("representation.filter_net")
    for index, block in enumerate(blocks):
        message = f"representation.interactions.{index}.interatomic_context_net"
        mixing = f"representation.mixing.{index}"
        *first, last = block.message
        found |= _network([*first, last.rows(order.message, MESSAGE)], message)
        found |= _side_by_side([block.measured, block.multiplied]).named(f"{mixing}.mu_channel_mix")
        first_layer, *middle, last = [*block.update]
        if order.norms_first:
            norms, scalars = first_layer.weight.chunk(2, -1)
            first_layer = Linear(torch.cat([scalars, norms], -1), first_layer.bias)
        update = [first_layer, *middle, last.rows(order.update, UPDATE)]
        found |= _network(update, f"{mixing}.intraatomic_context_net")
    return found | _network(readout, "output_modules.0.outnet")


def in_our_terms(
    tensors: Mapping[str, Tensor],
    said: Mapping[str, Any],
    cutoff: float,
    units: tuple[float, float],
    scales: Tensor | float,
    references: Tensor | float,
    remarks: Sequence[str],
) -> Potential:
    """A PaiNN in eV and Å, with the sizes of its configuration.

    Args:
        tensors: see `canonical`.
        said: of its configuration, what is neither a size nor the cutoff.
        cutoff: in the model's unit.
        units: the model's, in eV and Å.
        scales: what an atom's energy is multiplied with, or that of each element [rows].
        references: what is added then in the model's unit, or for each element [rows].
        remarks: sentences that a user should read.
    """
    energy, length = units
    made, rows = dict(tensors), len(tensors["representation.embedding.weight"])
    factors, added = (torch.as_tensor(each, dtype=torch.float64).expand(rows) for each in (scales, references))
    if (factors != factors[:1]).any():
        made["energy_scales"] = factors.clone()
    elif (factors != 1).any():
        made |= {name: made[name].double() * factors[0] for name in (f"{LAST}.weight", f"{LAST}.bias")}
    made["representation.cutoff_fn.cutoff"] = torch.tensor([cutoff], dtype=torch.float64)
    made = fold_units(made, LAST, energy, length)
    if added.any():
        made["atomic_references"] = added * energy
    sizes = {
        "architecture": "painn",
        "hidden_dim": made["representation.embedding.weight"].shape[-1],
        "num_interactions": sum(name.endswith(".mu_channel_mix.weight") for name in made),
        "num_rbf": made["representation.filter_net.weight"].shape[-1],
        "cutoff": cutoff * length,
    }
    return Potential(made, {**sizes, **said}, tuple(remarks))


def _check_block(block: Block, features: int, owner: str) -> None:
    """Refuse layers of other shapes, before parts of them are told apart by their shapes."""
    functions = len(next(iter(block.basis.values())).flatten())
    square, wide = (features, features), (3 * features, features)
    _check("messages", block.message, [square, wide], owner)
    _check("filters", [block.filters], [(3 * features, functions)], owner)
    _check("U", [block.multiplied], [square], owner)
    _check("V", [block.measured], [square], owner)
    _check("updates", block.update, [(features, 2 * features), wide], owner)


def _check(name: str, layers: Sequence[Linear], shapes: Sequence[tuple[int, int]], owner: str) -> None:
    found = [tuple(layer.weight.shape) for layer in layers]
    biases = [layer.bias.shape != layer.weight.shape[:1] for layer in layers if layer.bias is not None]
    if found != shapes or any(biases):
        raise CheckpointError(
            f"{owner} has layers of the shapes {found} for {name}{' and other biases' * any(biases)}; its embedding "
            f"and its radial basis make {shapes}."
        )


def _network(layers: Sequence[Linear], name: str) -> dict[str, Tensor]:
    return {key: tensor for i, layer in enumerate(layers) for key, tensor in layer.named(f"{name}.{i}").items()}


def _same(bases: Sequence[Mapping[str, Tensor]]) -> bool:
    first = bases[0]
    return all(each.keys() == first.keys() and all(torch.equal(each[k], first[k]) for k in first) for each in bases)


def _side_by_side(layers: Sequence[Linear]) -> Linear:
    """One layer that gives what several give, one after the other; zeros stand for a bias that only some have."""
    weight = torch.cat([layer.weight for layer in layers])
    if all(layer.bias is None for layer in layers):
        return Linear(weight)
    biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return Linear(weight, torch.cat(biases))
