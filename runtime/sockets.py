"""An engine as a driver of i-PI: it waits for positions on a socket, and answers with energy, forces and virial.

i-PI moves the atoms (path integrals, replica exchange, thermostats); ASE speaks its protocol. Other programs that speak
it as servers are served as well, ASE's `SocketIOCalculator` among them. Of a bundle that says how sure it is, i-PI's
extras are its uncertainties, in JSON, by the names of `PaiNNCalculator`'s results.
"""

import json
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.socketio import SocketClient, SocketClosed, actualunixsocketname
from ase.stress import voigt_6_to_full_3x3_stress
from jaxtyping import Bool, Int8

from painn_deploy.export.errors import ServerError
from painn_deploy.runtime.calculator import PaiNNCalculator
from painn_deploy.runtime.periodicity import unrepeated
from painn_deploy.runtime.structures import as_directions, check_structure
from painn_deploy.runtime.uncertainty.scale import NUMBERS, OF_ATOMS

__all__ = ["drive"]

PORT = 31415
HEAD = 12
"""Bytes of the name that every message begins with."""

ASE_ASKS = ("STATUS", "POSDATA", "STATUS", "GETFORCE")
"""In this order for each calculation. i-PI asks for the status after the forces too, or not between the two."""

RETRY = 0.2
"""Seconds between attempts to reach a server that has only just been started."""


