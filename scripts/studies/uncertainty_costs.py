"""What uncertainties cost: of the last layer beside the same engine without, of a committee beside its first member.

    python -m painn_deploy.scripts.studies.uncertainty_costs student:base
    python -m painn_deploy.scripts.studies.uncertainty_costs a.safetensors b.safetensors c.safetensors

Times are medians of `calculate_batch` as a whole, neighbours included, as ratios to the first engine, on one thread.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms

from painn_deploy.calibration.structures import trusted_species
from painn_deploy.calibration.timing import medians, mover
from painn_deploy.export.checkpoint import load_student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import processor
from painn_deploy.runtime.uncertainty.watch import without_uncertainty
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["uncertainty_costs"]

BATCHES = (1, 64)
"""Molecules of nine atoms that are evaluated together."""

ATOMS, SPACING = 9, 1.4
"""Of each molecule; and Å between its atoms."""


def molecules(species: tuple[int, ...], count: int) -> list[Atoms]:
    """Zigzag chains of a student's elements, moved a little so that no two are the same.

    Args:
        species: atomic numbers.
        count: how many.
    """
    rng, chain = np.random.default_rng(0), np.arange(ATOMS)
    places = np.stack([SPACING * chain * 0.8, SPACING * 0.6 * (chain % 2), 0 * chain], -1)
    numbers = [species[i % len(species)] for i in range(ATOMS)]
    return [Atoms(numbers, places + rng.normal(0, 0.05, places.shape)) for _ in range(count)]


def uncertainty_costs(
    checkpoints: Annotated[list[str], typer.Argument(help="One with an uncertainty, or several for a committee.")],
    engine: Annotated[str, typer.Option(help="onnxruntime or inductor.")] = "onnxruntime",
) -> None:
    """Print what an uncertainty costs beside the same engine without, or a committee beside its first member."""
    species = tuple(trusted_species(load_student(checkpoints[0])))
    info, rows = "", []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened = [
            stack.enter_context(PaiNNCalculator(path, threads=1))
            for path in _exported(checkpoints, engine, Path(folder))
        ]
        if len(checkpoints) == 1 and opened[-1].evaluator.uncertainty is None:
            raise without_uncertainty(checkpoints[0], "its cost")
        info = " ".join(str(opened[0].engine_info[key]) for key in ("backend", "version", "device"))
        for count in BATCHES:
            fresh = mover(molecules(species, count), np.random.default_rng(0))
            calls = {str(place): each.calculate_batch for place, each in enumerate(opened)}
            times = list(medians(calls, fresh).values())
            ratios = [times[-1] / times[0]]
            if len(checkpoints) > 1:
                ratios.append(sum(times[:-1]) / times[0])
            rows.append((str(count), *(f"{ratio:.3f}" for ratio in ratios)))
    several = (f"one graph of {len(checkpoints)}", "one after the other")
    print(f"{info}, one thread, {processor()}")
    print(markdown(("molecules", *(several if len(checkpoints) > 1 else ("with its uncertainty",))), rows))


def _exported(checkpoints: Sequence[str], engine: str, folder: Path) -> list[Path]:
    """Each student alone and without an uncertainty, and what has one."""
    alone = [
        path
        for place, one in enumerate(checkpoints)
        for path in export_engines(one, folder / str(place), engines=[engine], uncertainty=False)
    ]
    given: str | list[str] = list(checkpoints) if len(checkpoints) > 1 else checkpoints[0]
    return alone + export_engines(given, folder / "whole", committee=len(checkpoints) > 1, engines=[engine])


if __name__ == "__main__":
    run_command(uncertainty_costs)
