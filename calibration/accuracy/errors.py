"""Errors of energies, forces and stresses against a reference, and the tolerances that they are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import GPa
from jaxtyping import Float

from painn_deploy.export.fields import UNITS

__all__ = ["ERROR_UNITS", "Accuracy", "Limits", "Tolerances", "compare", "describe", "mean_cosine"]

ERROR_UNITS = MappingProxyType(
    {
        "energy": f"{UNITS['energy']}/atom",
        "force": UNITS["forces"],
        "stress": f"{UNITS['virials']}/{UNITS['length']}^3",
    }
)
"""Units of the figures of `Accuracy` and `Tolerances`, by how their names begin."""


@dataclass(frozen=True)
class Tolerances:
    """Largest errors with which a validation passes; the seed project's own by default.

    Attributes:
        energy: eV an atom, mean absolute error.
        forces: eV/Å, root mean square error.
        stress: eV/Å³, mean absolute error.
    """

    energy: float = 10e-3
    forces: float = 50e-3
    stress: float = 0.1 * GPa


Limits = Tolerances
"""An older name."""


@dataclass(frozen=True)
class Accuracy:
    """Errors against a reference over a set of structures.

    Attributes:
        structures: how many.
        atoms: how many in all structures.
        energy_mae: eV an atom.
        energy_max: eV an atom.
        energy_worst: name of the structure with the largest energy error.
        force_mae: eV/Å, over components.
        force_rmse: eV/Å, over components.
        force_max: eV/Å, largest component.
        force_worst: name of the structure with the largest force error.
        force_cosine: mean cosine between an atom's force and its reference, over atoms pulled by more than 0.1 eV/Å.
        stress_mae: eV/Å³, over components; None without a structure that has a volume.
        stress_max: eV/Å³, largest component.
    """

    structures: int
    atoms: int
    energy_mae: float
    energy_max: float
    energy_worst: str
    force_mae: float
    force_rmse: float
    force_max: float
    force_worst: str
    force_cosine: float | None
    stress_mae: float | None
    stress_max: float | None

    def failures(self, limits: Tolerances) -> list[str]:
        """One message per error above its tolerance; NaN counts as above."""
        found = []
        if not self.energy_mae <= limits.energy:
            found.append(f"energy MAE {1e3 * self.energy_mae:.3f} meV/atom exceeds {1e3 * limits.energy:g}")
        if not self.force_rmse <= limits.forces:
            found.append(f"force RMSE {1e3 * self.force_rmse:.3f} meV/Å exceeds {1e3 * limits.forces:g}")
        if self.stress_mae is not None and not self.stress_mae <= limits.stress:
            found.append(f"stress MAE {self.stress_mae / GPa:.4f} GPa exceeds {limits.stress / GPa:g}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the units of the attributes."""
        return asdict(self)


def compare(
    structures: Sequence[Atoms], results: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> Accuracy:
    """Compare results with a reference; both hold what `PaiNNCalculator.calculate_batch` returns.

    Args:
        structures: what was evaluated.
        results: of each structure `energy` (eV), `forces` (eV/Å [atoms, 3]) and, if the reference has it, `stress`
            (eV/Å³ [6], Voigt).
        reference: the same, as it should be.
    """
    energy = np.array([abs(a["energy"] - b["energy"]) / len(s) for s, a, b in _zip(structures, results, reference)])
    force_errors = [
        np.asarray(a["forces"]) - np.asarray(b["forces"]) for _, a, b in _zip(structures, results, reference)
    ]
    largest = np.array([np.abs(error).max() for error in force_errors])
    errors = np.concatenate(force_errors)
    stress = [
        np.asarray(a["stress"]) - np.asarray(b["stress"])
        for _, a, b in _zip(structures, results, reference)
        if "stress" in b
    ]
    return Accuracy(
        structures=len(structures),
        atoms=len(errors),
        energy_mae=float(energy.mean()),
        energy_max=float(energy.max()),
        energy_worst=describe(structures[int(energy.argmax())]),
        force_mae=float(np.abs(errors).mean()),
        force_rmse=float(np.sqrt(np.square(errors).mean())),
        force_max=float(largest.max()),
        force_worst=describe(structures[int(largest.argmax())]),
        force_cosine=_cosine(results, reference),
        stress_mae=float(np.abs(stress).mean()) if stress else None,
        stress_max=float(np.abs(stress).max()) if stress else None,
    )


def describe(atoms: Atoms) -> str:
    """A structure's name, or its formula."""
    return str(atoms.info.get("name", atoms.get_chemical_formula()))


def _zip(*sequences: Any) -> Any:
    return zip(*sequences, strict=True)


def mean_cosine(got: Float[np.ndarray, "atoms 3"], want: Float[np.ndarray, "atoms 3"]) -> float | None:
    """Mean cosine between forces and their reference, over atoms pulled by more than 0.1 eV/Å; None without one.

    Args:
        got: forces, eV/Å [atoms, 3].
        want: reference forces of the same atoms.
    """
    pulled = np.linalg.norm(want, axis=1) > 0.1
    if not pulled.any():
        return None
    got, want = got[pulled], want[pulled]
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    return float(np.mean((got * want).sum(1) / np.where(lengths > 0, lengths, 1.0)))


def _cosine(results: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> float | None:
    return mean_cosine(*(np.concatenate([np.asarray(r["forces"], float) for r in rs]) for rs in (results, reference)))