def drive(
    atoms: Atoms,
    calculator: PaiNNCalculator,
    *,
    pbc: bool | Sequence[bool] | Bool[np.ndarray, "3"] | None = None,
    host: str = "localhost",
    port: int = PORT,
    unixsocket: str | None = None,
    patience: float = 30.0,
    timeout: float | None = 600.0,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Answer a server until it says that it is done.

    i-PI says so with EXIT. ASE's server says nothing: it closes the connection after an answer. So may an i-PI that was
    killed, but the two ask in different orders: only from a server that has asked as ASE's does at every calculation is
    a connection that closes after an answer taken for an end.

    Args:
        atoms: elements and periodic directions, in the server's order; positions and cell are overwritten by its own.
        calculator: whose engine answers; with a skin it reuses neighbours.
        pbc: in which directions the server's cell repeats, which the protocol does not say: one flag, or three; None
            for those of `atoms`, and then a cell is refused that brings images of atoms within the cutoff while no
            direction is periodic.
        host: of the server.
        port: of the server.
        unixsocket: name of a UNIX socket instead, as i-PI's input calls it (/tmp/ipi_NAME).
        patience: s; how long to try to reach the server.
        timeout: s; how long the server may be silent; None for ever.
        progress: called with the number of answers given.

    Returns:
        How many answers were given.

    Raises:
        ServerError: it cannot be reached, went away before it was done, fell silent, speaks another protocol, has
            another number of atoms, sent NaN, or has a crystal's cell where nothing is said to repeat.
        StructureError, EngineError: as the calculator raises them; the server sees its driver leave.
    """
    where = f"UNIX socket {actualunixsocketname(unixsocket)}" if unixsocket else f"{host}:{port}"
    if not (unixsocket or 0 < port < 2**16):
        raise ServerError(f"There is no port {port}; ports are 1 to {2**16 - 1}.")
    if pbc is not None:
        atoms.pbc = as_directions(pbc)
    client = _connected(host, port, unixsocket, patience, timeout, where)
    listener, answer = _Listener(client.protocol.socket), _Answers(calculator, where, pbc is None)
    client.protocol.recvmsg = listener
    client.protocol.recvposdata = lambda: _positions(client.protocol, len(atoms), where)
    client.calculate = lambda moved, _: answer(moved)
    send = client.protocol.sendforce
    client.protocol.sendforce = lambda energy, forces, virial: send(energy, forces, virial, answer.extras)
    answers = 0
    try:
        for _ in client.irun(atoms, use_stress=True):
            answers += 1
            progress(answers)
    except ServerError:
        raise
    except TimeoutError as error:
        raise ServerError(
            f"The server at {where} was silent for {timeout:g} s, after {answers} answers. See whether it still runs; "
            "a longer timeout waits longer."
        ) from error
    except (SocketClosed, OSError) as error:
        reason = str(error) or "it ended in the middle of a message"
        raise ServerError(
            f"The connection to the server at {where} broke after {answers} answers: {reason}."
        ) from error
    except (AssertionError, KeyError, UnicodeDecodeError) as error:
        reason = "a message came out of turn" if isinstance(error, AssertionError) else f"{error}"
        raise ServerError(
            f"What answers at {where} does not speak i-PI's protocol ({reason}). Give the address of i-PI's ffsocket."
        ) from error
    finally:
        client.close()
    if not listener.ended:
        raise ServerError(
            f"The server at {where} went away after {answers} answers without saying that it was done. Its own output "
            "says why; start it again from its restart file, and this driver with it."
        )
    return answers


def _positions(protocol: Any, atoms: int, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell, inverse cell and positions of a message, as ASE reads them; of another number of atoms nothing is read."""
    cell, inverse = (_numbers(protocol, 3, "cell", where).T.copy() for _ in range(2))
    count = int(protocol.recv(1, np.int32)[0])
    if count != atoms:
        raise ServerError(
            f"The server at {where} has {count} atoms, and this driver's structure {atoms}. Give it the structure that "
            "the server's own input begins with."
        )
    positions = _numbers(protocol, count, "positions", where)
    return cell * units.Bohr, inverse / units.Bohr, positions * units.Bohr


def _numbers(protocol: Any, rows: int, name: str, where: str) -> np.ndarray:
    try:
        return np.asarray(protocol.recv((rows, 3), np.float64))
    except AssertionError as error:  # ASE's way to say it
        raise ServerError(
            f"The server at {where} sent NaN or infinity for its {name}. A simulation that got here has diverged; use "
            "a shorter time step."
        ) from error


class _Answers:
    """Energy, forces and virial; a cell without a volume has none, whether the structure repeats or not.

    Attributes:
        extras: bytes that go with the answer: uncertainties in JSON, or one zero, since the protocol knows no none.
    """

    extras: Int8[np.ndarray, " bytes"] = np.zeros(1, np.int8)

    def __init__(self, calculator: PaiNNCalculator, where: str, in_doubt: bool) -> None:
        self._calculator, self._where, self._in_doubt = calculator, where, in_doubt
        self._seen = b""

    def __call__(self, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
        if self._in_doubt and (cell := atoms.cell.array.tobytes()) != self._seen:
            self._refuse_a_crystal(check_structure(atoms))
            self._seen = cell  # one that stays is looked at once
        with self._calculator.evaluator.periodicity.known():
            self._calculator.calculate(atoms)
        results = self._calculator.results
        self.extras = self._extras(results)
        virial = np.zeros((3, 3))
        if "stress" in results:
            virial = -atoms.get_volume() * voigt_6_to_full_3x3_stress(results["stress"])
        return results["energy"], results["forces"], virial

    def _extras(self, results: Mapping[str, Any]) -> Int8[np.ndarray, " bytes"]:
        """Numbers alone, and always the same ones: what is absent, as with an unknown element, is infinite."""
        source = self._calculator.evaluator.uncertainty
        if source is None:
            return type(self).extras
        each = np.full(len(results["forces"]), np.inf)
        said = {name: results.get(name, np.inf) for name in NUMBERS if name in source.names}
        said |= {name: results.get(name, each).tolist() for name in OF_ATOMS if name in source.names}
        return np.frombuffer(json.dumps(said).encode(), np.int8)

    def _refuse_a_crystal(self, atoms: Atoms) -> None:
        cutoff = self._calculator.manifest.cutoff
        if (image := unrepeated(atoms, cutoff)) is None:
            return
        atom, other = image.names(atoms)
        raise ServerError(
            f"The cell of the server at {self._where} brings an image of {other} within {image.distance:.2f} Å of "
            f"{atom}, and the cutoff is {cutoff:g} Å, but the structure that the driver was given repeats in no "
            "direction. Give drive(..., pbc=True) if it is a crystal (three flags for a slab), or pbc=False if the "
            "cell stands for nothing."
        )


class _Listener:
    """Receives the heads of messages, since ASE takes any connection that broke for a server that is done.

    Attributes:
        ended: whether the server has ended the conversation, and did not break off.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._count, self._as_ase, self.ended = socket, 0, True, False

    def __call__(self) -> str:
        head = b""
        while len(head) < HEAD:
            received = self._socket.recv(HEAD - len(head))
            if not received:
                answered = self._count > 0 and self._count % len(ASE_ASKS) == 0
                self.ended = self._as_ase and answered and not head
                raise SocketClosed
            head += received
        message = head.decode("ascii").rstrip()
        self._as_ase = self._as_ase and message == ASE_ASKS[self._count % len(ASE_ASKS)]
        self._count += 1
        self.ended = message == "EXIT"
        return message


def _connected(host: str, port: int, unixsocket: str | None, patience: float, timeout: float | None, where: str) -> Any:
    deadline = time.monotonic() + patience
    while True:
        try:
            return SocketClient(host=host, port=port, unixsocket=unixsocket, timeout=timeout)
        except OSError as error:
            with warnings.catch_warnings():  # ASE leaves the socket that it could not connect to whoever collects it
                warnings.simplefilter("ignore", ResourceWarning)
                traceback.clear_frames(error.__traceback__)
            if time.monotonic() >= deadline:
                raise ServerError(
                    f"There is no server at {where} ({error.strerror or error}), after {patience:g} s of trying. "
                    "Start i-PI first, with a ffsocket of this address."
                ) from error
            time.sleep(RETRY)
