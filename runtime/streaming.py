"""Structures in, results out, in order and in bounded memory; what has no answer is told by index and reason."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from painn_deploy.export.errors import EngineError, ShapeError, StructureError
from painn_deploy.runtime.neighbours import LocalGraph
from painn_deploy.runtime.packing import pack

if TYPE_CHECKING:
    from painn_deploy.runtime.calculator import PaiNNCalculator

__all__ = ["Outcome", "Prepared", "evaluate", "stream"]

WINDOW_STRUCTURES = 1024
"""Structures that are sorted and packed together; more would gain nothing in padding."""

WINDOW_BATCHES = 16
"""Full batches that a window holds at most, so that large structures take no more memory than small ones."""


@dataclass(frozen=True)
class Prepared:
    """A structure that the engine can answer for.

    Attributes:
        atoms: the structure.
        graph: with its neighbours.
        references: atomic reference energies, eV.
    """

    atoms: Atoms
    graph: LocalGraph
    references: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Atoms and slots."""
        return len(self.graph.numbers), self.graph.slots


@dataclass(frozen=True)
class Outcome:
    """What became of one structure.

    Attributes:
        index: its place in the input, from 0.
        results: as `PaiNNCalculator.calculate_batch` gives them; None where there is no answer.
        reason: why there is none; empty where there is one.
    """

    index: int
    results: dict[str, Any] | None
    reason: str = ""


def stream(
    calculator: "PaiNNCalculator", structures: Iterable[Atoms | StructureError], batch_slots: int
) -> Iterator[Outcome]:
    """One outcome for each structure, in order; at most a window of them is in memory.

    How structures are divided into batches depends on their order and on `batch_slots` alone, so that the same input
    gives the same bits again.

    Args:
        calculator: whose engine answers.
        structures: any iterable; an error in place of a structure, as a reader may give, is its outcome.
        batch_slots: atoms x slots of a batch.

    Raises:
        EngineError: the engine failed for every structure of a batch, so that going on would be in vain.
    """
    window: list[Prepared | str] = []
    begun = slots = 0
    for item in structures:
        window.append(_prepared(calculator, item))
        last = window[-1]
        slots += 0 if isinstance(last, str) else last.size[0] * last.size[1]
        if len(window) == WINDOW_STRUCTURES or slots >= WINDOW_BATCHES * batch_slots:
            yield from _outcomes(calculator, window, begun, batch_slots)
            begun, slots, window = begun + len(window), 0, []
    yield from _outcomes(calculator, window, begun, batch_slots)


def _prepared(calculator: "PaiNNCalculator", item: object) -> Prepared | str:
    if isinstance(item, StructureError):
        return str(item)
    if not isinstance(item, Atoms):
        return f"This is {type(item).__name__}, and not ase.Atoms."
    try:
        return calculator.prepare(item)
    except (StructureError, ShapeError) as error:
        return str(error)


def _outcomes(
    calculator: "PaiNNCalculator", window: Sequence[Prepared | str], begun: int, batch_slots: int
) -> Iterator[Outcome]:
    chosen = [index for index, item in enumerate(window) if isinstance(item, Prepared)]
    results = evaluate(calculator, [item for item in window if isinstance(item, Prepared)], batch_slots)
    answers: list[dict[str, Any] | str] = [item if isinstance(item, str) else "" for item in window]
    for index, answer in zip(chosen, results, strict=True):
        answers[index] = answer
    for index, answer in enumerate(answers, start=begun):
        yield Outcome(index, None, answer) if isinstance(answer, str) else Outcome(index, answer)


def evaluate(
    calculator: "PaiNNCalculator", prepared: Sequence[Prepared], batch_slots: int
) -> list[dict[str, Any] | str]:
    """Results of each structure, or why the engine has none.

    A batch that the engine refuses is run again one by one, so that only the culprit is without an answer.

    Raises:
        EngineError: it refuses each one of several, so that they are not what is wrong.
    """
    answers: list[dict[str, Any] | str] = [""] * len(prepared)
    for batch in pack([one.size for one in prepared], batch_slots, calculator.most_atoms):
        together: Sequence[dict[str, Any] | EngineError | str]
        try:
            together = calculator.run_prepared([prepared[index] for index in batch])
        except (EngineError, MemoryError) as error:
            together = [_told(error)] if len(batch) == 1 else _one_by_one(calculator, [prepared[i] for i in batch])
        for index, answer in zip(batch, together, strict=True):
            answers[index] = answer if isinstance(answer, dict) else str(answer)
    return answers


def _one_by_one(
    calculator: "PaiNNCalculator", batch: Sequence[Prepared]
) -> Sequence[dict[str, Any] | EngineError | str]:
    answers: list[dict[str, Any] | EngineError | str] = []
    refused: EngineError | MemoryError | None = None
    for one in batch:
        try:
            answers += calculator.run_prepared([one])
        except (EngineError, MemoryError) as error:
            answers.append(_told(error))
            refused = error
    if refused is not None and all(isinstance(answer, str) for answer in answers):
        raise refused
    return answers


def _told(error: Exception) -> str:
    text = str(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate memory" in text:
        return f"It needs more memory than there is: {text or 'out of memory'}."
    return text
