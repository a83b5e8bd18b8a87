"""With the real i-PI, in a process of its own; and with servers that misbehave."""

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.socketio import SocketClosed, SocketIOCalculator

from painn_deploy.export.errors import ServerError, StructureError
from painn_deploy.runtime import PaiNNCalculator, sockets
from painn_deploy.runtime.sockets import drive
from tests import students

STEPS = 40

INPUT = """
<simulation verbosity='low'>
  <output prefix='nvt'>
    <properties stride='1' filename='out'>
      [step, time{{picosecond}}, conserved{{electronvolt}}, temperature{{kelvin}}, potential{{electronvolt}},
       virial_md]
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
def address() -> Iterator[str]:
    name = f"painn-{uuid.uuid4().hex[:12]}"
    yield name
    Path(f"/tmp/ipi_{name}").unlink(missing_ok=True)  # noqa: S108 - where ASE puts it; a server that was killed leaves it


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


def test_ipi_has_the_virial_of_a_triclinic_crystal(bundle: Path, tmp_path: Path, address: str) -> None:
    atoms = bulk("C", "diamond", a=3.57, cubic=True)
    atoms.set_cell([[3.57, 0, 0], [0.4, 3.7, 0], [-0.5, 0.3, 3.4]], scale_atoms=True)
    atoms = students.perturbed(atoms, 1, 0.05)
    template = Atoms(atoms.numbers, atoms.positions)  # neither its cell nor its periodic directions are the server's
    with PaiNNCalculator(bundle) as calculator, ipi(tmp_path, atoms, address, steps=1) as server:
        assert drive(template, calculator, pbc=True, unixsocket=address, timeout=60.0) == 2
        server.communicate(timeout=60)
        (want,) = calculator.calculate_batch([atoms])
    row = np.loadtxt(tmp_path / "nvt.out")[0]
    assert row[4] == pytest.approx(want["energy"], abs=1e-5)
    virial = -want["stress"][[0, 1, 2, 5, 4, 3]] / (units.Ha / units.Bohr**3)  # i-PI: xx, yy, zz, xy, xz, yz
    np.testing.assert_allclose(row[5:], virial, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("delay", [0.0, 0.021, 0.047])
def test_ipi_that_is_killed(bundle: Path, tmp_path: Path, address: str, delay: float) -> None:
    """While it waits for an answer, and while it does something else."""
    atoms = in_a_box()
    with PaiNNCalculator(bundle) as calculator, ipi(tmp_path, atoms, address, steps=10**6) as server:

        def kill(count: int) -> None:
            if count == 5 and delay:
                threading.Timer(delay, server.kill).start()
            elif count == 5:
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


def unboxed(length: float) -> Atoms:
    atoms = in_a_box()
    atoms.cell.array[1, 1] = length
    return atoms


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        (lambda connection: connection.sendall(b"STATUS      "), "silent for 0.5 s, after 0 answers"),
        (lambda connection: connection.sendall(b"GET / HTTP/1"), "does not speak i-PI's protocol .*GET.*address"),
        (lambda connection: connection.sendall(b"GETFORCE    "), "protocol .a message came out of turn.*address"),
        (lambda connection: connection.sendall(b"INIT        " + b"\xff" * 8), "protocol .a message came out of turn"),
        (
            lambda connection: connection.sendall(posdata(in_a_box(), in_a_box().positions * np.nan)),
            "NaN .* its positions",
        ),
        (lambda connection: connection.sendall(posdata(unboxed(np.nan), in_a_box().positions)), "NaN .* its cell"),
        (lambda connection: connection.sendall(posdata(unboxed(np.inf), in_a_box().positions)), "infinity .* its cell"),
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


def cut(connection: socket.socket, message: bytes) -> None:
    """Send it, and close."""
    connection.sendall(message)
    connection.shutdown(socket.SHUT_RDWR)


def asked(atoms: Atoms, before: bytes, between: bytes, then: bytes) -> Callable[[socket.socket], None]:
    """A server that takes one answer, sends a message, and closes as a killed process does."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(before + posdata(atoms, atoms.positions) + between + b"GETFORCE    ")
        size = len(before + between) + 12 + 8 + 4 + 24 * len(atoms) + 72 + 4 + 1
        while size:
            size -= len(connection.recv(size))
        connection.sendall(then)
        if then == STATUS:
            connection.recv(12)
        connection.shutdown(socket.SHUT_RDWR)

    return talk


