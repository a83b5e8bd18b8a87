"""Energies and forces of every structure in a file, resumable after a kill at any moment.

Rows are computed in chunks. What a chunk gives depends on its own rows and on recorded settings alone, and it is on
disk in full or not at all, as a part in the folder OUT.parts. A resumed run computes the chunks that have no part, and
so ends with the rows of one that was never stopped; parts become OUT at the end, in one step.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ase import Atoms

from painn_deploy.export.errors import OutputError
from painn_deploy.export.files import remove_partial, sync, write_whole
from painn_deploy.export.progress import Tell, silent
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.screening.relaxation import Relaxation, relax
from painn_deploy.runtime.screening.sinks import SINKS, result_row
from painn_deploy.runtime.screening.sources import Chunk, Scan, format_of, open_source
from painn_deploy.runtime.streaming import stream

__all__ = ["CHUNK_ROWS", "Job", "Part", "Progress", "Screener", "Settings", "Summary", "screen"]

CHUNK_ROWS = 512
"""Rows of a chunk unless told otherwise: a second or two of work, which is what a kill may cost."""

FORMAT_VERSION = 1


@runtime_checkable
class Progress(Protocol):
    """Told how many rows are done, of how many; `computed` are those of this run."""

    def __call__(self, done: int, total: int, computed: int) -> None: ...


@dataclass(frozen=True)
class Settings:
    """Settings that decide the rows, beside the input and the engine.

    Attributes:
        chunk_rows: rows of a chunk.
        batch_slots: atoms x slots of a batch.
        relaxation: how to relax, or None to keep the geometry.
    """

    chunk_rows: int
    batch_slots: int
    relaxation: Relaxation | None = None


@dataclass(frozen=True)
class Part:
    """A chunk's rows, encoded.

    Attributes:
        number: of the chunk.
        content: bytes of the part.
        failures: index and reason of each row without results.
    """

    number: int
    content: bytes
    failures: list[tuple[int, str]]


@dataclass(frozen=True)
class Summary:
    """The outcome of a screening.

    Attributes:
        rows: in the input.
        computed: by this run; the others were there.
        failures: index and reason of each row without results.
    """

    rows: int
    computed: int
    failures: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to compute chunks.

    Attributes:
        bundle: a folder NAME.engine.
        source: the input file.
        kind: format of the output.
        settings: see `Settings`.
        device: as for `PaiNNCalculator`.
    """

    bundle: str
    source: str
    kind: str
    settings: Settings
    device: str = "auto"


class Screener:
    """Computes chunks: what a run has one of, and every worker its own.

    Args:
        job: see `Job`.
        threads: of the CPU.
    """

    def __init__(self, job: Job, threads: int | None = None) -> None:
        self.evaluator = Evaluator(job.bundle, device=job.device, threads=threads)
        self._source, self._sink, self._settings = open_source(job.source), SINKS[job.kind], job.settings

    def compute(self, chunk: Chunk) -> Part:
        """The part of a chunk.

        Raises:
            DatasetError: the input cannot be read any more.
            EngineError: the engine failed for every structure of a batch.
        """
        items, settings = self._source.read(chunk), self._settings
        answers: Iterable[tuple[Atoms | None, Any]]
        if settings.relaxation is None:
            answers = zip(items, stream(self.evaluator, items, settings.batch_slots), strict=True)
        else:
            answers = relax(self.evaluator, items, settings.relaxation, settings.batch_slots)
        rows, failures = [], []
        for place, (item, (moved, outcome)) in enumerate(zip(items, answers, strict=True)):
            kept = moved if isinstance(moved, Atoms) else item if isinstance(item, Atoms) else None
            rows.append(result_row(kept, outcome.results, outcome.reason))
            if outcome.results is None:
                failures.append((chunk.first + place, outcome.reason))
        return Part(chunk.number, self._sink.encoded(rows, chunk.first), failures)


