"""What a simulation makes of an engine: whether its energy drifts, and whether it finds the student's minima."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from painn_deploy.calibration.physics.subjects import Audited
from painn_deploy.calibration.physics.verdicts import Case, Finding, Measure, Words, show
from painn_deploy.export.errors import EngineError, StructureError
from painn_deploy.export.progress import Tell

__all__ = ["Drift", "energy_drift", "relaxation", "total_energies"]

TEMPERATURE, TIMESTEP, EVERY = 300.0, 0.5, 5
"""K, fs, and steps between two looks at the energy."""

DRIFT_LIMIT = 0.1
"""meV/atom/ps: as much heat as raises a molecule by about 1 K in a picosecond."""

RELAXATION_LIMIT = 1e-4
"""eV an atom, on the student's surface, between the engine's minimum and the student's."""

FMAX, TIGHT, MOST_STEPS = 0.01, 0.002, 250
"""eV/Å, of the engine's relaxation and of the student's; and steps."""


@dataclass(frozen=True)
class Drift:
    """Total energy along a trajectory without a thermostat.

    Attributes:
        times: ps.
        energies: meV an atom, less that of the start.
        slope: meV/atom/ps, of a straight line fitted to them.
        uncertainty: meV/atom/ps, one standard deviation of the slope; neighbouring points are no independent witnesses.
        fluctuation: meV/atom, standard deviation about the line.
    """

    times: np.ndarray
    energies: np.ndarray
    slope: float
    uncertainty: float
    fluctuation: float

    @classmethod
    def of(cls, times: np.ndarray, energies: np.ndarray) -> "Drift":
        """Fit a line; a trajectory that diverged drifts without bound."""
        if len(times) < 8 or not np.isfinite(energies).all():
            return cls(times, energies, float("inf"), float("inf"), float("inf"))
        slope, start = np.polyfit(times, energies, 1)
        left = energies - (slope * times + start)
        noise = energies - np.polyval(np.polyfit(times, energies, 3), times)  # a drift that bends is no noise
        independent = max(5.0, len(noise) / _correlation_length(noise))
        spread = float(np.sqrt(np.square(noise).mean() * independent / (independent - 4)))
        return cls(times, energies, float(slope), spread / (float(times.std()) * independent**0.5), float(left.std()))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        values = {k: v if np.isfinite(v) else None for k, v in vars(self).items() if isinstance(v, float)}
        return values | {"times": self.times.tolist(), "energies": self.energies.tolist()}


def energy_drift(
    audited: Audited, engine: Any, student: Any, *, picoseconds: float, tell: Tell = lambda _: None
) -> tuple[list[Finding], dict[str, Drift]]:
    """Dynamics without a thermostat at 300 K, of the engine and of the student, from one start.

    Args:
        audited: what the structures are taken from.
        engine: an ASE calculator.
        student: one of the student in float64.
        picoseconds: how long.
        tell: called with a line about each step as it begins.

    Returns:
        The finding; and the two trajectories as `engine` and `student`.
    """
    atoms = max(audited.subjects.molecules, key=_liveliness).copy()
    name = atoms.info["name"]
    tell(f"relaxing {name} with the student")
    _relaxed(atoms, student, FMAX)
    thermalize_momenta(atoms, 2 * TEMPERATURE, rng=np.random.default_rng(5))  # half of it becomes potential energy
    if len(atoms) > 2:
        Stationary(atoms)
        ZeroRotation(atoms)
    drifts = {}
    for label, calculator in (("student", student), ("engine", engine)):
        tell(f"{picoseconds:g} ps of dynamics of {name}, {label}")
        times, energies = total_energies(atoms.copy(), calculator, picoseconds)
        drifts[label] = Drift.of(times, energies)
    own, got = drifts["student"], drifts["engine"]
    error = 2 * float(np.hypot(own.uncertainty, got.uncertainty))
    both = (
        f"{got.slope:+.3f} ± {got.uncertainty:.3f} meV/atom/ps, its student's {own.slope:+.3f} ± {own.uncertainty:.3f}"
    )
    words = Words(
        holds=f"Over {picoseconds:g} ps at {TEMPERATURE:g} K without a thermostat the total energy drifts by {both}.",
        student=f"Without a thermostat {{subject}} does not keep its energy: it drifts by {both}. The student's "
        "surface jumps or has cusps on the way.",
        engine=f"Without a thermostat {{subject}} keeps its energy with the student and not with the engine: {both}. "
        "Long simulations heat up or cool down.",
    )
    error = error if np.isfinite(error) else 0.0
    lost = abs(got.slope - own.slope) if np.isfinite(own.slope) else 0.0  # what has no limits cannot lose them
    case = Case(name, abs(own.slope), abs(got.slope), lost, error, 2 * own.uncertainty if error else 0.0)
    measure = Measure("energy drift", "dynamics", "meV/atom/ps", DRIFT_LIMIT, DRIFT_LIMIT, words, statistical=True)
    return [measure.finding([case])], drifts


