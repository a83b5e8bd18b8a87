"""Symmetries: turning, moving or renumbering a structure, or choosing another cell, must not change its energy.

It follows that forces turn with the structure, that their sum is zero, and that their torques add up to zero.
"""

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from painn_deploy.calibration.physics.resolution import random_rotations, turned
from painn_deploy.calibration.physics.subjects import Audited, affordable
from painn_deploy.calibration.physics.verdicts import (
    Case,
    Finding,
    Property,
    Sentences,
    Verdict,
    format_number,
    length,
    rms,
)

__all__ = [
    "judge_change",
    "lattice_shift",
    "listed",
    "net_force",
    "permutation",
    "rotation",
    "torque",
    "translation",
    "worse_of",
]

ORIENTATIONS = 50
SIGMAS = 6.0
"""Standard deviations that noise is allowed: the largest of ten thousand normal numbers stays below."""

ROTATION_LIMIT = 1e-4
"""eV, largest minus smallest energy of a molecule over all orientations."""

ENERGY_LIMIT = 1e-5
"""eV an atom, largest change of an energy that should not change; rounding in float32 stays below."""

FORCE_LIMIT = 5e-4
"""eV/Å, largest change of a force component that should not change."""

NET_FORCE_LIMIT = 1e-4
"""eV/Å, length of the sum of all forces, for each √atom."""

TORQUE_LIMIT = 1e-3
"""eV, length of the sum of all torques about the centre."""


def rotation(audited: Audited) -> list[Finding]:
    """Compare energies of turned molecules, and their forces turned back; of crystals where there is no molecule."""
    energies, forces, ways = [], [], []
    for atoms in audited.subjects.molecules or audited.subjects.crystals:
        name = atoms.info["name"]
        allowed = audited.resolution.at(name)
        rotations = random_rotations(affordable(ORIENTATIONS, atoms), 1)
        results = audited.evaluated([turned(atoms, matrix) for matrix in rotations])
        total = [np.array([r["energy"] for r in each]) for each in results]
        back = [np.array([r["forces"] @ m for r, m in zip(each, rotations, strict=True)]) for each in results]
        most = audited.limits.energy * len(atoms)
        noise = SIGMAS * (allowed.energy_error * len(atoms) + allowed.energy_noise * len(atoms) ** 0.5)
        energies.append(audited.case(name, total, min(noise, most), most, _spread))
        forces.append(audited.case(name, back, 2 * allowed.force_error, audited.limits.forces, _deviation))
        ways.append(len(rotations))
    what = "molecule" if audited.subjects.molecules else "crystal"
    many = f"{max(ways)}" if min(ways) == max(ways) else f"{min(ways)} to {max(ways)}"
    energy_sentences = Sentences(
        holds=f"Turned {many} ways, no {what} changes its energy by more than {{engine}}.",
        student=f"Turning {{subject}} {many} ways changes its energy by {{student}}, in the student as in the "
        f"engine: it knows x from z, so results depend on how a {what} lies in space. Only another student mends it.",
        engine="The engine adds {lost} to how the energy of {subject} changes when it is turned: results depend on how "
        f"a {what} lies in space.",
    )
    force_sentences = Sentences(
        holds=f"Forces turn with the {what}, to {{engine}} (RMS).",
        student="Forces on {subject} do not turn with it: they differ by {student} (RMS) from one orientation to the "
        "next, in the student as in the engine.",
        engine="Forces on {subject} do not turn with it: the engine adds {lost} (RMS) from one orientation to the "
        "next.",
    )
    found = Property("rotation, energy", "symmetry", "meV", ROTATION_LIMIT, np.inf, energy_sentences).finding(energies)
    if found.verdict == "student: broken":
        found = found.with_sentence(f"{found.sentence} In meV: {listed(energies)}.")
    ceiling = audited.limits.forces
    turning = Property("rotation, forces", "symmetry", "meV/Å", FORCE_LIMIT, ceiling, force_sentences).finding(forces)
    return [found, turning]


