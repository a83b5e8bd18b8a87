"""Reproducibility: results must not depend on the run, on the batch, or on molecules that are far away."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.calibration.physics.resolution import Evaluate
from painn_deploy.calibration.physics.subjects import Audited
from painn_deploy.calibration.physics.symmetry import ENERGY_LIMIT, FORCE_LIMIT, SIGMAS, worse_of
from painn_deploy.calibration.physics.verdicts import Case, Finding, Property, Sentences

__all__ = ["batch_and_single", "equal_to_the_bit", "size_consistency"]


def equal_to_the_bit(audited: Audited, again: Evaluate | None = None) -> list[Finding]:
    """Evaluate the same structures twice, and count the numbers that differ in any bit.

    Args:
        audited: engine and student.
        again: the same engine opened anew, for a third evaluation; None for none.
    """
    structures = [*audited.subjects.perturbed, *audited.subjects.symmetric]
    first = audited.engine(structures)
    runs = [audited.engine(structures)] + ([] if again is None else [again(structures)])
    differing = max(_differing(first, run) for run in runs)
    own = _differing(audited.student(structures), audited.student(structures))
    cases = [Case("all subjects", float(own), float(differing), float(max(0, differing - own)), 0.0)]
    sentences = Sentences(
        holds="Two runs of the same structures agree in every bit.",
        student="Two runs of the student itself differ in {student}.",
        engine="Two runs of the same structures differ in {lost} (of energies, forces and stresses): results cannot be "
        "reproduced, and a restarted simulation goes another way.",
    )
    return [Property("two runs", "reproducibility", "numbers", 0.0, 0.0, sentences).finding(cases)]


def batch_and_single(audited: Audited) -> list[Finding]:
    """Evaluate structures together, and one by one."""
    subjects = audited.subjects
    structures = [*subjects.perturbed, *subjects.molecules]
    evaluators = (audited.engine, audited.student, audited.single)
    together = [evaluate(structures) for evaluate in evaluators]
    alone = [[evaluate([a])[0] for a in structures] for evaluate in evaluators]
    return [_compared(audited, "batch and single", structures, together, alone, _sentences("is evaluated in a batch"))]


def size_consistency(audited: Audited) -> list[Finding]:
    """Put another molecule far away from each: neither energies nor forces may change."""
    subjects = audited.subjects.shaken
    if not subjects:
        return []
    other = subjects[0]
    pairs = []
    for atoms in subjects:
        moved = other.copy()
        moved.positions += atoms.positions.max(0) - other.positions.min(0) + 3 * audited.cutoff
        pairs.append(atoms + moved)
    together, alone = [], []
    for evaluate in (audited.engine, audited.student, audited.single):
        lone = evaluate([*subjects, other])
        both = evaluate(pairs)
        together.append(
            [
                {"energy": b["energy"] - lone[-1]["energy"], "forces": np.asarray(b["forces"])[: len(a)]}
                for a, b in zip(subjects, both, strict=True)
            ]
        )
        alone.append(lone[:-1])
    return [_compared(audited, "size consistency", subjects, together, alone, _sentences("has a neighbour far away"))]


def _compared(
    audited: Audited,
    name: str,
    structures: Sequence[Atoms],
    changed: Sequence[Sequence[dict[str, Any]]],
    plain: Sequence[Sequence[dict[str, Any]]],
    sentences: Sentences,
) -> Finding:
    """Compare energies per atom and forces of engine, student and float32; find for the worse of the two."""
    energies, forces = [], []
    for index, atoms in enumerate(structures):
        allowed = audited.resolution.at(atoms.info["name"])
        pairs = [(a[index], b[index]) for a, b in zip(changed, plain, strict=True)]
        each = [(a["energy"] - b["energy"]) / len(atoms) for a, b in pairs]
        pulls = [np.asarray(a["forces"]) - np.asarray(b["forces"]) for a, b in pairs]
        label, noise = atoms.info["name"], SIGMAS * 2 * allowed.energy_noise / len(atoms) ** 0.5
        energies.append(audited.case(label, each, noise, audited.limits.energy))
        forces.append(audited.case(label, pulls, SIGMAS * 2**0.5 * allowed.force_noise, audited.limits.forces))
    return worse_of(
        Property(name, "reproducibility", "meV/atom", ENERGY_LIMIT, audited.limits.energy, sentences),
        energies,
        Property(name, "reproducibility", "meV/Å", FORCE_LIMIT, audited.limits.forces, sentences),
        forces,
    )


def _sentences(how: str) -> Sentences:
    return Sentences(
        holds=f"It makes no difference whether a structure {how}: at most {{engine}}.",
        student=f"{{subject}} changes by {{student}} when it {how}, in the student as in the engine.",
        engine=f"The engine adds {{lost}} to how {{subject}} changes when it {how}.",
    )


def _differing(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> int:
    """How many numbers, or words of an uncertainty, are not the same to the last bit."""
    count = 0
    for a, b in zip(one, other, strict=True):
        for key in a.keys() | b.keys():
            left, right = (np.ravel(np.asarray(r.get(key, ()))) for r in (a, b))
            count += int((left != right).sum()) if left.shape == right.shape else max(left.size, right.size)
    return count
