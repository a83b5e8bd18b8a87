"""Errors of energies and forces against the teacher's labels, which training minimises and reports."""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from painn_deploy.export.model.aggregation import CLOSED_FORM, Aggregation
from painn_deploy.export.model.force_head import forces_of
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.scripts.distillation.batches import Batch, Split

__all__ = ["evaluate", "loss_of", "predict"]


def predict(
    student: PaiNN, batch: Batch, *, training: bool, sums: Aggregation = CLOSED_FORM
) -> tuple[Float[Tensor, " structures"], Tensor]:
    """Energies [structures] (eV, without atomic references) and forces [atoms, 3] (eV/Å).

    Args:
        student: PyTorch model.
        batch: structures.
        training: whether the forces are to be differentiated again.
        sums: how sums over neighbours are computed.
    """
    displacements = batch.graph.displacements.requires_grad_()
    atomic = student(batch.graph, sums)
    (gradient,) = torch.autograd.grad(atomic.sum(), displacements, create_graph=training)
    energies = torch.zeros_like(batch.energies).index_add(0, batch.structure, atomic)
    return energies, forces_of(gradient, batch.graph.reverse)


def loss_of(student: PaiNN, batch: Batch, energy_weight: float, sums: Aggregation = CLOSED_FORM) -> Tensor:
    """Mean length of the force errors plus weighted energy errors per atom: robust, as the reported errors are.

    Args:
        student: PyTorch model.
        batch: structures with their labels.
        energy_weight: of 1 eV/atom against 1 eV/Å.
        sums: how sums over neighbours are computed.
    """
    energies, forces = predict(student, batch, training=True, sums=sums)
    per_atom = (energies - batch.energies).abs() / batch.sizes
    lengths = ((forces - batch.forces).square().sum(-1) + 1e-8).sqrt()
    return lengths.mean() + energy_weight * per_atom.mean()


def evaluate(
    student: PaiNN, split: Split, residuals: Float64[np.ndarray, " structures"], budget: int, device: str
) -> dict[str, float]:
    """Energy MAE in meV/atom, force MAE and RMSE in meV/Å.

    Args:
        student: PyTorch model.
        split: structures with their labels.
        residuals: energies less the atoms' references, eV.
        budget: atoms x slots of a batch.
        device: that the student is on.
    """
    energy, absolute, square, components = 0.0, 0.0, 0.0, 0
    for indices in split.batches(budget, None):
        batch = Batch.of(split, indices, residuals, device)
        energies, forces = predict(student, batch, training=False)
        error = (forces.detach() - batch.forces).double()
        energy += float(((energies.detach() - batch.energies).abs() / batch.sizes).sum())
        absolute += float(error.abs().sum())
        square += float(error.square().sum())
        components += error.numel()
    return {
        "energy_mae_meV_per_atom": 1e3 * energy / len(split),
        "force_mae_meV_per_A": 1e3 * absolute / components,
        "force_rmse_meV_per_A": 1e3 * math.sqrt(square / components),
    }
