"""What a precision gains in speed: ethanols in batches through each engine, as a ratio to the first.

    python scripts/studies/precision_speed.py FP32_BUNDLE INT8_BUNDLE --threads 1

The engines take turns on the same molecules, perturbed anew at every call; neighbours and packing count. Run it on a
machine that does nothing else.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase.build import molecule
from rich.progress import Progress

from painn_deploy.calibration.timing import medians, mover
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.benchmarks.cases import ETHANOL
from painn_deploy.scripts.benchmarks.conditions import Output, Study, Threads, compared
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown, names_of

__all__ = ["BATCHES", "speeds", "study"]

BATCHES = (1, 4, 16, 64, 1024)
CALLS = 256
"""Molecules that a block of calls goes through at least, and at most so many calls."""

SIGMA = 0.05
"""Å, of each coordinate."""


def speeds(calculators: dict[str, PaiNNCalculator], count: int, blocks: int) -> dict[str, float]:
    """Median ms of a batch of ethanols with each engine.

    Args:
        calculators: by name.
        count: of ethanols in a batch.
        blocks: of calls, in which the engines take turns.
    """
    fresh = mover([molecule(ETHANOL)] * count, np.random.default_rng(0), SIGMA)
    candidates = {name: calculator.calculate_batch for name, calculator in calculators.items()}
    return medians(candidates, fresh, calls=max(3, CALLS // count), blocks=blocks)


def study(
    bundles: Annotated[list[Path], typer.Argument(help="The first is what others are compared with.")],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Ethanols; repeatable.")] = None,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="That engines run on.")] = "auto",
    blocks: Annotated[int, typer.Option(min=1, help="Of calls, in which engines take turns.")] = 9,
    output: Output = None,
) -> None:
    """Print milliseconds of each batch with each engine, and how many times as fast as the first it is.

    Args:
        bundles: the first is what others are compared with.
        batch: ethanols in a batch.
        threads: of the CPU.
        device: that engines run on.
        blocks: of calls, in which engines take turns.
        output: JSON file.
    """
    names, timed = names_of(bundles), Study.begin(threads, output, quick=False)
    found: dict[int, dict[str, float]] = {}
    with Progress(transient=True, console=timed.console) as progress, ExitStack() as stack:
        opened = {
            name: stack.enter_context(PaiNNCalculator(bundle, threads=threads, device=device))
            for name, bundle in zip(names, bundles, strict=True)
        }
        for count in progress.track(batch or BATCHES, description="timing"):
            found[count] = speeds(opened, count, blocks)
    print(markdown(["ethanols", *(f"{n}, ms" for n in names)], [[c, *compared(f, names[0])] for c, f in found.items()]))
    timed.finish({"milliseconds": found})


if __name__ == "__main__":
    run_command(study)
