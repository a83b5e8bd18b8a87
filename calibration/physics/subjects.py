"""The subjects of a physics audit: an engine, its student in two precisions, and a few structures of their elements."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import covalent_radii

from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.calibration.physics.resolution import Evaluate, Figures, Resolution
from painn_deploy.calibration.structures import default_structures
from painn_deploy.calibration.validation_set import molecules_of

__all__ = ["Audited", "Subjects", "choose_subjects"]

MOLECULES = ("H2O", "NH3", "CH3CH2OH", "C6H6")
SYMMETRIC = ("CO2", "CH4", "C2H2", "CF4", "SiH4", "CS2", "BF3", "N2", "H2")
"""Molecules in which symmetry makes every vector on some atom vanish."""

MOST_ELEMENTS, UNVERIFIED_ELEMENTS = 6, 4
"""How many elements are tried at the cutoff: of a student that lists its elements, and of one that does not."""

COMMON = (1, 6, 7, 8, 9, 16, 17, 15, 14)


@dataclass(frozen=True)
class Subjects:
    """Structures to audit on; `info["name"]` names each.

    Attributes:
        molecules: at their equilibrium; a bent trimer if no known molecule has these elements.
        shaken: the same molecules, perturbed by 0.1 Å.
        crystals: small and periodic, perturbed by 0.1 Å.
        symmetric: perfectly symmetric molecules.
        elements: atomic numbers whose pairs are tried at the cutoff.
    """

    molecules: tuple[Atoms, ...]
    shaken: tuple[Atoms, ...]
    crystals: tuple[Atoms, ...]
    symmetric: tuple[Atoms, ...]
    elements: tuple[int, ...]


@dataclass(frozen=True)
class Audited:
    """An engine that is audited, and all that its properties are measured with.

    Attributes:
        engine: evaluates structures with the engine.
        student: evaluates them with the student in float64.
        single: evaluates them with the student in PyTorch and float32.
        cutoff: Å.
        precision: of the engine, `fp32`, `fp16` or `int8`.
        limits: errors that the user accepts.
        subjects: the structures.
        resolution: of the engine's precision.
    """

    engine: Evaluate
    student: Evaluate
    single: Evaluate
    cutoff: float
    precision: str
    limits: Tolerances
    subjects: Subjects
    resolution: Resolution

    @property
    def typical(self) -> Figures:
        """The worst resolution on the perturbed molecules."""
        return self.resolution.worst([atoms.info["name"] for atoms in self.subjects.shaken])


def choose_subjects(species: Sequence[int], *, verified: bool = True, periodic: bool = True) -> Subjects:
    """Choose structures of the elements that a student knows.

    Args:
        species: atomic numbers that the student knows.
        verified: whether the student was trained on all of them; if not, a few common ones stand for them.
        periodic: whether crystals are chosen too.
    """
    ranked = [z for z in COMMON if z in species] + [z for z in sorted(species) if z not in COMMON]
    elements = ranked[: MOST_ELEMENTS if verified else UNVERIFIED_ELEMENTS]
    species = species if verified else elements
    known, rng = set(species), np.random.default_rng(3)
    others = default_structures(species)
    molecules = molecules_of(MOLECULES, species, len(MOLECULES)) or [_trimer(ranked)]
    shaken = []
    for atoms in molecules:
        moved = atoms.copy()
        moved.positions += rng.normal(0, 0.1, atoms.positions.shape)
        shaken.append(moved)
    crystals = sorted((_lowered(a, rng) for a in others if periodic and a.pbc.all()), key=len)[:3]
    symmetric = [molecule(name) for name in SYMMETRIC if set(molecule(name).numbers.tolist()) <= known][:4]
    for atoms in symmetric:
        atoms.set_initial_magnetic_moments(None)
        atoms.info["name"] = str(atoms.symbols)
    return Subjects(tuple(molecules), tuple(shaken), tuple(crystals), tuple(symmetric), tuple(sorted(elements)))


def _trimer(species: Sequence[int]) -> Atoms:
    """A bent molecule of the first and the last element, with bonds as long as the sum of covalent radii."""
    numbers = [species[0], species[-1], species[-1]]
    bonds = covalent_radii[numbers[0]] + covalent_radii[numbers[1:]]
    made = Atoms(numbers, [[0, 0, 0], [bonds[0], 0, 0], [-0.3 * bonds[1], 0.95 * bonds[1], 0]])
    made.info["name"] = str(made.symbols)
    return made


def _lowered(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A crystal of one atom, which stays symmetric however it is shaken, as a perturbed cell of four atoms."""
    if len(atoms) > 1:
        return atoms
    larger = atoms.repeat((2, 2, 1))
    larger.positions += rng.normal(0, 0.1, larger.positions.shape)
    larger.info["name"] = f"{larger.symbols[0]}, 4 atoms"
    return larger
