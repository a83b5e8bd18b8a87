"""Sums over neighbours whose gradients need no scatter: the primitives that both architectures are written in.

Differentiating a gather gives a scatter-add, which engines refuse, run slowly, or sum in a random order. In a padded
neighbour matrix it can be avoided. Filters depend on the distance alone, so the filter of an edge is the filter of its
reverse, and the direction of the reverse edge is the negative. With f(j→i) the filters and x the features of atoms,

    y_i = Σ_j f(ij) x_j    has the adjoint    dL/dx_j = Σ_i f(ij) dL/dy_i = Σ_i f(ji) dL/dy_i,

which is the same sum over the neighbours of j, now of the gradients that sit on them.

`PLAIN` holds the sums as ordinary differentiable code; `CLOSED_FORM` holds the same values with the adjoints above, and
can be differentiated again, which training needs. What is deployed is in `painn_deploy.export.model.explicit`.
A gradient by filters or directions is the gradient for the slot alone: a pair's is the sum over its two slots, which
the caller forms once, at the very end, for displacements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function

__all__ = ["CLOSED_FORM", "PLAIN", "Aggregation", "Product", "linear"]

Neighbours = Int[Tensor, "atoms slots"]
Distances = Float[Tensor, "atoms slots"]
Filters = Float[Tensor, "atoms slots features"]
Directions = Float[Tensor, "atoms slots 3"]
Scalars = Float[Tensor, "atoms features"]
Vectors = Float[Tensor, "atoms 3 features"]


LEAST_NORM = 1e-15
"""Below it a norm is rounding noise; dividing by this instead takes v/|v| to 0 at v = 0, where squares underflow."""

FilterFunction = Callable[[Distances], Filters]


Product = Callable[[nn.Linear, Tensor, Tensor, Tensor | None], Tensor]


def linear(_: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b, as it is.

    Args:
        _: the layer.
        x: [..., inputs].
        weight: rows of the layer's, [outputs, inputs].
        bias: as many of its, if it has any.
    """
    return nn.functional.linear(x, weight, bias)


def _filters(functions: Sequence[FilterFunction], distances: Distances) -> Sequence[Any]:
    return [function(distances) for function in functions]


def _directed(directions: Directions, filters: Filters) -> Vectors:
    return directions.mT @ filters


def lengths(displacements: Directions, mask: Distances, epsilon: float) -> tuple[Distances, Distances, Distances]:
    """Of each slot d, d + epsilon, and the mask over that; d is 1 in a padded one."""
    squared = torch.where(mask > 0, (displacements * displacements).sum(-1), 1.0)
    distances = squared.sqrt()
    softened = distances + epsilon if epsilon else distances
    return distances, softened, mask / softened  # a pair kept beyond the cutoff has r, but no say


def _geometry(displacements: Directions, mask: Distances, epsilon: float) -> tuple[Distances, Directions]:
    distances, _, scale = lengths(displacements, mask, epsilon)
    return distances, displacements * scale.unsqueeze(-1)


@dataclass(frozen=True)
class Aggregation:
    """The sums over neighbours that a message function may use, and its products with weights.

    Attributes:
        scalars: (filters [atoms, slots, features], x [atoms, features], neighbours) -> Σ_k filters·x_j,
            shape [atoms, features].
        dipoles: (directions [atoms, slots, 3], filters, x, neighbours) -> Σ_k u ⊗ (filters·x_j),
            shape [atoms, 3, features].
        vectors: (filters, y [atoms, 3, features], neighbours) -> Σ_k filters·y_j, shape [atoms, 3, features].
        norm: (v [atoms, 3, features], epsilon) -> √(|v|² + epsilon), [atoms, features], with derivative 0 at v = 0.
        filters: (functions of the distances that give filters, distances [atoms, slots]) -> what the sums above take
            for filters, one for each function; the filters themselves where nothing else is said.
        directed: (directions, filters) -> Σ_k u ⊗ filters, shape [atoms, 3, features].
        geometry: (displacements [atoms, slots, 3], mask [atoms, slots], epsilon in Å) -> distances d and directions
            u = r/(d + epsilon) of each slot; d = 1 and u = 0 in a padded one, with finite derivatives.
        product: (layer, x [..., inputs], rows of its weight [outputs, inputs], as many of its bias or None) -> the
            product, [..., outputs]; of messages, mixing and updates.
    """

    scalars: Callable[[Any, Scalars, Neighbours], Scalars]
    dipoles: Callable[[Directions, Any, Scalars, Neighbours], Vectors]
    vectors: Callable[[Any, Vectors, Neighbours], Vectors]
    norm: Callable[[Vectors, float], Scalars]
    filters: Callable[[Sequence[FilterFunction], Distances], Sequence[Any]] = _filters
    directed: Callable[[Directions, Any], Vectors] = _directed
    geometry: Callable[[Directions, Distances, float], tuple[Distances, Directions]] = _geometry
    product: Product = linear


