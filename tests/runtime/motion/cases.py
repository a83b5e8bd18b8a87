"""Structures that LAMMPS divides among MPI ranks, and what is asked of them: the same on any number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

from tests import students
from tests.runtime.test_lammps import hot

SYMBOLS = ("C", "H", "N", "O")

OUTPUT = """
compute energies all pe/atom
compute virials all stress/atom NULL virial
compute sum all reduce sum c_energies
thermo_style custom step pe etotal press pxx pyy pzz pxy pxz pyz vol c_sum
"""


@dataclass(frozen=True)
class Case:
    """A structure and commands of LAMMPS.

    Attributes:
        make: the structure.
        before: the box is made.
        after: the engine is there; blocks, each followed by a look at the atoms.
        units: of LAMMPS.
        student: that answers, by its name among those of `bundles`.
        skin: Å, LAMMPS's own, and the calculator's.
        boundary: of LAMMPS; the structure's own where none is said.
        most_ranks: that it is tried on.
    """

    make: Callable[[], Atoms]
    before: str = ""
    after: tuple[str, ...] = ("run 0", "fix move all nve\nrun 20")
    units: str = "metal"
    student: str = "painn"
    skin: tuple[float, float | None] = (1.0, None)
    boundary: str = ""
    most_ranks: int = 2


def diamond(*repeats: int) -> Callable[[], Atoms]:
    def make() -> Atoms:
        atoms = bulk("C", "diamond", a=3.57, cubic=True).repeat(repeats)
        atoms.symbols[::3], atoms.symbols[1::5] = "N", "O"
        return hot(students.perturbed(atoms, 3, 0.05), 300)

    return make


def slanted() -> Atoms:
    atoms = diamond(2, 2, 3)()
    cell = atoms.cell.array.copy()
    cell[1, 0], cell[2, 0], cell[2, 1] = 1.9, -1.2, 2.4
    atoms.set_cell(cell, scale_atoms=True)
    atoms.wrap()
    return atoms


def slab() -> Atoms:
    """Atoms in a tenth of the box: most ranks own none."""
    atoms = diamond(2, 2, 1)()
    atoms.set_cell([*np.diag(atoms.cell)[:2], 36.0])
    atoms.pbc = (True, True, False)
    atoms.positions[:, 2] += 0.5
    return atoms


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH", cell=[16.0, 15.0, 14.0])
    atoms.center()
    return hot(atoms, 300)


def gas() -> Atoms:
    """Molecules that cross the borders of ranks within some hundred steps."""
    rng, atoms = np.random.default_rng(5), Atoms(cell=[12.0, 13.0, 14.0], pbc=True)
    for place in np.ndindex(2, 2, 2):
        one = molecule("CH4")
        one.rotate(rng.uniform(0, 180), rng.normal(size=3))
        one.positions += (np.array(place) + 0.5) * [6.0, 6.5, 7.0]
        atoms += one
    return hot(atoms, 2500)


CUBE, ALONG = diamond(3, 2, 2), "processors {} {} {}"

CASES: dict[str, Case] = {
    "cut along x": Case(CUBE, most_ranks=4, before=ALONG.format("*", 1, 1)),
    "cut along y": Case(CUBE, most_ranks=4, before=ALONG.format(1, "*", 1)),
    "cut along z": Case(CUBE, most_ranks=8, before=ALONG.format(1, 1, "*")),
    "tiles": Case(
        diamond(3, 3, 3),
        most_ranks=4,
        before="comm_style tiled",
        after=("balance 1.0 rcb\nrun 0", "fix move all nve\nrun 20"),
    ),
    "triclinic": Case(slanted, most_ranks=8),
    "thinner than the cutoff": Case(diamond(4, 1, 1), ALONG.format("*", 1, 1), most_ranks=4),
    "cut thinner than the cutoff": Case(diamond(1, 1, 2), ALONG.format("*", 1, 1)),
    "vacuum": Case(slab, ALONG.format(1, 1, "*"), boundary="p p f", most_ranks=8),
    "shrink-wrapped": Case(ethanol, boundary="s s s", units="real"),
    "real units": Case(CUBE, units="real"),
    "newton off": Case(CUBE, "newton off"),
    "reused neighbours": Case(CUBE, skin=(1.0, 0.4)),
    "a searching step": Case(CUBE, skin=(1.0, 0.0)),
    "one interaction": Case(CUBE, student="one interaction"),
    "repulsion": Case(CUBE, student="repulsion"),
    "three interactions, shared filters": Case(
        gas, after=("run 0",), student="a basis an interaction, and shared filters"
    ),
    "not rotationally invariant": Case(CUBE, student="distiller"),
    "uncertain": Case(CUBE, student="uncertain"),
    "pressure": Case(CUBE, most_ranks=4, after=("run 0", "fix move all npt temp 300 300 0.02 aniso 0 0 0.1\nrun 20")),
    "minimised": Case(CUBE, after=("run 0", "minimize 0 1e-3 10 20")),
    "changed types": Case(CUBE, after=("run 0", "set atom 1*20 type 1\nrun 0", "fix move all nve\nrun 10")),
    "deleted atoms": Case(
        CUBE,
        most_ranks=4,
        after=("run 0", "group gone id 1:31\ndelete_atoms group gone compress no\nrun 0", "fix m all nve\nrun 5"),
    ),
    "moving across borders": Case(gas, after=("run 0", "fix move all nve\nrun 500"), skin=(0.6, None), most_ranks=2),
    "in parts": Case(gas, after=("run 0", "fix move all nve\nrun 60 every 2 NULL"), skin=(0.3, None)),
    "swapped": Case(
        CUBE,
        after=(
            "pair_style zero 4\npair_coeff * *\nfix move all nve\nfix s all atom/swap 2 3 9 3e4 ke no types 1 3\nrun 8",
        ),
        skin=(1.0, 0.4),
    ),
    "moving": Case(gas, skin=(0.6, None), most_ranks=4),
}
"""By what each one tries."""
