"""Whether contenders compute the same thing; where they do not, their times mean nothing."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from painn_deploy.export.errors import EngineError

__all__ = ["TOLERANCE", "check_agreement"]

TOLERANCE = 1e-3
"""Of the largest force, or of 1 eV/Å: more than float32 explains, however it sums."""


def check_agreement(forces: Mapping[str, Float[np.ndarray, "atoms 3"]], baseline: str, case: str) -> float:
    """The largest difference of a force component from the baseline's, eV/Å.

    Args:
        forces: eV/Å, of each contender by name, of one case.
        baseline: whose forces are the reference.
        case: its name, for the message.

    Raises:
        EngineError: one differs by more than float32 explains, or is NaN; the message names it.
    """
    wanted = forces[baseline]
    differences = {name: float(np.abs(found - wanted).max()) for name, found in forces.items()}
    allowed = TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    for name, difference in differences.items():
        if not difference <= allowed:
            raise EngineError(
                f"Forces of {name} and {baseline} differ by {difference:.1e} eV/Å on {case}, more than float32 "
                "explains: validate the student with scripts/validate_analytical_forces.py, and the engine with "
                "`painn-deploy validate`, before you time them."
            )
    return max(differences.values())
