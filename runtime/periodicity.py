"""Crystals that arrive without their periodic directions: a cell that is there, and does not repeat.

Some file formats and programs lose `pbc` and keep the cell, others write a cell that readers of the format do not
know. Such a crystal is then computed as a molecule in vacuum, whose energy and forces look like any other's. So it is
warned of, by `PeriodicityWarning` or in a program's own words.
"""

import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from ase import Atoms

from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.structures import check_structure, periodic_cell

__all__ = [
    "REMEDY",
    "NearestImage",
    "PeriodicityWarning",
    "Watch",
    "foreign_cell",
    "lacking",
    "noted_cell",
    "unrepeated",
    "warn_of",
    "warned_already",
]

SHORTEST = 0.5
"""Å; no atom of a crystal is closer than this to an image, so that a cell which brings one closer stands for nothing,
as the unit cell that some programs write for a molecule does."""

NARROWEST = 1.2
"""Å, of a cell vector; shorter ones stand for nothing either, and no chain of atoms repeats in less."""

DENSEST = 0.5
"""Atoms in 1 Å³ above which the same holds; diamond has 0.18."""

REMEMBERED = 10_000
"""Structures that a watch knows, so that one that comes again is not searched again."""

REMEDY = (
    'If it is a crystal, set atoms.pbc = True (pbc="T T T" in extended XYZ), and its cell; if it is a molecule, take '
    "the cell away: atoms.cell = None."
)

IPI_MARK = "#"
"""Entry of `info` that ASE makes of the first character in the comments of i-PI's trajectories."""

_NO_CELL = bytes(72)
_IPI = re.compile(r"\b(CELL\s*[(\[{]\s*(?:abcABC|H|GENH)\s*[)\]}])", re.IGNORECASE)
_READ = re.compile(r"""(?:^|\s)["']?Lattice["']?\s*=""")
"""As extended XYZ has it: an item of its own."""

_NUMBER = r"[-+]?\.?\d[-+.\deEdD]*"
_SWALLOWED = re.compile(rf"""Lattice=["'{{\[]*+\s*+{_NUMBER}(?:[\s,]+{_NUMBER}){{8}}""")
_LATTICE = re.compile(
    r"""(?:^|\s)(lattice)\s*=\s*+["'{\[]*+\s*+[-+.\d]"""
    rf"""|(?<![a-z_])(lattice)["']?\s*[=:]\s*+["'{{(\[]*+\s*+{_NUMBER}(?:[\s,]+{_NUMBER}){{2}}""",
    re.IGNORECASE,
)
"""Another way: a number after it, or three where it stands amid something else."""


class PeriodicityWarning(UserWarning):
    """A structure has a cell that would bring images of atoms within the cutoff, and repeats in no direction."""


class NearestImage(NamedTuple):
    """The image of an atom that a cell would bring nearest to another atom, if it repeated.

    Attributes:
        atom: index of the one.
        other: index of the atom whose image it is, which may be the same.
        distance: between them, Å.
    """

    atom: int
    other: int
    distance: float

    def names(self, atoms: Atoms) -> tuple[str, str]:
        """Both atoms as a message names them, by index and element."""
        one, other = (f"atom {place} ({atoms.symbols[place]})" for place in (self.atom, self.other))
        return one, other

    def described(self, atoms: Atoms) -> str:
        """The image in words."""
        one, other = self.names(atoms)
        whose = "itself" if self.atom == self.other else other
        return f"{one} would be {self.distance:.2f} Å from an image of {whose}"


def unrepeated(atoms: Atoms, cutoff: float) -> NearestImage | None:
    """The nearest image that a cell would bring within the cutoff, of a structure without any periodic direction.

    A molecule in a box of its own has none where the box leaves the cutoff free around it, and then nothing is
    searched. A cell vector of zeros is none: a sheet whose cell has two vectors is looked at in two directions.

    Args:
        atoms: a structure that `check_structure` let pass.
        cutoff: Å.

    Returns:
        None where a direction is periodic, where there is no cell of independent vectors, where no image comes within
        the cutoff, and where images would lie on atoms: such a cell is no crystal's.
    """
    cell = atoms.cell.array
    if not cell.any() or atoms.pbc.any():
        return None
    given = cell.any(axis=1)
    lengths = np.linalg.norm(cell[given], axis=1)
    if lengths.min() < NARROWEST or (given.all() and len(atoms) > DENSEST * abs(float(np.linalg.det(cell)))):
        return None
    try:
        repeated = check_structure(Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=given))
        if _leaves_free(repeated, cutoff):
            return None
        found = find_pairs(repeated, cutoff)
    except (StructureError, MemoryError):  # dependent vectors; images on one spot, or by the billion
        return None
    shifts = found.pairs.shifts
    if shifts is None or not (images := shifts.any(axis=1)).any():
        return None
    nearest = int(np.where(images, found.distances, np.inf).argmin())
    if found.distances[nearest] < SHORTEST:
        return None
    first, second = int(found.pairs.first[nearest]), int(found.pairs.second[nearest])
    return NearestImage(first, second, float(found.distances[nearest]))


