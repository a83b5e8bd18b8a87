"""Replicas of a molecule that move together at constant energy, in segments after which a run can be stopped."""

import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from jaxtyping import Float64

from painn_deploy.export.errors import OutputError, StructureError
from painn_deploy.export.files import write_output
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.replicas import ReplicaList, answered
from painn_deploy.runtime.verlet import DEFAULT_SKIN
from painn_deploy.scripts.trajectories.observables import DISTANCES, distances, spectra, wavenumbers

__all__ = ["EVERY", "LONGEST_STEP", "SEGMENT", "Conditions", "Run", "freedoms", "start", "turning"]

SEGMENT = 4.0
"""ps, of a segment: its spectrum resolves some 10 1/cm, and it is what an interruption costs at most."""

EVERY, SELDOM = 4, 5
"""Steps from frame to frame of the velocities, and such frames from frame to frame of the distances."""

LONGEST_STEP = 0.9
"""fs: frames that are farther apart would show the fastest vibrations at other frequencies."""

LINE = 1e-4
"""Smallest moment of inertia of a molecule that is a line, over its largest."""


@dataclass(frozen=True)
class Conditions:
    """Conditions of a run.

    Attributes:
        temperature: K, of a molecule whose vibrations share the energy equally.
        timestep: fs.
        replicas: of the molecule, each with velocities of its own.
        seed: of the velocities.
    """

    temperature: float = 300.0
    timestep: float = 0.5
    replicas: int = 4
    seed: int = 0

    @property
    def frames(self) -> int:
        """Frames of the velocities in a segment."""
        return max(2 * SELDOM, round(1e3 * SEGMENT / self.interval))

    @property
    def interval(self) -> float:
        """Time from frame to frame of the velocities, fs."""
        return EVERY * self.timestep

    @property
    def length(self) -> float:
        """Time of a segment, ps."""
        return self.frames * self.interval / 1e3

    @property
    def wavenumbers(self) -> Float64[np.ndarray, " frequencies"]:
        """Frequencies of the spectra, 1/cm."""
        return wavenumbers(self.frames, self.interval)


def freedoms(atoms: Atoms) -> int:
    """How many vibrations a molecule has: all motion but of and about its centre."""
    moments = atoms.get_moments_of_inertia()
    return 3 * len(atoms) - (5 if moments.min() < LINE * moments.max() else 6)


def start(atoms: Atoms, conditions: Conditions) -> Float64[np.ndarray, "replicas atoms 3"]:
    """Velocities in √(eV/u) at which each replica leaves a minimum; half of the energy becomes potential energy.

    Each replica has the same energy, so that their temperatures do not differ by the luck of the draw.

    Args:
        atoms: in their minimum.
        conditions: of the run.
    """
    wanted, found = freedoms(atoms) * units.kB * conditions.temperature, []
    for replica in range(conditions.replicas):
        own = atoms.copy()
        thermalize_momenta(own, conditions.temperature, rng=np.random.default_rng((conditions.seed, replica)))
        Stationary(own)
        ZeroRotation(own)
        found.append(own.get_velocities() * np.sqrt(wanted / own.get_kinetic_energy()))
    return np.array(found)


def turning(
    positions: Float64[np.ndarray, "replicas atoms 3"],
    velocities: Float64[np.ndarray, "replicas atoms 3"],
    masses: Float64[np.ndarray, " atoms"],
) -> Float64[np.ndarray, " replicas"]:
    """Energy in eV with which each replica turns as a whole, L·I⁻¹·L/2; forces that are right never change it from 0.

    Args:
        positions: Å.
        velocities: √(eV/u).
        masses: u.
    """
    weights = masses[:, None] / masses.sum()
    own, speeds = (each - (weights * each).sum(1, keepdims=True) for each in (positions, velocities))
    momentum = (masses[:, None] * np.cross(own, speeds)).sum(1)
    products = np.einsum("rac,rad,a->rcd", own, own, masses)
    inertia = np.trace(products, axis1=1, axis2=2)[:, None, None] * np.eye(3) - products
    turned: np.ndarray = np.einsum("rc,rcd,rd->r", momentum, np.linalg.pinv(inertia, hermitian=True), momentum) / 2
    return turned


