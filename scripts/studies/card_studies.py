"""The physics of a model card: a student in dynamics, along a torsion, between two waters, in a box of them.

Every study takes calculators, so that student and teacher run through the same lines. Energies in meV, lengths in Å.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.constraints import FixInternals
from ase.geometry.rdf import get_rdf
from ase.optimize import BFGS, FIRE
from ase.vibrations.data import VibrationsData
from jaxtyping import Float

from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.benchmarks.cases import box_of_water
from painn_deploy.scripts.commands.md import Plan, simulate

__all__ = ["butane", "conservation", "conserved", "frequencies", "relaxed", "water_box", "water_dimer"]

ANGLES = tuple(map(float, range(0, 181, 15)))


def relaxed(atoms: Atoms, calculator: Calculator, fmax: float = 2e-3) -> Atoms:
    """A copy at the calculator's own minimum.

    Args:
        atoms: where the search begins.
        calculator: whose minimum is sought.
        fmax: eV/Å, of the largest force that is left.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=fmax, steps=300)
    return atoms


def frequencies(atoms: Atoms, step: float = 0.01) -> Float[np.ndarray, " modes"]:
    """Vibrational frequencies in 1/cm of a non-linear molecule, by central differences of forces.

    Args:
        atoms: at the minimum of its calculator.
        step: Å.
    """
    start, rows = atoms.positions.copy(), []
    for atom, axis in np.ndindex(len(atoms), 3):
        forces = []
        for sign in (1, -1):
            atoms.positions = start
            atoms.positions[atom, axis] += sign * step
            forces.append(atoms.get_forces())
        rows.append((forces[1] - forces[0]).ravel() / (2 * step))
    atoms.positions = start
    hessian = np.array(rows)
    data = VibrationsData.from_2d(atoms, (hessian + hessian.T) / 2)
    return np.sort(np.real(data.get_frequencies()))[6:]


def butane(calculator: Calculator, angles: Iterable[float] = ANGLES) -> list[tuple[float, float]]:
    """C-C-C-C angle (degrees) and energy (meV) above the lowest, everything else relaxed at each angle.

    Args:
        calculator: of the energy.
        angles: degrees.
    """
    start = molecule("trans-butane")
    carbons = [i for i, z in enumerate(start.numbers) if z == 6]
    chain = _chain(start, carbons)
    moved = [i for i in range(len(start)) if start.get_distance(i, chain[2]) < start.get_distance(i, chain[1])]
    profile = []
    for angle in angles:
        atoms = start.copy()
        atoms.set_dihedral(*chain, angle, indices=moved)
        atoms.set_constraint(FixInternals(dihedrals_deg=[[angle, chain]]))
        atoms.calc = calculator
        BFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
        profile.append((angle, 1e3 * float(atoms.get_potential_energy())))
    lowest = min(energy for _, energy in profile)
    return [(angle, energy - lowest) for angle, energy in profile]


def _chain(atoms: Atoms, carbons: list[int]) -> list[int]:
    """The carbons in the order in which they are bonded."""
    near = {i: [j for j in carbons if i != j and atoms.get_distance(i, j) < 1.8] for i in carbons}
    chain = [next(i for i in carbons if len(near[i]) == 1)]
    while len(chain) < len(carbons):
        chain.append(next(j for j in near[chain[-1]] if j not in chain))
    return chain


