"""An output and what belongs to it while it is being made: parts with their hashes, the plan, a lock."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import OutputError
from painn_deploy.export.files import remove_partial, sync, write_whole
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.reading import read_regular
from painn_deploy.runtime.screening.chunks import Chunk
from painn_deploy.runtime.screening.records import PartRecord, clear_way, json_bytes, read_plan, run_of
from painn_deploy.runtime.screening.remarks import Remarks
from painn_deploy.runtime.screening.sinks import SINKS

__all__ = ["FORMAT_VERSION", "Folder", "Part"]

FORMAT_VERSION = 2
"""Of the plan and of the records beside parts; 2 since parts carry hashes."""

OPTIONAL = ("flag_above",)
"""Keys of a plan that one without such a wish has not."""

REMOVERS = 8
"""Files that are removed at a time: a disk that is told of each may take milliseconds for one."""

MOST_LETTERS = 255
"""Of a file's name, in bytes, on every file system that we know of."""


@dataclass(frozen=True)
class Part:
    """A chunk's rows, encoded.

    Attributes:
        number: of the chunk.
        content: bytes of the part.
        failures: index and reason of each row without results.
        remarks: count and example of what was kept otherwise than it came, by kind.
    """

    number: int
    content: bytes
    failures: list[tuple[int, str]]
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)


