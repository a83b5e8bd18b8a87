"""One way to compute energies and forces, as every benchmark here takes it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float

from painn_deploy.engines.session import Closing
from painn_deploy.export.errors import EngineError

__all__ = ["COMPILED", "EAGER", "ORB", "PEERS", "SCHNETPACK", "Contender", "OneByOne"]

EAGER = "eager"
COMPILED = "torch.compile"
SCHNETPACK = "SchNetPack"
ORB = "Orb-v2"
PEERS = (EAGER, COMPILED, SCHNETPACK)
"""Programs that a student's engines are compared to, on the same weights."""


class Contender(Closing):
    """A name, and how it computes; a `with` block closes it.

    Args:
        name: what tables call it.
        version: of the library that computes.
        device: that it runs on, such as `cpu` or `cuda:0`.

    Attributes:
        alone: whether `run` is the model alone, so that it can be timed apart from `prepare`.
    """

    alone = True

    def __init__(self, name: str, version: str, device: str = "cpu") -> None:
        self.name, self.version, self.device = name, version, device

    def prepare(self, structures: Sequence[Atoms]) -> Any:
        """What `run` reads: structures side by side, their neighbours found."""
        return structures

    def run(self, prepared: Any) -> Any:  # noqa: ARG002 - for those that can
        """Energies and forces of what was prepared, in the host's memory.

        Raises:
            EngineError: it makes whole calls only, see `alone`.
        """
        raise EngineError(f"{self.name} makes whole calls only; nothing of it runs alone.")

    def whole(self, structures: list[Atoms]) -> Any:
        """Energies and forces from structures, everything included."""
        return self.run(self.prepare(structures))

    def forces(self, results: Any) -> Float[np.ndarray, "atoms 3"]:
        """eV/Å, of what `run` or `whole` returned; by default a list of dictionaries, as of `calculate_batch`."""
        return np.concatenate([np.asarray(result["forces"]) for result in results])

    def fits(self, structures: Sequence[Atoms]) -> bool:  # noqa: ARG002  of any size
        """Whether `run` takes structures side by side; `whole` takes them apart where it must."""
        return True

    def phases(self) -> dict[str, float]:
        """Milliseconds of a calculation by phase, over the whole calls since it was last asked for."""
        return {}

    def close(self) -> None:
        """Give back what it holds."""


class OneByOne(Contender):
    """A contender that is given one structure after the other.

    Args:
        name: what tables call it.
        contender: what computes; it is not closed.
    """

    alone = False

    def __init__(self, name: str, contender: Contender) -> None:
        super().__init__(name, contender.version, contender.device)
        self._contender = contender

    def whole(self, structures: list[Atoms]) -> Any:
        """A list of results."""
        return [self._contender.whole([atoms]) for atoms in structures]

    def forces(self, results: Any) -> Float[np.ndarray, "atoms 3"]:
        """eV/Å."""
        return np.concatenate([self._contender.forces(one) for one in results])
