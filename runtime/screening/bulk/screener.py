"""`Screener`: computes the rows of a chunk, as a run does of all chunks, and every worker of its own."""

from dataclasses import dataclass

from ase import Atoms

from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.screening.bulk.answers import answers_of
from painn_deploy.runtime.screening.bulk.formats import encoded, read_block, written_alone
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
        """The part of a chunk.

        Raises:
            DatasetError: the input cannot be read any more.
            EngineError: the engine failed for every structure of a batch.
        """
        settings = self._settings
        rows = Rows(self.evaluator.manifest.cutoff, settings.flag_above, Remarks())
        names = () if self.evaluator.uncertainty is None else self.evaluator.uncertainty.names
        names += () if settings.flag_above is None else (FLAG,)
        if settings.relaxation is None:
            block = read_block(self._source, chunk, rows)
            answers = answers_of(self.evaluator, block.frames, settings.batch_slots)
            done = done_rows(block, answers, rows, one_by_one=written_alone(self._kind))
            content = encoded(self._kind, done, rows, names)
        else:
            made, items = list[Atoms](), self._source.read(chunk, rows.remarks)
            moved = relax(self.evaluator, items, settings.relaxation, settings.batch_slots)
            for index, (item, (last, outcome)) in enumerate(zip(items, moved, strict=True), chunk.first):
                given = atoms_of(item)
                made.append(rows.row(index, given, given if last is None else last, outcome.results, outcome.reason))
            content = SINKS[self._kind].encoded(made, chunk.first, rows.remarks, names)
        return Part(chunk.number, content, rows.failures, rows.remarks.as_dict())