STATUS = b"STATUS      "


@pytest.mark.parametrize("where", [5, 12, 13, 12 + 72, 12 + 144 + 2, 12 + 144 + 4, 12 + 144 + 4 + 50])
def test_a_server_that_vanishes_in_the_middle_of_a_message(bundle: Path, where: int) -> None:
    atoms = in_a_box()
    message = posdata(atoms, atoms.positions)[:where]
    with (
        PaiNNCalculator(bundle) as calculator,
        misbehaving(lambda connection: cut(connection, message)) as port,
        pytest.raises(ServerError, match=r"went away after 0 answers|broke after 0 answers: .*middle of a message"),
    ):
        drive(atoms, calculator, port=port, timeout=5.0)


@pytest.mark.parametrize(
    ("before", "between", "then"),
    [
        (STATUS, b"", b""),  # i-PI of today
        (STATUS + STATUS, STATUS, b""),  # and of before
        (b"", b"", b""),
        (STATUS, STATUS, STATUS),  # ASE's, cut off elsewhere
        (STATUS, STATUS, b"STA"),
        (STATUS, STATUS, STATUS + b"POSDATA     "),
        (STATUS, STATUS, STATUS + posdata(in_a_box(), in_a_box().positions)),
    ],
)
def test_field_26_a_server_may_end_as_ase_s_does_and_in_no_other_way(
    bundle: Path, before: bytes, between: bytes, then: bytes
) -> None:
    atoms = in_a_box()
    with PaiNNCalculator(bundle) as calculator:
        with misbehaving(asked(atoms, STATUS, STATUS, b"")) as port:
            assert drive(atoms.copy(), calculator, port=port, timeout=5.0) == 1
        with (
            misbehaving(asked(atoms, before, between, then)) as port,
            pytest.raises(ServerError, match=r"went away after [12] answers|broke after [12] answers"),
        ):
            drive(atoms.copy(), calculator, port=port, timeout=5.0)


@contextlib.contextmanager
def driver(run: Callable[[], int]) -> Iterator[list[int | Exception]]:
    """A driver in a thread of its own; what it returned or raised stands in the list when it has ended."""
    found: list[int | Exception] = []

    def work() -> None:
        try:
            found.append(run())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield found
    thread.join(30)
    assert not thread.is_alive()


def test_field_26_ase_s_server(bundle: Path, address: str) -> None:
    crystal = students.perturbed(bulk("C", "diamond", a=3.57, cubic=True), 1, 0.03)
    frames = [crystal, students.perturbed(crystal, 2, 0.01), crystal.copy()]
    frames[2].set_cell(crystal.cell.array * [[1.02], [1.0], [0.99]], scale_atoms=True)
    with PaiNNCalculator(bundle) as calculator, PaiNNCalculator(bundle) as there:
        want = calculator.calculate_batch(frames)
        with (
            driver(lambda: drive(crystal.copy(), there, unixsocket=address, timeout=20.0)) as found,
            SocketIOCalculator(unixsocket=address, timeout=20.0) as server,
        ):
            for frame, results in zip(frames, want, strict=True):
                frame.calc = server
                assert frame.get_potential_energy() == pytest.approx(results["energy"], abs=1e-5)
                np.testing.assert_allclose(frame.get_forces(), results["forces"], rtol=0, atol=1e-5)
                np.testing.assert_allclose(frame.get_stress(), results["stress"], rtol=0, atol=1e-6)
    assert found == [3]


IPI_XYZ = """8
# CELL(abcABC):    3.57000     3.57000     3.57000    90.00000    90.00000    90.00000  Step: 0  positions{angstrom}
"""


