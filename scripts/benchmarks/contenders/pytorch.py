"""PyTorch as a contender: on a list of edges as training codes have it, and on the padded matrix of the engines."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from jaxtyping import Float

from painn_deploy.export.model.force_head import EnergyAndForces, autograd_forces, explicit_forces, tensors
from painn_deploy.export.model.student import NeighbourGraph, Student
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.contenders.contender import COMPILED, EAGER, Contender
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, Edges, edges_of

__all__ = ["AUTOGRAD", "EXPLICIT", "LIST_OF_EDGES", "Eager", "Padded"]

LIST_OF_EDGES = "eager, autograd"
AUTOGRAD = "padded, autograd"
EXPLICIT = "padded, explicit"
"""A list of edges, as training codes have it; our padded matrix; the same with the adjoints of the force head."""

HEADS: dict[str, Callable[[Student, NeighbourGraph], EnergyAndForces]] = {
    AUTOGRAD: autograd_forces,
    EXPLICIT: explicit_forces,
}


class Eager(Contender):
    """A student in PyTorch's eager mode with autograd, or what `torch.compile` makes of it.

    Args:
        student: in float32.
        device: `cpu` or `cuda`, where the student is then, too.
        name: what tables call it; by default what it is.
        compiled: compile it, at its first call.
    """

    def __init__(self, student: Student, device: str = "cpu", name: str | None = None, *, compiled: bool = False):
        super().__init__(name or (COMPILED if compiled else EAGER), str(torch.__version__), device)
        self._models = [EagerModel(member).to(device) for member in student.members]
        for model in self._models if compiled else ():
            model.atomic = torch.compile(model.atomic, dynamic=True)
        self._cutoff = student.configuration.cutoff

    def prepare(self, structures: Sequence[Atoms]) -> Edges:
        """A list of edges."""
        return edges_of(structures, self._cutoff)

    def run(self, prepared: Edges) -> list[np.ndarray]:
        """Energies of structures in eV, and forces in eV/Å."""
        prepared = prepared.to(self.device)
        first, *others = (model(prepared) for model in self._models)
        if others:  # a committee's are the means
            first = [torch.stack(each).mean(0) for each in zip(first, *others, strict=True)]
        return [tensor.cpu().numpy() for tensor in first]

    def forces(self, results: Any) -> Float[np.ndarray, "atoms 3"]:
        """eV/Å."""
        return np.asarray(results[1])


class Padded(Contender):
    """A student in PyTorch on the padded neighbour matrix that engines read.

    Args:
        student: in float32.
        name: `AUTOGRAD` or `EXPLICIT`, which says how it gets forces.
    """

    def __init__(self, student: Student, name: str) -> None:
        super().__init__(name, str(torch.__version__))
        self._student, self._head = student, HEADS[name]

    def prepare(self, structures: Sequence[Atoms]) -> NeighbourGraph:
        """The neighbour matrix."""
        return tensors(graph_inputs(structures, self._student.configuration.cutoff), torch.float32)

    def run(self, prepared: NeighbourGraph) -> np.ndarray:
        """Forces in eV/Å; energies are computed, too."""
        return self._head(self._student, prepared).forces.numpy()

    def forces(self, results: Any) -> Float[np.ndarray, "atoms 3"]:
        """eV/Å."""
        return np.asarray(results)
