"""Rows of a trajectory that ASE wrote: the file itself is read, and nothing of it is run.

ASE's format (`ase.io.ulm`) holds arrays as bytes and the rest as JSON, with a table of where each frame is. Its own
reader believes what the file says of sizes, and stops at the first thing that it cannot read. Here each frame is read
by itself within the bounds of the file, so that one that is damaged, or beyond the end of a file that was cut short,
costs its own row.
"""

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from ase import Atoms
from ase.constraints import dict2constraint

from painn_deploy.export.errors import DatasetError, StructureError
from painn_deploy.runtime.screening.chunks import (
    MOST_ATOMS,
    Chunk,
    Scan,
    cut_short,
    divided,
    row_error,
    sha256_of,
    structure_of,
    with_sound_constraints,
)
from painn_deploy.runtime.screening.labels import as_label, with_labels
from painn_deploy.runtime.screening.plain import json_object, number_type
from painn_deploy.runtime.screening.remarks import CONSTRAINT, UNREAD, Remarks

__all__ = ["TrajectorySource"]

MAGIC, TAG = (b"- of Ulm", b"AFFormat"), b"ASE-Trajectory"
PICKLED = b"PickleTrajectory"
HEAD = struct.Struct("<8s16sqqq")
"""Magic, tag, version, number of frames, place of their table."""

MOST_TEXT = 64 << 20
"""Bytes of what is no array in a frame."""

MOST_DIMENSIONS = 8

OF_CALCULATOR = ("name", "parameters")
"""What a frame says of the calculator that it was written with, and is no result."""

COLUMNS = {
    "tags": ("tags", int, ()),
    "momenta": ("momenta", float, (3,)),
    "masses": ("masses", float, ()),
    "magmoms": ("initial_magmoms", float, None),
    "charges": ("initial_charges", float, ()),
}
"""Of atoms in a frame, by the file's names: ASE's name, type and shape."""


