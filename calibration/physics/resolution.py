"""The resolution of an engine's precision: rounding noise and scatter, measured before any property is judged.

Noise is the remainder of energies and forces along a short straight path after the student's values and a cubic are
subtracted: rounding jumps from point to point, while physics and systematic errors are smooth. Scatter is the variation
of one molecule's error from geometry to geometry, each turned another way. Neither is taken at face value: the errors
of the student itself in PyTorch and float32, scaled by the precision's unit roundoff, bound what rounding may excuse.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float

from painn_deploy.calibration.accuracy.double import BLUR_FACTOR
from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.calibration.physics.verdicts import Case, Finding, Property, Sentences

__all__ = [
    "ROUNDOFFS",
    "SIGMA",
    "Evaluate",
    "Figures",
    "Resolution",
    "copies",
    "jitter",
    "measure_resolution",
    "noise_findings",
    "probes",
    "random_rotations",
    "turned",
]

Evaluate = Callable[[Sequence[Atoms]], list[dict[str, Any]]]
"""A function of structures that returns their results, as `PaiNNCalculator.calculate_batch` does."""

SPAN, POINTS = 0.02, 13
"""Å, half the path's length of the atom that moves most; and how many points the path has."""

COPIES, SIGMA = 6, 0.1
"""How many geometries of each structure scatter is measured on, and their perturbation in Å."""

HALF_ROUNDOFF = 2.0**13
"""Unit roundoff of float16, and of TF32, over that of float32."""

ROUNDOFFS = {
    "fp64": float(BLUR_FACTOR),
    "fp32": float(BLUR_FACTOR),
    "tf32": HALF_ROUNDOFF,
    "fp16": HALF_ROUNDOFF,
    "int8": float("inf"),
}
"""How many times the student's own error in float32 a precision may explain, at most."""

COARSE = ("energy_error", "force_error")
"""The figures by which a precision is compared with float32."""

NOISE_LIMIT = 1e-5
"""eV for each √atom: a surface with less noise is smooth to any simulation."""

FORCE_NOISE_LIMIT = 1e-4
"""eV/Å, of a component, likewise."""


@dataclass(frozen=True)
class Figures:
    """Noise and scatter of one structure.

    Attributes:
        energy_noise: eV for each √atom; times √atoms it is the noise of the structure's energy.
        force_noise: eV/Å, of a component.
        energy_error: eV an atom, standard deviation of the error over geometries.
        force_error: eV/Å, root mean square error over components and geometries.
    """

    energy_noise: float
    force_noise: float
    energy_error: float
    force_error: float


FLOOR = Figures(1e-7, 1e-6, 1e-7, 1e-6)
"""float32 is not resolved below these figures, even if a student's own are smaller by chance."""


