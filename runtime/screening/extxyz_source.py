"""Rows of a file in extended XYZ, one frame at a time.

A compressed file has no places to go to. It is read forward, once by the look through it and once, from chunk to chunk,
by whoever computes them, as Parquet is: workers pass over the chunks of others. Nothing unpacked lies on a disk, and of
a file that is cut short what is whole is computed, as of one that is not compressed; but then it is known that rows are
missing, and one more row says so.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from ase import Atoms

from painn_deploy.export.errors import DatasetError, StructureError
from painn_deploy.export.packed import Unpacked, packing_of
from painn_deploy.runtime.screening.chunks import MOST_ATOMS, Chunk, Ids, Scan, cut_short, divided, sha256_of
from painn_deploy.runtime.screening.extxyz_frame import parsed
from painn_deploy.runtime.screening.remarks import ENDLESS, Remarks

__all__ = ["ExtxyzSource"]

MOST_COMMENT = 4 << 20
"""Bytes of a comment line: ASE's parser takes a second or two for it, and it is more than any note has."""

MOST_LINE = 64 << 10
"""Bytes of the line of an atom, or of one that is no frame's."""

BUFFER = 1 << 18
"""Bytes that are unpacked at a time."""

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
        for offset, lines, _ in self._frames(0):
            if rows % chunk_rows == 0:
                chunks.append(Chunk(len(chunks), rows, chunk_rows, offset))
            if len(lines) > 1 and (found := _id(lines[1])) is not None:
                ids.add(rows, found)
            rows += 1
        divided(rows, chunk_rows, self._path)
        chunks[-1] = Chunk(len(chunks) - 1, chunks[-1].first, rows - chunks[-1].first, chunks[-1].offset)
        ids.check()
        return Scan(rows, digest, tuple(chunks))

    def read(self, chunk: Chunk, remarks: Remarks | None = None) -> list[Atoms | StructureError]:
        """See `Source.read`."""
        remarks = Remarks() if remarks is None else remarks
        frames = self._frames(chunk.offset)
        made: list[Atoms | StructureError] = []
        for place in range(chunk.count):
            _, frame, problem = next(frames, (0, [], ""))
            if not frame:
                raise cut_short(self._path)
            made.append(parsed(frame, problem, chunk.first + place, remarks))
            if not frame[-1].endswith(b"\n") and isinstance(made[-1], Atoms):
                remarks.add(ENDLESS, chunk.first + place, repr(frame[-1].decode("utf-8", "replace").strip()))
        return made

    def _frames(self, offset: int) -> Iterator[tuple[int, list[bytes], str]]:
        """Offset, lines and, where they are no frame, the reason; a line that is a lone number begins a frame."""
        try:
            with self._opened(offset) as lines:
                line, frame, problem = lines.next(), list[bytes](), ""
                while line:
                    if line.strip():
                        begin = lines.begin
                        frame, line, problem = _frame(lines, line)
                        if problem and lines.cut and not line:
                            problem = CUT
                        yield begin, frame, problem
                    else:
                        line = lines.next()
                if lines.cut and not (frame or offset):
                    raise DatasetError(f"{self._path} holds no whole structure: {CUT}.")
                if lines.cut and problem != CUT:
                    yield lines.begin, [b"\n"], CUT
        except OSError as error:
            raise DatasetError(f"Cannot read {self._path}: {error.strerror or error}.") from error

    @contextmanager
    def _opened(self, offset: int) -> Iterator["_Lines"]:
        """The lines from an offset on; of a compressed file the same ones go on, where they have not passed it."""
        if not self._packing:
            with self._path.open("rb") as file:
                file.seek(offset)
                yield _Lines(file, offset)
            return
        if self._ahead is None or not self._ahead.reaches(offset):
            self.close()
            self._ahead = _Lines(BufferedReader(Unpacked(self._path, self._packing), BUFFER), 0)
        self._ahead.go_to(offset)
        yield self._ahead

    def close(self) -> None:
        """Close a compressed file, which else stays open between chunks."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


class _Lines:
    """The lines of a file, none of them longer than told, and where the last one began.

    Of a compressed file that was cut short the last line is left out where it has no end: half of a number is another
    number.
    """

    def __init__(self, file: BufferedReader, offset: int) -> None:
        self._file, self.begin, self._after = file, offset, offset
        self._last, self._again = b"", False

    @property
    def cut(self) -> bool:
        """Whether the file is compressed, and ended before its compressed data did."""
        return isinstance(self._file.raw, Unpacked) and self._file.raw.cut

    def next(self, most: int = MOST_LINE) -> bytes:
        """The next line, or so much of it that it shows to be too long; the rest is passed over."""
        if self._again:
            self._again = False
            return self._last
        line = self._file.readline(most + 1)
        self.begin, self._after = self._after, self._after + len(line)
        rest = line
        while len(rest) > most or (rest is not line and rest):
            if rest.endswith(b"\n"):
                break
            rest = self._file.readline(most + 1)
            self._after += len(rest)
        self._last = b"" if self.cut and not rest.endswith(b"\n") else line
        return self._last

    def reaches(self, offset: int) -> bool:
        """Whether an offset can be gone to by reading on."""
        return offset == self.begin or offset >= self._after

    def go_to(self, offset: int) -> None:
        """Go on at an offset that is reached: at the line that was read last, or somewhere after it."""
        self._again = offset == self.begin and self._after > offset
        while (
            not self._again and self._after < offset and (passed := self._file.read(min(BUFFER, offset - self._after)))
        ):
            self.begin = self._after = self._after + len(passed)

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
