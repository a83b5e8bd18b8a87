"""What goes wrong on several ranks: told once, on every rank, and nothing hangs."""

import subprocess
import sys
from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write

from painn_deploy.scripts import export_engines
from painn_deploy.scripts.programs.ranks import launcher
from tests import students
from tests.runtime.motion.commands import run_lammps

ROOT = Path(__file__).parents[3]

INPUT = """
units metal
pair_style zero 4
read_data c.data
pair_coeff * * C
timestep 0.0005
"""


def on_ranks(bundle: Path, folder: Path, text: str, *options: str) -> str:
    """The one error of an input on two ranks, which is told before a minute is over."""
    done = run_lammps(bundle, folder, text, 2, *options, timeout=60)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("error:") == 1
    return " ".join(done.stderr.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    atoms = students.perturbed(Atoms("C8", cell=[12.0, 9.0, 9.0], pbc=True), 0, 0.0)
    atoms.positions[:] = [[1.5 * place, 1.0 + place % 2, 3.0] for place in range(8)]
    write(tmp_path / "c.data", atoms, format="lammps-data", specorder=["C", "H"], masses=True)
    return tmp_path


def test_one_rank_whose_atoms_are_on_one_spot(bundle: Path, folder: Path) -> None:
    told = on_ranks(bundle, folder, INPUT + "set atom 8 x 9.0\nset atom 8 y 1.0\nrun 1\n", "--elements", "C,H")
    assert "Rank" in told
    assert "on one spot" in told


def test_an_element_that_nobody_named(bundle: Path, folder: Path) -> None:
    assert "1 elements (C) are given for 2 types" in on_ranks(bundle, folder, INPUT + "run 1\n")


def test_ghosts_that_do_not_reach(bundle: Path, folder: Path) -> None:
    told = on_ranks(bundle, folder, INPUT + "run 0\ncomm_modify cutoff 7\nrun 1\n", "--elements", "C,H")
    assert "in.lammps, line 9: LAMMPS's ghosts reach 7 Å" in told
    assert "comm_modify cutoff 10.1" in told


def test_atoms_that_move_before_lammps_looks(bundle: Path, folder: Path) -> None:
    text = INPUT + "neigh_modify every 100 delay 100 check no\nvelocity all set 100 0 0\nfix m all nve\nrun 60\n"
    assert "neigh_modify every 1 delay 0 check yes" in on_ranks(bundle, folder, text, "--elements", "C,H")


def test_atoms_that_leave_the_box_are_lost(bundle: Path, folder: Path) -> None:
    text = (
        INPUT.replace("read_data", "boundary f f f\nread_data") + "velocity all set 200 0 0\nfix m all nve\nrun 200\n"
    )
    assert "does not run `run 200`: ERROR: Lost atoms" in on_ranks(bundle, folder, text, "--elements", "C,H")


def test_a_committee(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
    members = [students.write(folder / name, "painn", seed=seed) for seed, name in enumerate(("a", "b"))]
    (bundle,) = export_engines(members, folder, committee=True, structures=[students.water()])
    told = on_ranks(bundle, folder, INPUT + "run 0\n", "--elements", "C,H")
    assert "spread of a committee's forces" in told
    assert "on one rank" in told


ALONE_IN_FAILING = """
import numpy as np
from painn_deploy.runtime.motion import ranks
from painn_deploy.scripts.programs.ranks import ended_together
from mpi4py import MPI

ranks.PATIENCE = 1.0
together = ranks.Ranks(MPI.COMM_WORLD)
with ended_together(together):
    if together.rank == 1:
        raise ValueError("something of this rank alone")
    together.total(np.zeros(1))
"""


def broken(folder: Path, program: str) -> str:
    """What two ranks of a program said on standard error before they ended, as they must, in failure."""
    (folder / "job.py").write_text(program)
    command = [launcher(), "-n", "2", sys.executable, "job.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stderr


def test_a_rank_that_fails_by_itself_ends_all(folder: Path) -> None:
    told = broken(folder, ALONE_IN_FAILING)
    assert "error: rank 1 of 2 failed by itself: something of this rank alone" in told


KILLED = """
import os
from mpi4py import MPI

if MPI.COMM_WORLD.rank == 1:
    os.kill(os.getpid(), 9)
MPI.COMM_WORLD.Barrier()
"""


def test_a_rank_that_is_killed_ends_all(folder: Path) -> None:
    broken(folder, KILLED)
