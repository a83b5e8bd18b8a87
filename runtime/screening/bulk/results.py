"""Answers to a block as rows: which of them can be written side by side, and the others as structures with results."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Int64

from painn_deploy.runtime.batches.answers import Answers
from painn_deploy.runtime.periodicity import lacking
from painn_deploy.runtime.screening.bulk.block import Block
from painn_deploy.runtime.screening.chunks import atoms_of
from painn_deploy.runtime.screening.labels import labels_of, result_row
from painn_deploy.runtime.screening.remarks import REPLACED, UNCERTAIN, UNRELAXED, UNREPEATED, Remarks, one_line
from painn_deploy.runtime.uncertainty.scale import FLAG, OF_ATOMS, RATIO, VERDICT

__all__ = ["Done", "Rows", "done_rows"]


@dataclass
class Rows:
    """Makes rows of the output, one after another, and keeps what is to be told of them.

    Args:
        cutoff: of the student, Å.
        flag_above: see `painn_deploy.runtime.screening.run.Settings`.
        remarks: what was kept otherwise than it came is counted there.
    """

    cutoff: float
    flag_above: float | None
    remarks: Remarks
    failures: list[tuple[int, str]] = field(default_factory=list)

    def row(
        self, index: int, given: Atoms | None, kept: Atoms | None, results: dict[str, Any] | None, reason: str
    ) -> Atoms:
        """One row.

        Args:
            index: of the row in the input.
            given: the structure of the input, as far as it could be read.
            kept: the structure of the output: the same, or where it was moved to.
            results: as `PaiNNCalculator.calculate_batch` gives them, or None.
            reason: why there are none.
        """
        if results is not None and self.flag_above is not None:
            results = results | {FLAG: results[RATIO] > self.flag_above}
            if results[FLAG]:
                self.uncertain(index, results[VERDICT], results[RATIO])
        row = result_row(kept, results, reason, labels=labels_of(given), index=index, remarks=self.remarks)
        if results is not None and not results.get("relax_converged", True):
            self.remarks.add(UNRELAXED, index, f"after {results['relax_steps']} steps")
        if given is None or results is None:
            self.failures.append((index, one_line(reason)))
        else:
            self.look(index, given)
        return row

    def uncertain(self, index: int, verdict: str, ratio: float) -> None:
        """Tell of a row above the limit.

        Args:
            index: of the row in the input.
            verdict: in words.
            ratio: above the limit.
        """
        self.remarks.add(UNCERTAIN, index, f"it is {verdict}, with a ratio of {ratio:.3g}")

    def look(self, index: int, given: Atoms) -> None:
        """Tell of a crystal that came without its periodic directions.

        Args:
            index: of the row in the input.
            given: its structure.
        """
        for _, image in lacking([given], self.cutoff):
            self.remarks.add(UNREPEATED, index, f"{image}; if it is a crystal, give it pbc")


@dataclass(frozen=True)
class Done:
    """Rows of the output.

    Attributes:
        block: as they were read.
        answers: to its frames.
        side_by_side: frames whose rows have answers, and are ordinary in all.
        flags: of frames, whether they are above the limit; None where there is none.
        alone: the other rows, by their place.
    """

    block: Block
    answers: Answers
    side_by_side: Int64[np.ndarray, " rows"]
    flags: np.ndarray | None
    alone: dict[int, Atoms]

    def row_of(self, frame: int, rows: Rows) -> Atoms:
        """The row of a frame that is side by side with others, alone: of what was told of it nothing is told twice.

        Args:
            frame: its place among the frames.
            rows: makes it.
        """
        place = int(self.block.places[frame])
        silent = Rows(rows.cutoff, rows.flag_above, Remarks())
        return _alone(self.block, self.answers, place, frame, silent)


def done_rows(block: Block, answers: Answers, rows: Rows) -> Done:
    """The rows of a block.

    Args:
        block: the rows.
        answers: to its frames.
        rows: makes those that go alone, and keeps what is to be told of all.
    """
    places = block.places.tolist()
    fit = _fit(block, answers)
    flags = None if rows.flag_above is None else _ratios(answers) > rows.flag_above
    looked_at = np.array(block.frames.cells.any((1, 2)) & ~block.frames.pbc.any(1))
    told = looked_at if flags is None else looked_at | flags
    frame_of = dict(zip(places, range(len(places)), strict=True))
    side_by_side = {places[frame] for frame in np.flatnonzero(fit).tolist()}
    heard = {places[frame] for frame in np.flatnonzero(fit & told).tolist()}
    alone: dict[int, Atoms] = {}
    for place in range(block.count):  # in order, so that the example of a remark is the first row's
        index = block.first + place
        if place not in side_by_side:
            alone[place] = _alone(block, answers, place, frame_of.get(place), rows)
            continue
        if place in heard and flags is not None and flags[frame := frame_of[place]]:
            verdict, ratio = (answers.uncertainties[name].item(frame) for name in (VERDICT, RATIO))
            rows.uncertain(index, verdict, ratio)
        if names := block.labels[place]:
            rows.remarks.add(REPLACED, index, ", ".join(sorted(names)))
        if place in heard and looked_at[frame_of[place]]:
            rows.look(index, block.frames.atoms(frame_of[place]))
    return Done(block, answers, np.flatnonzero(fit), flags, alone)


def _alone(block: Block, answers: Answers, place: int, frame: int | None, rows: Rows) -> Atoms:
    given = atoms_of(block.item(place))
    results = None if frame is None else _results(block, answers, frame)
    reason = "" if results is not None else block.reasons[place] if frame is None else str(answers.faults[frame])
    return rows.row(block.first + place, given, given, results, reason)


def _results(block: Block, answers: Answers, frame: int) -> dict[str, Any] | None:
    """Of one structure, those that `result_row` writes."""
    if frame in answers.faults:
        return None
    own = slice(block.frames.offsets[frame], block.frames.offsets[frame + 1])
    made: dict[str, Any] = {"energy": float(answers.energy[frame]), "forces": answers.forces[own]}
    if not np.isnan(answers.stress[frame, 0]):
        made["stress"] = answers.stress[frame]
    for name, values in answers.uncertainties.items():
        value = values[own] if name in OF_ATOMS else values.item(frame)
        first = value[0] if name in OF_ATOMS else value
        if first is not None and first == first:  # NaN is not itself
            made[name] = value
    return made


def _fit(block: Block, answers: Answers) -> np.ndarray:
    """Whether a frame's row is ordinary and has its answer, with all that there may be in one."""
    places = block.places.tolist()
    fit = np.array([block.notes[place] is not None for place in places], bool)
    fit[list(answers.faults)] = False
    for name in answers.uncertainties:
        fit &= _known(answers, name, block.frames.offsets)
    without_stress = np.isnan(answers.stress[:, 0])
    for frame, place in enumerate(places):
        if "stress" in block.labels[place] and without_stress[frame]:
            fit[frame] = False
    return fit


def _known(answers: Answers, name: str, offsets: np.ndarray) -> np.ndarray:
    """For which frames there is an uncertainty."""
    values = answers.uncertainties[name]
    each = values[offsets[:-1]] if name in OF_ATOMS else values
    known: np.ndarray = ~np.isnan(each) if each.dtype.kind == "f" else np.array([one is not None for one in each])
    return known


def _ratios(answers: Answers) -> np.ndarray:
    """Of frames; that of one that has none is above no limit."""
    ratios = answers.uncertain(RATIO)
    return np.where(np.isnan(ratios), -np.inf, ratios)
