"""Structures in, results out, in order and in bounded memory; a structure without results comes with the reason."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ase import Atoms

from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.evaluator import Evaluator

__all__ = ["Outcome", "stream"]


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
        look: see `Evaluator.answer_each`.

    Raises:
        EngineError: the engine failed for every structure of a batch, so that going on would be in vain.
    """
    for index, answer in enumerate(evaluator.answer_each(structures, batch_slots, look)):
        yield Outcome(index, answer) if isinstance(answer, dict) else Outcome(index, None, str(answer))
