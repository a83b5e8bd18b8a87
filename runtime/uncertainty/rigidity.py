"""The uncertainty of a last layer: how far an energy would move if the last layer were fitted a little otherwise.

An atom's energy is linear in the features f of its read-out's last hidden layer, so that linear regression says how
sure it is (prediction rigidity, Bigi, Chong, Ceriotti and Grasselli, arXiv:2403.02251). With the mean C of f fᵀ over
the training atoms of its element, and a regularisation ς²,

    σ²(f) = α² fᵀ (C + ς² 1)⁻¹ f

Of a structure it is the sum over its atoms, as if all errors had one sign: an upper bound, which grows with the number
of atoms as errors of force fields mostly do. A matrix for each element, and this sum, rank structures by their errors
better than the paper's one matrix of sums over structures (`python -m painn_deploy.scripts.studies.uncertainty`, and
docs/uncertainty.md). What is compared between structures is the mean over atoms.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float, Float64, Integer

from painn_deploy.export.fields import FEATURES
from painn_deploy.runtime.uncertainty.scale import NONSENSE, RATIO, VERDICT, Scale, one_of

__all__ = ["KIND", "LastLayer"]

KIND = "last_layer"
"""Of an uncertainty.json that a `LastLayer` is read from."""

_OF_ATOMS = "rigidities"
"""Name of what `LastLayer.digest` makes."""


@dataclass(frozen=True)
class LastLayer:
    """What makes uncertainties of a graph's features.

    Attributes:
        roots: of each atomic number W, [width, width], with |W f|² = fᵀ (C + ς² 1)⁻¹ f.
        factor: α, eV; None where too few frames had an energy to calibrate it by.
        scale: what the mean of |W f| over the atoms of a structure is measured by.
    """

    roots: Mapping[int, Float64[np.ndarray, "width width"]]
    factor: float | None
    scale: Scale
    additive: ClassVar[bool] = True

    @property
    def names(self) -> tuple[str, ...]:
        """See `Uncertainty.names`."""
        certain = (RATIO, VERDICT)
        return certain if self.factor is None else ("energy_uncertainty", "energies_uncertainty", *certain)

    def rigidities(
        self, numbers: Integer[np.ndarray, " atoms"], features: Float[np.ndarray, "atoms width"]
    ) -> Float64[np.ndarray, " atoms"]:
        """|W f| of each atom; infinite for an element that no frame held.

        Args:
            numbers: atomic numbers.
            features: of the read-out's last hidden layer.
        """
        whitened = np.empty(features.shape)
        for number in np.bincount(numbers).nonzero()[0].tolist():
            rows = (numbers == number).nonzero()[0]
            root = self.roots.get(number)
            whitened[rows] = np.inf if root is None else features[rows].astype(np.float64) @ root.T
        found: np.ndarray = np.sqrt(np.einsum("ai,ai->a", whitened, whitened))
        return found

    def digest(
        self, numbers: Integer[np.ndarray, " atoms"], extras: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """See `Uncertainty.digest`: one number an atom in place of its features.

        Args:
            numbers: atomic numbers.
            extras: further outputs of the graph.
        """
        return {_OF_ATOMS: self.rigidities(numbers, extras[FEATURES.name])}

    def of_many(
        self,
        numbers: Integer[np.ndarray, " atoms"],  # noqa: ARG002  a committee's are of the elements
        digested: Mapping[str, np.ndarray],
        bounds: Integer[np.ndarray, " bounds"],
    ) -> dict[str, Any]:
        """Uncertainties of structures side by side.

        Args:
            numbers: atomic numbers; not used.
            digested: what `digest` made, of all atoms.
            bounds: first atom of each structure, and the number of atoms at the end.

        Returns:
            `uncertainty_ratio`, how many times as uncertain its atoms are, in the mean, as those of a typical frame of
            the calibration, infinite with an element that no frame held; `uncertainty_verdict`, the same in words; and
            where frames had energies, `energies_uncertainty` ([atoms], eV, one standard deviation of each atom's share)
            and `energy_uncertainty` (eV, their sum), NaN with such an element.
        """
        each, counts = digested[_OF_ATOMS], bounds[1:] - bounds[:-1]
        whole = np.add.reduceat(each, bounds[:-1])
        found = self.scale.of_many(whole / counts)
        if self.factor is not None:
            found["energy_uncertainty"], found["energies_uncertainty"] = self.factor * whole, self.factor * each
            if not (known := np.isfinite(whole)).all():
                found["energy_uncertainty"][~known] = np.nan
                found["energies_uncertainty"][np.repeat(~known, counts)] = np.nan
        return found

    def results(self, numbers: Integer[np.ndarray, " atoms"], digested: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The same of one structure, without what is not known.

        Args:
            numbers: atomic numbers.
            digested: rows of its atoms of what `digest` made.
        """
        atoms = len(digested[_OF_ATOMS])
        return one_of(self.of_many(numbers, digested, np.array([0, atoms])), 0, slice(0, atoms))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; a root is float64 in base 64, row after row."""
        return {
            "roots": {
                chemical_symbols[number]: base64.b64encode(np.ascontiguousarray(root, "<f8").tobytes()).decode()
                for number, root in self.roots.items()
            },
            "factor": self.factor,
            **self.scale.as_dict(KIND),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], width: int) -> "LastLayer":
        """Read what `as_dict` made.

        Args:
            values: by key.
            width: of the features.

        Raises:
            ValueError: it is nothing that `as_dict` makes, or of another width.
        """
        scale = Scale.from_dict(values, KIND)
        try:
            roots = {
                atomic_numbers[symbol]: np.frombuffer(base64.b64decode(text, validate=True), "<f8")
                .astype(np.float64)
                .reshape(width, width)
                for symbol, text in values["roots"].items()
            }
            factor = None if values["factor"] is None else float(values["factor"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, binascii.Error) as error:
            raise ValueError(str(error)[:200]) from error
        sound = (
            len(roots) > 0
            and all(number > 0 and np.isfinite(root).all() for number, root in roots.items())
            and 0 < (1.0 if factor is None else factor) < math.inf
        )
        if not sound:
            raise ValueError(NONSENSE)
        return cls(roots, factor, scale)
