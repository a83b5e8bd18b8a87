"""Checks of an engine's inputs against the graph contract, and padding that keeps it."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int32
from numpy.typing import DTypeLike

from painn_deploy.engines.session import Boxes
from painn_deploy.export.errors import ShapeError
from painn_deploy.export.fields import INPUTS, WITH_WEIGHTS, Field, GraphInputs
from painn_deploy.export.manifest_values import PRECISIONS

__all__ = [
    "check_boxes",
    "check_indices",
    "check_inputs",
    "check_mask",
    "check_molecules",
    "check_no_weights",
    "check_pairing",
    "padded",
    "taken",
]

MOST_SPAN = 2**24
"""Boxes away that a neighbour may be in a direction that repeats; a thinner cell is none of matter."""

_DTYPES = {precision: tuple(np.dtype(field.dtype_in(precision)) for field in INPUTS) for precision in PRECISIONS}


def check_inputs(inputs: GraphInputs, precision: str = "fp32") -> None:
    """Refuse arrays that an engine would misread.

    An engine takes an address and believes the rest: a strided array, or one of another type, would give wrong forces,
    silently.

    Args:
        inputs: arrays.
        precision: of the engine; `fp64` reads float64, and the others float32.

    Raises:
        ShapeError: naming the array, what it is and what it must be.
    """
    atoms, slots = inputs.mask.shape if inputs.mask.ndim == 2 else (-1, -1)
    for array, field, dtype in zip(inputs, INPUTS, _DTYPES[precision], strict=True):
        shape = field.sized(atoms=atoms, slots=slots)
        if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            layout = "" if array.flags.c_contiguous else ", not contiguous"
            raise ShapeError(
                f"The input {field.name} is {array.dtype} {array.shape}{layout}; "
                f"an engine reads a contiguous {dtype} array [{', '.join(map(str, field.shape))}]."
            )
    if atoms < 1 or slots < 1:
        raise ShapeError(f"A graph has at least one atom and one slot, not {atoms} and {slots}.")


def taken(inputs: GraphInputs, fields: Sequence[Field] = INPUTS) -> dict[str, np.ndarray]:
    """The arrays that a graph takes, by name, in its order.

    Args:
        inputs: that keep the contract.
        fields: that the graph takes, see `painn_deploy.export.fields.inputs_of`.

    Raises:
        ShapeError: the graph takes no weights, and some are not 1.
    """
    arrays = inputs._asdict()
    if len(fields) == len(arrays):
        return arrays
    check_no_weights(inputs.weights)
    return {field.name: arrays[field.name] for field in fields}


def check_no_weights(weights: Float[np.ndarray, " atoms"]) -> None:
    """Refuse weights that a graph without such an input would leave out.

    Args:
        weights: as in the graph contract.

    Raises:
        ShapeError: some are not 1.
    """
    if (weights != 1).any():
        raise ShapeError(
            f"The input weights holds {weights[weights != 1][0]:g}, and this engine takes no weights, as its bundle is "
            f"of a format before {WITH_WEIGHTS}. Export the bundle again."
        )


def check_indices(
    atomic_numbers: Int32[np.ndarray, " atoms"],
    neighbours: Int32[np.ndarray, "atoms slots"],
    reverse: Int32[np.ndarray, "atoms slots"],
    most_number: int | None = None,
) -> None:
    """Refuse indices that a GPU would follow to memory that is not the structure's.

    Args:
        atomic_numbers: as in the graph contract, like the others.
        neighbours: likewise.
        reverse: likewise.
        most_number: the largest atomic number that the engine has a row for; None where that is not known.

    Raises:
        ShapeError: naming the array and what is out of its range.
    """
    bounds: dict[str, tuple[np.ndarray, int]] = {"neighbours": (neighbours, len(neighbours))}
    bounds["reverse"] = reverse, reverse.size
    if most_number is not None:
        bounds["atomic_numbers"] = (atomic_numbers, most_number + 1)
    _refuse_beyond(bounds, "The input {}")


def check_pairing(reverse: Int32[np.ndarray, " cells"], own: Int32[np.ndarray, " cells"]) -> None:
    """Refuse a `reverse` that is none.

    Args:
        reverse: as in the graph contract, flat.
        own: index of each slot.

    Raises:
        ShapeError: it does not lead back from where it leads.
    """
    if reverse.min() < 0 or reverse.max() >= reverse.size or not np.array_equal(reverse[reverse], own):
        raise ShapeError("The input reverse is no pairing: the reverse of a slot's reverse must be that slot.")


def check_mask(
    mask: Float[np.ndarray, "atoms slots"],
    reverse: Int32[np.ndarray, "atoms slots"],
) -> None:
    """Refuse edges that are none from their other end.

    Args:
        mask: as in the graph contract, like the other.
        reverse: likewise.

    Raises:
        ShapeError: a slot is an edge, and its reverse is none, or is that slot itself; or `reverse` is no pairing.
    """
    own = np.arange(reverse.size, dtype=np.int32)
    flat, edge = reverse.reshape(-1), mask.reshape(-1) > 0
    check_pairing(flat, own)
    wrong = edge & (~edge[flat] | (flat == own))
    if wrong.any():
        atom, slot = divmod(int(np.flatnonzero(wrong)[0]), mask.shape[1])
        raise ShapeError(
            f"The input mask says that slot {slot} of atom {atom} is an edge, and its reverse is none: an edge is one "
            "from both of its atoms."
        )


def _refuse_beyond(bounds: Mapping[str, tuple[Int32[np.ndarray, "*shape"], int]], called: str) -> None:
    """Refuse indices that are negative, or not below their bound.

    Args:
        bounds: arrays and their bounds by name.
        called: what an array is, with its name to be put in.
    """
    for name, (array, bound) in bounds.items():
        if array.view(np.uint32).max() >= bound:  # what is negative is large without its sign
            wrong = array[(array < 0) | (array >= bound)].flat[0]
            raise ShapeError(f"{called.format(name)} holds {wrong}, and its values lie between 0 and {bound - 1}.")


def _refuse_unlike(wanted: Mapping[str, tuple[np.ndarray, DTypeLike, tuple[int, ...]]], of: str) -> None:
    """Refuse arrays of another type or shape than is wanted.

    Args:
        wanted: arrays, with their types and shapes, by name.
        of: what they are arrays of.
    """
    for name, (array, dtype, shape) in wanted.items():
        if array.dtype != dtype or array.shape != shape:
            raise ShapeError(
                f"The array {name} of {of} is {array.dtype} {array.shape}; a {np.dtype(dtype)} array of the shape "
                f"{shape} is wanted."
            )


def check_molecules(
    numbers: np.ndarray, positions: np.ndarray, starts: np.ndarray, most_number: int | None = None
) -> None:
    """Refuse molecules side by side whose arrays do not fit together, or that a GPU would follow to other memory.

    Args:
        numbers: Z, int32 [atoms].
        positions: Å, float64 [atoms, 3].
        starts: first row of each molecule, int64 [molecules].
        most_number: the largest atomic number that the engine has a row for; None where that is not known.

    Raises:
        ShapeError: naming the array, what it is and what it must be.
    """
    atoms = len(numbers) if numbers.ndim == 1 else -1
    _refuse_unlike(
        {
            "numbers": (numbers, np.int32, (atoms,)),
            "positions": (positions, np.float64, (atoms, 3)),
            "starts": (starts, np.int64, (len(starts) if starts.ndim == 1 else -1,)),
        },
        "molecules",
    )
    if atoms < 1 or not len(starts) or starts[0] != 0 or starts[-1] >= atoms or (np.diff(starts) < 1).any():
        raise ShapeError(
            f"The {len(starts)} molecules of {atoms} atoms must start at row 0, each at a later row than the one "
            "before, so that none is without atoms."
        )
    _refuse_beyond(
        {"numbers": (numbers, 2**31 if most_number is None else most_number + 1)}, "The array {} of molecules"
    )


def check_boxes(boxes: Boxes, most_number: int | None = None) -> None:
    """Refuse atoms in boxes that a GPU would follow to memory that is not the structure's.

    Args:
        boxes: the structure.
        most_number: the largest atomic number that the engine has a row for; None where that is not known.

    Raises:
        ShapeError: naming the array and what is out of its range.
    """
    atoms, starts = len(boxes.atomic_numbers), boxes.starts.size
    whole = dict.fromkeys(("atomic_numbers", "box", "order"), (atoms,)) | {"starts": (starts,), "shape": (9,)}
    real = {"positions": (atoms, 3), "whole": (atoms, 3), "cell": (3, 3)}
    for dtype, shapes in ((np.int32, whole), (np.float64, real), (np.float32, {"weights": (atoms,)})):
        _refuse_unlike({name: (getattr(boxes, name), dtype, shape) for name, shape in shapes.items()}, "boxes")
    counts, spans, repeats = boxes.shape.reshape(3, 3)
    fits = counts.min() > 0 and np.prod(counts, dtype=np.int64) == starts - 1
    near = (spans >= 0) & (spans <= np.where(repeats, MOST_SPAN, counts - 1))
    if atoms < 1 or not fits or not near.all():
        raise ShapeError(f"The shape of boxes holds {boxes.shape.tolist()}, for {atoms} atoms and {starts} starts.")
    if boxes.starts[0] != 0 or boxes.starts[-1] != atoms or (np.diff(boxes.starts) < 0).any():
        raise ShapeError(f"The array starts of boxes must rise from 0 to {atoms}, the number of atoms.")
    bounds: dict[str, tuple[np.ndarray, int]] = {"box": (boxes.box, len(boxes.starts) - 1)}
    bounds["order"] = boxes.order, atoms
    if most_number is not None:
        bounds["atomic_numbers"] = (boxes.atomic_numbers, most_number + 1)
    _refuse_beyond(bounds, "The array {} of boxes")


def padded(inputs: GraphInputs, atoms: int, slots: int) -> GraphInputs:
    """The same graph in a matrix of at least so many atoms and slots, padded as the contract says.

    Args:
        inputs: that keep the contract.
        atoms: rows wanted.
        slots: columns wanted.
    """
    old_atoms, old_slots = inputs.mask.shape
    if (old_atoms, old_slots) == (atoms, slots):
        return inputs
    own = np.arange(atoms * slots, dtype=np.int32).reshape(atoms, slots)
    result = GraphInputs(
        atomic_numbers=np.zeros(atoms, np.int32),
        displacements=np.zeros((atoms, slots, 3), inputs.displacements.dtype),
        neighbours=own // np.int32(slots),
        reverse=own,
        mask=np.zeros((atoms, slots), inputs.mask.dtype),
        weights=np.ones(atoms, inputs.weights.dtype),
    )
    result.atomic_numbers[:old_atoms] = inputs.atomic_numbers
    result.weights[:old_atoms] = inputs.weights
    for name in ("displacements", "neighbours", "mask"):
        getattr(result, name)[:old_atoms, :old_slots] = getattr(inputs, name)
    row, slot = np.divmod(inputs.reverse, np.int32(old_slots))
    result.reverse[:old_atoms, :old_slots] = row * slots + slot
    return result
