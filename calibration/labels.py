"""Forces that structures came with, beside the student's: what is wrong with units shows here, and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float64

__all__ = ["Labelled", "as_forces", "labels_of"]

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
        pairs = [
            (label, np.asarray(one["forces"], np.float64))
            for atoms, one in zip(structures, results, strict=True)
            if (label := _forces(atoms)) is not None
        ]
        if not pairs:
            return None
        labels, found = (np.concatenate(side) for side in zip(*pairs, strict=True))
        square, both, own = (float(np.mean(each)) for each in (labels**2, labels * found, found**2))
        return cls(
            structures=len(pairs),
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


def labels_of(atoms: Atoms) -> Mapping[str, Any]:
    """The labels that a structure came with, as files give them to its calculator; whatever they hold."""
    return {} if atoms.calc is None else getattr(atoms.calc, "results", {})


def as_forces(label: Any, atoms: int) -> Float64[np.ndarray, "atoms 3"] | None:
    """A label as forces; None where it is none for each atom.

    Args:
        label: anything.
        atoms: how many.
    """
    try:
        forces = np.asarray(label, np.float64)
    except (TypeError, ValueError):
        return None
    return forces if forces.shape == (atoms, 3) else None


def _forces(atoms: Atoms) -> Float64[np.ndarray, "atoms 3"] | None:
    """The label of a structure, finite and of its own atoms; None without."""
    forces = as_forces(labels_of(atoms).get("forces"), len(atoms))
    if forces is None or not np.isfinite(forces).all():
        return None
    changed = getattr(atoms.calc, "check_state", None)
    return None if changed is not None and changed(atoms) else forces
