"""The kernel on a CPU: compiled for the vector instructions that processors of its kind may have, and loaded.

A bundle holds a library for each width of vectors, and the widest that the machine at hand has is loaded. No library
needs more than the C library of the system.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from painn_deploy.engines.fused.packed import Packed, defined, round_up
from painn_deploy.engines.fused.source import HOST_SOURCE
from painn_deploy.export.errors import EngineError, EngineUnavailableError, ShapeError

__all__ = ["LIBRARY", "Library", "Sizes", "compiled_libraries", "compiler", "kind_of_machine", "load"]

LIBRARY = "molecules-{}.so"
"""Name of a library in a bundle, by its width."""

AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
WIDTHS: Mapping[str, Mapping[int, Sequence[str]]] = {
    "x86_64": {4: (), 8: ("-mavx2", "-mfma"), 16: ("-mavx2", "-mfma", *AVX512)},
}
"""Float32 numbers of a vector, and what lets a compiler use such vectors, by the kind of processor; others have 4."""

FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
"""Sums keep their order: neither of the last two changes a value."""

ROW_TILE = PAIR_TILE = 9
"""Rows that a product computes at once: with four weights they fill most of 16 registers, and half of 32."""

LANES, INDEX = 1, 4
"""Threads that share a slot's gradient, and bytes of what counts rows, pairs and slots."""

CACHE = 2**24
"""Bytes that filters of all pairs may take of the groups that are computed at once: half of what a processor's cores
share. Those of larger groups are computed row by row, which is twice the arithmetic."""


def kind_of_machine() -> str:
    """What a library depends on, such as `cpu:linux-x86_64`."""
    return f"cpu:{sys.platform}-{platform.machine().lower()}"


def _widths(packed: Packed) -> dict[int, Sequence[str]]:
    """Widths that libraries of a student are compiled for: what divides its features."""
    known = WIDTHS.get(platform.machine().lower(), {4: ()})
    sizes = packed.macros["FEATURES"], packed.macros["HIDDEN"]
    return {width: flags for width, flags in known.items() if not any(int(size) % width for size in sizes)}


def _macros(packed: Packed, width: int) -> dict[str, int | float | str]:
    slices = ("MESSAGE_IN", "MESSAGE_OUT", "MIXING", "UPDATE_IN", "UPDATE_OUT", "LAST_OUT", "READ_OUT")
    whole = {f"SLICES_{name}{back}": 1 for name in slices for back in ("", "_BACK")}
    sizes = {"ROW_TILE": ROW_TILE, "PAIR_TILE": PAIR_TILE, "WIDE": width, "LANES": LANES, "SPILLED": 0}
    return {**packed.macros, **whole, **sizes, "INDEX": "int", "PRODUCT_UNROLL": ""}


def compiler() -> str:
    """The C++ compiler's name: what CXX says, or else one that is here.

    Raises:
        EngineUnavailableError: there is none.
    """
    found = next((name for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and shutil.which(name)), None)
    if found is None:
        raise EngineUnavailableError("The engine fused needs a C++ compiler: install g++, or set CXX to yours.")
    return found


def compiled_libraries(packed: Packed) -> dict[str, bytes]:
    """Libraries of a student, by their names in a bundle.

    Args:
        packed: its weights, which no library holds: they have the same code for all students of the same sizes.

    Raises:
        EngineUnavailableError: there is no C++ compiler.
        EngineError: it does not compile; with what the compiler said.
    """
    found = compiler()
    with TemporaryDirectory(prefix="painn-deploy-") as folder:
        running = {}
        for width, flags in _widths(packed).items():
            source, made = Path(folder, f"{width}.cpp"), Path(folder, LIBRARY.format(width))
            source.write_text(defined(_macros(packed, width)) + HOST_SOURCE)
            command = [found, *FLAGS, "-Wno-psabi", *flags, str(source), "-o", str(made)]
            running[made] = Popen(command, stdout=PIPE, stderr=STDOUT, text=True)  # noqa: S603 - of the user's choice
        said = {made: process.communicate()[0] for made, process in running.items()}
        for made, process in running.items():
            if process.returncode:
                words = " ".join(said[made].split())
                raise EngineError(f"{found} cannot compile the engine fused ({made.name}): {words}")
        return {made.name: made.read_bytes() for made in running}


