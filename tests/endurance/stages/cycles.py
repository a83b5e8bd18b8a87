"""Engines opened and closed again and again, as calculators and as pickled evaluators: nothing stays behind."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from ase.build import molecule

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.evaluator import Evaluator
from tests.endurance.record import Job, Outcome
from tests.endurance.resources import growth, usage

__all__ = ["run"]

SAMPLES = 50

BOUND, UNIT, MOST_MAPS = 1.0, 100, 64
"""MiB per so many cycles, and memory maps in the second half of the run."""


def run(job: Job) -> Outcome:
    """Both ways, each with its own samples."""
    atoms = molecule("CH3CH2OH")

    def opened() -> float:
        with PaiNNCalculator(job.bundle, threads=1) as calculator:
            calculator.calculate(atoms)
            return float(calculator.results["energy"])

    with Evaluator(job.bundle, threads=1) as evaluator:
        packed = pickle.dumps(evaluator)

    def unpickled() -> float:
        with pickle.loads(packed) as again:
            return float(again.calculate_batch([atoms])[0]["energy"])

    figures, failures = {}, []
    ways: dict[str, Callable[[], float]] = {"opened and closed": opened, "unpickled and closed": unpickled}
    for place, (way, cycle) in enumerate(ways.items()):
        found, wrong = _cycled(job, way, cycle, place)
        figures[way] = found
        failures += [f"{way}: {line}" for line in wrong]
    return Outcome({"growth": figures, "bound": BOUND, "cycles": job.stage.size}, failures)


def _cycled(job: Job, way: str, cycle: Callable[[], float], place: int) -> tuple[dict[str, Any], list[str]]:
    total, every = job.stage.size, max(1, job.stage.size // SAMPLES)
    name = way.split()[0]
    samples: list[dict[str, Any]] = job.record.lines(name)
    process = 1 + max((sample["process"] for sample in samples), default=-1)
    wanted, wrong = job.record.part(f"first-{name}", cycle), []
    for number in range(int(samples[-1]["at"]) if samples else 0, total):
        if not np.isclose(energy := cycle(), wanted, rtol=0, atol=1e-5):
            wrong.append(f"cycle {number}: {energy} eV, and {wanted} at first")
        if (number + 1) % every == 0:
            samples.append({"process": process, "at": number + 1, **usage()})
            job.record.append(name, samples[-1])
            job.progress(place * total + number + 1, 2 * total, "cycles")
    found = growth(samples, UNIT)
    return found.as_dict(), found.problems(BOUND, MOST_MAPS) + wrong[:3]
