from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from painn_deploy.calibration.physics.consistency import displacements, gradient_errors, head_forces, is_gradient
from painn_deploy.export import load_student
from painn_deploy.export.model.aggregation import CLOSED_FORM, PLAIN
from painn_deploy.export.model.explicit import EXPLICIT
from painn_deploy.export.model.force_head import explicit_forces, tensors
from painn_deploy.runtime.matrix import graph_inputs
from tests import students
from tests.heads import check_adjoints, explicit_results

ZOO = students.zoo()


@pytest.mark.parametrize("name", ZOO)
def test_closed_form_adjoints_are_those_of_autograd(checkpoint: Path, name: str) -> None:
    check_adjoints(load_student(checkpoint, dtype=torch.float64), ZOO[name])


def test_forces_are_the_slope_of_the_energy(checkpoint: Path) -> None:
    student, atoms = load_student(checkpoint, dtype=torch.float64), ZOO["ethanol"]
    errors = gradient_errors(explicit_results(student), atoms, displacements(atoms), 1e-4)
    assert errors.shape == (27,)
    assert np.abs(errors).max() < 1e-8
    plain, explicit = head_forces(student, atoms)
    np.testing.assert_allclose(explicit, plain, rtol=0, atol=1e-11)
    assert is_gradient(float(np.abs(explicit - plain).max()), float(np.abs(plain).max()))


def test_a_force_that_is_not_the_slope_is_measured() -> None:
    """Springs, whose forces are one per cent too large along one coordinate."""

    def evaluate(structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        wrong = np.ones((9, 3))
        wrong[4, 1] = 1.01
        return [{"energy": 0.5 * float((a.positions**2).sum()), "forces": -wrong * a.positions} for a in structures]

    atoms = ZOO["ethanol"]
    errors = gradient_errors(evaluate, atoms, displacements(atoms), 1e-3)
    wanted = np.zeros(27)
    wanted[13] = -0.01 * atoms.positions[4, 1]
    np.testing.assert_allclose(errors, wanted, atol=1e-9)
    assert not is_gradient(1e-9, 1.0)
    assert not is_gradient(float("nan"), 1.0)


def test_virials_are_the_slope_of_the_energy_under_strain(checkpoint: Path) -> None:
    student = load_student(checkpoint, dtype=torch.float64)
    atoms, step = ZOO["triclinic"], 1e-5

    def outputs(strain: np.ndarray) -> tuple[float, np.ndarray]:
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        result = explicit_forces(student, tensors(graph_inputs([strained], 4.0, np.float64), torch.float64))
        return result.atomic_energies.sum().item(), result.virials.sum(0).numpy()

    virial = outputs(np.zeros((3, 3)))[1]
    for row, column in [(0, 0), (0, 1), (2, 1)]:
        strain = np.zeros((3, 3))
        strain[row, column] = step  # r_column += r_row·step, so the slope is the sum of r_row dE/dr_column
        slope = (outputs(strain)[0] - outputs(-strain)[0]) / (2 * step)
        assert virial[column, row] == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_padding_changes_nothing(checkpoint: Path) -> None:
    """More slots, padded atoms, and pairs kept beyond the cutoff, whose displacements are not zero."""
    student = load_student(checkpoint, dtype=torch.float64)
    atoms = ZOO["triclinic"]
    tight, wide = (graph_inputs([atoms], cutoff, np.float64) for cutoff in (4.0, 6.0))
    assert wide.mask.shape[1] > tight.mask.shape[1]
    near = (np.linalg.norm(wide.displacements, axis=-1) < 4.0) & (wide.mask > 0)
    masked = wide._replace(mask=near.astype(np.float64))
    assert masked.mask.sum() < wide.mask.sum()
    assert masked.mask.sum() == tight.mask.sum()
    for got, want in zip(
        explicit_forces(student, tensors(masked, torch.float64)),
        explicit_forces(student, tensors(tight, torch.float64)),
        strict=True,
    ):
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=1e-11)


def test_painn_is_invariant_under_rotation_and_the_seed_s_student_is_not(tmp_path: Path) -> None:
    moved = {}
    for kind in ("painn", "distiller"):
        student = load_student(students.write(tmp_path, kind), dtype=torch.float64)
        energies = []
        for angle in (0, 37, 118):
            atoms = ZOO["ethanol"].copy()
            atoms.rotate(angle, (1, 2, 3))
            energies.append(student(tensors(graph_inputs([atoms], 4.0, np.float64), torch.float64)).sum().item())
        moved[kind] = np.ptp(energies)
    assert moved["painn"] < 1e-12
    assert moved["distiller"] > 1e-4


def test_the_norm_s_derivative_is_zero_at_zero() -> None:
    for aggregation in (PLAIN, CLOSED_FORM, EXPLICIT):
        v = torch.zeros(2, 3, 4, dtype=torch.float64)
        v[1] = torch.tensor([3.0, 0.0, 4.0])[:, None]
        v.requires_grad_()
        norm = aggregation.norm(v, 0.0)
        (gradient,) = torch.autograd.grad(norm.sum(), v)
        np.testing.assert_array_equal(norm.detach().numpy(), [[0.0] * 4, [5.0] * 4])
        np.testing.assert_allclose(gradient[0].numpy(), 0)
        np.testing.assert_allclose(gradient[1, :, 0].numpy(), [0.6, 0, 0.8])


def test_forces_can_be_differentiated_again_for_training(checkpoint: Path) -> None:
    """Training needs d(forces)/d(weights): the closed form and plain autograd must give the same."""
    gradients = []
    for aggregation in (PLAIN, CLOSED_FORM):
        student = load_student(checkpoint, dtype=torch.float64).requires_grad_()
        graph = tensors(graph_inputs([ZOO["ethanol"]], 4.0, np.float64), torch.float64)
        graph.displacements.requires_grad_()
        (slope,) = torch.autograd.grad(student(graph, aggregation).sum(), graph.displacements, create_graph=True)
        opposite = torch.nn.functional.embedding(graph.reverse, slope.flatten(0, 1))
        (slope - opposite).sum(1).square().sum().backward()
        gradients.append([p.grad for p in student.parameters() if p.grad is not None])
    for plain, closed in zip(*gradients, strict=True):
        np.testing.assert_allclose(closed.numpy(), plain.numpy(), rtol=1e-9, atol=1e-10)
