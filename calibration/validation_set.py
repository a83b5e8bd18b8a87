"""The structures that `validate` measures on if the user brings none, in named groups.

Small errors on sixty molecules would hide a large one on a crystal, so every group is judged by itself.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.collections import g2
from ase.data import chemical_symbols, reference_states

from painn_deploy.calibration.structures import (
    box_of,
    default_structures,
    read_known,
    trusted_species,
)
from painn_deploy.export.model.student import Student

__all__ = ["GROUPS", "choose_validation_set", "group_of", "molecules_of", "validation_set"]

GROUPS = ("molecules", "crystals", "liquid", "distorted")

VALIDATION_NAME = "default validation set (molecules, crystals, a liquid, distorted geometries; seed 0)"

DISTORTED = ("H2O", "NH3", "CH4", "CO2", "CH3OH", "CH3CH2OH", "C2H4", "C6H6", "HCN", "H2CO", "N2", "O2")
"""Molecules that are compressed, stretched and shaken; others replace those whose elements a student does not know."""

SCALES = (0.94, 1.08)
"""Factors of all distances in a distorted molecule: bonds are 6 % too short, or 8 % too long."""

STRONG_SIGMA = 0.2
"""Å, standard deviation of each coordinate's perturbation in a shaken molecule."""

LIQUIDS = (("H2O", 3.1), ("NH3", 3.5), ("CH4", 4.0), ("CO2", 4.1), ("N2", 3.9), ("HCl", 4.0), ("SiH4", 4.6))
"""Molecules of small boxes, and their spacing in Å, which gives about the density of the liquid."""


def validation_set(species: Sequence[int], *, seed: int = 0) -> list[Atoms]:
    """Make structures of the elements that a student knows; `info` holds the `name` and the `group` of each.

    Args:
        species: atomic numbers that the student knows.
        seed: of the perturbations.
    """
    known, rng = set(species), np.random.default_rng(seed)
    structures = default_structures(species, seed=seed)
    for atoms in structures:
        atoms.info["group"] = "crystals" if atoms.pbc.any() else "molecules"
    return [*structures, *_liquid(known, rng), *_distorted(known, rng)]


def choose_validation_set(given: Path | None, student: Student) -> tuple[list[Atoms], str]:
    """The user's structures, or the default set if there are none.

    Args:
        given: a file of any format that ASE reads, or None.
        student: whose elements they are of.

    Returns:
        The structures, and a name for the set.

    Raises:
        DatasetError: the file cannot be read, or a structure holds an element that the student does not know.
    """
    if given is None:
        return validation_set(trusted_species(student)), VALIDATION_NAME
    return read_known(given, student), given.name


def group_of(atoms: Atoms) -> str:
    """The group in a structure's `info`; without one, `crystals` if it is periodic in any direction, or `molecules`."""
    return str(atoms.info.get("group", "crystals" if atoms.pbc.any() else "molecules"))


def molecules_of(names: Sequence[str], species: Sequence[int], count: int) -> list[Atoms]:
    """Choose molecules of known elements from ASE's G2 set: those that are named, then the smallest others.

    Args:
        names: of the preferred molecules, in this order.
        species: atomic numbers that the student knows.
        count: how many at most.

    Returns:
        Fewer than `count`, or none, if the set has no more of these elements; `info["name"]` names each.
    """
    known = set(species)
    others = sorted((name for name in g2.names if name not in names), key=lambda name: len(molecule(name)))
    found = []
    for name in (*names, *others):
        atoms = molecule(name)
        if len(atoms) > 1 and set(atoms.numbers.tolist()) <= known:
            atoms.set_initial_magnetic_moments(None)
            atoms.info["name"] = name
            found.append(atoms)
        if len(found) == count:
            break
    return found


def _distorted(known: set[int], rng: np.random.Generator) -> list[Atoms]:
    structures = []
    for original in molecules_of(DISTORTED, sorted(known), len(DISTORTED)):
        name = original.info["name"]
        for scale in SCALES:
            atoms = original.copy()
            atoms.positions = scale * atoms.positions + rng.normal(0, 0.05, atoms.positions.shape)
            atoms.info["name"] = f"{name}, distances x {scale:g}"
            structures.append(atoms)
        atoms = original.copy()
        atoms.positions += rng.normal(0, STRONG_SIGMA, atoms.positions.shape)
        atoms.info["name"] = f"{name}, shaken by {STRONG_SIGMA:g} Å"
        structures.append(atoms)
    for atoms in structures:
        atoms.info["group"] = "distorted"
    return structures


def _liquid(known: set[int], rng: np.random.Generator) -> list[Atoms]:
    """A small periodic box of molecules, each turned its own way, or else a strongly shaken metal crystal."""
    for name, spacing in LIQUIDS:
        if set(molecule(name).numbers.tolist()) <= known:
            box = box_of(name, 3, spacing, rng)
            box.positions += rng.normal(0, 0.1, box.positions.shape)
            box.info["name"] = f"liquid {name}, 27 molecules"
            break
    else:
        cubic = [z for z in sorted(known) if (reference_states[z] or {}).get("symmetry") in ("fcc", "bcc")]
        if not cubic:
            return []
        symbol = chemical_symbols[cubic[0]]
        box = bulk(symbol, cubic=True).repeat(2)
        nearest = float(np.sort(box.get_all_distances(mic=True)[0])[1])
        box.positions += rng.normal(0, 0.12 * nearest, box.positions.shape)
        box.info["name"] = f"molten {symbol}, {len(box)} atoms"
    box.info["group"] = "liquid"
    return [box]
