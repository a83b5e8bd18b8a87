"""Figures of docs/batching.md: batch size, packing, skin, replicas, memory, timings. Run it on a machine that is idle.

`python scripts/benchmark_batching.py BUNDLE` needs the bundle of a shipped student, whose weights it compares with.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch_sim
import typer
from ase import Atoms, units
from ase.build import molecule
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from torch_sim.units import MetalUnits

from painn_deploy.calibration.accuracy.reference import TorchCalculator
from painn_deploy.calibration.structures import aspirin, default_structures
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import resolve_checkpoint
from painn_deploy.export.errors import CheckpointError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.grouping import group, padding_waste
from painn_deploy.runtime.torchsim import PaiNNModel
from painn_deploy.scripts.commands.demo import machine
from painn_deploy.scripts.commands.entry import run_command

__all__ = ["batch_sizes", "replica_rates"]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SKINS = (0.0, 0.25, 0.5, 1.0, 1.5, None)
ROUNDS = 7
REPLICAS = 64
SLOWER = 1.10

MEMORY = """
import sys
from pathlib import Path
from ase.build import bulk
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
calculator = PaiNNCalculator(sys.argv[1])
graph = graph_inputs([bulk("C", "diamond", a=3.57, cubic=True).repeat(int(sys.argv[2]))], calculator.manifest.cutoff)
def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
before = peak()
calculator.run_graph(graph)
print(len(graph.atomic_numbers), graph.mask.shape[1], peak() - before)
"""


def batch_sizes(calculator: PaiNNCalculator) -> dict[int, float]:
    """Milliseconds of processor time an ethanol by size of the batch, neighbour search and packing included.

    The least of some rounds. Processor time, and an engine on one thread, are what other programs disturb least.
    """
    rng = np.random.default_rng(0)
    ethanols = []
    for _ in range(max(BATCHES)):
        atoms = molecule("CH3CH2OH")
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        ethanols.append(atoms)
    times: dict[int, list[float]] = {count: [] for count in BATCHES}
    for round_ in range(1 + ROUNDS):
        for count in BATCHES:
            repeats = max(1, 32 // count)
            began = time.process_time()
            _repeat(calculator, ethanols[:count], repeats)
            if round_:
                times[count].append(1e3 * (time.process_time() - began) / (repeats * count))
    return {count: min(spent) for count, spent in times.items()}


def _repeat(calculator: PaiNNCalculator, structures: list[Atoms], times: int) -> None:
    for _ in range(times):
        calculator.calculate_batch(structures)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _packing(calculator: PaiNNCalculator) -> tuple[float, float, float]:
    """Padding of a mixed set: as it comes, sorted and packed; and how much longer the first takes."""
    structures = default_structures(calculator.manifest.species) * 4
    np.random.default_rng(0).shuffle(structures)
    prepared = [calculator.evaluator.prepare(atoms) for atoms in structures]
    sizes = [one.size for one in prepared]
    packed = group(sizes, calculator.batch_slots)
    unsorted = [list(range(start, min(start + 16, len(sizes)))) for start in range(0, len(sizes), 16)]
    slow, fast = (
        min(_seconds(partial(_run, calculator, prepared, batches)) for _ in range(3)) for batches in (unsorted, packed)
    )
    return padding_waste(sizes, unsorted), padding_waste(sizes, packed), slow / fast


def _run(calculator: PaiNNCalculator, prepared: list, batches: list[list[int]]) -> None:  # type: ignore[type-arg]
    for batch in batches:
        calculator.evaluator.run_prepared([prepared[index] for index in batch])


def _liquid() -> Atoms:
    """64 methanes on a grid at the density of the liquid, each turned its own way."""
    rng, box, spacing = np.random.default_rng(0), Atoms(pbc=True, cell=[16.0] * 3), 4.0
    for index in np.ndindex(4, 4, 4):
        one = molecule("CH4")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += (np.array(index) + 0.5) * spacing - one.positions.mean(0)
        box += one
    return box


def _skins(bundle: Path) -> dict[str, dict[float | None, tuple[float, float]]]:
    """Milliseconds of an ASE step and steps to a search, by system and skin."""
    systems = {"ethanol": (molecule("CH3CH2OH"), 300), "aspirin": (aspirin(), 300), "64 methanes": (_liquid(), 20)}
    rows: dict[str, dict[float | None, tuple[float, float]]] = {}
    for name, (atoms, steps) in systems.items():
        atoms.set_initial_magnetic_moments(None)
        runs: dict[float | None, list[tuple[float, float]]] = {skin: [] for skin in SKINS}
        for _ in range(3):
            for skin in SKINS:
                runs[skin].append(_dynamics(bundle, atoms.copy(), skin, steps))
        rows[name] = {skin: tuple(np.median(seen, axis=0)) for skin, seen in runs.items()}
    return rows


def _dynamics(bundle: Path, atoms: Atoms, skin: float | None, steps: int) -> tuple[float, float]:
    with PaiNNCalculator(bundle, skin=skin) as calculator:
        atoms.calc = calculator
        thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        dynamics.run(5)
        spent = _seconds(partial(dynamics.run, steps))
        verlet = calculator.neighbour_list
        return 1e3 * spent / steps, (verlet.searches + verlet.updates) / verlet.searches


@dataclass(frozen=True)
class Rates:
    """Replica steps a second, of several rounds.

    Attributes:
        median: of the rounds.
        best: round.
        processor: replica steps for each second of processor time, whatever else the machine did meanwhile.
    """

    median: float
    best: float
    processor: float


def replica_rates(bundle: Path, student: str, *, steps: int = 4) -> tuple[Rates, Rates]:
    """64 ethanols, all with TorchSim on the engine, and in 64 ASE loops in PyTorch eager."""
    start = molecule("CH3CH2OH")
    start.set_initial_magnetic_moments(None)
    model = PaiNNModel(bundle)
    begin, step = torch_sim.integrators.nve(
        model, dt=torch.tensor(5e-4 * float(MetalUnits.time)), kT=torch.tensor(300 * float(MetalUnits.temperature))
    )
    state = begin(torch_sim.io.atoms_to_state([start] * REPLICAS, model.device, model.dtype))
    weights = load_student(student)
    torch.set_num_threads(1)  # the fastest for a molecule in eager mode; the engine has threads of its own
    loops = []
    for seed in range(REPLICAS):
        atoms = start.copy()
        atoms.calc = TorchCalculator(weights)
        thermalize_momenta(atoms, 300, rng=np.random.default_rng(seed))
        loops.append(VelocityVerlet(atoms, 0.5 * units.fs))

    def together() -> None:
        nonlocal state
        for _ in range(steps):
            state = step(state)

    def one_by_one() -> None:
        for loop in loops:
            loop.run(1)

    together()
    one_by_one()
    rounds: tuple[list[tuple[float, float]], ...] = ([], [])
    for _ in range(15):  # in turns, so that a busy moment meets both
        for seen, call, count in zip(rounds, (together, one_by_one), (steps, 1), strict=True):
            processor = time.process_time()
            spent = _seconds(call)
            seen.append((REPLICAS * count / spent, REPLICAS * count / (time.process_time() - processor)))
    ours, eager = (
        Rates(float(np.median(wall)), max(wall), float(np.median(processor)))
        for wall, processor in (zip(*seen, strict=True) for seen in rounds)
    )
    return ours, eager


def _print_batches(bundle: Path, student: str) -> None:
    with PaiNNCalculator(bundle, threads=1) as calculator:
        if resolve_checkpoint(student).sha256 != calculator.manifest.checkpoint_sha256:
            raise CheckpointError(f"{bundle} was not made from {student}; give its checkpoint with --student.")
        slots = calculator.tune_batches()
        print(f"one thread, {slots} atoms x slots a batch\n")
        print("| ethanols in a batch | ms of processor time an ethanol | against half the batch |\n|---|---|---|")
        before, worst = None, 0.0
        for count, spent in batch_sizes(calculator).items():
            ratio = "" if before is None else f"{spent / before:.2f}"
            worst = worst if before is None else max(worst, spent / before)
            print(f"| {count} | {spent:.3f} | {ratio} |")
            before = spent
        print(f"\nlargest ratio {worst:.2f}, allowed {SLOWER:.2f}\n")
        loose, tight, faster = _packing(calculator)
        print(
            f"mixed set: padding {loose:.0%} in batches of 16 as they come, {tight:.0%} packed; {faster:.2f}x as fast"
        )


def _print_skins(bundle: Path, _: str) -> None:
    skins = ["default" if skin is None else f"{skin} Å" for skin in SKINS]
    print(f"| ms an ASE step (steps to a search), by skin | {' | '.join(skins)} |\n|{'---|' * (1 + len(SKINS))}")
    for name, row in _skins(bundle).items():
        print(f"| {name} | " + " | ".join(f"{ms:.2f} ({between:.0f})" for ms, between in row.values()) + " |")


def _print_replicas(bundle: Path, student: str) -> None:
    ours, eager = replica_rates(bundle, student)
    print(f"| replica steps, {REPLICAS} ethanols | TorchSim on the engine | ASE loops in PyTorch eager | ratio |")
    print("|---|---|---|---|")
    for name in ("median", "best", "processor"):
        one, other = getattr(ours, name), getattr(eager, name)
        unit = "a second of processor time" if name == "processor" else f"a second, {name} of 15 rounds"
        print(f"| {unit} | {one:.0f} | {other:.0f} | {one / other:.1f} |")


def _print_memory(bundle: Path, _: str) -> None:
    print("| atoms | slots | MB | kB a slot |\n|---|---|---|---|")
    for repeats in ("3", "4", "5"):
        command = [sys.executable, "-c", MEMORY, str(bundle), repeats]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603
        atoms, slots, kilobytes = map(int, words)
        print(f"| {atoms} | {slots} | {kilobytes / 1024:.0f} | {kilobytes / (atoms * slots):.1f} |")


PARTS = {"batches": _print_batches, "skins": _print_skins, "replicas": _print_replicas, "memory": _print_memory}


def main(bundle: Path, student: str = "student:base", part: str = "all") -> None:
    """Measure, and print as Markdown.

    Args:
        bundle: a folder NAME.engine.
        student: the checkpoint that it was made from.
        part: batches, skins, replicas, memory or all.
    """
    if part not in (*PARTS, "all"):
        raise typer.BadParameter(f"There is no part {part!r}; there are {', '.join(PARTS)} and all.")
    with PaiNNCalculator(bundle) as calculator:
        info = calculator.engine_info
    print(f"{machine([info['device']])}; {info['backend']} {info['version']}, {info['device']}, {info['precision']}")
    for name in PARTS if part == "all" else (part,):
        print()
        PARTS[name](bundle, student)


if __name__ == "__main__":
    run_command(main)
