"""Products of 8-bit integers in torch, on a CPU."""

import os
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Int8, Int32
from torch import Tensor

from painn_deploy.engines.eight_bits import COLUMNS, CONTRACTED, LARGEST, REMEDY, is_exact
from painn_deploy.engines.inductor.openmp import team

__all__ = ["inexact", "product", "quantised"]


def quantised(x: Tensor, scale: Tensor) -> Tensor:
    """Round to multiples of a scale, in 8 bits, as ONNX's QuantizeLinear does: half to even.

    Args:
        x: of any shape.
        scale: of one step; one number.
    """
    return torch.clamp(torch.round(x / scale), -128, 127).to(torch.int8)


def product(x: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """x·W of eight bits each, summed in 32; float32.

    Args:
        x: int8 [..., contracted].
        scale: of x; one number.
        weight: int8 [contracted, columns].
        weight_scale: of each column.
    """
    sums = torch._int_mm(x.reshape(-1, x.shape[-1]), weight)
    scaled: Tensor = sums.to(torch.float32) * (scale * weight_scale)
    return scaled.reshape(*x.shape[:-1], weight.shape[1])


def _multiply(
    x: Int8[np.ndarray, "rows contracted"], weight: Int8[np.ndarray, "contracted columns"]
) -> Int32[np.ndarray, "rows columns"]:
    found: np.ndarray = torch._int_mm(torch.from_numpy(x), torch.from_numpy(weight)).numpy()
    return found


@cache
def inexact() -> str:
    """A sentence that says why these products cannot be trusted here; empty where they are exact."""
    largest = np.full((CONTRACTED, COLUMNS), LARGEST, np.int8)
    any_values = np.random.default_rng(1).integers(-LARGEST, LARGEST + 1, largest.shape).astype(np.int8)
    with team(1):  # a process that was forked has no others
        for weight in (largest, any_values):
            if not is_exact(partial(_multiply, weight=weight), weight):
                restricted = "" if "ONEDNN_MAX_CPU_ISA" not in os.environ else " with ONEDNN_MAX_CPU_ISA as it is set"
                return f"torch's products of 8-bit integers are wrong on this processor{restricted}. {REMEDY}"
    return ""