class Library:
    """A library that was loaded.

    Args:
        content: of it.
        width: numbers of the vectors that it was compiled for.

    Attributes:
        width: the same.
        widest: numbers of the widest vectors that this machine has.
        near: float32 numbers that each thread needs to compute filters row by row.
        team_bytes: memory of a `Team`.
        begin_team, serve, end_team, run: of it, see `painn_deploy.engines.fused.team_source`.
    """

    def __init__(self, content: bytes, width: int) -> None:
        loaded = _loaded(content)
        self.width = width
        self.widest, self.near, self.team_bytes = (
            int(number()) for number in (loaded.widest, loaded.near_numbers, loaded.team_bytes)
        )
        self.begin_team, self.serve, self.end_team, self.run = (
            loaded.begin_team, loaded.serve, loaded.end_team, loaded.run,
        )  # fmt: skip
        for function, others in (
            (self.begin_team, ()), (self.serve, (ctypes.c_int,)), (self.end_team, ()), (self.run, (ctypes.c_void_p,)),
        ):  # fmt: skip
            function.argtypes, function.restype = [ctypes.c_void_p, *others], None


def _loaded(content: bytes) -> Any:
    """A library of the process; where the system has files in memory, no folder has to let it be executed.

    Raises:
        EngineError: the system refuses it.
    """
    try:
        with TemporaryDirectory(prefix="painn-deploy-") as folder, ExitStack() as stack:
            path = Path(folder, LIBRARY.format(""))  # a loader knows libraries by their paths, and this one is new
            try:
                descriptor = os.memfd_create("painn-deploy")
            except (AttributeError, OSError):  # another system, or one that forbids it
                path.write_bytes(content)
            else:
                stack.callback(os.close, descriptor)
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(content)
                path.symlink_to(f"/proc/self/fd/{descriptor}")
            return ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"The engine fused cannot load its library: {error}. Export it again here.") from error


_loaded_once: dict[bytes, Library] = {}
"""Libraries of this process by the SHA-256 of their content."""


def load(contents: Mapping[int, bytes]) -> Library:
    """The library for this machine's vectors, which a process loads once, however many sessions use it.

    Args:
        contents: of libraries by their width.

    Raises:
        EngineError: the system refuses it.
    """
    least = min(contents)
    widest = max(least, _once(contents[least], least).widest)
    width = max(width for width in contents if width <= widest)
    return _once(contents[width], width)


def _once(content: bytes, width: int) -> Library:
    key = hashlib.sha256(content).digest()
    if key not in _loaded_once:
        _loaded_once[key] = Library(content, width)
    return _loaded_once[key]


class Sizes(NamedTuple):
    """What a group may have at most, and the memory that it then takes.

    Attributes:
        rows: of it, in whole tiles.
        pairs: likewise.
        forward: features whose filters are computed for all pairs at once, for the energy: all, or none, where they are
            computed row by row.
        adjoint: the same for its gradient.
        work: numbers for products and filters.
    """

    rows: int
    pairs: int
    forward: int
    adjoint: int
    work: int

    @classmethod
    def of(cls, packed: Packed, rows: int, pairs: int, near: int, at_once: int = 1) -> "Sizes":
        """Sizes for groups of a student.

        Args:
            packed: its weights.
            rows: of the largest group.
            pairs: of the group that has the most.
            near: float32 numbers that its threads need to compute filters row by row.
            at_once: how many groups are computed at the same time.

        Raises:
            ShapeError: offsets into so much memory have more than 32 bits.
        """
        features, hidden = int(packed.macros["FEATURES"]), int(packed.macros["HIDDEN"])
        rows, pairs = round_up(rows, ROW_TILE), round_up(max(1, pairs), PAIR_TILE)
        filters = 6 * features * pairs  # and their slopes
        chunk = features if 4 * filters * at_once <= CACHE else 0
        work = max(max(3 * features, hidden) * rows, 6 * pairs, filters if chunk else near)
        if max(work, packed.saved(rows), packed.of_pairs(pairs, LANES, INDEX)) >= 2**31:
            raise ShapeError(
                f"{rows} atoms with {pairs} pairs are more than the engine fused counts with 32 bits. Take smaller "
                "pieces."
            )
        return cls(rows, pairs, chunk, chunk, work)

    def memory(self, packed: Packed) -> tuple[int, int]:
        """Float32 numbers of the memory that is gone through again and again, and of what waits for the adjoint.

        Args:
            packed: the student's weights.
        """
        near = packed.planes(self.rows) + self.work + packed.of_pairs(self.pairs, LANES, INDEX) + 2 * (self.rows + 1)
        return near, packed.saved(self.rows)
