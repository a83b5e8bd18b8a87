"""The proof that a library multiplies 8-bit integers exactly on this CPU.

With VNNI or AMX a processor adds their products in 32 bits. With neither, libraries shift one operand by 128, so that
it has no sign, and add pairs of products in 16 bits, which saturate: 255·127 + 255·127 becomes 32,767, and forces are
wrong without a word. A bundle may have come from another machine. So nothing is built or opened in INT8 on a CPU before
products that would show it were computed and compared.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int8, Int32

__all__ = ["SATURATED", "Multiply", "is_exact"]

CONTRACTED, COLUMNS, ROWS = 288, 96, (2, 9, 144, 576)
"""Sizes of the products that are compared: a molecule has other kernels than a batch."""

LARGEST = 127

SATURATED = (
    "products of 8-bit integers are wrong on this machine, where their sums saturate: its processor has neither VNNI "
    "nor AMX, or the environment forbids them (such as ONEDNN_MAX_CPU_ISA)."
)
"""What to say of a library where they are not exact, behind its name."""

Multiply = Callable[
    [Int8[np.ndarray, "rows contracted"], Int8[np.ndarray, "contracted columns"]], Int32[np.ndarray, "rows columns"]
]


def is_exact(multiply: Multiply) -> bool:
    """Whether products are exact, with operands of any values up to ±127.

    Args:
        multiply: a library's product.
    """
    rng = np.random.default_rng(0)

    def any_values(*shape: int) -> Int8[np.ndarray, "rows columns"]:
        return rng.integers(-LARGEST, LARGEST + 1, shape).astype(np.int8)

    weight, any_weight = np.full((CONTRACTED, COLUMNS), LARGEST, np.int8), any_values(CONTRACTED, COLUMNS)
    for rows in ROWS:
        x, any_x = np.full((rows, CONTRACTED), LARGEST, np.int8), any_values(rows, CONTRACTED)
        for one, other in ((x, weight), (-x, weight), (any_x, weight), (any_x, any_weight)):
            if (multiply(one, other) != one.astype(float) @ other.astype(float)).any():
                return False
    return True
