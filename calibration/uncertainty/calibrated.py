"""Uncertainties beside the errors that structures' labels show: whether they are as large, and where they are not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int64

from painn_deploy.calibration.labels import as_forces, labels_of
from painn_deploy.calibration.uncertainty.fitting import on_one_scale
from painn_deploy.calibration.uncertainty.merit import coverage, rank_correlation
from painn_deploy.runtime.uncertainty.scale import RATIO, Scale

__all__ = ["FEWEST", "Calibrated", "Group"]

FEWEST = 5
"""Structures with an energy of their own and an uncertainty, below which nothing is said of them."""

Values = Float64[np.ndarray, " structures"]


@dataclass(frozen=True)
class Group:
    """Uncertainties and errors of a group of structures.

    Attributes:
        name: of the group.
        structures: how many.
        uncertainty: mean, eV an atom.
        energy: mean absolute error, eV an atom.
        forces: mean absolute error, eV/Å, of those that came with forces; NaN where none did.
        within_one: share of energy errors within one standard deviation.
        within_two: the same within 1.96.
        unfamiliar: share above the threshold; NaN where there is none.
    """

    name: str
    structures: int
    uncertainty: float
    energy: float
    forces: float
    within_one: float
    within_two: float
    unfamiliar: float


@dataclass(frozen=True)
class Calibrated:
    """Structures with labels, and what an engine says of its errors on them.

    Attributes:
        names: of the structures.
        groups: that they belong to.
        indices: in the file that they are from, from 0.
        sizes: atoms.
        uncertainties: eV.
        errors: of energies, predicted less labelled, eV.
        forces: mean absolute errors, eV/Å; NaN of one that came without forces.
        ratios: to what is typical of the calibration; NaN where there is none.
        threshold: of the ratio; NaN likewise.
        shifts: of each element, by which labels were on another scale, in words; empty where they were not.
        unknown: structures with an energy that have no uncertainty in eV, since no frame held one of their elements.
    """

    names: Sequence[str]
    groups: Sequence[str]
    indices: Int64[np.ndarray, " structures"]
    sizes: Int64[np.ndarray, " structures"]
    uncertainties: Values
    errors: Values
    forces: Values
    ratios: Values
    threshold: float
    shifts: str = ""
    unknown: int = 0

    @classmethod
    def of(
        cls,
        structures: Sequence[Atoms],
        results: Sequence[Mapping[str, Any]],
        groups: Sequence[str],
        scale: Scale | None,
        places: Sequence[int] | None = None,
    ) -> "Calibrated | None":
        """Compare an engine's results with the labels that structures came with.

        Args:
            structures: whose calculators hold the labels, as files give them.
            results: of the engine.
            groups: name of the group of each structure.
            scale: of the bundle's uncertainty; None where no frames calibrated it.
            places: of the structures in the file that they are from; None where they are all of it.

        Returns:
            None where fewer than `FEWEST` have both an energy and an uncertainty.
        """
        labels = [labels_of(atoms) for atoms in structures]
        known = [i for i, label in enumerate(labels) if _is_finite(label.get("energy"))]
        kept = [i for i in known if "energy_uncertainty" in results[i]]
        if len(kept) < FEWEST:
            return None
        errors = np.array([results[i]["energy"] - float(labels[i]["energy"]) for i in kept])
        errors, shifts = on_one_scale(errors, [structures[i].numbers for i in kept])
        return cls(
            names=[structures[i].get_chemical_formula() for i in kept],
            groups=[groups[i] for i in kept],
            indices=np.array([i if places is None else places[i] for i in kept], np.int64),
            sizes=np.array([len(structures[i]) for i in kept], np.int64),
            uncertainties=np.array([float(results[i]["energy_uncertainty"]) for i in kept]),
            errors=errors,
            forces=np.array([_force_error(results[i]["forces"], labels[i].get("forces")) for i in kept]),
            ratios=np.array([float(results[i].get(RATIO, np.nan)) for i in kept]),
            threshold=np.nan if scale is None else scale.threshold,
            shifts=shifts,
            unknown=len(known) - len(kept),
        )

    @property
    def z(self) -> Values:
        """Errors over uncertainties; infinite of an error that was thought to be impossible."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z: np.ndarray = np.nan_to_num(self.errors / self.uncertainties, nan=0.0, posinf=np.inf, neginf=-np.inf)
        return z

    @property
    def scores(self) -> Values:
        """Uncertainties an atom, eV: what structures are compared by."""
        scores: np.ndarray = self.uncertainties / self.sizes
        return scores

    @property
    def correlation(self) -> tuple[float, str]:
        """Rank correlation of the scores with errors, and whose: of forces where all came with them, else of energies.

        NaN where all are the same.
        """
        if np.isfinite(self.forces).all():
            return rank_correlation(self.scores, self.forces), "force MAE"
        return rank_correlation(self.scores, np.abs(self.errors) / self.sizes), "energy error an atom"

    def group(self, name: str, chosen: Bool[np.ndarray, " structures"]) -> Group:
        """Figures of some of the structures.

        Args:
            name: of the group.
            chosen: which of them.
        """
        forces = self.forces[chosen]
        forces = forces[np.isfinite(forces)]
        return Group(
            name,
            int(chosen.sum()),
            float(self.scores[chosen].mean()),
            float((np.abs(self.errors) / self.sizes)[chosen].mean()),
            float(forces.mean()) if len(forces) else float("nan"),
            *coverage(self.z[chosen]),
            float((self.ratios[chosen] > self.threshold).mean()) if self.threshold == self.threshold else float("nan"),
        )

    @property
    def table(self) -> list[Group]:
        """Each group, and all."""
        names, groups = sorted(set(self.groups)), np.array(self.groups)
        rows = [self.group(name, groups == name) for name in names] if len(names) > 1 else []
        return [*rows, self.group("all", np.ones(len(groups), bool))]

    @property
    def sentence(self) -> str:
        """What is found over all structures, in one sentence."""
        whole, (value, whose) = self.table[-1], self.correlation
        scale = f", after shifts of {self.shifts} eV an atom" if self.shifts else ""
        others = f"; {self.unknown} more hold elements that no frame held" if self.unknown else ""
        return (
            f"{whole.structures} structures came with energies{scale}: {100 * whole.within_one:.0f} % of the errors "
            f"are within one standard deviation (of a Gaussian 68 %) and {100 * whole.within_two:.0f} % within 1.96 "
            f"(95 %); the rank correlation of uncertainty with the {whose} is {value:.2f}{others}"
        )

    def worst(self, most: int = 8) -> list[int]:
        """Places of the structures whose errors are furthest beyond one standard deviation, the worst first.

        Args:
            most: structures that are named.
        """
        order = np.argsort(-np.abs(self.z), kind="stable")
        return [int(i) for i in order[:most] if abs(self.z[i]) > 1]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; eV, eV/Å."""
        value, whose = self.correlation
        return {
            "structures": len(self.names),
            "unknown": self.unknown,
            "rank_correlation": _or_none(value),
            "rank_correlation_with": whose,
            "threshold": _or_none(self.threshold),
            "shifts": self.shifts,
            "groups": [{key: _or_none(value) for key, value in vars(group).items()} for group in self.table],
            "worst": [
                {
                    "index": int(self.indices[i]),
                    "name": self.names[i],
                    "energy_error": float(self.errors[i]),
                    "energy_uncertainty": float(self.uncertainties[i]),
                }
                for i in self.worst()
            ],
        }


def _or_none(value: Any) -> Any:
    """None for a number that is NaN, which JSON has no word for."""
    return None if value != value else value


def _is_finite(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _force_error(got: np.ndarray, label: Any) -> float:
    """Mean absolute error; NaN where there is no label, or none for each atom."""
    wanted = as_forces(label, len(got))
    return float("nan") if wanted is None else float(np.abs(got - wanted).mean())
