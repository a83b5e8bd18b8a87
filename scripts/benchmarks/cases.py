"""What is computed: structures by name, as every benchmark here takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule

from painn_deploy.calibration.structures import aspirin, box_of
from painn_deploy.export.errors import DatasetError
from painn_deploy.scripts.distillation.molecules import embedded
from painn_deploy.scripts.distillation.plan import MOLECULES, read_molecules

__all__ = [
    "DRUGS",
    "ETHANOL",
    "Case",
    "alkane",
    "box_of_methane",
    "box_of_water",
    "copies",
    "druglike",
    "extremes",
    "growing_water",
    "known",
    "sizes",
]

ETHANOL = "CH3CH2OH"
CLOSE, FAR = 0.7, 50.0
"""Å."""

WATERS, DENSITY = 4, 0.997
"""Along each side of the box; and g/cm³, of liquid water at 298 K."""

WATER_REPEATS = ((1, 1, 1), (2, 2, 2), (3, 3, 3), (3, 3, 6))
"""Boxes of 64 waters along each axis of the largest structures: 192 to 10,368 atoms."""

DRUGS = (
    *("aspirin", "caffeine", "ibuprofen", "paracetamol", "lidocaine", "nicotine", "naproxen", "melatonin"),
    *("salbutamol", "phenobarbital", "carbamazepine", "diphenhydramine", "trimethoprim", "thalidomide"),
    *("methylphenidate", "metronidazole"),
)
"""Of molecules.smi: 20 to 40 atoms."""


@dataclass(frozen=True)
class Case:
    """Structures that are computed together.

    Attributes:
        name: what tables call it.
        given: the structures, which nobody changes.
    """

    name: str
    given: tuple[Atoms, ...]

    @classmethod
    def of(cls, name: str, *given: Atoms) -> "Case":
        """A case of a few structures.

        Args:
            name: of the case.
            given: its structures.
        """
        return cls(name, given)

    @property
    def atoms(self) -> int:
        """How many, over all structures."""
        return sum(map(len, self.given))

    def structures(self) -> list[Atoms]:
        """Copies, which may be changed."""
        return [atoms.copy() for atoms in self.given]


def known(cases: Sequence[Case], species: Sequence[int]) -> list[Case]:
    """Those cases whose elements a student knows.

    Args:
        cases: to choose from.
        species: atomic numbers.
    """
    return [case for case in cases if {int(z) for atoms in case.given for z in atoms.numbers} <= set(species)]


def copies(atoms: Atoms, counts: Sequence[int]) -> list[Case]:
    """Batches of copies of a structure.

    Args:
        atoms: the structure.
        counts: of copies, for each batch.
    """
    return [Case(f"{count} x {atoms.symbols}", (atoms,) * count) for count in counts]


def sizes(species: Sequence[int], *, quick: bool) -> list[Case]:
    """Molecules, a liquid and a crystal, as large as PyTorch has memory for, which keeps every edge.

    Args:
        species: atomic numbers that the student knows.
        quick: molecules alone.
    """
    names = {"water": "H2O", "ethanol": ETHANOL, "benzene": "C6H6"}
    found = [*(Case.of(name, molecule(formula)) for name, formula in names.items()), Case.of("aspirin", aspirin())]
    if not quick:
        liquid = box_of_water()
        found += [
            Case.of("64 waters", liquid),
            Case.of("diamond, 216 atoms", bulk("C", "diamond", a=3.57, cubic=True).repeat(3)),
            Case.of("512 waters", liquid * (2, 2, 2)),
        ]
    return known(found, species)


def growing_water() -> list[Case]:
    """Water from 192 to 10,368 atoms."""
    return [Case.of(f"{64 * int(np.prod(n))} waters", box_of_water() * n) for n in WATER_REPEATS]


def extremes(species: Sequence[int], *, quick: bool) -> list[Case]:
    """What a force head could get wrong, and then molecules by size.

    Args:
        species: atomic numbers that the student knows.
        quick: six of them.
    """
    heavy = 6 if 6 in species else species[-1]
    squeezed = molecule(ETHANOL)
    squeezed.set_distance(2, 3, CLOSE, fix=0)
    found = [
        Case.of("single atom", Atoms([heavy])),
        Case.of(f"two atoms {FAR:g} Å apart", Atoms([heavy] * 2, [[0, 0, 0], [0, 0, FAR]])),
        Case.of(f"two atoms {CLOSE:g} Å apart", Atoms([heavy] * 2, [[0, 0, 0], [0.3, 0.2, (CLOSE**2 - 0.13) ** 0.5]])),
        Case.of(f"ethanol, O-H of {CLOSE:g} Å", squeezed),
        *sizes((1, 6, 8), quick=True),
        *(Case.of(f"alkane C{carbons}", alkane(carbons)) for carbons in (16, 32, 64)),
    ]
    return known(found[:6] if quick else found, species)


def alkane(carbons: int) -> Atoms:
    """All-trans, C-C 1.53 Å and C-H 1.09 Å at tetrahedral angles; ends capped with hydrogen along the chain."""
    bond, hydrogen, half = 1.53, 1.09, np.arccos(-1 / 3) / 2
    step, height = bond * np.sin(half), bond * np.cos(half)
    symbols, positions = [], []
    for index in range(carbons):
        side = 1 if index % 2 else -1
        carbon = np.array([index * step, side * height / 2, 0.0])
        outwards = np.array([0.0, side * np.cos(half), np.sin(half)])
        symbols += ["C", "H", "H"]
        positions += [carbon, carbon + hydrogen * outwards, carbon + hydrogen * outwards * [1, 1, -1]]
        if index in (0, carbons - 1):
            along = np.array([-1.0 if index == 0 else 1.0, -side * height / step, 0.0])
            symbols.append("H")
            positions.append(carbon + hydrogen * along / np.linalg.norm(along))
    return Atoms(symbols, positions)


def box_of_water(seed: int = 0) -> Atoms:
    """64 waters, oxygens on a cubic grid, turned at random, as dense as the liquid."""
    mass = molecule("H2O").get_masses().sum() / units.kg
    spacing = (mass / (DENSITY * 1e3)) ** (1 / 3) * 1e10  # Å
    return box_of("H2O", WATERS, spacing, np.random.default_rng(seed), on_first=True)


def box_of_methane() -> Atoms:
    """64 methanes at the density of the liquid."""
    return box_of("CH4", 4, 4.0, np.random.default_rng(0))


def druglike(count: int, species: Sequence[int]) -> list[Atoms]:
    """The first of `DRUGS`, as conformers that RDKit makes; the same ones every time.

    Args:
        count: how many.
        species: atomic numbers that the student knows.

    Returns:
        Structures; `info["name"]` names each.

    Raises:
        DatasetError: the student does not know one's elements, or one is not in the list of molecules.
    """
    smiles = read_molecules(MOLECULES)
    found = []
    for name in DRUGS[:count]:
        if name not in smiles:
            raise DatasetError(f"molecules.smi has no {name}; take it out of DRUGS, or put it back.")
        (atoms,) = embedded(smiles[name], 1, seed=1).conformers
        if unknown := set(atoms.symbols[[z not in species for z in atoms.numbers]]):
            raise DatasetError(f"{name} has {' '.join(sorted(unknown))}, which this student does not know.")
        atoms.info["name"] = name
        found.append(atoms)
    return found
