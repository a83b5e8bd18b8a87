"""Which structures to calibrate on: few, and between them as extreme as all."""

import numpy as np
from jaxtyping import Float

__all__ = ["farthest_points"]


def farthest_points(descriptors: Float[np.ndarray, "structures features"], count: int) -> list[int]:
    """Indices of structures that lie far from one another.

    Each is the one farthest from those chosen before it, the first the farthest from the mean; features are scaled to
    unit variance. Ties go to the lower index, so that the choice is reproducible.

    Args:
        descriptors: one row a structure.
        count: how many; all where there are fewer.
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
