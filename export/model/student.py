"""The base of every student: a configuration, and an energy for each atom of a neighbour graph."""

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, cast

import torch
from ase.data import atomic_numbers as numbers_of_symbols
from jaxtyping import Float, Int
from torch import Tensor, nn

from painn_deploy.export.errors import ConfigurationError
from painn_deploy.export.model.aggregation import PLAIN, Aggregation, Product, linear
from painn_deploy.export.model.cutoffs import ShiftedSoftplus
from painn_deploy.export.model.radial_table import RadialTable

__all__ = ["Answer", "Configuration", "NeighbourGraph", "Student"]


class NeighbourGraph(NamedTuple):
    """The graph contract's inputs as tensors, in its order (see `painn_deploy.export.fields`)."""

    atomic_numbers: Int[Tensor, " atoms"]
    displacements: Float[Tensor, "atoms slots 3"]
    neighbours: Int[Tensor, "atoms slots"]
    reverse: Int[Tensor, "atoms slots"]
    mask: Float[Tensor, "atoms slots"]
    weights: Float[Tensor, " atoms"]


@dataclass(frozen=True)
class Configuration:
    """A student's hyperparameters, as the JSON beside its weights holds them.

    Attributes:
        architecture: `painn` or `distiller`.
        hidden_dim: features per atom.
        num_interactions: message-passing steps.
        num_rbf: radial basis functions.
        cutoff: Å; an edge exists if and only if d < cutoff.
        species: atomic numbers that the student was trained on; None where nobody said.
        epsilon: added inside the norm of `painn`'s vector features; SchNetPack's 1e-8. 0 for norms without one.
        activation: between the layers of `painn`: `silu` or `shifted_softplus`.
        cutoff_fn: what fades a pair of `painn` out, see `painn_deploy.export.model.cutoffs`.
        switch_on: Å, where the cutoff function `switch` begins to fall; None for others.
        cutoff_power: p of the cutoff function `polynomial`; None for others.
        repulsion: the function that fades `painn`'s repulsion of nuclei, `none` where nothing does; None without one.
    """

    architecture: str
    hidden_dim: int
    num_interactions: int
    num_rbf: int
    cutoff: float
    species: tuple[int, ...] | None = None
    epsilon: float = 1e-8
    activation: str = "silu"
    cutoff_fn: str = "cosine"
    switch_on: float | None = None
    cutoff_power: int | None = None
    repulsion: str | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> "Configuration":
        """Read and check a configuration; keys that we do not know may change the model, so they raise.

        Args:
            values: the configuration as its JSON file holds it.
            source: the checkpoint's name, for errors.

        Raises:
            ConfigurationError: a key is missing, unknown, or holds a value of the wrong kind.
        """
        if odd := [key for key in values if not isinstance(key, str)]:
            raise ConfigurationError(f"{source} has a key that is {str(odd[0])[:40]!r} and no text.")
        known = {field.name for field in fields(cls)} | CHOICES.keys()
        required = ("architecture", "hidden_dim", "num_interactions", "num_rbf", "cutoff")
        missing = [key for key in required if key not in values]
        if missing:
            raise ConfigurationError(
                f"{source} lacks {', '.join(missing)}; a configuration needs {', '.join(required)}."
            )
        read = {key: value for key, value in values.items() if key not in DESCRIPTIVE}
        for key, names in CHOICES.items():
            if key in read:
                read[key] = _named(read[key], key, names, source)
        unknown = sorted(set(read) - known)
        if unknown:
            raise ConfigurationError(
                f"{source} has keys that this version does not know: {', '.join(unknown)}. "
                "They may change the model, so they are not ignored; remove them if they do not."
            )
        try:
            made = cls(**{key: _CONVERT[key](value) for key, value in read.items() if key not in UNITS})
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise ConfigurationError(f"{source} holds a value of the wrong kind: {str(error)[:200]}.") from error
        made._check_variant(source)
        return made

    def _check_variant(self, source: str) -> None:
        """Refuse what contradicts itself.

        Raises:
            ConfigurationError: see above.
        """
        if self.architecture == "distiller" and (varied := self.variants()):
            raise ConfigurationError(f"{source} has {', '.join(varied)}, which distiller does not; it is for painn.")
        needs = {"switch": "switch_on", "polynomial": "cutoff_power"}
        for kind, key in needs.items():
            if (getattr(self, key) is None) == (self.cutoff_fn == kind):
                has = "lacks" if self.cutoff_fn == kind else "has"
                raise ConfigurationError(f"{source} {has} {key}, which the cutoff function {kind!r} has, and no other.")
        if self.switch_on is not None and self.switch_on >= self.cutoff:
            raise ConfigurationError(f"{source}: switch_on is {self.switch_on} Å, and the cutoff {self.cutoff} Å.")

    def variants(self) -> list[str]:
        """Names of what differs from how SchNetPack makes a PaiNN unless it is told otherwise."""
        return [f.name for f in fields(self) if f.name in VARIANTS and getattr(self, f.name) != f.default]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, for manifests and metadata; of what may vary, only what does."""
        usual = VARIANTS - set(self.variants()) - {"epsilon"}
        values = {key: value for key, value in asdict(self).items() if key not in usual}
        values["species"] = None if self.species is None else list(self.species)
        return values


CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "activation": {"silu": ("swish", "SiLU"), "shifted_softplus": ("ssp",)},
    "cutoff_fn": {
        "cosine": ("CosineCutoff",),
        "mollifier": ("MollifierCutoff",),
        "switch": ("SwitchFunction",),
        "polynomial": ("PolynomialEnvelope", "PolynomialCutoff"),
    },
    "repulsion": {"none": (), "cosine": (), "mollifier": (), "switch": ()},
    "length_unit": {"Angstrom": ("Ang", "A", "Å")},
    "energy_unit": {"eV": ()},
}
"""What can be chosen among, and what training codes call it."""

UNITS = ("length_unit", "energy_unit")
"""Of which there is one choice, so that nothing needs to keep it."""

VARIANTS = frozenset({"epsilon", "activation", "cutoff_fn", "switch_on", "cutoff_power", "repulsion"})
"""Of a configuration, what `painn` alone has."""

LARGEST = 16_384
"""Of hidden_dim and num_rbf; what is larger is a slip of the pen."""

DEEPEST = 100
"""Of num_interactions, likewise."""

LARGEST_POWER = 64
"""Of cutoff_power; the polynomial has as many terms."""

LARGEST_CUTOFF = 100.0
"""Å; the neighbours of a force field that reached as far would take all memory."""

# Keys that describe a student and change nothing in it.
DESCRIPTIVE = frozenset(
    {"code", "name", "description", "teacher", "training", "license", "version", "format", "metrics"}
)


def _named(value: Any, key: str, names: Mapping[str, tuple[str, ...]], source: str) -> str | None:
    """Our name of what a configuration names.

    Raises:
        ConfigurationError: it is none that is deployed.
    """
    if value is None and key == "repulsion":
        return None
    found = [name for name, others in names.items() if isinstance(value, str) and value in (name, *others)]
    if not found:
        raise ConfigurationError(
            f"{source} has {key} = {str(value)[:80]!r}; this version deploys {' or '.join(map(repr, names))} only."
        )
    return found[0]


def _positive_int(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or number != float(value) or not 1 <= number <= LARGEST:
        raise ValueError(f"{value!r} is not a positive integer of a sensible size")
    return number


def _interactions(value: Any) -> int:
    if (number := _positive_int(value)) > DEEPEST:
        raise ValueError(f"{value!r} is not a number of interactions of up to {DEEPEST}")
    return number


def _positive_float(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise ValueError(f"{value!r} is not a positive number")
    return number


def _not_negative(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not 0 <= number < float("inf"):
        raise ValueError(f"{value!r} is not a number from 0 on")
    return number


def _power(value: Any) -> int | None:
    if value is not None and not 2 <= (number := _positive_int(value)) <= LARGEST_POWER:
        raise ValueError(f"cutoff_power is {number}, and not between 2 and {LARGEST_POWER}")
    return None if value is None else number


def _cutoff(value: Any) -> float:
    if (number := _positive_float(value)) > LARGEST_CUTOFF:
        raise ValueError(f"{value!r} is not a cutoff of up to {LARGEST_CUTOFF:g} Å")
    return number


def _species(values: Any) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple) or not all(isinstance(v, str | int) and v is not True for v in values):
        raise ValueError(f"{values!r} is not a list of elements")
    numbers = {numbers_of_symbols[v] if isinstance(v, str) else int(v) for v in values}
    if not numbers or min(numbers) < 1 or max(numbers) > 118:
        raise ValueError(f"{values!r} is not a list of elements")
    return tuple(sorted(numbers))


_CONVERT: Mapping[str, Any] = {
    "architecture": str,
    "hidden_dim": _positive_int,
    "num_interactions": _interactions,
    "num_rbf": _positive_int,
    "cutoff": _cutoff,
    "species": _species,
    "epsilon": _not_negative,
    "activation": str,
    "cutoff_fn": str,
    "switch_on": lambda value: None if value is None else _not_negative(value),
    "cutoff_power": _power,
    "repulsion": lambda value: value,
}


class Answer(NamedTuple):
    """What a student makes of a graph.

    Attributes:
        energies: of atoms, eV.
        features: last hidden layer of the read-out, in which the energies are linear up to a constant of the element.
    """

    energies: Float[Tensor, " atoms"]
    features: Float[Tensor, "atoms width"]


class Student(nn.Module, ABC):
    """An energy model over a padded neighbour matrix; the reference that every engine is held against.

    Attributes:
        configuration: hyperparameters.
        embedding: a row of features for each Z.
        atomic_references: [rows of the embedding] eV, float64, what is added to an atom's energy because of its
            element alone. It stays out of graphs and engines, where a total energy of -100 eV an atom would cost
            digits, and is added by the runtime in float64.
        radial_table: that its filters are read from; None where they are computed.
        gives_features: whether its graph gives the features of `answer` as well.
    """

    configuration: Configuration
    gives_features = False
    embedding: nn.Embedding
    atomic_references: Tensor

    def __init__(self, configuration: Configuration, rows: int) -> None:
        super().__init__()
        self.configuration = configuration
        self.embedding = nn.Embedding(rows, configuration.hidden_dim)
        self.atomic_references = torch.zeros(rows, dtype=torch.float64)
        self.radial_table: RadialTable | None = None

    @abstractmethod
    def answer(self, graph: NeighbourGraph, aggregation: Aggregation = PLAIN) -> "Answer":
        """Energy of each atom in eV, without its atomic reference, and the features that it was read from.

        Args:
            graph: displacements (Å), neighbours and mask of [atoms, slots], and atomic numbers [atoms].
            aggregation: how sums over neighbours are computed.
        """

    def forward(self, graph: NeighbourGraph, aggregation: Aggregation = PLAIN) -> Float[Tensor, " atoms"]:
        """Energy of each atom in eV, without its atomic reference.

        Args:
            graph: see `answer`.
            aggregation: likewise.
        """
        return self.answer(graph, aggregation).energies

    @abstractmethod
    def wanted_filters(self, distances: Float[Tensor, " distances"]) -> Float[Tensor, "distances filters"]:
        """Every filter that the energy reads, side by side in the order in which the student takes them of a table."""

    def with_radial_table(self, rank: int, intervals: int) -> "Student":
        """The same student with all that depends on one distance alone as a table.

        Args:
            rank: functions of the table's basis.
            intervals: of the table, from 0 to the cutoff.

        Raises:
            ExportError: there are fewer filters than that.
        """
        exact, student = copy.deepcopy(self).double(), copy.deepcopy(self)
        table = RadialTable.of(exact.wanted_filters, self.configuration.cutoff, rank, intervals)
        student.radial_table = table.to(self.dtype)
        return student

    @property
    def members(self) -> "Sequence[Student]":
        """The students whose mean it is: itself, unless it is a committee."""
        return (self,)

    @property
    def axes(self) -> dict[str, int]:
        """Lengths of the axes of further outputs of its graph; see `painn_deploy.export.fields.outputs_of`."""
        return {"width": self.feature_width} if self.gives_features else {}

    @property
    @abstractmethod
    def feature_width(self) -> int:
        """Numbers of an atom's features."""

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that it answers for: those it was trained on, else all that have an embedding."""
        return self.configuration.species or tuple(range(1, min(self.embedding.num_embeddings, 119)))

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and arithmetic."""
        return self.embedding.weight.dtype

    @property
    def num_parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters())


