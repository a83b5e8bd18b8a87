"""LAMMPS's neighbour list beside our own search: which is taken sooner.

    python -m painn_deploy.scripts.benchmarks.lammps_neighbours

Both find all pairs within a cutoff of 5 Å and a skin of 0.5 Å, in boxes of liquid water. LAMMPS's time is that of its
own clock. Its library gives out the neighbours of one atom at a time, so that they must be gathered in Python before an
engine can take them, which is the time in the next column. On several MPI ranks its list has the neighbours of own
atoms alone. Those of ghosts, which an engine needs too, are not in it.
"""

import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms

from painn_deploy.export.errors import EngineError
from painn_deploy.runtime.lammps import start_lammps
from painn_deploy.runtime.machine import machine
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.pairs import compiled
from painn_deploy.scripts.benchmarks.cases import box_of_water
from painn_deploy.scripts.benchmarks.ranks import START, write_water
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["by_lammps", "by_search"]

CUTOFF, SKIN = 5.0, 0.5
BUILDS = 10
BUILT = re.compile(r"^Neigh +\|[^|]*\| +(\S+) ", re.MULTILINE)

INPUT = f"""
units metal
read_data {START}
pair_style zero {CUTOFF} nocoeff full
pair_coeff * *
neighbor {SKIN} bin
neigh_modify every 1 delay 0 check no
timestep 1e-9
fix move all nve
run 0
run {BUILDS}
"""


def by_search(atoms: Atoms) -> tuple[float, int]:
    """Milliseconds of our search, and how many neighbours all atoms have together.

    Args:
        atoms: the structure.
    """
    start = time.perf_counter()
    found = find_pairs(atoms, CUTOFF + SKIN)
    return 1e3 * (time.perf_counter() - start), 2 * len(found.pairs.first)


def by_lammps(atoms: Atoms, folder: Path) -> tuple[float, float, int]:
    """Milliseconds of one list that LAMMPS builds, those of gathering it, and how many neighbours are in it.

    Args:
        atoms: the structure.
        folder: for LAMMPS's files.
    """
    log = folder / "log"
    write_water(atoms, folder)
    lammps: Any = start_lammps(("-log", str(log), "-screen", "none"))
    lammps.commands_string(INPUT.replace(START, str(folder / START)))
    start = time.perf_counter()
    found = lammps.numpy.get_neighlist(lammps.find_pair_neighlist("zero"))
    neighbours = np.concatenate([found.get(row)[1] for row in range(found.size)])
    gathering = time.perf_counter() - start
    lammps.close()
    built = BUILT.findall(log.read_text())[-1]
    return 1e3 * float(built) / BUILDS, 1e3 * gathering, len(neighbours)


def main(
    repeats: Annotated[str, typer.Option(help="Of 64 waters along each direction.")] = "1,2,4",
    rounds: Annotated[int, typer.Option(min=1, help="Of each; medians count.")] = 5,
) -> None:
    """Measure, and print as Markdown."""
    rows = []
    for repeat in map(int, repeats.split(",")):
        atoms = box_of_water().repeat(repeat)
        atoms.wrap()
        ours, counts = zip(*(by_search(atoms) for _ in range(rounds)), strict=True)
        with TemporaryDirectory() as folder:
            builds, gatherings, others = zip(*(by_lammps(atoms, Path(folder)) for _ in range(rounds)), strict=True)
        if {*counts} != {*others}:
            raise EngineError(
                f"LAMMPS finds {others[0]} neighbours, and our search {counts[0]}: no times are compared."
            )
        searched, built, gathered = (float(np.median(times)) for times in (ours, builds, gatherings))
        cells = f"{searched:.2f}", f"{built:.2f}", f"{gathered:.2f}", f"{(built + gathered) / searched:.1f}"
        rows.append([f"{len(atoms):,}", f"{counts[0]:,}", *cells])
    print(f"{machine()}; medians of {rounds}; {compiled.status()}\n")
    heads = ["atoms", "neighbours", "our search, ms", "LAMMPS builds, ms", "and is gathered, ms", "to our search"]
    print(markdown(heads, rows))


if __name__ == "__main__":
    run_command(main)
