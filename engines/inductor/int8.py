"""Products of 8-bit integers in torch, on a CPU."""

from functools import cache

import torch
from torch import Tensor

from painn_deploy.engines.eight_bits import SATURATED, is_exact
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


@cache
def inexact() -> str:
    """A sentence that says why these products cannot be trusted here; empty where they are exact."""
    with team(1):  # a process that was forked has no others
        exact = is_exact(lambda x, weight: torch._int_mm(torch.from_numpy(x), torch.from_numpy(weight)).numpy())
    return "" if exact else f"torch's {SATURATED}"
