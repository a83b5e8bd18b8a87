"""The one way into an engine for structures: what their arrays hold is converted or refused; their completed cell."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell
from jaxtyping import Bool, Float64, Int32, Int64, Integer

from painn_deploy.export.errors import SpeciesError, StructureError

__all__ = [
    "FARTHEST",
    "FLAT",
    "ONE_SPOT",
    "as_directions",
    "as_elements",
    "as_flags",
    "as_numbers",
    "as_reals",
    "bounds_of",
    "check_structure",
    "differ",
    "periodic_cell",
    "plain_arrays",
    "refuse_one_spot",
]

ONE_SPOT = 1e-3
"""Å; atoms closer than this are one atom written twice, not chemistry."""

FLAT = 1e-6
"""Volume, area or length of the periodic vectors, over the product of their lengths, below which they are dependent."""

FARTHEST = 2.0**33
"""Å; numbers of float64 as large as this are more than 1e-6 Å apart, and forces on atoms there are rounding."""

MOST_ATOMS = 2**31 - 1
"""Atoms that the graph contract's indices of 32 bits can tell apart."""

FLOATS, WHOLES = np.dtype(np.float64), np.dtype(np.int64)


def check_structure(atoms: Atoms) -> Atoms:
    """Refuse what no force field can answer for, and give the rest in the arrays that engines compute with.

    Whatever `atoms.arrays` holds is converted where that is exact or a rounding to float64: numbers and positions of
    other types, orders of bytes and layouts, whole numbers written as floats. A cell vector that does not repeat and
    is not finite, or past `FARTHEST`, counts as none.

    Returns:
        The very same structure where there is nothing to convert, which is quick to see; else another one with its
        numbers (int64), positions and cell (float64, C order) and periodic directions, and nothing else of it.

    Raises:
        StructureError: no atoms, arrays that are none of numbers or of other shapes, positions or cell not finite or
            past `FARTHEST`, or periodic cell vectors that are dependent or shorter than `ONE_SPOT`.
    """
    try:
        numbers, positions = atoms.arrays["numbers"], atoms.arrays["positions"]
        cell, periodic = atoms.cell.array, atoms.pbc
    except Exception as error:  # whatever a structure that was put together by hand raises
        raise StructureError(
            f"This structure has no arrays of numbers, positions, cell and pbc ({type(error).__name__}: {error}). "
            "Make it with ase.Atoms(numbers=..., positions=..., cell=..., pbc=...)."
        ) from error
    given = cell, periodic
    plain = _is_plain(numbers, WHOLES) and _is_plain(positions, FLOATS) and _is_plain(cell, FLOATS)
    if plain:
        _check_shapes(numbers.shape, positions.shape, cell.shape)
    else:
        atoms_told = _check_shapes(_shape(numbers), _shape(positions), _shape(cell))  # before anything huge is made
        try:
            numbers, positions = as_numbers(numbers), as_reals(positions, "positions")
        except MemoryError as error:
            raise StructureError(f"The structure has {atoms_told} atoms, for which there is no memory.") from error
        cell = as_reals(cell, "the cell")
        _check_shapes(numbers.shape, positions.shape, cell.shape)  # objects may have been arrays of more dimensions
    if type(periodic) is not np.ndarray or periodic.dtype != bool or periodic.shape != (3,):
        periodic = as_flags(periodic)
    if len(positions) == 0:
        raise StructureError("The structure has no atoms.")
    if not np.abs(positions).max() < FARTHEST:  # NaN is not less
        raise _misplaced(numbers, positions)
    if cell.any():
        cell = _sound_cell(cell, periodic)
    elif periodic.any():
        raise _dependent(cell, periodic)
    if plain and cell is given[0] and periodic is given[1]:
        return atoms
    converted = Atoms(numbers, positions, pbc=periodic)
    converted.cell.array[:] = cell
    return converted