def screen(
    bundle: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    address: str | None = None,
    relaxation: Relaxation | None = None,
    chunk_rows: int | None = None,
    device: str = "auto",
    memory: float | None = None,
    progress: Progress = lambda done, total, computed: None,  # noqa: ARG005
    tell: Tell = silent,
) -> Summary:
    """Compute every structure of a file, and write one row for each, in order.

    A row is the structure with its `info`, and energy, forces and, where there is a cell, stress as ASE results; one
    that has no answer has the reason in `info["screen_error"]` instead.

    Args:
        bundle: a folder NAME.engine.
        source: extended XYZ, ASE database or Parquet.
        output: likewise, by its suffix.
        resume: go on where an earlier run with the same input, engine and settings was stopped.
        overwrite: replace an output, or what is left of an earlier run.
        workers: processes on Ray; None computes here.
        address: of a Ray cluster; None for this machine.
        relaxation: how to relax; None keeps the geometry.
        chunk_rows: rows that are computed and written together.
        device: as for `PaiNNCalculator`.
        memory: GiB that a worker may take for its structures; Linux only.
        progress: told after every chunk.
        tell: told what is being done.

    Raises:
        DatasetError: the input cannot be read, is empty, or gives one id to two rows.
        OutputError: there is an output, or it cannot be written; what is there is kept for `resume`.
        BundleError, EngineError: the engine cannot be opened, or fails for every structure.
    """
    source, folder = Path(source), Folder(Path(output))
    if resume and overwrite:
        raise OutputError("Either resume or overwrite: the one keeps what an earlier run left, the other removes it.")
    kind = format_of(folder.output)
    folder.refuse(source, resume, overwrite)
    with Evaluator(bundle, device=device) as evaluator, folder.locked():
        if overwrite:
            folder.clear()
        tell(f"looking through {source.name}")
        earlier = folder.plan() if resume else None
        rows = _chunk_rows(earlier, chunk_rows)
        scan = open_source(source).scan(rows)
        plan = _plan(evaluator, scan, kind, relaxation) | {"chunk_rows": rows}
        if earlier is not None:
            folder.check(earlier, plan)
            if earlier["finished"] and folder.output.exists():
                return Summary(scan.rows, 0, [tuple(failure) for failure in earlier["failures"]])
            slots = int(earlier["batch_slots"])
        else:
            tell("measuring which batches are fastest here")
            slots = evaluator.batch_slots if evaluator.batch_slots_known else evaluator.tune_batches()
        plan["batch_slots"] = slots
        folder.begin(plan)
        pending = [chunk for chunk in scan.chunks if not folder.part(chunk.number).exists()]
        job = Job(str(Path(bundle).resolve()), str(source.resolve()), kind, Settings(rows, slots, relaxation), device)
        tell(f"{scan.rows} structures")
        _run(folder, scan, pending, _parts(job, pending, folder, workers, address, memory), progress)
        tell(f"writing {folder.output.name}")
        failures = folder.finish(plan, len(scan.chunks))
    return Summary(scan.rows, sum(chunk.count for chunk in pending), failures)


def _parts(
    job: Job, pending: list[Chunk], folder: "Folder", workers: int | None, address: str | None, memory: float | None
) -> Iterator[Part]:
    if workers is None:
        here = Screener(job)
        with here.evaluator:
            for chunk in pending:
                yield here.compute(chunk)
        return
    from painn_deploy.runtime.screening.workers import parts_from_workers

    yield from parts_from_workers(job, pending, folder=folder.parts, workers=workers, address=address, memory=memory)


def _run(folder: "Folder", scan: Scan, pending: list[Chunk], parts: Iterable[Part], progress: Progress) -> None:
    computed = 0
    before = scan.rows - sum(chunk.count for chunk in pending)
    progress(before, scan.rows, 0)
    for part in parts:
        folder.keep(part)
        computed += scan.chunks[part.number].count
        progress(before + computed, scan.rows, computed)


def _chunk_rows(earlier: dict[str, Any] | None, asked: int | None) -> int:
    if earlier is None:
        return asked or CHUNK_ROWS
    if asked not in (None, earlier["chunk_rows"]):
        raise OutputError(
            f"The earlier run wrote chunks of {earlier['chunk_rows']} rows, and {asked} were asked for. Leave the "
            "number out to resume it, or give --overwrite to start again."
        )
    return int(earlier["chunk_rows"])


def _plan(evaluator: Evaluator, scan: Scan, kind: str, relaxation: Relaxation | None) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "input_sha256": scan.sha256,
        "rows": scan.rows,
        "output_format": kind,
        "engine": dict(evaluator.engine_info),
        "relaxation": None if relaxation is None else asdict(relaxation),
    }


