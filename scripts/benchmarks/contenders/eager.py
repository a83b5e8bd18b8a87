"""PaiNN as it is run today: PyTorch in eager mode, a list of edges, scattered sums, forces from autograd.

This is what every speed here is a ratio to, on the same weights. It is written as the training codes write it, from
the papers' equations, and shares nothing with the deployed graph but the weights and the neighbour search.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from ase import Atoms
from jaxtyping import Float, Int64
from torch import Tensor, nn

from painn_deploy.export.model.distiller import DIRECTION_EPSILON, Distiller
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.model.student import Student
from painn_deploy.runtime.neighbours import Pairs, find_pairs

__all__ = ["EagerModel", "Edges", "edges_of"]


class Edges(NamedTuple):
    """Structures as one list of directed edges.

    Attributes:
        numbers: Z.
        positions: Å.
        centre: atom that receives a message.
        neighbour: atom that sends it.
        shifts: S·cell of the neighbour, Å.
        structure: that an atom belongs to.
        structures: how many.
    """

    numbers: Int64[Tensor, " atoms"]
    positions: Float[Tensor, "atoms 3"]
    centre: Int64[Tensor, " edges"]
    neighbour: Int64[Tensor, " edges"]
    shifts: Float[Tensor, "edges 3"]
    structure: Int64[Tensor, " atoms"]
    structures: int

    def to(self, device: str) -> "Edges":
        """On another device."""
        tensors = (self.numbers, self.positions, self.centre, self.neighbour, self.shifts, self.structure)
        numbers, positions, centre, neighbour, shifts, structure = (tensor.to(device) for tensor in tensors)
        return Edges(numbers, positions, centre, neighbour, shifts, structure, self.structures)


def edges_of(structures: Sequence[Atoms], cutoff: float, dtype: torch.dtype = torch.float32) -> Edges:
    """Neighbours of every structure, found by the search that our own calculator uses.

    Args:
        structures: at least one.
        cutoff: Å.
        dtype: of positions and shifts.
    """
    sizes = [len(atoms) for atoms in structures]
    directed, shifts = [], []
    for atoms in structures:
        found = find_pairs(atoms, cutoff)
        one, other, images = found.pairs.first, found.pairs.second, found.pairs.shifts
        directed.append(Pairs(np.concatenate([one, other]), np.concatenate([other, one]), None))
        moved = np.zeros((len(one), 3)) if images is None else images @ found.cell
        shifts += [moved, -moved]
    edges = Pairs.joined(directed, sizes)
    return Edges(
        torch.from_numpy(np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64)),
        torch.from_numpy(np.concatenate([atoms.positions for atoms in structures])).to(dtype),
        torch.from_numpy(edges.first),
        torch.from_numpy(edges.second),
        torch.from_numpy(np.concatenate(shifts)).to(dtype),
        torch.from_numpy(np.repeat(np.arange(len(structures)), sizes)),
        len(structures),
    )


class EagerModel(nn.Module):
    """A student over a list of edges.

    Args:
        student: whose weights and equations these are.

    Attributes:
        atomic: energies of atoms, which is what there is to compile.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        if not isinstance(student, PaiNN | Distiller):
            raise TypeError(f"There are no equations here for {type(student).__name__}.")
        self.atomic: Callable[[Student, Edges, Tensor], Tensor] = _painn if isinstance(student, PaiNN) else _distiller

    def energies(self, edges: Edges) -> Float[Tensor, " structures"]:
        """eV of each structure, without atomic references; differentiable by the positions."""
        vectors = edges.positions[edges.neighbour] + edges.shifts - edges.positions[edges.centre]
        atomic = self.atomic(self.student, edges, vectors)
        return vectors.new_zeros(edges.structures).index_add(0, edges.structure, atomic)

    def forward(self, edges: Edges) -> tuple[Float[Tensor, " structures"], Float[Tensor, "atoms 3"]]:
        """Energies in eV and forces in eV/Å by autograd."""
        with torch.enable_grad():
            positions = edges.positions.detach().requires_grad_()
            energies = self.energies(edges._replace(positions=positions))
            (gradient,) = torch.autograd.grad(energies.sum(), positions)
        return energies.detach(), -gradient


def _summed(values: Tensor, edges: Edges) -> Tensor:
    """Messages added up at their centres."""
    return values.new_zeros(len(edges.numbers), *values.shape[1:]).index_add(0, edges.centre, values)


