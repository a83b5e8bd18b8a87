"""Simulations with an engine: whether its energy drifts in dynamics, and whether it relaxes to the student's minima."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from jaxtyping import Float

from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.calibration.physics.subjects import Audited, affordable
from painn_deploy.calibration.physics.verdicts import Case, Finding, Property, Sentences, format_number
from painn_deploy.export.errors import EngineError, StructureError
from painn_deploy.export.progress import Tell, counting, prefixed, silent

__all__ = ["energy_drift", "relaxation", "superposed_rmsd", "total_energies"]

TEMPERATURE, TIMESTEP, EVERY = 300.0, 0.5, 5
"""K, fs, and steps between two energies that are kept."""

DRIFT_LIMIT = 0.1
"""meV/atom/ps: it warms a molecule by about 1 K in a picosecond."""

RELAXATION_LIMIT = 1e-4
"""eV an atom, on the student's surface, between the engine's minimum and the student's."""

FMAX, TIGHT, MOST_STEPS = 0.01, 0.002, 250
"""eV/Å, of the engine's relaxation and of the student's; and steps of a molecule of up to `USUAL` atoms."""

USUAL, MOST_RELAXED, LEAST_STEPS = 12, 64, 10
"""Atoms: a larger molecule may take more steps in proportion, and one that is larger still is not relaxed: that it does
not settle in a thousand steps would say nothing of its forces. It starts its dynamics after a few steps downhill."""

MOST_IN_DYNAMICS = 50
"""Atoms: the dynamics of more are shorter in proportion."""

LEAST_POINTS = 8
"""Energies that the uncertainty of a drift needs: dynamics that end before are left out."""


def energy_drift(
    audited: Audited, engine: Any, student: Any, *, picoseconds: float, single: Any = None, tell: Tell = silent
) -> tuple[list[Finding], dict[str, Drift]]:
    """Run dynamics without a thermostat at 300 K with the engine and with the student, from one start.

    Args:
        audited: its molecules are the starts to choose from; its crystals where there is no molecule.
        engine: an ASE calculator.
        student: an ASE calculator of the student in float64.
        picoseconds: length of each trajectory; a structure of many atoms has a shorter one.
        single: an ASE calculator of the student in float32: what its own trajectory differs by is excused. None for
            nothing excused.
        tell: called with a line about each step as it begins.

    Returns:
        The finding, and the drifts along the two trajectories by the names `engine` and `student`. There is none if the
        student soon leaves what it can be judged on.
    """
    atoms = max(audited.subjects.molecules or audited.subjects.crystals, key=_liveliness).copy()
    name = atoms.info["name"]
    most = affordable(MOST_STEPS, atoms, LEAST_STEPS) if len(atoms) > MOST_RELAXED else None
    _relaxed(atoms, student, FMAX, most, tell=prefixed(tell, f"relaxing {name} with the student: "))
    thermalize_momenta(atoms, 2 * TEMPERATURE, rng=np.random.default_rng(5))  # half of it becomes potential energy
    if len(atoms) > 2:
        Stationary(atoms)
        if not atoms.pbc.any():
            ZeroRotation(atoms)
    picoseconds *= min(1.0, MOST_IN_DYNAMICS / len(atoms))
    # a student need not know where a default structure goes; where a frame of the user's goes, it must
    largest_force = np.inf if audited.subjects.brought else audited.subjects.largest_force

    def run(label: str, calculator: Any, length: float) -> Drift:
        told = prefixed(tell, f"{length:.3g} ps of dynamics of {name}, {label}: ")
        return Drift.of(*total_energies(atoms.copy(), calculator, length, largest_force=largest_force, tell=told))

    own = run("student", student, picoseconds)
    if np.isfinite(own.energies).all() and len(own.times) < max(EVERY, round(1e3 * picoseconds / TIMESTEP)) / EVERY:
        picoseconds = float(own.times[-1])
        if len(own.times) < LEAST_POINTS:
            return [], {}
    got = run("engine", engine, picoseconds)
    diverged = not np.isfinite([own.slope, got.slope]).all()
    error = 0.0 if diverged else 2 * float(np.hypot(own.uncertainty, got.uncertainty))
    lost = abs(got.slope - own.slope) if np.isfinite(own.slope) else 0.0  # a student that diverged has nothing to lose
    if single is not None and not lost <= max(error, DRIFT_LIMIT):
        # what float32 makes of this trajectory is not the engine's; a float32 that diverges excuses one that diverges
        apart = abs(run("student in float32", single, picoseconds).slope - own.slope)
        error = max(error, 2 * apart)
    both = (
        f"{got.slope:+.3f} ± {got.uncertainty:.3f} meV/atom/ps, its student's {own.slope:+.3f} ± {own.uncertainty:.3f}"
    )
    sentences = Sentences(
        holds=f"Over {picoseconds:.3g} ps at {TEMPERATURE:g} K without a thermostat the total energy drifts by {both}.",
        student=f"Without a thermostat {{subject}} does not keep its energy: it drifts by {both}. The student's "
        "surface jumps or has cusps on the way.",
        engine=f"Without a thermostat the engine adds {{lost}} to the drift of the energy of {{subject}}: {both}. "
        "Long simulations heat up or cool down.",
    )
    case = Case(name, abs(own.slope), abs(got.slope), lost, error, 0.0 if diverged else 2 * own.uncertainty)
    judged = Property("energy drift", "dynamics", "meV/atom/ps", DRIFT_LIMIT, DRIFT_LIMIT, sentences, statistical=True)
    return [judged.finding([case])], {"student": own, "engine": got}


