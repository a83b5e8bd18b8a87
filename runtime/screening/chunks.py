"""A file of structures as chunks of rows, and what every reader of one keeps to."""

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ase import Atoms

from painn_deploy.export.errors import DatasetError, StructureError
from painn_deploy.runtime.screening.remarks import CONSTRAINT, Remarks

__all__ = [
    "MOST_ATOMS",
    "Chunk",
    "Ids",
    "Scan",
    "Source",
    "Stamp",
    "atoms_of",
    "cut_short",
    "divided",
    "row_error",
    "sha256_of",
    "stamp_of",
    "structure_of",
    "together",
    "with_sound_constraints",
]

MOST_ATOMS = 10_000_000
"""Of a row, so that a wrong number takes no memory."""

Stamp = tuple[int, int]
"""Size and time of the last change of a file: cheap to ask for, and different once somebody has written into it."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows, which are computed and written together.

    Attributes:
        number: of the chunk, from 0.
        first: index of its first row.
        count: of rows.
        offset: byte at which the first row begins, where the format has such a thing.
    """

    number: int
    first: int
    count: int
    offset: int = 0


@dataclass(frozen=True)
class Scan:
    """The result of a look through a whole file.

    Attributes:
        rows: how many.
        sha256: of the file.
        chunks: that it divides into.
    """

    rows: int
    sha256: str
    chunks: tuple[Chunk, ...]


def row_error(message: str, atoms: Atoms | None = None) -> StructureError:
    """The error in place of a row that is no structure, with what could be read of it.

    Args:
        message: what is wrong with it.
        atoms: what is kept of it in the output; None for nothing.
    """
    error = StructureError(message)
    error.__dict__["atoms"] = atoms
    return error


def atoms_of(item: Atoms | StructureError) -> Atoms | None:
    """The structure of a row as far as it could be read; see `row_error`."""
    found = item if isinstance(item, Atoms) else getattr(item, "atoms", None)
    return found if isinstance(found, Atoms) else None


def structure_of(numbers: Any, positions: Any, cell: Any, pbc: Any) -> Atoms:
    """Atoms of a row's values.

    Args:
        numbers: atomic numbers.
        positions: Å, triples or flat.
        cell: Å, three vectors or flat; None for none.
        pbc: one truth or three; None for none.

    Raises:
        ValueError, TypeError, OverflowError: they are none.
    """
    if numbers is None or positions is None:
        raise ValueError(f"it has no {'numbers' if numbers is None else 'positions'}")
    given = np.array(numbers)
    elements = np.zeros(0, np.int64) if given.size == 0 else given
    if elements.dtype.kind == "f" and np.array_equal(elements, np.rint(elements)) and abs(elements).max() < 2**53:
        elements = elements.astype(np.int64)
    if elements.ndim != 1 or elements.dtype.kind not in "iu" or (elements.size and elements.max() >= 2**62):
        raise ValueError(f"numbers are {str(numbers)[:60]}, and not a list of whole numbers")
    flags = np.array(False if pbc is None else pbc)
    if flags.shape not in ((), (3,)) or flags.dtype.kind not in "biu" or flags.astype(int).max() > 1:
        raise ValueError(f"pbc is {str(pbc)[:60]}, and not true or false, once or three times")
    vectors = np.zeros((3, 3)) if cell is None else np.array(cell, float)
    if vectors.size != 9:
        raise ValueError(f"cell is {str(cell)[:60]}, and not three vectors")
    return Atoms(
        elements.astype(np.int64),
        np.array(positions, float).reshape(-1, 3),
        cell=vectors.reshape(3, 3),
        pbc=flags.astype(bool),
    )


def together(scan: Scan, chunks: int) -> Scan:
    """The same rows in larger chunks.

    Args:
        scan: of a file, in smaller ones.
        chunks: of these that become one.
    """
    every, made = scan.chunks, list[Chunk]()
    for start in range(0, len(every), chunks):
        first, last = every[start], every[min(start + chunks, len(every)) - 1]
        made.append(Chunk(len(made), first.first, last.first + last.count - first.first, first.offset))
    return Scan(scan.rows, scan.sha256, tuple(made))