def _painn(student: Any, edges: Edges, vectors: Tensor) -> Tensor:
    """Equations 7 to 10 of arXiv:2102.03150; atomic energies."""
    features, layers = student.configuration.hidden_dim, len(student.message)
    distances = vectors.norm(dim=1)
    directions = vectors / distances[:, None]
    per_layer = _filters(student, distances)
    scalars = student.embedding(edges.numbers)
    equivariant = scalars.new_zeros(len(scalars), 3, features)
    for layer in range(layers):
        message = (per_layer[layer] * student.message[layer](scalars)[edges.neighbour]).split(features, 1)
        moved = directions[:, :, None] * message[1][:, None] + equivariant[edges.neighbour] * message[2][:, None]
        scalars = scalars + _summed(message[0], edges)
        equivariant = equivariant + _summed(moved, edges)
        v, w = student.mixing[layer](equivariant).split(features, 2)
        squares = (v * v).sum(1)
        epsilon = student.configuration.epsilon
        norms = torch.sqrt(squares + epsilon) if epsilon else torch.linalg.norm(v, dim=1)  # whose slope at 0 is 0
        a, b, c = student.update[layer](torch.cat([scalars, norms], 1)).split(features, 1)
        scalars = scalars + a + c * (v * w).sum(1)
        equivariant = equivariant + b[:, None] * w
    energies = cast(Tensor, student.readout(scalars)[:, 0])
    if student.energy_scales is not None:
        energies = energies * student.energy_scales[edges.numbers]
    return energies if student.repulsion is None else energies + _summed(_repulsion(student, edges, distances), edges)


def _filters(student: Any, distances: Tensor) -> Sequence[Tensor]:
    """Of each interaction [edges, 3 features]."""
    said, filters = student.configuration, student.filters
    layers, envelope = said.num_interactions, student.envelope(distances)[:, None]
    bases = student.basis if isinstance(student.basis, nn.ModuleList) else [student.basis] * layers
    shared = len(filters.weight) == 3 * said.hidden_dim
    weights, biases = ([each] * layers if shared else each.chunk(layers) for each in (filters.weight, filters.bias))
    per_layer = zip(bases, weights, biases, strict=True)
    return [nn.functional.linear(basis(distances, said.num_rbf), w, b) * envelope for basis, w, b in per_layer]


def _repulsion(student: Any, edges: Edges, distances: Tensor) -> Tensor:
    """Half of each edge's repulsion of nuclei; see `painn_deploy.export.model.repulsion`."""
    zbl, centre, neighbour = student.repulsion, edges.numbers[edges.centre], edges.numbers[edges.neighbour]
    reduced = (zbl.radii[centre] + zbl.radii[neighbour]) * distances
    screening = (zbl.coefficients * torch.exp(-zbl.exponents * reduced[:, None])).sum(1)
    energies: Tensor = 0.5 * zbl.strength * centre * neighbour / distances * screening * zbl.faded(distances)
    return energies


def _distiller(student: Any, edges: Edges, vectors: Tensor) -> Tensor:
    """The seed project's student; atomic energies."""
    features = student.configuration.hidden_dim
    distances = vectors.norm(dim=1)
    directions = vectors / (distances[:, None] + DIRECTION_EPSILON)
    envelope = 0.5 * (torch.cos(distances * (torch.pi / student.configuration.cutoff)) + 1)
    radial = torch.exp(-(((distances[:, None] - student.centres) / student.widths) ** 2)) * envelope[:, None]
    scalars = student.embedding(edges.numbers)
    equivariant = scalars.new_zeros(len(scalars), 3, features)
    for layer in range(len(student.filters)):
        a, b, c = student.filters[layer](radial).split(features, 1)
        moved = equivariant[edges.neighbour] * b[:, None] + directions[:, :, None] * c[:, None]
        scalars = scalars + _summed(scalars[edges.neighbour] * a, edges)
        equivariant = equivariant + _summed(moved, edges)
        change, gate, gate_mixed = student.update[layer](torch.cat([scalars, equivariant.norm(dim=1)], 1)).split(
            features, 1
        )
        mixed = torch.einsum("xy,ayf->axf", student.mixing[layer], equivariant)
        scalars = scalars + change
        equivariant = gate[:, None] * equivariant + gate_mixed[:, None] * mixed
    return cast(Tensor, student.readout(scalars)[:, 0])
