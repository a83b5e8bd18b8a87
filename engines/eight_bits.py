"""The proof that a library multiplies 8-bit integers exactly on this CPU.

With VNNI or AMX a processor adds their products in 32 bits. With neither, libraries shift one operand by 128, so that
it has no sign, and add pairs of products in 16 bits, which saturate: 255·127 + 255·127 becomes 32,767, and forces are
wrong without a word. A bundle may have come from another machine. So nothing runs in INT8 on a CPU before products that
would show it were computed and compared.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int8

__all__ = ["COLUMNS", "CONTRACTED", "LARGEST", "REMEDY", "is_exact"]

CONTRACTED, COLUMNS, ROWS = 288, 96, (2, 9, 144, 576)
"""Sizes of the products that are compared: a molecule has other kernels than a batch."""

LARGEST = 127

REMEDY = "Export in fp32 or fp16, or run it on a processor that has VNNI or AMX."
"""What to do where they are not exact."""


def is_exact(
    multiply: Callable[[Int8[np.ndarray, "rows contracted"]], np.ndarray],
    weight: Int8[np.ndarray, "contracted columns"],
) -> bool:
    """Whether products with a weight are exact, for operands of any values up to ±127.

    Args:
        multiply: a library's product of an operand with that weight.
        weight: it is `LARGEST` everywhere, or so large that sums in 16 bits would saturate.
    """
    rng = np.random.default_rng(0)
    for rows in ROWS:
        largest = np.full((rows, CONTRACTED), LARGEST, np.int8)
        any_values = rng.integers(-LARGEST, LARGEST + 1, largest.shape).astype(np.int8)
        for x in (largest, -largest, any_values):
            if (multiply(x) != x.astype(float) @ weight.astype(float)).any():
                return False
    return True