@dataclass
class Run:
    """A run of one molecule with one engine, as far as it got.

    Attributes:
        positions: Å, of now.
        velocities: √(eV/u), of now.
        energies: eV, mean total energy of each segment.
        kinetic: eV, mean kinetic energy of each segment.
        spectra: sum over all segments but the first, in which the vibrations come to share the energy.
        distances: counts of the same segments.
        ended: why it cannot go on; empty as long as it can.
    """

    positions: Float64[np.ndarray, "replicas atoms 3"]
    velocities: Float64[np.ndarray, "replicas atoms 3"]
    energies: Float64[np.ndarray, "segments replicas"]
    kinetic: Float64[np.ndarray, "segments replicas"]
    spectra: Float64[np.ndarray, "replicas frequencies"]
    distances: Float64[np.ndarray, "replicas bins"]
    ended: str = ""

    @classmethod
    def begun(cls, atoms: Atoms, conditions: Conditions) -> "Run":
        """A run that has not moved yet.

        Args:
            atoms: the molecule in its minimum.
            conditions: of the run.
        """
        replicas = conditions.replicas
        return cls(
            positions=np.repeat(atoms.positions[None], replicas, 0),
            velocities=start(atoms, conditions),
            energies=np.empty((0, replicas)),
            kinetic=np.empty((0, replicas)),
            spectra=np.zeros((replicas, len(conditions.wavenumbers))),
            distances=np.zeros((replicas, DISTANCES)),
        )

    @classmethod
    def read(cls, path: Path, identity: str) -> "Run | None":
        """What an earlier call left; None where there is nothing.

        Args:
            path: of the file.
            identity: what the run must have been made of and with.

        Raises:
            OutputError: the file is damaged, or of another run.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files}
            found, ended = str(values.pop("identity")), str(values.pop("ended"))
            run = cls(**values, ended=ended)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise OutputError(f"{path} is damaged ({error}). Remove it, and that run begins anew.") from error
        if found != identity:
            raise OutputError(
                f"{path} is of another run: it was made with {found}, and now it is {identity}. Give another --output."
            )
        return run

    def write(self, path: Path, identity: str) -> None:
        """Write it whole.

        Args:
            path: of the file.
            identity: what it is made of and with.

        Raises:
            OutputError: it cannot be written.
        """
        content = io.BytesIO()
        np.savez_compressed(content, **asdict(self), identity=identity)
        write_output(path, content.getvalue())

    @property
    def segments(self) -> int:
        """How many are done."""
        return len(self.energies)

    def advance(self, evaluator: Evaluator, atoms: Atoms, conditions: Conditions, more: Callable[[int], None]) -> None:
        """Go on by a segment, by velocity Verlet.

        Neighbours are searched anew at the beginning of each, so that a run that was stopped gives the bits of one that
        was not. Where the molecule leaves what can be computed, `ended` says why, and the segment does not count.

        Args:
            evaluator: the engine.
            atoms: the molecule.
            conditions: of the run.
            more: called with the number of steps that were done since it was called last.

        Raises:
            EngineError: the engine failed.
        """
        moving, frames, masses = _Moving(evaluator, atoms, conditions), conditions.frames, atoms.get_masses()
        shape = (frames, conditions.replicas)
        potential, kinetic = np.empty(shape), np.empty(shape)
        velocities, counts = np.empty((*shape, len(atoms), 3), np.float32), np.zeros_like(self.distances)
        try:
            now = moving.at(self.positions, self.velocities)
            for frame in range(frames):
                now = moving.moved(now, EVERY)
                potential[frame], velocities[frame] = now.potential, now.velocities
                kinetic[frame] = np.einsum("rac,a->r", np.square(now.velocities), masses) / 2
                if frame % SELDOM == 0:
                    counts += distances(now.positions)
                more(EVERY)
        except StructureError as error:
            self.ended = str(error)
            return
        if self.segments:
            self.spectra += spectra(velocities, masses, conditions.interval)
            self.distances += counts
        self.positions, self.velocities = now.positions, now.velocities
        self.energies = np.vstack([self.energies, (potential + kinetic).mean(0)])
        self.kinetic = np.vstack([self.kinetic, kinetic.mean(0)])


class _State(NamedTuple):
    """Of all replicas: Å, √(eV/u), eV/Å and eV."""

    positions: Float64[np.ndarray, "replicas atoms 3"]
    velocities: Float64[np.ndarray, "replicas atoms 3"]
    forces: Float64[np.ndarray, "replicas atoms 3"]
    potential: Float64[np.ndarray, " replicas"]


class _Moving:
    """Velocity Verlet of all replicas at once (Swope et al. 1982, doi:10.1063/1.442716)."""

    def __init__(self, evaluator: Evaluator, atoms: Atoms, conditions: Conditions) -> None:
        self._evaluator, self._step, replicas = evaluator, conditions.timestep * units.fs, conditions.replicas
        self._numbers, self._starts = np.tile(atoms.numbers, replicas), len(atoms) * np.arange(replicas + 1)
        self._inverse = 1 / atoms.get_masses()[:, None]
        self._cells, self._periodic = np.zeros((replicas, 3, 3)), np.zeros(3, bool)
        slots, most = evaluator.batch_slots, evaluator.most_atoms
        self._list = ReplicaList(evaluator.manifest.cutoff, DEFAULT_SKIN, slots, most, evaluator.dtype)

    def at(
        self,
        positions: Float64[np.ndarray, "replicas atoms 3"],
        velocities: Float64[np.ndarray, "replicas atoms 3"],
    ) -> _State:
        """A state: forces and energies of positions; without the energies of atoms apart, which never change.

        Raises:
            StructureError: atoms are where no force field can answer.
        """
        batches = self._list.batches(self._numbers, positions.reshape(-1, 3), self._cells, self._periodic, self._starts)
        found = answered(self._evaluator, batches)
        potential = found.energies.reshape(positions.shape[:2]).sum(1)
        if not np.isfinite(potential).all() or not np.isfinite(found.forces).all():
            raise StructureError("The simulation diverged: energies or forces are NaN or infinite.")
        return _State(positions, velocities, found.forces.reshape(positions.shape), potential)

    def moved(self, now: _State, steps: int) -> _State:
        """The state some time steps later."""
        for _ in range(steps):
            halfway = now.velocities + self._step / 2 * self._inverse * now.forces
            there = self.at(now.positions + self._step * halfway, halfway)
            now = there._replace(velocities=halfway + self._step / 2 * self._inverse * there.forces)
        return now
