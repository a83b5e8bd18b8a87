"""Threads with a calculator each, threads that share one, and processes that were forked after an engine was loaded."""

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule

from painn_deploy.export.errors import EngineError
from painn_deploy.runtime import PaiNNCalculator
from tests.endurance.child import Emit, Ended, end_with_parent, in_child
from tests.endurance.record import Job, Outcome

__all__ = ["run"]

THREADS = 8

NAMES = ("CH3CH2OH", "CH3CH2OH", "CH3CH2OH", "C6H6", "C6H6", "H2O", "CO2", "CH3OH")
"""A molecule for each thread: some alike, which share arrays where there are any to share, and some not."""

CLOSE = 1e-4
"""eV and eV/Å, between evaluations that a library may order differently, such as on another thread."""

LIMIT = 60.0
"""s that a trial may be silent before it hangs; a busy machine needs a few."""


def _molecules(thread: int, count: int = 16) -> list[Atoms]:
    rng, found = np.random.default_rng([7, thread]), []
    for _ in range(count):
        atoms = molecule(NAMES[thread % len(NAMES)])
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        found.append(atoms)
    return found


Asked = Callable[[PaiNNCalculator, Atoms], tuple[float, np.ndarray]]


def _through_ase(calculator: PaiNNCalculator, atoms: Atoms) -> tuple[float, np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces()


def _in_batch(calculator: PaiNNCalculator, atoms: Atoms) -> tuple[float, np.ndarray]:
    (found,) = calculator.calculate_batch([atoms])
    return found["energy"], found["forces"]


def _streamed(calculator: PaiNNCalculator, atoms: Atoms) -> tuple[float, np.ndarray]:
    (outcome,) = calculator.stream([atoms])
    if outcome.results is None:
        raise EngineError(outcome.reason)
    return outcome.results["energy"], outcome.results["forces"]


WAYS: dict[str, Asked] = {"ASE": _through_ase, "calculate_batch": _in_batch, "stream": _streamed}


def _many_threads(emit: Emit, bundle: Path, calls: int, way: str, shared: bool) -> None:
    ask, counts = WAYS[way], Counter[str]()
    molecules = [_molecules(thread) for thread in range(THREADS)]
    with PaiNNCalculator(bundle, threads=1) as calculator:
        wanted = [[ask(calculator, atoms) for atoms in each] for each in molecules]
        barrier = threading.Barrier(THREADS)

        def work(thread: int) -> None:
            own = calculator if shared else PaiNNCalculator(bundle, threads=1)
            barrier.wait()
            for number in range(calls):
                place = number % len(molecules[thread])
                try:
                    energy, forces = ask(own, molecules[thread][place])
                except EngineError:
                    counts["refused"] += 1
                except Exception as error:  # told below
                    counts[f"{type(error).__name__}: {error}"[:120]] += 1
                else:
                    good = wanted[thread][place]
                    right = abs(energy - good[0]) <= CLOSE and forces.shape == good[1].shape
                    right = right and bool(np.abs(forces - good[1]).max() <= CLOSE)
                    counts["right" if right else "wrong"] += 1
            if not shared:
                own.close()

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    emit(dict(counts))


def _again(calculator: PaiNNCalculator) -> str:
    """In a process that was forked: right, refused, or what else it was."""
    atoms = molecule("CH3CH2OH")
    atoms.positions += 0.01 * np.arange(27).reshape(9, 3) / 27
    try:
        energy, _ = _through_ase(calculator, atoms)
        (batched,) = calculator.calculate_batch([atoms])
    except EngineError:
        return "refused"
    except Exception as error:  # told by the caller
        return f"{type(error).__name__}: {error}"[:120]
    return f"{energy:.6f}" if abs(energy - batched["energy"]) < CLOSE else f"{energy} and {batched['energy']}"


SHARED: dict[str, PaiNNCalculator] = {}


def _of_pool(_: int) -> str:
    return _again(SHARED["calculator"])


def _forked(emit: Emit, bundle: Path, threads: int | None, pool: bool) -> None:
    """Load, compute, fork, and compute in the forked process."""
    calculator = SHARED["calculator"] = PaiNNCalculator(bundle, threads=threads)
    wanted, answers = _again(calculator), list[str]()
    if pool:
        with multiprocessing.get_context("fork").Pool(2, end_with_parent) as workers:
            answers = workers.map(_of_pool, range(6))
    else:
        reading, writing = os.pipe()
        if os.fork() == 0:
            end_with_parent()  # one that hangs must not stay
            os.write(writing, _again(calculator).encode())
            os._exit(0)
        os.close(writing)
        answers = [os.read(reading, 4096).decode() or "ended without an answer"]
    kinds = Counter("right" if a == wanted else a if a == "refused" else f"wrong: {a}, not {wanted}" for a in answers)
    emit({**kinds, "parent": "right" if _again(calculator) == wanted else "wrong"})


def run(job: Job) -> Outcome:
    """Every trial in a child of its own; each call must be right or an EngineError, and a calculator's own be right."""
    trials: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {}
    for way in WAYS:
        trials[f"a calculator each, {way}"] = (_many_threads, (job.bundle, job.stage.size, way, False))
        trials[f"one calculator, {way}"] = (_many_threads, (job.bundle, job.stage.size, way, True))
    for threads in (None, 1, 2):
        for pool in (False, True):
            name = f"fork after loading, threads={threads}{', multiprocessing.Pool' if pool else ''}"
            trials[name] = (_forked, (job.bundle, threads, pool))
    figures: dict[str, Any] = {}
    for number, (name, (function, arguments)) in enumerate(trials.items()):

        def tried(function: Any = function, arguments: Any = arguments) -> Any:
            said: list[Any] = []
            limit = LIMIT + 0.05 * job.stage.size
            ended = in_child(function, *arguments, seconds=limit, gib=16, heard=said.append)
            return said[0] if ended == Ended("done") and said else {str(ended): 1}

        figures[name] = job.record.part(f"trial-{number}", tried)
        job.progress(number + 1, len(trials), "trials")
    return Outcome({"trials": figures, "calls a thread": job.stage.size}, list(_failures(figures)))


def _failures(figures: dict[str, Any]) -> list[str]:
    found = []
    for name, counts in figures.items():
        allowed = {"right", "parent"} | (set() if name.startswith("a calculator each") else {"refused"})
        wrong = {kind: count for kind, count in counts.items() if kind not in allowed}
        if counts.get("parent", "right") != "right":
            wrong["the process that was forked from"] = counts["parent"]
        found += [f"{name}: {kind} ({count})" for kind, count in wrong.items()]
    return found
