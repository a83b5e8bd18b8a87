"""docs/programs.md: every block runs as it stands, and what the page says of it holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.mixing import SumCalculator
from dftd3.ase import DFTD3

from painn_deploy.runtime import PaiNNCalculator
from tests.scripts.commands.pages import blocks_of, run_program

BLOCKS = blocks_of("docs/programs.md")
PACKAGES = ("openmm", "openmmml")
"""Of the one block whose packages are not among those of the tests; the page says with which versions it was run."""


def run_block(word: str, bundle: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the one block that holds a word, in a process and a folder of its own."""
    (block,) = (block for block in BLOCKS if word in block)
    return run_program(block, bundle, folder)


def test_every_block_is_run_here() -> None:
    words = ("wrong.extxyz", "right.extxyz", "DFTD3", "openmm", "multiprocessing")
    assert [sum(word in block for word in words) for block in BLOCKS] == [1] * len(words)


def test_field_30_frames_that_share_a_calculator_are_written_as_the_page_says(bundle: Path, tmp_path: Path) -> None:
    done = run_block("wrong.extxyz", bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    own, written = (eval(text, {"np": np}) for text in re.findall(r"\[.*?\]", done.stdout))  # noqa: S307  lists of numbers
    assert own[0] != own[1]
    assert written == [own[1]] * 2

    done = run_block("right.extxyz", bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    frames = ase.io.read(tmp_path / "right.extxyz", index=":")
    with PaiNNCalculator(bundle) as calculator:
        for name, frame in zip(("H2O", "CH4", "CH3CH2OH"), frames, strict=True):
            atoms = molecule(name)
            atoms.calc = calculator
            assert frame.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
            np.testing.assert_allclose(frame.get_forces(), atoms.get_forces(), atol=1e-5)


def test_dispersion_is_added_exactly(bundle: Path, tmp_path: Path) -> None:
    done = run_block("DFTD3", bundle, tmp_path)
    assert done.returncode == 0, done.stderr

    def dispersion() -> DFTD3:
        return DFTD3(method="PBE", damping="d3bj")

    crystal = bulk("C", cubic=True)
    crystal.rattle(0.05, seed=1)
    for atoms in (molecule("C6H6"), crystal):
        found = []
        calculators = (SumCalculator([PaiNNCalculator(bundle), dispersion()]), PaiNNCalculator(bundle), dispersion())
        for calculator in calculators:
            one = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=calculator)
            found.append([one.get_potential_energy(), one.get_forces(), one.get_stress() if one.pbc.all() else 0.0])
        for both, engine, other in zip(*found, strict=True):
            np.testing.assert_allclose(both, engine + other, rtol=0, atol=1e-12)
            assert np.any(np.abs(other) > 1e-8) or not np.any(other)
        assert found[2][0] < -0.1


def test_field_32_openmm_s_block_runs_as_far_as_its_packages_are_here(bundle: Path, tmp_path: Path) -> None:
    done = run_block("openmm", bundle, tmp_path)
    if done.returncode:
        error = done.stderr.strip().splitlines()[-1]
        assert error in [f"ModuleNotFoundError: No module named {name!r}" for name in PACKAGES]
    else:
        assert done.stdout.strip().endswith("kJ/mol")


def test_each_process_opens_an_engine_of_its_own(bundle: Path, tmp_path: Path) -> None:
    done = run_block("multiprocessing", bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    with PaiNNCalculator(bundle) as calculator:
        wanted = [result["energy"] for result in calculator.calculate_batch([molecule("H2O"), molecule("CH4")])]
    found = [float(number) for number in re.findall(r"-?\d+\.\d+", done.stdout)]
    assert found == pytest.approx(wanted, abs=1e-5)


COUNT = """
import os, sys
from ase.build import bulk
from painn_deploy.runtime import PaiNNCalculator

atoms = bulk("C", cubic=True) * (3, 3, 3)
for threads in (1, 1, 3, None):  # the first one also starts what all share
    before = len(os.listdir("/proc/self/task"))
    calculator = PaiNNCalculator(sys.argv[1], threads=threads)
    energy = calculator.calculate_batch([atoms])[0]["energy"]
    print(len(os.listdir("/proc/self/task")) - before, energy)
"""


def test_field_70_threads_are_what_is_asked_for_whatever_openmp_and_the_cores_are(bundle: Path) -> None:
    def opened(*, pinned: bool = False, **variables: str) -> tuple[list[int], set[str]]:
        """Threads that each engine adds to the process, and the energies that they gave."""
        done = subprocess.run(
            [sys.executable, "-c", COUNT, str(bundle)],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}) if pinned else None,
        )
        assert done.stderr == ""
        rows = [line.split() for line in done.stdout.splitlines()]
        return [int(row[0]) for row in rows], {row[1] for row in rows}

    (_, one, three, default), energies = opened()
    assert one == 0
    assert three > 0
    for (_, *found), others in (opened(OMP_NUM_THREADS="1"), opened(pinned=True)):
        assert found == [one, three, default]
        assert others == energies
    assert len(energies) == 1
