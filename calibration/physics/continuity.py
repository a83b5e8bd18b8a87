"""Continuity of energies and forces: where a pair crosses the cutoff, at perfect symmetry, and along a bond."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from painn_deploy.calibration.physics.resolution import Evaluate, jitter, random_rotations, turned
from painn_deploy.calibration.physics.subjects import Audited, work
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
from painn_deploy.export.manifest_values import EXACT

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

WIDER = 0.95, 1.05
"""Of the shortest and the longest bond of the user's structures, between which a bond of theirs is stretched."""

PIECES, SHORTEST, LONGEST = 60, 0.75, 2.0
"""How many pieces a bond's path has, and its ends in equilibrium lengths."""

REFINED = {8: 24, 64: 12, 512: 6}
"""Into how many parts pieces are divided, one after the other, before a step in their energy is believed; and how many
pieces at most: those of the largest steps."""

MOST_REFINED = 100_000
"""Atoms in all points of one division: fewer pieces of a large structure are divided, and less often."""

LEAST_ENDS = 8
"""Ends of pieces that a path needs for its noise to be told from its bend."""

TURNS = 4
"""Orientations in which float32's own steps at the cutoff are measured: one pair is one draw of rounding."""


def cross_cutoff(audited: Audited) -> list[Finding]:
    """Move atoms across the cutoff, from another atom and from a molecule, and compare just within with just beyond."""
    names, inside, outside = _at_the_cutoff(audited)
    if not names:
        return []
    allowed = audited.typical
    energies, forces = [], []
    results = [(evaluate(inside), evaluate(outside)) for evaluate in (audited.engine, audited.student)]
    own = _float32_jumps(audited, inside, outside)
    for index, name in enumerate(names):
        e, s = (near[index]["energy"] - far[index]["energy"] for near, far in results)
        f, g = (np.asarray(near[index]["forces"]) - np.asarray(far[index]["forces"]) for near, far in results)
        noise = SIGMAS * (2 * len(inside[index])) ** 0.5 * allowed.energy_noise
        noise += 2 * allowed.energy_error * len(inside[index])
        most = audited.limits.energy * len(inside[index])
        energies.append(Case.of(name, s, e, audited.excused(noise, own[0][index], most)))
        allowance = audited.excused(4 * allowed.force_error, own[1][index], audited.limits.forces)
        forces.append(Case.of(name, g, f, allowance))
    student = (
        "jumps by {student} where {subject} cross the cutoff of "
        f"{audited.cutoff:g} Å, in the student as in the engine: its interactions do not fade out. Every pair that "
        "comes or goes in a simulation adds such a step to the energy, and no force answers for it."
    )
    engine = f"{{lost}} to the jump where {{subject}} cross the cutoff of {audited.cutoff:g} Å."
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
                f"The engine adds {engine}",
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
                f"The engine adds {engine}",
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
    fine = audited.precision in EXACT
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
        allowance = 0.0 if fine else 6 * audited.typical.force_error
        allowance = audited.excused(allowance, blur, np.inf if fine else audited.limits.forces)
        name = atoms.info["name"]
        if name in audited.subjects.foreign:  # it shows what a graph lost; of the student it says nothing
            cases.append(Case.of(name, 0.0 * own, lost, allowance))
            continue
        cases.append(Case.of(name, own, own + lost, allowance))
        soft = max(largest(jump(audited.student, nearby)) for nearby in (1e-5, 1e-4))
        steepest = max(steepest, (name, soft), key=lambda pair: pair[1])
    known = {atoms.info["name"] for atoms in audited.subjects.symmetric} - audited.subjects.foreign
    sentences = Sentences(
        holds="Forces pass perfect symmetry smoothly: over 2e-6 Å they change by {student}."
        if known
        else "At perfect symmetry the engine's forces change as its student's do, to {lost}; the student is not judged "
        "there, since none of your structures is a symmetric molecule.",
        student="At perfect symmetry, as in {subject}, forces jump by {student} between two geometries "
        "2e-6 Å apart, in the student as in the engine: its energy has a cusp where the vectors on an atom "
        "cancel, and forces there are rounding noise. Relaxations and vibrations of such molecules mean nothing.",
        engine="At perfect symmetry, as in {subject}, the engine adds {lost} to the jump of a force: the "
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
    """Compare the energy with the work of the force along a bond, from 0.75 to 2 times its length.

    In the user's structures it is stretched over the lengths that such bonds have there. The path ends early where the
    student cannot be judged: where its forces are beyond reason or float32 is blurred.
    """
    cases, whole = [], True
    for atoms in audited.subjects.shaken[:3] or audited.subjects.crystals[:2]:
        bond = _Bond.shortest(atoms)
        ends = _sound_part(audited, bond, np.linspace(*_span(audited, bond), PIECES + 1))
        if len(ends) < LEAST_ENDS:
            continue
        missing = _refined(audited, bond, ends)
        if not missing.size:
            continue
        error = audited.resolution.at(atoms.info["name"]).force_error
        noise = SIGMAS * (2**0.5 * _noise(audited, bond, ends) + (ends[1] - ends[0]) * error)
        name = f"{atoms.symbols[bond.one]}-{atoms.symbols[bond.other]} of {atoms.info['name']}"
        if len(ends) <= PIECES:
            whole = False
            name += f" ({ends[0] / bond.length:.2f} to {ends[-1] / bond.length:.2f} times its length)"
        cases.append(audited.case(name, list(missing), noise, audited.limits.energy))
    if not cases:
        return []
    path = f"{SHORTEST:g} to {LONGEST:g} times its length"
    if audited.subjects.brought:
        path = "over the lengths that it has in your structures"
    path = f"({path}{'' if whole else ', where the student is sound'})"
    sentences = Sentences(
        holds=f"Along a stretched bond {path} the energy is the work of the force, to {{engine}} for each of "
        f"{'' if whole else 'up to '}{PIECES} pieces.",
        student="When {subject} is stretched the energy steps by {student} without a force that answers for it, in the "
        "student as in the engine.",
        engine="When {subject} is stretched the engine adds a step of {lost} to the energy, and no force answers for "
        "it.",
    )
    ceiling = audited.limits.energy
    return [Property("bond stretch", "consistency", "meV", WORK_LIMIT, ceiling, sentences).finding(cases)]


def _span(audited: Audited, bond: "_Bond") -> tuple[float, float]:
    """Lengths, Å, that a bond is stretched over."""
    one, other = sorted(int(bond.atoms.numbers[i]) for i in (bond.one, bond.other))
    known = audited.subjects.bonds.get((one, other))
    if known is None:
        return SHORTEST * bond.length, LONGEST * bond.length
    return WIDER[0] * min(known[0], bond.length), WIDER[1] * max(known[1], bond.length)


def _float32_jumps(
    audited: Audited, inside: Sequence[Atoms], outside: Sequence[Atoms]
) -> tuple[list[float], list[float]]:
    """The largest jumps that float32 adds to the student's own, eV and eV/Å of each pair, over some orientations."""
    energies, forces = np.zeros((2, len(inside)))
    for rotation in random_rotations(TURNS, 4):
        jumps = []
        for evaluate in (audited.student, audited.single):
            near, far = (evaluate([turned(atoms, rotation) for atoms in side]) for side in (inside, outside))
            jumps.append(
                [(a["energy"] - b["energy"], a["forces"] - b["forces"]) for a, b in zip(near, far, strict=True)]
            )
        for index, (one, other) in enumerate(zip(*jumps, strict=True)):
            energies[index] = max(energies[index], abs(other[0] - one[0]))
            forces[index] = max(forces[index], largest(np.asarray(other[1] - one[1])))
    return energies.tolist(), forces.tolist()


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
    sound = [i for i, ok in enumerate(map(all, zip(audited.sound(inside), audited.sound(outside), strict=True))) if ok]
    return [names[i] for i in sound], [inside[i] for i in sound], [outside[i] for i in sound]


@dataclass(frozen=True)
class _Bond:
    """A bond of a structure, and which way its lighter end moves; across a boundary if that is nearer."""

    atoms: Atoms
    one: int
    other: int
    unit: np.ndarray
    length: float

    @classmethod
    def shortest(cls, atoms: Atoms) -> "_Bond":
        """The bond that is shortest for its elements, from its heavier end to its lighter one."""
        periodic = bool(atoms.pbc.any())
        distances = atoms.get_all_distances(mic=periodic)
        radii = covalent_radii[atoms.numbers]
        strain = distances / (radii[:, None] + radii) + np.where(distances > 0, 0.0, np.inf)
        one, other = (int(i) for i in np.unravel_index(strain.argmin(), strain.shape))
        if atoms.numbers[one] < atoms.numbers[other]:
            one, other = other, one
        vector = atoms.get_distance(one, other, mic=periodic, vector=True)
        return cls(atoms, one, other, vector / np.linalg.norm(vector), float(np.linalg.norm(vector)))

    def stretched(self, lengths: np.ndarray) -> list[Atoms]:
        """The structure with the bond at each length, Å."""
        path = []
        for length in lengths:
            moved = self.atoms.copy()
            moved.positions[self.other] = self.atoms.positions[self.one] + length * self.unit
            path.append(moved)
        return path


def _sound_part(audited: Audited, bond: _Bond, ends: np.ndarray) -> np.ndarray:
    """The part of a path around the bond's own length on which the student can be judged throughout."""
    sound = audited.sound(bond.stretched(ends))
    first = last = int(np.abs(ends - bond.length).argmin())
    if not sound[first]:
        return ends[:0]
    while first > 0 and sound[first - 1]:
        first -= 1
    while last + 1 < len(ends) and sound[last + 1]:
        last += 1
    return ends[first : last + 1]


def _refined(audited: Audited, bond: _Bond, ends: np.ndarray) -> np.ndarray:
    """Energy less work of the force [engine student float32, pieces], of those pieces where no finer division helps.

    Where a force turns sharply shorter steps miss less of its work, and what is missed says nothing yet; a jump of the
    energy is missed by any.
    """
    evaluators = (audited.engine, audited.student, audited.single)
    missing = np.array([_work_missing(evaluate, bond, ends[:-1], ends[1:], 1) for evaluate in evaluators])
    unclear = _steps(missing) > WORK_LIMIT
    for parts, most in REFINED.items():
        most = min(most, MOST_REFINED // (2 * parts * work(bond.atoms)))
        before = _steps(missing)
        pieces = {int(i) for row, of in zip(before, unclear, strict=True) for i in np.argsort(-row)[:most] if of[i]}
        if not pieces:
            break
        chosen = np.array(sorted(pieces))
        for index, evaluate in enumerate(evaluators):
            missing[index, chosen] = _work_missing(evaluate, bond, ends[chosen], ends[chosen + 1], parts)
        now = _steps(missing)
        unclear[:, chosen] = (now[:, chosen] > WORK_LIMIT) & (now[:, chosen] < 0.7 * before[:, chosen])
    return np.asarray(missing[:, ~unclear.any(0)])


def _steps(missing: np.ndarray) -> np.ndarray:
    """What the student misses, and what the engine adds to that: [2, pieces], eV."""
    return np.abs([missing[1], missing[0] - missing[1]])


def _noise(audited: Audited, bond: _Bond, lengths: np.ndarray) -> float:
    """Noise of an energy along a bond's path, eV: more than around the equilibrium if a force turns sharply."""
    energies = [np.array([r["energy"] for r in each]) for each in audited.evaluated(bond.stretched(lengths))]
    engine, own = (jitter((each - energies[1])[:, None]) for each in (energies[0], energies[2]))
    permitted = audited.resolution.permitted[bond.atoms.info["name"]].energy_noise * len(bond.atoms) ** 0.5
    return min(engine, audited.excused(permitted, own, audited.limits.energy))


def _work_missing(evaluate: Evaluate, bond: _Bond, starts: np.ndarray, ends: np.ndarray, parts: int) -> np.ndarray:
    """Energy less work of the force in eV over each piece of a bond's path, by Simpson's rule over `parts` of it."""
    lengths = starts[:, None] + (ends - starts)[:, None] * np.linspace(0, 1, 2 * parts + 1)
    results = evaluate(bond.stretched(lengths.ravel()))
    energies = np.array([result["energy"] for result in results]).reshape(lengths.shape)
    forces = np.array([np.asarray(result["forces"])[bond.other] @ bond.unit for result in results])
    weights = np.ones(2 * parts + 1)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    gradient = -forces.reshape(lengths.shape) @ weights * (ends - starts) / (6 * parts)
    missing: np.ndarray = energies[:, -1] - energies[:, 0] - gradient
    return missing
