"""How much longer a call takes where other programs want the cores.

`python scripts/studies/shared_cores.py BUNDLE ...` times ethanol, aspirin and two boxes of water alone and beside
programs that never rest, on two cores of this machine. The median says what most calls take, the mean how much is
computed in a minute: a few calls that wait for a core weigh there. Read it on a machine that does nothing else.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer
from ase.build import molecule

from painn_deploy.calibration.structures import aspirin
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.cases import ETHANOL, Case, box_of_water, known
from painn_deploy.scripts.benchmarks.conditions import conditions
from painn_deploy.scripts.commands.entry import run_command

__all__ = ["busy_programs", "compare"]

CORES = 2
SETTLE = 0.5
"""Of the seconds of a measurement, the part before it that is not counted: engines and scheduler find their way."""


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Programs that never rest run beside this block, on the cores of this process.

    Args:
        count: of programs.
    """
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def compare(run: Callable[[GraphInputs], object], inputs: GraphInputs, seconds: float) -> list[tuple[float, float]]:
    """Median and mean of calls in ms: alone, beside one busy program, and beside two.

    Args:
        run: evaluates a graph.
        inputs: the graph.
        seconds: of each of the three measurements.
    """
    found = []
    for count in range(CORES + 1):
        with busy_programs(count):
            _times(run, inputs, SETTLE * seconds)
            times = _times(run, inputs, seconds)
        found.append((1e3 * median(times), 1e3 * mean(times)))
    return found


def _times(run: Callable[[GraphInputs], object], inputs: GraphInputs, seconds: float) -> list[float]:
    """Seconds of each call, for so long, and of three calls at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - begun)
    return times


def main(
    bundles: list[Path],
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 5.0,
    threads: Annotated[int | None, typer.Option(help="Of engines; each chooses otherwise.")] = None,
    molecules: Annotated[bool, typer.Option(help="Ethanol and aspirin alone.")] = False,
) -> None:
    """Print a row for each bundle and structure: ms alone, and ratios to it beside busy programs."""
    if hasattr(os, "sched_setaffinity"):  # before torch is loaded; the programs beside inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    liquid = box_of_water()
    cases = [Case.of("ethanol", molecule(ETHANOL)), Case.of("aspirin", aspirin())]
    if not molecules:
        cases += [Case.of("64 waters", liquid), Case.of("512 waters", liquid * (2, 2, 2))]
    print("| engine | structure | atoms | alone (ms) | beside one: median | mean | beside two: median | mean |")
    print(f"|{'---|' * 8}")
    for bundle in bundles:
        with PaiNNCalculator(bundle, threads=threads) as calculator:
            for case in known(cases, calculator.manifest.species):
                inputs = graph_inputs(case.structures(), calculator.manifest.cutoff, calculator.evaluator.dtype)
                alone, *beside = compare(calculator.run_graph, inputs, seconds)
                ratios = [f"{other / own:.1f}" for row in beside for other, own in zip(row, alone, strict=True)]
                name = calculator.engine_info["backend"]
                print(f"| {name} | {case.name} | {case.atoms} | {alone[0]:.2f} | {' | '.join(ratios)} |", flush=True)
    found = conditions(threads)
    print(f"\n{found['machine']}; other programs use {found['busy_cores'] or 0.0:.1f} cores")


if __name__ == "__main__":
    run_command(main)
