"""PaiNN (Schütt, Unke, Gastegger 2021, arXiv:2102.03150), as SchNetPack 2.1 writes it, on a padded neighbour matrix.

Equation numbers are the paper's. SchNetPack's state dicts load unchanged; names of modules are ours and `rename` maps
one to the other.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.model.aggregation import PLAIN, Aggregation, FilterFunction, Vectors
from painn_deploy.export.model.cutoffs import cutoff_function
from painn_deploy.export.model.layout import rename
from painn_deploy.export.model.repulsion import ZBLRepulsion
from painn_deploy.export.model.student import (
    Answer,
    Configuration,
    NeighbourGraph,
    Student,
    mlp,
    parts,
    read_out,
)
from painn_deploy.export.model.weights import check_basis, check_num_rbf, hidden_sizes, renamed_once, with_weights

__all__ = ["PaiNN"]


ALIGNED = 8
FLAT_WIDTH = 1e18
"""Width of a Gaussian that is 1, with a slope of 0, at every distance."""


class GaussianBasis(nn.Module):
    """exp(-((d - offset)/width)²/2)."""

    offsets: Tensor
    widths: Tensor

    def __init__(self, offsets: Tensor, widths: Tensor) -> None:
        super().__init__()
        self.register_buffer("offsets", offsets)
        self.register_buffer("widths", widths)

    def forward(self, distances: Float[Tensor, "*edges"], columns: int) -> Float[Tensor, "*edges columns"]:
        """The basis, and ones up to `columns`."""
        flat = columns - len(self.offsets)
        offsets = torch.cat([self.offsets, self.offsets.new_zeros(flat)])
        widths = torch.cat([self.widths, self.widths.new_full((flat,), FLAT_WIDTH)])
        scaled = (distances.unsqueeze(-1) - offsets) / widths
        return torch.exp(-0.5 * (scaled * scaled))


class BesselBasis(nn.Module):
    """sin(frequency·d)/d, the paper's."""

    freqs: Tensor

    def __init__(self, freqs: Tensor) -> None:
        super().__init__()
        self.register_buffer("freqs", freqs)

    def forward(self, distances: Float[Tensor, "*edges"], columns: int) -> Float[Tensor, "*edges columns"]:
        """The basis, and ones up to `columns`."""
        d = distances.unsqueeze(-1)
        flat = columns - len(self.freqs)
        # sin(0·d + π/2) is 1, and stays 1 when divided by 0·d + 1: no concatenation, whose derivative would be one
        freqs = torch.cat([self.freqs, self.freqs.new_zeros(flat)])
        ones = torch.cat([self.freqs.new_zeros(len(self.freqs)), self.freqs.new_ones(flat)])
        return torch.sin(d * freqs + ones * (math.pi / 2)) / (d * (1 - ones) + ones)


