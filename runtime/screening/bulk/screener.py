"""`Screener`: computes the rows of a chunk, as a run does of all chunks, and every worker of its own."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ase import Atoms

from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.batches.evaluation import evaluated
from painn_deploy.runtime.batches.windows import Window
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.screening.bulk.block import Block
from painn_deploy.runtime.screening.bulk.formats import encoded, read_block
from painn_deploy.runtime.screening.bulk.results import Rows, done_rows
from painn_deploy.runtime.screening.chunks import Chunk, atoms_of
from painn_deploy.runtime.screening.folder import Part
from painn_deploy.runtime.screening.relaxation import Relaxation, relax
from painn_deploy.runtime.screening.remarks import Remarks
from painn_deploy.runtime.screening.sinks import SINKS
from painn_deploy.runtime.screening.sources import open_source
from painn_deploy.runtime.uncertainty.scale import FLAG

__all__ = ["Job", "Screener", "Settings"]


@dataclass(frozen=True)
class Settings:
    """Settings that decide the rows, beside the input and the engine.

    Attributes:
        chunk_rows: rows of a chunk.
        batch_slots: atoms x slots of a batch.
        relaxation: how to relax, or None to keep the geometry.
        flag_above: how many times as uncertain as the frames of its calibration a structure may be before its row is
            flagged; None flags none.
    """

    chunk_rows: int
    batch_slots: int
    relaxation: Relaxation | None = None
    flag_above: float | None = None


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
        self._source, self._kind, self._settings = open_source(job.source), job.kind, job.settings

    def compute(self, chunk: Chunk) -> Part:
        """The part of a chunk; see `parts`.

        Args:
            chunk: of the input.
        """
        (part,) = self.parts([chunk])
        return part

    def parts(self, chunks: Sequence[Chunk]) -> Iterator[Part]:
        """The parts of chunks, in their order; the next one is read and packed while the engine works on one.

        Args:
            chunks: of the input.

        Raises:
            DatasetError: the input cannot be read any more.
            EngineError: the engine failed for every structure of a batch.
        """
        if (relaxation := self._settings.relaxation) is not None:
            yield from (self._relaxed(chunk, relaxation) for chunk in chunks)
            return
        read: deque[tuple[Chunk, Block, Rows]] = deque()
        unread: list[Exception] = []

        def windows() -> Iterator[Window]:
            for chunk in chunks:
                rows = self._rows()
                try:
                    read.append((chunk, read_block(self._source, chunk, rows, self._kind), rows))
                except (DatasetError, MemoryError) as error:  # once those before it are there
                    unread.append(error)
                    return
                frames = read[-1][1].frames
                # the engine's way drops cell vectors that stand for nothing, and the output has them as they came
                yield Window(replace(frames, cells=frames.cells.copy()), last=chunk is chunks[-1])

        answered = evaluated(self.evaluator, windows(), self._settings.batch_slots, lambda answers: answers)
        for answers in answered:
            chunk, block, rows = read.popleft()
            done = done_rows(block, answers, rows)
            content = encoded(self._kind, done, rows, self._names)
            yield Part(chunk.number, content, rows.failures, rows.remarks.as_dict())
        if unread:
            raise unread.pop()  # kept in the list, it would keep itself, and the file that it came from

    def _rows(self) -> Rows:
        return Rows(self.evaluator.manifest.cutoff, self._settings.flag_above, Remarks())

    @property
    def _names(self) -> tuple[str, ...]:
        """Of the uncertainties that rows may have."""
        names = () if self.evaluator.uncertainty is None else self.evaluator.uncertainty.names
        return names if self._settings.flag_above is None else (*names, FLAG)

    def _relaxed(self, chunk: Chunk, relaxation: Relaxation) -> Part:
        """The part of a chunk whose structures are moved until forces are small."""
        rows, made = self._rows(), list[Atoms]()
        items = self._source.read(chunk, rows.remarks)
        moved = relax(self.evaluator, items, relaxation, self._settings.batch_slots)
        for index, (item, (last, outcome)) in enumerate(zip(items, moved, strict=True), chunk.first):
            given = atoms_of(item)
            made.append(rows.row(index, given, given if last is None else last, outcome.results, outcome.reason))
        content = SINKS[self._kind].encoded(made, chunk.first, rows.remarks, self._names)
        return Part(chunk.number, content, rows.failures, rows.remarks.as_dict())
