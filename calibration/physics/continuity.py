"""Continuity of energies and forces: where a pair crosses the cutoff, at perfect symmetry, and along a bond."""

import itertools

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from painn_deploy.calibration.physics.resolution import Evaluate, jitter
from painn_deploy.calibration.physics.subjects import Audited
from painn_deploy.calibration.physics.symmetry import SIGMAS, listed, worse_of
from painn_deploy.calibration.physics.verdicts import (
    Case,
    Finding,
    Property,
    Sentences,
    Verdict,
    format_quantity,
    largest,
)

__all__ = ["bond_stretch", "cross_cutoff", "cusp"]

STEP = 1e-6
"""Å, to either side of the cutoff or of perfect symmetry: short enough that nothing smooth changes."""

COARSE_STEP = 1e-2
"""Å, in precisions that do not resolve the short step: about the path of an atom in a time step."""

JUMP_LIMIT = 1e-3
"""eV, largest step of the energy where a pair crosses the cutoff."""

FORCE_JUMP_LIMIT = 1e-2
"""eV/Å, largest step of a force component there."""

WORK_LIMIT = 1e-4
"""eV, between the energy and the work of the force over one piece of a bond's path."""

PIECES, SHORTEST, LONGEST = 60, 0.75, 2.0
"""How many pieces a bond's path has, and its ends in equilibrium lengths."""

FINEST, MOST_REFINED = 512, 6
"""Into how many parts a piece is divided before a step in its energy is believed, and of how many pieces at most."""


def cross_cutoff(audited: Audited) -> list[Finding]:
    """Move atoms across the cutoff, from another atom and from a molecule, and compare just within with just beyond."""
    names, inside, outside = _at_the_cutoff(audited)
    allowed = audited.typical
    energies, forces = [], []
    results = [(evaluate(inside), evaluate(outside)) for evaluate in (audited.engine, audited.student)]
    for index, name in enumerate(names):
        e, s = (near[index]["energy"] - far[index]["energy"] for near, far in results)
        f, g = (np.asarray(near[index]["forces"]) - np.asarray(far[index]["forces"]) for near, far in results)
        noise = SIGMAS * (2 * len(inside[index])) ** 0.5 * allowed.energy_noise
        noise += 2 * allowed.energy_error * len(inside[index])
        energies.append(Case.of(name, s, e, noise))
        forces.append(Case.of(name, g, f, 4 * allowed.force_error))
    student = (
        "jumps by {student} where {subject} cross the cutoff of "
        f"{audited.cutoff:g} Å, in the student as in the engine: its interactions do not fade out. Every pair that "
        "comes or goes in a simulation adds such a step to the energy, and no force answers for it."
    )
    engine = f"jumps by {{lost}} where {{subject}} cross the cutoff of {audited.cutoff:g} Å; its student's does not."
    found = worse_of(
        Property(
            "cutoff",
            "consistency",
            "meV",
            JUMP_LIMIT,
            np.inf,
            Sentences(
                f"Nothing jumps where atoms cross the cutoff of {audited.cutoff:g} Å: at most {{engine}}.",
                f"The energy {student}",
                f"The energy of the engine {engine}",
            ),
        ),
        energies,
        Property(
            "cutoff",
            "consistency",
            "meV/Å",
            FORCE_JUMP_LIMIT,
            audited.limits.forces,
            Sentences(
                f"Nothing jumps where atoms cross the cutoff of {audited.cutoff:g} Å: at most {{engine}}.",
                "Where {subject} cross the cutoff the force jumps by {student}, in the student as in the engine.",
                f"A force of the engine {engine}",
            ),
        ),
        forces,
    )
    if found.verdict == "student: broken" and found.unit == "meV":
        pairs = [case for case in energies if "beside" not in case.subject]
        found = found.with_sentence(f"{found.sentence} In meV: {listed(pairs)}.")
    return [found]


