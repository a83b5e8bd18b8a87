"""A student's weights as the kernel of molecules reads them, and as a bundle holds them."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from painn_deploy.export.errors import EngineError

__all__ = ["MOST_OUTPUTS", "Packed", "defined", "round_up"]

MOST_OUTPUTS = 5
"""That the kernel has arguments for: those of a committee."""

LONGEST = 2**16
"""Bytes of the line that says what the weights are."""


class Packed(NamedTuple):
    """Weights and where they lie.

    Attributes:
        weights: all of them.
        macros: names that the kernel's source knows: sizes of the student, and offsets into `weights`.
    """

    weights: Float32[np.ndarray, " numbers"]
    macros: Mapping[str, int | float]

    @property
    def members(self) -> int:
        """How many students there are: several of a committee."""
        return int(self.macros["MEMBERS"])

    @property
    def axes(self) -> dict[str, int]:
        """Of the graph, see `Manifest.axes`."""
        if self.members > 1:
            return {"members": self.members}
        return {"width": int(self.macros["HIDDEN"])} if self.macros["GIVES_FEATURES"] else {}

    def planes(self, rows: int) -> int:
        """Numbers of near memory for what atoms are: s, x of three kinds, v before and after.

        Args:
            rows: of a group.
        """
        return 10 * rows * int(self.macros["FEATURES"])

    def saved(self, rows: int) -> int:
        """Numbers of far memory for what waits for the adjoint.

        Args:
            rows: of a group.
        """
        return 16 * rows * int(self.macros["FEATURES"]) * int(self.macros["LAYERS"])

    def of_pairs(self, pairs: int, lanes: int, index: int) -> int:
        """Numbers for radial functions of pairs and gradients of slots, and for each `Pair` and `Slot`.

        Args:
            pairs: of a group.
            lanes: threads that share a slot's gradient.
            index: bytes of what counts rows, pairs and slots.
        """
        pair = 9 if self.macros["REPULSION"] else 7
        return pairs * (2 * int(self.macros["BASIS_WIDTH"]) + 8 * lanes + pair + 10 * index // 4)

    def to_bytes(self) -> bytes:
        """The file of a bundle: a line of JSON, and the weights, little-endian."""
        return json.dumps(dict(self.macros)).encode() + b"\n" + self.weights.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Packed":
        """The same from the file.

        Raises:
            EngineError: it is none.
        """
        line, ended, rest = content.partition(b"\n")
        try:
            macros: Any = json.loads(line) if ended and len(line) < LONGEST else None
        except ValueError:
            macros = None
        sound = isinstance(macros, dict) and all(
            name.isidentifier() and name.isupper() and type(value) in (int, float) for name, value in macros.items()
        )
        if not sound or len(rest) % 4:
            raise EngineError("The weights of the engine fused are none. Export the bundle again.")
        return cls(np.frombuffer(rest, "<f4").astype(np.float32), macros)


def round_up(count: int, step: int) -> int:
    """The least multiple of a step that is as large.

    Args:
        count: of anything.
        step: positive.
    """
    return step * -(-count // step)


def defined(macros: Mapping[str, int | float | str]) -> str:
    """Lines of C++ that define macros.

    Args:
        macros: by name; a float is one of single precision.
    """
    return "".join(
        f"#define {name} {value}{'f' if isinstance(value, float) else ''}\n" for name, value in macros.items()
    )
