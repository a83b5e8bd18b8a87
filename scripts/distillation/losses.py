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
from painn_deploy.scripts.distillation.fake_int8 import FakeInt8

__all__ = ["evaluate", "loss_of", "predict", "squares_of"]


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


STEEP = 0.03
"""eV/Å; a force error of half of it pulls as hard in `squares_of` as in `loss_of`."""


def loss_of(batch: Batch, energies: Tensor, forces: Tensor, energy_weight: float) -> Tensor:
    """Mean length of the force errors plus weighted energy errors per atom: robust, as the reported errors are.

    Args:
        batch: structures with their labels.
        energies: what a student gives [structures], eV, without atomic references.
        forces: likewise [atoms, 3], eV/Å.
        energy_weight: of 1 eV/atom against 1 eV/Å.
    """
    per_atom = (energies - batch.energies).abs() / batch.sizes
    lengths = ((forces - batch.forces).square().sum(-1) + 1e-8).sqrt()
    return lengths.mean() + energy_weight * per_atom.mean()


def squares_of(batch: Batch, energies: Tensor, forces: Tensor, energy_weight: float) -> Tensor:
    """The squares of the same errors, for a student that begins at what it shall give: lengths never become flat there.

    Args:
        batch: structures, and what the student gave before it was quantised.
        energies: see `loss_of`.
        forces: see `loss_of`.
        energy_weight: see `loss_of`.
    """
    per_atom = (energies - batch.energies) / batch.sizes
    lengths = (forces - batch.forces).square().sum(-1)
    return (lengths.mean() + energy_weight**2 * per_atom.square().mean()) / STEEP


def evaluate(
    student: PaiNN,
    split: Split,
    residuals: Float64[np.ndarray, " structures"],
    budget: int,
    device: str,
    fake: FakeInt8 | None = None,
) -> dict[str, float]:
    """Energy MAE in meV/atom, force MAE and RMSE in meV/Å; of INT8 also those against the student's own FP32.

    Args:
        student: PyTorch model.
        split: structures with their labels.
        residuals: energies less the atoms' references, eV.
        budget: atoms x slots of a batch.
        device: that the student is on.
        fake: its products in INT8; None for FP32.
    """
    labels, own = _Errors(), _Errors()
    for indices in split.batches(budget, None):
        batch = Batch.of(split, indices, residuals, device)
        energies, forces = predict(student, batch, training=False)
        if fake is not None:
            exact = energies, forces
            energies, forces = predict(student, batch, training=False, sums=fake.products(batch.graph, CLOSED_FORM))
            own.add(batch.sizes, energies - exact[0], forces - exact[1])
        labels.add(batch.sizes, energies - batch.energies, forces - batch.forces)
    found = labels.found(len(split))
    return found if fake is None else found | {f"own_fp32_{key}": value for key, value in own.found(len(split)).items()}


class _Errors:
    """Sums of errors."""

    def __init__(self) -> None:
        self.energy, self.absolute, self.square, self.components = 0.0, 0.0, 0.0, 0

    def add(self, sizes: Tensor, energies: Tensor, forces: Tensor) -> None:
        error = forces.detach().double()
        self.energy += float((energies.detach().abs() / sizes).sum())
        self.absolute += float(error.abs().sum())
        self.square += float(error.square().sum())
        self.components += error.numel()

    def found(self, structures: int) -> dict[str, float]:
        return {
            "energy_mae_meV_per_atom": 1e3 * self.energy / structures,
            "force_mae_meV_per_A": 1e3 * self.absolute / self.components,
            "force_rmse_meV_per_A": 1e3 * math.sqrt(self.square / self.components),
        }
