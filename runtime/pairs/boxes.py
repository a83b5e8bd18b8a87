"""Atoms sorted into boxes, from which a device finds their neighbours."""

import math

import numpy as np
from ase import Atoms
from jaxtyping import Float32

from painn_deploy.engines.session import Boxes
from painn_deploy.runtime.pairs.search import searchable
from painn_deploy.runtime.structures import as_elements, bounds_of, periodic_cell

__all__ = ["boxes_of"]

FLAT = 1e-9
"""Å; what extends no further has one box, whose width is of no matter."""

BOXES_AN_ATOM = 4
"""Past which boxes are widened: one without atoms takes a look as well."""


def boxes_of(atoms: Atoms, cutoff: float, reach: float, weights: Float32[np.ndarray, " atoms"] | None = None) -> Boxes:
    """A structure whose atoms are sorted into boxes no thinner than the reach, where it is not thinner itself.

    Whatever its cell and however far its atoms are apart, it is first made one that a grid can hold
    (`painn_deploy.runtime.pairs.search`). A rounding in where an atom lies costs no neighbour: the boxes are made for a
    reach that is longer than the true one by more than that.

    Args:
        atoms: a structure that `check_structure` gave back.
        cutoff: Å, within which a neighbour is an edge.
        reach: Å, within which it is stored.
        weights: as in the graph contract; None for ones.

    Raises:
        StructureError: there are more neighbours than in any matter, or none can be found.
    """
    positions, periodic, cell = atoms.positions, atoms.pbc, periodic_cell(atoms)
    view = searchable(positions, cell, periodic, reach)
    if periodic.any():
        inverse = np.linalg.inv(view.cell)
        heights = 1 / np.linalg.norm(inverse, axis=0)  # between the two sides of the cell, along each direction
        along = view.points @ (inverse * heights)
    else:
        heights, along = np.zeros(3), view.points
    least = np.where(periodic, 0.0, along.min(axis=0))
    lengths = np.where(periodic, heights, along.max(axis=0) - least)
    counts = np.maximum(np.floor(np.minimum(lengths / view.reach, 2.0**20)), 1.0)
    while counts.prod() > max(BOXES_AN_ATOM * len(positions), 64):
        widest = counts.argmax()
        counts[widest] = math.ceil(counts[widest] / 2)
    widths = np.where(lengths > FLAT, lengths, view.reach) / counts
    spans = np.where(periodic, np.ceil(view.reach / widths), np.minimum(np.ceil(view.reach / widths), counts - 1))
    places = np.clip(np.floor((along - least) / widths), 0, counts - 1).astype(np.int32)
    shape = np.concatenate([counts, spans, periodic]).astype(np.int32)
    _, second, third = shape[:3]
    box = (places[:, 0] * second + places[:, 1]) * third + places[:, 2]
    boxes = int(counts.prod())
    # numbers of 16 bits are sorted by their digits, in a tenth of the time
    order = np.argsort(box.astype(np.uint16) if boxes <= 2**16 else box, kind="stable")
    starts = bounds_of(np.bincount(box, minlength=boxes))
    whole = np.zeros(positions.shape) if view.moved is None else view.moved.astype(np.float64)
    return Boxes(
        atomic_numbers=as_elements(atoms.numbers),
        positions=positions.copy(),
        weights=np.ones(len(positions), np.float32) if weights is None else weights,
        whole=whole,
        cell=cell,
        box=box.astype(np.int32),
        order=order.astype(np.int32),
        starts=starts.astype(np.int32),
        shape=shape,
        cutoff=cutoff,
        reach=reach,
    )
