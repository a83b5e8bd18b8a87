"""Consistency: forces must be the slope of the engine's own energy, and stress its slope under strain.

The step of the finite differences is chosen from the engine's measured energy noise: a short step drowns in noise, a
long step sees the surface bend. The bend is known exactly, from the student in float64, and is subtracted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from ase.units import GPa
from jaxtyping import Float

from painn_deploy.calibration.physics.resolution import Evaluate
from painn_deploy.calibration.physics.subjects import Audited, Triple, affordable
from painn_deploy.calibration.physics.verdicts import Finding, Property, Sentences, rms
from painn_deploy.export.model.force_head import autograd_forces, explicit_forces, tensors
from painn_deploy.export.model.student import Student
from painn_deploy.runtime.matrix import graph_inputs

__all__ = [
    "Directions",
    "displacements",
    "force_gradient",
    "gradient_errors",
    "head_forces",
    "is_gradient",
    "strains",
    "stress_gradient",
]

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

HEAD_TOLERANCE = 1e-10
"""Of the largest force, or of 1 eV/Å: what separates two orders of summation in float64."""


@dataclass(frozen=True)
class Directions:
    """Ways to change a structure, and the slopes of the energy along them that a result claims.

    Attributes:
        count: how many.
        move: a structure, a length and the number of a direction to the structure moved so far.
        claimed: a result to slopes [directions]; eV/Å, or eV of a strain.
    """

    count: int
    move: Callable[[Atoms, float, int], Atoms]
    claimed: Callable[[Mapping[str, Any]], Float[np.ndarray, " directions"]]

    def some(self, chosen: Sequence[int]) -> "Directions":
        """Some of the directions, by their numbers."""
        picked = list(chosen)
        return Directions(
            len(picked),
            lambda start, length, which: self.move(start, length, picked[which]),
            lambda result: self.claimed(result)[picked],
        )


def displacements(atoms: Atoms) -> Directions:
    """Every coordinate of a small structure; of a larger one random unit displacements of all atoms together."""
    size = 3 * len(atoms)
    if size <= MOST_DIRECTIONS:
        unit = np.eye(size).reshape(size, -1, 3)
    else:
        unit = np.random.default_rng(len(atoms)).normal(size=(MOST_DIRECTIONS // 2, len(atoms), 3))
        unit /= np.linalg.norm(unit, axis=(1, 2), keepdims=True)

    def move(start: Atoms, length: float, which: int) -> Atoms:
        moved = start.copy()
        moved.positions += length * unit[which]
        return moved

    return Directions(len(unit), move, lambda result: -np.einsum("nac,ac->n", unit, np.asarray(result["forces"])))


def strains(atoms: Atoms) -> Directions:
    """The six strains of a cell, in Voigt's order."""
    volume = atoms.get_volume()

    def move(start: Atoms, length: float, which: int) -> Atoms:
        strain = voigt_6_to_full_3x3_stress(length * np.eye(6)[which]) / (1 if which < 3 else 2)
        moved = start.copy()
        moved.set_cell(np.asarray(start.cell) @ (np.eye(3) + strain), scale_atoms=True)
        return moved

    return Directions(6, move, lambda result: volume * np.asarray(result["stress"]))


def gradient_errors(
    evaluate: Evaluate, atoms: Atoms, directions: Directions, step: float
) -> Float[np.ndarray, " directions"]:
    """By how much the slopes of the energy differ from those that the result claims; eV/Å, or eV of a strain.

    Slopes are central differences of fourth order.

    Args:
        evaluate: structures to results.
        atoms: where.
        directions: of `displacements` for forces, or of `strains` for stress.
        step: length of one step, Å or a strain.
    """
    count, points = directions.count, len(STENCIL)
    structures = [directions.move(atoms, point * step, which) for which in range(count) for point, _ in STENCIL]
    energies = np.array([result["energy"] for result in evaluate(structures)]).reshape(count, points)
    slopes = (energies - energies.mean(1, keepdims=True)) @ np.array([weight for _, weight in STENCIL]) / step
    return np.asarray(slopes - directions.claimed(evaluate([atoms])[0]))


def head_forces(student: Student, atoms: Atoms) -> tuple[Float[np.ndarray, "atoms 3"], Float[np.ndarray, "atoms 3"]]:
    """Forces in eV/Å by plain autograd, and by the explicit head, which shares no adjoint with it.

    Args:
        student: in the precision that both compute in.
        atoms: a structure.
    """
    kind = np.float64 if student.dtype == torch.float64 else np.float32
    graph = tensors(graph_inputs([atoms], student.configuration.cutoff, kind), student.dtype)
    plain, explicit = (head(student, graph).forces for head in (autograd_forces, explicit_forces))
    return plain.double().numpy(), explicit.double().numpy()