def translation(audited: Audited) -> list[Finding]:
    """Move every structure as a whole, by tens of Å."""
    rng = np.random.default_rng(1)
    before, after = [], []
    for atoms in audited.subjects.perturbed:
        for _ in range(3):
            moved = atoms.copy()
            moved.positions += rng.uniform(-50, 50, 3)
            before.append(atoms)
            after.append(moved)
    return [judge_change(audited, "translation", "the whole structure is moved", before, after)]


def permutation(audited: Audited) -> list[Finding]:
    """List the atoms of every structure in another order."""
    rng, before, after, orders = np.random.default_rng(2), [], [], []
    for atoms in audited.subjects.perturbed:
        for _ in range(3):
            order = rng.permutation(len(atoms))
            before.append(atoms)
            after.append(atoms[order])
            orders.append(order)
    return [judge_change(audited, "permutation", "atoms are listed in another order", before, after, orders)]


def lattice_shift(audited: Audited) -> list[Finding]:
    """Put the atoms of crystals into other cells, and write crystals as supercells."""
    rng, before, after, orders = np.random.default_rng(3), [], [], []
    for atoms in audited.subjects.crystals:
        shifted, wrapped = atoms.copy(), atoms.copy()
        shifted.positions += (rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc) @ np.asarray(atoms.cell)
        wrapped.positions += (rng.uniform(0, 1, 3) * atoms.pbc) @ np.asarray(atoms.cell)
        wrapped.wrap()
        repeats = np.ones(3, int)
        repeats[np.argmax(atoms.pbc)] = 2  # along the first periodic direction
        before += [atoms, atoms, atoms]
        after += [shifted, wrapped, atoms.repeat(repeats)]
        orders += [np.arange(len(atoms)), np.arange(len(atoms)), np.tile(np.arange(len(atoms)), 2)]
    if not before:
        return []
    how = "atoms are written in other cells, or a crystal as a supercell"
    return [judge_change(audited, "lattice shift", how, before, after, orders)]


def judge_change(
    audited: Audited,
    name: str,
    how: str,
    before: Sequence[Atoms],
    after: Sequence[Atoms],
    orders: Sequence[np.ndarray] | None = None,
) -> Finding:
    """Compare energies per atom and forces of structures that should have the same; find for the worse of the two.

    Args:
        audited: engine and student.
        name: of the property.
        how: the end of the sentence "... changes when ...".
        before: structures.
        after: the same structures after the change.
        orders: of each structure, the index in `before` of each atom in `after`; by default the atoms keep their order.
    """
    results = list(zip(audited.evaluated(before), audited.evaluated(after), strict=True))
    energies, forces = [], []
    for index, (one, other) in enumerate(zip(before, after, strict=True)):
        allowed = audited.resolution.at(one.info["name"])
        order = np.arange(len(one)) if orders is None else orders[index]
        each = [b[index]["energy"] / len(other) - a[index]["energy"] / len(one) for a, b in results]
        pulls = [np.asarray(b[index]["forces"]) - np.asarray(a[index]["forces"])[order] for a, b in results]
        label, noise = one.info["name"], SIGMAS * 2**0.5 * allowed.energy_noise / len(one) ** 0.5
        energies.append(audited.case(label, each, noise, audited.limits.energy))
        forces.append(audited.case(label, pulls, SIGMAS * 2**0.5 * allowed.force_noise, audited.limits.forces))
    return worse_of(
        Property(name, "symmetry", "meV/atom", ENERGY_LIMIT, audited.limits.energy, _change_sentences("energy", how)),
        energies,
        Property(name, "symmetry", "meV/Å", FORCE_LIMIT, audited.limits.forces, _change_sentences("force", how)),
        forces,
    )


