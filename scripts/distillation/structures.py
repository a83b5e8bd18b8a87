"""The structures of the training set: conformers, hot dynamics, distortions, dimers, clusters and repulsive walls.

All lengths are in Å, energies in eV, temperatures in K. Every function that draws random numbers takes the generator,
so that a structure depends on the seed of its item alone. `Teacher` makes a fresh ASE calculator: one relaxation or one
trajectory uses one calculator, because calculators may keep the previous wave function.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.data import vdw_radii
from ase.optimize import BFGS
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from painn_deploy.scripts.distillation.molecules import Mechanics, Molecule, embedded

__all__ = ["TEACHER_FAILURES", "Kind", "Recipe", "Sampler", "Structure"]

Kind = Literal["conformer", "md", "distorted", "dimer", "cluster", "wall", "atom", "frame"]
Recipe = Literal["molecule", "dimer", "cluster", "liquid", "atom", "survey", "close"]
Teacher = Callable[[], Any]
Positions = Float[np.ndarray, "atoms 3"]

TEMPERATURES = (300.0, 600.0, 1000.0)  # K
TIMESTEP = 1.0  # fs: BAOAB stays stable with C-H bonds at 1000 K
STRIDE = 25  # steps between frames: two and a half periods of a C-H stretch
SURVEY_STRIDES = 4  # between frames of molecular mechanics, whose steps cost nothing
CLOSE_SHARE = 3  # structures about a minimum, in units of the frames
FRICTION = 0.02  # 1/fs: heats a molecule within one stride or two
FULL_FRAMES_UP_TO = 14  # atoms; larger molecules get fewer frames, as a label's cost grows faster than its size
LIQUID_VOLUME_PER_ATOM = 10.0  # Å^3: liquid water has 29.9 Å^3 a molecule
# What a teacher raises when it cannot answer for a structure (ASE's CalculatorError is a RuntimeError).
TEACHER_FAILURES = (RuntimeError, ArithmeticError, ValueError)


@dataclass(frozen=True)
class Structure:
    """Atoms without labels, and which part of the recipe made them."""

    kind: Kind
    atoms: Any  # ase.Atoms, which publishes no types


def pinched(
    positions: Positions, bonds_between: Int[np.ndarray, "atoms atoms"], i: int, j: int, distance: float
) -> Positions:
    """Atoms `i` and `j` moved to `distance` Å; their neighbours follow, the less the more bonds away they are."""
    axis = positions[j] - positions[i]
    length = float(np.linalg.norm(axis))
    to_i, to_j = bonds_between[i].astype(float), bonds_between[j].astype(float)
    # Each atom moves with the nearer of the two; half-way between them nothing moves.
    follows = np.where(to_i < to_j, np.exp(-to_i / 2), np.where(to_j < to_i, -np.exp(-to_j / 2), 0.0))
    return positions + np.outer(follows, axis / length) * (length - distance) / 2


def bent(
    positions: Positions, bonds_between: Int[np.ndarray, "atoms atoms"], i: int, j: int, rotation: Rotation
) -> Positions:
    """All that hangs on `j`, where the bond i-j is in no ring, rotated about atom `i`."""
    moved = bonds_between[j] < bonds_between[i]
    result = positions.copy()
    result[moved] = rotation.apply(positions[moved] - positions[i]) + positions[i]
    return result


def contact_distances(first: Any, second: Any) -> Float[np.ndarray, "first second"]:
    """The sums of the van der Waals radii, Å, of each atom of the one with each of the other."""
    return vdw_radii[first.numbers][:, None] + vdw_radii[second.numbers][None, :]  # type: ignore[no-any-return]


def docked(first: Any, second: Any, ratio: float, rng: np.random.Generator) -> Any:
    """`second`, turned at random and slid towards `first` from a random side until they touch.

    They touch where the closest pair of atoms is at `ratio` times the sum of its van der Waals radii.
    """
    while True:
        turned = second.positions - second.positions.mean(axis=0)
        turned = Rotation.random(random_state=rng).apply(turned) + first.positions.mean(axis=0)
        side = rng.standard_normal(3)
        side /= np.linalg.norm(side)
        # |apart + s side| = ratio * contact, solved for the largest s of each pair; the largest of all touches first.
        apart = turned[None, :, :] - first.positions[:, None, :]
        along = apart @ side
        under_root = along**2 - (apart**2).sum(axis=-1) + (ratio * contact_distances(first, second)) ** 2
        if (under_root >= 0).any():  # else it would slip through, as hydrogen does through a ring
            slide = (-along + np.sqrt(np.maximum(under_root, 0)))[under_root >= 0].max()
            return Atoms(second.numbers, turned + slide * side)


def langevin(atoms: Any, temperature: float, rng: np.random.Generator) -> Iterator[None]:
    """Moves `atoms` at `temperature` K and yields after every stride, without end.

    The BAOAB splitting of Leimkuhler and Matthews, https://doi.org/10.1093/amrx/abs010, written out here because the
    dynamics of ASE remove the centre of mass in ways that differ between its versions.
    """
    step, masses = TIMESTEP * units.fs, atoms.get_masses()[:, None]
    kept = np.exp(-FRICTION * TIMESTEP)
    thermal = np.sqrt(units.kB * temperature / masses)
    # Twice the temperature, because half of it goes into stretching what starts at its minimum.
    velocities = np.sqrt(2) * thermal * rng.standard_normal((len(atoms), 3))
    forces = atoms.get_forces()
    while True:
        for _ in range(STRIDE):
            velocities += step / 2 * forces / masses
            positions = atoms.positions + step / 2 * velocities
            velocities = kept * velocities + np.sqrt(1 - kept**2) * thermal * rng.standard_normal(velocities.shape)
            atoms.positions = positions + step / 2 * velocities
            forces = atoms.get_forces()
            velocities += step / 2 * forces / masses
        yield


@dataclass
class Sampler:
    """Makes the structures of one item; what the teacher could not follow is noted in `failures`.

    `frames` is the number of MD frames of a small molecule; the other kinds scale with it.
    """

    teacher: Teacher
    frames: int
    rng: np.random.Generator
    failures: list[str]

    def structures(self, recipe: Recipe, smiles: tuple[str, ...]) -> Iterator[Structure]:
        """All structures of an item: of one molecule, of two as a dimer, or of many as a cluster.

        Args:
            recipe: kind of the item, and how it is sampled.
            smiles: of its molecules.
        """
        if recipe == "atom":
            yield Structure("atom", Atoms(smiles[0], positions=np.zeros((1, 3))))
        elif recipe == "molecule":
            yield from self._molecule(smiles[0])
        elif recipe == "dimer":
            yield from self._dimer(*smiles)
        elif recipe == "survey":
            yield from self._survey(smiles[0])
        elif recipe == "close":
            yield from self._close(smiles[0])
        else:
            yield from self._cluster(smiles, compact=recipe == "liquid")

    def _count(self, share: float, atoms: int) -> int:
        """How many structures: `share` of the frames for a small molecule, fewer for a large one, at least one."""
        return max(1, round(share * self.frames * min(1.0, FULL_FRAMES_UP_TO / atoms)))

    def _seed(self) -> int:
        return int(self.rng.integers(2**31))

    def _relaxed(self, atoms: Any, steps: int = 25) -> Any:
        """A copy after a few steps of BFGS: near a minimum of the teacher, where most of MD happens."""
        relaxed = atoms.copy()
        relaxed.calc = self.teacher()
        try:
            BFGS(relaxed, logfile=None).run(fmax=0.03, steps=steps)
        except TEACHER_FAILURES as failure:
            self.failures.append(f"relaxation: {failure}")
            return atoms.copy()
        relaxed.calc = None
        return relaxed

    def _trajectory(self, start: Any, temperature: float, frames: int, discard: int = 1) -> list[Any]:
        """Frames of Langevin dynamics, `STRIDE` steps apart, after `discard` strides that only equilibrate."""
        atoms = start.copy()
        atoms.calc = self.teacher()
        taken = []
        try:
            for frame, _ in zip(range(discard + frames), langevin(atoms, temperature, self.rng), strict=False):
                if frame >= discard:
                    taken.append(Atoms(atoms.numbers, atoms.positions))
        except TEACHER_FAILURES as failure:
            self.failures.append(f"dynamics at {temperature:g} K: {failure}")
        return taken

    def _molecule(self, smiles: str) -> Iterator[Structure]:
        molecule = embedded(smiles, len(TEMPERATURES), self._seed())
        size = len(molecule.conformers[0])
        yield Structure("conformer", molecule.conformers[0])
        relaxed = [self._relaxed(conformer) for conformer in molecule.conformers]
        for atoms in relaxed:
            yield Structure("conformer", atoms)
        if size == 1:
            return
        for number, temperature in enumerate(TEMPERATURES):
            start = relaxed[number % len(relaxed)]
            for atoms in self._trajectory(start, temperature, self._count(1 / len(TEMPERATURES), size)):
                yield Structure("md", atoms)
        yield from self._strained(molecule, relaxed)

    def _strained(self, molecule: Molecule, relaxed: list[Any]) -> Iterator[Structure]:
        size = len(relaxed[0])
        for number in range(self._count(1 / 3, size)):
            start = relaxed[number % len(relaxed)]
            yield Structure("distorted", Atoms(start.numbers, self._distorted(molecule, start.positions, number)))
        for number in range(self._count(1 / 6, size)):
            start = relaxed[number % len(relaxed)]
            yield Structure("wall", Atoms(start.numbers, self._pressed(molecule, start, number)))

    def _survey(self, smiles: str) -> Iterator[Structure]:
        """A molecule in few labels: one relaxation, and frames of dynamics that molecular mechanics led."""
        molecule = embedded(smiles, len(TEMPERATURES), self._seed())
        yield Structure("conformer", molecule.conformers[0])
        relaxed = self._relaxed(molecule.conformers[0], steps=15)
        yield Structure("conformer", relaxed)
        size = len(relaxed)
        for number, temperature in enumerate(TEMPERATURES if molecule.force_field is not None else ()):
            start = molecule.conformers[number % len(molecule.conformers)].copy()
            start.calc = Mechanics(molecule.force_field)
            moving = langevin(start, temperature, self.rng)
            for _ in range(self._count(1 / len(TEMPERATURES), size)):
                for _ in range(SURVEY_STRIDES):
                    next(moving)
                if not np.isfinite(start.positions).all():
                    self.failures.append(f"molecular mechanics at {temperature:g} K left the numbers")
                    break
                yield Structure("md", Atoms(start.numbers, start.positions))
        yield from self._strained(molecule, [relaxed])

    def _close(self, smiles: str) -> Iterator[Structure]:
        """The neighbourhood of a minimum: what vibrational frequencies are made of."""
        relaxed = self._relaxed(embedded(smiles, 1, self._seed()).conformers[0], steps=50)
        yield Structure("conformer", relaxed)
        for _ in range(CLOSE_SHARE * self.frames):
            sigma = float(np.exp(self.rng.uniform(np.log(0.01), np.log(0.12))))
            yield Structure("distorted", self._shaken(relaxed, sigma))

    def _distorted(self, molecule: Molecule, positions: Positions, number: int) -> Positions:
        """In turn: every atom displaced at random, one bond stretched, one angle bent."""
        rng, between = self.rng, molecule.bonds_between
        if number % 3 == 1 and len(molecule.bonds):
            i, j = map(int, rng.permutation(rng.choice(molecule.bonds)))
            length = float(np.linalg.norm(positions[j] - positions[i]))
            positions = pinched(positions, between, i, j, length * rng.uniform(0.85, 1.6))
        elif number % 3 == 2 and len(molecule.bridges):
            i, j = map(int, rng.permutation(rng.choice(molecule.bridges)))
            axis = rng.standard_normal(3)
            angle = np.radians(rng.uniform(10, 40))
            positions = bent(positions, between, i, j, Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)))
        else:
            sigma = np.exp(rng.uniform(np.log(0.05), np.log(0.2)))
            return positions + rng.normal(scale=sigma, size=positions.shape)
        return positions + rng.normal(scale=0.03, size=positions.shape)

    def _pressed(self, molecule: Molecule, atoms: Any, number: int) -> Positions:
        """In turn: a bond compressed, and two atoms of different groups pushed down to 0.55-0.85 of their contact."""
        rng, between = self.rng, molecule.bonds_between
        near = np.argwhere((between >= 3) & (atoms.get_all_distances() < 5.0))
        if number % 2 and len(near):
            i, j = map(int, rng.choice(near))
            distance = rng.uniform(0.55, 0.85) * vdw_radii[atoms.numbers[[i, j]]].sum()
        else:
            i, j = map(int, rng.choice(molecule.bonds))
            distance = rng.uniform(0.65, 0.9) * atoms.get_distance(i, j)
        positions = pinched(atoms.positions, between, i, j, distance)
        return positions + rng.normal(scale=0.02, size=positions.shape)

    def _monomer(self, smiles: str) -> Any:
        return self._relaxed(embedded(smiles, 1, self._seed()).conformers[0])

    def _dimer(self, first: str, second: str) -> Iterator[Structure]:
        """Two molecules at many distances and orientations, pressed together, and moving about each other at 300 K."""
        rng = self.rng
        monomers = [self._monomer(first), self._monomer(second)]
        size = sum(len(monomer) for monomer in monomers)
        distances = [(0.65, 1.1), (0.65, 1.1), (1.1, 2.2), (0.5, 0.65)]
        for number in range(self._count(0.5, size)):
            low, high = distances[number % len(distances)]
            one, other = (self._shaken(monomer, rng.uniform(0.01, 0.06)) for monomer in monomers)
            pair = one + docked(one, other, rng.uniform(low, high), rng)
            yield Structure("wall" if high < 1 else "dimer", pair)
        bound = self._relaxed(monomers[0] + docked(monomers[0], monomers[1], 0.8, rng), steps=15)
        for atoms in [bound, *self._trajectory(bound, 300.0, self._count(1 / 6, size))]:
            yield Structure("dimer", atoms)

    def _shaken(self, atoms: Any, sigma: float) -> Any:
        return Atoms(atoms.numbers, atoms.positions + self.rng.normal(scale=sigma, size=(len(atoms), 3)))

    def _cluster(self, smiles: tuple[str, ...], compact: bool) -> Iterator[Structure]:
        """Molecules packed together, or as dense as the liquid; then relaxed a little and moving at 300 K."""
        known = {one: self._monomer(one) for one in dict.fromkeys(smiles)}
        monomers = [self._shaken(known[one], 0.03) for one in smiles]
        packed = self._lattice(monomers) if compact else self._aggregate(monomers)
        yield Structure("cluster", packed)
        start = self._relaxed(packed, steps=10 if compact else 20)
        yield Structure("cluster", start)
        for atoms in self._trajectory(start, 300.0, self._count(1.0, len(packed))):
            yield Structure("cluster", atoms)

    def _aggregate(self, monomers: list[Any], tries: int = 20) -> Any:
        """One after another docked from outside, each where of some tries it comes nearest to the centre."""
        cluster = monomers[0].copy()
        for monomer in monomers[1:]:
            centre = cluster.positions.mean(axis=0)
            docks = [docked(cluster, monomer, self.rng.uniform(0.7, 0.9), self.rng) for _ in range(tries)]
            cluster += min(docks, key=lambda dock: float(np.linalg.norm(dock.positions.mean(axis=0) - centre)))
        return cluster

    def _lattice(self, monomers: list[Any], tries: int = 60) -> Any:
        """On the sites of a jittered cubic lattice around a point, each in the roomiest of some orientations."""
        rng = self.rng
        spacing = (LIQUID_VOLUME_PER_ATOM * sum(map(len, monomers)) / len(monomers)) ** (1 / 3)
        sites = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), axis=-1).reshape(-1, 3) * spacing
        sites = sites + rng.uniform(-0.5, 0.5, 3) * spacing + rng.uniform(-0.2, 0.2, sites.shape)
        sites = sites[np.argsort(np.linalg.norm(sites, axis=1))]
        cluster = Atoms()
        for monomer, site in zip(monomers, sites, strict=False):
            centred = monomer.positions - monomer.positions.mean(axis=0)
            turned = [Rotation.random(random_state=rng).apply(centred) + site for _ in range(tries)]
            options = [Atoms(monomer.numbers, positions) for positions in turned]
            cluster += max(options, key=lambda option: closest_contact(cluster, option))
        return cluster


def closest_contact(first: Any, second: Any) -> float:
    """The smallest distance between atoms of the one and the other, as a fraction of their van der Waals contact."""
    if len(first) == 0:
        return float("inf")
    distances = np.linalg.norm(first.positions[:, None] - second.positions[None], axis=-1)
    return float((distances / contact_distances(first, second)).min())