class PaiNN(Student):
    """Polarisable atom interaction network.

    Args:
        configuration: hyperparameters.
        rows: rows of the embedding, the largest Z plus one.
        basis: radial basis, or one for each interaction; by default Gaussians on an even grid from 0 to the cutoff, as
            in SchNetPack.
        readout: sizes of the read-out's hidden layers; by default one of half the features.
        shared_filters: one set of filters for all interactions.
        mixing_bias: whether vectors are mixed with a bias, which breaks rotations; the paper has none.
        scaled: whether each element's energies are multiplied by a factor of its own, `energy_scales`.
        repulsion: of nuclei, added to the energy.
    """

    basis: nn.Module
    energy_scales: Tensor | None
    repulsion: ZBLRepulsion | None

    def __init__(
        self,
        configuration: Configuration,
        rows: int = 100,
        *,
        basis: nn.Module | None = None,
        readout: tuple[int, ...] | None = None,
        shared_filters: bool = False,
        mixing_bias: bool = False,
        scaled: bool = False,
        repulsion: ZBLRepulsion | None = None,
    ) -> None:
        super().__init__(configuration, rows)
        features, layers, kind = configuration.hidden_dim, configuration.num_interactions, configuration.activation
        centres = torch.linspace(0, configuration.cutoff, configuration.num_rbf)
        if basis is None:
            spacing = configuration.cutoff / max(configuration.num_rbf - 1, 1)
            basis = GaussianBasis(centres, torch.full_like(centres, spacing))
        self.basis = basis
        self.filters = nn.Linear(configuration.num_rbf, 3 * features * (1 if shared_filters else layers))
        self.message = nn.ModuleList(mlp([features, features, 3 * features], kind) for _ in range(layers))
        self.mixing = nn.ModuleList(nn.Linear(features, 2 * features, bias=mixing_bias) for _ in range(layers))
        self.update = nn.ModuleList(mlp([2 * features, features, 3 * features], kind) for _ in range(layers))
        self.readout = mlp([features, *((features // 2,) if readout is None else readout), 1], kind)
        self.register_buffer("energy_scales", torch.ones(rows) if scaled else None)
        self.repulsion = repulsion

    @property
    def feature_width(self) -> int:
        """See `Student.feature_width`."""
        return cast(nn.Linear, self.readout[-1]).in_features

    def answer(self, graph: NeighbourGraph, aggregation: Aggregation = PLAIN) -> Answer:
        """See `Student.answer`."""
        distances, directions = aggregation.geometry(graph.displacements, graph.mask, 0.0)
        filters = self._filters(distances, graph.mask, aggregation)
        scalars = self.embedding(graph.atomic_numbers)
        vectors: Vectors | None = None  # zero at first: terms that hold them are left out, not multiplied by zero
        last = len(self.message) - 1
        for layer in range(last + 1):
            message, update = cast(nn.Sequential, self.message[layer]), cast(nn.Sequential, self.update[layer])
            w_scalar, w_direction, *w_vector = filters[layer]
            # eq. 7 and 8; the filters' cutoff, mask and bias sit in the radial features
            if vectors is None:
                # at first an atom is its element: the messages are a table, one row an element
                table = parts(message, self.embedding.weight, (0, 1))
                x_scalar, x_direction = (nn.functional.embedding(graph.atomic_numbers, rows) for rows in table)
                change = aggregation.dipoles(directions, w_direction, x_direction, graph.neighbours)
            else:
                x_scalar, x_direction, x_vector = parts(message, scalars, (0, 1, 2), product=aggregation.product)
                change = aggregation.dipoles(directions, w_direction, x_direction, graph.neighbours)
                products = x_vector.unsqueeze(1) * vectors
                change = change + aggregation.vectors(w_vector[0], products, graph.neighbours) + vectors
            scalars = scalars + aggregation.scalars(w_scalar, x_scalar, graph.neighbours)
            vectors = change
            # eq. 9 and 10
            mixing = cast(nn.Linear, self.mixing[layer])
            v, w = aggregation.product(mixing, vectors, mixing.weight, mixing.bias).chunk(2, -1)
            norm = aggregation.norm(v, self.configuration.epsilon)
            features = torch.cat([scalars, norm], -1)
            if layer < last:
                a_scalar, a_vector, a_product = parts(update, features, (0, 1, 2), product=aggregation.product)
                vectors = vectors + a_vector.unsqueeze(1) * w
            else:  # nothing reads the last interaction's vectors
                a_scalar, a_product = parts(update, features, (0, 2), product=aggregation.product)
            scalars = scalars + a_scalar + a_product * (v * w).sum(1)
        energies, hidden = read_out(self.readout, scalars)
        if self.energy_scales is not None:
            scales = nn.functional.embedding(graph.atomic_numbers, self.energy_scales[:, None])
            energies, hidden = energies * scales.squeeze(-1), hidden * scales
        if self.repulsion is not None:
            numbers = graph.atomic_numbers, graph.neighbours
            energies = energies + self.repulsion(distances, graph.mask, *numbers, aggregation)
        return Answer(energies, hidden)

    def _filters(self, distances: Tensor, mask: Tensor, aggregation: Aggregation) -> list[Sequence[Any]]:
        """For each interaction its scalar and direction filters, and from the second on those of vectors.

        (W·φ + b)·f = [W, b]·[φ, 1]·f with the basis φ and the cutoff times the mask f: the wide filters need neither a
        bias nor a mask of their own.
        """
        wanted = self._wanted()
        weights = [weight for layer in wanted for weight in layer]
        if self.radial_table is not None:
            functions = self.radial_table.functions([self.configuration.hidden_dim] * len(weights), mask)
        else:
            functions = [self._filtered(w, mask, layer) for layer, of in enumerate(wanted) for w in of]
        found = iter(aggregation.filters(functions, distances))
        return [[next(found) for _ in layer] for layer in wanted]

    def _filtered(self, weight: Tensor, mask: Tensor, layer: int) -> FilterFunction:
        return lambda distances: self._radial(distances, mask, layer) @ weight

    def _radial(self, distances: Tensor, mask: Tensor | float, layer: int) -> Tensor:
        """The basis and the 1 that the bias multiplies, times cutoff and mask; [..., columns]."""
        basis = self.basis[layer] if isinstance(self.basis, nn.ModuleList) else self.basis
        cutoff = self.envelope(distances) * mask
        radial: Tensor = basis(distances, self._columns())
        return radial * cutoff.unsqueeze(-1)

    def envelope(self, distances: Float[Tensor, "*edges"]) -> Float[Tensor, "*edges"]:
        """What fades a pair out as it nears the cutoff."""
        said = self.configuration
        fades = cutoff_function(said.cutoff_fn, said.cutoff, switch_on=said.switch_on, power=said.cutoff_power)
        return fades(distances)

    def _wanted(self) -> list[Sequence[Tensor]]:
        """For each interaction the weights [columns, features] of its filters; the first needs none for vectors."""
        weights = torch.cat([self.filters.weight, self.filters.bias[:, None]], -1).mT
        weights = nn.functional.pad(weights, (0, 0, 0, self._columns() - len(weights)))
        columns = weights.chunk(weights.shape[-1] // self.configuration.hidden_dim, -1)
        layers = [columns[i : i + 3] for i in range(0, len(columns), 3)]
        return [layers[i % len(layers)][: 2 if i == 0 else 3] for i in range(len(self.message))]

    def wanted_filters(self, distances: Float[Tensor, " distances"]) -> Float[Tensor, "distances filters"]:
        """See `Student.wanted_filters`: those of each interaction after the other."""
        found = [self._radial(distances, 1.0, i) @ torch.cat(list(of), -1) for i, of in enumerate(self._wanted())]
        return torch.cat(found, -1)

    def _columns(self) -> int:
        """Of the basis, the 1 that the bias multiplies included; a multiple of eight, which matrix units like."""
        return ALIGNED * -(-(self.configuration.num_rbf + 1) // ALIGNED)

    @classmethod
    def from_state_dict(cls, configuration: Configuration, state: Mapping[str, Tensor], source: str) -> "PaiNN":
        """Build from SchNetPack's state dict; sizes are read from the weights and held against the configuration.

        Args:
            configuration: the checkpoint's hyperparameters.
            state: weights by SchNetPack's names.
            source: the checkpoint's name, for errors.

        Raises:
            CheckpointError: keys are missing or left over.
            ConfigurationError: the weights have other sizes than the configuration says.
        """
        renamed = renamed_once(state, rename, source)
        basis = _basis_of(renamed, configuration, source)
        stored_cutoff = renamed.pop("cutoff", None)
        if stored_cutoff is not None and not abs(float(stored_cutoff.detach()) - configuration.cutoff) <= 1e-6:
            raise ConfigurationError(
                f"{source} was trained with a cutoff of {float(stored_cutoff.detach())} Å, its configuration says "
                f"{configuration.cutoff} Å."
            )
        if stored_cutoff is None:
            _check_reach(basis, configuration, source)
        features = configuration.hidden_dim
        filters = renamed.get("filters.bias", torch.empty(0))
        rows = len(renamed.get("embedding.weight", torch.empty(0)))
        repulsion = None
        if configuration.repulsion is not None:
            repulsion = ZBLRepulsion.taken_from(renamed, configuration.repulsion, rows, configuration.cutoff, source)

        def make() -> PaiNN:
            return cls(
                configuration,
                rows,
                basis=copy.deepcopy(basis),
                readout=hidden_sizes(renamed),
                shared_filters=len(filters) == 3 * features and configuration.num_interactions > 1,
                mixing_bias="mixing.0.bias" in renamed,
                scaled="energy_scales" in renamed,
                repulsion=copy.deepcopy(repulsion),
            )

        return with_weights(make, configuration, renamed, source)


def _basis_of(tensors: Mapping[str, Tensor], configuration: Configuration, source: str) -> nn.Module:
    """The radial basis that a checkpoint holds, or those of each interaction.

    Raises:
        CheckpointError: there is none that is known.
        ConfigurationError: it has another number of functions than the configuration says.
    """
    shared = any(f"basis.{name}" in tensors for name in ("offsets", "widths", "freqs"))
    made: list[nn.Module] = []
    for place in ["basis."] if shared else [f"basis.{layer}." for layer in range(configuration.num_interactions)]:
        found = {name: tensors[place + name] for name in ("offsets", "widths", "freqs") if place + name in tensors}
        check_basis(found, source, positive=("widths",))
        if found.keys() == {"offsets", "widths"}:
            made.append(GaussianBasis(found["offsets"], found["widths"]))
        elif found.keys() == {"freqs"}:
            made.append(BesselBasis(found["freqs"]))
        else:
            raise CheckpointError(
                f"{source} holds no radial basis that we know: expected representation.radial_basis.offsets and "
                "widths (Gaussians) or representation.radial_basis.freqs (sine)."
            )
        check_num_rbf(len(next(iter(found.values()))), configuration, source)
    return made[0] if shared else nn.ModuleList(made)


def _check_reach(basis: nn.Module, configuration: Configuration, source: str) -> None:
    """Hold the configuration's cutoff against the radial basis, where nothing else says what it was."""
    if isinstance(basis, nn.ModuleList):
        return  # trained apart, so that their ends say nothing
    if isinstance(basis, BesselBasis):
        reach = math.pi / float(basis.freqs.abs().min().clamp_min(1e-9))
    else:
        reach = float(cast(GaussianBasis, basis).offsets.max())
    if configuration.num_rbf > 1 and not abs(reach - configuration.cutoff) <= 1e-3:
        raise ConfigurationError(
            f"{source}: its radial basis reaches to {reach:.4f} Å, and its configuration says {configuration.cutoff} Å."
        )
