"""The choice of subjects that a student can be judged on: the user's own frames, or the default ones that it knows.

A student of ethanol says nothing about diamond, and neither would its engine. So a subject must be sound, at rest and
on every geometry around it that rounding is measured on.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from painn_deploy.calibration.accuracy.domain import Domain
from painn_deploy.calibration.accuracy.errors import describe
from painn_deploy.calibration.accuracy.left_out import LeftOut, summary
from painn_deploy.calibration.physics.resolution import SIGMA, Evaluate, copies, probes
from painn_deploy.calibration.physics.subjects import (
    MOST_ELEMENTS,
    MOST_SYMMETRIC,
    Subjects,
    lowered,
    symmetric_molecules,
    why_not,
)
from painn_deploy.calibration.structures import LARGEST_FORCE
from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.neighbours import find_pairs

__all__ = ["chosen_frames", "frames_of", "sound_subjects"]

GENTLER = (1.0, 0.5, 0.2)
"""Shares of the usual perturbation: the largest that leaves a structure sound is taken."""

MOST_MOLECULES, MOST_CRYSTALS = 4, 3
"""Frames that are audited of molecules, and of periodic structures."""

MOST_ATOMS = 250
"""Atoms in all frames of either kind; the smallest frame is audited however large it is."""

FORCE_MARGIN = 2.0
"""A perturbed frame may have forces so many times larger than the largest of the user's frames."""

BONDED = 1.3
"""Of the sum of covalent radii, within which two atoms are bonded."""

Why = Callable[[Sequence[Atoms]], str]
"""Structures to the reason why the student cannot be judged on one of them; empty where it can on all."""


def sound_subjects(subjects: Subjects, student: Evaluate, single: Evaluate) -> Subjects:
    """Keep those subjects that a student can be judged on, perturbed less where that is needed, and name the others.

    Args:
        subjects: of `choose_subjects`.
        student: evaluates with the student in float64.
        single: evaluates with the student in float32.

    Raises:
        DatasetError: no molecule and no crystal is left.
    """
    why, left_out = _why(student, single, subjects.largest_force), list[LeftOut]()
    names = [atoms.info["name"] for atoms in (*subjects.molecules, *subjects.crystals, *subjects.symmetric)]

    def sound(starts: Sequence[Atoms], perturbed: Sequence[Atoms], first: int) -> list[tuple[Atoms, Atoms]]:
        pairs = []
        for seed, (atoms, moved) in enumerate(zip(starts, perturbed, strict=True), start=first):
            found, reason = _perturbed(atoms, moved.positions - atoms.positions, seed, why)
            if found is None:
                left_out.append(LeftOut(seed, atoms.info["name"], reason))
            else:
                pairs.append((atoms, found))
        return pairs

    molecules = sound(subjects.molecules, subjects.shaken, 0)
    crystals = sound(subjects.ideal, subjects.crystals, len(subjects.molecules))
    if not (molecules or crystals):
        raise DatasetError(
            f"There is no default structure to audit the student on: {'; '.join(summary(left_out))}. "
            "Give structures like those that it was trained on with --structures."
        )
    symmetric = []
    for atoms in subjects.symmetric:
        if reason := _why_not_symmetric(atoms, why):
            left_out.append(LeftOut(names.index(atoms.info["name"]), atoms.info["name"], reason))
        else:
            symmetric.append(atoms)
    return dataclasses.replace(
        subjects,
        molecules=tuple(atoms for atoms, _ in molecules),
        shaken=tuple(moved for _, moved in molecules),
        crystals=tuple(moved for _, moved in crystals),
        symmetric=tuple(symmetric),
        ideal=tuple(atoms for atoms, _ in crystals),
        left_out=tuple(left_out),
    )


def frames_of(domain: Domain, student: Evaluate, single: Evaluate) -> Subjects:
    """Choose frames of the user's to audit on: the smallest first, of all elements, spread over the set.

    Symmetric molecules that are none of the user's frames show what an engine's graph has lost, and nothing about the
    student, which need not know them: they are `foreign`.

    Args:
        domain: the user's structures; frames are named by their number in it.
        student: evaluates with the student in float64.
        single: evaluates with the student in float32.

    Raises:
        DatasetError: on no frame can the student be judged once it is perturbed, or none has two atoms.
    """
    largest = max((float(np.abs(result["forces"]).max(initial=0.0)) for result in domain.wanted), default=0.0)
    largest_force = max(LARGEST_FORCE, FORCE_MARGIN * largest)
    why, left_out = _why(student, single, largest_force), list[LeftOut]()
    molecules: list[Atoms] = []
    shaken: list[Atoms] = []
    crystals: list[Atoms] = []
    for index in chosen_frames(domain.structures):
        rng = np.random.default_rng(index)
        atoms = _bare(domain.structures[index], index)
        periodic = bool(atoms.pbc.any())
        if periodic:
            name = atoms.info["name"]
            atoms = lowered(atoms, rng)
            atoms.info["name"] = name
        shift = rng.normal(0, SIGMA, atoms.positions.shape)
        found, reason = _perturbed(atoms, shift, len(molecules) + len(crystals), why)
        if found is None:
            left_out.append(LeftOut(index, atoms.info["name"], reason))
        elif periodic:
            crystals.append(found)
        else:
            molecules.append(atoms)
            shaken.append(found)
    if not (molecules or crystals):
        reasons = "; ".join(summary(left_out)) or "no structure has two atoms"
        raise DatasetError(
            f"There is no structure of {domain.name} to audit the student on: {reasons}. "
            "Give structures like those that the student was trained on, or leave the audit out with --no-audit."
        )
    common = Counter(int(z) for atoms in domain.structures for z in atoms.numbers)
    formulas = {atoms.get_chemical_formula() for atoms in domain.structures if not atoms.pbc.any()}
    symmetric = [atoms for atoms in symmetric_molecules(common.keys()) if not _why_not_symmetric(atoms, why)]
    symmetric = symmetric[:MOST_SYMMETRIC]
    return Subjects(
        molecules=tuple(molecules),
        shaken=tuple(shaken),
        crystals=tuple(crystals),
        symmetric=tuple(symmetric),
        elements=tuple(z for z, _ in common.most_common(MOST_ELEMENTS)),
        foreign=frozenset(a.info["name"] for a in symmetric if a.get_chemical_formula() not in formulas),
        largest_force=largest_force,
        bonds=_bonds(domain.structures),
        brought=True,
        left_out=tuple(left_out),
    )


