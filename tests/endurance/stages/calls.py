"""Many calls of a lone molecule that moves a little each time: memory stays flat, and answers stay what they were."""

import hashlib
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule

from painn_deploy.runtime import PaiNNCalculator
from tests.endurance.record import Job, Outcome
from tests.endurance.resources import growth, usage

__all__ = ["geometries", "run"]

SAMPLES, FEWEST = 100, 20
"""In a run; at full size one every 10,000 calls."""

GEOMETRIES = 1_009
"""After which they begin again, and answers must be those of the first time; a prime, so that no period hides."""

BOUND, UNIT, MOST_MAPS = 1.0, 100_000, 64
"""MiB per so many calls, and memory maps in the second half of the run."""


def geometries(seed: int, count: int = GEOMETRIES) -> list[np.ndarray]:
    """Positions of ethanol (Å), each moved anew; a pure function of the seed.

    Args:
        seed: of the moves.
        count: how many.
    """
    rng, start = np.random.default_rng([seed, 1]), molecule("CH3CH2OH").positions
    return [start + rng.normal(0, 0.02, start.shape) for _ in range(count)]


def answer(atoms: Atoms) -> str:
    """Energy and forces to the bit."""
    forces = np.ascontiguousarray(atoms.get_forces())
    return f"{atoms.get_potential_energy().hex()} {hashlib.sha256(forces.tobytes()).hexdigest()[:16]}"


def run(job: Job) -> Outcome:
    """Call, sample, and hold every energy against the first answer for its geometry; forces once in a while."""
    total = job.stage.size
    every = total // max(FEWEST, min(SAMPLES, total // 100))
    moved = geometries(job.options.seed, min(GEOMETRIES, max(7, total // 10)))
    samples: list[dict[str, Any]] = job.record.lines("samples")
    process = 1 + max((sample["process"] for sample in samples), default=-1)
    wrong: list[str] = job.record.lines("wrong")
    with PaiNNCalculator(job.bundle, threads=1) as calculator:
        atoms = molecule("CH3CH2OH")
        atoms.calc = calculator

        def first() -> list[str]:
            found = []
            for positions in moved:
                atoms.positions = positions
                found.append(answer(atoms))
            return found

        wanted = job.record.part("first", first)
        energies = [text.split()[0] for text in wanted]
        numbers = [float.fromhex(text) for text in energies]
        at = int(samples[-1]["at"]) if samples else 0
        for number in range(at, total):
            place = number % len(moved)
            atoms.positions = moved[place]
            energy, checked = atoms.get_potential_energy(), number % 97 == 0
            if energy != numbers[place] or (checked and answer(atoms) != wanted[place]):
                wrong.append(f"call {number}: {energy!r} eV, and {numbers[place]!r} at first")
                job.record.append("wrong", wrong[-1])
            if (number + 1) % every == 0:
                samples.append({"process": process, "at": number + 1, **usage()})
                job.record.append("samples", samples[-1])
                job.progress(number + 1, total, "calls")
    found = growth(samples, UNIT)
    failures = found.problems(BOUND, MOST_MAPS) + wrong[:3]
    return Outcome({"growth": found.as_dict(), "bound": BOUND, "calls": total, "wrong": len(wrong)}, failures)
