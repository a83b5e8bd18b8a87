"""LAMMPS on MPI ranks of this machine: how right they are, and how fast against one rank of all its cores.

    python -m painn_deploy.scripts.benchmarks.ranks [BUNDLE] --ranks 1,2

Each run is one of `painn-deploy lammps --ranks N`, whose time a step is that of LAMMPS's own clock. The ranks share the
cores of the machine, so that one rank has all of them. Energy and forces are those of the first step, against ASE.
"""

import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from ase.md.velocitydistribution import thermalize_momenta
from jaxtyping import Float64

from painn_deploy.export.errors import EngineError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.machine import machine
from painn_deploy.scripts.benchmarks.cases import WATERS, box_of_water
from painn_deploy.scripts.benchmarks.conditions import STUDENT
from painn_deploy.scripts.benchmarks.contenders.bundles import exported
from painn_deploy.scripts.benchmarks.ghosts import by_formula
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["START", "Run", "boxes", "run", "write_water"]

START = "start.data"
"""The file that inputs read their structure from."""

INPUT = f"""
units metal
read_data {START}
pair_style zero 5 nocoeff
pair_coeff * * O H
timestep 0.0005
fix move all nve
thermo_style custom step pe etotal
thermo_modify format float %.10f
dump first all custom 1 first.dump id element x y z fx fy fz
dump_modify first element O H sort id format float %.10f
run 0
undump first
run {{steps}}
"""

TIME = re.compile(r"^Loop time of (\S+) on \d+ procs for \d+ steps", re.MULTILINE)
GRID = re.compile(r"^ +(\d+) by (\d+) by (\d+) MPI processor grid", re.MULTILINE)
FIRST = re.compile(r"^ +0 +(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """What LAMMPS said of one run.

    Attributes:
        milliseconds: a step.
        grid: ranks along three directions.
        energy: of the first step, eV.
        forces: of the first step, eV/Å.
    """

    milliseconds: float
    grid: tuple[int, ...]
    energy: float
    forces: Float64[np.ndarray, "atoms 3"]


def boxes(waters: int) -> dict[str, Atoms]:
    """A cube and a long box of liquid water at 300 K, by their names.

    Args:
        waters: at most, in each.
    """
    blocks = waters // WATERS**3
    edge = int(blocks ** (1 / 3) + 1e-9)
    made = {}
    for shape, repeats in (("cube", (edge,) * 3), ("long box", (blocks, 1, 1))):
        atoms = box_of_water().repeat(repeats)
        thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
        made[f"{shape} of {len(atoms) // 3:,} waters"] = atoms
    return made


def write_water(atoms: Atoms, folder: Path) -> None:
    """Write the structure that inputs begin with; type 1 is O, and 2 is H.

    Args:
        atoms: of these elements.
        folder: for the file.
    """
    write(folder / START, atoms, format="lammps-data", specorder=["O", "H"], masses=True, velocities=True)


def run(bundle: Path, folder: Path, ranks: int, steps: int) -> Run:
    """Run the structure that `write_water` wrote.

    Args:
        bundle: a folder NAME.engine.
        folder: LAMMPS's files are written there.
        ranks: to start.
        steps: of dynamics.

    Raises:
        EngineError: the command failed.
    """
    (folder / "in.lammps").write_text(INPUT.format(steps=steps))
    program = [sys.executable, "-m", "painn_deploy.scripts.cli", "lammps", str(bundle.resolve()), "in.lammps"]
    command = [*program, "--ranks", str(ranks), "--device", "cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise EngineError(f"LAMMPS on {ranks} ranks failed: {done.stderr[-2000:]}")
    _, spent = TIME.findall(done.stdout)  # of the first step, and of the run
    grid, energy = GRID.search(done.stdout), FIRST.search(done.stdout)
    if grid is None or energy is None:
        raise EngineError(f"LAMMPS did not say how it divides the box, or no energy: {done.stdout[-2000:]}")
    forces = read(folder / "first.dump", format="lammps-dump-text").get_forces()
    return Run(1e3 * float(spent) / steps, tuple(map(int, grid.groups())), float(energy[1]), forces)


def main(
    bundle: Annotated[Path | None, typer.Argument(help="A folder NAME.engine; student:base is exported else.")] = None,
    ranks: Annotated[str, typer.Option(help="How many; the first number is compared with.")] = "1,2",
    waters: Annotated[int, typer.Option(min=WATERS**3, help="In each box, at most.")] = 1024,
    steps: Annotated[int, typer.Option(min=1, help="Of each run.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Of all runs in turn; medians count.")] = 3,
) -> None:
    """Run, and print as Markdown."""
    counts, rows = [int(text) for text in ranks.split(",")], list[list[str]]()
    with ExitStack() as stack:
        if bundle is None:
            plain = exported(STUDENT, [molecule("H2O")], ["onnxruntime"], uncertainty=False)
            bundle = stack.enter_context(plain)["onnxruntime"]
        folder = Path(stack.enter_context(TemporaryDirectory()))
        calculator = stack.enter_context(PaiNNCalculator(bundle, device="cpu"))
        manifest = calculator.manifest
        reach = int(manifest.configuration["num_interactions"]) * manifest.cutoff
        for name, atoms in boxes(waters).items():
            write_water(atoms, folder)
            found = [[run(bundle, folder, count, steps) for count in counts] for _ in range(rounds)]
            calculator.calculate(atoms)
            energy, forces = calculator.results["energy"], calculator.results["forces"]
            spent = [float(np.median([one.milliseconds for one in runs])) for runs in zip(*found, strict=True)]
            for count, time, one in zip(counts, spent, found[-1], strict=True):
                lengths = atoms.cell.lengths()
                evaluated = by_formula(lengths / one.grid, lengths, reach, len(atoms) / atoms.get_volume())
                apart = f"{np.abs(one.forces - forces).max():.0e}", f"{abs(one.energy - energy) / len(atoms):.0e}"
                cells = f"{count}", "x".join(map(str, one.grid)), f"{evaluated:,.0f}", f"{time:.0f}"
                rows.append([name, *cells, f"{spent[0] / time:.2f}", *apart])
    heads = ["box", "ranks", "grid", "atoms a rank evaluates", "ms a step", "speed", "forces, eV/Å", "energy, eV/atom"]
    print(f"{machine()}; {manifest.engine}, {manifest.precision}; medians of {rounds} runs of {steps} steps\n")
    print(markdown(heads, rows))


if __name__ == "__main__":
    run_command(main)
