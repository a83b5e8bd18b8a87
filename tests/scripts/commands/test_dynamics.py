"""docs/dynamics.md: every block and every command runs as it stands, though not for as many steps."""

import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.sockets import drive
from tests.conftest import ROOT
from tests.scripts.commands.pages import blocks_of, commands_of, run_program, run_shell

PAGE = "docs/dynamics.md"
BLOCKS, COMMANDS = blocks_of(PAGE), commands_of(PAGE)
IPI = ["i-pi input.xml &", "python drive.py"]
ENDED = "driven=$?; if [ $driven = 0 ]; then wait $!; else kill $!; exit $driven; fi"
"""i-PI waits for ever for a driver that failed."""

SHORTER = {
    "painn-deploy md": " --picoseconds 0.0025",
    "run_replicas.py": " --steps 4",
    "relax_molecules.py": " --count 2 --fmax 100",
}
"""What is added to a command, by a word of it, to take little time. Of an option given twice the last one holds."""

PROGRAMS = {"run_ase.py": "ase", "run.py": "lammps", "drive.py": "driver"}
"""Which blocks the page calls by these names."""

PIECES = {"ase": 1, "torchsim": 3, "prepared": 1, "lammps": 2, "driver": 1, "xyz": 1, "server": 1}
"""How many Python blocks of each kind there are."""


def kind_of(block: str) -> str:
    words = {
        "SocketIOCalculator": "server",
        "start.xyz": "xyz",
        "drive(": "driver",
        "Langevin(": "ase",
        "lammps-data": "prepared",
        "link.command": "lammps",
        "model": "torchsim",
    }
    return next(kind for word, kind in words.items() if word in block)


def python(kind: str) -> str:
    """The blocks of a kind, one after the other, with few steps."""
    text = "\n".join(block for block in BLOCKS if kind_of(block) == kind)
    return re.sub(r"\b(run[ (]|n_steps=)1000\b", r"\g<1>5", text)


@pytest.fixture
def folder(tmp_path: Path, bundle: Path) -> Path:
    """A folder with the files that the page's commands take."""
    atoms = molecule("CH3CH2OH", cell=[12, 12, 12], pbc=True)
    atoms.set_initial_magnetic_moments(None)
    atoms.center()
    ase.io.write(tmp_path / "start.extxyz", atoms)
    assert run_program(python("prepared"), bundle, tmp_path).returncode == 0
    (script,) = blocks_of(PAGE, "lammps")
    (tmp_path / "in.lammps").write_text(script.replace("run 1000", "run 5"))
    for name, kind in PROGRAMS.items():
        (tmp_path / name).write_text(f"bundle = {str(bundle)!r}\n{python(kind)}")
    return tmp_path


def test_every_block_is_run_here() -> None:
    found = [kind_of(block) for block in BLOCKS]
    assert {kind: found.count(kind) for kind in PIECES} == PIECES
    assert set(found) == set(PIECES)
    text = (ROOT / PAGE).read_text()
    others = [language for language in re.findall(r"^```(\w+)$", text, re.M) if language != "python"]
    assert others == ["lammps", "text", "xml"], "LAMMPS's input, a formula and i-PI's input"


def test_every_command_of_the_table_is_one_of_those_that_run() -> None:
    table = (ROOT / PAGE).read_text().split("What they have:")[0]
    rows = re.findall(r"^\| .* \| \[.*\]\(#.*\) \| (.*) \|$", table, re.M)
    assert len(rows) == 8
    assert set(re.findall(r"`(.*?)`", " ".join(rows))) <= {command.removesuffix(" &") for command in COMMANDS}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in IPI])
def test_a_command_runs(command: str, bundle: Path, folder: Path) -> None:
    added = next((added for word, added in SHORTER.items() if word in command), "")
    done = run_shell(command + added, bundle, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = re.search(r"(?:-n|--ranks) (\d+)", command)
    if "painn-deploy lammps" in command:
        assert f" on {ranks[1] if ranks else 1} procs for 5 steps with 9 atoms" in done.stdout
        assert done.stderr.count("types: 1 C, 2 H, 3 O") == 1
        assert re.search(rf"^ +0 +{'400' if '-var T 400' in command else '300'} ", done.stdout, re.M)
    elif "run.py" in command:
        alone = run_program(python("lammps"), bundle, folder)
        assert alone.returncode == 0, alone.stderr
        found, wanted = (sorted(numbers(one.stdout)) for one in (done, alone))
        assert len(found) == 9
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", text)]


def test_torchsim_s_blocks_run(bundle: Path, tmp_path: Path) -> None:
    done = run_program(python("torchsim"), bundle, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def address() -> Iterator[str]:
    """Another name than the page's, which a test beside this one may have taken."""
    name = f"painn-{uuid.uuid4().hex[:12]}"
    yield name
    Path(f"/tmp/ipi_{name}").unlink(missing_ok=True)  # noqa: S108  where ASE and i-PI put it


def test_ipi_and_its_driver_run(bundle: Path, folder: Path, address: str) -> None:
    (simulation,) = blocks_of(PAGE, "xml")
    simulation = simulation.replace(">1000<", ">20<").replace(">painn<", f">{address}<")
    for xyz in (False, True):
        if xyz:  # i-PI's own format, of which ASE reads no cell
            atoms = ase.io.read(folder / "start.extxyz")
            lines = [f"{len(atoms)}", "# CELL(abcABC): 12 12 12 90 90 90 positions{angstrom} cell{angstrom}"]
            lines += [f"{atom.symbol} {atom.x} {atom.y} {atom.z}" for atom in atoms]
            (folder / "start.xyz").write_text("\n".join([*lines, ""]))
            simulation = simulation.replace("<file mode='ase'> start.extxyz", "<file mode='xyz'> start.xyz")
            simulation = simulation.replace("prefix='nvt'", "prefix='xyz'")
        (folder / "input.xml").write_text(simulation)
        driver = python("xyz" if xyz else "driver").replace('"painn"', repr(address))
        (folder / "drive.py").write_text(f"bundle = {str(bundle)!r}\n{driver}")
        done = run_shell("\n".join([*IPI, ENDED]), bundle, folder)
        assert done.returncode == 0, done.stdout + done.stderr
        table = np.loadtxt(folder / ("xyz.out" if xyz else "nvt.out"))
        assert table[:, 0].tolist() == [0, 10, 20]


def test_ase_s_server_is_served(bundle: Path, folder: Path, address: str) -> None:
    atoms = ase.io.read(folder / "start.extxyz")
    answers: list[int] = []

    def answer() -> None:
        with PaiNNCalculator(bundle) as calculator:
            answers.append(drive(atoms.copy(), calculator, unixsocket=address))

    driver = threading.Thread(target=answer)
    driver.start()
    done = run_program(python("server").replace('"painn"', repr(address)), bundle, folder)
    driver.join(60)
    assert done.returncode == 0, done.stderr
    assert answers == [1]
    with PaiNNCalculator(bundle) as atoms.calc:
        assert numbers(done.stdout)[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
