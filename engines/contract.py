"""The engine's door: arrays are held against the graph contract before an engine reads them."""

import numpy as np

from painn_deploy.export.errors import ShapeError
from painn_deploy.export.fields import INPUTS, GraphInputs

__all__ = ["check_inputs"]

_DTYPES = tuple(np.dtype(field.dtype) for field in INPUTS)


def check_inputs(inputs: GraphInputs) -> None:
    """Refuse what an engine would read as something else.

    An engine takes an address and believes the rest: a strided or a float64 array would give wrong forces, silently.

    Raises:
        ShapeError: naming the array, what it is and what it must be.
    """
    atoms, slots = inputs.mask.shape if inputs.mask.ndim == 2 else (-1, -1)
    sizes = {"atoms": atoms, "slots": slots}
    for array, field, dtype in zip(inputs, INPUTS, _DTYPES, strict=True):
        shape = tuple(sizes[s] if isinstance(s, str) else s for s in field.shape)
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            layout = "" if array.flags.c_contiguous else ", not contiguous"
            raise ShapeError(
                f"The input {field.name} is {array.dtype} {array.shape}{layout}; "
                f"an engine reads a contiguous {field.dtype} array [{', '.join(map(str, field.shape))}]."
            )
    if atoms < 1 or slots < 1:
        raise ShapeError(f"A graph has at least one atom and one slot, not {atoms} and {slots}.")
