"""The sums over neighbours as they are deployed: with their first derivatives in the fewest and smallest operations.

A filter is a function of the distance alone. So the gradient of the energy by a distance needs no gradient by filters,
which is as wide as they are and would have to go back through all that made them: with w' = dw/dd, taken forward,

    y_i = Σ_k w(d_k) x_j    has    dL/dd_k = Σ_features w'(d_k) x_j dL/dy_i,

one number for each slot. Automatic differentiation derives w' from the same code that gives w.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import Function

from painn_deploy.export.model.aggregation import (
    CLOSED_FORM,
    PLAIN,
    Aggregation,
    Directions,
    Distances,
    FilterFunction,
    Filters,
    Neighbours,
    Scalars,
    Vectors,
    gather,
    gather_vectors,
    lengths,
)

__all__ = ["EXPLICIT", "SlopedFilters"]


class SlopedFilters(NamedTuple):
    """Filters that know their derivative.

    Attributes:
        distances: that they are functions of.
        values: the filters.
        slopes: computes their derivatives by the distance, where they are wanted.
    """

    distances: Distances
    values: Filters
    slopes: Callable[[], Filters]


def _filters(functions: Sequence[FilterFunction], distances: Distances) -> Sequence[SlopedFilters]:
    at = distances.detach()

    def sloped(function: FilterFunction) -> SlopedFilters:
        def slopes() -> Filters:
            # a gradient is linear in what it is a gradient of: its own derivative by that is the forward derivative
            with torch.enable_grad():
                variable = at.clone().requires_grad_()
                values = function(variable)
                weights = torch.zeros_like(values, requires_grad=True)
                (weighted,) = torch.autograd.grad(values, variable, weights, create_graph=True)
                (tangent,) = torch.autograd.grad(weighted.sum(), weights)
            return tangent

        with torch.no_grad():
            return SlopedFilters(distances, function(at), slopes)

    return [sloped(function) for function in functions]


class _Geometry(Function):
    """d = |r| and u = r·s with s = 1/(d + ε), so that ds/dd = -s/(d + ε)."""

    @staticmethod
    def forward(ctx: Any, displacements: Directions, mask: Distances, epsilon: float) -> tuple[Distances, Directions]:
        distances, softened, scale = lengths(displacements, mask, epsilon)
        ctx.is_soft = epsilon != 0
        ctx.save_for_backward(displacements, distances, softened, scale, mask)
        return distances, displacements * scale.unsqueeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (by_distance, by_direction), (displacements, distances, softened, scale, mask) = grads, ctx.saved_tensors
        inverse = mask / distances if ctx.is_soft else scale
        turned = (by_direction * displacements).sum(-1) * (scale / softened)
        along = (by_distance - turned) * inverse
        return scale.unsqueeze(-1) * by_direction + along.unsqueeze(-1) * displacements, None, None


class _SumScalars(Function):
    @staticmethod
    def forward(ctx: Any, _: Distances, filters: Any, x: Scalars, neighbours: Neighbours) -> Scalars:
        ctx.filters = filters
        ctx.save_for_backward(x, neighbours)
        return PLAIN.scalars(filters.values, x, neighbours)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x, neighbours), (grad,), filters = ctx.saved_tensors, grads, ctx.filters
        by_distance = ((filters.slopes() * gather(x, neighbours)) @ grad.unsqueeze(-1)).squeeze(-1)
        by_x = PLAIN.scalars(filters.values, grad, neighbours) if ctx.needs_input_grad[2] else None
        return by_distance, None, by_x, None


class _SumDipoles(Function):
    @staticmethod
    def forward(
        ctx: Any, directions: Directions, _: Distances, filters: Any, x: Scalars, neighbours: Neighbours
    ) -> Vectors:
        ctx.filters = filters
        ctx.save_for_backward(directions, x, neighbours)
        return PLAIN.dipoles(directions, filters.values, x, neighbours)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (directions, x, neighbours), (grad,), filters = ctx.saved_tensors, grads, ctx.filters
        gathered = gather(x, neighbours)
        by_direction = (filters.values * gathered) @ grad.mT
        by_distance = (directions * ((filters.slopes() * gathered) @ grad.mT)).sum(-1)
        by_x = None
        if ctx.needs_input_grad[3]:  # the reverse edge points the other way: hence the minus
            projected = ((-directions).unsqueeze(-1) * gather_vectors(grad, neighbours)).sum(2)
            by_x = (filters.values * projected).sum(1)
        return by_direction, by_distance, None, by_x, None


class _SumDirected(Function):
    @staticmethod
    def forward(ctx: Any, directions: Directions, _: Distances, filters: Any) -> Vectors:
        ctx.filters = filters
        ctx.save_for_backward(directions)
        return PLAIN.directed(directions, filters.values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (directions,), (grad,), filters = ctx.saved_tensors, grads, ctx.filters
        by_distance = (directions * (filters.slopes() @ grad.mT)).sum(-1)
        return filters.values @ grad.mT, by_distance, None


class _SumVectors(Function):
    @staticmethod
    def forward(ctx: Any, _: Distances, filters: Any, y: Vectors, neighbours: Neighbours) -> Vectors:
        ctx.filters = filters
        ctx.save_for_backward(y, neighbours)
        return PLAIN.vectors(filters.values, y, neighbours)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (y, neighbours), (grad,), filters = ctx.saved_tensors, grads, ctx.filters
        sloped = filters.slopes().unsqueeze(2) * gather_vectors(y, neighbours)
        by_distance = (sloped.flatten(2) @ grad.flatten(1).unsqueeze(-1)).squeeze(-1)
        by_y = PLAIN.vectors(filters.values, grad, neighbours) if ctx.needs_input_grad[2] else None
        return by_distance, None, by_y, None


def _scalars(filters: SlopedFilters, x: Scalars, neighbours: Neighbours) -> Scalars:
    result: Scalars = _SumScalars.apply(filters.distances, filters, x, neighbours)  # type: ignore[no-untyped-call]
    return result


def _dipoles(directions: Directions, filters: SlopedFilters, x: Scalars, neighbours: Neighbours) -> Vectors:
    result: Vectors = _SumDipoles.apply(directions, filters.distances, filters, x, neighbours)  # type: ignore[no-untyped-call]
    return result


def _vectors(filters: SlopedFilters, y: Vectors, neighbours: Neighbours) -> Vectors:
    result: Vectors = _SumVectors.apply(filters.distances, filters, y, neighbours)  # type: ignore[no-untyped-call]
    return result


def _directed(directions: Directions, filters: SlopedFilters) -> Vectors:
    result: Vectors = _SumDirected.apply(directions, filters.distances, filters)  # type: ignore[no-untyped-call]
    return result


def _geometry(displacements: Directions, mask: Distances, epsilon: float) -> tuple[Distances, Directions]:
    result: tuple[Distances, Directions] = _Geometry.apply(displacements, mask, epsilon)  # type: ignore[no-untyped-call]
    return result


EXPLICIT = Aggregation(
    scalars=_scalars,
    dipoles=_dipoles,
    vectors=_vectors,
    norm=CLOSED_FORM.norm,
    filters=_filters,
    directed=_directed,
    geometry=_geometry,
)