def _bonds(structures: Sequence[Atoms]) -> dict[tuple[int, int], tuple[float, float]]:
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for atoms in structures:
        radii = covalent_radii[atoms.numbers]
        pairs = find_pairs(atoms, 2 * BONDED * float(radii.max()))
        first, second, distances = pairs.pairs.first, pairs.pairs.second, pairs.distances
        for pair in np.flatnonzero(distances < BONDED * (radii[first] + radii[second])):
            one, other = sorted((int(atoms.numbers[first[pair]]), int(atoms.numbers[second[pair]])))
            low, high = found.get((one, other), (np.inf, 0.0))
            found[one, other] = min(low, float(distances[pair])), max(high, float(distances[pair]))
    return found


def chosen_frames(structures: Sequence[Atoms]) -> list[int]:
    """Indices of a few molecules, and then of a few periodic structures, each kind with the smallest first.

    Args:
        structures: of the user's.
    """
    molecules = [i for i, atoms in enumerate(structures) if not atoms.pbc.any() and len(atoms) > 1]
    crystals = [i for i, atoms in enumerate(structures) if atoms.pbc.any()]
    return [*_spread(structures, molecules, MOST_MOLECULES), *_spread(structures, crystals, MOST_CRYSTALS)]


def _spread(structures: Sequence[Atoms], indices: Sequence[int], count: int) -> list[int]:
    """Frames of small compositions that hold all elements, and several frames of one where there are few."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(structures[index].get_chemical_formula(), []).append(index)
    waiting = sorted(groups, key=lambda formula: (len(structures[groups[formula][0]]), formula))
    chosen: list[str] = []
    seen: set[int] = set()
    while waiting and len(chosen) < count:
        elements = {formula: set(structures[groups[formula][0]].numbers.tolist()) for formula in waiting}
        chosen.append(next((formula for formula in waiting if elements[formula] - seen), waiting[0]))
        seen |= elements[chosen[-1]]
        waiting.remove(chosen[-1])
    frames: list[int] = []
    for rank, formula in enumerate(chosen):
        share = count // len(chosen) + (rank < count % len(chosen))
        members = groups[formula]
        frames += sorted({members[int(i)] for i in np.linspace(0, len(members) - 1, share)})
    frames.sort(key=lambda index: len(structures[index]))
    sizes = np.cumsum([len(structures[index]) for index in frames])
    return [index for rank, index in enumerate(frames) if rank == 0 or sizes[rank] <= MOST_ATOMS]


def _bare(atoms: Atoms, number: int) -> Atoms:
    """A frame with nothing but what an energy depends on, and a name that no other frame has."""
    made = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    made.info["name"] = f"{describe(atoms)}, frame {number}"
    return made


def _why(student: Evaluate, single: Evaluate, largest_force: float) -> Why:
    def why(structures: Sequence[Atoms]) -> str:
        return next(filter(None, why_not(student, single, structures, largest_force)), "")

    return why


def _perturbed(atoms: Atoms, shift: np.ndarray, seed: int, why: Why) -> tuple[Atoms | None, str]:
    """A structure perturbed as far as the student stays sound around it, or None and the reason."""
    reason = why([atoms])
    for share in GENTLER if not reason else ():
        moved = atoms.copy()
        moved.positions += share * shift
        moved.info |= {"seed": seed, "sigma": share * SIGMA}
        reason = why(probes(moved))
        if not reason:
            return moved, ""
    return None, reason


def _why_not_symmetric(atoms: Atoms, why: Why) -> str:
    """Perturbed copies decide: at perfect symmetry itself float32 resolves no cusp, which is what is looked for."""
    reason = ""
    for share in GENTLER:
        reason = why(copies(atoms, 0, share * SIGMA))
        if not reason:
            break
    return reason