def water_dimer(
    student: Calculator, teacher: Calculator, distances: Iterable[float] = tuple(np.arange(2.4, 6.01, 0.2))
) -> list[tuple[float, float, float]]:
    """O-O distance (Å), interaction energy (meV) of student and of teacher; rigid waters as in the teacher's dimer.

    Zero is two waters 30 Å apart, for each calculator its own.

    Args:
        student: a calculator.
        teacher: another, at whose minimum the waters are taken.
        distances: Å.
    """
    donor, acceptor = molecule("H2O"), molecule("H2O")
    acceptor.rotate(180, "y")
    donor.rotate(52, "x")
    acceptor.translate([0, 0.3, 2.9])
    pair = relaxed(donor + acceptor, teacher, fmax=5e-3)
    first, second = pair[:3], pair[3:]
    axis = second.positions[0] - first.positions[0]
    axis /= np.linalg.norm(axis)

    def energies(calculator: Calculator) -> Float[np.ndarray, " points"]:
        values = []
        for distance in (*distances, 30.0):
            moved = second.copy()
            moved.translate(first.positions[0] + distance * axis - second.positions[0])
            both = Atoms(pair.numbers, np.concatenate([first.positions, moved.positions]))
            both.calc = calculator
            values.append(1e3 * both.get_potential_energy())
        return np.array(values[:-1], dtype=float) - float(values[-1])

    return [
        (float(d), float(s), float(t)) for d, s, t in zip(distances, energies(student), energies(teacher), strict=True)
    ]


def water_box(calculator: Calculator, picoseconds: float) -> dict[str, Any]:
    """64 waters at 300 K (Bussi, 0.5 fs): whether every molecule stays whole, temperature, and where O-O peaks.

    Args:
        calculator: of the forces.
        picoseconds: of dynamics.
    """
    box = box_of_water()
    box.calc = calculator
    FIRE(box, logfile=None).run(fmax=0.3, steps=200)
    lengths, temperatures, histograms = [], [], []

    def look(step: int) -> None:
        lengths.append(_longest_bond(box))
        if step * 0.5e-3 > picoseconds / 2:
            temperatures.append(box.get_temperature())
            histograms.append(get_rdf(box, 6.0, 120, elements=(8, 8)))

    simulate(box, Plan("bussi", steps=round(2e3 * picoseconds), timestep=0.5, every=40), progress=look)
    distances = histograms[0][1]
    rdf = np.mean([histogram for histogram, _ in histograms], axis=0)
    return {
        "picoseconds": picoseconds,
        "longest_bond": float(np.max(lengths)),
        "temperature": float(np.mean(temperatures)),
        "peak": float(distances[np.argmax(rdf)]),
        "height": float(rdf.max()),
        "distances": distances.tolist(),
        "rdf": rdf.tolist(),
    }


def _longest_bond(box: Atoms) -> float:
    """The longest O-H distance within the molecules that the box was built of (atoms O, H, H in turn)."""
    return max(float(box.get_distances(i, [i + 1, i + 2], mic=True).max()) for i in range(0, len(box), 3))


def conserved(bundle: Path, name: str, atoms: Atoms, picoseconds: float) -> dict[str, Any]:
    """NVE at 0.5 fs after Langevin dynamics at 300 K: drift with standard error (meV/atom/ps), and the energies.

    Args:
        bundle: a folder NAME.engine.
        name: of the molecule.
        atoms: where it begins.
        picoseconds: without the thermostat.
    """
    with PaiNNCalculator(bundle, threads=1) as calculator:
        atoms = relaxed(atoms, calculator, fmax=0.05)
        simulate(atoms, Plan("langevin", steps=4000, timestep=0.5, every=4000))  # 2 ps to take up the temperature
        record = simulate(atoms, Plan(steps=round(2e3 * picoseconds), timestep=0.5, every=20))
    times = record.column("time_fs") / 1e3
    total = 1e3 * record.column("total_eV") / len(atoms)
    drift = Drift.of_blocks(times, total)
    kept = slice(None, None, max(1, len(total) // 400))
    return {
        "name": name,
        "atoms": len(atoms),
        "drift": drift.slope,
        "error": drift.uncertainty,
        "fluctuation": record.fluctuation,
        "temperature": float(record.column("temperature_K").mean()),
        "times": times[kept].tolist(),
        "energies": (total[kept] - total[0]).tolist(),
    }


def conservation(
    bundle: Path, structures: Mapping[str, Atoms], picoseconds: float, workers: int
) -> Iterator[dict[str, Any]]:
    """`conserved` for each structure as it is done, several at a time, each on one core.

    Args:
        bundle: a folder NAME.engine.
        structures: by name.
        picoseconds: of each run.
        workers: how many at a time.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(conserved, bundle, name, atoms, picoseconds) for name, atoms in structures.items()]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
