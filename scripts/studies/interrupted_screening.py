"""Screening of many molecules, killed with SIGKILL and resumed, gives the rows of a run that was left alone.

    python scripts/studies/interrupted_screening.py BUNDLE --molecules 20000 --kills 2

prints the rate, the peak of memory, and whether the files are equal to the byte; exit status 1 where they are not. With
`--kills 0` it runs once.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.build import molecule
from ase.collections import g2
from ase.io.extxyz import write_xyz

from painn_deploy.export.errors import OutputError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.screen import SOME_FAILED

__all__ = ["write_molecules"]


def write_molecules(path: Path, count: int, species: tuple[int, ...], *, sigma: float = 0.05, seed: int = 0) -> None:
    """Write perturbed molecules of ASE's G2 set, each with an id, one after the other.

    Args:
        path: extended XYZ.
        count: how many.
        species: atomic numbers that they may hold.
        sigma: Å, of each coordinate.
        seed: of the perturbation.
    """
    rng = np.random.default_rng(seed)
    kinds = [molecule(name) for name in g2.names]
    kinds = [atoms for atoms in kinds if len(atoms) > 1 and set(atoms.numbers.tolist()) <= set(species)]
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            atoms = kinds[index % len(kinds)].copy()
            atoms.set_initial_magnetic_moments(None)
            atoms.positions += rng.normal(0, sigma, atoms.positions.shape)
            atoms.info = {"id": f"molecule-{index}"}
            write_xyz(file, [atoms])


@dataclass(frozen=True)
class _Run:
    seconds: float
    megabytes: float
    killed: bool


def _run(arguments: list[str], kill_after: float | None) -> _Run:
    """Run the command to its end, or kill it after some seconds of work; with the peak of its resident memory."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "painn_deploy.scripts.cli", "screen", *arguments])  # noqa: S603
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, SOME_FAILED, -signal.SIGKILL):
        raise OutputError(f"The command ended with status {process.returncode}; it says above why.")
    return _Run(time.monotonic() - started, usage.ru_maxrss / 1024, process.returncode == -signal.SIGKILL)


def main(bundle: Path, molecules: int = 20_000, kills: int = 2, workers: int = 0, seed: int = 0) -> None:
    """Prove that kills cost no row and double none.

    Args:
        bundle: a folder NAME.engine.
        molecules: how many to screen.
        kills: how often to kill the run, at random moments.
        workers: on Ray; 0 for none.
        seed: of molecules and moments.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given, whole, output = folder / "in.extxyz", folder / "whole.extxyz", folder / "out.extxyz"
        write_molecules(given, molecules, read_bundle(bundle).manifest.species, seed=seed)
        options = ["--workers", str(workers)] if workers else []
        run = _run([str(bundle), str(given), "-o", str(whole), *options], None)
        print(f"{molecules} molecules: {run.seconds:.1f} s, {molecules / run.seconds:.0f} a second, start included")
        print(f"peak of resident memory: {run.megabytes:.0f} MB")
        done, moments = 0, random.Random(seed)  # noqa: S311  moments to kill at are no secret
        while kills and done < kills:
            after = moments.uniform(0.2, 0.8) * run.seconds / kills
            if not _run([str(bundle), str(given), "-o", str(output), "--resume", *options], after).killed:
                raise OutputError("The run was done before it was killed; screen more molecules.")
            done += 1
            parts = len(list(folder.glob("out.extxyz.parts/part-????????")))
            print(f"killed after {after:.1f} s, {parts} parts are there")
        if kills:
            _run([str(bundle), str(given), "-o", str(output), "--resume", *options], None)
            same = output.read_bytes() == whole.read_bytes()
            print("resumed: " + ("the same rows to the byte" if same else "DIFFERENT ROWS"))
            if not same:
                raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
