"""MPI ranks that move parts of one structure together: what they tell each other, and how they fail together."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from painn_deploy.export.errors import EngineError, EngineUnavailableError, PaiNNDeployError

__all__ = ["ALONE", "Ranks", "ranks_of"]

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a rank which has failed waits for the others to fail too."""

HEARD = 0.5
"""Seconds in which a launcher passes on what a rank said last."""

POLL = 0.01
"""Seconds between two looks at whether they have."""


class Ranks:
    """The ranks of a communicator. A method is called by all of them, or by none; of one alone it returns at once.

    Args:
        comm: of mpi4py; None for one rank alone, which needs no MPI.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    def __init__(self, comm: Any = None) -> None:
        self._comm = comm
        self.rank, self.size = (0, 1) if comm is None else (int(comm.rank), int(comm.size))

    def first_says(self, value: T) -> T:
        """What rank 0 gives.

        Args:
            value: that rank 0 gives; those of others are not used.
        """
        return value if self._comm is None else self._comm.bcast(value, root=0)

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes.

        Args:
            flag: what this rank says.
        """
        return flag if self._comm is None else bool(self._comm.allreduce(int(flag)))

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over the ranks, the same to the bit on each.

        Args:
            values: float64, of the same shape on all.
        """
        if self._comm is None:
            return values
        found = np.empty((self.size, *values.shape))
        self._comm.Allgather(np.ascontiguousarray(values), found)
        whole: np.ndarray = found.sum(0)
        return whole

    def exchanged(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What each rank has for this one, in the order of ranks.

        Args:
            parts: for each rank, an array of rows; all have one type and one row length.
        """
        if self._comm is None:
            return list(parts)
        counts = np.array([len(part) for part in parts])
        coming = np.empty_like(counts)
        self._comm.Alltoall(counts, coming)
        return self.sent(np.concatenate(parts), counts, coming)

    def sent(self, rows: np.ndarray, counts: np.ndarray, coming: np.ndarray) -> list[np.ndarray]:
        """The same where it is known how many rows come.

        Args:
            rows: for all ranks, one rank's after the other's.
            counts: of rows for each rank.
            coming: of rows from each rank.
        """
        if self._comm is None:
            return [rows]
        found = np.empty((int(coming.sum()), *rows.shape[1:]), rows.dtype)
        width = int(np.prod(rows.shape[1:], dtype=int))
        self._comm.Alltoallv([np.ascontiguousarray(rows), counts * width], [found, coming * width])
        return np.split(found, np.cumsum(coming)[:-1])

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A block in which ranks do not talk; what goes wrong in it on one is raised on all of them, as it was."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
        if self._comm is None:
            if error is not None:
                raise error
            return
        fine, failing = self.size, np.empty(self.size, np.int64)
        self._comm.Allgather(np.array(fine if error is None else self.rank), failing)
        if (first := int(failing.min())) == fine:
            return
        kind, text = self._comm.bcast(_told(error), root=first)
        raise kind(f"Rank {first} of {self.size}: {text}") from error

    def ended_together(self) -> bool:
        """Wait for all ranks to come here; whether they did before `PATIENCE` was at its end.

        A rank that fails by itself would leave the others waiting for it for ever: it is then to call `abort`.
        """
        if self._comm is None:
            return True
        request, end = self._comm.Ibarrier(), time.monotonic() + PATIENCE
        while not request.Test():
            if time.monotonic() > end:
                return False
            time.sleep(POLL)
        return True

    def abort(self) -> None:
        """End all ranks at once."""
        if self._comm is not None:
            time.sleep(HEARD)
            self._comm.Abort(1)

    def neighbours_here(self) -> tuple[int, int]:
        """The place of this rank among those of its machine, and how many these are."""
        if self._comm is None:
            return 0, 1
        from mpi4py import MPI

        here = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        place = int(here.rank), int(here.size)
        here.Free()
        return place


ALONE = Ranks()
"""The ranks of a process without MPI."""


def ranks_of(lammps: Any) -> Ranks:
    """The ranks that a LAMMPS runs on.

    Args:
        lammps: of this process.

    Raises:
        EngineUnavailableError: there are several, and mpi4py is not installed, or talks to another MPI.
    """
    size = int(lammps.extract_setting("world_size"))
    if size == 1:
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EngineUnavailableError(
            f"LAMMPS runs on {size} MPI ranks, and mpi4py, by which they exchange forces, is not here ({error}): pip "
            'install "painn-deploy[lammps]".'
        ) from error
    if MPI.COMM_WORLD.size < size:
        library = MPI.Get_library_version().splitlines()[0].split(",")[0]
        raise EngineUnavailableError(
            f"LAMMPS runs on {size} MPI ranks, and mpi4py sees {MPI.COMM_WORLD.size}: it talks to another MPI "
            f"({' '.join(library.split())}) than LAMMPS. Let both use one, such as that of the wheel mpich; "
            "MPI4PY_LIBMPI names the library that mpi4py loads."
        )
    return Ranks(lammps.get_mpi_comm())


def _told(error: BaseException | None) -> tuple[type[Exception], str]:
    """An error as other ranks can raise it."""
    if isinstance(error, PaiNNDeployError):
        return type(error), str(error)
    return EngineError, f"{type(error).__name__}: {error}"
