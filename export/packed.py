"""Compressed files, read forward in bounded memory: gzip, bzip2 and xz, of one member or of several.

Python's own readers would not do. Where a file was cut short they raise before they have given all that was whole, and
those of bzip2 and xz pass over whatever follows the first member and is not one, damaged members among it: rows would
be gone without a word.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import DatasetError

__all__ = ["PACKINGS", "Unpacked", "packed", "packing_of"]

BLOCK = 1 << 16
"""Bytes of the file that are read at a time."""

MOST_MEMORY = 1 << 29
"""Bytes that an xz file may ask for; the strongest setting of the command takes an eighth of that."""

GZIP_LEVEL = 6
"""As the command's own; the strongest takes several times as long for a percent."""

FREE, MOST_TIMES = 1 << 30, 250
"""Bytes that any file may hold, and how many times its own size beyond: structures become a third to a twentieth, and
what is a thousandth was made to fill a disk or a day."""

PACKINGS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_MEMORY),
}
"""Makers of decompressors, by a file's suffix."""


def packing_of(path: Path) -> str:
    """The suffix that says how a file is compressed; empty where none does."""
    return path.suffix.lower() if path.suffix.lower() in PACKINGS else ""


def packed(content: bytes, packing: str) -> bytes:
    """One member of a compressed file, which holds no time of its making.

    Args:
        content: to be compressed.
        packing: how, a key of `PACKINGS`.
    """
    match packing:
        case ".gz":
            return gzip.compress(content, GZIP_LEVEL, mtime=0)
        case ".bz2":
            return bz2.compress(content)
    return lzma.compress(content)


class Unpacked(io.RawIOBase):
    """What a compressed file holds, from its beginning.

    Args:
        path: of the file.
        packing: how it is compressed, a key of `PACKINGS`.

    Attributes:
        cut: whether the file ended before its compressed data did; known once all has been read.

    Raises:
        OSError: it cannot be opened.
        DatasetError: when it is read and is damaged, not compressed so, or holds far more than any structures would.
    """

    def __init__(self, path: Path, packing: str) -> None:
        self._file: Any = None
        self._path, self._new = path, PACKINGS[packing]
        self._file = path.open("rb")
        self._stream: Any = None
        self._left, self._members, self._given = b"", 0, 0
        self.cut = False

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or part of it; 0 at the end."""
        made = self._some(len(buffer))
        buffer[: len(made)] = made
        return len(made)

    def _some(self, most: int) -> bytes:
        while self._stream is not None or self._begun():
            made: bytes = self._told(most)
            # zlib leaves the input that it has not used, the others keep it
            self._left = getattr(self._stream, "unconsumed_tail", b"")
            if self._stream.eof:
                self._left, self._stream = self._stream.unused_data, None
                self._members += 1
            if made:
                self._count(len(made))
                return made
            if self._stream is not None and not self._read():
                self.cut = True
                return b""
        return b""

    def _begun(self) -> bool:
        """Begin the next member; whether there is one. Zeros between members are padding."""
        self._left = self._left.lstrip(b"\0") if self._members else self._left
        while not self._left:
            if not self._read():
                return False
            self._left = self._left.lstrip(b"\0") if self._members else self._left
        self._stream = self._new()
        return True

    def _read(self) -> bool:
        more = self._file.read(BLOCK)
        self._left += more
        return bool(more)

    def _told(self, most: int) -> bytes:
        try:
            return bytes(self._stream.decompress(self._left, most))
        except (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
            problem = (
                "it is damaged, or something else than compressed data follows"
                if self._members
                else "it is damaged, or not compressed as its name says"
            )
            raise DatasetError(
                f"{self._path} cannot be unpacked: {problem} ({error}). Nothing of it is used; fetch or make it again."
            ) from error

    def _count(self, more: int) -> None:
        self._given += more
        if self._given > FREE and self._given > MOST_TIMES * self._file.tell():
            raise DatasetError(
                f"{self._path} holds more than {MOST_TIMES} times its own size, {self._given >> 20} MiB so far, as no "
                "structures do. Unpack it yourself if it is what it should be."
            )