class Folder:
    """An output and what belongs to it while it is being made: OUT.parts, and OUT.screening.json, which stays.

    Args:
        output: the file that parts become; of a symbolic link, what it leads to.
    """

    def __init__(self, output: Path) -> None:
        output = _followed(output)
        self.output = output
        self.parts = output.with_name(f"{output.name}.parts")
        self._plan = output.with_name(f"{output.name}.screening.json")
        self._temporary = output.with_name(f".{output.stem}.partial{output.suffix}")

    def part(self, number: int) -> Path:
        """Where the part of a chunk is, once it is whole."""
        return self.parts / f"part-{number:08d}"

    def refuse(self, source: Path, resume: bool, overwrite: bool) -> None:
        """Raise OutputError where there can be no output, or going on would cost something that was not given up.

        Args:
            source: the input.
            resume: whether an earlier run is gone on with.
            overwrite: whether what is there may go.
        """
        if "\0" in str(self.output):
            raise OutputError(f"{str(self.output)!r} cannot be written: no name holds a zero. Choose another output.")
        for path in (self.output, self._plan, self._temporary):
            if len(os.fsencode(path.name)) > MOST_LETTERS:
                raise OutputError(f"The name of {self.output} is too long: {path.name} belongs to it. Shorten it.")
        try:
            self._refuse(source, resume, overwrite)
        except (OSError, ValueError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{str(self.output)!r} cannot be written: {error}. Choose another output.") from error

    def _refuse(self, source: Path, resume: bool, overwrite: bool) -> None:
        if self.output.is_symlink():
            raise OutputError(f"{self.output} is a link that leads nowhere. Remove it, or choose another output.")
        there = self.output.exists()
        if there and not self.output.is_file():
            raise OutputError(f"{self.output} is a folder, a pipe or a device. Choose another output.")
        if there and source.exists() and self.output.samefile(source):
            raise OutputError(f"{self.output} is the input, and would be overwritten. Choose another output.")
        if resume or overwrite:
            if resume and there and not self._plan.exists():
                raise OutputError(
                    f"{self.output} is there and was not made by a screening, so it cannot be resumed. Give "
                    "--overwrite to replace it, or another output."
                )
            return
        if there:
            raise OutputError(
                f"{self.output} exists. Give --resume to complete it if a screening was stopped, --overwrite to "
                "replace it, or another output."
            )
        if self.parts.is_dir() and any(self.parts.glob("part-*")):
            raise OutputError(
                f"{self.parts} holds what a screening that was stopped had done. Give --resume to go on, or "
                "--overwrite to start again."
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run away from the same output; the system lets go of the lock whatever ends this process.

        Raises:
            OutputError: another run is at it, or the folder cannot be made.
        """
        with self._told("make"):
            self.parts.mkdir(parents=True, exist_ok=True)
            # neither a link nor a pipe is followed
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = self.parts / "lock"
            try:
                handle = os.open(lock, flags, 0o666)
            except OSError as error:
                raise OutputError(f"{lock} cannot be opened: {error.strerror}. Remove it.") from error
        with os.fdopen(handle, "r+b", buffering=0, closefd=True):
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OutputError(f"{lock} is no regular file. Remove it.")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(f"Another screening is writing {self.output}. Wait for it, or stop it.") from error
            except OSError as error:  # a file system without locks
                warnings.warn(
                    f"{self.parts} cannot be locked ({error.strerror or error}), so that a second screening into "
                    f"{self.output} would not be noticed. Start none.",
                    RuntimeWarning,
                    stacklevel=3,
                )
            try:
                yield
            finally:
                if self.parts.exists() and not any(self.parts.glob("part-????????")):
                    shutil.rmtree(self.parts)  # nothing came of it

    def clear(self) -> None:
        """Forget an earlier run; its output stays until the new one takes its place."""
        with self._told("clear"):
            clear_way(self._plan)
            self._plan.unlink(missing_ok=True)
            for path in self.parts.glob("part-*"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def plan(self) -> dict[str, Any] | None:
        """The record of an earlier run; None where there was none.

        Raises:
            OutputError: there is something else in its place.
        """
        return read_plan(self._plan)

    def check(self, earlier: dict[str, Any], now: dict[str, Any]) -> None:
        """Raise OutputError where the rows of both would not be rows of one run.

        Args:
            earlier: the plan that was recorded.
            now: what this run would record.
        """
        if earlier["format_version"] > FORMAT_VERSION:
            raise OutputError(f"{self.output} was begun by a newer version. Resume it with that, or give --overwrite.")
        # parts of an older version have no hashes, and are computed again
        ours = {**dict.fromkeys(OPTIONAL), **now}
        differing = [key for key, value in ours.items() if key != "format_version" and earlier.get(key) != value]
        if differing:
            changes = "; ".join(f"{key} was {earlier.get(key)} and is {ours[key]}" for key in differing)
            raise OutputError(
                f"{self.output} was begun differently: {changes}. Resume it with what it was begun with, or give "
                "--overwrite to start again."
            )

    def check_finished(self, earlier: dict[str, Any]) -> None:
        """Raise OutputError where the output is not what the earlier run left.

        Args:
            earlier: its plan.
        """
        with self._told("read"):
            digest = self._digest()
        if earlier["output_sha256"] not in ("", digest):
            raise OutputError(
                f"{self.output} was changed since it was finished (its SHA-256 differs). Keep it under another name, "
                "or give --overwrite to compute it again."
            )

    def begin(self, plan: dict[str, Any]) -> None:
        """Record what decides the rows, before the first of them."""
        with self._told("write into"):
            clear_way(self._plan)
            write_whole(self._plan, json_bytes(plan | {"finished": False}), durable=True)
            remove_partial(self.parts)
            for path in self.parts.glob("attempts-*"):
                clear_way(path)
                path.unlink(missing_ok=True)

    def unsound(self, chunks: Sequence[Chunk], plan: dict[str, Any]) -> list[Chunk]:
        """The chunks that have no part of this run, whole and as it was written.

        Args:
            chunks: of the input.
            plan: what decides the rows.
        """
        run = run_of(plan)
        return [chunk for chunk in chunks if self._record(chunk, run) is None]

    def _record(self, chunk: Chunk, run: str) -> PartRecord | None:
        path = self.part(chunk.number)
        record = PartRecord.read(path.with_suffix(".json"))
        if record is None or (record.number, record.rows, record.run) != (chunk.number, chunk.count, run):
            return None
        try:
            content = read_regular(path, record.size)
        except UnreadableError:
            return None
        return record if hashlib.sha256(content).hexdigest() == record.sha256 else None

    def keep(self, part: Part, rows: int, plan: dict[str, Any]) -> None:
        """Write a part; it counts from when its file has its name.

        Args:
            part: of a chunk.
            rows: of the chunk.
            plan: what decides the rows.
        """
        digest = hashlib.sha256(part.content).hexdigest()
        record = PartRecord(part.number, rows, run_of(plan), len(part.content), digest, part.failures, part.remarks)
        path = self.part(part.number)
        with self._told("write into"), ThreadPoolExecutor(1) as beside:  # a disk takes two files as soon as one
            recorded = beside.submit(_write, path.with_suffix(".json"), record.written())
            _write(path, part.content)
            recorded.result()

    def discard(self, chunks: Sequence[Chunk]) -> None:
        """Remove the parts of chunks, whose rows are not to be trusted."""
        with self._told("clear"):
            for chunk in chunks:
                self.part(chunk.number).unlink(missing_ok=True)

    def finish(self, plan: dict[str, Any], chunks: Sequence[Chunk]) -> tuple[list[tuple[int, str]], Remarks]:
        """Parts become the output.

        Args:
            plan: what decided the rows.
            chunks: of the input; each has its part.

        Returns:
            Index and reason of every row without results, and what was kept otherwise than it came.

        Raises:
            OutputError: it cannot be written, or would not hold as many rows as the input.
        """
        failures, remarks, run = list[tuple[int, str]](), Remarks(), run_of(plan)
        for chunk in chunks:
            record = self._record(chunk, run)
            if record is None:
                raise OutputError(f"{self.part(chunk.number)} was changed while it was read. Go on with --resume.")
            failures += record.failures
            remarks.merge(record.remarks)
        sink, rows = SINKS[plan["output_format"]], sum(chunk.count for chunk in chunks)
        with self._told("write"):
            self._temporary.unlink(missing_ok=True)
            try:
                sink.assemble([self.part(chunk.number) for chunk in chunks], self._temporary)
                found = sink.count(self._temporary)
                if found != rows:
                    raise OutputError(
                        f"{rows} rows would become {found} in {self.output}, which was not written. The parts are "
                        f"kept in {self.parts}: please report this, or choose another format of output."
                    )
                sync(self._temporary)
                self._temporary.replace(self.output)
            finally:
                self._temporary.unlink(missing_ok=True)
            sync(self.output.parent)
            done = plan | {"finished": True, "failures": failures, "remarks": remarks.as_dict()}
            done["output_sha256"] = self._digest()
            write_whole(self._plan, json_bytes(done), durable=True)
            with ThreadPoolExecutor(REMOVERS) as removers:
                list(removers.map(Path.unlink, self.parts.glob("part-*")))
            shutil.rmtree(self.parts)
        return failures, remarks

    def _digest(self) -> str:
        """SHA-256 of the output."""
        with self.output.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            done = len([path for path in self.parts.glob("part-*") if not path.suffix])
            raise OutputError(
                f"Cannot {what} {self.output.parent.resolve()}: {error.strerror or error}. {done} finished parts are "
                "safe there; when this is mended, go on with --resume."
            ) from error


def _write(path: Path, content: bytes) -> None:
    clear_way(path)
    write_whole(path, content, durable=True)


def _followed(output: Path) -> Path:
    """What a link leads to: the link stays, and what belongs to the output is beside the file itself."""
    try:
        return output.resolve() if output.is_symlink() else output
    except (OSError, ValueError, RuntimeError):  # a loop of links
        return output
