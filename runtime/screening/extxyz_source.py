"""Rows of a file in extended XYZ, one frame at a time.

A compressed file has no places to go to. It is read forward, once by the look through it and once, from chunk to chunk,
by whoever computes them, as Parquet is: workers pass over the chunks of others. Nothing unpacked lies on a disk, and of
a file that is cut short what is whole is computed, as of one that is not compressed; but then it is known that rows are
missing, and one more row says so.
"""

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

from ase import Atoms

from painn_deploy.export.errors import DatasetError, StructureError
from painn_deploy.export.packed import Unpacked, packing_of
from painn_deploy.runtime.screening.chunks import MOST_ATOMS, Chunk, Ids, Scan, cut_short, divided, sha256_of
from painn_deploy.runtime.screening.extxyz_frame import parsed
from painn_deploy.runtime.screening.remarks import ENDLESS, Remarks

__all__ = ["ExtxyzSource", "Frame"]

MOST_COMMENT = 4 << 20
"""Bytes of a comment line: ASE's parser takes a second or two for it, and it is more than any note has."""

MOST_LINE = 64 << 10
"""Bytes of the line of an atom, or of one that is no frame's."""

BUFFER = 1 << 18
"""Bytes that are read, or unpacked, at a time."""

MOST_GLANCE = 100_000
"""Atoms of a frame whose lines are had in memory before they are looked at."""

MOST_HEAD = 20
"""Bytes of the line that says how many atoms there are, where it is no longer than it needs to be."""

LETTER = ord("A")
"""No digit and no blank is as large."""

CUT = "the compressed file was cut short here, and whatever followed is missing; fetch or make it again"

_COUNT = re.compile(rb"\s*[0-9]+\s*$")
_ITEM = re.compile(
    rb"""(?:[^\s"'{\[\\]|\\.|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{(?:[^}\\]|\\.)*\}|\[(?:[^\]\\]|\\.)*\])+"""
)
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)


class ExtxyzSource:
    """Extended XYZ; a frame that cannot be read does not hide the next one.

    Args:
        path: of the file; compressed where its suffix is one of `PACKINGS`.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._packing = path, packing_of(path)
        self._ahead: _Lines | None = None

    def scan(self, chunk_rows: int) -> Scan:
        """See `Source.scan`."""
        digest = sha256_of(self._path)
        ids, chunks, rows = Ids(self._path), list[Chunk](), 0
        for offset, frame in self._frames(0):
            if rows % chunk_rows == 0:
                chunks.append(Chunk(len(chunks), rows, chunk_rows, offset))
            if len(frame.lines) > 1 and (found := _id(frame.lines[1])) is not None:
                ids.add(rows, found)
            rows += 1
        divided(rows, chunk_rows, self._path)
        chunks[-1] = Chunk(len(chunks) - 1, chunks[-1].first, rows - chunks[-1].first, chunks[-1].offset)
        ids.check()
        return Scan(rows, digest, tuple(chunks))

    def read(self, chunk: Chunk, remarks: Remarks | None = None) -> list[Atoms | StructureError]:
        """See `Source.read`."""
        remarks = Remarks() if remarks is None else remarks
        return [frame.parsed(chunk.first + place, remarks) for place, frame in enumerate(self.frames(chunk))]

    def frames(self, chunk: Chunk) -> Iterator["Frame"]:
        """The frames of a chunk as they stand there.

        Raises:
            DatasetError: as `read` does.
        """
        frames = self._frames(chunk.offset)
        for _ in range(chunk.count):
            _, frame = next(frames, (0, None))
            if frame is None:
                raise cut_short(self._path)
            yield frame

    def _frames(self, offset: int) -> Iterator[tuple[int, "Frame"]]:
        """Offset and frame; a line that is a lone number begins a frame."""
        try:
            lines, frame, problem = self._at(offset), list[bytes](), ""
            while True:
                begin = lines.after
                if (whole := lines.whole()) is not None:
                    frame, problem = whole, ""
                    yield begin, Frame(whole, "", ended=False)
                    continue
                if not (line := lines.next()):
                    break
                if not line.strip():
                    continue
                begin = lines.begin
                frame, line, problem = _frame(lines, line)
                if line:
                    lines.back()
                elif problem and lines.cut:
                    problem = CUT
                yield begin, Frame(frame, problem)
            if lines.cut and not (frame or offset):
                raise DatasetError(f"{self._path} holds no whole structure: {CUT}.")
            if lines.cut and problem != CUT:
                yield lines.begin, Frame([b"\n"], CUT)
        except OSError as error:
            raise DatasetError(f"Cannot read {self._path}: {error.strerror or error}.") from error

    def _at(self, offset: int) -> "_Lines":
        """The lines from an offset on: the same ones go on, where they can."""
        if self._ahead is None or not self._ahead.reaches(offset, passing=bool(self._packing)):
            self.close()
            if self._packing:
                self._ahead = _Lines(BufferedReader(Unpacked(self._path, self._packing), BUFFER), 0)
            else:
                self._ahead = _Lines(BufferedReader(_Plain(self._path, offset), BUFFER), offset)
        self._ahead.go_to(offset)
        return self._ahead

    def close(self) -> None:
        """Close the file, which else stays open between chunks."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


