"""The subjects of a physics audit: an engine, its student in two precisions, and a few structures of their elements."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import covalent_radii

from painn_deploy.calibration.accuracy.domain import unsound
from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.calibration.accuracy.left_out import LeftOut
from painn_deploy.calibration.physics.resolution import ROUNDOFFS, Evaluate, Figures, Resolution
from painn_deploy.calibration.physics.verdicts import Case, largest
from painn_deploy.calibration.structures import LARGEST_FORCE, default_structures
from painn_deploy.calibration.validation_set import molecules_of
from painn_deploy.export.errors import StructureError
from painn_deploy.export.manifest_values import EXACT

__all__ = [
    "MOST_ELEMENTS",
    "MOST_SYMMETRIC",
    "Audited",
    "Subjects",
    "Triple",
    "affordable",
    "choose_subjects",
    "lowered",
    "symmetric_molecules",
    "why_not",
    "work",
]

MOLECULES = ("H2O", "NH3", "CH3CH2OH", "C6H6")
SYMMETRIC = ("CO2", "CH4", "C2H2", "CF4", "SiH4", "CS2", "BF3", "N2", "H2")
"""Molecules in which symmetry makes every vector on some atom vanish."""

MOST_SYMMETRIC = 4

MOST_ELEMENTS, UNVERIFIED_ELEMENTS = 6, 4
"""How many elements are tried at the cutoff: of a student that lists its elements, and of one that does not."""

COARSENESS_MARGIN = 3.0
"""An engine in a lower precision may be so many times its measured coarseness off: a figure is one draw of rounding."""

MOST_ATOMS = 1500
"""Atoms in all variants of one structure that one property tries; more than fifty benzenes."""

CROWDED = 4
"""An atom of a crystal counts as so many."""

Triple = Sequence[Any]
"""Results or numbers of the engine, of the student in float64 and of the student in float32."""

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
        ideal: the crystals before they were perturbed, where they were.
        foreign: names of those symmetric molecules that are none of the user's; the student is not judged on them.
        largest_force: eV/Å, of a component: a path ends where the student's forces are beyond it.
        bonds: Å, shortest and longest bond of each two elements in the user's structures, by ascending atomic numbers.
        brought: whether they are the user's structures. Where dynamics leave for large forces is then a finding.
        left_out: structures on which the student cannot be judged.
    """

    molecules: tuple[Atoms, ...]
    shaken: tuple[Atoms, ...]
    crystals: tuple[Atoms, ...]
    symmetric: tuple[Atoms, ...]
    elements: tuple[int, ...]
    ideal: tuple[Atoms, ...] = ()
    foreign: frozenset[str] = frozenset()
    largest_force: float = LARGEST_FORCE
    bonds: Mapping[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    brought: bool = False
    left_out: tuple[LeftOut, ...] = ()

    @property
    def perturbed(self) -> tuple[Atoms, ...]:
        """All that are perturbed: molecules, then crystals."""
        return self.shaken + self.crystals


@dataclass(frozen=True)
class Audited:
    """An engine that is audited, and all that its properties are measured with.

    Attributes:
        engine: evaluates structures with the engine.
        student: evaluates them with the student in float64.
        single: evaluates them with the student in PyTorch and float32.
        cutoff: Å.
        precision: of the engine, `fp64`, `fp32`, `tf32`, `fp16` or `int8`.
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
        """The worst resolution on the perturbed molecules, or on the crystals where there is no molecule."""
        return self.resolution.worst([a.info["name"] for a in self.subjects.shaken or self.subjects.crystals])

    @property
    def coarseness(self) -> float:
        """How many times the student's own error in float32 this engine may add, at any one geometry."""
        if self.precision in EXACT:
            return ROUNDOFFS[self.precision]
        return min(ROUNDOFFS[self.precision], COARSENESS_MARGIN * max(1.0, self.resolution.coarseness()))

    def evaluated(self, structures: Sequence[Atoms]) -> Triple:
        """Results of structures by the engine, by the student in float64 and by the student in float32."""
        return self.engine(structures), self.student(structures), self.single(structures)

    def excused(self, allowance: float, own: float, most: float) -> float:
        """An allowance that was measured around the equilibrium, or what float32 costs at the very geometry if more.

        Args:
            allowance: as measured elsewhere.
            own: what the student's own float32 adds at the structures that are compared, in the same unit.
            most: the most that this may excuse: the errors that the user accepts.
        """
        here = min(most, self.coarseness * own)
        return max(allowance, here) if np.isfinite(here) else allowance

    def case(
        self,
        subject: str,
        numbers: Triple,
        allowance: float,
        most: float,
        size: Callable[[np.ndarray], float] = largest,
    ) -> Case:
        """Make a case, excused by what float32 costs the student itself at the same geometries.

        Args:
            subject: name of the structure, pair or path.
            numbers: that are zero where the property holds, of engine, student and float32; eV, eV/Å or eV/Å³.
            allowance: as measured around the equilibrium.
            most: the most that float32's own figure may excuse.
            size: one number for an array of them.
        """
        engine, student, single = (np.atleast_1d(np.asarray(each, float)) for each in numbers)
        return Case.of(subject, student, engine, self.excused(allowance, size(single - student), most), size)

    def sound(self, structures: Sequence[Atoms]) -> list[bool]:
        """Whether the student can be judged on each structure: its forces are sane, and float32 resolves them."""
        return [not reason for reason in why_not(self.student, self.single, structures, self.subjects.largest_force)]


def why_not(student: Evaluate, single: Evaluate, structures: Sequence[Atoms], largest_force: float) -> list[str]:
    """Why a student cannot be judged on each structure; empty where it can, see `unsound`.

    Args:
        student: evaluates with the student in float64.
        single: evaluates with the student in float32.
        structures: to look at.
        largest_force: eV/Å, of a component.
    """
    try:
        pairs = list(zip(student(structures), single(structures), strict=True))
    except StructureError:  # a relaxation or a path may end where atoms meet
        if len(structures) == 1:
            return ["two of its atoms are on one spot there"]
        return [why_not(student, single, [one], largest_force)[0] for one in structures]
    return [unsound(wanted, blurred, largest_force=largest_force) for wanted, blurred in pairs]


def affordable(count: int, atoms: Atoms, least: int = 4) -> int:
    """How many variants of a structure are tried: `count` of a small one, and fewer of hundreds of atoms.

    Args:
        count: at most.
        atoms: the structure.
        least: at least, whatever its size.
    """
    return min(count, max(least, MOST_ATOMS // work(atoms)))


def work(atoms: Atoms) -> int:
    """What an evaluation costs, in atoms of a small molecule: those of a crystal have more neighbours."""
    return len(atoms) * (CROWDED if atoms.pbc.any() else 1)


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
    others, calm = default_structures(species), default_structures(species, sigma=0.0)
    molecules = molecules_of(MOLECULES, species, len(MOLECULES)) or [_trimer(ranked)]
    shaken = []
    for atoms in molecules:
        moved = atoms.copy()
        moved.positions += rng.normal(0, 0.1, atoms.positions.shape)
        shaken.append(moved)
    pairs = [(lowered(a, rng), b) for a, b in zip(others, calm, strict=True) if periodic and a.pbc.all()]
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))[:3]
    crystals = [a for a, _ in pairs]
    # one that was repeated has no ideal of as many atoms: it is its own
    ideal = [b if len(a) == len(b) else a for a, b in pairs]
    symmetric = symmetric_molecules(known)[:MOST_SYMMETRIC]
    return Subjects(
        molecules=tuple(molecules),
        shaken=tuple(shaken),
        crystals=tuple(crystals),
        symmetric=tuple(symmetric),
        elements=tuple(sorted(elements)),
        ideal=tuple(ideal),
    )


def symmetric_molecules(known: AbstractSet[int]) -> list[Atoms]:
    """Perfectly symmetric molecules of known elements, by atomic number."""
    found = [molecule(name) for name in SYMMETRIC if set(molecule(name).numbers.tolist()) <= known]
    for atoms in found:
        atoms.set_initial_magnetic_moments(None)
        atoms.info["name"] = str(atoms.symbols)
    return found


def _trimer(species: Sequence[int]) -> Atoms:
    """A bent molecule of the first and the last element, with bonds as long as the sum of covalent radii."""
    numbers = [species[0], species[-1], species[-1]]
    bonds = covalent_radii[numbers[0]] + covalent_radii[numbers[1:]]
    made = Atoms(numbers, [[0, 0, 0], [bonds[0], 0, 0], [-0.3 * bonds[1], 0.95 * bonds[1], 0]])
    made.info["name"] = str(made.symbols)
    return made


def lowered(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A crystal of one atom, which stays symmetric however it is shaken, as a perturbed cell of some atoms.

    Args:
        atoms: a crystal; it is returned as it is if it has more than one atom.
        rng: of the perturbation.
    """
    if len(atoms) > 1:
        return atoms
    times = (2, 2, 1) if atoms.pbc.all() else [2 if axis else 1 for axis in atoms.pbc]
    larger = atoms.repeat(times)
    larger.positions += rng.normal(0, 0.1, larger.positions.shape)
    larger.info["name"] = f"{larger.symbols[0]}, {len(larger)} atoms"
    return larger