@runtime_checkable
class Source(Protocol):
    """A file of structures."""

    def scan(self, chunk_rows: int) -> Scan:
        """Look through the file once.

        Raises:
            DatasetError: it cannot be read, is empty, or gives one id to two rows.
        """

    def read(self, chunk: Chunk, remarks: Remarks | None = None) -> list[Atoms | StructureError]:
        """The rows of a chunk; an error in place of one that is no structure.

        Args:
            chunk: of this file.
            remarks: what is read otherwise than it is written, or cannot be read, is counted there.

        Raises:
            DatasetError: the file cannot be read any more, or is shorter than it was.
        """


def divided(rows: int, chunk_rows: int, path: Path) -> tuple[Chunk, ...]:
    """Chunks of so many rows.

    Args:
        rows: in the file.
        chunk_rows: rows of a chunk.
        path: of the file, for the message.

    Raises:
        DatasetError: there are no rows.
    """
    if rows == 0:
        raise DatasetError(f"{path} holds no structures.")
    starts = range(0, rows, chunk_rows)
    return tuple(Chunk(number, first, min(chunk_rows, rows - first)) for number, first in enumerate(starts))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"Cannot read {path}: {error.strerror or error}.") from error


def stamp_of(path: Path) -> Stamp:
    """Size and time of the last change.

    Raises:
        DatasetError: the file is not there any more.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DatasetError(f"{path} is not there any more: {error.strerror or error}.") from error
    return found.st_size, found.st_mtime_ns


def cut_short(path: Path) -> DatasetError:
    """The error where a file holds fewer rows than it did."""
    return DatasetError(
        f"{path} holds fewer rows than when it was looked through: it was changed while it was screened. Restore it "
        "and go on with --resume, or screen what it holds now with --overwrite."
    )


class Ids:
    """Whether ids are unique, at sixteen bytes a row.

    Args:
        path: of the file, for the message.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._digests, self._rows = path, array("Q"), array("Q")

    def add(self, row: int, name: object) -> None:
        """Note an id.

        Args:
            row: index of the row that has it.
            name: the id; None or NaN is none.
        """
        if name is None:
            return
        text = name if type(name) is str else str(name)
        if len(text) == 3 and text.lower() == "nan":  # what tables have where there is none
            return
        self._digests.append(hash(text) & 2**64 - 1)  # of no use to another process, and asked for by none
        self._rows.append(row)

    def check(self) -> None:
        """Hold ids against one another.

        Raises:
            DatasetError: two rows have the same.
        """
        digests = np.frombuffer(self._digests, np.uint64) if self._digests else np.zeros(0, np.uint64)
        order = np.argsort(digests, kind="stable")
        same = np.flatnonzero(digests[order][1:] == digests[order][:-1])
        if len(same):
            one, other = (self._rows[int(order[same[0] + step])] for step in (0, 1))
            raise DatasetError(
                f"Rows {one} and {other} of {self._path} have the same id ({len(same)} such pairs in all), so results "
                "could not be told apart. Make ids unique, or leave them out."
            )


def with_sound_constraints(atoms: Atoms, given: Any, index: int, remarks: Remarks) -> None:
    """Give atoms those of some constraints that can be obeyed; one may name an atom that is not there.

    Args:
        atoms: changed in place.
        given: constraints.
        index: of the row.
        remarks: constraints that are left out are counted there.
    """
    sound = []
    for constraint in given:
        try:
            forces = np.zeros((len(atoms), 3))
            with np.errstate(all="ignore"):
                constraint.adjust_forces(atoms, forces)
            if not np.isfinite(forces).all():
                raise ValueError("it gives forces that are not finite")
        except Exception as error:  # a class of anyone's, with numbers of anyone's
            remarks.add(CONSTRAINT, index, f"{type(constraint).__name__}: {error or type(error).__name__}")
        else:
            sound.append(constraint)
    atoms.constraints = sound
