"""Consistency: forces must be the slope of the engine's own energy, and stress its slope under strain.

The step of the finite differences is chosen from the engine's measured energy noise: a short step drowns in noise, a
long step sees the surface bend. The bend is known exactly, from the student in float64, and is subtracted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from ase.units import GPa

from painn_deploy.calibration.physics.resolution import Evaluate
from painn_deploy.calibration.physics.subjects import Audited
from painn_deploy.calibration.physics.verdicts import Case, Finding, Property, Sentences, rms

__all__ = ["finite_differences", "force_gradient", "stress_gradient"]

STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))
"""Points and weights of the central difference of fourth order."""

UNSURE = 2.0
"""The noise of an energy may be so many times the noise that was measured on a few dozen points."""

STENCIL_NOISE = float(np.sqrt(sum(weight**2 for _, weight in STENCIL)))
"""Noise of a difference with step 1, for unit noise of each energy."""

FORCE_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04)
"""Å, steps to choose from."""

FINE_STEP, FINE_STRAIN = 1e-4, 1e-5
"""Å, and no unit: for the student in float64, which has no noise to speak of."""

STRAIN_STEPS = (0.0005, 0.001, 0.002, 0.004, 0.008)

MOST_DIRECTIONS = 27
"""Every coordinate of a structure of up to nine atoms; random directions of a larger one."""

FORCE_LIMIT = 1e-3
"""eV/Å, between a force and the slope of the energy."""

STRESS_LIMIT = 0.01 * GPa

Move = Callable[[Atoms, float, int], Atoms]
"""A structure, a length and the number of a direction to the structure moved so far."""


def force_gradient(audited: Audited) -> list[Finding]:
    """Forces against finite differences of the energy, along every coordinate or many directions."""
    cases, steps = [], []
    for atoms in (*audited.subjects.shaken, *audited.subjects.crystals[:1]):
        directions, allowed = _directions(atoms), audited.resolution.at(atoms.info["name"])
        noise = allowed.energy_noise * len(atoms) ** 0.5

        def move(start: Atoms, length: float, which: int, directions: np.ndarray = directions) -> Atoms:
            moved = start.copy()
            moved.positions += length * directions[which]
            return moved

        def slopes(result: dict[str, Any], directions: np.ndarray = directions) -> np.ndarray:
            return np.asarray(-np.einsum("nac,ac->n", directions, np.asarray(result["forces"])))

        step = choose_step(audited.student, atoms, move, slopes, len(directions), noise, FORCE_STEPS)
        student, engine = _both(audited, atoms, move, slopes, len(directions), step, FINE_STEP)
        blur = UNSURE * STENCIL_NOISE * noise / step
        error = 2 * allowed.force_error
        typical = blur * (1 + 3 / (2 * len(directions)) ** 0.5) + error
        worst = 5 * blur + 2 * error
        name = atoms.info["name"]
        cases.append(Case.of(f"{name} (RMS of {len(directions)} directions)", student, engine, typical, rms))
        cases.append(Case.of(f"{name} (worst direction)", student, engine, worst))
        steps.append(step)
    sentences = Sentences(
        holds="Forces are the slope of the engine's own energy, to {lost} (finite differences, steps of "
        f"{min(steps):g} to {max(steps):g} Å chosen from its noise).",
        student="Along {subject} forces and the slope of the energy differ by {student}, in the student as in the "
        "engine: its energy jumps or has a cusp on the way.",
        engine="Along {subject} the engine's forces are off the slope of its own energy by {lost}: dynamics with them "
        "do not conserve energy.",
    )
    ceiling = max(FORCE_LIMIT, audited.limits.forces)
    return [Property("forces and energy", "consistency", "meV/Å", FORCE_LIMIT, ceiling, sentences).finding(cases)]


def stress_gradient(audited: Audited) -> list[Finding]:
    """Stress against finite differences of the energy under six strains."""
    cases = []
    for atoms in audited.subjects.crystals[1:3] or audited.subjects.crystals:
        allowed = audited.resolution.at(atoms.info["name"])
        volume, noise = atoms.get_volume(), allowed.energy_noise * len(atoms) ** 0.5

        def move(start: Atoms, length: float, which: int) -> Atoms:
            strain = voigt_6_to_full_3x3_stress(length * np.eye(6)[which]) / (1 if which < 3 else 2)
            moved = start.copy()
            moved.set_cell(np.asarray(start.cell) @ (np.eye(3) + strain), scale_atoms=True)
            return moved

        def slopes(result: dict[str, Any], volume: float = volume) -> np.ndarray:
            return np.asarray(volume * np.asarray(result["stress"]))

        step = choose_step(audited.student, atoms, move, slopes, 6, noise, STRAIN_STEPS)
        student, engine = (x / volume for x in _both(audited, atoms, move, slopes, 6, step, FINE_STRAIN))
        blur = UNSURE * STENCIL_NOISE * noise / (step * volume)
        virial = 4 * allowed.force_error * audited.cutoff * len(atoms) ** 0.5 / volume
        name = atoms.info["name"]
        cases.append(Case.of(name, student, engine, 5 * blur + virial))
    if not cases:
        return []
    sentences = Sentences(
        holds="Stress is the slope of the engine's own energy under strain, to {lost}.",
        student="In {subject} stress and the slope of the energy under strain differ by {student}, in the student as "
        "in the engine: pairs cross the cutoff, where its energy jumps.",
        engine="In {subject} the engine's stress is off the slope of its own energy under strain by {lost}: cells "
        "relaxed with it find a wrong volume.",
    )
    ceiling = audited.limits.stress
    return [Property("stress and energy", "consistency", "GPa", STRESS_LIMIT, ceiling, sentences).finding(cases)]


def finite_differences(evaluate: Evaluate, atoms: Atoms, move: Move, count: int, step: float) -> np.ndarray:
    """Slopes [count] of the energy along `count` directions, by a central difference of fourth order."""
    structures = [move(atoms, point * step, which) for which in range(count) for point, _ in STENCIL]
    energies = np.array([result["energy"] for result in evaluate(structures)]).reshape(count, len(STENCIL))
    slopes: np.ndarray = (energies - energies.mean(1, keepdims=True)) @ np.array([w for _, w in STENCIL]) / step
    return slopes


def choose_step(
    student: Evaluate,
    atoms: Atoms,
    move: Move,
    slopes: Callable[[dict[str, Any]], np.ndarray],
    count: int,
    noise: float,
    steps: Sequence[float],
) -> float:
    """The step at which noise and bend together are least.

    Args:
        student: in float64, whose differences have bend and no noise.
        atoms: where.
        move: moves them.
        slopes: the slopes [count] that a result claims.
        count: how many directions there are; a few of them are tried.
        noise: eV, of one energy.
        steps: to choose from.
    """
    tried = range(0, count, max(1, count // 3))
    claimed = slopes(student([atoms])[0])[list(tried)]

    def bend(step: float) -> float:
        differences = finite_differences(student, atoms, lambda a, x, i: move(a, x, tried[i]), len(tried), step)
        return float(np.abs(differences - claimed).max())

    bends = {step: bend(step) for step in steps}
    return min(steps, key=lambda step: STENCIL_NOISE * noise / step + bends[step])


def _directions(atoms: Atoms) -> np.ndarray:
    """Unit displacements [directions, atoms, 3]."""
    size = 3 * len(atoms)
    if size <= MOST_DIRECTIONS:
        return np.eye(size).reshape(size, -1, 3)
    random = np.random.default_rng(len(atoms)).normal(size=(MOST_DIRECTIONS // 2, len(atoms), 3))
    unit: np.ndarray = random / np.linalg.norm(random, axis=(1, 2), keepdims=True)
    return unit


def _both(
    audited: Audited,
    atoms: Atoms,
    move: Move,
    slopes: Callable[[dict[str, Any]], np.ndarray],
    count: int,
    step: float,
    fine: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What differences and claimed slopes [count] differ by, of the student and of the engine.

    The student in float64 has no noise, so its own is taken with a fine step; the engine is held against it at a step
    that its precision resolves, where both see the same bend.
    """

    def missing(evaluate: Evaluate, length: float) -> np.ndarray:
        return np.asarray(finite_differences(evaluate, atoms, move, count, length) - slopes(evaluate([atoms])[0]))

    own = missing(audited.student, fine)
    return own, own + missing(audited.engine, step) - missing(audited.student, step)
