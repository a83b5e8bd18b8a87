"""The example scripts run, on few molecules; full-size runs are in docs/dynamics.md."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from ase.build import molecule

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.torchsim import PaiNNModel
from painn_deploy.scripts.benchmarks import batching
from painn_deploy.scripts.examples.relax_molecules import molecules, relax_molecules
from painn_deploy.scripts.examples.run_replicas import run_replicas
from painn_deploy.scripts.studies import interrupted_screening as prove_screening
from tests import students
from tests.scripts.commands.pages import blocks_of


def test_replicas_take_on_their_temperatures(bundle: Path) -> None:
    start = molecule("H2O")
    start.set_initial_magnetic_moments(None)
    means = run_replicas(PaiNNModel(bundle), start, [10.0, 600.0], replicas=4, steps=40, timestep=0.1)
    assert means.shape == (2,)
    assert torch.isfinite(means).all()
    assert means[1] > means[0]


def test_molecules_relax_in_flight(bundle: Path) -> None:
    structures = [
        students.perturbed(molecule(name), seed, 0.02) for seed, name in enumerate(("H2O", "NH3", "H2O", "NH3", "H2O"))
    ]
    for atoms in structures:
        atoms.set_initial_magnetic_moments(None)
    relaxed = relax_molecules(PaiNNModel(bundle), structures, fmax=0.3, steps=4000, atoms_at_once=8)
    assert [atoms.get_chemical_formula() for atoms in relaxed] == [atoms.get_chemical_formula() for atoms in structures]
    for result in PaiNNCalculator(bundle).calculate_batch(relaxed):
        assert np.linalg.norm(result["forces"], axis=1).max() < 0.31


def test_the_molecules_that_are_relaxed_are_different_ones() -> None:
    found = molecules(5)
    assert len({atoms.info["name"] for atoms in found}) == 5


def test_the_proof_s_molecules_are_those_that_a_student_knows(tmp_path: Path) -> None:
    import ase.io

    prove_screening.write_molecules(tmp_path / "x.extxyz", 50, (1, 8))
    made = ase.io.read(tmp_path / "x.extxyz", index=":")
    assert len(made) == 50
    assert {int(z) for atoms in made for z in atoms.numbers} <= {1, 8}
    assert len({atoms.info["id"] for atoms in made}) == 50


def test_batch_sizes_are_measured(bundle: Path) -> None:
    with PaiNNCalculator(bundle) as calculator:
        times = batching.batch_sizes(calculator, batching.Plan(batches=(1, 4), rounds=1))
    assert set(times) == {1, 4}
    assert min(times.values()) > 0


PREAMBLE = """
from ase.build import molecule
bundle = {bundle!r}
structures = [molecule("CH3CH2OH"), molecule("H2O")]
"""


def test_the_documentation_s_python_runs(bundle: Path, tmp_path: Path) -> None:
    program = "\n".join([PREAMBLE.format(bundle=str(bundle)), *blocks_of("docs/batching.md")])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 ")
