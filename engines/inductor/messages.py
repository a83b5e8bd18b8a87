"""What an interaction sums over neighbours in one launch, and its adjoint in another, as operators of torch.

torch's compiler writes the kernels of `painn_deploy.engines.inductor.messages_kernel` into a package beside its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.runtime import JITFunction

from painn_deploy.engines.inductor.messages_kernel import adjoint_kernel, messages_kernel

__all__ = ["adjoint", "messages"]

SLOTS, WIDTH, DEPTH = 16, 32, 16
"""A program's tile: slots at a time, features, and radial functions at a time, of which Triton's products take no
fewer. With the four warps that Triton starts, what a program holds fits into registers, but for 8 bytes of a thread on
compute capability 12.0 where products are split (`pytest tests/engines/messages`)."""

DIPOLES = 1
"""Their place among the parts."""


def messages(
    radial: Tensor,
    neighbours: Tensor,
    directions: Tensor | None,
    mask: Tensor,
    *operands: Tensor | None,
    masked: Sequence[int],
    precision: str = "ieee",
) -> tuple[Tensor | None, ...]:
    """Sums over slots; see `painn_deploy.export.graph.messages`.

    Args:
        radial: [atoms, slots, columns].
        neighbours: [atoms, slots].
        directions: [atoms, slots, 3]; None where there are no dipoles.
        mask: [atoms, slots].
        operands: for scalars, dipoles and vectors each a weight [columns, features], a bias [features] and what is
            gathered, [atoms, features] or [atoms, 3, features]; None where there is none.
        masked: whether the filters of each are masked.
        precision: of products of FP32, in Triton's words: `ieee`, `tf32`, or `tf32x3`, of three that round their
            operands and together are about as exact as one that does not.

    Returns:
        Sums of scalars [atoms, features], dipoles and vectors [atoms, 3, features], in FP32; None where there is no
        weight.
    """
    flags = [bool(one) for one in masked]
    sums = _messages(radial, neighbours, directions, mask, list(operands), flags, precision)
    return tuple(total if operands[3 * part] is not None else None for part, total in enumerate(sums))


def adjoint(
    radial: Tensor | None,
    slope: Tensor,
    neighbours: Tensor,
    directions: Tensor | None,
    mask: Tensor,
    *operands: Tensor | None,
    masked: Sequence[int],
    precision: str = "ieee",
) -> tuple[Tensor | None, ...]:
    """Gradients of such sums; see `painn_deploy.export.graph.messages`.

    Args:
        radial: [atoms, slots, columns]; None where slopes alone are needed.
        slope: derivatives of the radial functions by the distance, likewise.
        neighbours: [atoms, slots].
        directions: [atoms, slots, 3]; None where there are no dipoles.
        mask: [atoms, slots].
        operands: for scalars, dipoles and vectors each a weight, a bias and what was gathered, as for the sums; the
            gradient by the sum, for the atom's own row; and the same gradient, maybe in half, where rows of it are to
            be gathered for a gradient by what was gathered.
        masked: whether the filters of each are masked.
        precision: as for the sums.

    Returns:
        For scalars, dipoles and vectors each the gradient by distances [atoms, slots], by directions
        [atoms, slots, 3], and by what was gathered, in its shape; None where there is none. That by distances is the
        sum of all, given once, and zeros for the others.
    """
    flags, present = [bool(one) for one in masked], [operands[5 * part] is not None for part in range(3)]
    some = slope if radial is None else radial
    same = operands[9] is operands[14]  # asked here: to whoever traces, what is one tensor may be two
    distance, direction, *by_x = _adjoint(
        some, slope, neighbours, directions, mask, list(operands), flags, same, precision
    )
    # a kernel adds up what programs of some features each have; the compiler writes that into what comes next
    gradients = [distance.sum(0) if part == present.index(True) else torch.zeros_like(mask) for part in range(3)]
    found: list[Tensor | None] = []
    for part, there in enumerate(present):
        gathered = operands[5 * part + 4] is not None
        found.append(gradients[part] if there else None)
        found.append(direction.sum(0) if there and part == DIPOLES else None)
        found.append(by_x[part] if there and gathered else None)
    return tuple(found)


@torch.library.triton_op("painn_deploy::messages", mutates_args=())
def _messages(
    radial: Tensor,
    neighbours: Tensor,
    directions: Tensor | None,
    mask: Tensor,
    operands: list[Tensor | None],
    masked: list[bool],
    precision: str,
) -> list[Tensor]:
    atoms, slots, columns = radial.shape
    parts = [operands[i : i + 3] for i in range(0, 9, 3)]
    features = _features(operands)
    sums = [radial.new_empty(_shape(part, atoms, features), dtype=torch.float32) for part in range(3)]
    given = [_laid_out(one, mask) for i in range(3) for one in (*parts[i], sums[i])]
    _traceable(messages_kernel)[(atoms, _blocks(features))](
        *(_laid_out(one, mask) for one in (radial, neighbours, directions, mask)),
        *(*given, slots),
        **_constants(columns, features, [part[0] for part in parts], [part[1] for part in parts], masked, precision),
        GATHERS_D=parts[DIPOLES][2] is not None,
    )
    return sums


@torch.library.triton_op("painn_deploy::messages_adjoint", mutates_args=())
def _adjoint(
    radial: Tensor,
    slope: Tensor,
    neighbours: Tensor,
    directions: Tensor | None,
    mask: Tensor,
    operands: list[Tensor | None],
    masked: list[bool],
    same: bool,
    precision: str,
) -> list[Tensor]:
    atoms, slots, columns = radial.shape
    parts = [operands[i : i + 5] for i in range(0, 15, 5)]
    features = _features(operands)
    gives = [part[4] is not None for part in parts]
    distance = mask.new_empty((_blocks(features), atoms, slots))
    direction = mask.new_empty((_blocks(features), atoms, slots, 3))
    by_x = [mask.new_empty(_shape(part, atoms, features, is_sum=False)) for part in range(3)]
    given = [_laid_out(one, mask) for i in range(3) for one in (*parts[i], by_x[i])]
    _traceable(adjoint_kernel)[(atoms, _blocks(features))](
        *(_laid_out(one, mask) for one in (radial, slope, neighbours, directions, mask)),
        *(*given, distance, direction, atoms, slots),
        **_constants(columns, features, [part[0] for part in parts], [part[1] for part in parts], masked, precision),
        GATHERS_D=parts[DIPOLES][2] is not None,
        **{f"GIVES_{name}": one for name, one in zip("SDV", gives, strict=True)},
        SAME_G=same,
    )
    return [distance, direction, *by_x]


def _laid_out(one: Tensor | None, other: Tensor) -> Tensor:
    """A tensor row by row, as kernels read it; in the place of one that is not there, which none reads, another."""
    return other if one is None else one.contiguous()


def _features(operands: Sequence[Tensor | None]) -> int:
    """Columns of the weights."""
    size = 3 if len(operands) == 9 else 5
    return next(weight.shape[1] for weight in operands[::size] if weight is not None)


def _blocks(features: int) -> int:
    """Programs that share the features of an atom."""
    return -(-features // WIDTH)


def _shape(part: int, atoms: int, features: int, *, is_sum: bool = True) -> tuple[int, ...]:
    """Of a sum of a part, or of what it gathers."""
    return (atoms, features) if part == 0 or (part == DIPOLES and not is_sum) else (atoms, 3, features)


def _constants(
    columns: int,
    features: int,
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    masked: Sequence[bool],
    precision: str,
) -> dict[str, Any]:
    """What both kernels are compiled for."""
    found: dict[str, Any] = {"COLUMNS": columns, "FEATURES": features, "PRECISION": precision}
    found |= {"SLOTS": SLOTS, "WIDTH": WIDTH, "DEPTH": DEPTH}
    for name, weight, bias, of_mask in zip("SDV", weights, biases, masked, strict=True):
        found |= {f"HAS_{name}": weight is not None, f"BIAS_{name}": bias is not None, f"MASKED_{name}": of_mask}
    return found


def _traceable(kernel: Any) -> Any:
    """A kernel as torch's compiler sees it; one that Triton interprets is called as it is."""
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel
