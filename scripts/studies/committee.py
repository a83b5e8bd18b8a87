"""What a committee in one graph costs, against its members one after the other and against one of them alone.

`python scripts/studies/committee.py COMMITTEE MEMBER MEMBER ...` times bundles of one engine on one thread, for one
ethanol and for 64, and at last products of K weights apart and stacked. Read it on a machine that does nothing else.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from ase.build import molecule

from painn_deploy.calibration.timing import Pace, medians, mover
from painn_deploy.export.errors import BundleError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.cases import ETHANOL
from painn_deploy.scripts.benchmarks.conditions import conditions
from painn_deploy.scripts.commands.entry import run_command

__all__ = ["graph_times", "product_times"]

COUNTS = (1, 64)
"""Ethanols in a graph."""

TOGETHER, APART, ALONE, STACKED = "one graph", "one after the other", "one student", "stacked"


def graph_times(committee: Path, members: Sequence[Path], count: int, pace: Pace) -> dict[str, float]:
    """Median ms of one graph of K students, of K graphs of one each, and of the first alone, on one thread.

    Args:
        committee: bundle of all.
        members: their bundles, in the order of the committee.
        count: of ethanols in a graph.
        pace: how many calls.

    Raises:
        BundleError: the bundles are not of the committee's members, or of another engine or precision.
    """
    with ExitStack() as opened:
        together, *apart = [
            opened.enter_context(PaiNNCalculator(path, device="cpu", threads=1)) for path in (committee, *members)
        ]
        own = together.manifest
        if [one["checkpoint_sha256"] for one in own.members] != [one.manifest.checkpoint_sha256 for one in apart]:
            raise BundleError(f"{committee} is not the committee of these {len(apart)} bundles, in this order.")
        if any((one.manifest.engine, one.manifest.precision) != (own.engine, own.precision) for one in apart):
            raise BundleError("The bundles are of several engines or precisions. Give those of one.")
        move = mover([molecule(ETHANOL)] * count, np.random.default_rng(0))

        def in_turn(inputs: GraphInputs) -> None:
            for one in apart:
                one.run_graph(inputs)

        candidates: dict[str, Callable[[GraphInputs], object]] = {
            TOGETHER: together.run_graph,
            APART: in_turn,
            ALONE: apart[0].run_graph,
        }
        return medians(candidates, lambda: graph_inputs(move(), own.cutoff, together.evaluator.dtype), **pace.as_dict())


def product_times(members: int, rows: int, width: int, pace: Pace) -> dict[str, float]:
    """Median ms of the products of K operands with K weights, apart and as one batched product, on one thread.

    Args:
        members: K.
        rows: of each operand; atoms.
        width: of each operand and, three times, of what it becomes, as in a PaiNN interaction.
        pace: how many calls.
    """
    weights = torch.randn(members, width, 3 * width)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return medians(
            {
                APART: lambda given: [one @ weight for one, weight in zip(given, weights, strict=True)],
                STACKED: lambda given: torch.bmm(given, weights),
            },
            lambda: torch.randn(members, rows, width),
            **pace.as_dict(),
        )
    finally:
        torch.set_num_threads(before)


def main(
    committee: Path,
    members: list[Path],
    quick: Annotated[bool, typer.Option(help="Only enough to see that everything runs.")] = False,
) -> None:
    """Print a row for each number of ethanols: ms, and ratios to one graph; then the same of products alone."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    pace = Pace(quick=quick)
    print(f"| ethanols | {TOGETHER} (ms) | {APART} (ms) | {ALONE} (ms) | apart/together | together/alone |")
    print(f"|{'---|' * 6}")
    for count in COUNTS:
        found = graph_times(committee, members, count, pace)
        cells = [f"{found[name]:.2f}" for name in (TOGETHER, APART, ALONE)]
        cells += [f"{found[APART] / found[TOGETHER]:.2f}", f"{found[TOGETHER] / found[ALONE]:.2f}"]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)
    atoms = len(molecule(ETHANOL))
    print(f"\n| rows | width | products {APART} (ms) | {STACKED} (ms) | apart/stacked |\n|{'---|' * 5}")
    for rows in (count * atoms for count in COUNTS):
        for width in (48, 96):
            found = product_times(len(members), rows, width, pace)
            ratio = found[APART] / found[STACKED]
            print(f"| {rows} | {width} | {found[APART]:.4f} | {found[STACKED]:.4f} | {ratio:.2f} |", flush=True)
    state = conditions(1)
    print(f"\n{state['machine']}; other programs use {state['busy_cores'] or 0.0:.1f} cores")


if __name__ == "__main__":
    run_command(main)
