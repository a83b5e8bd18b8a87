"""Structures side by side in arrays, and which of them no force field can answer for.

What is sound is seen in passes over the arrays of all. Only what is not plainly sound is looked at one by one, by
`check_structure`, which converts it or says what is wrong with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int64

from painn_deploy.export.errors import ShapeError, StructureError
from painn_deploy.runtime.species import AtomicReferences
from painn_deploy.runtime.structures import (
    FARTHEST,
    FLAT,
    ONE_SPOT,
    as_flags,
    as_numbers,
    as_reals,
    bounds_of,
    check_structure,
    plain_arrays,
)

__all__ = ["Arrays", "Faults", "Frames", "arrays_of", "copied", "named", "ranges"]

Faults = dict[int, Exception]
"""Why structures have no answer, by their places."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Numbers, positions, cell and periodic directions of one structure."""

_NOTHING: Arrays = np.empty(0, np.int64), np.empty((0, 3)), np.zeros((3, 3)), np.zeros(3, bool)
"""Arrays of a structure that has none."""

CLEARLY = 4.0
"""Times a limit that a cell must keep from it to be passed without a closer look."""


@dataclass(frozen=True)
class Frames:
    """Structures side by side.

    Attributes:
        numbers: atomic numbers of all atoms, structure after structure.
        positions: Å.
        offsets: first atom of each structure, and the number of atoms at the end.
        cells: rows are cell vectors, Å; zeros for none.
        pbc: in which directions each repeats.
    """

    numbers: Int64[np.ndarray, " atoms"]
    positions: Float64[np.ndarray, "atoms 3"]
    offsets: Int64[np.ndarray, " bounds"]
    cells: Float64[np.ndarray, "frames 3 3"]
    pbc: Bool[np.ndarray, "frames 3"]

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def counts(self) -> Int64[np.ndarray, " frames"]:
        """Atoms of each."""
        counts: np.ndarray = self.offsets[1:] - self.offsets[:-1]
        return counts

    def rows(self, index: int) -> slice:
        """Of the atoms of one structure."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def rows_of(self, chosen: Int64[np.ndarray, " chosen"]) -> slice | Int64[np.ndarray, " rows"]:
        """Of the atoms of some structures, in their order.

        Args:
            chosen: indices of these.
        """
        return ranges(self.offsets[:-1][chosen], self.counts[chosen])

    def only(self, chosen: Int64[np.ndarray, " chosen"]) -> "Frames":
        """Some of the structures, in their order.

        Args:
            chosen: indices of these.
        """
        rows, offsets = self.rows_of(chosen), bounds_of(self.counts[chosen])
        return Frames(self.numbers[rows], self.positions[rows], offsets, self.cells[chosen], self.pbc[chosen])

    def atoms(self, index: int) -> Atoms:
        """One structure."""
        rows = self.rows(index)
        return Atoms(self.numbers[rows], self.positions[rows], cell=self.cells[index], pbc=self.pbc[index])

    def part(self, first: int, last: int) -> "Frames":
        """Consecutive structures; views of the same arrays.

        Args:
            first: index of the first one.
            last: index after the last one.
        """
        rows = slice(int(self.offsets[first]), int(self.offsets[last]))
        offsets = self.offsets[first : last + 1] - self.offsets[first]
        return Frames(self.numbers[rows], self.positions[rows], offsets, self.cells[first:last], self.pbc[first:last])

    @classmethod
    def joined(cls, parts: "Sequence[Frames]") -> "Frames":
        """Structures after one another.

        Args:
            parts: of them.
        """
        parts = parts or [cls.side_by_side([])]
        return cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.positions for part in parts]),
            bounds_of(np.concatenate([part.counts for part in parts])),
            np.concatenate([part.cells for part in parts]),
            np.concatenate([part.pbc for part in parts]),
        )

    @classmethod
    def given(cls, numbers: Any, positions: Any, offsets: Any, cells: Any = None, pbc: Any = None) -> "Frames":
        """Structures of arrays as users have them, of any types that hold the same numbers.

        Args:
            numbers: atomic numbers, [atoms].
            positions: Å, [atoms, 3].
            offsets: first atom of each structure and the number of atoms at the end, [structures + 1].
            cells: Å, [structures, 3, 3] or one for all; None for none.
            pbc: one flag, three, or [structures, 3]; None for none.

        Raises:
            StructureError: they do not fit together, or are no numbers.
        """
        bounds = as_numbers(offsets)
        elements, places = as_numbers(numbers), as_reals(positions, "positions")
        count = len(bounds) - 1 if bounds.ndim == 1 else -1
        if elements.ndim != 1 or places.shape != (*elements.shape, 3):
            raise StructureError(
                f"Atomic numbers of the shape {elements.shape} and positions of {places.shape} do not fit together; "
                "they must be (atoms,) and (atoms, 3)."
            )
        if count < 0 or bounds[0] != 0 or bounds[-1] != len(elements) or (np.diff(bounds) < 0).any():
            raise StructureError(
                "offsets must be the first atom of each structure and the number of atoms at the end: they begin with "
                f"0, never fall, and end with {len(elements)}."
            )
        vectors = np.zeros((3, 3)) if cells is None else as_reals(cells, "cells")
        flags = np.asarray(False if pbc is None else pbc)
        if vectors.shape not in ((3, 3), (count, 3, 3)) or flags.shape not in ((), (3,), (count, 3)):
            raise StructureError(
                f"cells of the shape {vectors.shape} and pbc of {flags.shape} do not fit {count} structures; they must "
                "be (structures, 3, 3) or (3, 3), and (structures, 3), (3,) or one flag."
            )
        return cls(
            elements,
            places,
            bounds,
            np.array(np.broadcast_to(vectors, (count, 3, 3))),
            as_flags(np.broadcast_to(flags, (count, 3)), (count, 3)),
        )

    @classmethod
    def of(cls, structures: Sequence[Any], faults: Faults) -> "Frames":
        """Copies of the arrays of structures; one that has none to be copied has no atoms here.

        Args:
            structures: see `arrays_of`.
            faults: written: why one has none.
        """
        return cls.side_by_side([arrays_of(atoms, index, faults) for index, atoms in enumerate(structures)])

    @classmethod
    def side_by_side(cls, structures: Sequence[Arrays]) -> "Frames":
        """Copies of arrays.

        Args:
            structures: as `arrays_of` gives them.
        """
        numbers, positions, cells, pbc = zip(*(structures or [_NOTHING]), strict=True)
        count = len(structures)
        offsets = np.zeros(count + 1, np.int64)
        offsets[1:] = list(accumulate(map(len, numbers)))[:count]
        return cls(
            np.concatenate(numbers),
            np.concatenate(positions),
            offsets,
            np.concatenate(cells).reshape(-1, 3, 3)[:count],
            np.concatenate(pbc).reshape(-1, 3)[:count],
        )

    def examine(self, references: AtomicReferences, faults: Faults) -> Float64[np.ndarray, " atoms"]:
        """Find those that no force field can answer for, or this student; drop cell vectors that stand for nothing.

        Args:
            references: of the student.
            faults: those that have one are not looked at; written: why others have no answer.

        Returns:
            The reference energy of each atom, eV; NaN where there is none.
        """
        energies = references.table(self.numbers)
        sound = np.isfinite(energies) & (np.abs(self.positions) < FARTHEST).all(1)
        doubtful = self.counts == 0
        if not sound.all():
            doubtful[np.searchsorted(self.offsets, np.flatnonzero(~sound), side="right") - 1] = True
        if self.cells.any() or self.pbc.any():
            doubtful |= ~_plainly_sound(self.cells, self.pbc)
        for index in doubtful.nonzero()[0].tolist():
            if index in faults:
                continue
            try:
                atoms = check_structure(self.atoms(index))
                references(atoms.numbers)
                self.cells[index] = atoms.cell.array
            except StructureError as error:
                faults[index] = error
        return energies


def arrays_of(atoms: Any, index: int, faults: Faults) -> Arrays:
    """The arrays of a structure as engines compute with them; empty ones of what is none.

    Args:
        atoms: `Atoms`; or an error in place of it, as a reader may give.
        index: of it.
        faults: written: why it has none.
    """
    if (arrays := plain_arrays(atoms)) is not None:
        return arrays
    try:
        if isinstance(atoms, StructureError):
            raise atoms
        if not isinstance(atoms, Atoms):
            raise StructureError(f"This is {type(atoms).__name__}, and not ase.Atoms.")
        sound = check_structure(atoms)
        return sound.numbers, sound.positions, sound.cell.array, sound.pbc
    except StructureError as error:
        faults[index] = error
        return _NOTHING


def named(index: int, fault: Exception, structures: int) -> Exception:
    """The error of a structure, with its index where there are several.

    Args:
        index: of the structure.
        fault: why it has no answer.
        structures: how many there are.
    """
    if structures == 1 and isinstance(fault, StructureError | ShapeError):
        return fault
    error = type(fault)(f"Structure {index}: {fault}")
    error.__cause__ = fault
    return error


def ranges(
    starts: Int64[np.ndarray, " parts"], counts: Int64[np.ndarray, " parts"]
) -> slice | Int64[np.ndarray, " all"]:
    """Places of parts of an array, one after another; a slice where they are one stretch.

    Args:
        starts: first place of each part.
        counts: how many each has.
    """
    if len(starts) == 1:
        return slice(int(starts[0]), int(starts[0] + counts[0]))
    stops = counts.cumsum()
    if len(starts) and (starts[1:] == starts[:-1] + counts[:-1]).all():
        return slice(int(starts[0]), int(starts[0] + stops[-1]))
    return np.repeat(starts - stops + counts, counts) + np.arange(stops[-1] if len(stops) else 0)


def copied(arrays: Arrays) -> Arrays:
    """Arrays that whoever gave them does not write into.

    Args:
        arrays: of one structure.
    """
    numbers, positions, cell, pbc = arrays
    return numbers.copy(), positions.copy(), cell.copy(), pbc.copy()


def _plainly_sound(
    cells: Float64[np.ndarray, "frames 3 3"], pbc: Bool[np.ndarray, "frames 3"]
) -> Bool[np.ndarray, " frames"]:
    """Cells that need no closer look: of molecules, and of crystals in three directions that are far from any limit."""
    with np.errstate(invalid="ignore", over="ignore"):
        finite = (np.abs(cells) < FARTHEST).all((1, 2))
        lengths = np.sqrt(np.einsum("sij,sij->si", cells, cells))
        volumes = np.abs(np.linalg.det(np.where(finite[:, None, None], cells, 0.0)))
        wide = (lengths.min(1) > CLEARLY * ONE_SPOT) & (volumes > CLEARLY * FLAT * lengths.prod(1))
    sound: np.ndarray = finite & (~pbc.any(1) | (pbc.all(1) & wide))
    return sound
