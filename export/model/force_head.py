"""Forces as explicit nodes: the exact gradient of the one energy model, with no autograd left in the graph.

There is no second, hand-kept backward model. The energy is written with sums over neighbours whose adjoints need no
scatter (`painn_deploy.export.model.explicit`), reverse mode derives the rest, and tracing through it leaves a plain
graph.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from painn_deploy.export.model.aggregation import PLAIN
from painn_deploy.export.model.explicit import EXPLICIT
from painn_deploy.export.model.student import NeighbourGraph, Student

__all__ = ["EnergyAndForces", "autograd_forces", "explicit_forces", "explicit_outputs"]


class EnergyAndForces(NamedTuple):
    """The graph contract's outputs as tensors, in its order (see `painn_deploy.export.fields`)."""

    atomic_energies: Float[Tensor, " atoms"]
    forces: Float[Tensor, "atoms 3"]
    virials: Float[Tensor, "atoms 3 3"]


def explicit_forces(student: Student, graph: NeighbourGraph) -> EnergyAndForces:
    """Energies, forces and virials with the closed-form adjoints: what is traced, exported and deployed.

    E is the sum of the atomic energies times their weights. With g = dE/d(displacement) of each slot, the force on atom
    i is the sum over its slots of g minus that of the reverse slot, and its virial the sum of g ⊗ displacement.

    Args:
        student: its energy model.
        graph: displacements (Å), neighbours, reverse and mask of [atoms, slots], atomic numbers and weights [atoms].
    """
    return EnergyAndForces(*explicit_outputs(student, graph)[: len(EnergyAndForces._fields)])


def explicit_outputs(student: Student, graph: NeighbourGraph) -> tuple[Tensor, ...]:
    """The same, and what else the student's graph gives: all of `outputs_of(student.axes)`, in that order.

    A committee's energies, forces and virials are the means over its members, each of whose forces are the gradient of
    its own energy.

    Args:
        student: its energy model.
        graph: displacements (Å), neighbours, reverse and mask of [atoms, slots], atomic numbers and weights [atoms].
    """
    graph = graph._replace(displacements=graph.displacements.detach().requires_grad_())
    with torch.enable_grad():
        answers = [member.answer(graph, EXPLICIT) for member in student.members]
        weighted = [one.energies * graph.weights for one in answers]
        gradients = [torch.autograd.grad(each.sum(), graph.displacements)[0] for each in weighted]
    energies = [each.detach() for each in weighted]
    mean = _mean(gradients)
    # each member's own: a mean that is multiplied at once is scaled in float32 by ONNX Runtime, in a float64 graph too
    virials = _mean([gradient.mT @ graph.displacements for gradient in gradients])
    outputs = _mean(energies), forces_of(mean, graph.reverse), virials.detach()
    if "members" not in student.axes:
        return (*outputs, *([answers[0].features.detach()] if student.gives_features else []))
    deviations = [forces_of(gradient - mean, graph.reverse) for gradient in gradients]
    squares = [(deviation * deviation).sum(-1) for deviation in deviations]
    variance = sum(squares[1:], squares[0]) / (len(squares) - 1)
    return (*outputs, torch.cat([each.unsqueeze(-1) for each in energies], -1), torch.sqrt(variance))


def _mean(members: Sequence[Tensor]) -> Tensor:
    """Of one tensor a member."""
    return members[0] if len(members) == 1 else sum(members[1:], members[0]) / len(members)


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
        energies = student(graph._replace(displacements=moved), PLAIN) * graph.weights
        gradient, negative_forces = torch.autograd.grad(energies.sum(), (displacements, moves))
    virials = torch.einsum("akx,aky->axy", gradient, displacements)
    return EnergyAndForces(energies.detach(), -negative_forces, virials.detach())


def tensors(inputs: tuple[object, ...], dtype: torch.dtype) -> NeighbourGraph:
    """Arrays of the graph contract as tensors, floating ones in `dtype`."""
    graph = [torch.as_tensor(array) for array in inputs]
    return NeighbourGraph(*(t.to(dtype) if t.is_floating_point() else t for t in graph))