def net_force(audited: Audited) -> list[Finding]:
    """Add up all forces: the sum is zero in any precision that adds in float32, since forces come in pairs."""
    structures = audited.subjects.perturbed
    got, want, single = (f(structures) for f in (audited.engine, audited.student, audited.single))
    cases = []
    for atoms, e, s, f in zip(structures, got, want, single, strict=True):
        engine, student, own = (np.asarray(r["forces"]).sum(0) / len(atoms) ** 0.5 for r in (e, s, f))
        cases.append(Case.of(atoms.info["name"], student, engine, 10 * length(own - student), length))
    sentences = Sentences(
        holds="Forces add up to nothing, to {engine} for each √atom: no structure pushes itself through space.",
        student="The forces on {subject} add up to {student} for each √atom, in the student as in the engine: it "
        "pushes itself through space.",
        engine="The engine adds {lost} for each √atom to the sum of the forces on {subject}: it pushes it through "
        "space, and momentum is not conserved.",
    )
    ceiling = audited.limits.forces
    return [Property("net force", "symmetry", "meV/Å", NET_FORCE_LIMIT, ceiling, sentences).finding(cases)]


def torque(audited: Audited) -> list[Finding]:
    """Add up all torques on a molecule: the sum is zero if its energy does not depend on its orientation."""
    cases = []
    for atoms, *results in zip(audited.subjects.shaken, *audited.evaluated(audited.subjects.shaken), strict=True):
        arms = atoms.positions - atoms.positions.mean(0)
        torques = [np.cross(arms, np.asarray(r["forces"])).sum(0) for r in results]
        error = audited.resolution.at(atoms.info["name"]).force_error
        lever = float(np.sqrt(np.square(arms).sum()))
        most = audited.limits.forces * lever
        cases.append(audited.case(atoms.info["name"], torques, 4 * error * lever, most, length))
    if not cases:
        return []
    sentences = Sentences(
        holds="Forces spin no molecule: the largest torque is {engine}.",
        student="The forces on {subject} spin it with a torque of {student}, in the student as in the engine: the "
        "other face of an energy that depends on orientation. Angular momentum is not conserved.",
        engine="The engine spins {subject}: it adds a torque of {lost}.",
    )
    return [Property("torque", "symmetry", "meV", TORQUE_LIMIT, np.inf, sentences).finding(cases)]


def worse_of(one: Property, cases: Sequence[Case], other: Property, others: Sequence[Case]) -> Finding:
    """The finding with the worse verdict of two; if their verdicts are the same, the one nearer its limit.

    Args:
        one: a property.
        cases: of it.
        other: another property of the same name, such as of forces beside energies.
        others: cases of the other.
    """
    order = list(Verdict)
    found = [one.finding(cases), other.finding(others)]
    return max(
        found,
        key=lambda f: (
            order.index(f.engine_verdict),
            order.index(f.student_verdict),
            max(f.lost, f.student) / f.limit,
        ),
    )


def listed(cases: Sequence[Case]) -> str:
    """The student's own figures in meV, the ten largest first, as text."""
    worst = sorted(cases, key=lambda case: -case.student)[:10]
    return ", ".join(f"{case.subject} {format_number(1e3 * case.student)}" for case in worst)


def _change_sentences(what: str, how: str) -> Sentences:
    which = {"energy": "the energy of {subject}", "force": "a force on {subject}"}[what]
    return Sentences(
        holds=f"No {what} changes by more than {{engine}} when {how}.",
        student=f"{which[0].upper()}{which[1:]} changes by {{student}} when {how}, in the student as in the engine.",
        engine=f"The engine adds {{lost}} to how {which} changes when {how}: neighbours are missed, or it mixes up "
        "atoms.",
    )


def _spread(energies: np.ndarray) -> float:
    return float(np.ptp(energies))


def _deviation(forces: np.ndarray) -> float:
    """RMS of forces [orientations, atoms, 3] about their mean over orientations."""
    return rms(forces - forces.mean(0))
