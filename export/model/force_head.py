"""Forces as explicit nodes: the exact gradient of the one energy model, with no autograd left in the graph.

There is no second, hand-kept backward model. The energy is written with sums over neighbours whose adjoints need no
scatter (`painn_deploy.export.model.explicit`), reverse mode derives the rest, and tracing through it leaves a plain
graph.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from painn_deploy.export.model.aggregation import PLAIN
from painn_deploy.export.model.explicit import EXPLICIT
from painn_deploy.export.model.student import NeighbourGraph, Student

__all__ = ["EnergyAndForces", "autograd_forces", "explicit_forces"]


class EnergyAndForces(NamedTuple):
    """The graph contract's outputs as tensors, in its order (see `painn_deploy.export.fields`)."""

    atomic_energies: Float[Tensor, " atoms"]
    forces: Float[Tensor, "atoms 3"]
    virials: Float[Tensor, "atoms 3 3"]


def explicit_forces(student: Student, graph: NeighbourGraph) -> EnergyAndForces:
    """Energies, forces and virials with the closed-form adjoints: what is traced, exported and deployed.

    With g = dE/d(displacement) of each slot, the force on atom i is the sum over its slots of g minus that of the
    reverse slot, and its virial the sum of g ⊗ displacement.

    Args:
        student: its energy model.
        graph: displacements (Å), neighbours and mask of [atoms, slots], and atomic numbers [atoms].
    """
    graph = graph._replace(displacements=graph.displacements.detach().requires_grad_())
    with torch.enable_grad():
        energies = student(graph, EXPLICIT)
        (gradient,) = torch.autograd.grad(energies.sum(), graph.displacements)
    virials = gradient.mT @ graph.displacements
    return EnergyAndForces(energies.detach(), forces_of(gradient, graph.reverse), virials.detach())


def forces_of(
    gradient: Float[Tensor, "atoms slots 3"], reverse: Int[Tensor, "atoms slots"]
) -> Float[Tensor, "atoms 3"]:
    """Forces from the gradient by displacements: an atom pulls on its slots, and the reverse slots pull on it."""
    opposite = torch.nn.functional.embedding(reverse, gradient.flatten(0, 1))
    return (gradient - opposite).sum(1)


def autograd_forces(student: Student, graph: NeighbourGraph) -> EnergyAndForces:
    """The same from plain autograd, gathers and scatters and all: the reference that shares no adjoint with the above.

    Args:
        student: in the dtype that the reference is wanted in.
        graph: in the same dtype.
    """
    displacements = graph.displacements.detach().requires_grad_()
    # a displacement depends on both ends: forces are by definition the answer to moving atoms by `moves`
    atoms = len(graph.atomic_numbers)
    moves = torch.zeros(atoms, 3, dtype=displacements.dtype, requires_grad=True)
    moved = displacements + (moves[graph.neighbours] - moves[:, None]) * graph.mask[..., None]
    with torch.enable_grad():
        energies = student(graph._replace(displacements=moved), PLAIN)
        gradient, negative_forces = torch.autograd.grad(energies.sum(), (displacements, moves))
    virials = torch.einsum("akx,aky->axy", gradient, displacements)
    return EnergyAndForces(energies.detach(), -negative_forces, virials.detach())


def tensors(inputs: tuple[object, ...], dtype: torch.dtype) -> NeighbourGraph:
    """Arrays of the graph contract as tensors, floating ones in `dtype`."""
    graph = [torch.as_tensor(array) for array in inputs]
    return NeighbourGraph(*(t.to(dtype) if t.is_floating_point() else t for t in graph))