@dataclass(frozen=True)
class Resolution:
    """The resolution of an engine on each structure: forces of 100 eV/Å are rounded more coarsely than small ones.

    Attributes:
        measured: the engine's figures against the student in float64, by the structure's name.
        single: the student's own figures in PyTorch and float32, likewise.
        permitted: the largest figures that the precision explains.
    """

    measured: Mapping[str, Figures]
    single: Mapping[str, Figures]
    permitted: Mapping[str, Figures]

    def at(self, name: str) -> Figures:
        """The figures that a property of a structure is judged with: the smaller of measured and permitted."""
        return _map(min, self.measured[name], self.permitted[name])

    def worst(self, names: Sequence[str]) -> Figures:
        """The largest figures of some structures, to judge a structure that was not measured."""
        return _map(lambda *values: max(values), *(self.at(name) for name in names))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the units of `Figures`."""
        return asdict(self)

    def coarseness(self) -> float:
        """How many times coarser than float32 the engine is: the median ratio of the smaller of two figures."""
        ratios = [
            min(getattr(found, key) / max(getattr(self.single[name], key), getattr(FLOOR, key)) for key in COARSE)
            for name, found in self.measured.items()
        ]
        return float(np.nanmedian(ratios)) if ratios else 1.0


def measure_resolution(
    engine: Evaluate,
    student: Evaluate,
    single: Evaluate,
    structures: Sequence[Atoms],
    *,
    precision: str,
    limits: Tolerances,
) -> Resolution:
    """Measure noise and scatter of an engine, and bound what they may excuse.

    Args:
        engine: evaluates with the engine.
        student: evaluates with the student in float64.
        single: evaluates with the student in float32.
        structures: to measure on; `info["name"]` names each, see `probes`.
        precision: of the engine, `fp64`, `fp32`, `tf32`, `fp16` or `int8`.
        limits: accepted errors; rounding may excuse none that is larger.
    """
    scale = ROUNDOFFS[precision]
    caps = Figures(limits.energy, limits.forces, limits.energy, limits.forces)
    measured: dict[str, Figures] = {}
    own: dict[str, Figures] = {}
    permitted: dict[str, Figures] = {}
    for index, atoms in enumerate(structures):
        name, tried = atoms.info["name"], probes(atoms, index)
        wanted = student(tried)
        measured[name] = _figures(engine(tried), wanted, len(atoms))
        own[name] = _figures(single(tried), wanted, len(atoms))
        permitted[name] = _map(lambda blur, floor, cap: min(cap, scale * max(blur, floor)), own[name], FLOOR, caps)
    return Resolution(measured, own, permitted)


def noise_findings(resolution: Resolution, limits: Tolerances) -> list[Finding]:
    """Judge whether the engine's energies and forces are as smooth as its precision can be.

    Args:
        resolution: of the engine.
        limits: accepted errors.
    """
    found = []
    for quantity, key, unit, limit, ceiling in (
        ("energies", "energy_noise", "meV", NOISE_LIMIT, limits.energy),
        ("forces", "force_noise", "meV/Å", FORCE_NOISE_LIMIT, limits.forces),
    ):
        if not resolution.measured:
            return []
        sentences = Sentences(
            holds=f"From point to point along a path of {2 * SPAN:g} Å, {quantity} jitter by {{lost}} at most: smooth.",
            student="",
            engine=f"From point to point along a path of {2 * SPAN:g} Å, {quantity} of {{subject}} jitter by {{lost}}, "
            "and no more than {allowance} is excused in this precision: the engine's surface is rough, or it computes "
            "in a lower precision than it says.",
        )
        cases = []
        for name, figures in resolution.measured.items():
            cases.append(Case.of(name, 0.0, getattr(figures, key), getattr(resolution.permitted[name], key)))
        found.append(Property(f"smooth {quantity}", "consistency", unit, limit, ceiling, sentences).finding(cases))
    return found


def random_rotations(count: int, seed: int) -> Float[np.ndarray, "count 3 3"]:
    """Draw rotation matrices, uniformly over all orientations.

    Args:
        count: how many.
        seed: of the draw.
    """
    matrices, upper = np.linalg.qr(np.random.default_rng(seed).normal(size=(count, 3, 3)))
    matrices = matrices * np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None, :]
    matrices[:, :, 0] *= np.linalg.det(matrices)[:, None]
    return np.asarray(matrices)


def turned(atoms: Atoms, rotation: Float[np.ndarray, "3 3"]) -> Atoms:
    """A copy of a structure with positions and cell turned about the origin.

    Args:
        atoms: the structure.
        rotation: matrix [3, 3].
    """
    made = atoms.copy()
    made.set_cell(np.asarray(atoms.cell) @ rotation.T)
    made.positions = atoms.positions @ rotation.T
    return made


def probes(atoms: Atoms, seed: int = 0) -> list[Atoms]:
    """Geometries around a structure: a short path for its noise, and then turned copies for its scatter.

    Args:
        atoms: the structure; `info["seed"]` and `info["sigma"]` (Å, of the copies) go before what is usual.
        seed: of the path and of the copies.
    """
    seed = int(atoms.info.get("seed", seed))
    return [*_path(atoms, seed), *copies(atoms, seed, float(atoms.info.get("sigma", SIGMA)))]


def _path(atoms: Atoms, seed: int) -> list[Atoms]:
    direction = np.random.default_rng(seed).normal(size=atoms.positions.shape)
    direction /= np.linalg.norm(direction, axis=1).max()
    path = []
    for step in np.linspace(-SPAN, SPAN, POINTS):
        moved = atoms.copy()
        moved.positions += step * direction
        path.append(moved)
    return path


def copies(atoms: Atoms, seed: int, sigma: float = SIGMA) -> list[Atoms]:
    """Perturbed copies of a structure, each turned its own way.

    Args:
        atoms: the structure.
        seed: of the perturbations.
        sigma: Å, of the perturbation.
    """
    rng, made = np.random.default_rng(1000 + seed), []
    for rotation in random_rotations(COPIES, 1000 + seed):
        shaken = atoms.copy()
        shaken.positions += rng.normal(0, sigma, atoms.positions.shape)
        made.append(turned(shaken, rotation))
    return made


def _figures(results: Sequence[Any], wanted: Sequence[Any], atoms: int) -> Figures:
    """Noise from the results on a path, which come first, and scatter from those on copies."""
    energies = np.array([a["energy"] - b["energy"] for a, b in zip(results, wanted, strict=True)])
    forces = np.array([np.ravel(a["forces"]) - np.ravel(b["forces"]) for a, b in zip(results, wanted, strict=True)])
    return Figures(
        energy_noise=jitter(energies[:POINTS, None]) / atoms**0.5,
        force_noise=jitter(forces[:POINTS]),
        energy_error=float(energies[POINTS:].std(ddof=1) / atoms),
        force_error=float(np.sqrt(np.square(forces[POINTS:]).mean())),
    )


def jitter(values: Float[np.ndarray, "points series"]) -> float:
    """Root mean square of evenly spaced series about their cubics."""
    steps = np.linspace(-1, 1, len(values))
    basis = np.polynomial.polynomial.polyvander(steps, 3)
    fitted, *_ = np.linalg.lstsq(basis, values, rcond=None)
    left = values - basis @ fitted
    return float(np.sqrt(np.square(left).mean() * len(values) / (len(values) - 4)))


def _map(function: Callable[..., float], *figures: Figures) -> Figures:
    return Figures(*(float(function(*values)) for values in zip(*(vars(f).values() for f in figures), strict=True)))
