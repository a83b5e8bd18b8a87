"""A radial network as a table: what it gives depends on one number, so it need not be computed again for every edge.

All filters of a student together, g(d) with as many components as there are filters and features, lie close to a space
of a few dimensions: g(d) = C·b(d), with C fixed and b the part that depends on the distance. The basis b is smooth, is
tabulated on an even grid from 0 to the cutoff, and is read as a cubic spline, which has two continuous derivatives. An
edge then costs one row of the table and one product with C, whatever the network was. Forces stay the exact gradient of
the energy that is computed; what changes is the energy itself, by an error that the caller measures.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from painn_deploy.export.errors import ExportError
from painn_deploy.export.model.aggregation import FilterFunction

__all__ = ["RadialTable"]

INNER = 0.6
"""Å, below which two nuclei never come in chemistry: filters must be smooth there and need not be exact."""

INNER_WEIGHT = 1e-3
"""Weight of errors below `INNER` when the basis is chosen, against 1 above it."""

SLOPE_WEIGHT = 0.3
"""Å, weight of errors in slopes, which forces are made of, against errors in values."""


class RadialTable(nn.Module):
    """Filters as a product of a tabulated basis with fixed weights.

    Attributes:
        spacing: Å, between knots.
        rows: [intervals + 1, 7·rank], of each interval the coefficients of t⁰ to t³ of the basis, then of t⁰ to t² of
            its derivative in 1/Å, with t from 0 to 1 along the interval; the last row is zero.
        weight: [filters, rank], what the basis is multiplied by.
    """

    rows: Tensor

    def __init__(self, rows: Tensor, weight: Tensor, spacing: float) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.spacing = spacing

    @classmethod
    def of(
        cls, network: Callable[[Float[Tensor, " distances"]], Tensor], cutoff: float, rank: int, intervals: int
    ) -> "RadialTable":
        """Tabulate a network.

        Args:
            network: distances [n], Å, to filters [n, columns], in float64.
            cutoff: Å, where the table ends.
            rank: functions of the basis; the best of that number in the least squares sense.
            intervals: between knots.

        Raises:
            ExportError: the network gives fewer filters than the basis has functions.
        """
        dense = torch.linspace(0, cutoff, 2 * intervals + 1, dtype=torch.float64)
        dense[0] = dense[1] * 1e-6  # a sine basis is 0/0 at 0
        with torch.no_grad():
            both = torch.func.jvp(network, (dense,), (torch.ones_like(dense),))
            values, slopes = both[0], both[1]
            if values.shape[1] < rank:
                raise ExportError(f"{values.shape[1]} filters need no basis of {rank} functions.")
            weight = torch.where(dense < INNER, INNER_WEIGHT, 1.0).unsqueeze(-1)
            spread = torch.linalg.svd(torch.cat([weight * values, SLOPE_WEIGHT * weight * slopes]), full_matrices=False)
            columns = spread.Vh[:rank].mT
            basis, ends = values[::2] @ columns, slopes[[0, -1]] @ columns
            scale = basis.abs().amax(0).clamp_min(1e-30)  # so that half's range and INT8's steps are used
            from scipy.interpolate import CubicSpline  # here: students without a table need none of it

            knots = np.linspace(0, cutoff, intervals + 1)
            spline = CubicSpline(knots, (basis / scale).numpy(), bc_type=[(1, end) for end in (ends / scale).numpy()])
            spacing = cutoff / intervals
            # [4, intervals, rank] from the highest power of Å down -> powers of t up, side by side
            powers = spline.c[::-1] * (spacing ** np.arange(4))[:, None, None]
            derivative = powers[1:] * (np.arange(1, 4) / spacing)[:, None, None]
            rows = torch.from_numpy(np.concatenate([powers, derivative]).transpose(1, 0, 2).copy()).flatten(1)
            rows = torch.cat([rows, torch.zeros_like(rows[:1])])
        return cls(rows, columns * scale, spacing)

    @property
    def rank(self) -> int:
        """Functions of the basis."""
        return self.weight.shape[1]

    def functions(self, widths: Sequence[int], mask: Float[Tensor, "atoms slots"]) -> list[FilterFunction]:
        """The filters in runs of so many, each as a function of the distances.

        Args:
            widths: columns of each run.
            mask: 1 for an edge, 0 for padding [atoms, slots].
        """

        def filtered(weight: Tensor) -> FilterFunction:
            return lambda distances: self(distances, mask) @ weight

        return [filtered(weight) for weight in torch.split(self.weight.mT, list(widths), -1)]

    def forward(
        self, distances: Float[Tensor, "atoms slots"], mask: Float[Tensor, "atoms slots"]
    ) -> Float[Tensor, "atoms slots rank"]:
        """The basis, 0 where the mask is; its derivative by the distance is that of the spline.

        Args:
            distances: Å [atoms, slots].
            mask: 1 for an edge, 0 for padding [atoms, slots].
        """
        place = distances.detach() * (1 / self.spacing)
        # a distance that rounds up to the cutoff belongs to the last interval; after it comes a row of zeros
        knot = place.to(torch.int32).clamp(0, len(self.rows) - 2)
        row = torch.where(mask > 0, knot, len(self.rows) - 1)
        found = nn.functional.embedding(row, self.rows)
        t = (place - knot.to(place.dtype)).unsqueeze(-1)
        values: Tensor = _Spline.apply(distances, t, found)  # type: ignore[no-untyped-call]
        return values


class _Spline(Function):
    """Polynomials of the place in the interval, and derivatives that are read from the table too."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, t: Tensor, found: Tensor) -> Tensor:
        c0, c1, c2, c3, *slopes = found.chunk(7, -1)
        ctx.save_for_backward(t, *slopes)
        return ((c3 * t + c2) * t + c1) * t + c0

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (t, s0, s1, s2) = grads, ctx.saved_tensors
        return (grad * ((s2 * t + s1) * t + s0)).sum(-1), None, None
