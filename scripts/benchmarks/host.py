"""What is around an engine: processor time of one core with an engine that answers zeros at once.

    python scripts/benchmarks/host.py --null
    python scripts/benchmarks/host.py --overlap

The first prints microseconds a structure, or an atom, by compiled loops and by array code; the second how much longer
structures take as a whole than the engine alone, which works on some while others are made ready.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import torch_sim
import typer
import vesin
from ase import Atoms
from ase.build import molecule

from painn_deploy.calibration.timing import mover
from painn_deploy.engines import NullSession
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import processor
from painn_deploy.runtime.pairs import compiled
from painn_deploy.runtime.torchsim import PaiNNModel
from painn_deploy.scripts.benchmarks.cases import ETHANOL, box_of_water
from painn_deploy.scripts.benchmarks.contenders.bundles import exported
from painn_deploy.scripts.benchmarks.standing import in_boxes, resident_of
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["Plan", "null_times", "overlap"]

STUDENT = "student:small"
LARGE_BATCH = 2**16
"""Atoms x slots, as a GPU takes them."""


class Plan:
    """How much is measured.

    Args:
        quick: little of each, to see that it runs.
    """

    def __init__(self, *, quick: bool = False) -> None:
        self.rounds, self.steps = (1, 5) if quick else (15, 300)
        self.ethanols, self.replicas = (64, 16) if quick else (4096, 1024)
        self.waters = (1,) if quick else (2, 4)  # boxes of 64 waters along each side


def null_times(bundle: Path, plan: Plan) -> dict[str, float]:
    """Microseconds of processor time with an engine that answers at once.

    Args:
        bundle: of any student; its cutoff counts.
        plan: how much.
    """
    found: dict[str, float] = {}
    torch.set_num_threads(1)
    ethanols = _moved(plan.ethanols)
    with PaiNNCalculator(bundle, device="cpu", threads=1) as calculator:
        given = _arrays(ethanols)
        calculator.with_session(NullSession(calculator.manifest.outputs))
        own, cutoff = calculator.batch_slots, calculator.manifest.cutoff
        for slots in (own, LARGE_BATCH):
            calculator.batch_slots = slots
            name = f"arrays in, arrays out, an ethanol, batches of {slots:,} slots"
            found[name] = _spent(lambda: calculator.evaluate(*given), plan.rounds) / plan.ethanols
        calculator.batch_slots = own

        def every() -> None:
            for results in calculator.calculate_batch(ethanols):
                results["energy"], results["forces"]

        found["calculate_batch, every result read, an ethanol"] = _spent(every, plan.rounds) / plan.ethanols
        for count in (1, 2):
            few = ethanols[:count]
            calls = 20 * plan.rounds

            def some(few: list[Atoms] = few, calls: int = calls) -> None:
                for _ in range(calls):
                    calculator.calculate_batch(few)

            found[f"calculate_batch of {count}, a call"] = _spent(some, plan.rounds) / calls
        found["calculate of one ethanol whose neighbours stand"] = _stepping(calculator, ethanols[0], plan)
    found |= {f"TorchSim step of {plan.replicas:,}, an ethanol": _replicas(bundle, ethanols[: plan.replicas], plan)}
    for repeat in plan.waters:
        water = box_of_water() * (repeat, repeat, repeat)
        size, short = f"{len(water):,} atoms of water", Plan(quick=True)
        short.rounds, short.steps = plan.rounds, 3
        for name, skin in (("search at every step", 0.0), ("step whose neighbours stand", 0.5)):
            with PaiNNCalculator(bundle, device="cpu", threads=1, skin=skin) as calculator:
                calculator.with_session(NullSession(calculator.manifest.outputs))
                found[f"{size}, {name}, an atom"] = _stepping(calculator, water, short) / len(water)
        search = vesin.NeighborList(cutoff=cutoff, full_list=False, n_threads=1)

        def alone(atoms: Atoms = water, search: vesin.NeighborList = search) -> object:
            return search.compute(atoms.positions, atoms.cell.array, True, "PS", copy=True)

        found[f"{size}, vesin's search alone, an atom"] = _spent(alone, plan.rounds) / len(water)
        followed, sorted_out = (
            _spent(partial(way, water, cutoff), plan.rounds) / len(water) for way in (resident_of, in_boxes)
        )
        found[f"{size}, search by the host for a device that follows, an atom"] = followed
        found[f"{size}, boxes for a device that searches, an atom"] = sorted_out
    return found


def overlap(bundle: Path, plan: Plan) -> dict[str, float]:
    """Microseconds of wall time an ethanol: engine alone, all that is around it, and both as users have them.

    Args:
        bundle: of a student that knows ethanol; its engine has one thread.
        plan: how much.
    """
    ethanols, batches = _moved(plan.ethanols), list[GraphInputs]()
    rounds = max(1, plan.rounds // 3)
    with PaiNNCalculator(bundle, device="cpu", threads=1) as calculator:
        session, null = calculator.session, NullSession(calculator.manifest.outputs)
        null.seen = batches
        calculator.with_session(null).calculate_batch(ethanols)
        null.seen = None
        ways: dict[str, Callable[[], object]] = {
            "engine": lambda: [session.run(inputs) for inputs in batches],
            "around it": lambda: calculator.with_session(null).calculate_batch(ethanols),
            "as a whole": lambda: calculator.with_session(session).calculate_batch(ethanols),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):  # in turns, so that a busy moment meets all of them; the first warms up
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if turn:
                    times[name].append(1e6 * (time.perf_counter() - started) / len(ethanols))
    return {name: median(each) for name, each in times.items()}


def _moved(count: int) -> list[Atoms]:
    return mover([molecule(ETHANOL)] * count, np.random.default_rng(0), 0.05)()


def _arrays(structures: Sequence[Atoms]) -> tuple[np.ndarray, ...]:
    offsets = np.cumsum([0, *(len(atoms) for atoms in structures)])
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    return numbers, np.concatenate([atoms.positions for atoms in structures]), offsets


def _spent(way: Callable[[], object], rounds: int) -> float:
    """Microseconds of processor time of all threads, median of some rounds after one."""
    way()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        way()
        times.append(1e6 * (time.process_time() - started))
    return median(times)


def _stepping(calculator: PaiNNCalculator, atoms: Atoms, plan: Plan) -> float:
    """Of one calculation among many of a structure that moves to and fro."""
    moving, places = atoms.copy(), [atoms.positions.copy(), atoms.positions + 1e-4]

    def steps() -> None:
        for step in range(plan.steps):
            moving.arrays["positions"] = places[step % 2]
            calculator.calculate(moving)

    return _spent(steps, plan.rounds) / plan.steps


def _replicas(bundle: Path, structures: list[Atoms], plan: Plan) -> float:
    model = PaiNNModel(bundle, device="cpu", threads=1)
    with model.evaluator:
        model.evaluator.session = NullSession(model.evaluator.manifest.outputs)
        state = torch_sim.initialize_state(structures, "cpu", torch.float64)
        steps = 2 * [state.positions, state.positions + 1e-4]

        def move() -> None:
            for positions in steps:
                state.positions = positions
                model(state)

        return _spent(move, plan.rounds) / len(steps) / len(structures)


def _by_array_code(bundle: Path, *, quick: bool) -> dict[str, float]:
    """The same in a process where loops are not compiled."""
    command = [sys.executable, "-m", "painn_deploy.scripts.benchmarks.host", str(bundle), "--null", "--json"]
    environment = os.environ | {compiled.SWITCH: "0"}
    done = subprocess.run(  # noqa: S603
        [*command, *(["--quick"] if quick else [])], capture_output=True, text=True, check=True, env=environment
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(
    bundle: Annotated[Path | None, typer.Argument(help="A folder NAME.engine; a student is exported else.")] = None,
    null: Annotated[bool, typer.Option("--null", help="What is around an engine that answers at once.")] = False,
    overlapping: Annotated[bool, typer.Option("--overlap", help="The engine alone, and as a whole.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Little of each, to see that it runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The times of --null alone, as JSON.")] = False,
) -> None:
    """Measure, and print as Markdown; without an option, both."""
    plan = Plan(quick=quick)
    with ExitStack() as stack:
        if bundle is None:
            plain = exported(STUDENT, [molecule(ETHANOL)], ["onnxruntime"], uncertainty=False)
            bundle = stack.enter_context(plain)["onnxruntime"]
        if as_json:
            print(json.dumps(null_times(bundle, plan)))
            return
        print(f"{processor()}; {compiled.status()}")
        if null or not overlapping:
            found, others = null_times(bundle, plan), _by_array_code(bundle, quick=quick)
            headings = ["µs of processor time, the engine answers at once", "compiled", "array code", "ratio"]
            table = [
                (f"{spent:.2f}", f"{others[name]:.2f}", f"{others[name] / spent:.1f}") for name, spent in found.items()
            ]
            print(f"\n{markdown(headings, [(name, *each) for name, each in zip(found, table, strict=True)])}")
        if overlapping or not null:
            times = overlap(bundle, plan)
            larger = max(times["engine"], times["around it"])
            headings = ["µs of wall time an ethanol, one thread for the engine", "", "to the larger of the two"]
            rows = [(name, f"{spent:.1f}", f"{spent / larger:.2f}") for name, spent in times.items()]
            print(f"\n{markdown(headings, rows)}")


if __name__ == "__main__":
    run_command(main)
