"""What an engine's precision lets one see: its rounding noise and its scatter, measured before anything is judged.

Noise is what is left of energies and forces along a short straight path after the student's and a cubic are taken off:
rounding jumps from point to point, while physics and systematic errors are smooth. Scatter is how much the error of one
molecule changes from geometry to geometry, whichever way the molecule is turned. Neither is taken at face value: what
float32 costs the student itself in PyTorch, scaled by the precision's unit roundoff, bounds what rounding may excuse.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.calibration.accuracy.errors import Limits
from painn_deploy.calibration.accuracy.parity import BLUR_FACTOR
from painn_deploy.calibration.physics.verdicts import Case, Finding, Measure, Words

__all__ = [
    "Evaluate",
    "Figures",
    "Resolution",
    "jitter",
    "measure_resolution",
    "noise_findings",
    "random_rotations",
    "turned",
]

Evaluate = Callable[[Sequence[Atoms]], list[dict[str, Any]]]
"""Structures to results, as `PaiNNCalculator.calculate_batch`."""

SPAN, POINTS = 0.02, 13
"""Å, half the path's length for the atom that moves most; and points on it."""

COPIES, SIGMA = 6, 0.1
"""Geometries of each structure that scatter is taken over, and their perturbation in Å."""

HALF_ROUNDOFF = 2.0**13
"""Unit roundoff of float16 over that of float32."""

NOISE_LIMIT = 1e-5
"""eV for each √atom, and below FORCE_NOISE_LIMIT in eV/Å: a surface that is this smooth is smooth to any simulation."""

FORCE_NOISE_LIMIT = 1e-4


@dataclass(frozen=True)
class Figures:
    """Noise and scatter.

    Attributes:
        energy_noise: eV for each √atom; a structure's energy carries this times √atoms.
        force_noise: eV/Å, of a component.
        energy_error: eV an atom, standard deviation of the error over geometries of one molecule.
        force_error: eV/Å, RMS over components.
    """

    energy_noise: float
    force_noise: float
    energy_error: float
    force_error: float


FLOOR = Figures(1e-7, 1e-6, 1e-7, 1e-6)
"""Below these float32 itself is not resolved, however lucky a student's figures are."""


@dataclass(frozen=True)
class Resolution:
    """Of an engine, structure by structure: forces of 100 eV/Å are rounded more coarsely than small ones.

    Attributes:
        measured: the engine's figures against the student in float64, by the structure's name.
        single: the student's own in PyTorch and float32.
        permitted: the most that the precision explains.
    """

    measured: Mapping[str, Figures]
    single: Mapping[str, Figures]
    permitted: Mapping[str, Figures]

    def at(self, name: str) -> Figures:
        """What a property of a structure is judged with: the smaller of measured and permitted."""
        return _map(min, self.measured[name], self.permitted[name])

    def worst(self, names: Sequence[str]) -> Figures:
        """The largest of those of some structures, for what has no path of its own."""
        return _map(max, *(self.at(name) for name in names))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the units of `Figures`."""
        return asdict(self)


def measure_resolution(
    engine: Evaluate,
    student: Evaluate,
    single: Evaluate,
    structures: Sequence[Atoms],
    *,
    precision: str,
    limits: Limits,
) -> Resolution:
    """Measure noise and scatter of an engine, and bound what they may excuse.

    Args:
        engine: what is audited.
        student: in float64.
        single: the student in float32.
        structures: to measure on; `info["name"]` names each.
        precision: `fp32`, `fp16` or `int8`.
        limits: accepted errors, which no rounding may exceed.
    """
    scale = {"fp32": BLUR_FACTOR, "fp16": HALF_ROUNDOFF, "int8": float("inf")}[precision]
    caps = Figures(limits.energy, limits.forces, limits.energy, limits.forces)
    measured: dict[str, Figures] = {}
    own: dict[str, Figures] = {}
    permitted: dict[str, Figures] = {}
    for index, atoms in enumerate(structures):
        name, tried = atoms.info["name"], [*_path(atoms, index), *_copies(atoms, index)]
        wanted = student(tried)
        measured[name] = _figures(engine(tried), wanted, len(atoms))
        own[name] = _figures(single(tried), wanted, len(atoms))
        permitted[name] = _map(lambda blur, floor, cap: min(cap, scale * max(blur, floor)), own[name], FLOOR, caps)
    return Resolution(measured, own, permitted)


def noise_findings(resolution: Resolution, limits: Limits) -> list[Finding]:
    """Whether the engine's surface is as smooth as its precision can be."""
    found = []
    for quantity, key, unit, limit, ceiling in (
        ("energies", "energy_noise", "meV", NOISE_LIMIT, limits.energy),
        ("forces", "force_noise", "meV/Å", FORCE_NOISE_LIMIT, limits.forces),
    ):
        words = Words(
            holds=f"From point to point along a path of {2 * SPAN:g} Å, {quantity} jitter by {{lost}} at most: smooth.",
            student="",
            engine=f"From point to point along a path of {2 * SPAN:g} Å, {quantity} of {{subject}} jitter by {{lost}}, "
            "and no more than {allowance} is excused in this precision: the engine's surface is rough, or it computes "
            "in a lower precision than it says.",
        )
        cases = []
        for name, figures in resolution.measured.items():
            cases.append(Case.of(name, 0.0, getattr(figures, key), getattr(resolution.permitted[name], key)))
        found.append(Measure(f"smooth {quantity}", "consistency", unit, limit, ceiling, words).finding(cases))
    return found


