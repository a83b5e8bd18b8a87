"""Structures to export and validate on when the user brings none: named, seeded, and perturbed.

Molecules are ASE's G2 set and crystals its prototypes. Symmetric geometries hide errors (and are where a student may
have a cusp), so every structure is perturbed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.collections import g2, s22
from ase.data import chemical_symbols, covalent_radii, reference_states

from painn_deploy.export.errors import DatasetError
from painn_deploy.export.reading import AbsentError, check_regular
from painn_deploy.runtime.periodicity import REMEDY, lacking, noted_cell, warn_of

if TYPE_CHECKING:
    from painn_deploy.export.model.student import Student

__all__ = [
    "CALIBRATION_NAME",
    "DEFAULT_NAME",
    "LARGEST_FORCE",
    "aspirin",
    "box_of",
    "calibration_structures",
    "check_species",
    "default_structures",
    "read_known",
    "read_structures",
    "seed_structures",
    "trusted_species",
    "warn_of_lacking",
    "within_reach",
]

DEFAULT_NAME = "default set (ASE G2 molecules and crystals, perturbed by 0.1 Å, seed 0)"

CALIBRATION_NAME = "calibration set (ASE G2 and S22 molecules and boxes, perturbed by 0.05 to 0.15 Å, seed 100)"

SEED_MOLECULES = ("H2", "H2O", "CH4", "NH3", "C2H6", "C6H6", "H2O", "CO2")
"""The eight cases that the seed project validated on; the second water is perturbed."""

MOST_MOLECULES = 60

PERIODIC_COPIES = 4
"""How many copies of each crystal and box at each distortion: they are few, and a search must not overlook them."""

LARGEST_FILE = 2**32
"""Bytes of a file whose structures are all held at once."""

LARGEST_FORCE = 50.0
"""eV/Å, largest force component of a structure that lower precisions are measured on."""

ORGANIC = frozenset({1, 6, 7, 8})

CALIBRATION_SIGMAS = (0.05, 0.1, 0.15)
"""Å; from thermal motion at room temperature to more than any dynamics should see."""


def aspirin() -> Atoms:
    """Aspirin, a drug-like molecule of 21 atoms, at its GFN2-xTB minimum; the demo simulates it."""
    atoms = ase.io.read(Path(__file__).parent / "data" / "aspirin.extxyz")
    if not isinstance(atoms, Atoms):
        raise DatasetError("The packaged aspirin.extxyz holds more than one structure; install painn-deploy again.")
    return atoms


def box_of(name: str, per_side: int, spacing: float, rng: np.random.Generator, *, on_first: bool = False) -> Atoms:
    """Molecules on a cubic grid, each turned its own way, in a periodic box.

    Args:
        name: of a molecule of ASE's G2 set.
        per_side: molecules along each side.
        spacing: Å, of the grid.
        rng: turns them.
        on_first: put the first atom of each molecule on the grid, and not the mean of its atoms.
    """
    box = Atoms(cell=[per_side * spacing] * 3, pbc=True)
    for site in np.ndindex(per_side, per_side, per_side):
        one = molecule(name)
        one.set_initial_magnetic_moments(None)
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        middle = one.positions[0] if on_first else one.positions.mean(0)
        one.positions += (np.array(site) + 0.5) * spacing - middle
        box += one
    return box


def default_structures(species: Sequence[int], *, sigma: float = 0.1, seed: int = 0) -> list[Atoms]:
    """Molecules, crystals and a slab of the elements that a student knows; `info["name"]` names each.

    Args:
        species: atomic numbers.
        sigma: Å, standard deviation of the perturbation of each coordinate.
        seed: of the perturbation.
    """
    known = set(species)
    rng = np.random.default_rng(seed)
    structures = [_named(molecule(name), name) for name in g2.names]
    structures = [atoms for atoms in structures if len(atoms) > 1 and set(atoms.numbers.tolist()) <= known]
    structures = structures[:: max(1, -(-len(structures) // MOST_MOLECULES))]
    structures += _periodic(known)
    if not structures:  # elements that no molecule of the set is made of
        structures = [_chain(sorted(known))]
    for atoms in structures:
        atoms.positions += rng.normal(0, sigma, atoms.positions.shape)
    return structures


def trusted_species(student: "Student") -> tuple[int, ...]:
    """Atomic numbers that lower precisions are measured for.

    They are H, C, N and O if the configuration does not list the elements that the student was trained on: an embedding
    has rows for elements that were never trained, and their values would spoil every range.
    """
    if student.configuration.species is None and set(student.species) >= ORGANIC:
        return tuple(sorted(ORGANIC))
    return student.species


def within_reach(forces: Sequence[np.ndarray]) -> list[int]:
    """Indices of structures whose force components are at most `LARGEST_FORCE`.

    With larger forces a student is far from what it learnt, and no range should reach there.

    Args:
        forces: eV/Å [atoms, 3] of each structure.
    """
    return [index for index, each in enumerate(forces) if np.abs(each).max() <= LARGEST_FORCE]


def calibration_structures(species: Sequence[int]) -> list[Atoms]:
    """Structures that INT8 is calibrated on if the user brings none: molecules, complexes and boxes, all distorted.

    Args:
        species: atomic numbers, see `trusted_species`.
    """
    known = set(species)
    names = [(collection, name) for collection in (g2, s22) for name in collection.names]
    chosen = [_named(collection[name], name) for collection, name in names]
    chosen = [atoms for atoms in chosen if len(atoms) > 1 and set(atoms.numbers.tolist()) <= known]
    chosen += _periodic(known) * PERIODIC_COPIES
    rng = np.random.default_rng(100)
    structures = []
    for sigma in CALIBRATION_SIGMAS:
        for atoms in chosen or [_chain(sorted(known))]:
            structures.append(atoms.copy())
            structures[-1].positions += rng.normal(0, sigma, atoms.positions.shape)
    return structures


def seed_structures(species: Sequence[int], *, symmetric: bool) -> list[Atoms]:
    """The seed project's eight cases; elements that a student does not know are replaced by ones that it knows.

    Args:
        species: atomic numbers that the student knows.
        symmetric: whether CH4 and CO2 stay perfectly symmetric; a `distiller` has a cusp there.
    """
    rng = np.random.default_rng(1)
    structures = []
    for index, name in enumerate(SEED_MOLECULES):
        atoms = _named(molecule(name), name)
        if (index == len(SEED_MOLECULES) - 2) or (not symmetric and name in ("CH4", "CO2")):
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
            atoms.info["name"] = f"{name} perturbed"
        atoms.numbers = [_substitute(int(z), sorted(species)) for z in atoms.numbers]
        structures.append(atoms)
    return structures


def _substitute(z: int, species: Sequence[int]) -> int:
    return z if z in species else species[z % len(species)]


def _named(atoms: Atoms, name: str) -> Atoms:
    atoms.info["name"] = name
    atoms.set_initial_magnetic_moments(None)
    return atoms


def _periodic(known: set[int]) -> list[Atoms]:
    """A cell smaller than any cutoff, a supercell, a slab periodic in two directions, and a molecular crystal."""
    structures = []
    if 6 in known:
        structures += [
            _named(bulk("C", "diamond", a=3.57), "diamond, 2 atoms"),
            _named(bulk("C", "diamond", a=3.57, cubic=True), "diamond, 8 atoms"),
            _named(graphene(a=2.46, size=(3, 3, 1), vacuum=None), "graphene"),
        ]
    if {1, 8} <= known:
        structures.append(_named(box_of("H2O", 2, 3.1, np.random.default_rng(7)), "water, 8 molecules"))
    if {6, 8} <= known:
        structures.append(_named(box_of("CO2", 2, 3.9, np.random.default_rng(7)), "carbon dioxide, 8 molecules"))
    metals = [z for z in sorted(known - {1, 6, 7, 8}) if (reference_states[z] or {}).get("symmetry") in ("fcc", "bcc")]
    for z in metals[:4]:
        structures.append(_named(bulk(chemical_symbols[z]), f"{chemical_symbols[z]}, 1 atom"))
    return structures


def _chain(species: Sequence[int]) -> Atoms:
    """Every element once, in a row at bonding distances."""
    radii = covalent_radii[list(species)]
    x = np.concatenate([[0.0], np.cumsum(radii[1:] + radii[:-1])])
    return _named(Atoms(species, np.stack([x, 0 * x, 0 * x], -1)), "chain")


def check_species(structures: Sequence[Atoms], species: Sequence[int], source: str) -> None:
    """Refuse structures of elements that a student does not know, before any of them is computed.

    Args:
        structures: to check.
        species: atomic numbers that the student knows.
        source: of the structures, for the message.

    Raises:
        DatasetError: naming the structure and the elements.
    """
    for index, atoms in enumerate(structures):
        if unknown := sorted({int(z) for z in atoms.numbers} - set(species)):
            names = ", ".join(chemical_symbols[z] if 0 <= z < len(chemical_symbols) else f"Z = {z}" for z in unknown)
            raise DatasetError(
                f"Structure {index} of {source} holds {names}, which the student does not know; leave it out."
            )


def read_structures(path: str | Path) -> list[Atoms]:
    """Read every structure in a file of any format that ASE reads.

    Raises:
        DatasetError: the file is not there, cannot be read, holds nothing, or a cell in a form that ASE does not read,
            as i-PI's.
    """
    try:
        if not Path(path).is_dir():  # some formats are folders
            check_regular(Path(path), LARGEST_FILE)
    except AbsentError:
        pass  # ASE takes more than names of files, and says what it misses
    except (OSError, ValueError) as error:
        raise DatasetError(f"Cannot read structures from {path}: {error}.") from error
    try:
        read = ase.io.read(path, index=":")
    except Exception as error:  # each of ASE's readers raises what it met
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise DatasetError(f"Cannot read structures from {path}: {reason}.") from error
    structures: list[Atoms] = list(read) if isinstance(read, list) else [read]
    if not structures:
        raise DatasetError(f"{path} holds no structures.")
    for index, atoms in enumerate(structures):
        if named := noted_cell(atoms):
            raise DatasetError(
                f"Structure {index} of {path} has a cell that ASE does not read ({named!r} in its comment), and would "
                'be computed as an isolated molecule. Write it as Lattice="..." and pbc="T T T", with lengths in Å.'
            )
    return structures


def read_known(path: str | Path, student: "Student") -> list[Atoms]:
    """Read every structure in a file, all of elements that a student knows.

    Args:
        path: of any format that ASE reads.
        student: whose elements they are of.

    Raises:
        DatasetError: see `read_structures` and `check_species`.

    Warns:
        PeriodicityWarning: see `warn_of_lacking`.
    """
    structures = read_structures(path)
    check_species(structures, student.species, Path(path).name)
    warn_of_lacking(structures, student.configuration.cutoff, Path(path).name)
    return structures


def warn_of_lacking(structures: Sequence[Atoms], cutoff: float, source: str) -> None:
    """Warn once of all structures that look like crystals and have no periodic direction.

    Args:
        structures: to look at.
        cutoff: Å.
        source: of the structures, for the message.

    Warns:
        PeriodicityWarning: counting them, with the first as an example.
    """
    if found := lacking(structures, cutoff):
        (index, image), count = found[0], len(found)
        which = f"{count} of {len(structures)} structures of {source}" if len(structures) > 1 else source
        warn_of(
            f"{which}, computed as in vacuum: no direction is periodic, but the cell would bring images of atoms "
            f"within the cutoff of {cutoff:g} Å (structure {index}: {image}). {REMEDY}"
        )