def cusp(audited: Audited) -> list[Finding]:
    """Compare forces on either side of perfect symmetry, where the vectors on an atom cancel."""
    if not audited.subjects.symmetric:
        return []
    fine = audited.precision == "fp32"
    cases, steepest = [], ("", 0.0)
    for index, atoms in enumerate(audited.subjects.symmetric):
        direction = np.random.default_rng(index).normal(size=atoms.positions.shape)
        direction /= np.linalg.norm(direction, axis=1).max()

        def jump(
            evaluate: Evaluate, step: float, atoms: Atoms = atoms, direction: np.ndarray = direction
        ) -> np.ndarray:
            sides = [atoms.copy(), atoms.copy()]
            for side, sign in zip(sides, (1, -1), strict=True):
                side.positions += sign * step * direction
            one, other = evaluate(sides)
            return np.asarray(one["forces"] - other["forces"])

        own, step = jump(audited.student, STEP), STEP if fine else COARSE_STEP
        wanted = own if fine else jump(audited.student, step)
        lost = jump(audited.engine, step) - wanted
        blur = largest(jump(audited.single, step) - wanted)
        allowance = 10 * blur if fine else 6 * audited.typical.force_error
        name = atoms.info["name"]
        cases.append(Case.of(name, own, own + lost, allowance))
        soft = max(largest(jump(audited.student, nearby)) for nearby in (1e-5, 1e-4))
        steepest = max(steepest, (name, soft), key=lambda pair: pair[1])
    sentences = Sentences(
        holds="Forces pass perfect symmetry smoothly: over 2e-6 Å they change by {student}.",
        student="At perfect symmetry, as in {subject}, forces jump by {student} between two geometries "
        "2e-6 Å apart, in the student as in the engine: its energy has a cusp where the vectors on an atom "
        "cancel, and forces there are rounding noise. Relaxations and vibrations of such molecules mean nothing.",
        engine="At perfect symmetry, as in {subject}, the engine's forces jump by {lost} more than its student's: the "
        "graph has lost what smooths the norm of a vanishing vector.",
    )
    limit = audited.limits.forces
    found = Property("perfect symmetry", "consistency", "meV/Å", limit, np.inf, sentences).finding(cases)
    if found.student_verdict == Verdict.HOLDS and steepest[1] > limit:
        found = found.with_sentence(
            f"{found.sentence} It is steep there all the same: on {steepest[0]}, "
            f"{format_quantity(1e3 * steepest[1], 'meV/Å')} within 2e-4 Å. Start from perturbed geometries."
        )
    return [found]


def bond_stretch(audited: Audited) -> list[Finding]:
    """Compare the energy with the work of the force along a bond, from 0.75 to 2 times its length."""
    cases = []
    for atoms in audited.subjects.shaken[:3]:
        allowed = audited.resolution.at(atoms.info["name"])
        one, other, length = _bond(atoms)
        ends = length * np.linspace(SHORTEST, LONGEST, PIECES + 1)
        evaluators = {"engine": audited.engine, "student": audited.student}
        missing = {label: np.zeros(PIECES) for label in evaluators}
        pieces, parts, before = np.arange(PIECES), 1, np.full((2, PIECES), np.inf)
        while len(pieces) and parts <= FINEST:
            for label, evaluate in evaluators.items():
                found = _work_missing(evaluate, atoms, (one, other), ends[pieces], ends[pieces + 1], parts)
                missing[label][pieces] = found
            now = np.abs([missing["student"], missing["engine"] - missing["student"]])
            # where a force turns sharply shorter steps miss less of its work; a jump of the energy is there at any
            unclear = (now > WORK_LIMIT) & (now < 0.7 * before)
            pieces = np.unique(np.concatenate([np.flatnonzero(row)[:MOST_REFINED] for row in unclear]))
            parts, before = parts * 8, now
        noise = SIGMAS * (
            2**0.5 * _noise(audited, atoms, (one, other), ends) + (ends[1] - ends[0]) * allowed.force_error
        )
        bond = f"{atoms.symbols[one]}-{atoms.symbols[other]} of {atoms.info['name']}"
        cases.append(Case.of(bond, missing["student"], missing["engine"], noise))
    sentences = Sentences(
        holds=f"Along a stretched bond ({SHORTEST:g} to {LONGEST:g} times its length) the energy is the work of the "
        f"force, to {{engine}} for each of {PIECES} pieces.",
        student="When {subject} is stretched the energy steps by {student} without a force that answers for it, in the "
        "student as in the engine.",
        engine="When {subject} is stretched the engine's energy steps by {lost} without a force that answers for it; "
        "its student's does not.",
    )
    ceiling = audited.limits.energy
    return [Property("bond stretch", "consistency", "meV", WORK_LIMIT, ceiling, sentences).finding(cases)]


