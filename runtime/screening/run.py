"""Energies and forces of every structure in a file, resumable after a kill at any moment.

Rows are computed in chunks. What a chunk gives depends on its own rows and on recorded settings alone, and it is on
disk in full or not at all, as a part in the folder OUT.parts. A resumed run computes the chunks that have no part, and
so ends with the rows of one that was never stopped; parts become OUT at the end, in one step.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from painn_deploy.export.errors import DatasetError, OutputError
from painn_deploy.export.progress import Tell, prefixed, silent
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.screening.bulk.screener import Job, Screener, Settings
from painn_deploy.runtime.screening.chunks import Stamp, sha256_of, stamp_of, together
from painn_deploy.runtime.screening.folder import FORMAT_VERSION, Folder, Part
from painn_deploy.runtime.screening.relaxation import Relaxation
from painn_deploy.runtime.screening.sources import Chunk, Scan, open_source, output_format_of
from painn_deploy.runtime.uncertainty.watch import Limit, checked_limit

__all__ = ["CHUNK_ROWS", "Folder", "Job", "Part", "Progress", "Screener", "Settings", "Summary", "screen"]

CHUNK_ROWS = 512
"""Rows of a chunk at least, unless told otherwise: a second or two of work, which is what a kill may cost."""

CHUNKS, LARGEST, MOST_BYTES = 64, 8, 8 << 20
"""So many times as large are the chunks of a large file at most, by the time that each takes beside its rows: where
there are still so many chunks, among which workers divide it, and where they hold no more than so many bytes of it."""

LONG = 0.1
"""Seconds that a chunk takes, from which its part is on the disk before the next is begun; that costs less then."""


@runtime_checkable
class Progress(Protocol):
    """Told how many rows are done, of how many; `computed` are those of this run."""

    def __call__(self, done: int, total: int, computed: int) -> None: ...


@dataclass(frozen=True)
class Summary:
    """The outcome of a screening.

    Attributes:
        rows: in the input.
        computed: by this run; the others were there.
        failures: index and reason of each row without results.
        remarks: what was kept or read otherwise than it came, and crystals that came without periodic directions: how
            often, and an example, by kind.
    """

    rows: int
    computed: int
    failures: list[tuple[int, str]] = field(default_factory=list)
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)


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
    flag_above: Limit | None = None,
    chunk_rows: int | None = None,
    threads: int | None = None,
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
        source: extended XYZ (compressed, too), ASE database or trajectory, or Parquet, by its suffix.
        output: likewise, but for trajectories.
        resume: go on where an earlier run with the same input, engine and settings was stopped.
        overwrite: replace an output, or what is left of an earlier run.
        workers: processes on Ray; None computes here.
        address: of a Ray cluster; None for this machine.
        relaxation: how to relax; None keeps the geometry.
        flag_above: how many times as uncertain as the frames of its calibration a structure may be, or `threshold`,
            before its row has a true `uncertainty_flag` and is counted; None flags none.
        chunk_rows: rows that are computed and written together.
        threads: of the CPU, as for `PaiNNCalculator`; a worker has one.
        device: as for `PaiNNCalculator`.
        memory: GiB that a worker may take for its structures; Linux only.
        progress: told after every chunk.
        tell: told what is being done.

    Raises:
        DatasetError: the input cannot be read, is empty, or gives one id to two rows.
        OutputError: there is an output, or it cannot be written; what is there is kept for `resume`.
        BundleError, EngineError: the engine cannot be opened, fails for every structure, or does not say how sure it
            is, and there is something to flag.
        ValueError: `flag_above` is no limit.
    """
    source, kind, folder = Path(source), output_format_of(Path(output)), Folder(Path(output))
    if chunk_rows is not None and chunk_rows < 1:
        raise OutputError(f"Chunks of {chunk_rows} rows cannot be written; give 1 or more.")
    if resume and overwrite:
        raise OutputError("Either resume or overwrite: the one keeps what an earlier run left, the other removes it.")
    folder.refuse(source, resume, overwrite)
    with Evaluator(bundle, device=device, threads=threads) as evaluator, folder.locked():
        limit = None
        if flag_above is not None:
            limit = checked_limit(flag_above, "flag_above", evaluator.uncertainty, bundle)
        if overwrite:
            folder.clear()
        tell(f"looking through {source.name}")
        earlier = folder.plan() if resume else None
        rows, opened = _chunk_rows(earlier, chunk_rows), open_source(source)
        stamp, scan = stamp_of(source), opened.scan(rows or CHUNK_ROWS)
        if rows is None:
            times = _times(scan, stamp)
            rows, scan = times * CHUNK_ROWS, together(scan, times)
        plan = _plan(evaluator, scan, kind, relaxation, limit) | {"chunk_rows": rows}
        if earlier is not None:
            folder.check(earlier, plan)
            if earlier["finished"] and folder.output.exists():
                folder.check_finished(earlier)
                return Summary(scan.rows, 0, earlier["failures"], earlier["remarks"])
            slots = int(earlier["batch_slots"])
        else:
            told = prefixed(tell, "measuring which batches are fastest here: ")
            slots = evaluator.batch_slots if evaluator.batch_slots_known else evaluator.tune_batches(told)
        plan["batch_slots"] = slots
        folder.begin(plan)
        settings = Settings(rows, slots, relaxation, limit)
        job = Job(str(Path(bundle).resolve()), str(source.resolve()), kind, settings, device)
        pending = folder.unsound(scan.chunks, plan)
        tell(f"{scan.rows} structures")
        # twice: a part that is not as it was written when all are there is computed again
        left = pending
        held = _Held(source, stamp, scan.sha256)
        for _ in range(2):
            if not left:
                break
            made = _parts(job, left, folder, workers, threads, address, memory)
            _run(folder, scan, left, made, progress, plan, held)
            left = folder.unsound(scan.chunks, plan)
            pending = pending + [chunk for chunk in left if chunk not in pending]
        if left:
            raise OutputError(f"{folder.part(left[0].number)} does not stay as it is written; is the disk sound?")
        if sha256_of(source) != scan.sha256:
            folder.discard(pending)
            raise _changed(source)
        tell(f"writing {folder.output.name}")
        failures, remarks = folder.finish(plan, scan.chunks)
    return Summary(scan.rows, sum(chunk.count for chunk in pending), failures, remarks.as_dict())


