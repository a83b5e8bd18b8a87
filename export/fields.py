"""The vocabulary: every tensor that crosses a graph's boundary, with its shape, dtype, unit and meaning.

One layout serves every backend: a padded neighbour matrix. Atom i has `slots` places for neighbours; an edge sits in
slot k of atom i and points from i to j = neighbours[i, k]. Every pair is stored twice, once from either end, and
`reverse` finds the other end. Batching is concatenation along `atoms` with the indices offset.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

__all__ = [
    "AS_WRITTEN",
    "EXTRA_OUTPUTS",
    "FEATURES",
    "FIELDS",
    "FORCES_UNCERTAINTY",
    "INPUTS",
    "MEMBER_ENERGIES",
    "OUTPUTS",
    "PAIR_INPUTS",
    "UNITS",
    "Field",
    "GraphInputs",
    "GraphOutputs",
    "PairInputs",
    "inputs_of",
    "outputs_of",
    "real_type",
]

REAL = "float32"
"""Type of displacements, mask and results in every precision but `fp64`, whose graphs have float64 in its place."""


@dataclass(frozen=True)
class Field:
    """One tensor of the graph contract.

    Attributes:
        name: the tensor's name in every graph and engine.
        shape: axis names (dynamic) and sizes (fixed).
        dtype: numpy's name of the element type, in every precision but `fp64`; see `dtype_in`.
        unit: physical unit, empty for indices and flags.
        meaning: one sentence.
    """

    name: str
    shape: tuple[str | int, ...]
    dtype: str
    unit: str
    meaning: str

    def sized(self, **lengths: int) -> tuple[int, ...]:
        """Its shape where its dynamic axes have these lengths."""
        return tuple(lengths[size] if isinstance(size, str) else size for size in self.shape)

    def dtype_in(self, precision: str) -> str:
        """Numpy's name of its element type in a graph of this precision."""
        return real_type(precision).name if self.dtype == REAL else self.dtype


def real_type(precision: str) -> np.dtype:
    """Type of the real numbers that cross the boundary of a graph of this precision."""
    return np.dtype(np.float64 if precision == "fp64" else REAL)


INPUTS = (
    Field(
        "atomic_numbers", ("atoms",), "int32", "", "Z of each atom; 0 marks a padded atom, whose outputs are dropped"
    ),
    Field(
        "displacements",
        ("atoms", "slots", 3),
        REAL,
        "Angstrom",
        "r_j + S·cell - r_i of each slot, subtracted in float64 and then rounded to its type; 0 in a padded slot",
    ),
    Field("neighbours", ("atoms", "slots"), "int32", "", "j of each slot; the atom's own index in a padded slot"),
    Field(
        "reverse",
        ("atoms", "slots"),
        "int32",
        "",
        "flat index j*slots + (slot of the same pair, shift -S, seen from j); the slot's own flat index in padding",
    ),
    Field(
        "mask",
        ("atoms", "slots"),
        REAL,
        "",
        "1 for an edge (d < cutoff in float64), 0 for padding and for a stored pair that is beyond the cutoff",
    ),
    Field(
        "weights",
        ("atoms",),
        REAL,
        "",
        "factor of each atomic energy before it is differentiated: 1, and 0 for an atom whose energy another part of a "
        "divided structure counts",
    ),
)

WITH_WEIGHTS = 3
"""Format of bundles from which on a graph takes `weights`."""


def inputs_of(format_version: int) -> tuple[Field, ...]:
    """The inputs of a graph.

    Args:
        format_version: of the bundle that holds it.
    """
    return INPUTS if format_version >= WITH_WEIGHTS else tuple(field for field in INPUTS if field.name != "weights")


OUTPUTS = (
    Field("atomic_energies", ("atoms",), REAL, "eV", "weights times each atom's share; summed in float64 outside"),
    Field("forces", ("atoms", 3), REAL, "eV/Angstrom", "minus the gradient of the weighted energy with the positions"),
    Field(
        "virials",
        ("atoms", 3, 3),
        REAL,
        "eV",
        "sum over slots of dE/d(displacement) ⊗ displacement; stress = their sum over the volume, in ASE's sign",
    ),
)

