"""Shared libraries of CUDA: which of them a file asks for, where pip puts them, and loading them from there.

CUDA's wheels lie in folders where the system's loader does not look, but a library that is loaded already is found by
its name wherever it came from.
"""

import ctypes
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["load", "needed", "pip_folders"]

_LOAD, _DYNAMIC = 1, 2
"""Kinds of program headers (ELF specification, chapter 2)."""

_NEEDED, _STRINGS = 1, 5
"""Tags of the dynamic section."""

LONGEST = 256
"""Bytes of a library's name."""

_HEADER = struct.Struct("<16x2HI3QI6H")
_SEGMENT = struct.Struct("<2I6Q")
_ENTRY = struct.Struct("<2Q")


def pip_folders(kind: str) -> tuple[Path, ...]:
    """Folders of CUDA's wheels, in the path's order: nvidia/cu13/lib, nvidia/cudnn/lib, and their like.

    Args:
        kind: `lib` or `include`.
    """
    found = [folder for entry in sys.path for folder in sorted(Path(entry, "nvidia").glob(f"*/{kind}"))]
    if kind == "lib":
        found += [Path(entry, "tensorrt_libs") for entry in sys.path if Path(entry, "tensorrt_libs").is_dir()]
    return tuple(dict.fromkeys(folder.resolve() for folder in found))


def load(name: str, folders: Iterable[Path]) -> str:
    """Load a library for the whole process: the one that is loaded, that the system finds, or that a folder holds.

    Args:
        name: of the file.
        folders: to look in after the system's own.

    Returns:
        Why it cannot be loaded, in the loader's words; empty where it is loaded.
    """
    error = ""
    for place in (name, *(str(folder / name) for folder in folders if (folder / name).is_file())):
        try:
            ctypes.CDLL(place)
        except OSError as failure:
            error = str(failure)
        else:
            return ""
    return error


def needed(file: Path) -> Sequence[str]:
    """Names of the libraries that a shared library asks the loader for; the file is read and not loaded.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no 64-bit little-endian ELF file, or is damaged.
    """
    try:
        return _needed(file)
    except (struct.error, OverflowError) as error:  # offsets that lead past its end
        raise ValueError(f"{file} is damaged: {error}.") from error


def _needed(file: Path) -> Sequence[str]:
    with file.open("rb") as stream:

        def read(offset: int, size: int) -> bytes:
            stream.seek(offset)
            return stream.read(size)

        header = read(0, _HEADER.size)
        if len(header) < _HEADER.size or header[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{file} is no 64-bit little-endian ELF file.")
        _, _, _, _, first, _, _, _, size, count, *_ = _HEADER.unpack(header)
        segments = [_SEGMENT.unpack(read(first + index * size, _SEGMENT.size)) for index in range(count)]
        entries: list[tuple[int, int]] = []
        for kind, _, offset, _, _, length, *_ in segments:
            if kind == _DYNAMIC:
                if length > file.stat().st_size:
                    raise struct.error("a segment is longer than it")
                entries += _ENTRY.iter_unpack(read(offset, length))
        strings = next((value for tag, value in entries if tag == _STRINGS), 0)
        for kind, _, offset, address, _, length, *_ in segments:
            if kind == _LOAD and address <= strings < address + length:
                start = offset + strings - address
                return [_text(read(start + value, LONGEST)) for tag, value in entries if tag == _NEEDED]
    return []


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode()
