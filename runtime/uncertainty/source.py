"""Where the uncertainties of a bundle's results come from: its last layer, its committee, or nowhere."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ase.data import atomic_numbers
from jaxtyping import Integer

from painn_deploy.export.bundle import Bundle
from painn_deploy.export.errors import BundleError
from painn_deploy.export.manifest import UNCERTAINTY
from painn_deploy.runtime.uncertainty.committee import ELEMENTS, KIND, Spread
from painn_deploy.runtime.uncertainty.rigidity import LastLayer
from painn_deploy.runtime.uncertainty.scale import NONSENSE, Scale

__all__ = ["Uncertainty", "uncertainty_of"]


@runtime_checkable
class Uncertainty(Protocol):
    """Makes uncertainties of what a graph gives beside energies, forces and virials.

    Attributes:
        names: of the results that it adds.
        scale: what `uncertainty_ratio` is measured by; None where nothing is.
        additive: whether a structure's ratio and energy uncertainty follow from those of parts of it.
    """

    @property
    def additive(self) -> bool:
        """Whether a structure's ratio is the mean over its atoms, and its energy's uncertainty the sum."""

    @property
    def scale(self) -> Scale | None:
        """What `uncertainty_ratio` is measured by; None where nothing is."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the results that it adds, none of which is there where it is not known."""

    def digest(
        self, numbers: Integer[np.ndarray, " atoms"], extras: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """What can be made of a whole batch at once, with a row for each atom.

        Args:
            numbers: atomic numbers.
            extras: further outputs of the graph, see `painn_deploy.export.fields.EXTRA_OUTPUTS`.
        """

    def of_many(
        self,
        numbers: Integer[np.ndarray, " atoms"],
        digested: Mapping[str, np.ndarray],
        bounds: Integer[np.ndarray, " bounds"],
    ) -> dict[str, Any]:
        """Uncertainties of structures side by side, by name; NaN where one is not known.

        Args:
            numbers: atomic numbers.
            digested: what `digest` made, of all atoms.
            bounds: first atom of each structure, and the number of atoms at the end.
        """

    def results(self, numbers: Integer[np.ndarray, " atoms"], digested: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What is added to the results of one structure.

        Args:
            numbers: atomic numbers.
            digested: rows of its atoms of what `digest` made.
        """


def uncertainty_of(bundle: Bundle) -> Uncertainty | None:
    """What makes uncertainties of a bundle's results; None for a bundle that has nothing to make them of.

    Raises:
        BundleError: its uncertainty.json cannot be read, or is of another width than its features.
    """
    manifest = bundle.manifest
    values = bundle.json(UNCERTAINTY) if UNCERTAINTY in manifest.files else None
    try:
        if values is not None and "width" in manifest.axes:
            return LastLayer.from_dict(values, manifest.axes["width"])
        if members := manifest.members:
            references = [member["atomic_references"] for member in members]
            if values is None:
                return Spread(manifest.species, references)
            seen = [atomic_numbers.get(symbol, 0) for symbol in values.get(ELEMENTS) or ()]
            if not seen or min(seen) < 1:
                raise ValueError(NONSENSE)
            return Spread(manifest.species, references, Scale.from_dict(values, KIND), seen)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{UNCERTAINTY} of {bundle} cannot be read ({error}). Export the bundle again.") from error
    return None
