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
fewer. With the four warps that Triton starts, what a program holds fits into registers; a few numbers do not where
products are split, or filters are of a network's hidden layer (`pytest tests/engines/messages`)."""

DIPOLES = 1
"""Their place among the parts."""


def messages(
    radial: Tensor,
    neighbours: Tensor,
    directions: Tensor | None,
    mask: Tensor,
    *operands: Tensor | None,
    masked: Sequence[int],
    first: Sequence[int],
    precision: str = "ieee",
) -> tuple[Tensor | None, ...]:
    """Sums over slots; see `painn_deploy.export.graph.messages`.

    Args:
        radial: [atoms, slots, columns].
        neighbours: [atoms, slots].
        directions: [atoms, slots, 3]; None where there are no dipoles.
        mask: [atoms, slots].
        operands: for scalars, dipoles and vectors each a weight [columns, features], a bias [features] and what is
            gathered, [atoms, features or more] or [atoms, 3, features]; None where there is none.
        masked: whether the filters of each are masked.
        first: column of what is gathered for each that its features begin in; 0 of vectors.
        precision: of products of FP32, in Triton's words: `ieee`, `tf32`, or `tf32x3`, of three that round their
            operands and together are about as exact as one that does not.

    Returns:
        Sums of scalars [atoms, features], dipoles and vectors [atoms, 3, features], in FP32; None where there is no
        weight.
    """
    of_slots, flags = _written(radial, neighbours, directions), [bool(one) for one in masked]
    sums = _messages(mask, of_slots, _written(*operands), flags, list(first), precision)
    return tuple(total if operands[3 * part] is not None else None for part, total in enumerate(sums))


def adjoint(
    radial: Tensor | None,
    slope: Tensor,
    neighbours: Tensor,
    directions: Tensor | None,
    mask: Tensor,
    *operands: Tensor | None,
    masked: Sequence[int],
    first: Sequence[int],
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
        first: as for the sums.
        precision: as for the sums.

    Returns:
        For scalars, dipoles and vectors each the gradient by distances [atoms, slots], by directions
        [atoms, slots, 3], and by what was gathered [atoms, features] or [atoms, 3, features]; None where there is
        none. That by distances is the sum of all, given once, and zeros for the others: they are to be added up.
    """
    of_slots, flags = _written(radial, slope, neighbours, directions), [bool(one) for one in masked]
    same = operands[9] is operands[14]  # asked here: to whoever traces, what is one tensor may be two
    found = _adjoint(mask, of_slots, _written(*operands), flags, list(first), same, precision)
    # a kernel adds up what programs of some features each have; the compiler writes that into what comes next
    distance, direction, by_x = found[0].sum(0), found[1].sum(0), found[2:]
    present = [operands[5 * part] is not None for part in range(3)]
    results: list[Tensor | None] = []
    for part, there in enumerate(present):
        once = part == present.index(True)
        results.append((distance if once else torch.zeros_like(mask)) if there else None)
        results.append(direction if there and part == DIPOLES else None)
        results.append(by_x[part] if operands[5 * part + 4] is not None else None)
    return tuple(results)


def _written(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same, row by row; to the compiler other tensors, which it writes down once for all kernels that read them."""
    found: list[Tensor | None] = []
    for one in tensors:
        rows = None if one is None else one.contiguous()
        is_whole = rows is not None and rows.storage_offset() == 0
        found.append(rows.as_strided(rows.shape, rows.stride()) if rows is not None and is_whole else rows)
    return found


@torch.library.triton_op("painn_deploy::messages", mutates_args=())
def _messages(
    mask: Tensor,
    of_slots: list[Tensor | None],
    operands: list[Tensor | None],
    masked: list[bool],
    first: list[int],
    precision: str,
) -> list[Tensor]:
    (atoms, slots), (weights, biases, x) = mask.shape, (operands[i::3] for i in range(3))
    columns, features = next(weight.shape for weight in weights if weight is not None)
    shapes = (atoms, features), (atoms, 3, features), (atoms, 3, features)
    sums = [mask.new_empty(shape if weights[part] is not None else (0,)) for part, shape in enumerate(shapes)]
    of_parts = [one for part in range(3) for one in (weights[part], biases[part], x[part], sums[part])]
    _traceable(messages_kernel)[(atoms, -(-features // WIDTH))](
        *_pointers(*of_slots, mask, *of_parts),
        slots,
        **_constants(columns, features, weights, biases, x, masked, first, precision),
    )
    return sums


@torch.library.triton_op("painn_deploy::messages_adjoint", mutates_args=())
def _adjoint(
    mask: Tensor,
    of_slots: list[Tensor | None],
    operands: list[Tensor | None],
    masked: list[bool],
    first: list[int],
    same: bool,
    precision: str,
) -> list[Tensor]:
    (atoms, slots), (weights, biases, x, _, g) = mask.shape, (operands[i::5] for i in range(5))
    columns, features = next(weight.shape for weight in weights if weight is not None)
    programs = -(-features // WIDTH)
    distance = mask.new_empty((programs, atoms, slots))
    direction = mask.new_empty((programs, atoms, slots, 3) if weights[DIPOLES] is not None else (0, 3))
    shapes = (atoms, features), (atoms, features), (atoms, 3, features)
    by_x = [mask.new_empty(shape if g[part] is not None else (0,)) for part, shape in enumerate(shapes)]
    of_parts = [one for part in range(3) for one in (*operands[5 * part : 5 * part + 5], by_x[part])]
    gives = {f"GIVES_{name}": one is not None for name, one in zip("SDV", g, strict=True)}
    _traceable(adjoint_kernel)[(atoms, programs)](
        *_pointers(*of_slots, mask, *of_parts, distance, direction),
        *(atoms, slots),
        **_constants(columns, features, weights, biases, x, masked, first, precision),
        **gives,
        SAME_G=same,
    )
    return [distance, direction, *by_x]


def _pointers(*tensors: Tensor | None) -> list[Tensor]:
    """Tensors for a kernel: in the place of one that is not there, and which it does not read, stands another."""
    other = next(one for one in tensors if one is not None)
    return [other if one is None else one for one in tensors]


def _constants(
    columns: int,
    features: int,
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    x: Sequence[Tensor | None],
    masked: Sequence[bool],
    first: Sequence[int],
    precision: str,
) -> dict[str, Any]:
    """What both kernels are compiled for."""
    found: dict[str, Any] = {"COLUMNS": columns, "FEATURES": features, "PRECISION": precision}
    found |= {"SLOTS": SLOTS, "WIDTH": WIDTH, "DEPTH": DEPTH, "GATHERS_D": x[DIPOLES] is not None}
    for part, name in enumerate("SDV"):
        found |= {f"HAS_{name}": weights[part] is not None, f"BIAS_{name}": biases[part] is not None}
        found[f"MASKED_{name}"] = masked[part]
    for part, name in enumerate("SD"):
        rows = x[part]
        found |= {f"WIDTH_{name}": features if rows is None else rows.shape[1], f"FIRST_{name}": first[part]}
    return found


def _traceable(kernel: Any) -> Any:
    """A kernel as torch's compiler sees it; one that Triton interprets is called as it is."""
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel
