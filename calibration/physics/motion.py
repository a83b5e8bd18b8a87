"""Simulations with an engine: whether its energy drifts in dynamics, and whether it relaxes to the student's minima."""

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from jaxtyping import Float

from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.calibration.physics.subjects import Audited
from painn_deploy.calibration.physics.verdicts import Case, Finding, Property, Sentences, format_number
from painn_deploy.export.errors import EngineError, StructureError
from painn_deploy.export.progress import Tell, silent

__all__ = ["energy_drift", "relaxation", "superposed_rmsd", "total_energies"]

TEMPERATURE, TIMESTEP, EVERY = 300.0, 0.5, 5
"""K, fs, and steps between two energies that are kept."""

DRIFT_LIMIT = 0.1
"""meV/atom/ps: it warms a molecule by about 1 K in a picosecond."""

RELAXATION_LIMIT = 1e-4
"""eV an atom, on the student's surface, between the engine's minimum and the student's."""

FMAX, TIGHT, MOST_STEPS = 0.01, 0.002, 250
"""eV/Å, of the engine's relaxation and of the student's; and steps."""


def energy_drift(
    audited: Audited, engine: Any, student: Any, *, picoseconds: float, tell: Tell = silent
) -> tuple[list[Finding], dict[str, Drift]]:
    """Run dynamics without a thermostat at 300 K with the engine and with the student, from one start.

    Args:
        audited: its molecules are the starts to choose from.
        engine: an ASE calculator.
        student: an ASE calculator of the student in float64.
        picoseconds: length of each trajectory.
        tell: called with a line about each step as it begins.

    Returns:
        The finding, and the drifts along the two trajectories by the names `engine` and `student`.
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
    diverged = not np.isfinite([own.slope, got.slope]).all()
    error = 0.0 if diverged else 2 * float(np.hypot(own.uncertainty, got.uncertainty))
    both = (
        f"{got.slope:+.3f} ± {got.uncertainty:.3f} meV/atom/ps, its student's {own.slope:+.3f} ± {own.uncertainty:.3f}"
    )
    sentences = Sentences(
        holds=f"Over {picoseconds:g} ps at {TEMPERATURE:g} K without a thermostat the total energy drifts by {both}.",
        student=f"Without a thermostat {{subject}} does not keep its energy: it drifts by {both}. The student's "
        "surface jumps or has cusps on the way.",
        engine=f"Without a thermostat {{subject}} keeps its energy with the student and not with the engine: {both}. "
        "Long simulations heat up or cool down.",
    )
    lost = abs(got.slope - own.slope) if np.isfinite(own.slope) else 0.0  # a student that diverged has nothing to lose
    case = Case(name, abs(own.slope), abs(got.slope), lost, error, 0.0 if diverged else 2 * own.uncertainty)
    judged = Property("energy drift", "dynamics", "meV/atom/ps", DRIFT_LIMIT, DRIFT_LIMIT, sentences, statistical=True)
    return [judged.finding([case])], drifts


def total_energies(
    atoms: Atoms, calculator: Any, picoseconds: float
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Run dynamics by velocity Verlet without a thermostat, and keep the total energy.

    Args:
        atoms: the start with its velocities; moved in place.
        calculator: an ASE calculator.
        picoseconds: length of the trajectory.

    Returns:
        Times in ps [points], and total energies in meV an atom [points], less the first; a trajectory that diverges
        ends in NaN.
    """
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


def relaxation(audited: Audited, engine: Any, student: Any, tell: Tell = silent) -> list[Finding]:
    """Relax perturbed molecules with the engine and with the student, which should end in the same minima.

    In a flat minimum a relaxation stops before the bottom. So both geometries are relaxed further, tightly, with the
    student: they reach one bottom if they were in one basin, and then the engine's geometry should have stopped no
    higher above it than the student's.

    Args:
        audited: its perturbed molecules are the starts.
        engine: an ASE calculator.
        student: an ASE calculator of the student in float64.
        tell: called with a line about each step as it begins.
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
    sentences = Sentences(
        holds=f"Relaxed with the engine to {1e3 * force:g} meV/Å, molecules end in the student's minima: {apart:.4f} Å "
        f"(RMSD) from their bottoms and {format_number(1e3 * highest)} meV/atom above them.",
        student=f"{{subject}} does not settle to {1e3 * TIGHT:g} meV/Å in {MOST_STEPS} steps, with the student itself: "
        "its forces jump near the minimum.",
        engine="Relaxed from one start, {subject} ends elsewhere with the engine than with its student, "
        "{lost} apart on the student's surface (infinite: with the engine it does not settle at all).",
    )
    ceiling = audited.limits.energy
    return [Property("relaxation", "dynamics", "meV/atom", RELAXATION_LIMIT, ceiling, sentences).finding(cases)]


def _descended(start: Atoms, calculator: Any, student: Any, force: float) -> tuple[Atoms, Atoms] | None:
    """The geometry where a calculator stops, and the student's minimum from there; None if either never settles."""
    stopped = start.copy()
    if not _relaxed(stopped, calculator, force):
        return None
    bottom = stopped.copy()
    return (stopped, bottom) if _relaxed(bottom, student, TIGHT) else None


def superposed_rmsd(one: Float[np.ndarray, "atoms 3"], other: Float[np.ndarray, "atoms 3"]) -> float:
    """RMSD in Å of two geometries laid over each other (Kabsch 1976, doi:10.1107/S0567739476001873).

    Args:
        one: positions, Å [atoms, 3].
        other: positions of the same atoms in the same order.
    """
    one, other = one - one.mean(0), other - other.mean(0)
    u, _, vt = np.linalg.svd(one.T @ other)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    return float(np.sqrt(np.square(one @ (u @ flip @ vt) - other).sum(1).mean()))


def _relaxed(atoms: Atoms, calculator: Any, fmax: float) -> bool:
    """Relax in place, and return whether the relaxation settled."""
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
