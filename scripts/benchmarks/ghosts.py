"""What MPI ranks evaluate beside their own atoms: the table of docs/dynamics.md. It counts atoms and times nothing.

    python -m painn_deploy.scripts.benchmarks.ghosts --student student:base

Atoms lie on a cubic lattice of water's density, each moved at random by up to a seventh of its constant. The atoms that
a rank evaluates are those that the runtime chooses, `painn_deploy.runtime.motion.domain`. The formula is that of all
atoms within a distance R of a part of the box with the edges a, b and c (Steiner's for a convex body),

    ρ (abc + 2 R (ab + bc + ca) + π R² (a + b + c) + 4/3 π R³).

A direction in which a part and R on both sides of it are as long as the box is left to the box: its length there is a
factor, and the formula is that of the other directions, ρ L (ab + 2 R (a + b) + π R²) for instance.
"""

import math
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from jaxtyping import Float64, Int64
from numpy.polynomial.polynomial import polyfromroots
from rich.console import Console

from painn_deploy.export import load_student
from painn_deploy.runtime.lammps import SKIN, SPARE
from painn_deploy.runtime.motion.domain import Domain
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["by_formula", "evaluated", "sites"]

SPACING = 2.154
"""Å; of one atom on each site, 0.1 atoms an Å³, as in water."""

JITTER = SPACING / 7

GRIDS = (
    *((10, (2, 1, 1)), (10, (2, 2, 1)), (10, (2, 2, 2)), (22, (2, 1, 1)), (22, (2, 2, 2))),
    *((46, (2, 1, 1)), (46, (2, 2, 2)), (46, (4, 2, 2)), (46, (4, 4, 4)), (100, (2, 2, 2)), (100, (4, 4, 4))),
)
"""Sites along an edge of a cubic box, and ranks along its three directions."""

BALLS = (1.0, 2.0, math.pi, 4 / 3 * math.pi)
"""Volumes of balls of radius 1 in no to three dimensions."""

MOST = 150_000
"""Atoms that a rank may see for them to be counted; of more there is the formula alone."""


def by_formula(edges: Float64[np.ndarray, "3"], box: Float64[np.ndarray, "3"], reach: float, density: float) -> float:
    """Atoms that a rank evaluates.

    Args:
        edges: of its part of the box, Å.
        box: lengths of the box, Å.
        reach: Å, interactions x cutoff.
        density: atoms an Å³.
    """
    ends = edges + 2 * reach < box
    sums = polyfromroots(-edges[ends])  # of products: abc, ab + bc + ca, a + b + c, 1
    volume = sum(one * ball * reach**power for power, (one, ball) in enumerate(zip(sums, BALLS, strict=False)))
    return float(density * box[~ends].prod() * volume)


def sites(count: int, low: Int64[np.ndarray, "3"], high: Int64[np.ndarray, "3"]) -> tuple[np.ndarray, np.ndarray]:
    """Tags and positions (Å) of the sites from `low` to below `high`, of a box of `count` sites along each edge.

    Args:
        count: of the box.
        low: may be negative: images.
        high: likewise beyond the box.
    """
    grid = np.stack(np.meshgrid(*(np.arange(*ends) for ends in zip(low, high, strict=True)), indexing="ij"), -1)
    places = grid.reshape(-1, 3)
    tags = (places % count) @ np.array([count * count, count, 1]) + 1
    moves = np.random.default_rng(0).uniform(-JITTER, JITTER, (count**3, 3))  # an image is moved as its atom is
    return tags, (places + 0.5) * SPACING + moves[tags - 1]


def evaluated(count: int, ranks: tuple[int, int, int], cutoff: float, interactions: int) -> tuple[int, int, int | None]:
    """Atoms that the first rank owns, that it sees, and that it evaluates; None for the last where it sees too many.

    Args:
        count: sites along an edge of the box.
        ranks: along the three directions.
        cutoff: Å.
        interactions: of the student.
    """
    high = count // np.array(ranks)
    margin = SKIN + SPARE
    around = math.ceil((interactions * cutoff + margin) / SPACING)
    tags, positions = sites(count, np.full(3, -around), high + around)
    inside = ((positions >= 0) & (positions < high * SPACING)).all(1)
    order = np.argsort(~inside, kind="stable")  # own atoms first
    owned = int(inside.sum())
    if len(order) > MOST:
        return owned, len(order), None
    structure = Atoms(np.ones(len(order), int), positions[order], cell=[count * SPACING] * 3, pbc=True)
    domain = Domain.chosen(structure, tags[order], owned, cutoff, interactions, margin)
    return owned, len(order), len(domain.rows)


def main(
    student: Annotated[str, typer.Option(help="Whose cutoff and interactions are taken.")] = "student:base",
) -> None:
    """Print the table."""
    configuration = load_student(student).configuration
    cutoff, interactions = configuration.cutoff, configuration.num_interactions
    rows: list[list[Any]] = []
    for count, ranks in GRIDS:
        atoms = count**3
        owned, seen, found = evaluated(count, ranks, cutoff, interactions)
        box = np.full(3, count * SPACING)
        wanted = by_formula(box / ranks, box, interactions * cutoff, SPACING**-3)
        named = "x".join(map(str, ranks))
        told = "" if found is None else f"{found:,} ({found / owned:.1f})"
        formula = f"{wanted:,.0f} ({wanted / owned:.1f})"
        rows.append([f"{count * SPACING:.1f}", f"{atoms:,}", named, f"{owned:,}", f"{seen - owned:,}", told, formula])
    heads = ["box, Å", "atoms", "ranks", "own", "ghosts", "evaluated (of own)", "by the formula"]
    Console().print(markdown(heads, rows), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
