"""Cases x contenders -> times: every contender in turn in one run, new positions at every call, ratios to a baseline.

Whole calls are what a user waits for, from `Atoms` to energy and forces; an engine alone is the time from packed arrays
to arrays. Nothing is measured that a cache remembers.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.calibration.timing import BLOCKS, Pace, medians, mover, samples
from painn_deploy.export.errors import ShapeError
from painn_deploy.export.progress import Tell
from painn_deploy.scripts.benchmarks.agreement import check_agreement
from painn_deploy.scripts.benchmarks.cases import Case, growing_water
from painn_deploy.scripts.benchmarks.conditions import Study, compared
from painn_deploy.scripts.benchmarks.contenders.bundles import opened
from painn_deploy.scripts.benchmarks.contenders.contender import EAGER, Contender

__all__ = ["BATCHES", "batches", "latency", "measured", "scaling", "throughput"]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LONGEST = 0.4
"""s of a block; where a contender is slow, all are called less often."""

FEWER_BLOCKS = 3
SETS = 4
"""Of prepared inputs that an engine alone is given in turn."""

Sampled = Mapping[str, Sequence[float]]
Fresh = Callable[[], Any]


def measured(
    contenders: Sequence[Contender], case: Case, pace: Pace, rng: np.random.Generator, *, alone: bool = False
) -> dict[str, float]:
    """Median milliseconds of each contender on a case.

    Args:
        contenders: in the order of their turns.
        case: moved anew at every call.
        pace: how many calls, and by which clock.
        rng: of the moves.
        alone: neighbours are found before the time is taken; else whole calls.
    """
    move = mover(case.given, rng)
    if alone:
        return medians(_runs(contenders), _prepared(contenders, move), **pace.as_dict())
    return medians({c.name: c.whole for c in contenders}, move, **pace.as_dict())


def batches(
    study: Study, title: str, contenders: Sequence[Contender], cases: Sequence[Case], *, alone: bool = False
) -> list[dict[str, Any]]:
    """Time batches, once all contenders have given the same forces, and print them.

    Args:
        study: whose pace is kept.
        title: of the table.
        contenders: in the order of their turns; the first is the baseline.
        cases: the batches.
        alone: neighbours are found before.

    Returns:
        Rows with `batch`, how many structures; `atoms` in it; `milliseconds` a structure and `ratio` to the baseline,
        by contender; `largest_difference` of a force from the baseline's, eV/Å.

    Raises:
        EngineError: forces differ by more than float32 explains.
    """
    rng, baseline = np.random.default_rng(0), contenders[0].name
    rows: list[dict[str, Any]] = []
    for case in cases:
        structures = mover(case.given, rng)()
        forces = {c.name: c.forces(c.run(c.prepare(structures)) if alone else c.whole(structures)) for c in contenders}
        difference = check_agreement(forces, baseline, case.name)
        times = measured(contenders, case, study.pace, rng, alone=alone)
        count = len(case.given)
        rows.append(
            {
                "batch": count,
                "atoms": case.atoms,
                "milliseconds": {name: spent / count for name, spent in times.items()},
                "ratio": {name: times[baseline] / spent for name, spent in times.items()},
                "largest_difference": difference,
            }
        )
    cells = [[str(row["batch"]), str(row["atoms"]), *compared(row["milliseconds"], baseline)] for row in rows]
    study.show(title, ["batch", "atoms", *(contender.name for contender in contenders)], cells)
    worst = max(row["largest_difference"] for row in rows)
    study.console.print(f"all forces are within {worst:.1e} eV/Å of those of {baseline}")
    return rows


def latency(contenders: Sequence[Contender], cases: Sequence[Case], tell: Tell) -> list[dict[str, Any]]:
    """One structure at a time: whole calls, engines alone, and a calculator's phases.

    Args:
        contenders: in the order of their turns.
        cases: of one structure each.
        tell: called with a line about each case.
    """
    rows: list[dict[str, Any]] = []
    for case in cases:
        tell(f"timing {case.name}, {case.atoms} atoms")
        rows += [{"structure": case.name, "atoms": case.atoms} | row for row in _rows(contenders, case)]
    return rows


def throughput(contenders: Sequence[Contender], cases: Sequence[Case], tell: Tell) -> list[dict[str, Any]]:
    """Copies of a molecule at once, each with positions of its own.

    Args:
        contenders: in the order of their turns.
        cases: from `copies`.
        tell: called with a line about each case.
    """
    rows: list[dict[str, Any]] = []
    for case in cases:
        tell(f"timing {case.name}")
        batch = len(case.given)
        for row in _rows(contenders, case):
            del row["phases"]
            rate = 1e3 * batch / row["whole"]["milliseconds"]
            of = {"structure": str(case.given[0].symbols), "batch": batch}
            rows.append(of | row | {"structures_per_second": rate})
    return rows


def scaling(bundles: Mapping[str, Path], device: str, tell: Tell, threads: int | None = None) -> list[dict[str, Any]]:
    """Whole calls on water from 192 atoms to 10,368, each engine opened alone, so that all memory is its own.

    Args:
        bundles: by what to call them.
        device: to run them on.
        tell: called with a line about each, and about what is too large for it.
        threads: of a CPU; None for what each chooses.
    """
    rows = []
    for name, path in bundles.items():
        with opened({name: path}, device, threads) as (engine,):
            if not {1, 8} <= set(engine.calculator.manifest.species):
                continue
            for case in growing_water():
                tell(f"timing {name} on water, {case.atoms:,} atoms")
                if not engine.fits(case.given):
                    tell(f"{name} was not built for {case.atoms:,} atoms")
                    break
                fresh = mover(case.given, np.random.default_rng(0))
                try:
                    times = samples({name: engine.whole}, fresh, calls=2, blocks=FEWER_BLOCKS)[name]
                except ShapeError as error:  # more than this machine has memory for
                    tell(f"{name}: {error}")
                    break
                spent = statistics.median(times)
                row = {"candidate": name, "atoms": case.atoms, "milliseconds": spent}
                rows.append(row | {"microseconds_an_atom": 1e3 * spent / case.atoms})
    return rows


def _rows(contenders: Sequence[Contender], case: Case) -> Iterator[dict[str, Any]]:
    """Whole calls, engines alone and phases of each contender, of as many calls as the slowest one allows."""
    fresh = mover(case.given, np.random.default_rng(0))
    slowest = max(_seconds(contender.whole, fresh()) for contender in contenders)
    calls = int(min(10, max(1, LONGEST / slowest)))
    blocks = BLOCKS if calls > 1 else FEWER_BLOCKS
    for contender in contenders:
        contender.phases()
    whole = samples({c.name: c.whole for c in contenders}, fresh, calls=calls, blocks=blocks)
    phases = {contender.name: contender.phases() for contender in contenders}
    able = [contender for contender in contenders if contender.alone and contender.fits(case.given)]
    alone = samples(_runs(able), _prepared(able, fresh, SETS), calls=calls, blocks=blocks)
    for name in whole:
        yield {
            "candidate": name,
            "whole": _described(whole, name),
            "engine": _described(alone, name),
            "phases": phases[name],
        }


def _runs(contenders: Sequence[Contender]) -> dict[str, Callable[[dict[str, Any]], object]]:
    """Contenders on what was prepared for each."""

    def run(contender: Contender) -> Callable[[dict[str, Any]], object]:
        return lambda prepared: contender.run(prepared[contender.name])

    return {contender.name: run(contender) for contender in contenders}


def _prepared(contenders: Sequence[Contender], move: Callable[[], list[Atoms]], sets: int | None = None) -> Fresh:
    """Makes what each contender reads of the same positions: new ones at every call, or a few sets of them in turn."""

    def fresh() -> dict[str, Any]:
        structures = move()
        return {contender.name: contender.prepare(structures) for contender in contenders}

    if sets is None:
        return fresh
    made = cycle([fresh() for _ in range(sets)])
    return lambda: next(made)


def _seconds(call: Callable[[Any], object], given: Any) -> float:
    call(given)
    began = time.perf_counter()
    call(given)
    return time.perf_counter() - began


def _described(sampled: Sampled, name: str) -> dict[str, float] | None:
    """Median and quartiles, and the ratio to eager; None for what was not timed."""
    if name not in sampled:
        return None
    low, median, high = np.percentile(sampled[name], [25, 50, 75])
    found = {"milliseconds": float(median), "quarter": float(low), "three_quarters": float(high)}
    if EAGER in sampled:
        found["ratio"] = float(np.median(sampled[EAGER]) / median)
    return found
