"""What a committee costs: one graph of all members, one after the other, and the first member alone.

    python -m painn_deploy.scripts.studies.committee a.safetensors b.safetensors c.safetensors

Times are medians, as ratios to the first member alone, on one thread.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms

from painn_deploy.calibration.structures import trusted_species
from painn_deploy.calibration.timing import medians, mover
from painn_deploy.export.checkpoint import load_student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["committee_costs"]

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


def committee_costs(
    checkpoints: Annotated[list[str], typer.Argument(help="Students of one architecture.")],
    engine: Annotated[str, typer.Option(help="onnxruntime or inductor.")] = "onnxruntime",
) -> None:
    """Print what one graph of several students costs beside several graphs and one student."""
    species = trusted_species(load_student(checkpoints[0]))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (whole,) = export_engines(checkpoints, Path(folder) / "whole", committee=True, engines=[engine])
        each = [export_engines(one, Path(folder) / str(i), engines=[engine])[0] for i, one in enumerate(checkpoints)]
        with PaiNNCalculator(whole, threads=1) as together:
            members = [PaiNNCalculator(path, threads=1) for path in each]
            for count in BATCHES:
                fresh = mover(molecules(tuple(species), count), np.random.default_rng(0))
                calls = {str(i): member.calculate_batch for i, member in enumerate(members)}
                times = medians(calls | {"whole": together.calculate_batch}, fresh)
                alone = times.pop("0")
                one, several = times.pop("whole") / alone, (alone + sum(times.values())) / alone
                rows.append((str(count), f"{one:.2f}", f"{several:.2f}"))
            for member in members:
                member.close()
    print(markdown(("molecules", f"one graph of {len(checkpoints)}", "one after the other"), rows))


if __name__ == "__main__":
    run_command(committee_costs)
