"""Structures in, results out, in order and in bounded memory; a structure without results comes with the reason."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ase import Atoms

from painn_deploy.export.errors import EngineError, ShapeError, StructureError
from painn_deploy.runtime.evaluator import Evaluator, Prepared

__all__ = ["Outcome", "stream"]

WINDOW_STRUCTURES = 1024
"""Structures that are sorted and packed together; more would gain nothing in padding."""

WINDOW_BATCHES = 16
"""Full batches that a window holds at most, so that large structures take no more memory than small ones."""


@dataclass(frozen=True)
class Outcome:
    """The results of one structure, or the reason why there are none.

    Attributes:
        index: its place in the input, from 0.
        results: as `PaiNNCalculator.calculate_batch` gives them; None where there are none.
        reason: why there is none; empty where there is one.
    """

    index: int
    results: dict[str, Any] | None
    reason: str = ""


def stream(
    evaluator: Evaluator,
    structures: Iterable[Atoms | StructureError],
    batch_slots: int | None = None,
    look: Callable[[Atoms], None] | None = None,
) -> Iterator[Outcome]:
    """One outcome for each structure, in order; at most a window of them is in memory.

    How structures are divided into batches depends on their order and on `batch_slots` alone, so that the same input
    gives the same bits again.

    Args:
        evaluator: the engine.
        structures: any iterable; an error in place of a structure, as a reader may give, is its outcome.
        batch_slots: atoms x slots of a batch; None for the evaluator's own.
        look: see `Evaluator.prepare`.

    Raises:
        EngineError: the engine failed for every structure of a batch, so that going on would be in vain.
    """
    budget = evaluator.batch_slots if batch_slots is None else batch_slots
    window: list[Prepared | str] = []
    begun = slots = 0
    for item in structures:
        window.append(_prepared(evaluator, item, look))
        last = window[-1]
        slots += 0 if isinstance(last, str) else last.size[0] * last.size[1]
        if len(window) == WINDOW_STRUCTURES or slots >= WINDOW_BATCHES * budget:
            yield from _outcomes(evaluator, window, begun, budget)
            begun, slots, window = begun + len(window), 0, []
    yield from _outcomes(evaluator, window, begun, budget)


def _prepared(evaluator: Evaluator, item: object, look: Callable[[Atoms], None] | None) -> Prepared | str:
    if isinstance(item, StructureError):
        return str(item)
    if not isinstance(item, Atoms):
        return f"This is {type(item).__name__}, and not ase.Atoms."
    try:
        return evaluator.prepare(item, look)
    except (StructureError, ShapeError) as error:
        return str(error)


def _outcomes(evaluator: Evaluator, window: Sequence[Prepared | str], begun: int, budget: int) -> Iterator[Outcome]:
    results = iter(evaluator.evaluate([item for item in window if isinstance(item, Prepared)], budget))
    for index, item in enumerate(window, start=begun):
        answer: dict[str, Any] | EngineError | str = item if isinstance(item, str) else next(results)
        yield Outcome(index, answer) if isinstance(answer, dict) else Outcome(index, None, str(answer))
