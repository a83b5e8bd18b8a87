"""A student's weights as the kernel of molecules reads them, and as a bundle holds them."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from painn_deploy.export.errors import EngineError

__all__ = ["Packed", "defined"]

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


def defined(macros: Mapping[str, int | float | str]) -> str:
    """Lines of C++ that define macros.

    Args:
        macros: by name; a float is one of single precision.
    """
    return "".join(
        f"#define {name} {value}{'f' if isinstance(value, float) else ''}\n" for name, value in macros.items()
    )
