"""Reused neighbours against a search by brute force at every step of a liquid and of a flexible molecule.

`python scripts/studies/neighbours.py` compares 2,000 steps of each. The brute force is a sum over images in float64
that shares no code with the list. The liquid is a Lennard-Jones fluid in a cell that breathes and shears, the molecule
a chain of eight carbons on springs that folds and unfolds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from painn_deploy.export.errors import StructureError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.verlet import VerletList
from painn_deploy.scripts.commands.entry import run_command

__all__ = ["Comparison", "compare"]

CUTOFF = 5.0


@dataclass
class Comparison:
    """Counts of a comparison.

    Attributes:
        steps: compared.
        edges: compared, each counted from both ends.
        missed: edges that the list lacked.
        extra: edges that only the list had.
        searches: of the list.
        reused: steps that needed none.
    """

    steps: int = 0
    edges: int = 0
    missed: int = 0
    extra: int = 0
    searches: int = 0
    reused: int = 0

    @property
    def wrong(self) -> int:
        """Edges missed, and too many."""
        return self.missed + self.extra


def compare(name: str, steps: int, skin: float = 0.6) -> Comparison:
    """Hold a list against brute force at every step.

    Args:
        name: `liquid` or `molecule`.
        steps: how many.
        skin: Å.
    """
    frames = {"liquid": _liquid, "molecule": _molecule}
    if name not in frames:
        raise StructureError(f"There is no {name!r}; there are {', '.join(frames)}.")
    verlet, seen = VerletList(CUTOFF, skin), Comparison()
    for atoms in frames[name](steps):
        found, true = _edges_of(verlet.inputs(atoms)), _brute_force(atoms)
        seen.steps += 1
        seen.edges += len(true)
        seen.missed += len(true - found)
        seen.extra += len(found - true)
    seen.searches, seen.reused = verlet.searches, verlet.updates
    return seen


Edge = tuple[int, int, float, float, float]


def _edges_of(inputs: GraphInputs) -> set[Edge]:
    row, slot = np.nonzero(inputs.mask)
    vectors = np.round(inputs.displacements[row, slot].astype(float), 3) + 0.0
    return set(zip(row.tolist(), inputs.neighbours[row, slot].tolist(), *vectors.T.tolist(), strict=True))


def _brute_force(atoms: Atoms) -> set[Edge]:
    positions, cell = atoms.positions, np.asarray(atoms.cell)
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0) if atoms.pbc.any() else np.full(3, np.inf)
    reach = np.where(atoms.pbc, np.ceil(CUTOFF / heights) + 1, 0).astype(int)
    edges: set[Edge] = set()
    for shift in np.ndindex(*(2 * count + 1 for count in reach)):
        whole = np.subtract(shift, reach)
        vectors = positions[None] - positions[:, None] + whole @ cell
        near = np.sqrt(np.einsum("ijc,ijc->ij", vectors, vectors)) < CUTOFF
        if not whole.any():
            np.fill_diagonal(near, val=False)
        i, j = np.nonzero(near)
        found = np.round(vectors[i, j].astype(np.float32).astype(float), 3) + 0.0
        edges |= set(zip(i.tolist(), j.tolist(), *found.T.tolist(), strict=True))
    return edges


def _liquid(steps: int) -> Iterator[Atoms]:
    atoms = bulk("Ar", "fcc", a=5.7, cubic=True).repeat((2, 2, 2))
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0, smooth=True)
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, 400, rng=rng)
    dynamics = Langevin(atoms, 8 * units.fs, temperature_K=250, friction=0.01, fixcm=False, rng=rng)
    start = atoms.cell.array.copy()
    for step in range(steps):
        dynamics.run(1)
        if step % 5 == 4:
            strain = np.eye(3) * (1 + 0.02 * np.sin(step / 50))
            strain[0, 1] = 0.02 * np.sin(step / 35)
            atoms.set_cell(start @ strain, scale_atoms=True)
        yield atoms


def _molecule(steps: int) -> Iterator[Atoms]:
    """Bonds and angles are springs, and the rest is noise."""
    carbons = 8
    x = 1.27 * np.arange(carbons)
    y = np.where(np.arange(carbons) % 2, 0.85, 0.0)
    atoms = Atoms(f"C{carbons}", np.stack([x, y, 0 * x], -1))
    rng = np.random.default_rng(1)
    one, two = np.arange(carbons - 1), np.arange(1, carbons)
    momenta = np.zeros((carbons, 3))
    for _ in range(steps):
        for _ in range(3):
            forces = _springs(atoms.positions, one, two, 1.53, 20.0)
            forces += _springs(atoms.positions, one[:-1], two[1:], 2.54, 5.0)
            momenta = 0.98 * momenta + 0.05 * forces + rng.normal(0, 0.06, momenta.shape)
            atoms.positions += 0.05 * momenta
        yield atoms


def _springs(positions: np.ndarray, one: np.ndarray, two: np.ndarray, rest: float, strength: float) -> np.ndarray:
    vectors = positions[two] - positions[one]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    pull = strength * (lengths - rest) * vectors / lengths
    forces = np.zeros_like(positions)
    np.add.at(forces, one, pull)
    np.subtract.at(forces, two, pull)
    return forces


def main(steps: int = 2000, skin: float = 0.6) -> None:
    """Compare, and print a row for each; exit status 1 where an edge is wrong."""
    print(f"| system | steps | skin (Å) | searches | edges compared | missed | too many |\n|{'---|' * 7}")
    wrong = 0
    for name in ("liquid", "molecule"):
        seen = compare(name, steps, skin)
        print(f"| {name} | {seen.steps} | {skin} | {seen.searches} | {seen.edges} | {seen.missed} | {seen.extra} |")
        wrong += seen.wrong
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
