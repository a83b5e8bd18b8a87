"""Ways of computing a student's energy and forces, behind one call, for the studies that compare them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms

from painn_deploy.engines import Session
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.model.force_head import autograd_forces, explicit_forces, tensors
from painn_deploy.export.model.student import NeighbourGraph, Student
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.eager import EagerModel, Edges, edges_of

__all__ = ["AUTOGRAD", "EAGER", "EXPLICIT", "Method", "Prepared", "prepare", "torch_methods"]

EAGER = "eager, autograd"
AUTOGRAD = "padded, autograd"
EXPLICIT = "padded, explicit"
"""A list of edges, as training codes have it; our padded matrix; the same with the adjoints of the force head."""


class Prepared(NamedTuple):
    """Structures with their neighbours found, in each form that a method reads.

    Attributes:
        edges: a list of edges.
        arrays: the graph contract's.
        graph: the same as tensors.
    """

    edges: Edges
    arrays: GraphInputs
    graph: NeighbourGraph


Method = Callable[[Prepared], np.ndarray]
"""To forces [atoms, 3] in eV/Å; the energy is computed too."""


def prepare(structures: Sequence[Atoms], cutoff: float, dtype: torch.dtype = torch.float32) -> Prepared:
    """Find neighbours."""
    arrays = graph_inputs(structures, cutoff, np.float64 if dtype == torch.float64 else np.float32)
    return Prepared(edges_of(structures, cutoff, dtype), arrays, tensors(arrays, dtype))


def torch_methods(student: Student) -> dict[str, Method]:
    """Those that need PyTorch alone, by name."""
    eager = EagerModel(student)
    return {
        EAGER: lambda made: eager(made.edges)[1].numpy(),
        AUTOGRAD: lambda made: autograd_forces(student, made.graph).forces.numpy(),
        EXPLICIT: lambda made: explicit_forces(student, made.graph).forces.numpy(),
    }


def engine_method(session: Session) -> Method:
    """The explicit adjoints as an engine runs them."""
    return lambda made: session.run(made.arrays).forces
