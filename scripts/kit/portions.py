"""Wheels as portions of a given size, each with a script that takes it on another machine; `make gpu-kit` uses it."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from painn_deploy.export.errors import OutputError
from painn_deploy.export.files import prepare_output

__all__ = ["Piece", "Portion", "bytes_of", "check_output", "plan", "room", "write_portions"]

TAKE = Path(__file__).with_name("take.sh")
PARTIAL = ".partial-"
TAKE_NAME, SUMS, WHEELS = "take.sh", "SHA256SUMS", "WHEELS"
UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MOST_PIECES = 1000
SMALLEST = 2**16
"""Bytes below which the end of a portion is left empty."""


@dataclass(frozen=True)
class Piece:
    """A part of a file, or all of it.

    Attributes:
        wheel: the file's name.
        start: first byte.
        size: bytes.
        number: of the piece; None where it is the whole file.
    """

    wheel: str
    start: int
    size: int
    number: int | None = None

    @property
    def name(self) -> str:
        """The file's name in its portion."""
        return self.wheel if self.number is None else f"{self.wheel}.{self.number:03d}"


@dataclass(frozen=True)
class Portion:
    """A folder that was written.

    Attributes:
        path: of the folder.
        size: bytes of all of its files.
        pieces: what it holds of the wheels.
    """

    path: Path
    size: int
    pieces: tuple[Piece, ...]


def bytes_of(text: str) -> int:
    """A size as a person writes it: `56MiB`, `64 MB`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]+)\s*", text)
    units = {unit.lower(): count for unit, count in UNITS.items()}
    if match is None or match[2].lower() not in units or float(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a size such as 56MiB; units: {', '.join(UNITS)}.")
    return int(float(match[1]) * units[match[2].lower()])


def plan(files: Iterable[tuple[str, int]], budget: int) -> list[list[Piece]]:
    """Cut files so that portions are filled in order.

    Args:
        files: name and bytes of each; the first come into the first portion.
        budget: bytes of a portion, a line of `SHA256SUMS` for each piece included.

    Returns:
        The pieces of every portion.

    Raises:
        OutputError: the budget is too small.
    """
    portions, left = [list[Piece]()], budget
    for name, size in files:
        if size + _line(name) <= left:
            portions[-1].append(Piece(name, 0, size))
            left -= size + _line(name)
            continue
        start, number, line = 0, 0, _line(f"{name}.000")
        while start < size:
            taken = min(size - start, left - line)
            if taken < min(SMALLEST, size - start):
                if left == budget:
                    raise OutputError("The portions are too small to hold anything. Give a larger --portion.")
                portions.append([])
                left = budget
                continue
            portions[-1].append(Piece(name, start, taken, number))
            start, number, left = start + taken, number + 1, left - taken - line
        if number > MOST_PIECES:
            raise OutputError(f"{name} would come in {number} pieces. Give a larger --portion.")
    return portions


def room(names: Iterable[str], portion: int) -> int:
    """Bytes that a portion has for pieces and their lines, beside the files that every portion holds.

    Args:
        names: of files that hold wheels, which the portion lists.
        portion: bytes of a portion.
    """
    listing = len(_listing("3.12", [("0" * 64, 0, name) for name in names]))
    return portion - TAKE.stat().st_size - listing - _line(TAKE_NAME) - _line(WHEELS)


def check_output(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier kit.

    Raises:
        OutputError: see above, or it cannot be written.
    """
    prepare_output(folder)
    foreign = [e.name for e in folder.iterdir() if not _is_portion(e) and not e.name.startswith(PARTIAL)]
    if foreign:
        raise OutputError(
            f"{folder} holds what is no kit: {', '.join(sorted(foreign)[:5])}. Choose another folder with --output."
        )


def write_portions(folder: Path, wheels: Sequence[Path], portion: int, python: str) -> list[Portion]:
    """Write wheels into DIR/0, DIR/1 and so on, in place of an earlier kit, all of them or none.

    Args:
        folder: DIR, which `check_output` has found fit.
        wheels: files, the most valuable first.
        portion: bytes that none of the folders exceeds.
        python: version that the wheels are for.

    Raises:
        OutputError: the portions are too small, or the folder cannot be written.
    """
    planned = plan([(w.name, w.stat().st_size) for w in wheels], room([w.name for w in wheels], portion))
    paths = {wheel.name: wheel for wheel in wheels}
    counts = {name: sum(piece.wheel == name for pieces in planned for piece in pieces) for name in paths}
    listing = _listing(python, [(_sha256(path.read_bytes()), counts[name], name) for name, path in paths.items()])
    written = []
    try:
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as partial:
            for number, pieces in enumerate(planned):
                path = Path(partial) / str(number)
                _write_portion(path, {piece.name: _content(paths[piece.wheel], piece) for piece in pieces}, listing)
                size = sum(file.stat().st_size for file in path.iterdir())
                written.append(Portion(folder / str(number), size, tuple(pieces)))
            for old in folder.iterdir():
                if _is_portion(old):
                    shutil.rmtree(old)
            for made in written:
                (Path(partial) / made.path.name).rename(made.path)
    except OSError as error:
        raise OutputError(f"Cannot write {folder}: {error.strerror or error}. Choose another with --output.") from error
    return written


def _write_portion(path: Path, files: dict[str, bytes], listing: str) -> None:
    path.mkdir()
    files |= {WHEELS: listing.encode(), TAKE_NAME: TAKE.read_bytes()}
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / TAKE_NAME).chmod(0o755)
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in sorted(files.items()))
    (path / SUMS).write_text(sums, encoding="utf-8")


def _content(path: Path, piece: Piece) -> bytes:
    with path.open("rb") as file:
        file.seek(piece.start)
        return file.read(piece.size)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _line(name: str) -> int:
    """Bytes of a file's line in SHA256SUMS."""
    return 64 + 2 + len(name.encode()) + 1


def _listing(python: str, wheels: Iterable[tuple[str, int, str]]) -> str:
    """The text of WHEELS, as long whatever the numbers are."""
    return f"python {python}\n" + "".join(f"{sha256} {pieces:4d} {name}\n" for sha256, pieces, name in wheels)


def _is_portion(entry: Path) -> bool:
    """Whether it is a folder of an earlier kit and holds nothing else."""
    sums = entry / SUMS
    if entry.is_symlink() or not entry.name.isdecimal() or not sums.is_file():
        return False
    known = {line[66:] for line in sums.read_text(encoding="utf-8", errors="replace").splitlines()} | {SUMS}
    return all(path.name in known and path.is_file() for path in entry.iterdir())
