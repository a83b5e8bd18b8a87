"""An engine as a driver of i-PI: it waits for positions on a socket, and answers with energy, forces and virial.

i-PI moves the atoms (path integrals, replica exchange, thermostats); ASE speaks its protocol. Other programs that speak
it as servers are served as well.
"""

import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.socketio import SocketClient, SocketClosed, actualunixsocketname
from ase.stress import voigt_6_to_full_3x3_stress

from painn_deploy.export.errors import ServerError
from painn_deploy.runtime.calculator import PaiNNCalculator

__all__ = ["drive"]

PORT = 31415
RETRY = 0.2
"""Seconds between attempts to reach a server that has only just been started."""


def drive(
    atoms: Atoms,
    calculator: PaiNNCalculator,
    *,
    host: str = "localhost",
    port: int = PORT,
    unixsocket: str | None = None,
    patience: float = 30.0,
    timeout: float | None = 600.0,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Answer a server until it says that it is done.

    Args:
        atoms: elements and periodic directions, in the server's order; positions and cell are overwritten by its own.
        calculator: whose engine answers; with a skin it reuses neighbours.
        host: of the server.
        port: of the server.
        unixsocket: name of a UNIX socket instead, as i-PI's input calls it (/tmp/ipi_NAME).
        patience: s; how long to try to reach the server.
        timeout: s; how long the server may be silent; None for ever.
        progress: called with the number of answers given.

    Returns:
        How many answers were given.

    Raises:
        ServerError: it cannot be reached, went away before it was done, fell silent, speaks another protocol, or has
            another number of atoms.
        StructureError, EngineError: as the calculator raises them; the server sees its driver leave.
    """
    where = f"UNIX socket {actualunixsocketname(unixsocket)}" if unixsocket else f"{host}:{port}"
    client = _connected(host, port, unixsocket, patience, timeout, where)
    listener = _Listener(client.protocol.recvmsg)
    client.protocol.recvmsg = listener
    client.protocol.recvposdata = lambda: _positions(client.protocol, len(atoms), where)
    client.calculate = lambda moved, _: _answer(calculator, moved)
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
        raise ServerError(f"The connection to the server at {where} broke after {answers} answers: {error}.") from error
    except (AssertionError, KeyError, UnicodeDecodeError) as error:
        raise ServerError(
            f"What answers at {where} does not speak i-PI's protocol, or sent NaN ({type(error).__name__}: {error})."
        ) from error
    finally:
        client.close()
    if listener.last != "EXIT":
        raise ServerError(
            f"The server at {where} went away after {answers} answers without saying that it was done. Its own output "
            "says why; start it again from its restart file, and this driver with it."
        )
    return answers


def _positions(protocol: Any, atoms: int, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell, inverse cell and positions of a message, as ASE reads them; of another number of atoms nothing is read."""
    cell, inverse = (protocol.recv((3, 3), np.float64).T.copy() for _ in range(2))
    count = int(protocol.recv(1, np.int32)[0])
    if count != atoms:
        raise ServerError(
            f"The server at {where} has {count} atoms, and this driver's structure {atoms}. Give it the structure that "
            "the server's own input begins with."
        )
    positions = protocol.recv((count, 3), np.float64)
    return cell * units.Bohr, inverse / units.Bohr, positions * units.Bohr


def _answer(calculator: PaiNNCalculator, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and virial; a cell without a volume has none, whether the structure repeats or not."""
    calculator.calculate(atoms)
    results = calculator.results
    virial = np.zeros((3, 3))
    if "stress" in results:
        virial = -atoms.get_volume() * voigt_6_to_full_3x3_stress(results["stress"])
    return results["energy"], results["forces"], virial


class _Listener:
    """Notes the last message, since ASE takes a connection that broke for a server that is done."""

    def __init__(self, receive: Callable[[], str]) -> None:
        self._receive, self.last = receive, ""

    def __call__(self) -> str:
        self.last = "nothing"
        self.last = self._receive()
        return self.last


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