FEATURES = Field(
    "features",
    ("atoms", "width"),
    REAL,
    "",
    "last hidden layer of the read-out: an atom's energy is linear in its row, up to its element's constant",
)
MEMBER_ENERGIES = Field(
    "member_energies", ("atoms", "members"), REAL, "eV", "atomic energies of each member of a committee"
)
FORCES_UNCERTAINTY = Field(
    "forces_uncertainty",
    ("atoms",),
    REAL,
    "eV/Angstrom",
    "root of the variance (n - 1) over the members of a committee, summed over the three components",
)

EXTRA_OUTPUTS: Mapping[str, tuple[Field, ...]] = MappingProxyType(
    {"width": (FEATURES,), "members": (MEMBER_ENERGIES, FORCES_UNCERTAINTY)}
)
"""Outputs beside `OUTPUTS`, of a graph that has the axis that they are listed under; its length is fixed."""


def outputs_of(axes: Mapping[str, int]) -> tuple[Field, ...]:
    """The outputs of a graph.

    Args:
        axes: lengths of the axes of `EXTRA_OUTPUTS` that it has; empty for a graph that gives `OUTPUTS` alone.
    """
    extra = [field for axis, fields in EXTRA_OUTPUTS.items() if axis in axes for field in fields]
    sized = [replace(field, shape=tuple(axes.get(str(size), size) for size in field.shape)) for field in extra]
    return (*OUTPUTS, *sized)


PAIR_INPUTS = (
    Field(
        "pairs",
        ("pairs",),
        "int32",
        "",
        "one slot (flat index) of each pair; if the matrix has padding, one padded slot as well",
    ),
    Field(
        "pair_of_slot",
        ("slots", "atoms"),
        "int32",
        "",
        "which of `pairs` each slot belongs to; that of a padded slot is the padding's",
    ),
)
"""Extra inputs of graphs that compute filters once per pair. Such graphs exist inside engines, never in bundles."""

_EXTRA = [field for fields in EXTRA_OUTPUTS.values() for field in fields]
FIELDS = MappingProxyType({field.name: field for field in (*INPUTS, *PAIR_INPUTS, *OUTPUTS, *_EXTRA)})

UNITS = MappingProxyType({"length": "Angstrom", "energy": "eV", "forces": "eV/Angstrom", "virials": "eV"})


AS_WRITTEN = "run_as_written"
"""Key in the metadata of a graph whose nodes must be run one by one, none fused or left out."""


class GraphInputs(NamedTuple):
    """The contract's inputs as arrays, in its order; see `INPUTS`."""

    atomic_numbers: Int32[np.ndarray, " atoms"]
    displacements: Float[np.ndarray, "atoms slots 3"]
    neighbours: Int32[np.ndarray, "atoms slots"]
    reverse: Int32[np.ndarray, "atoms slots"]
    mask: Float[np.ndarray, "atoms slots"]
    weights: Float[np.ndarray, " atoms"]


class _Outputs(NamedTuple):
    atomic_energies: Float[np.ndarray, " atoms"]
    forces: Float[np.ndarray, "atoms 3"]
    virials: Float[np.ndarray, "atoms 3 3"]


class GraphOutputs(_Outputs):
    """The contract's outputs as arrays, in its order; see `OUTPUTS`.

    Attributes:
        extras: further outputs by name, each with a row for an atom; see `EXTRA_OUTPUTS`.
    """

    extras: Mapping[str, np.ndarray] = MappingProxyType({})

    @classmethod
    def of(cls, fields: Iterable[Field], arrays: Iterable[np.ndarray]) -> "GraphOutputs":
        """The outputs of a graph.

        Args:
            fields: of the graph, see `outputs_of`.
            arrays: one for each.
        """
        found = dict(zip((field.name for field in fields), arrays, strict=True))
        outputs = cls(*(found.pop(field.name) for field in OUTPUTS))
        if found:
            outputs.extras = found
        return outputs

    def rows(self, rows: slice) -> "GraphOutputs":
        """The outputs of some atoms."""
        outputs = GraphOutputs(*(array[rows] for array in self))
        if self.extras:
            outputs.extras = {name: array[rows] for name, array in self.extras.items()}
        return outputs


class PairInputs(NamedTuple):
    """The arrays of `PAIR_INPUTS`."""

    pairs: Int32[np.ndarray, " pairs"]
    pair_of_slot: Int32[np.ndarray, "slots atoms"]