def _at_the_cutoff(audited: Audited) -> tuple[list[str], list[Atoms], list[Atoms]]:
    names: list[str] = []
    inside: list[Atoms] = []
    outside: list[Atoms] = []
    elements = audited.subjects.elements
    for one, other in itertools.combinations_with_replacement(elements, 2):
        names.append(f"{chemical_symbols[one]}-{chemical_symbols[other]}")
        for structures, side in ((inside, -1), (outside, 1)):
            structures.append(Atoms([one, other], [[0, 0, 0], [0, 0, audited.cutoff + side * STEP]]))
    for molecule, element in itertools.product(audited.subjects.shaken[:2], elements[:4]):
        x, y, z = molecule.positions[molecule.positions[:, 0].argmax()]
        names.append(f"{chemical_symbols[element]} beside {molecule.info['name']}")
        for structures, side in ((inside, -1), (outside, 1)):
            structures.append(molecule + Atoms([element], [[x + audited.cutoff + side * STEP, y, z]]))
    return names, inside, outside


def _bond(atoms: Atoms) -> tuple[int, int, float]:
    """The heavier end, the lighter end and the length of the bond that is shortest for its elements."""
    distances = atoms.get_all_distances()
    radii = covalent_radii[atoms.numbers]
    strain = distances / (radii[:, None] + radii) + np.where(distances > 0, 0.0, np.inf)
    one, other = (int(i) for i in np.unravel_index(strain.argmin(), strain.shape))
    if atoms.numbers[one] < atoms.numbers[other]:
        one, other = other, one
    return one, other, float(distances[one, other])


def _noise(audited: Audited, atoms: Atoms, bond: tuple[int, int], lengths: np.ndarray) -> float:
    """Noise of an energy along a bond's path, eV: more than around the equilibrium if a force turns sharply."""
    path = _stretched(atoms, bond, lengths)
    engine, student = (np.array([r["energy"] for r in f(path)]) for f in (audited.engine, audited.student))
    permitted = audited.resolution.permitted[atoms.info["name"]].energy_noise * len(atoms) ** 0.5
    return float(min(jitter((engine - student)[:, None]), permitted))


def _stretched(atoms: Atoms, bond: tuple[int, int], lengths: np.ndarray) -> list[Atoms]:
    one, other = bond
    unit = atoms.positions[other] - atoms.positions[one]
    unit = unit / np.linalg.norm(unit)
    path = []
    for length in lengths:
        moved = atoms.copy()
        moved.positions[other] = atoms.positions[one] + length * unit
        path.append(moved)
    return path


def _work_missing(
    evaluate: Evaluate, atoms: Atoms, bond: tuple[int, int], starts: np.ndarray, ends: np.ndarray, parts: int
) -> np.ndarray:
    """Energy less work of the force in eV over each piece of a bond's path, by Simpson's rule over `parts` of it."""
    one, other = bond
    unit = atoms.positions[other] - atoms.positions[one]
    unit = unit / np.linalg.norm(unit)
    lengths = starts[:, None] + (ends - starts)[:, None] * np.linspace(0, 1, 2 * parts + 1)
    results = evaluate(_stretched(atoms, bond, lengths.ravel()))
    energies = np.array([result["energy"] for result in results]).reshape(lengths.shape)
    forces = np.array([np.asarray(result["forces"])[other] @ unit for result in results]).reshape(lengths.shape)
    weights = np.ones(2 * parts + 1)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    gradient = -forces @ weights * (ends - starts) / (6 * parts)
    missing: np.ndarray = energies[:, -1] - energies[:, 0] - gradient
    return missing
