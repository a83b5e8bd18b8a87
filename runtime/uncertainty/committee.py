"""The spread of a committee: how far apart its members are in energy and forces."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Integer

from painn_deploy.export.fields import FORCES_UNCERTAINTY, MEMBER_ENERGIES
from painn_deploy.runtime.uncertainty.scale import RATIO, VERDICT, Scale, one_of

__all__ = ["ELEMENTS", "KIND", "Spread"]

ELEMENTS = "elements"
"""Key of that file: symbols of the elements that the frames held."""

KIND = "committee"
"""Of an uncertainty.json that a committee's `Scale` is read from."""

_MEMBERS, _FORCES = MEMBER_ENERGIES.name, FORCES_UNCERTAINTY.name


class Spread:
    """Makes the standard deviations (n - 1) over the members of a committee of what its graph gives.

    Args:
        species: atomic numbers, ascending.
        references: atomic reference energies of each member, eV, for each of `species`.
        scale: what the mean of `forces_uncertainty` over the atoms of a structure is measured by; None where no frames
            calibrated it.
        seen: atomic numbers that these frames held.
    """

    additive = False
    """The spread of a force is known where each member's whole force is."""

    def __init__(
        self,
        species: Sequence[int],
        references: Sequence[Sequence[float]],
        scale: Scale | None = None,
        seen: Collection[int] = (),
    ) -> None:
        self.scale, self._seen = scale, np.array(sorted(seen), np.int64)
        self.names = ("energy_uncertainty", _FORCES, *(() if scale is None else (RATIO, VERDICT)))
        self._references = np.zeros((max(species) + 1, len(references)))
        self._references[list(species)] = np.array(references, np.float64).T

    def digest(
        self, numbers: Integer[np.ndarray, " atoms"], extras: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """See `Uncertainty.digest`: members' atomic energies with their own references.

        Args:
            numbers: atomic numbers.
            extras: further outputs of the graph.
        """
        energies = extras[_MEMBERS].astype(np.float64) + self._references[numbers]
        return {_MEMBERS: energies, _FORCES: extras[_FORCES].astype(np.float64)}

    def of_many(
        self,
        numbers: Integer[np.ndarray, " atoms"],
        digested: Mapping[str, np.ndarray],
        bounds: Integer[np.ndarray, " bounds"],
    ) -> dict[str, Any]:
        """The spread of structures side by side.

        How a member divides an energy among atoms is its own affair, so that there is no spread of their shares.

        Args:
            numbers: atomic numbers.
            digested: what `digest` made, of all atoms.
            bounds: first atom of each structure, and the number of atoms at the end.

        Returns:
            `energy_uncertainty` (eV) and `forces_uncertainty` ([atoms], eV/Å, root of the variance summed over the
            three components); where frames calibrated it, `uncertainty_ratio`, how many times as far apart forces are,
            in the mean over the atoms, as of a typical one of these, infinite with an element that none of these held,
            and `uncertainty_verdict`, the same in words.
        """
        starts, forces = bounds[:-1], digested[_FORCES]
        energies: Float64[np.ndarray, "structures members"] = np.add.reduceat(digested[_MEMBERS], starts)
        found = {"energy_uncertainty": energies.std(1, ddof=1), _FORCES: forces}
        if self.scale is not None:
            known = np.logical_and.reduceat(np.isin(numbers, self._seen), starts)
            means = np.add.reduceat(forces, starts) / np.diff(bounds)
            found |= self.scale.of_many(np.where(known, means, np.inf))
        return found

    def results(self, numbers: Integer[np.ndarray, " atoms"], digested: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The same of one structure.

        Args:
            numbers: atomic numbers.
            digested: rows of its atoms of what `digest` made.
        """
        return one_of(self.of_many(numbers, digested, np.array([0, len(numbers)])), 0, slice(0, len(numbers)))