@dataclass(slots=True)
class Frame:
    """One frame as it stands in a file.

    Attributes:
        lines: of the frame.
        problem: why they are no frame, if they are none.
        ended: whether lines have their ends; those of a frame that was found whole, among others, have none.
    """

    lines: list[bytes]
    problem: str = ""
    ended: bool = True

    def parsed(self, index: int, remarks: Remarks) -> Atoms | StructureError:
        """The structure, or why it is none.

        Args:
            index: of the row.
            remarks: as for `Source.read`.
        """
        lines = self.lines if self.ended else [line + b"\n" for line in self.lines]
        made = parsed(lines, self.problem, index, remarks)
        if not lines[-1].endswith(b"\n") and isinstance(made, Atoms):
            remarks.add(ENDLESS, index, repr(lines[-1].decode("utf-8", "replace").strip()))
        return made


class _Plain(RawIOBase):
    """A file from an offset on, which is closed without a word when nobody needs it any more, as `Unpacked` is."""

    def __init__(self, path: Path, offset: int) -> None:
        self._handle: int | None = None
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.lseek(self._handle, offset, os.SEEK_SET)

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or part of it; 0 at the end."""
        made = os.read(self._handle, len(buffer)) if self._handle is not None else b""
        buffer[: len(made)] = made
        return len(made)

    def close(self) -> None:
        """Close the file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
        super().close()