class Folder:
    """An output and what belongs to it while it is being made: OUT.parts, and OUT.screening.json, which stays.

    Args:
        output: the file that parts become.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.parts = output.with_name(f"{output.name}.parts")
        self._plan = output.with_name(f"{output.name}.screening.json")

    def part(self, number: int) -> Path:
        """Where the part of a chunk is, once it is whole."""
        return self.parts / f"part-{number:08d}"

    def refuse(self, source: Path, resume: bool, overwrite: bool) -> None:
        """Raise OutputError where going on would cost something that was not given up."""
        if self.output.exists() and source.exists() and self.output.samefile(source):
            raise OutputError(f"{self.output} is the input, and would be overwritten. Choose another output.")
        if resume or overwrite:
            if resume and self.output.exists() and not self._plan.exists():
                raise OutputError(
                    f"{self.output} is there and was not made by a screening, so it cannot be resumed. Give "
                    "--overwrite to replace it, or another output."
                )
            return
        if self.output.exists():
            raise OutputError(
                f"{self.output} exists. Give --resume to complete it if a screening was stopped, --overwrite to "
                "replace it, or another output."
            )
        if any(self.parts.glob("part-*")):
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
            file = (self.parts / "lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputError(f"Another screening is writing {self.output}. Wait for it, or stop it.") from error
            try:
                yield
            finally:
                if self.parts.exists() and not any(self.parts.glob("part-*")):
                    shutil.rmtree(self.parts)  # nothing came of it

    def clear(self) -> None:
        """Forget an earlier run; its output stays until the new one takes its place."""
        with self._told("clear"):
            self._plan.unlink(missing_ok=True)
            for path in self.parts.glob("part-*"):
                path.unlink()

    def plan(self) -> dict[str, Any] | None:
        """The record of an earlier run; None where there was none."""
        try:
            plan: dict[str, Any] = json.loads(self._plan.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OutputError(f"{self._plan} cannot be read: {error}. Give --overwrite to start again.") from error
        return plan

    def check(self, earlier: dict[str, Any], now: dict[str, Any]) -> None:
        """Raise OutputError where the rows of both would not be rows of one run."""
        differing = [key for key, value in now.items() if earlier.get(key) != value]
        if differing:
            changes = "; ".join(f"{key} was {earlier.get(key)} and is {now[key]}" for key in differing)
            raise OutputError(
                f"{self.output} was begun differently: {changes}. Resume it with what it was begun with, or give "
                "--overwrite to start again."
            )

    def begin(self, plan: dict[str, Any]) -> None:
        """Record what decides the rows, before the first of them."""
        with self._told("write into"):
            write_whole(self._plan, _json(plan | {"finished": False}), durable=True)
            remove_partial(self.parts)
            for path in self.parts.glob("attempts-*"):
                path.unlink()

    def keep(self, part: Part) -> None:
        """Write a part; it counts from when its file has its name."""
        with self._told("write into"):
            path = self.part(part.number)
            if part.failures:
                write_whole(path.with_suffix(".failures"), _json(part.failures), durable=True)
            write_whole(path, part.content, durable=True)

    def finish(self, plan: dict[str, Any], count: int) -> list[tuple[int, str]]:
        """Parts become the output; index and reason of every row without results come back."""
        failures: list[tuple[int, str]] = []
        for path in sorted(self.parts.glob("part-*.failures")):
            failures += [(int(index), str(reason)) for index, reason in json.loads(path.read_text(encoding="utf-8"))]
        temporary = self.output.with_name(f".{self.output.stem}.partial{self.output.suffix}")
        with self._told("write"):
            temporary.unlink(missing_ok=True)
            try:
                SINKS[plan["output_format"]].assemble([self.part(number) for number in range(count)], temporary)
                sync(temporary)
                temporary.replace(self.output)
            finally:
                temporary.unlink(missing_ok=True)
            sync(self.output.parent)
            write_whole(self._plan, _json(plan | {"finished": True, "failures": failures}), durable=True)
            shutil.rmtree(self.parts)
        return failures

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


def _json(value: Any) -> bytes:
    return f"{json.dumps(value, indent=1)}\n".encode()