def gather(x: Scalars, neighbours: Neighbours) -> Filters:
    """Rows of x for every slot; an embedding look-up, because that becomes one Gather of any index shape."""
    return torch.nn.functional.embedding(neighbours, x)


def gather_vectors(y: Vectors, neighbours: Neighbours) -> Float[Tensor, "atoms slots 3 features"]:
    rows = gather(y.flatten(1), neighbours)
    return rows.view(*neighbours.shape, 3, y.shape[-1])


def _sum_scalars(filters: Filters, x: Scalars, neighbours: Neighbours) -> Scalars:
    return (filters * gather(x, neighbours)).sum(1)


def _sum_dipoles(directions: Directions, filters: Filters, x: Scalars, neighbours: Neighbours) -> Vectors:
    return directions.mT @ (filters * gather(x, neighbours))


def _sum_vectors(filters: Filters, y: Vectors, neighbours: Neighbours) -> Vectors:
    return (filters.unsqueeze(2) * gather_vectors(y, neighbours)).sum(1)


def _norm(v: Vectors, epsilon: float) -> Scalars:
    squared = (v * v).sum(1)
    if epsilon:
        return (squared + epsilon).sqrt()
    moving = squared > 0
    return torch.where(moving, torch.where(moving, squared, 1.0).sqrt(), 0.0)


class _SumScalars(Function):
    @staticmethod
    def forward(ctx: Any, filters: Filters, x: Scalars, neighbours: Neighbours) -> Scalars:
        ctx.save_for_backward(filters, x, neighbours)
        return _sum_scalars(filters, x, neighbours)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        filters, x, neighbours = ctx.saved_tensors
        (grad,) = grads
        grad_x = CLOSED_FORM.scalars(filters, grad, neighbours) if ctx.needs_input_grad[1] else None
        return gather(x, neighbours) * grad.unsqueeze(1), grad_x, None


class _SumDipoles(Function):
    @staticmethod
    def forward(ctx: Any, directions: Directions, filters: Filters, x: Scalars, neighbours: Neighbours) -> Vectors:
        ctx.save_for_backward(directions, filters, x, neighbours)
        return _sum_dipoles(directions, filters, x, neighbours)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        directions, filters, x, neighbours = ctx.saved_tensors
        (grad,) = grads
        gathered = gather(x, neighbours)
        grad_directions = (filters * gathered) @ grad.mT
        grad_filters = (directions @ grad) * gathered
        grad_x = None
        if ctx.needs_input_grad[2]:  # the reverse edge points the other way: hence the minus
            projected = (directions.unsqueeze(-1) * gather_vectors(grad, neighbours)).sum(2)
            grad_x = -(filters * projected).sum(1)
        return grad_directions, grad_filters, grad_x, None


class _SumVectors(Function):
    @staticmethod
    def forward(ctx: Any, filters: Filters, y: Vectors, neighbours: Neighbours) -> Vectors:
        ctx.save_for_backward(filters, y, neighbours)
        return _sum_vectors(filters, y, neighbours)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        filters, y, neighbours = ctx.saved_tensors
        (grad,) = grads
        grad_filters = (gather_vectors(y, neighbours) * grad.unsqueeze(1)).sum(2)
        grad_y = CLOSED_FORM.vectors(filters, grad, neighbours) if ctx.needs_input_grad[1] else None
        return grad_filters, grad_y, None


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, v: Vectors, epsilon: float) -> Scalars:
        squared = (v * v).sum(1)
        norm = (squared + epsilon if epsilon else squared).sqrt()
        ctx.is_soft = epsilon > 0
        ctx.save_for_backward(v, norm)
        return norm

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        v, norm = ctx.saved_tensors
        (grad,) = grads
        # v = 0 in the numerator makes the derivative 0 there, as the contract wants, without a branch
        least = norm if ctx.is_soft else norm.clamp_min(LEAST_NORM)
        return v * (grad / least).unsqueeze(1), None


PLAIN = Aggregation(scalars=_sum_scalars, dipoles=_sum_dipoles, vectors=_sum_vectors, norm=_norm)
CLOSED_FORM = Aggregation(
    scalars=_SumScalars.apply, dipoles=_SumDipoles.apply, vectors=_SumVectors.apply, norm=_Norm.apply
)
