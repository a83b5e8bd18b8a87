"""The seed project's student (StudentForceField of MLFF-Distiller), on a padded neighbour matrix.

Three of its properties are the student's own and are kept: its mixing matrix acts on Cartesian axes, so the energy is
not invariant under rotation; |v| has a cusp where symmetry makes v vanish; and its filters do not vanish at the cutoff.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from painn_deploy.export.errors import CheckpointError, ConfigurationError
from painn_deploy.export.model.aggregation import PLAIN, Aggregation, FilterFunction, Vectors
from painn_deploy.export.model.student import (
    Answer,
    Configuration,
    NeighbourGraph,
    Student,
    mlp,
    parts,
    read_out,
    separate_parts,
)
from painn_deploy.export.model.weights import check_basis, check_num_rbf, hidden_sizes, renamed_once, with_weights

__all__ = ["Distiller"]

DIRECTION = 2
"""Which third of a filter network's output goes with directions."""

DIRECTION_EPSILON = 1e-8
"""Å, what the seed's code adds to d in u = r/(d + 1e-8): it matters to float64, and is below float32's rounding."""


class Distiller(Student):
    """StudentForceField.

    Args:
        configuration: hyperparameters.
        rows: rows of the embedding.
        readout: sizes of the read-out's hidden layers.
    """

    centres: Tensor
    widths: Tensor

    def __init__(self, configuration: Configuration, rows: int = 101, readout: tuple[int, ...] | None = None) -> None:
        super().__init__(configuration, rows)
        features, layers, rbf = configuration.hidden_dim, configuration.num_interactions, configuration.num_rbf
        self.register_buffer("centres", torch.linspace(0, configuration.cutoff, rbf))
        self.register_buffer("widths", torch.full((rbf,), configuration.cutoff / rbf))
        self.filters = nn.ModuleList(mlp([rbf, features, 3 * features]) for _ in range(layers))
        self.update = nn.ModuleList(mlp([2 * features, features, 3 * features]) for _ in range(layers))
        self.mixing = nn.ParameterList(torch.eye(3) for _ in range(layers))
        hidden = (features // 2, features // 4) if readout is None else readout
        self.readout = mlp([features, *hidden, 1])

    @property
    def feature_width(self) -> int:
        """See `Student.feature_width`."""
        return cast(nn.Linear, self.readout[-1]).in_features

    def answer(self, graph: NeighbourGraph, aggregation: Aggregation = PLAIN) -> Answer:
        """See `Student.answer`."""
        distances, directions = aggregation.geometry(graph.displacements, graph.mask, DIRECTION_EPSILON)
        of_scalars, of_vectors, directed = self._filters(distances, directions, graph.mask, aggregation)
        scalars = self.embedding(graph.atomic_numbers)
        vectors: Vectors | None = None  # zero at first: terms that hold them are left out, not multiplied by zero
        last = len(self.filters) - 1
        for layer in range(last + 1):
            update = cast(nn.Sequential, self.update[layer])
            change = directed[layer]
            if vectors is not None:
                change = change + aggregation.vectors(of_vectors[layer - 1], vectors, graph.neighbours) + vectors
            scalars = scalars + aggregation.scalars(of_scalars[layer], scalars, graph.neighbours)
            vectors = change
            features = torch.cat([scalars, aggregation.norm(vectors, 0.0)], -1)
            if layer < last:
                change_scalar, gate, gate_mixed = parts(update, features, (0, 1, 2))
                vectors = gate.unsqueeze(1) * vectors + gate_mixed.unsqueeze(1) * (self.mixing[layer] @ vectors)
            else:  # nothing reads the last interaction's vectors
                (change_scalar,) = parts(update, features, (0,))
            scalars = scalars + change_scalar
        return read_out(self.readout, scalars)

    def _filters(
        self, distances: Tensor, directions: Tensor, mask: Tensor, aggregation: Aggregation
    ) -> tuple[Sequence[Any], Sequence[Any], Sequence[Vectors]]:
        """Filters of scalars for each interaction, of vectors from the second on, and each one's sum over directions.

        Biases make filters non-zero in padded slots: there the mask must take them out, or u = 0.
        """
        layers, (scalars, vectors) = len(self.filters), self._wanted()
        if (table := self.radial_table) is None:
            functions = [self._part(layer, third, mask) for layer, third in (*scalars, *vectors)]
            functions += [self._part(layer, DIRECTION, mask) for layer in range(layers)]
            found = aggregation.filters(functions, distances)
            directed: Sequence[Vectors] = [aggregation.directed(directions, each) for each in found[-layers:]]
        else:  # no product of a table needs what another gives: those of directions are one
            widths = [1] * (len(scalars) + len(vectors)) + [layers]
            functions = table.functions([width * self.configuration.hidden_dim for width in widths], mask)
            found = aggregation.filters(functions, distances)
            directed = aggregation.directed(directions, found[-1]).chunk(layers, -1)
        return found[: len(scalars)], found[len(scalars) : len(scalars) + len(vectors)], directed

    def _wanted(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Interaction and third of the filters of scalars and of vectors that anything reads."""
        layers = range(len(self.filters))
        return [(layer, 0) for layer in layers], [(layer, 1) for layer in layers[1:]]

    def _part(self, layer: int, third: int, mask: Tensor) -> FilterFunction:
        network = cast(nn.Sequential, self.filters[layer])

        def function(d: Tensor) -> Tensor:
            (wide,) = separate_parts(network, self._radial(d), (third,))
            return wide if third == DIRECTION else wide * mask.unsqueeze(-1)

        return function

    def wanted_filters(self, distances: Float[Tensor, " distances"]) -> Float[Tensor, "distances filters"]:
        """See `Student.wanted_filters`: those of scalars, of vectors, and of directions."""
        scalars, vectors = self._wanted()
        radial = self._radial(distances)
        thirds = [cast(nn.Sequential, filters)(radial).chunk(3, -1) for filters in self.filters]
        order = [*scalars, *vectors, *((layer, DIRECTION) for layer in range(len(self.filters)))]
        return torch.cat([thirds[layer][third] for layer, third in order], -1)

    def _radial(self, distances: Float[Tensor, "*edges"]) -> Float[Tensor, "*edges rbf"]:
        cutoff = 0.5 * (torch.cos(distances * (math.pi / self.configuration.cutoff)) + 1.0)
        scaled = (distances.unsqueeze(-1) - self.centres) / self.widths
        return torch.exp(-(scaled * scaled)) * cutoff.unsqueeze(-1)

    @classmethod
    def from_state_dict(cls, configuration: Configuration, state: Mapping[str, Tensor], source: str) -> "Distiller":
        """Build from the seed's state dict; sizes are read from the weights and held against the configuration.

        Args:
            configuration: the checkpoint's hyperparameters.
            state: weights by the seed project's names.
            source: the checkpoint's name, for errors.

        Raises:
            CheckpointError: keys are missing or left over.
            ConfigurationError: the weights have other sizes than the configuration says.
        """
        renamed = renamed_once(state, rename, source)
        if configuration.epsilon != Configuration.epsilon:
            raise ConfigurationError(f"{source} has an epsilon, which the architecture distiller has no use for.")
        if "centres" not in renamed:
            raise CheckpointError(f"{source} holds no rbf.centers: it is not a `distiller` checkpoint.")
        check_num_rbf(len(renamed["centres"]), configuration, source)
        last = float(renamed["centres"][-1])
        if configuration.num_rbf > 1 and abs(last - configuration.cutoff) > 1e-4:
            raise ConfigurationError(
                f"{source} was trained with a cutoff of {last:.4f} Å (its last radial centre), its configuration says "
                f"{configuration.cutoff} Å."
            )
        check_basis(
            {name: renamed[name] for name in ("centres", "widths") if name in renamed}, source, positive=("widths",)
        )
        rows, readout = len(renamed.get("embedding.weight", torch.empty(0))), hidden_sizes(renamed)
        return with_weights(lambda: cls(configuration, rows, readout), configuration, renamed, source)


def rename(key: str) -> str:
    """The seed's name of a tensor, in ours; a key that we do not know stays as it is, and is refused later."""
    parts = key.split(".")
    match parts:
        case ["rbf", "centers"]:
            return "centres"
        case ["rbf", "widths"]:
            return "widths"
        case ["interactions", layer, "message", "rbf_to_scalar", position, name]:
            return f"filters.{layer}.{position}.{name}"
        case ["interactions", layer, "update", "update_mlp", position, name]:
            return f"update.{layer}.{position}.{name}"
        case ["interactions", layer, "update", "mixing_matrix"]:
            return f"mixing.{layer}"
        case ["energy_head", position, name]:
            return f"readout.{position}.{name}"
    return key