def mlp(sizes: Sequence[int], activation: str = "silu") -> nn.Sequential:
    """Linear layers with an activation between them.

    Args:
        sizes: of the input, of what lies between, and of the output.
        activation: see `Configuration`.
    """
    layers: list[nn.Module] = []
    for rows, columns in itertools.pairwise(sizes):
        layers += [nn.Linear(rows, columns), ShiftedSoftplus() if activation == "shifted_softplus" else nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def parts(
    network: nn.Sequential, x: Tensor, wanted: tuple[int, ...], of: int = 3, product: Product = linear
) -> tuple[Tensor, ...]:
    """Some of the equal parts of a network's output; the last layer's other rows are not computed.

    Args:
        network: made by `mlp`.
        x: its input.
        wanted: which parts, in ascending order.
        of: how many parts the whole output has.
        product: see `Aggregation.product`.
    """
    last = cast(nn.Linear, network[-1])
    for layer in list(network)[:-1]:
        x = product(layer, x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(x)
    weight = torch.cat([last.weight.chunk(of)[i] for i in wanted])
    bias = torch.cat([last.bias.chunk(of)[i] for i in wanted])
    return product(last, x, weight, bias).chunk(len(wanted), -1)


def read_out(network: nn.Sequential, x: Float[Tensor, "atoms features"]) -> Answer:
    """A network's only output. Its last layer is a sum, which an engine fuses, not a product with a single column."""
    last, features = cast(nn.Linear, network[-1]), network[:-1](x)
    return Answer((features * last.weight[0]).sum(-1) + last.bias, features)


def separate_parts(network: nn.Sequential, x: Tensor, wanted: tuple[int, ...], of: int = 3) -> list[Tensor]:
    """The same, each part from a product of its own: for outputs on edges, too wide to be copied apart."""
    last = cast(nn.Linear, network[-1])
    hidden = network[:-1](x)
    return [nn.functional.linear(hidden, last.weight.chunk(of)[i], last.bias.chunk(of)[i]) for i in wanted]