def is_gradient(error: float, force: float) -> bool:
    """Whether the explicit head in float64 is what autograd says, to the last digits.

    Args:
        error: eV/Å, largest difference of the two.
        force: eV/Å, largest component.
    """
    return error <= HEAD_TOLERANCE * max(1.0, force)


def force_gradient(audited: Audited) -> list[Finding]:
    """Forces against finite differences of the energy, along every coordinate or many directions."""
    cases, steps = [], []
    for atoms in (*audited.subjects.shaken, *audited.subjects.crystals[: 1 if audited.subjects.shaken else 2]):
        directions, allowed = displacements(atoms), audited.resolution.at(atoms.info["name"])
        directions = directions.some(range(affordable(directions.count, atoms)))
        noise = allowed.energy_noise * len(atoms) ** 0.5
        step = choose_step(audited.student, atoms, directions, noise, FORCE_STEPS)
        slopes = _missed(audited, atoms, directions, step, FINE_STEP)
        blur = UNSURE * STENCIL_NOISE * noise / step
        error = 2 * allowed.force_error
        typical = blur * (1 + 3 / (2 * directions.count) ** 0.5) + error
        worst = 5 * blur + 2 * error
        name, most = atoms.info["name"], audited.limits.forces
        cases.append(audited.case(f"{name} (RMS of {directions.count} directions)", slopes, typical, most, rms))
        cases.append(audited.case(f"{name} (worst direction)", slopes, worst, most))
        steps.append(step)
    sentences = Sentences(
        holds="Forces are the slope of the engine's own energy, to {lost} (finite differences, steps of "
        f"{min(steps):g} to {max(steps):g} Å chosen from its noise).",
        student="Along {subject} forces and the slope of the energy differ by {student}, in the student as in the "
        "engine: its energy jumps or has a cusp on the way.",
        engine="Along {subject} the engine adds {lost} to how far forces are off the slope of the energy: dynamics "
        "with them do not conserve energy.",
    )
    ceiling = max(FORCE_LIMIT, audited.limits.forces)
    return [Property("forces and energy", "consistency", "meV/Å", FORCE_LIMIT, ceiling, sentences).finding(cases)]


def stress_gradient(audited: Audited) -> list[Finding]:
    """Stress against finite differences of the energy under six strains."""
    cases = []
    crystals = [atoms for atoms in audited.subjects.crystals if atoms.pbc.all()]
    for atoms in crystals[1:3] or crystals:
        allowed = audited.resolution.at(atoms.info["name"])
        volume, noise = atoms.get_volume(), allowed.energy_noise * len(atoms) ** 0.5
        step = choose_step(audited.student, atoms, strains(atoms), noise, STRAIN_STEPS)
        slopes = [x / volume for x in _missed(audited, atoms, strains(atoms), step, FINE_STRAIN)]
        blur = UNSURE * STENCIL_NOISE * noise / (step * volume)
        virial = 4 * allowed.force_error * audited.cutoff * len(atoms) ** 0.5 / volume
        cases.append(audited.case(atoms.info["name"], slopes, 5 * blur + virial, audited.limits.stress))
    if not cases:
        return []
    sentences = Sentences(
        holds="Stress is the slope of the engine's own energy under strain, to {lost}.",
        student="In {subject} stress and the slope of the energy under strain differ by {student}, in the student as "
        "in the engine: pairs cross the cutoff, where its energy jumps.",
        engine="In {subject} the engine adds {lost} to how far stress is off the slope of the energy under strain: "
        "cells relaxed with it find a wrong volume.",
    )
    ceiling = audited.limits.stress
    return [Property("stress and energy", "consistency", "GPa", STRESS_LIMIT, ceiling, sentences).finding(cases)]


def choose_step(student: Evaluate, atoms: Atoms, directions: Directions, noise: float, steps: Sequence[float]) -> float:
    """The step at which noise and bend together are least.

    Args:
        student: in float64, whose differences have bend and no noise.
        atoms: where.
        directions: a few of them are tried.
        noise: eV, of one energy.
        steps: to choose from.
    """
    few = directions.some(range(0, directions.count, max(1, directions.count // affordable(3, atoms, 1))))
    bends = {step: float(np.abs(gradient_errors(student, atoms, few, step)).max()) for step in steps}
    return min(steps, key=lambda step: STENCIL_NOISE * noise / step + bends[step])


def _missed(audited: Audited, atoms: Atoms, directions: Directions, step: float, fine: float) -> Triple:
    """Finite differences minus claimed slopes [directions], of the engine, of the student and of float32.

    The student in float64 has no noise, so its own is taken with a fine step; the others are compared with it at a step
    that their precision resolves, where all see the same bend.
    """
    own = gradient_errors(audited.student, atoms, directions, fine)
    engine, student, single = (
        gradient_errors(evaluate, atoms, directions, step)
        for evaluate in (audited.engine, audited.student, audited.single)
    )
    return own + engine - student, own, own + single - student