@pytest.fixture
def ipi_template(tmp_path: Path) -> Atoms:
    """A crystal in i-PI's own xyz, of which ASE reads no cell."""
    crystal = bulk("C", "diamond", a=3.57, cubic=True)
    lines = [f"C {x:.6f} {y:.6f} {z:.6f}" for x, y, z in crystal.positions]
    (tmp_path / "start.xyz").write_text(IPI_XYZ + "\n".join(lines) + "\n")
    atoms = ase.io.read(tmp_path / "start.xyz")
    assert isinstance(atoms, Atoms)
    assert not atoms.pbc.any()
    return atoms


@pytest.mark.parametrize("pbc", [None, True, False, (True, True, False), np.array([False, True, True])])
def test_field_4_a_crystal_s_cell_asks_for_pbc(bundle: Path, address: str, ipi_template: Atoms, pbc: Any) -> None:
    crystal = students.perturbed(bulk("C", "diamond", a=3.57, cubic=True), 1, 0.03)
    with (
        PaiNNCalculator(bundle) as calculator,
        PaiNNCalculator(bundle) as there,
        driver(lambda: drive(ipi_template, there, pbc=pbc, unixsocket=address, timeout=20.0)) as found,
        SocketIOCalculator(unixsocket=address, timeout=20.0) as server,
    ):
        crystal.calc = server
        if pbc is None:
            with pytest.raises((SocketClosed, ConnectionError)):
                crystal.get_potential_energy()
        else:
            crystal.get_potential_energy()
            crystal.pbc = pbc
            if not crystal.pbc.any():
                crystal.cell = None  # a molecule
            (want,) = calculator.calculate_batch([crystal])
            assert server.results["energy"] == pytest.approx(want["energy"], abs=1e-5)
            np.testing.assert_allclose(server.results["forces"], want["forces"], rtol=0, atol=1e-5)
            if "stress" in want:
                np.testing.assert_allclose(server.results["stress"], want["stress"], rtol=0, atol=1e-6)
    if pbc is None:
        (error,) = found
        assert isinstance(error, ServerError)
        assert re.search(r"an image of atom \d+ \(C\) within 1.* Å of atom .*pbc=True.*pbc=False", str(error))
    else:
        assert found == [1]


def test_a_molecule_in_a_box_is_looked_at_once_for_each_cell(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []
    monkeypatch.setattr(sockets, "unrepeated", lambda atoms, cutoff: looked.append(atoms.cell.array[0, 0]))
    atoms, wide = in_a_box(), in_a_box()
    atoms.pbc = False
    wide.cell.array[0, 0] = 14.0
    messages = [posdata(frame, atoms.positions) for frame in (atoms, atoms, atoms, wide, wide)]

    def talk(connection: socket.socket) -> None:
        for message in messages:
            connection.sendall(message + b"GETFORCE    ")
            size = 12 + 8 + 4 + 24 * len(atoms) + 72 + 4 + 1
            while size:
                size -= len(connection.recv(size))
        connection.sendall(b"EXIT        ")

    with PaiNNCalculator(bundle) as calculator:
        with misbehaving(talk) as port:
            assert drive(atoms.copy(), calculator, port=port, timeout=5.0) == 5
        np.testing.assert_allclose(looked, [12.0, 14.0])
        monkeypatch.undo()
        with misbehaving(talk) as port:  # such a box is wide enough
            assert drive(atoms.copy(), calculator, port=port, timeout=5.0) == 5


@pytest.mark.parametrize("pbc", [(), (True, True), [True] * 4])
def test_pbc_that_is_none(bundle: Path, pbc: Any) -> None:
    with (
        PaiNNCalculator(bundle) as calculator,
        pytest.raises(StructureError, match="pbc is .*three times true or false"),
    ):
        drive(in_a_box(), calculator, pbc=pbc, patience=0.1)


def test_a_port_that_cannot_be(bundle: Path) -> None:
    with PaiNNCalculator(bundle) as calculator, pytest.raises(ServerError, match="no port 99999"):
        drive(in_a_box(), calculator, port=99999, patience=0.1)