def total_energies(
    atoms: Atoms, calculator: Any, picoseconds: float, *, largest_force: float = np.inf, tell: Tell = silent
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Run dynamics by velocity Verlet without a thermostat, and keep the total energy.

    Args:
        atoms: the start with its velocities; moved in place.
        calculator: an ASE calculator.
        picoseconds: length of the trajectory.
        largest_force: eV/Å, of a component; the trajectory ends before a larger one.
        tell: called with how many steps are done.

    Returns:
        Times in ps [points], and total energies in meV an atom [points], less the first; a trajectory that diverges
        ends in NaN.
    """
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
    steps = max(EVERY, round(1e3 * picoseconds / TIMESTEP))
    energies, more = [], counting(tell, steps, "steps")
    try:
        energies.append(atoms.get_total_energy())
        for _ in range(0, steps, EVERY):
            dynamics.run(EVERY)
            if np.abs(atoms.get_forces()).max() > largest_force:
                break
            energies.append(atoms.get_total_energy())
            more(EVERY)
    except (EngineError, StructureError):  # atoms flew apart or met on one spot
        energies.append(float("nan"))
    values = 1e3 * (np.array(energies) - energies[0]) / len(atoms)
    return np.arange(len(values)) * EVERY * TIMESTEP / 1e3, values


def relaxation(
    audited: Audited, engine: Any, student: Any, tell: Tell = silent, *, single: Any = None
) -> list[Finding]:
    """Relax perturbed molecules with the engine and with the student, which should end in the same minima.

    In a flat minimum a relaxation stops before the bottom. So both geometries are relaxed further, tightly, with the
    student: they reach one bottom if they were in one basin, and then the engine's geometry should have stopped no
    higher above it than the student's.

    Args:
        audited: its perturbed molecules are the starts, or its crystals in fixed cells where there is no molecule.
        engine: an ASE calculator.
        student: an ASE calculator of the student in float64.
        tell: called with a line about each step as it begins.
        single: an ASE calculator of the student in float32: where it ends elsewhere itself, so may the engine. None for
            nothing excused.
    """
    cases, apart, highest = [], 0.0, 0.0
    force = max(FMAX, 3 * audited.typical.force_error)
    for start in audited.subjects.shaken[:3] or audited.subjects.crystals[:2]:
        name = start.info["name"]
        if len(start) > MOST_RELAXED:
            tell(f"not relaxing {name}: it has more than {MOST_RELAXED} atoms")
            continue
        told = prefixed(tell, f"relaxing {name} with the student: ")
        theirs = _descended(start, student, student, force, told)
        if not (theirs.settled or all(audited.sound(theirs.geometries))):
            continue  # it left what the student can be judged on
        told = prefixed(tell, f"relaxing {name} with the engine: ")
        ours = _descended(start, engine, student, force, told) if theirs.settled else theirs
        excused = 0.0
        if theirs.settled and single is not None and _beyond(audited, theirs, ours) > RELAXATION_LIMIT:
            told = prefixed(tell, f"relaxing {name} with the student in float32: ")
            excused = _beyond(audited, theirs, _descended(start, single, student, force, told))
        if not (theirs.settled and ours.settled):
            own, lost = (0.0 if theirs.settled else np.inf), (np.inf if theirs.settled else 0.0)
            cases.append(Case(name, own, max(own, lost), lost, excused))
            continue
        (stopped, bottom), (ours_stopped, ours_bottom) = (
            [r["energy"] / len(start) for r in audited.student(end.geometries)] for end in (theirs, ours)
        )
        height, allowed = ours_stopped - ours_bottom, audited.resolution.at(name).energy_error
        flat = 3 * (stopped - bottom)
        cases.append(Case.of(name, 0.0, ours_bottom - bottom, max(flat, excused)))
        cases.append(Case.of(name, 0.0, height - (stopped - bottom), max(flat + 2 * allowed, excused)))
        apart = max(apart, superposed_rmsd(ours.geometries[0].positions, ours.geometries[1].positions))
        highest = max(highest, height)
    if not cases:
        return []
    what = "molecules" if audited.subjects.shaken else "crystals"
    sentences = Sentences(
        holds=f"Relaxed with the engine to {1e3 * force:g} meV/Å, {what} end in the student's minima: {apart:.4f} Å "
        f"(RMSD) from their bottoms and {format_number(1e3 * highest)} meV/atom above them.",
        student=f"{{subject}} does not settle to {1e3 * TIGHT:g} meV/Å in hundreds of steps, with the student itself.",
        engine="Relaxed from one start, {subject} ends elsewhere with the engine, {lost} from the student's minimum on "
        "the student's surface (infinite: with the engine it does not settle at all).",
    )
    ceiling = audited.limits.energy
    return [Property("relaxation", "dynamics", "meV/atom", RELAXATION_LIMIT, ceiling, sentences).finding(cases)]


@dataclass(frozen=True)
class _Descent:
    """Where a calculator stopped, and the student's minimum from there, if both relaxations settled."""

    geometries: list[Atoms]
    settled: bool


def _descended(start: Atoms, calculator: Any, student: Any, force: float, tell: Tell) -> _Descent:
    stopped = start.copy()
    if not _relaxed(stopped, calculator, force, tell=tell):
        return _Descent([stopped], False)
    bottom = stopped.copy()
    return _Descent([stopped, bottom], _relaxed(bottom, student, TIGHT, tell=prefixed(tell, "further, ")))


def _beyond(audited: Audited, theirs: _Descent, ours: _Descent) -> float:
    """How far from the student's energies, eV an atom, another relaxation stopped or its bottom is; or infinite."""
    if not ours.settled:
        return float("inf")
    energies = [np.array([r["energy"] for r in audited.student(each.geometries)]) for each in (theirs, ours)]
    return float(np.abs(energies[1] - energies[0]).max() / len(theirs.geometries[0]))


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


def _relaxed(atoms: Atoms, calculator: Any, fmax: float, steps: int | None = None, *, tell: Tell) -> bool:
    """Relax in place, and return whether the relaxation settled; a large molecule may take more steps."""
    atoms.calc = calculator
    steps = steps or round(MOST_STEPS * max(1.0, len(atoms) / USUAL))
    try:
        optimizer = BFGS(atoms, logfile=None)
        optimizer.attach(lambda: tell(f"step {optimizer.nsteps} of {steps} at most"))
        return bool(optimizer.run(fmax=fmax, steps=steps))
    except (EngineError, StructureError):
        return False
    finally:
        atoms.calc = None


def _liveliness(atoms: Atoms) -> int:
    """Molecules with soft torsions and hydrogen show most in dynamics; rings of many atoms cost most."""
    return len(atoms) if len(atoms) <= 10 else -len(atoms)
