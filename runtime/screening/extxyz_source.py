"""Rows of a file in extended XYZ, one frame at a time."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ase import Atoms

from painn_deploy.export.errors import DatasetError, StructureError
from painn_deploy.runtime.screening.chunks import MOST_ATOMS, Chunk, Ids, Scan, cut_short, divided, sha256_of
from painn_deploy.runtime.screening.extxyz_frame import parsed
from painn_deploy.runtime.screening.remarks import Remarks

__all__ = ["ExtxyzSource"]

MOST_COMMENT = 4 << 20
"""Bytes of a comment line: ASE's parser takes a second or two for it, and it is more than any note has."""

MOST_LINE = 64 << 10
"""Bytes of the line of an atom, or of one that is no frame's."""

_COUNT = re.compile(rb"\s*[0-9]+\s*$")
_ITEM = re.compile(
    rb"""(?:[^\s"'{\[\\]|\\.|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{(?:[^}\\]|\\.)*\}|\[(?:[^\]\\]|\\.)*\])+"""
)
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)


class ExtxyzSource:
    """Extended XYZ; a frame that cannot be read does not hide the next one.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

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
        return made

    def _frames(self, offset: int) -> Iterator[tuple[int, list[bytes], str]]:
        """Offset, lines and, where they are no frame, the reason; a line that is a lone number begins a frame."""
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                lines = _Lines(file, offset)
                line = lines.next()
                while line:
                    if line.strip():
                        begin = lines.begin
                        frame, line, problem = _frame(lines, line)
                        yield begin, frame, problem
                    else:
                        line = lines.next()
        except OSError as error:
            raise DatasetError(f"Cannot read {self._path}: {error.strerror or error}.") from error


class _Lines:
    """The lines of a file, none of them longer than told, and where the last one began."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file, self.begin, self._after = file, offset, offset

    def next(self, most: int = MOST_LINE) -> bytes:
        """The next line, or so much of it that it shows to be too long; the rest is passed over."""
        line = self._file.readline(most + 1)
        self.begin, self._after = self._after, self._after + len(line)
        rest = line
        while len(rest) > most or (rest is not line and rest):
            if rest.endswith(b"\n"):
                break
            rest = self._file.readline(most + 1)
            self._after += len(rest)
        return line


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
