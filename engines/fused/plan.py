"""How the kernel of molecules is cut to a student and to sizes of groups: what is a constant when it is compiled."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from painn_deploy.engines.fused.packed import Packed, defined, round_up
from painn_deploy.engines.fused.source import DEVICE_SOURCE
from painn_deploy.export.errors import EngineUnavailableError, ShapeError

__all__ = ["MOST_ATOMS", "Plan", "plans_for"]

MOST_SHARED = 232_448
"""Bytes of shared memory that a block may have on compute capability 9.0."""

SHARED = {"75": 65_536, "80": 166_912, "86": 101_376, "87": 166_912, "89": 101_376, "90": MOST_SHARED}
"""The same of others, from CUDA's programming guide; from 10.0 on, what workstations have at least."""

MOST_ATOMS = 32
"""Of a group."""

SIZES = ((9, 36), (21, 210), (24, 132), (27, 108), (MOST_ATOMS, 496))
"""Atoms and pairs of groups: one small molecule, one as large as a drug, two or three small ones, and the largest."""

WIDE = 4
"""Columns that a thread computes at once."""

INDEX = 2
"""Bytes of what counts rows, pairs and slots of a group."""

RESERVED = 1_024
"""Bytes of a multiprocessor's shared memory that each block takes besides its own."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Sizes of a block's work.

    Attributes:
        packed: the student's weights.
        rows: atoms of a block's group at most; rounded up to whole tiles.
        pairs: of the atoms of a group at most; likewise.
        row_tile: atoms that a thread computes at once in a product.
        pair_tile: pairs likewise, of filters.
        threads: of a block.
        blocks: of a multiprocessor, at least; what they may have of registers and of shared memory follows from it.
        lanes: threads that share a slot's gradient.
        spilled: whether what pairs and slots have, of which there is much where they are many, is in scratch.
        unroll: fours of a product's sums whose weights are on their way at once; 0 leaves it to the compiler.
        shared_limit: bytes of shared memory of a multiprocessor.
    """

    packed: Packed
    rows: int
    pairs: int
    row_tile: int = 9
    pair_tile: int = 9
    threads: int = 384
    blocks: int = 1
    lanes: int = 4
    spilled: bool = False
    unroll: int = 2
    shared_limit: int = MOST_SHARED

    def __post_init__(self) -> None:
        if self.shared > self._most:
            raise ShapeError(
                f"The kernel of whole molecules needs {self.shared} bytes of shared memory for groups of {self.rows} "
                f"atoms and {self.pairs} pairs with {self.packed.macros['FEATURES']} features, and there are "
                f"{self._most}."
            )

    @property
    def _most(self) -> int:
        return (self.shared_limit + RESERVED) // self.blocks - RESERVED

    @property
    def _rows(self) -> int:
        return round_up(self.rows, self.row_tile)

    @property
    def _pairs(self) -> int:
        return round_up(max(1, self.pairs), self.pair_tile)

    def _products(self) -> dict[str, tuple[int, int, int]]:
        """Of each product the length of its sums, its columns, and its rows an atom."""
        macros = self.packed.macros
        f, hidden = int(macros["FEATURES"]), int(macros["HIDDEN"])
        return {
            "MESSAGE_IN": (f, f, 1),
            "MESSAGE_OUT": (f, 3 * f, 1),
            "MIXING": (f, 2 * f, 3),
            "UPDATE_IN": (2 * f, f, 1),
            "UPDATE_OUT": (f, 3 * f, 1),
            "LAST_OUT": (f, 2 * f, 1),
            "READ_OUT": (f, hidden, 1),
            "READ_OUT_BACK": (hidden, f, 1),
            "UPDATE_OUT_BACK": (3 * f, f, 1),
            "LAST_OUT_BACK": (2 * f, f, 1),
            "UPDATE_IN_BACK": (f, 2 * f, 1),
            "MIXING_BACK": (2 * f, f, 3),
            "MESSAGE_OUT_BACK": (3 * f, f, 1),
            "MESSAGE_IN_BACK": (f, f, 1),
        }

    @cached_property
    def slices(self) -> dict[str, int]:
        """Into how many parts the sums of each product are cut, so that all threads have some of it.

        A part more is a number more to be added for each result; four are taken to cost as much as a step of the sum.
        """
        found = {}
        for name, (length, columns, per_atom) in self._products().items():
            tiles = -(-per_atom * self.rows // self.row_tile) * (columns // WIDE)
            results = -(-per_atom * self.rows * columns // WIDE // self.threads)

            def cost(cut: int, tiles: int = tiles, length: int = length, results: int = results) -> float:
                return -(-tiles * cut // self.threads) * (length // cut) * self.row_tile + 4.0 * cut * results

            whole = [cut for cut in range(1, length // 4 + 1) if length % (4 * cut) == 0]
            choices = [cut for cut in whole if cut == 1 or cut * tiles <= self.threads]
            found[name] = min(choices, key=cost)
        return found

    @cached_property
    def _product_numbers(self) -> int:
        """Of shared memory, for what products leave."""
        slices, rows = self.slices, self._rows
        sizes = [
            slices[name] * per_atom * rows * columns
            for name, (_, columns, per_atom) in self._products().items()
            if not (name == "MIXING" and slices[name] == 1)  # is written to scratch at once
        ]
        return max(*sizes, 6 * self._pairs)

    @cached_property
    def chunks(self) -> tuple[int, int]:
        """Features whose filters are held at once, of the energy and of its adjoint: as many as there is room for."""
        features = int(self.packed.macros["FEATURES"])
        room = (self._most - self._fixed) // 4
        found = []
        for sets in (1, 2):
            fitting = [
                c
                for c in range(WIDE, features + 1, WIDE)
                if features % c == 0 and sets * 3 * c * self._pairs <= max(room, self._product_numbers)
            ]
            found.append(max(fitting, default=WIDE))
        return found[0], found[1]

    @property
    def _fixed(self) -> int:
        """Bytes of shared memory without what products and filters are written to."""
        return 4 * (self.packed.planes(self._rows) + (0 if self.spilled else self._pair_numbers)) + 8 * (self._rows + 1)

    @property
    def _pair_numbers(self) -> int:
        """Of 32 bits: radial functions of pairs, gradients of slots, `Pair` and `Slot`."""
        return self.packed.of_pairs(self._pairs, self.lanes, INDEX)

    @cached_property
    def work(self) -> int:
        """Numbers of shared memory that products and filters are written to."""
        forward, adjoint = self.chunks
        return max(self._product_numbers, 3 * forward * self._pairs, 6 * adjoint * self._pairs)

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return round_up(self._fixed + 4 * self.work, 16)

    @property
    def scratch(self) -> int:
        """Float32 numbers of memory that each block needs besides."""
        return self.packed.saved(self._rows) + (self._pair_numbers if self.spilled else 0)

    def macros(self) -> dict[str, int | float | str]:
        """All that the source leaves open."""
        forward, adjoint = self.chunks
        return {
            **self.packed.macros,
            "ROWS": self._rows,
            "PAIRS": self._pairs,
            "ROW_TILE": self.row_tile,
            "PAIR_TILE": self.pair_tile,
            "WIDE": WIDE,
            "INDEX": "short",
            "THREADS": self.threads,
            "LEAST_BLOCKS": self.blocks,
            "LANES": self.lanes,
            "SPILLED": int(self.spilled),
            "SCRATCH": self.scratch,
            "CHUNK_FORWARD": forward,
            "CHUNK_ADJOINT": adjoint,
            "WORK": self.work,
            "PRODUCT_UNROLL": f'_Pragma("unroll {self.unroll}")' if self.unroll else "",
            **{f"SLICES_{name}": cut for name, cut in self.slices.items()},
        }

    def source(self) -> str:
        """The kernel in CUDA C++, ready to be compiled."""
        return defined(self.macros()) + DEVICE_SOURCE


def plans_for(packed: Packed, capability: str) -> list[Plan]:
    """Plans for groups of all sizes that there may be: small ones, several of them together, and the largest.

    Args:
        packed: the student's weights.
        capability: of the GPU, such as `90`.

    Raises:
        EngineUnavailableError: it has too little shared memory for any group.
    """
    limit = SHARED.get(capability, MOST_SHARED if capability.startswith("10") else SHARED["86"])
    found = [plan for rows, pairs in SIZES if (plan := _fitting(packed, rows, pairs, limit))]
    if not found or found[-1].rows < MOST_ATOMS:
        largest = (_fitting(packed, rows, rows * (rows - 1) // 2, limit) for rows in range(MOST_ATOMS, 1, -1))
        found += [plan for plan in largest if plan and (not found or plan.rows > found[-1].rows)][:1]
    if not found:
        raise EngineUnavailableError(
            f"A GPU of compute capability {capability} has {limit:,} bytes of shared memory a block, and the engine "
            f"fused needs more for a student of {packed.macros['FEATURES']} features. Export another engine."
        )
    return found


def _fitting(packed: Packed, rows: int, pairs: int, limit: int) -> Plan | None:
    tile = min((9, 8, 7, 10, 6), key=lambda size: round_up(rows, size))
    for spilled in (False, True):
        with suppress(ShapeError):
            return Plan(packed, rows, pairs, tile, spilled=spilled, shared_limit=limit)
    return None