class _Lines:
    """The lines of a file, none of them longer than told, and where the last one began and ended.

    Of a compressed file that was cut short the last line is left out where it has no end: half of a number is another
    number.
    """

    def __init__(self, file: BufferedReader, offset: int) -> None:
        self._file, self.begin, self.after = file, offset, offset
        self._lines, self._next = list[bytes](), 0  # without their ends; the next to be given
        self._numbers = list[int]()  # which of them are lone numbers
        self._tail, self._over, self._overs = b"", 0, dict[int, int]()  # the line that goes on, and bytes left out
        self._endless = False

    @property
    def cut(self) -> bool:
        """Whether the file is compressed, and ended before its compressed data did."""
        return isinstance(self._file.raw, Unpacked) and self._file.raw.cut

    def next(self, most: int = MOST_LINE) -> bytes:
        """The next line, or so much of it that it shows to be too long; the rest is passed over."""
        while self._next == len(self._lines):
            if not self._more():
                self.begin = self.after
                return b""
        line, ended = self._lines[self._next], not self._endless or self._next + 1 < len(self._lines)
        self.begin, self.after = self.after, self.after + len(line) + ended + self._overs.get(self._next, 0)
        self._next += 1
        return (line + b"\n" * ended)[: most + 1] if ended or not self.cut else b""

    def back(self) -> None:
        """Give the line again that was given last, where there was one."""
        if self.after > self.begin:
            self._next, self.after = self._next - 1, self.begin

    def whole(self) -> list[bytes] | None:
        """The lines of the next frame, without their ends, where it is one at a glance.

        None where each line is to be looked at; then none was given.
        """
        while self._next == len(self._lines):
            if not self._more():
                return None
        place = bisect_left(self._numbers, self._next)
        if place == len(self._numbers) or self._numbers[place] != self._next:
            return None
        head = self._lines[self._next]
        if len(head) > MOST_HEAD or (atoms := int(head)) > MOST_GLANCE:
            return None
        while (end := self._next + 2 + atoms) >= len(self._lines) and self._more():
            pass
        if end > len(self._lines) - self._endless or self._overs:
            return None
        after = bisect_right(self._numbers, self._next + 1)  # the comment may be a number
        if after < len(self._numbers) and self._numbers[after] < end:
            return None
        if end < len(self._lines) and self._lines[end].startswith(b"VEC"):
            return None
        found = self._lines[self._next : end]
        size = sum(map(len, found)) + len(found)
        if size > MOST_LINE and (len(found[1]) >= MOST_COMMENT or max(map(len, found[2:]), default=0) >= MOST_LINE):
            return None
        self._next, self.after = end, self.after + size
        self.begin = self.after
        return found

    def _more(self) -> bool:
        """Have more lines; whether there are any."""
        data = self._file.read(BUFFER)
        if not data and not self._tail:
            return False
        passed = self._next
        del self._lines[:passed]
        self._numbers = [place - passed for place in self._numbers if place >= passed]
        self._overs = {place - passed: size for place, size in self._overs.items() if place >= passed}
        self._next, known = 0, len(self._lines)
        first, *others = data.split(b"\n")
        if len(self._tail) > MOST_COMMENT:  # too long for anything: what follows of it is counted alone
            self._over += len(first)
        else:
            self._tail += first
        if others or not data:
            self._endless = not others
            if self._over:
                self._overs[known] = self._over
            *whole, tail = [self._tail, *others] if others else [self._tail, b""]
            self._lines += whole
            self._numbers += [
                place
                for place, line in enumerate(whole, known)
                if line and line[0] < LETTER and _COUNT.match(line, 0, MOST_LINE)
            ]
            self._tail, self._over = tail, 0
        return True

    def reaches(self, offset: int, passing: bool) -> bool:
        """Whether an offset can be gone to by reading on.

        Args:
            offset: byte of the file.
            passing: whether lines may be passed over for it.
        """
        return offset in (self.begin, self.after) or (passing and offset >= self.after)

    def go_to(self, offset: int) -> None:
        """Go on at an offset that is reached: at the line that was given last, or somewhere after it."""
        if offset == self.begin:
            self.back()
        while self.after < offset and self.next():
            pass

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _frame(lines: _Lines, line: bytes) -> tuple[list[bytes], bytes, str]:
    """The lines of one frame, the line after it, and what is wrong with it if anything is."""
    frame = [line]
    if not _COUNT.match(line):
        while (line := lines.next()) and not _COUNT.match(line):
            pass
        return frame, line, f"a number of atoms is expected, not {_shown(frame[0])}"
    problem = ""
    atoms = int(line) if len(line.strip()) < 20 else MOST_ATOMS + 1
    if atoms > MOST_ATOMS:
        problem = f"{_shown(line)} atoms are announced, and {MOST_ATOMS} are the most"
    frame.append(lines.next(MOST_COMMENT))
    if len(frame[1]) > MOST_COMMENT:
        frame[1], problem = b"", problem or f"its comment is longer than {MOST_COMMENT >> 20} MiB; keep notes elsewhere"
    for found in range(atoms):
        line = lines.next()
        if not line or _COUNT.match(line):
            return frame, line, problem or f"{atoms} atoms are announced, and {found} lines follow"
        if len(line) > MOST_LINE:
            problem = problem or f"the line of atom {found} is longer than {MOST_LINE >> 10} KiB"
        if not problem:
            frame.append(line)
    line = lines.next()
    while line.startswith(b"VEC"):
        frame.append(line)
        line = lines.next()
    return frame, line, problem


def _shown(line: bytes) -> str:
    return repr(line.decode("utf-8", "replace").strip()[:60])


def _id(comment: bytes) -> str | None:
    """The value of `id` in a comment; quoted texts that hold such a word are none."""
    if b"id=" not in comment:
        return None
    for found in _ITEM.finditer(comment, 0, MOST_LINE):
        if found[0].startswith(b"id="):
            value = found[0][3:]
            quoted = _QUOTED.fullmatch(value)
            return (quoted[1] if quoted else value).decode("utf-8", "replace")
    return None
