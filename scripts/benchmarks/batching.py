"""Figures of docs/batching.md and docs/dynamics.md: batch size, packing, skin, replicas, memory. For an idle machine.

    python scripts/benchmark_batching.py BUNDLE --student STUDENT

A bundle is of the student that it is compared with; without one, `student:base` is exported for ONNX Runtime.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

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
from painn_deploy.calibration.origin import load_origin
from painn_deploy.calibration.structures import aspirin, default_structures
from painn_deploy.calibration.timing import mover, samples
from painn_deploy.export.bundle import read_bundle
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.grouping import group, padding_waste
from painn_deploy.runtime.machine import machine
from painn_deploy.runtime.matrix import join, local_graphs
from painn_deploy.runtime.torchsim import PaiNNModel
from painn_deploy.scripts.benchmarks.cases import ETHANOL, box_of_methane
from painn_deploy.scripts.benchmarks.conditions import STUDENT, Study
from painn_deploy.scripts.benchmarks.contenders.bundles import exported
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["FULL", "Plan", "batch_sizes", "replica_rates"]

SKINS = (0.0, 0.25, 0.5, 1.0, 1.5, None)
SLOWER = 1.10
"""Most that a doubled batch may slow a structure."""

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


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        batches: ethanols in a batch.
        rounds: in which batches take turns; twice as many and one of TorchSim and ASE.
        steps: of dynamics with each skin, by system.
        replicas: that are moved together.
        cubes: of diamond along each side, whose memory is measured.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    rounds: int = 7
    steps: tuple[tuple[str, int], ...] = (("ethanol", 300), ("aspirin", 300), ("64 methanes", 20))
    replicas: int = 64
    cubes: tuple[int, ...] = (3, 4, 5)


FULL = Plan()
QUICK = Plan((1, 4), 1, (("ethanol", 10),), 4, (2,))


def batch_sizes(calculator: PaiNNCalculator, plan: Plan = FULL) -> dict[int, float]:
    """Milliseconds of processor time an ethanol by size of the batch, neighbour search and packing included.

    The least of some rounds. Processor time, and an engine on one thread, are what other programs disturb least.

    Args:
        calculator: of a bundle, on one thread.
        plan: which batches.
    """

    def batch(count: int) -> Callable[[list[Atoms]], object]:
        return lambda structures: calculator.calculate_batch(structures[:count])

    fresh = mover([molecule(ETHANOL)] * max(plan.batches), np.random.default_rng(0), 0.05)
    found = samples(
        {str(count): batch(count) for count in plan.batches},
        fresh,
        calls=4,
        blocks=plan.rounds,
        clock=time.process_time,
    )
    return {count: min(found[str(count)]) / count for count in plan.batches}


def _packing(calculator: PaiNNCalculator, plan: Plan) -> tuple[float, float, float]:
    """Padding of a mixed set: as it comes, sorted and packed; and how much longer the first takes."""
    structures = default_structures(calculator.manifest.species) * min(4, plan.rounds)
    np.random.default_rng(0).shuffle(structures)
    evaluator = calculator.evaluator
    graphs = local_graphs(structures, evaluator.manifest.cutoff)
    sizes = [graph.size for graph in graphs]
    orders = {
        "as they come": [list(range(start, min(start + 16, len(sizes)))) for start in range(0, len(sizes), 16)],
        "packed": group(sizes, calculator.batch_slots),
    }

    def run(batches: list[list[int]]) -> Callable[[None], None]:
        def evaluate(_: None) -> None:
            for batch in batches:
                evaluator.run(join([graphs[index] for index in batch], evaluator.dtype, evaluator.slot_step))

        return evaluate

    times = samples(
        {name: run(order) for name, order in orders.items()}, lambda: None, calls=1, blocks=min(3, plan.rounds)
    )
    loose, tight = (padding_waste(sizes, order) for order in orders.values())
    return loose, tight, min(times["as they come"]) / min(times["packed"])


def _skins(bundle: Path, start: Atoms, steps: int, runs: int) -> list[tuple[float, float]]:
    """Milliseconds of an ASE step and steps to a search, for each of `SKINS`."""
    with ExitStack() as stack:
        opened = {str(skin): stack.enter_context(PaiNNCalculator(bundle, skin=skin)) for skin in SKINS}

        def dynamics(calculator: PaiNNCalculator) -> Callable[[Atoms], None]:
            def run(atoms: Atoms) -> None:
                atoms.calc = calculator
                thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
                VelocityVerlet(atoms, 0.5 * units.fs).run(steps)

            return run

        times = samples({n: dynamics(c) for n, c in opened.items()}, start.copy, calls=1, blocks=1 + runs)
        lists = [calculator.neighbour_list for calculator in opened.values()]
        spent = [median(one[1:]) / (steps + 1) for one in times.values()]  # the first run warms up
        between = [(verlet.searches + verlet.updates) / verlet.searches for verlet in lists]
        return list(zip(spent, between, strict=True))


def replica_rates(bundle: Path, student: str, plan: Plan = FULL, *, steps: int = 4) -> dict[str, tuple[float, float]]:
    """Replica steps a second of ethanols, with TorchSim on the engine and in ASE loops in PyTorch eager.

    Args:
        bundle: of the student.
        student: its checkpoint.
        plan: how many replicas, and rounds in turn.
        steps: of TorchSim in a round; ASE takes one.

    Returns:
        Both rates by what they are: median and best of the rounds, and steps for each second of processor time,
        whatever else the machine did meanwhile.
    """
    start, rounds = molecule(ETHANOL), 2 * plan.rounds + 1
    start.set_initial_magnetic_moments(None)
    model = PaiNNModel(bundle)
    begin, step = torch_sim.integrators.nve(
        model, dt=torch.tensor(5e-4 * float(MetalUnits.time)), kT=torch.tensor(300 * float(MetalUnits.temperature))
    )
    state = begin(torch_sim.io.atoms_to_state([start] * plan.replicas, model.device, model.dtype))
    (weights, _), loops = load_origin([read_bundle(bundle)], student), []
    for seed in range(plan.replicas):
        atoms = start.copy()
        atoms.calc = TorchCalculator(weights)
        thermalize_momenta(atoms, 300, rng=np.random.default_rng(seed))
        loops.append(VelocityVerlet(atoms, 0.5 * units.fs))

    def together(_: None) -> None:
        nonlocal state
        for _step in range(steps):
            state = step(state)

    def one_by_one(_: None) -> None:
        for loop in loops:
            loop.run(1)

    def rates(clock: Callable[[], float]) -> list[list[float]]:
        ways = {"engine": together, "eager": one_by_one}
        found = samples(ways, lambda: None, calls=1, blocks=rounds, clock=clock)
        counts = plan.replicas * steps, plan.replicas
        return [[1e3 * count / ms for ms in one] for count, one in zip(counts, found.values(), strict=True)]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the fastest for a molecule in eager mode; the engine has threads of its own
    try:
        together(None)
        one_by_one(None)
        (ours, eager), processor = rates(time.perf_counter), rates(time.process_time)
    finally:
        torch.set_num_threads(threads)
    return {
        f"a second, median of {rounds} rounds": (median(ours), median(eager)),
        f"a second, best of {rounds} rounds": (max(ours), max(eager)),
        "a second of processor time": (median(processor[0]), median(processor[1])),
    }


def _print_batches(bundle: Path, _: str, plan: Plan) -> None:
    with PaiNNCalculator(bundle, threads=1) as calculator:
        slots = calculator.tune_batches()
        print(f"one thread, {slots} atoms x slots a batch\n")
        spent = batch_sizes(calculator, plan)
        times = list(spent.values())
        ratios = [later / before for before, later in pairwise(times)]
        shown = ["", *(f"{ratio:.2f}" for ratio in ratios)]
        rows = [(count, f"{ms:.3f}", ratio) for (count, ms), ratio in zip(spent.items(), shown, strict=True)]
        headings = ["ethanols in a batch", "ms of processor time an ethanol", "against half the batch"]
        print(f"{markdown(headings, rows)}\n\nlargest ratio {max(ratios):.2f}, allowed {SLOWER:.2f}\n")
        loose, tight, faster = _packing(calculator, plan)
        print(
            f"mixed set: padding {loose:.0%} in batches of 16 as they come, {tight:.0%} packed; {faster:.2f}x as fast"
        )


def _print_skins(bundle: Path, _: str, plan: Plan) -> None:
    systems = {"ethanol": molecule(ETHANOL), "aspirin": aspirin(), "64 methanes": box_of_methane()}
    rows: list[Sequence[str]] = []
    for name, steps in plan.steps:
        systems[name].set_initial_magnetic_moments(None)
        found = _skins(bundle, systems[name], steps, min(3, plan.rounds))
        rows.append([name, *(f"{ms:.2f} ({between:.0f})" for ms, between in found)])
    skins = ["default" if skin is None else f"{skin} Å" for skin in SKINS]
    print(markdown(["ms an ASE step (steps to a search), by skin", *skins], rows))


def _print_replicas(bundle: Path, student: str, plan: Plan) -> None:
    found = replica_rates(bundle, student, plan)
    rows = [(name, f"{ours:.0f}", f"{eager:.0f}", f"{ours / eager:.1f}") for name, (ours, eager) in found.items()]
    what = f"replica steps, {plan.replicas} ethanols"
    print(markdown([what, "TorchSim on the engine", "ASE loops in PyTorch eager", "ratio"], rows))


def _print_memory(bundle: Path, _: str, plan: Plan) -> None:
    rows = []
    for cubes in plan.cubes:
        command = [sys.executable, "-c", MEMORY, str(bundle), str(cubes)]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603
        atoms, slots, kilobytes = map(int, words)
        rows.append((atoms, slots, f"{kilobytes / 1024:.0f}", f"{kilobytes / (atoms * slots):.1f}"))
    print(markdown(["atoms", "slots", "MB", "kB a slot"], rows))


PARTS = {"batches": _print_batches, "skins": _print_skins, "replicas": _print_replicas, "memory": _print_memory}


def main(
    bundle: Annotated[Path | None, typer.Argument(help="A folder NAME.engine; the student is exported else.")] = None,
    student: Annotated[str, typer.Option(help="The checkpoint that the bundle was made from.")] = STUDENT,
    part: Annotated[str, typer.Option(help=f"{', '.join(PARTS)} or all.")] = "all",
    quick: Annotated[bool, typer.Option("--quick", help="Little of each, to see that it runs.")] = False,
) -> None:
    """Measure, and print as Markdown."""
    if part not in (*PARTS, "all"):
        raise typer.BadParameter(f"There is no part {part!r}; there are {', '.join(PARTS)} and all.")
    with ExitStack() as stack:
        if bundle is None:
            bundle = stack.enter_context(exported(student, [molecule(ETHANOL)], ["onnxruntime"]))["onnxruntime"]
        with PaiNNCalculator(bundle) as calculator:
            info = calculator.engine_info
        if part in ("all", "replicas"):
            load_origin([read_bundle(bundle)], student)  # another student is refused before anything takes time
        print(
            f"{machine([info['device']])}; {info['backend']} {info['version']}, {info['device']}, {info['precision']}"
        )
        for name in PARTS if part == "all" else (part,):
            print()
            PARTS[name](bundle, student, QUICK if quick else FULL)
        print()
        Study.begin(None, None, quick=quick).finish({})


if __name__ == "__main__":
    run_command(main)
