"""The sums for training against the sums for deployment: values, forces, and the gradients of a loss of forces."""

import numpy as np
import pytest
import torch

from painn_deploy.export import load_student
from painn_deploy.export.model.aggregation import CLOSED_FORM, PLAIN, Aggregation
from painn_deploy.export.model.force_head import forces_of, tensors
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.distillation.fused_sums import compiled_sums
from tests import students


def loss_and_gradients(student, graph, sums: Aggregation) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A loss that reads energies and forces of every atom, and its gradient by every weight."""
    displacements = graph.displacements.detach().requires_grad_()
    energies = student(graph._replace(displacements=displacements), sums)
    (gradient,) = torch.autograd.grad(energies.sum(), displacements, create_graph=True)
    forces = forces_of(gradient, graph.reverse)
    weights = torch.linspace(-1, 1, forces.numel(), dtype=forces.dtype).reshape(forces.shape)
    loss = (forces * weights).sum() + forces.square().sum() + energies.square().sum()
    parameters = [p for p in student.parameters() if p.requires_grad]
    return loss.detach(), list(torch.autograd.grad(loss, parameters, allow_unused=True))


@pytest.fixture(scope="module")
def graph():
    """Molecules alone and apart, padded slots, and cells shorter than the cutoff."""
    zoo = students.zoo()
    names = ("single atom", "water", "ethanol", "benzene", "triclinic", "one atom in a cell shorter than the cutoff")
    return tensors(graph_inputs([zoo[name] for name in names], 4.0, np.float64), torch.float64)


@pytest.mark.parametrize("reference", [PLAIN, CLOSED_FORM], ids=["plain", "closed form"])
def test_first_and_second_derivatives_are_those_of_autograd(painn, graph, reference) -> None:
    student = load_student(painn, dtype=torch.float64).requires_grad_(True)
    loss, gradients = loss_and_gradients(student, graph, reference)
    other, others = loss_and_gradients(student, graph, compiled_sums(lambda loop: loop))
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=0)
    compared = 0
    for one, two in zip(gradients, others, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9 * float(one.abs().max()))
            compared += 1
    assert compared > 20


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own internals
def test_compiled_loops_are_the_loops(painn, graph) -> None:
    student = load_student(painn).requires_grad_(True)
    single = tensors(tuple(t.numpy() for t in graph), torch.float32)
    loss, gradients = loss_and_gradients(student, single, CLOSED_FORM)
    other, others = loss_and_gradients(student, single, compiled_sums())
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
    for one, two in zip(gradients, others, strict=True):
        if one is not None:
            torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