def random_rotations(count: int, seed: int) -> np.ndarray:
    """Rotation matrices [count, 3, 3], uniform over all orientations."""
    matrices, upper = np.linalg.qr(np.random.default_rng(seed).normal(size=(count, 3, 3)))
    matrices = matrices * np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None, :]
    matrices[:, :, 0] *= np.linalg.det(matrices)[:, None]
    return np.asarray(matrices)


def turned(atoms: Atoms, rotation: np.ndarray) -> Atoms:
    """A copy with positions and cell turned by a matrix [3, 3] about the origin."""
    made = atoms.copy()
    made.set_cell(np.asarray(atoms.cell) @ rotation.T)
    made.positions = atoms.positions @ rotation.T
    return made


def _path(atoms: Atoms, seed: int) -> list[Atoms]:
    direction = np.random.default_rng(seed).normal(size=atoms.positions.shape)
    direction /= np.linalg.norm(direction, axis=1).max()
    path = []
    for step in np.linspace(-SPAN, SPAN, POINTS):
        moved = atoms.copy()
        moved.positions += step * direction
        path.append(moved)
    return path


def _copies(atoms: Atoms, seed: int) -> list[Atoms]:
    rng, copies = np.random.default_rng(1000 + seed), []
    for rotation in random_rotations(COPIES, 1000 + seed):
        shaken = atoms.copy()
        shaken.positions += rng.normal(0, SIGMA, atoms.positions.shape)
        copies.append(turned(shaken, rotation))
    return copies


def _figures(results: Sequence[Any], wanted: Sequence[Any], atoms: int) -> Figures:
    """Of results on a path, followed by those on copies."""
    energies = np.array([a["energy"] - b["energy"] for a, b in zip(results, wanted, strict=True)])
    forces = np.array([np.ravel(a["forces"]) - np.ravel(b["forces"]) for a, b in zip(results, wanted, strict=True)])
    return Figures(
        energy_noise=jitter(energies[:POINTS, None]) / atoms**0.5,
        force_noise=jitter(forces[:POINTS]),
        energy_error=float(energies[POINTS:].std(ddof=1) / atoms),
        force_error=float(np.sqrt(np.square(forces[POINTS:]).mean())),
    )


def jitter(values: np.ndarray) -> float:
    """RMS of values [points, series], evenly spaced, about cubics."""
    steps = np.linspace(-1, 1, len(values))
    basis = np.polynomial.polynomial.polyvander(steps, 3)
    fitted, *_ = np.linalg.lstsq(basis, values, rcond=None)
    left = values - basis @ fitted
    return float(np.sqrt(np.square(left).mean() * len(values) / (len(values) - 4)))


def _map(function: Callable[..., float], *figures: Figures) -> Figures:
    return Figures(*(float(function(*values)) for values in zip(*(vars(f).values() for f in figures), strict=True)))