class TrajectorySource:
    """A trajectory of ASE, from version 3.9 on; the elements of a frame may be those of the first.

    Frames of dynamics share the notes of their start, an `id` among them, which therefore need not be unique.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first: dict[str, Any] | None = None
        with self._opened() as file:
            self._places = _places(file, path)

    def scan(self, chunk_rows: int) -> Scan:
        """See `Source.scan`."""
        chunks = divided(len(self._places), chunk_rows, self._path)
        return Scan(len(self._places), sha256_of(self._path), chunks)

    def read(self, chunk: Chunk, remarks: Remarks | None = None) -> list[Atoms | StructureError]:
        """See `Source.read`."""
        remarks = Remarks() if remarks is None else remarks
        places = self._places[chunk.first : chunk.first + chunk.count]
        if len(places) < chunk.count:
            raise cut_short(self._path)
        with self._opened() as file:
            return [self._row(file, int(place), chunk.first + row, remarks) for row, place in enumerate(places)]

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with self._path.open("rb") as file:
                yield file
        except OSError as error:
            raise DatasetError(f"Cannot read {self._path}: {error.strerror or error}.") from error

    def _row(self, file: BinaryIO, place: int, index: int, remarks: Remarks) -> Atoms | StructureError:
        try:
            frame = _Frame(file, place)
            # what is the same in all frames is written with the first alone
            shared = frame if frame.holds("numbers") else _Frame(file, int(self._places[0]))
            values = {name: frame.get(name) for name in ("positions", "cell")}
            atoms = structure_of(shared.get("numbers"), pbc=shared.get("pbc"), **values)
        except (ValueError, TypeError, OverflowError) as error:
            return row_error(f"This frame is no structure: {error or type(error).__name__}.")
        for name, (ours, kind, shape) in COLUMNS.items():
            try:
                if (value := (shared if name == "masses" else frame).get(name)) is not None:
                    atoms.set_array(ours, np.asarray(value), kind, shape)
            except (ValueError, TypeError, OverflowError) as error:
                remarks.add(UNREAD, index, f"{name!r}: {error or type(error).__name__}")
        _constrain(atoms, shared, index, remarks)
        atoms.info = dict(frame.info)
        with_labels(atoms, frame.labels(index, remarks))
        return atoms


def _places(file: BinaryIO, path: Path) -> np.ndarray:
    """Where the frames of a trajectory begin.

    Raises:
        DatasetError: it is none, or its table of frames is not there.
    """
    head = file.read(HEAD.size)
    if not head:
        raise DatasetError(f"{path} holds no structures: it is empty.")
    if head.startswith(PICKLED):
        raise DatasetError(
            f"{path} is a trajectory of ASE before 3.9, which is a pickle: it can run anything, and is never opened. "
            "Convert it where you trust it: python -m ase.io.trajectory FILE."
        )
    if not head.startswith(MAGIC):
        raise DatasetError(f"{path} is no trajectory of ASE: it does not begin as one.")
    size = _size(file)
    if len(head) < HEAD.size:
        raise DatasetError(f"{path} was cut short: it has {size} bytes, and its first {HEAD.size} are needed.")
    _, tag, _, frames, table = HEAD.unpack(head)
    if tag.rstrip() != TAG:
        raise DatasetError(f"{path} is another file of ASE's ({_shown(tag)}), and no trajectory.")
    if frames < 0 or table < HEAD.size or table + 8 * frames > size:
        raise DatasetError(
            f"{path} was cut short or is damaged: it has {size} bytes, and the table of its {frames} frames is to be "
            f"found at {table}. No frame can be found without; take the file from where it came from."
        )
    file.seek(table)
    return np.frombuffer(file.read(8 * frames), "<i8")


def _size(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    return size


def _shown(text: bytes) -> str:
    return repr(text.decode("ascii", "replace").strip())


class _Frame:
    """The values of one frame, arrays among them read when they are asked for.

    Args:
        file: open.
        place: where it begins.

    Raises:
        ValueError: it is not there, or nothing that can be read.
    """

    def __init__(self, file: BinaryIO, place: int) -> None:
        self._file, self._size = file, _size(file)
        if not HEAD.size <= place <= self._size - 8:
            raise ValueError(
                f"it is to be found at byte {place} of {self._size}: the file was cut short, or is damaged"
            )
        file.seek(place)
        (length,) = struct.unpack("<q", file.read(8))
        if not 0 <= length <= self._size - place - 8:
            raise ValueError(f"the file ends before its {length} bytes: it was cut short, or is damaged")
        if length > MOST_TEXT:
            raise ValueError(f"it has {length} bytes beside its arrays, and {MOST_TEXT} are the most")
        try:
            values = json.loads(file.read(length), object_hook=json_object)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is damaged: {error}") from error
        if not isinstance(values, dict):
            raise ValueError("it is damaged: it holds no values by name")
        self._values: dict[str, Any] = values
        self._order: Literal["<", ">"] = "<" if values.get("_little_endian", True) else ">"

    def holds(self, name: str) -> bool:
        """Whether it has a value of this name."""
        return name in self._values or f"{name}." in self._values

    def get(self, name: str) -> Any:
        """The value of this name; None where there is none.

        Raises:
            ValueError: it is an array that is not there.
        """
        return self._value(self._values, name)

    @property
    def info(self) -> dict[str, Any]:
        """Notes, by name."""
        info = self._values.get("info")
        return info if isinstance(info, dict) else {} if info is None else {"info": info}

    def labels(self, index: int, remarks: Remarks) -> dict[str, Any]:
        """Results of the calculator that the frame was written with.

        Args:
            index: of the row.
            remarks: labels that cannot be read are counted there.
        """
        kept = self._values.get("calculator.")
        made: dict[str, Any] = {}
        if not isinstance(kept, dict):
            return made
        for name in (key.removesuffix(".") for key in kept):
            if name in OF_CALCULATOR:
                continue
            try:
                value = as_label(self._value(kept, name))
            except ValueError as error:
                remarks.add(UNREAD, index, f"{name!r}: {error}")
                continue
            if value is not None:
                made[name] = value
        return made

    def _value(self, values: dict[str, Any], name: str) -> Any:
        match values.get(f"{name}."):
            case {"ndarray": [list(shape), str(kind), int(place)]}:
                return self._array(shape, kind, place)
        return values.get(name)

    def _array(self, shape: list[Any], kind: str, place: int) -> np.ndarray:
        if len(shape) > MOST_DIMENSIONS or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"an array has the shape {str(shape)[:60]}")
        if shape and shape[0] > MOST_ATOMS:
            raise ValueError(f"an array is of {shape[0]} atoms, and {MOST_ATOMS} are the most")
        if (dtype := number_type(kind)) is None:
            raise ValueError(f"an array is of {kind[:20]!r}, and not of numbers")
        length = math.prod(shape) * dtype.itemsize
        if not 0 <= place <= self._size - length:
            raise ValueError(f"the file ends before an array of {length} bytes: it was cut short, or is damaged")
        self._file.seek(place)
        found = np.frombuffer(self._file.read(length), dtype.newbyteorder(self._order))
        return found.astype(dtype).reshape(shape)


def _constrain(atoms: Atoms, frame: _Frame, index: int, remarks: Remarks) -> None:
    text, made = frame.get("constraints"), []
    try:
        given = json.loads(text, object_hook=json_object) if isinstance(text, str) else text or []
    except (ValueError, RecursionError) as error:
        remarks.add(CONSTRAINT, index, str(error))
        return
    for one in given if isinstance(given, list) else [given]:
        try:
            with np.errstate(all="ignore"):  # what is no number is seen below
                made.append(dict2constraint(one))
        except Exception as error:  # each class raises what it met in numbers of anyone's
            remarks.add(CONSTRAINT, index, f"{str(one)[:60]}: {error or type(error).__name__}")
    if made:
        with_sound_constraints(atoms, made, index, remarks)
