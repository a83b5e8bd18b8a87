"""Times of calculators that can be compared: within one run, in turns, with new positions at every call."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from ase import Atoms

__all__ = ["BLOCKS", "Pace", "medians", "milliseconds", "mover", "samples", "through_ase"]

BLOCKS = 5
WARM_UP = 2
PAUSE = 0.05

Input = TypeVar("Input")


class Pace:
    """How many calls a time is the median of, and by which clock.

    Args:
        quick: only enough to see that everything runs.
        processor: take processor time, which other programs disturb least; fewer calls then do.

    Attributes:
        unit: of the times.
    """

    def __init__(self, *, quick: bool, processor: bool = False) -> None:
        self.calls, self.blocks = (2, 1) if quick else (10, 3 if processor else 5)
        self.processor = processor
        self.unit = "ms of processor time" if processor else "ms"

    def as_dict(self) -> dict[str, Any]:
        """Arguments of `medians` and `samples`."""
        clock = time.process_time if self.processor else time.perf_counter
        return {"calls": self.calls, "blocks": self.blocks, "clock": clock}


def medians(
    candidates: Mapping[str, Callable[[Input], object]],
    fresh: Callable[[], Input],
    *,
    calls: int = 10,
    blocks: int = BLOCKS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of one call of each candidate.

    Args:
        candidates: see `samples`, as for the others.
        fresh: makes the input of one call.
        calls: of a block.
        blocks: of each candidate.
        clock: in seconds.
    """
    found = samples(candidates, fresh, calls=calls, blocks=blocks, clock=clock)
    return {name: float(np.median(times)) for name, times in found.items()}


def samples(
    candidates: Mapping[str, Callable[[Input], object]],
    fresh: Callable[[], Input],
    *,
    calls: int = 10,
    blocks: int = BLOCKS,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Milliseconds of each call of each candidate.

    They take turns in blocks, with a pause between: threads that one leaves spinning would slow the next.

    Args:
        candidates: by name; each returns when its work is done.
        fresh: makes the input of one call, outside the time that is taken; a new one for every call, since a result
            that is remembered is no time.
        calls: of a block, after those that warm up; where one call is much, none does.
        blocks: of each candidate.
        clock: in seconds; `time.process_time` is what other programs disturb least, of candidates on one thread.
        progress: called with the number of blocks that are done, none at first.
    """
    warm_up = WARM_UP if calls > 1 else 0
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for block in range(blocks):
        progress(block)
        for name, candidate in candidates.items():
            time.sleep(PAUSE)
            for call in range(warm_up + calls):
                made = fresh()
                began = clock()
                candidate(made)
                if call >= warm_up:
                    spent[name].append(1e3 * (clock() - began))
    return spent


def milliseconds(
    calculators: Mapping[str, Any],
    structures: Sequence[Atoms],
    *,
    calls: int = 10,
    blocks: int = BLOCKS,
    sigma: float = 0.02,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """Median ms of one energy and forces through ASE, averaged over structures.

    Args:
        calculators: by name.
        structures: to time on; positions are perturbed at every call.
        calls: of a block.
        blocks: of each calculator; see `medians`.
        sigma: Å, of the perturbation.
        progress: see `samples`; of each structure anew.
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in calculators}

    candidates = {name: through_ase(calculator) for name, calculator in calculators.items()}
    for structure in structures:
        times = samples(candidates, mover([structure], rng, sigma), calls=calls, blocks=blocks, progress=progress)
        for name, spent in times.items():
            found[name].append(float(np.median(spent)))
    return {name: float(np.mean(times)) for name, times in found.items()}


def through_ase(calculator: Any) -> Callable[[list[Atoms]], None]:
    """Energy and forces of a list of one structure, as ASE asks a calculator for them."""

    def evaluate(structures: list[Atoms]) -> None:
        (atoms,) = structures
        atoms.calc = calculator
        atoms.get_potential_energy()
        atoms.get_forces()

    return evaluate


def mover(structures: Sequence[Atoms], rng: np.random.Generator, sigma: float = 0.02) -> Callable[[], list[Atoms]]:
    """The same structures at every call, with new positions.

    Args:
        structures: to move; copies of them are.
        rng: of the moves.
        sigma: Å, standard deviation of each atom's move from its start in every direction.
    """
    moving = [atoms.copy() for atoms in structures]
    starts = [atoms.positions.copy() for atoms in structures]

    def fresh() -> list[Atoms]:
        for atoms, start in zip(moving, starts, strict=True):
            atoms.positions = start + rng.normal(0, sigma, start.shape)
        return moving

    return fresh