def total_energies(atoms: Atoms, calculator: Any, picoseconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Times in ps and total energies in meV an atom, less the first; what diverges ends in NaN."""
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
    steps = max(EVERY, round(1e3 * picoseconds / TIMESTEP))
    energies = []
    try:
        energies.append(atoms.get_total_energy())
        for _ in range(0, steps, EVERY):
            dynamics.run(EVERY)
            energies.append(atoms.get_total_energy())
    except (EngineError, StructureError):  # atoms flew apart or met on one spot
        energies.append(float("nan"))
    values = 1e3 * (np.array(energies) - energies[0]) / len(atoms)
    return np.arange(len(values)) * EVERY * TIMESTEP / 1e3, values


def relaxation(audited: Audited, engine: Any, student: Any, tell: Tell = lambda _: None) -> list[Finding]:
    """Perturbed molecules relaxed with the engine and with the student, which should end in the same minima.

    Where a minimum is flat, geometries that settled are not yet at its bottom. So both are relaxed further, tightly,
    with the student: from one basin they reach one bottom, and the engine's stopped no higher above it than the
    student's.
    """
    cases, apart, highest = [], 0.0, 0.0
    force = max(FMAX, 3 * audited.typical.force_error)
    for start in audited.subjects.shaken[:3]:
        name = start.info["name"]
        tell(f"relaxing {name} twice")
        theirs = _descended(start, student, student, force)
        ours = None if theirs is None else _descended(start, engine, student, force)
        if theirs is None or ours is None:
            own, lost = (0.0 if theirs else np.inf), (np.inf if theirs else 0.0)
            cases.append(Case(name, own, max(own, lost), lost, 0.0))
            continue
        (stopped, bottom), (ours_stopped, ours_bottom) = (
            [r["energy"] / len(start) for r in audited.student(list(end))] for end in (theirs, ours)
        )
        height, allowed = ours_stopped - ours_bottom, audited.resolution.at(name).energy_error
        flat = 3 * (stopped - bottom)
        cases.append(Case.of(name, 0.0, ours_bottom - bottom, flat))
        cases.append(Case.of(name, 0.0, height - (stopped - bottom), flat + 2 * allowed))
        apart = max(apart, superposed_rmsd(ours[0].positions, ours[1].positions))
        highest = max(highest, height)
    words = Words(
        holds=f"Relaxed with the engine to {1e3 * force:g} meV/Å, molecules end in the student's minima: {apart:.4f} Å "
        f"(RMSD) from their bottoms and {show(1e3 * highest)} meV/atom above them.",
        student=f"{{subject}} does not settle to {1e3 * TIGHT:g} meV/Å in {MOST_STEPS} steps, with the student itself: "
        "its forces jump near the minimum.",
        engine="Relaxed from one start, {subject} ends elsewhere with the engine than with its student, "
        "{lost} apart on the student's surface (infinite: with the engine it does not settle at all).",
    )
    measure = Measure("relaxation", "dynamics", "meV/atom", RELAXATION_LIMIT, audited.limits.energy, words)
    return [measure.finding(cases)]


def _descended(start: Atoms, calculator: Any, student: Any, force: float) -> tuple[Atoms, Atoms] | None:
    """Where a calculator stops, and the bottom that the student finds from there; None where either never settles."""
    stopped = start.copy()
    if not _relaxed(stopped, calculator, force):
        return None
    bottom = stopped.copy()
    return (stopped, bottom) if _relaxed(bottom, student, TIGHT) else None


def superposed_rmsd(one: np.ndarray, other: np.ndarray) -> float:
    """RMSD in Å of two geometries [atoms, 3] laid over each other (Kabsch 1976, doi:10.1107/S0567739476001873)."""
    one, other = one - one.mean(0), other - other.mean(0)
    u, _, vt = np.linalg.svd(one.T @ other)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    return float(np.sqrt(np.square(one @ (u @ flip @ vt) - other).sum(1).mean()))


def _relaxed(atoms: Atoms, calculator: Any, fmax: float) -> bool:
    """Relax in place; whether it settled."""
    atoms.calc = calculator
    try:
        return bool(BFGS(atoms, logfile=None).run(fmax=fmax, steps=MOST_STEPS))
    except (EngineError, StructureError):
        return False
    finally:
        atoms.calc = None


def _liveliness(atoms: Atoms) -> int:
    """Molecules with soft torsions and hydrogen show most in dynamics; rings of many atoms cost most."""
    return len(atoms) if len(atoms) <= 10 else -len(atoms)


def _correlation_length(values: np.ndarray) -> float:
    """How many neighbouring points say the same: 1 + 2 Σ of the autocorrelation until it first vanishes."""
    size = len(values)
    spectrum = np.fft.rfft(values, 2 * size)
    correlation = np.fft.irfft(spectrum * spectrum.conj())[:size]
    if correlation[0] <= 0:
        return 1.0
    correlation /= correlation[0]
    negative = np.flatnonzero(correlation <= 0)
    end = int(negative[0]) if len(negative) else size
    return float(1 + 2 * correlation[1:end].sum())
