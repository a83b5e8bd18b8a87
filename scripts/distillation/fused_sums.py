"""The sums over neighbours for training: compiled, and differentiable any number of times without a scatter.

Training differentiates forces, which are derivatives themselves. `painn_deploy.export.model.aggregation` has closed
forms for the first derivative; the second would scatter, and every product on an edge would pass through memory. Here
each sum and each of its derivatives is one loop over neighbours, made by torch's compiler, and every derivative is
written with the same few loops again. With n the neighbour of a slot of atom i, f filters, u directions, x scalars, y
and g vectors,

    scalars  s_i  = Σ f x_n         pairs     p_ik = x_n x'_i            (what dL/df of `scalars` is)
    vectors  t_i  = Σ f y_n         dots      d_ik = y_n · g_i           (of `vectors`)
    dipoles  d_i  = Σ u f x_n       radial    r_ik = x_n (u · g_i)       (dL/df of `dipoles`)
    heads    h_i  = Σ f (u · y_n)   angular   a_ik = Σ_features f x_n g_i   (dL/du of `dipoles`)

The filter of an edge is that of its reverse and its direction the negative. So are, at every order, the gradients that
arrive from a loss of energies and forces: forces are built from dE/d(displacement) of both slots of a pair. Hence
sums over incoming edges are sums over outgoing ones, up to a sign for each direction, and a gradient by filters or
directions may sit on either slot of its pair. For anything else that could be done with edges it does not hold.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from painn_deploy.export.model.aggregation import CLOSED_FORM, Aggregation

__all__ = ["compiled_sums"]


def _scalars(f: Tensor, x: Tensor, n: Tensor) -> Tensor:
    return (f * x[n]).sum(1)


def _pairs(x: Tensor, g: Tensor, n: Tensor) -> Tensor:
    return x[n] * g.unsqueeze(1)


def _vectors(f: Tensor, y: Tensor, n: Tensor) -> Tensor:
    return (f.unsqueeze(2) * y[n]).sum(1)


def _dots(y: Tensor, g: Tensor, n: Tensor) -> Tensor:
    return (y[n] * g.unsqueeze(1)).sum(2)


def _dipoles(u: Tensor, f: Tensor, x: Tensor, n: Tensor) -> Tensor:
    return ((f * x[n]).unsqueeze(2) * u.unsqueeze(3)).sum(1)


def _heads(u: Tensor, f: Tensor, y: Tensor, n: Tensor) -> Tensor:
    return (f * (y[n] * u.unsqueeze(3)).sum(2)).sum(1)


def _radial(u: Tensor, x: Tensor, g: Tensor, n: Tensor) -> Tensor:
    return x[n] * (u.unsqueeze(3) * g.unsqueeze(1)).sum(2)


def _angular(f: Tensor, x: Tensor, g: Tensor, n: Tensor) -> Tensor:
    return ((f * x[n]).unsqueeze(2) * g.unsqueeze(1)).sum(3)


def compiled_sums(compile_: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None) -> Aggregation:
    """The sums of `painn_deploy.export.model.aggregation`, compiled at the first call: half a minute a process.

    Args:
        compile_: what makes a function fast; torch.compile for any number of atoms and slots if not given.
    """
    fast = compile_ or (lambda f: torch.compile(f, dynamic=True))
    loops = {f.__name__: fast(f) for f in (_scalars, _pairs, _vectors, _dots, _dipoles, _heads, _radial, _angular)}

    def derived(loop: Callable[..., Tensor], gradients: Callable[..., tuple[Tensor | None, ...]]) -> Any:
        """An autograd function of a loop, whose gradients are other such functions."""

        class Derived(Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Tensor:
                ctx.save_for_backward(*inputs)
                return loop(*inputs)

            @staticmethod
            def backward(ctx: Any, *incoming: Any) -> Any:
                needed = ctx.needs_input_grad
                return (*gradients(incoming[0], needed, *ctx.saved_tensors), None)

        # else every layout is compiled for itself
        return lambda *inputs: Derived.apply(*(t.contiguous() for t in inputs))  # type: ignore[no-untyped-call]

    # Each gradient is computed only where it is needed: `needed` says which.
    scalars = derived(
        loops["_scalars"],
        lambda g, need, f, x, n: (pairs(x, g, n) if need[0] else None, scalars(f, g, n) if need[1] else None),
    )
    pairs = derived(
        loops["_pairs"],
        lambda h, need, x, g, n: (scalars(h, g, n) if need[0] else None, scalars(h, x, n) if need[1] else None),
    )
    vectors = derived(
        loops["_vectors"],
        lambda g, need, f, y, n: (dots(y, g, n) if need[0] else None, vectors(f, g, n) if need[1] else None),
    )
    dots = derived(
        loops["_dots"],
        lambda h, need, y, g, n: (vectors(h, g, n) if need[0] else None, vectors(h, y, n) if need[1] else None),
    )
    dipoles = derived(
        loops["_dipoles"],
        lambda g, need, u, f, x, n: (
            angular(f, x, g, n) if need[0] else None,
            radial(u, x, g, n) if need[1] else None,
            -heads(u, f, g, n) if need[2] else None,
        ),
    )
    heads = derived(
        loops["_heads"],
        lambda q, need, u, f, y, n: (
            -angular(f, q, y, n) if need[0] else None,
            -radial(u, q, y, n) if need[1] else None,
            -dipoles(u, f, q, n) if need[2] else None,
        ),
    )
    radial = derived(
        loops["_radial"],
        lambda h, need, u, x, g, n: (
            angular(h, x, g, n) if need[0] else None,
            -heads(u, h, g, n) if need[1] else None,
            dipoles(u, h, x, n) if need[2] else None,
        ),
    )
    angular = derived(
        loops["_angular"],
        lambda a, need, f, x, g, n: (
            radial(a, x, g, n) if need[0] else None,
            -heads(a, f, g, n) if need[1] else None,
            dipoles(a, f, x, n) if need[2] else None,
        ),
    )
    return Aggregation(scalars=scalars, dipoles=dipoles, vectors=vectors, norm=CLOSED_FORM.norm)
