"""With the real i-PI, in a process of its own; and with servers that misbehave."""

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule

from painn_deploy.export.errors import ServerError, StructureError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.sockets import drive
from tests import students

STEPS = 40

INPUT = """
<simulation verbosity='low'>
  <output prefix='nvt'>
    <properties stride='1' filename='out'>
      [step, time{{picosecond}}, conserved{{electronvolt}}, temperature{{kelvin}}, potential{{electronvolt}}]
    </properties>
    <trajectory filename='pos' stride='1' format='ase'> positions{{ase}} </trajectory>
    <trajectory filename='for' stride='1' format='ase'> forces{{ase}} </trajectory>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>32415</seed></prng>
  <ffsocket name='painn' mode='unix' pbc='false'>
    <address>{address}</address> <latency>1e-3</latency> <timeout>60</timeout>
  </ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='ase'> start.extxyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces><force forcefield='painn'/></forces>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'> 0.2 </timestep>
        <thermostat mode='langevin'><tau units='femtosecond'> 50 </tau></thermostat>
      </dynamics>
    </motion>
    <ensemble><temperature units='kelvin'> 300 </temperature></ensemble>
  </system>
</simulation>
"""


@contextlib.contextmanager
def ipi(folder: Path, atoms: Atoms, address: str, steps: int = STEPS) -> Iterator[subprocess.Popen[str]]:
    program = shutil.which("i-pi", path=str(Path(sys.executable).parent)) or "i-pi"
    (folder / "input.xml").write_text(INPUT.format(address=address, steps=steps))
    ase.io.write(folder / "start.extxyz", atoms)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", program, "input.xml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def address() -> str:
    return f"painn-{uuid.uuid4().hex[:12]}"


def in_a_box() -> Atoms:
    atoms = students.perturbed(molecule("CH3OH"), 1, 0.02)
    atoms.set_initial_magnetic_moments(None)
    atoms.set_cell([12.0, 12.0, 12.0])
    atoms.center()
    atoms.pbc = True
    return atoms


