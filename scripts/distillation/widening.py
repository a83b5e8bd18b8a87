"""A student's weights in a wider one, which then computes the same."""

import torch
from torch import Tensor

__all__ = ["widen"]


def widen(narrow: Tensor, wide: Tensor, old: int, new: int) -> Tensor:
    """A narrow student's parameter in a wide one's place, so that it computes the same.

    Each run of `old` units becomes the first of a run of `new`. No old unit hears a new one, and a new one keeps its
    fresh weights, from which it learns (Chen, Goodfellow & Shlens, Net2Net, 2016, in spirit).

    Args:
        narrow: parameter of the narrow student.
        wide: freshly drawn parameter of the wide one, [rows] or [rows, columns].
        old: half the narrow student's features: its read-out's width, of which every other width is a multiple.
        new: half the wide student's features.
    """
    if narrow.shape == wide.shape:
        return narrow
    places = [
        torch.arange(n) if n == w else (torch.arange(n // old)[:, None] * new + torch.arange(old)).flatten()
        for n, w in zip(narrow.shape, wide.shape, strict=True)
    ]
    widened = wide.clone()
    widened[places[0]] = 0
    widened[torch.meshgrid(*places, indexing="ij")] = narrow
    return widened
