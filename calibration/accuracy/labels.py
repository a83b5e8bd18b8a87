"""Forces that structures came with, beside the student's: what is wrong with units shows here, and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms

__all__ = ["Labelled"]

DOUBTFUL = 0.5
"""Of the labels' own size, an error of forces above which something is wrong: a student that knew nothing has 1."""

ALIKE = 0.9
"""Correlation from which on forces are the same but for a factor, as in other units."""


@dataclass(frozen=True)
class Labelled:
    """A student's forces against the labels of structures.

    Attributes:
        structures: that came with forces.
        force_rmse: eV/Å, over all components.
        force_size: eV/Å, root mean square of the labels.
        correlation: of the components.
        factor: that would bring the student's forces nearest to the labels.
    """

    structures: int
    force_rmse: float
    force_size: float
    correlation: float
    factor: float

    @classmethod
    def of(cls, structures: Sequence[Atoms], results: Sequence[Mapping[str, Any]]) -> "Labelled | None":
        """Compare; None where no structure came with forces.

        Args:
            structures: whose calculators hold the labels, as files give them.
            results: of the student, `forces` in eV/Å among them.
        """
        brought = [_forces(atoms) for atoms in structures]
        known = [index for index, forces in enumerate(brought) if forces is not None]
        if not known:
            return None
        labels = np.concatenate([np.ravel(brought[index]) for index in known]).astype(float)
        found = np.concatenate([np.ravel(results[index]["forces"]) for index in known]).astype(float)
        square, both, own = (float(np.mean(each)) for each in (labels**2, labels * found, found**2))
        return cls(
            structures=len(known),
            force_rmse=float(np.sqrt(np.mean((found - labels) ** 2))),
            force_size=float(np.sqrt(square)),
            correlation=both / np.sqrt(square * own) if square and own else 0.0,
            factor=both / own if own else 0.0,
        )

    @property
    def sentence(self) -> str:
        """How far the student is from them."""
        error = f"{1e3 * self.force_rmse:.4g} meV/Å (RMSE)"
        return f"the student against labels: forces {error}, {self.structures} structures"

    @property
    def doubt(self) -> str:
        """What may be wrong, as a sentence; empty where the student knows the labels."""
        if self.force_rmse <= DOUBTFUL * self.force_size:
            return ""
        found = (
            f"the student's forces are off the labels of {self.structures} structures by {self.force_rmse:.3g} eV/Å "
            f"(RMSE), which are {self.force_size:.3g} themselves"
        )
        if self.correlation >= ALIKE:
            return f"{found}; times {self.factor:.4g} they would agree: its units are not those that were said"
        return f"{found}: its units may not be those that were said, or it was not trained on such labels"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def _forces(atoms: Atoms) -> Any:
    """The label of a structure, finite and of its own atoms; None without."""
    forces = None if atoms.calc is None else getattr(atoms.calc, "results", {}).get("forces")
    if forces is None or np.shape(forces) != (len(atoms), 3) or not np.isfinite(forces).all():
        return None
    changed = getattr(atoms.calc, "check_state", None)
    return None if changed is not None and changed(atoms) else forces