def test_ipi_runs_nvt_on_an_engine(bundle: Path, tmp_path: Path, address: str) -> None:
    atoms = in_a_box()
    with PaiNNCalculator(bundle, skin=0.5) as calculator, ipi(tmp_path, atoms, address) as server:
        seen: list[int] = []
        answers = drive(atoms.copy(), calculator, unixsocket=address, progress=seen.append, timeout=60.0)
        output, _ = server.communicate(timeout=60)
        assert server.returncode == 0, output
        assert answers == seen[-1] == STEPS + 1
    table = np.loadtxt(tmp_path / "nvt.out")
    assert len(table) == STEPS + 1
    assert (table[:, 3] > 0).all()  # the student is random and no minimum is near
    assert np.ptp(table[:, 2]) < 0.02 * np.ptp(table[:, 4])
    frames = ase.io.read(tmp_path / "nvt.pos_0.extxyz", index=":", format="extxyz")
    forces = ase.io.read(tmp_path / "nvt.for_0.extxyz", index=":", format="extxyz")
    assert not np.allclose(frames[0].positions, frames[-1].positions, atol=1e-3)
    with PaiNNCalculator(bundle) as calculator:
        for frame, force, row in list(zip(frames, forces, table, strict=True))[:: STEPS // 4]:
            frame.pbc = True
            (want,) = calculator.calculate_batch([frame])
            assert row[4] == pytest.approx(want["energy"], abs=1e-4)
            np.testing.assert_allclose(force.get_forces(), want["forces"], rtol=0, atol=1e-4)


def test_ipi_that_is_killed(bundle: Path, tmp_path: Path, address: str) -> None:
    atoms = in_a_box()
    with PaiNNCalculator(bundle) as calculator, ipi(tmp_path, atoms, address, steps=10**6) as server:

        def kill(count: int) -> None:
            if count == 5:
                server.kill()

        with pytest.raises(ServerError, match=r"went away after \d+ answers|broke after \d+ answers"):
            drive(atoms, calculator, unixsocket=address, progress=kill, timeout=60.0)


def test_a_server_that_is_not_there(bundle: Path, address: str) -> None:
    with PaiNNCalculator(bundle) as calculator:
        with pytest.raises(ServerError, match="no server at UNIX socket /tmp/ipi_.*Start i-PI first"):
            drive(students.water(), calculator, unixsocket=address, patience=0.3)
        with socket.socket() as taken:
            taken.bind(("localhost", 0))
            with pytest.raises(ServerError, match="no server at localhost"):
                drive(students.water(), calculator, port=taken.getsockname()[1], patience=0.1)


@contextlib.contextmanager
def misbehaving(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that accepts one driver, does something to it, and stays."""
    with socket.create_server(("localhost", 0)) as server:
        done = threading.Event()

        def accept() -> None:
            connection, _ = server.accept()
            with connection:
                talk(connection)
                done.wait(20)

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1]
        done.set()
        thread.join()


def posdata(atoms: Atoms, positions: np.ndarray, count: int | None = None) -> bytes:
    cell = (atoms.cell.array.T / units.Bohr).tobytes()
    told = np.int32(len(atoms) if count is None else count).tobytes()
    return b"POSDATA     " + cell + cell + told + (positions / units.Bohr).tobytes()


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        (lambda connection: connection.sendall(b"STATUS      "), "silent for 0.5 s, after 0 answers"),
        (lambda connection: connection.sendall(b"GET / HTTP/1"), "does not speak i-PI's protocol"),
        (lambda connection: connection.sendall(posdata(in_a_box(), in_a_box().positions * np.nan)), "sent NaN"),
        (lambda connection: connection.shutdown(socket.SHUT_RDWR), "went away after 0 answers"),
    ],
)
def test_a_server_that_is_silent_or_strange(bundle: Path, talk: Callable[[socket.socket], None], message: str) -> None:
    with PaiNNCalculator(bundle) as calculator, misbehaving(talk) as port, pytest.raises(ServerError, match=message):
        drive(in_a_box(), calculator, port=port, timeout=0.5)


def test_an_error_of_the_structure_is_its_own(bundle: Path) -> None:
    atoms = in_a_box()
    positions = atoms.positions.copy()
    positions[1] = positions[0]
    with (
        PaiNNCalculator(bundle) as calculator,
        misbehaving(lambda connection: connection.sendall(posdata(atoms, positions))) as port,
        pytest.raises(StructureError, match="on one spot"),
    ):
        drive(atoms, calculator, port=port, timeout=5.0)


@pytest.mark.parametrize("count", [10**8, 2**31 - 1, -1, 0, 5, 7])
def test_f16_another_number_of_atoms_is_told_before_anything_is_read(bundle: Path, count: int) -> None:
    atoms = in_a_box()
    message = posdata(atoms, atoms.positions, count)
    with (
        PaiNNCalculator(bundle) as calculator,
        misbehaving(lambda connection: connection.sendall(message)) as port,
        pytest.raises(ServerError, match=f"^The server at localhost:{port} has {count} atoms, and .* structure 6"),
    ):
        drive(atoms, calculator, port=port, timeout=5.0)


def test_f16_a_cell_without_a_volume_has_no_virial(bundle: Path) -> None:
    atoms = in_a_box()
    flat = atoms.copy()
    flat.cell.array[2] = 0.0
    with PaiNNCalculator(bundle) as calculator:
        with (
            misbehaving(lambda connection: connection.sendall(posdata(flat, flat.positions))) as port,
            pytest.raises(StructureError, match="linearly dependent"),
        ):
            drive(atoms, calculator, port=port, timeout=5.0)
        atoms.pbc = flat.pbc = False
        (want,) = calculator.calculate_batch([flat])
        answers = []

        def talk(connection: socket.socket) -> None:
            connection.sendall(posdata(flat, flat.positions) + b"GETFORCE    ")
            size = 12 + 8 + 4 + 8 * 3 * len(flat) + 8 * 9
            received = b""
            while len(received) < size:
                received += connection.recv(size - len(received))
            answers.append(np.frombuffer(received[24 : 24 + 24 * len(flat)]) * units.Ha / units.Bohr)
            answers.append(np.frombuffer(received[-72:]))
            connection.sendall(b"EXIT        ")

        with misbehaving(talk) as port:
            assert drive(atoms.copy(), calculator, port=port, timeout=5.0) == 1
    np.testing.assert_allclose(answers[0].reshape(-1, 3), want["forces"], rtol=0, atol=1e-5)
    assert not answers[1].any()
