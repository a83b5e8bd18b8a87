"""How the kernel of molecules is cut to a student and to sizes of molecules: what is a constant when it is compiled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from painn_deploy.engines.fused.source import SOURCE
from painn_deploy.export.errors import ShapeError

__all__ = ["MOST_ATOMS", "Packed", "Plan", "groups_of"]

MOST_ATOMS = 32
"""Of a molecule."""

MOST_SHARED = 232_448
"""Bytes of shared memory that a block may have on compute capability 9.0."""

ROWS_OF_BATCH = 27
"""Atoms of a block's group where there are many molecules: a weight that is read is used for as many."""

RESERVED = 1_024
"""Bytes of a multiprocessor's shared memory that each block takes besides its own."""


def _round_up(count: int, step: int) -> int:
    return step * -(-count // step)


class Packed(NamedTuple):
    """Weights and where they lie.

    Attributes:
        weights: all of them.
        macros: names that the kernel's source knows: sizes of the student, and offsets into `weights`.
        rows: of the embedding: the largest atomic number plus one.
    """

    weights: Float32[np.ndarray, " numbers"]
    macros: Mapping[str, int | float]
    rows: int


@dataclass(frozen=True)
class Plan:
    """Sizes of a block's work.

    Attributes:
        packed: the student's weights.
        cutoff: Å, in float64.
        largest: atoms of the largest molecule.
        rows: atoms of a block's group at most; rounded up to whole tiles.
        row_tile: atoms that a thread computes at once in a product.
        pair_tile: pairs likewise, of filters.
        threads: of a block.
        blocks: of a multiprocessor, at least; what they may have of registers and of shared memory follows from it.
        lanes: threads that share a slot's gradient.
        spilled: whether radial functions and gradients of slots, which many pairs have many of, are in scratch.
        unroll: fours of a product's sums whose weights are on their way at once; 0 leaves it to the compiler.
        shared_limit: bytes of shared memory of a multiprocessor.
    """

    packed: Packed
    cutoff: float
    largest: int
    rows: int
    row_tile: int = 9
    pair_tile: int = 9
    threads: int = 384
    blocks: int = 1
    lanes: int = 4
    spilled: bool = False
    unroll: int = 2
    shared_limit: int = MOST_SHARED

    def __post_init__(self) -> None:
        if not 1 <= self.largest <= MOST_ATOMS:
            raise ShapeError(
                f"The kernel of whole molecules takes molecules of up to {MOST_ATOMS} atoms, and one here has "
                f"{self.largest}. Evaluate it with another engine."
            )
        if self.rows < self.largest:
            raise ShapeError(f"Groups of {self.rows} atoms have no room for a molecule of {self.largest}.")
        if self.shared > self._most:
            raise ShapeError(
                f"The kernel of whole molecules needs {self.shared} bytes of shared memory for groups of {self.rows} "
                f"atoms with {self.packed.macros['FEATURES']} features and {self.blocks} blocks a multiprocessor, and "
                f"there are {self._most}. Give it smaller groups, or evaluate such molecules with another engine."
            )

    @classmethod
    def suited(cls, packed: Packed, cutoff: float, largest: int, *, batch: bool = True) -> "Plan":
        """The plan for molecules of some size.

        Args:
            packed: the student's weights.
            cutoff: Å, in float64.
            largest: atoms of the largest molecule.
            batch: whether there are many, so that a block takes as many at once as there is room for; otherwise one.

        Raises:
            ShapeError: no block has room for one such molecule.
        """
        most = min(max(1, ROWS_OF_BATCH // max(largest, 1)) if batch else 1, 32)
        for spilled in (False, True):
            for molecules in range(most, 0, -1):
                rows = molecules * largest
                tile = min((9, 8, 7, 10, 6), key=lambda size: _round_up(rows, size))
                try:
                    return cls(packed, cutoff, largest, rows, tile, spilled=spilled)
                except ShapeError:
                    if spilled and molecules == 1:
                        raise
        raise AssertionError  # the loop returns or raises

    @property
    def _most(self) -> int:
        return min(MOST_SHARED, (self.shared_limit + RESERVED) // self.blocks - RESERVED)

    @property
    def _rows(self) -> int:
        return _round_up(self.rows, self.row_tile)

    @property
    def _pairs(self) -> int:
        return _round_up(max(1, self.rows * (self.largest - 1) // 2), self.pair_tile)

    def _products(self) -> dict[str, tuple[int, int, int, int]]:
        """Of each product the length of its sums, its columns, its rows an atom, and planes that a sum goes through."""
        macros = self.packed.macros
        f, hidden = int(macros["FEATURES"]), int(macros["HIDDEN"])
        return {
            "MESSAGE_IN": (f, f, 1, 1),
            "MESSAGE_OUT": (f, 3 * f, 1, 1),
            "MIXING": (f, 2 * f, 3, 1),
            "UPDATE_IN": (2 * f, f, 1, 2),
            "UPDATE_OUT": (f, 3 * f, 1, 1),
            "LAST_OUT": (f, 2 * f, 1, 1),
            "READ_OUT": (f, hidden, 1, 1),
            "READ_OUT_BACK": (hidden, f, 1, 1),
            "UPDATE_OUT_BACK": (3 * f, f, 1, 3),
            "LAST_OUT_BACK": (2 * f, f, 1, 2),
            "UPDATE_IN_BACK": (f, 2 * f, 1, 1),
            "MIXING_BACK": (2 * f, f, 3, 2),
            "MESSAGE_OUT_BACK": (3 * f, f, 1, 3),
            "MESSAGE_IN_BACK": (f, f, 1, 1),
        }

    def slices(self) -> dict[str, int]:
        """Into how many parts the sums of each product are cut, so that all threads have some of it.

        A part more is a number more to be added for each result; four are taken to cost as much as a step of the sum.
        """
        found = {}
        for name, (length, columns, per_atom, _) in self._products().items():
            tiles = -(-per_atom * self.rows // self.row_tile) * (columns // 4)
            results = -(-per_atom * self.rows * columns // 4 // self.threads)

            def cost(cut: int, tiles: int = tiles, length: int = length, results: int = results) -> float:
                return -(-tiles * cut // self.threads) * (length // cut) * self.row_tile + 4.0 * cut * results

            whole = [cut for cut in range(1, length // 4 + 1) if length % (4 * cut) == 0]
            choices = [cut for cut in whole if cut == 1 or cut * tiles <= self.threads]
            found[name] = min(choices, key=cost)
        return found

    @property
    def _product_numbers(self) -> int:
        """Of shared memory, for what products leave."""
        slices, rows = self.slices(), self._rows
        sizes = [
            slices[name] * per_atom * rows * columns
            for name, (_, columns, per_atom, _) in self._products().items()
            if not (name == "MIXING" and slices[name] == 1)  # is written to scratch at once
        ]
        return max(*sizes, 6 * self._pairs)

    def chunks(self) -> tuple[int, int]:
        """Features whose filters are held at once, of the energy and of its adjoint: as many as there is room for."""
        features = int(self.packed.macros["FEATURES"])
        room = (self._most - self._fixed) // 4
        found = []
        for sets in (1, 2):
            fitting = [
                c
                for c in range(4, features + 1, 4)
                if features % c == 0 and sets * 3 * c * self._pairs <= max(room, self._product_numbers)
            ]
            found.append(max(fitting, default=4))
        return found[0], found[1]

    @property
    def _fixed(self) -> int:
        """Bytes of shared memory without what products and filters are written to."""
        macros, rows, pairs = self.packed.macros, self._rows, self._pairs
        planes = 10 * rows * int(macros["FEATURES"])
        numbers = planes + 8 * pairs + (0 if self.spilled else self._pair_numbers)
        integers = 2 * pairs + 3 * rows + 1
        return 4 * numbers + 24 * rows + 4 * integers

    @property
    def _pair_numbers(self) -> int:
        """Radial functions of pairs and gradients of slots."""
        return self._pairs * (2 * int(self.packed.macros["BASIS_WIDTH"]) + 8 * self.lanes)

    @property
    def work(self) -> int:
        """Numbers of shared memory that products and filters are written to."""
        forward, adjoint = self.chunks()
        return max(self._product_numbers, 3 * forward * self._pairs, 6 * adjoint * self._pairs)

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return _round_up(self._fixed + 4 * self.work, 16)

    @property
    def scratch(self) -> int:
        """Float32 numbers of memory that each block needs besides."""
        macros = self.packed.macros
        saved = 16 * self._rows * int(macros["FEATURES"]) * int(macros["LAYERS"])
        return saved + (self._pair_numbers if self.spilled else 0)

    def macros(self) -> Mapping[str, int | float | str]:
        """All that the source leaves open."""
        forward, adjoint = self.chunks()
        unroll = f'_Pragma("unroll {self.unroll}")' if self.unroll else ""
        return {
            **self.packed.macros,
            "CUTOFF": self.cutoff,
            "LARGEST": self.largest,
            "ROWS": self._rows,
            "PAIRS": self._pairs,
            "ROW_TILE": self.row_tile,
            "PAIR_TILE": self.pair_tile,
            "THREADS": self.threads,
            "LEAST_BLOCKS": self.blocks,
            "LANES": self.lanes,
            "SPILLED": int(self.spilled),
            "SCRATCH": self.scratch,
            "CHUNK_FORWARD": forward,
            "CHUNK_ADJOINT": adjoint,
            "WORK": self.work,
            "SHARED_BYTES": self.shared,
            "PRODUCT_UNROLL": unroll,
            **{f"SLICES_{name}": cut for name, cut in self.slices().items()},
        }

    def source(self) -> str:
        """The kernel, ready to be compiled."""
        lines = []
        for name, value in self.macros().items():
            single = isinstance(value, float) and name != "CUTOFF"
            lines.append(f"#define {name} {value}{'f' if single else ''}\n")
        return "".join(lines) + SOURCE


def groups_of(starts: Int64[np.ndarray, " molecules"], atoms: int, rows: int) -> Int32[np.ndarray, " bounds"]:
    """Rows at which the groups of whole molecules that blocks take begin, and the number of all rows at the end.

    Args:
        starts: first row of each molecule.
        atoms: rows of all.
        rows: of a group at most, and of a molecule.

    Raises:
        ShapeError: a molecule is larger than a group.
    """
    bounds = np.append(starts, atoms)
    if (most := int(np.diff(bounds).max())) > rows:
        raise ShapeError(
            f"A molecule of {most} atoms does not fit into groups of {rows}. Evaluate it with another engine."
        )
    found, begin = [0], 0
    while begin < atoms:
        begin = int(bounds[np.searchsorted(bounds, begin + rows, side="right") - 1])
        found.append(begin)
    return np.asarray(found, np.int32)