def lacking(structures: Iterable[Atoms], cutoff: float) -> list[tuple[int, str]]:
    """Those of some structures that lack their periodic directions, as `unrepeated` finds them.

    Args:
        structures: any; one that no force field can answer for lacks nothing here.
        cutoff: Å.

    Returns:
        Index of each, and its nearest image in words.
    """
    found = []
    for index, atoms in enumerate(structures):
        try:
            sound = check_structure(atoms)
        except StructureError:
            continue
        if (image := unrepeated(sound, cutoff)) is not None:
            found.append((index, image.described(sound)))
    return found


def foreign_cell(comment: str) -> str:
    """The cell that a comment line of an XYZ file names otherwise than extended XYZ does; empty where there is none.

    Args:
        comment: the second line of a frame.
    """
    if _READ.search(comment):
        return ""
    if _SWALLOWED.search(comment):
        return "Lattice"
    found = _IPI.search(comment) or _LATTICE.search(comment)
    return str(found[found.lastindex or 0]) if found else ""


def noted_cell(atoms: Atoms) -> str:
    """The same of a structure without a cell that ASE read: what it does not understand of a comment is in `info`."""
    if not atoms.info or atoms.cell.array.any():
        return ""
    if any(isinstance(value, str) and _SWALLOWED.search(value) for value in atoms.info.values()):
        return "Lattice"  # taken for the value of the item before it, or for its end
    items = [(str(name), value) for name, value in atoms.info.items()]
    return foreign_cell(" ".join(f"{name}={value if name.lower() == 'lattice' else ''}" for name, value in items))


def warn_of(message: str) -> None:
    """Warn at the line of whoever called into this package or, through ASE, its calculator.

    Args:
        message: of the `PeriodicityWarning`.
    """
    level, frame = 1, sys._getframe()  # frames as `warnings` itself counts them
    while frame.f_back is not None and _is_ours(str(frame.f_globals.get("__name__"))):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, PeriodicityWarning, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("ase", "painn_deploy")


@contextmanager
def warned_already() -> Iterator[None]:
    """Let the block compute structures that were warned of all at once, without a warning of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeriodicityWarning)
        yield


class Watch:
    """Warns of structures that lack their periodic directions: once for each composition, searching each once.

    Args:
        cutoff: Å.
    """

    def __init__(self, cutoff: float) -> None:
        self._cutoff, self._seen, self._told = cutoff, set[int](), set[int]()
        self._known = False

    @contextmanager
    def known(self) -> Iterator[None]:
        """Look at nothing in the block: somebody has said which directions are periodic, as LAMMPS was told."""
        self._known = True
        try:
            yield
        finally:
            self._known = False

    def look(self, atoms: Atoms) -> None:
        """Look at a structure that `check_structure` let pass; quick for one without a cell, and for one that was seen.

        Warns:
            PeriodicityWarning: see `unrepeated`.
        """
        cell = atoms.cell.array.tobytes()
        if self._known or (cell == _NO_CELL and IPI_MARK not in atoms.info) or atoms.pbc.any():
            return
        numbers = atoms.numbers.tobytes()
        if (key := hash((cell, numbers))) in self._seen or hash(numbers) in self._told:
            return
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen.add(key)
        if words := self._words(atoms):
            self._told.add(hash(numbers))
            warn_of(f"{atoms.get_chemical_formula()} is computed as a molecule in vacuum: {words}. {REMEDY}")

    def _words(self, atoms: Atoms) -> str:
        if named := noted_cell(atoms):
            return f"ASE has not read its cell, which its file gives as {named}"
        for _, image in lacking([atoms], self._cutoff):
            return (
                "no direction is periodic, but its cell would bring images of atoms within the cutoff of "
                f"{self._cutoff:g} Å ({image})"
            )
        return ""


def _leaves_free(atoms: Atoms, cutoff: float) -> bool:
    """Whether images are further away than the cutoff by the extents of the structure across the cell alone."""
    normals = np.linalg.inv(periodic_cell(atoms))  # columns; each is across two vectors, in units of the third's height
    heights = 1 / np.linalg.norm(normals, axis=0)
    extents = np.ptp(atoms.positions @ normals, axis=0) * heights
    return bool((heights - extents >= cutoff)[atoms.pbc].all())