def plain_arrays(atoms: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Numbers, positions, cell and periodic directions of a structure whose arrays are computed with as they are.

    What they hold is not looked at. None for one that `check_structure` must convert or refuse.
    """
    try:
        arrays = atoms.arrays
        numbers, positions, cell, pbc = arrays["numbers"], arrays["positions"], atoms.cell.array, atoms.pbc
    except Exception:  # as in `check_structure`, which says what it is
        return None
    plain = (
        _is_plain(numbers, WHOLES)
        and _is_plain(positions, FLOATS)
        and _is_plain(cell, FLOATS)
        and type(pbc) is np.ndarray
        and pbc.dtype == bool
        and pbc.shape == (3,)
        and numbers.ndim == 1
        and positions.shape == (len(numbers), 3)
        and cell.shape == (3, 3)
        and isinstance(atoms, Atoms)
    )
    return (numbers, positions, cell, pbc) if plain else None


def as_numbers(values: Any) -> Int64[np.ndarray, "..."]:
    """Atomic numbers as int64, of any array of whole numbers, floats that are whole among them.

    Raises:
        StructureError: they are something else.
    """
    found = _unmasked(values, "numbers")
    if found.dtype.kind == "f" and np.isfinite(found).all() and (np.rint(found) == found).all():
        found = np.clip(found, -1, 2**31).astype(np.int64)  # beyond, it is no element either
    if found.dtype.kind == "u":
        found = np.minimum(found, np.uint64(2**31))
    if found.dtype.kind not in "iu":
        raise StructureError(
            f"The atomic numbers of this structure are {_described(found)}, and not whole numbers: {_some(found)}."
        )
    return np.ascontiguousarray(found, np.int64)


def as_reals(values: Any, name: str) -> Float64[np.ndarray, "..."]:
    """Real numbers of any type as float64.

    Args:
        values: an array.
        name: for messages.

    Raises:
        StructureError: they are something else.
    """
    found = _unmasked(values, name)
    if found.dtype.kind not in "iuf":
        raise StructureError(
            f"For {name} this structure holds {_described(found)}, and not real numbers: {_some(found)}."
        )
    with np.errstate(over="ignore"):  # infinity is refused in its turn
        return np.ascontiguousarray(found, np.float64)


def as_elements(numbers: Int64[np.ndarray, " atoms"]) -> Int32[np.ndarray, " atoms"]:
    """Atomic numbers as the graph contract has them.

    Raises:
        SpeciesError: one is no element's, and might become one in 32 bits.
    """
    if numbers.view(np.uint64).max() >= len(chemical_symbols):  # a negative one is among the largest
        wrong = int(((numbers < 0) | (numbers >= len(chemical_symbols))).argmax())
        raise SpeciesError(f"Atom {wrong} is no element (Z = {numbers[wrong]}); give the atomic number of one.")
    return numbers.astype(np.int32)


def periodic_cell(atoms: Atoms) -> Float64[np.ndarray, "3 3"]:
    """The periodic cell vectors, and unit vectors across them where there are fewer than three; zero where none is."""
    periodic = np.asarray(atoms.pbc)
    if not periodic.any():
        return np.zeros((3, 3))
    cell = np.where(periodic[:, None], np.asarray(atoms.cell), 0.0)
    return np.ascontiguousarray(complete_cell(cell), dtype=float)


def bounds_of(counts: Bool[np.ndarray, " parts"] | Int64[np.ndarray, " parts"]) -> Int64[np.ndarray, " bounds"]:
    """Where parts of an array start, and the end of the last.

    Args:
        counts: how many each has.
    """
    bounds = np.zeros(len(counts) + 1, np.int64)
    counts.cumsum(out=bounds[1:])
    return bounds


def differ(one: np.ndarray, other: Any) -> bool:
    """Whether two arrays differ: in a bit, which is quicker to see, or in a number.

    Args:
        one: of ours.
        other: anyone's.
    """
    if type(other) is np.ndarray and one.dtype == other.dtype and one.shape == other.shape:
        return one.tobytes() != other.tobytes()
    plain = isinstance(other, np.ndarray) and not isinstance(other, np.ma.MaskedArray)
    return not (plain and one.shape == other.shape and np.array_equal(one, other))


def refuse_one_spot(numbers: Integer[np.ndarray, " atoms"], distance: float, one: int, other: int) -> None:
    """Refuse a structure that has two atoms on one spot.

    Args:
        numbers: atomic numbers.
        distance: the shortest between two atoms, Å.
        one: index of the one.
        other: index of the other.

    Raises:
        StructureError: naming both atoms.
    """
    if distance >= ONE_SPOT:
        return
    raise StructureError(
        f"Atoms {one} ({_symbol(numbers[one])}) and {other} ({_symbol(numbers[other])}) are on one "
        f"spot, {distance:.2e} Å apart; remove the one that was written twice."
    )


def _check_shapes(numbers: tuple[int, ...], positions: tuple[int, ...], cell: tuple[int, ...]) -> int:
    """Refuse arrays that do not fit together; how many atoms they have."""
    if len(numbers) != 1 or positions != (*numbers, 3) or cell != (3, 3):
        raise StructureError(
            f"The arrays of this structure have the shapes {numbers} (numbers), {positions} (positions) and {cell} "
            "(cell); they must be (atoms,), (atoms, 3) and (3, 3)."
        )
    if numbers[0] > MOST_ATOMS:
        raise StructureError(f"The structure has {numbers[0]:.1e} atoms, and indices reach to {MOST_ATOMS:.1e}.")
    return numbers[0]


def _shape(values: Any) -> tuple[int, ...]:
    try:
        return tuple(np.shape(values))
    except ValueError:  # lists of different lengths have none
        return ()


def _is_plain(values: Any, kind: np.dtype) -> bool:
    """Whether an array can be computed with as it is; a subclass may answer otherwise than an array does."""
    return type(values) is np.ndarray and values.dtype == kind and values.flags.c_contiguous


def _unmasked(values: Any, name: str) -> np.ndarray:
    """Values as a bare array; objects as what they are numbers of."""
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.getmaskarray(values).any():
            raise StructureError(f"Some of {name} are masked, so that they are not known. Fill them in.")
        values = values.data
    try:
        found = np.asarray(values)
        return np.asarray(found.tolist()) if found.dtype.kind == "O" else found
    except Exception as error:  # objects may raise anything when they are turned into numbers
        raise StructureError(f"{name.capitalize()} of this structure are no array of numbers: {error}.") from error


def as_flags(values: Any, shape: tuple[int, ...] = (3,)) -> Bool[np.ndarray, "..."]:
    """Periodic directions, of any array of three truths, or of zeros and ones.

    Args:
        values: the array.
        shape: another one that it must have, of several structures.

    Raises:
        StructureError: they are something else.
    """
    found = _unmasked(values, "pbc") if _shape(values) == shape else np.empty(0)
    if found.shape != shape or not (
        found.dtype == bool or (found.dtype.kind in "iuf" and np.isin(found, (0, 1)).all())
    ):
        raise StructureError(f"pbc is {str(values)[:80]}, and not three times true or false.")
    return found.astype(bool)


def as_directions(pbc: Any) -> Bool[np.ndarray, "3"]:
    """Periodic directions, of one flag for all three or of three.

    Raises:
        StructureError: it is neither.
    """
    given = np.asarray(pbc)
    return as_flags(np.repeat(given, 3) if given.size == 1 else given)


def _sound_cell(cell: Float64[np.ndarray, "3 3"], periodic: np.ndarray) -> Float64[np.ndarray, "3 3"]:
    """The cell, without vectors that do not repeat and are not finite, or past all lengths."""
    largest = np.abs(cell).max(axis=1)
    sane = largest < FARTHEST  # NaN is not less
    if not sane.all():
        if not np.isfinite(largest[periodic]).all():
            raise StructureError(f"The cell holds NaN or infinity: {cell.tolist()}.")
        if not sane[periodic].all():
            wrong = int(np.flatnonzero(periodic & ~sane)[0])
            raise StructureError(
                f"The cell vector {'abc'[wrong]} is {largest[wrong]:.1e} Å long, and float64 cannot place atoms in "
                f"cells past {FARTHEST:.0e} Å. Check its units, or switch pbc off in the directions that do not repeat."
            )
        cell = np.where(sane[:, None], cell, 0.0)
    if not periodic.any():
        return cell
    vectors = cell[periodic]
    lengths = np.linalg.norm(vectors, axis=1)
    short = (lengths < ONE_SPOT) & vectors.any(axis=1)
    if short.any():
        axis, vector = "abc"[np.flatnonzero(periodic)[short.argmax()]], vectors[short.argmax()]
        raise StructureError(
            f"The cell vector {axis} is {vector.tolist()} Å, so short that an atom would lie on its own image; check "
            "its units."
        )
    volume = np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))
    if volume <= FLAT * lengths.prod():
        raise _dependent(cell, periodic)
    return cell


def _dependent(cell: np.ndarray, periodic: np.ndarray) -> StructureError:
    axes = ", ".join(axis for axis, flag in zip("abc", periodic, strict=True) if flag)
    return StructureError(
        f"The periodic cell vectors {axes} are linearly dependent: {cell[periodic].tolist()}. "
        "Set a cell, or switch pbc off in the directions that do not repeat."
    )


def _misplaced(numbers: np.ndarray, positions: np.ndarray) -> StructureError:
    with np.errstate(invalid="ignore"):
        index = int(np.argmin((np.abs(positions) < FARTHEST).all(1)))
    where = f"Atom {index} ({_symbol(numbers[index])}) is at {positions[index]}"
    if np.isfinite(positions[index]).all():
        return StructureError(
            f"{where}, where numbers are more than 1e-6 Å apart, so that its forces would be rounding. Wrap the "
            "structure, or check its units."
        )
    return StructureError(
        f"{where}: NaN or infinite positions. "
        "A simulation that got here has diverged; look at the frames before, or use a shorter time step."
    )


def _symbol(number: Any) -> str:
    return chemical_symbols[number] if 0 <= number < len(chemical_symbols) else f"Z = {number}"


def _described(found: np.ndarray) -> str:
    kinds = {"b": "true and false", "c": "complex numbers", "f": "floats", "U": "text", "S": "bytes", "O": "objects"}
    return kinds.get(found.dtype.kind, f"values of the type {found.dtype}")


def _some(found: np.ndarray) -> str:
    return repr(found.ravel()[:4].tolist())[:80]
