"""The example scripts run, on few molecules; full-size runs are in docs/batching.md."""

import re
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
from tests.conftest import ROOT


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
import ase.io
from ase.build import molecule
bundle = {bundle!r}
structures = [molecule("CH3CH2OH"), molecule("H2O")]
for atoms in structures:
    atoms.set_initial_magnetic_moments(None)
box = structures[0].copy()
box.set_cell([15, 15, 15])
box.center()
box.pbc = True
ase.io.write("structure.data", box, format="lammps-data", specorder=["C", "H", "O"], masses=True)
"""


def test_the_documentation_s_python_runs(bundle: Path, tmp_path: Path) -> None:
    """All but the blocks that speak through a socket: tests/runtime/test_sockets.py starts both of its ends."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "batching.md").read_text(), re.S)
    program = "\n".join(
        [PREAMBLE.format(bundle=str(bundle)), *(block for block in blocks if "unixsocket=" not in block)]
    )
    program = program.replace("n_steps=1000", "n_steps=5").replace("run 1000", "run 5")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 ")
