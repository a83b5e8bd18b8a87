"""Functions that fade a pair out as it nears the cutoff, and activations: what PaiNNs differ in besides their weights.

Which pairs there are, the mask says. A pair that is kept beyond the cutoff, for a neighbour list's skin, is multiplied
by zero: so a function need not be zero there, but it has to be finite and to have a finite slope.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["CUTOFFS", "LEAST", "CutoffFunction", "ShiftedSoftplus", "cutoff_function", "no_more"]

CutoffFunction = Callable[[Float[Tensor, "*edges"]], Float[Tensor, "*edges"]]

CUTOFFS = ("cosine", "mollifier", "switch", "polynomial")
"""Names in a configuration."""

LEAST = 1 / 700
"""Below it exp(-1/x) is less than 1e-304, and x is taken as this: in float64 no number that is used is so small."""


class ShiftedSoftplus(nn.Module):
    """ln(1 + e^x) - ln 2, zero at zero; from x = 20 on x - ln 2, as torch has it."""

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The function, elementwise."""
        return nn.functional.softplus(x) - math.log(2)


def cutoff_function(
    kind: str, cutoff: float, *, switch_on: float | None = None, power: int | None = None
) -> CutoffFunction:
    """A function of distances in Å that is 1 at 0 and falls to 0 at the cutoff; finite, with a finite slope, beyond it.

    Args:
        kind: `cosine`, Behler's (cos(πd/c) + 1)/2; `mollifier`, exp(1 - 1/(1 - (d/c)²)); `switch`, 1 up to `switch_on`
            and then smooth in every derivative, as SchNetPack's SwitchFunction; `polynomial`, the envelope of DimeNet
            (arXiv:2003.03123, eq. 8) without its pole, 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2).
        cutoff: c, Å.
        switch_on: Å, of `switch`.
        power: p, of `polynomial`.
    """
    match kind:
        case "cosine":
            return lambda d: 0.5 * (torch.cos(d * (math.pi / cutoff)) + 1.0)
        case "mollifier":
            return lambda d: torch.exp(1.0 - 1.0 / _no_less(1.0 - (d * (1 / cutoff)) * (d * (1 / cutoff)), LEAST))
        case "switch":
            start = switch_on or 0.0
            return lambda d: _switch((d - start) * (1 / (cutoff - start)))
        case "polynomial":
            return lambda d: _polynomial(d * (1 / cutoff), power or 0)
    raise ValueError(f"there is no cutoff function {kind!r}")


def _switch(x: Tensor) -> Tensor:
    """f(1 - x)/(f(x) + f(1 - x)) with f(x) = exp(-1/x) above zero, and 0 below."""
    rising, falling = (torch.exp(-1.0 / _no_less(y, LEAST)) for y in (x, 1.0 - x))
    return falling / (rising + falling)


def _polynomial(x: Tensor, power: int) -> Tensor:
    """(1 - x)³ Σ_k (k+1)(k+2)/2 x^k over k < p: the same polynomial without differences of large terms."""
    total: Tensor | float = power * (power + 1) / 2
    for k in reversed(range(power - 1)):
        total = total * x + (k + 1) * (k + 2) / 2
    rest = 1.0 - x
    return rest * rest * rest * total


def no_more(x: Float[Tensor, "*any"], most: float) -> Float[Tensor, "*any"]:
    """Elements, or a bound where they are above it, with a slope of zero there.

    Args:
        x: elements.
        most: the bound.
    """
    return torch.where(x > most, most, x)


def _no_less(x: Tensor, least: float) -> Tensor:
    return torch.where(x > least, x, least)
