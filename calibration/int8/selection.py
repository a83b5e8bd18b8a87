"""The choice of structures to calibrate on: few, and together as extreme as all."""

import numpy as np
from jaxtyping import Float

__all__ = ["farthest_points"]


def farthest_points(descriptors: Float[np.ndarray, "structures features"], count: int) -> list[int]:
    """Choose structures that lie far from one another by farthest-point sampling (Gonzalez 1985).

    The first is the farthest from the mean, and each next the farthest from those chosen before it (greedy k-centre
    clustering, doi:10.1016/0304-3975(85)90224-5). Features are scaled to unit variance. Ties go to the lower index, so
    that the choice is reproducible.

    Args:
        descriptors: a row for each structure, in any units.
        count: how many; all if there are fewer.

    Returns:
        Indices of the chosen structures, in the order of their choice.
    """
    spread = descriptors.std(0)
    scaled = (descriptors - descriptors.mean(0)) / np.where(spread > 0, spread, 1.0)
    nearest = np.linalg.norm(scaled, axis=1)
    chosen: list[int] = []
    for _ in range(min(count, len(descriptors))):
        index = int(nearest.argmax())
        distances = np.linalg.norm(scaled - scaled[index], axis=1)
        nearest = distances if not chosen else np.minimum(nearest, distances)
        chosen.append(index)
        nearest[chosen] = -1.0
    return chosen