@dataclass
class _Held:
    """The input as it was looked through: no part is kept of one that was written into since."""

    source: Path
    stamp: Stamp
    sha256: str

    def check(self) -> None:
        if (stamp := stamp_of(self.source)) != self.stamp:
            # a new time alone is no change: a copy, a `touch`
            if sha256_of(self.source) != self.sha256:
                raise _changed(self.source)
            self.stamp = stamp


def _changed(source: Path) -> DatasetError:
    return DatasetError(
        f"{source} was changed while it was screened, so that rows of two files would be in one output. Restore it and "
        "go on with --resume, or screen what it holds now with --overwrite."
    )


def _parts(
    job: Job,
    pending: Sequence[Chunk],
    folder: Folder,
    workers: int | None,
    threads: int | None,
    address: str | None,
    memory: float | None,
) -> Iterator[Part]:
    if workers is None:
        here, done = Screener(job, threads), 0
        with here.evaluator:
            try:
                for part in here.parts(pending):
                    yield part
                    done += 1
            except MemoryError as error:
                chunk = pending[done]
                last = chunk.first + chunk.count - 1
                raise DatasetError(
                    f"There is no memory for rows {chunk.first} to {last} of {job.source}. What is done is kept: "
                    "go on with --resume on a larger machine, or start again with a smaller --batch-size."
                ) from error
        return
    from painn_deploy.runtime.screening.workers import parts_from_workers

    yield from parts_from_workers(job, pending, folder=folder.parts, workers=workers, address=address, memory=memory)


def _run(
    folder: Folder,
    scan: Scan,
    pending: Sequence[Chunk],
    parts: Iterable[Part],
    progress: Progress,
    plan: dict[str, Any],
    held: _Held,
) -> None:
    computed, before = 0, scan.rows - sum(chunk.count for chunk in pending)
    progress(before, scan.rows, 0)

    def kept(part: Part, written: Future[None]) -> None:
        nonlocal computed
        written.result()
        computed += scan.chunks[part.number].count
        progress(before + computed, scan.rows, computed)

    # a part is written while the next is computed, and told of before that is written
    with ThreadPoolExecutor(1) as writer:
        last: tuple[Part, Future[None]] | None = None
        begun = time.monotonic()
        for part in parts:
            took = time.monotonic() - begun
            if last is not None:
                kept(*last)
            held.check()
            last = part, writer.submit(folder.keep, part, scan.chunks[part.number].count, plan)
            if took > LONG:
                kept(*last)
                last = None
            begun = time.monotonic()
        if last is not None:
            kept(*last)


def _times(scan: Scan, stamp: Stamp) -> int:
    """How many times as large as the smallest the chunks of a file are."""
    bytes_of_row = max(1.0, stamp[0] / scan.rows)
    return int(max(1, min(LARGEST, scan.rows // (CHUNKS * CHUNK_ROWS), MOST_BYTES // (bytes_of_row * CHUNK_ROWS))))


def _chunk_rows(earlier: dict[str, Any] | None, asked: int | None) -> int | None:
    """Rows of a chunk, where they are known before the file is."""
    if earlier is None:
        return asked
    if asked not in (None, earlier["chunk_rows"]):
        raise OutputError(
            f"The earlier run wrote chunks of {earlier['chunk_rows']} rows, and {asked} were asked for. Leave the "
            "number out to resume it, or give --overwrite to start again."
        )
    return int(earlier["chunk_rows"])


def _plan(
    evaluator: Evaluator, scan: Scan, kind: str, relaxation: Relaxation | None, limit: float | None
) -> dict[str, Any]:
    flag = {} if limit is None else {"flag_above": limit}  # not in a run that flags nothing, as those of before
    return flag | {
        "format_version": FORMAT_VERSION,
        "input_sha256": scan.sha256,
        "rows": scan.rows,
        "output_format": kind,
        "engine": dict(evaluator.engine_info),
        "relaxation": None if relaxation is None else asdict(relaxation),
    }
