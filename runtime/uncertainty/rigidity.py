"""How sure a student is of an energy, from the last hidden layer of its read-out (arXiv 2403.02251).

The energy of an atom is linear in the features F of that layer, and the uncertainty of a linear model is large where
its training frames leave it free to change: sigma² = alpha² Fᵀ (C + noise² 1)⁻¹ F, with C the mean of F Fᵀ over atoms
of the same element in these frames, and alpha fitted to errors of energies in frames that C has not seen. A matrix for
each element, and atoms instead of sums over structures, find wrong forces and distorted molecules best of what
`scripts/studies/uncertainty.py` compares. Nothing is assumed to cancel: the uncertainty of a structure's energy is the
sum of those of its atoms, so it grows with the size of a structure as the energy does.
"""

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float, Float64, Integer

from painn_deploy.export.errors import BundleError, ShapeError

__all__ = ["UNCERTAINTY", "LastLayer"]

UNCERTAINTY = "uncertainty.json"
"""File of a bundle that holds a `LastLayer`."""

QUANTILE = 0.99
"""Of the held-out frames, how many are below the threshold."""

LARGEST_WIDTH = 16_384
"""Of features, as of a student's configuration."""

STORED = np.dtype("<f4")
"""Of the roots in JSON. Features have no more digits."""


@dataclass(frozen=True)
class LastLayer:
    """What turns features of atoms into uncertainties; made by `painn_deploy.calibration.uncertainty.fitting`.

    Attributes:
        roots: [width, width] for each atomic number in the frames, W with W Wᵀ = 1 / (C + noise² 1) transposed: an
            atom's variance is alpha² |W F|².
        width: of the features.
        noise: in the unit of the features, below which differences of features mean nothing. Of an element that no
            frame has, all that is known is this: its variance is alpha² |F|² / noise².
        alpha: eV, of an atom with |W F| = 1; None where no frame had an energy to fit it to.
        typical: median over held-out frames of the mean of |W F| over atoms.
        threshold: how many times `typical` the mean of a structure may be until it is unlike the frames; as much as the
            share `QUANTILE` of the held-out frames have at most.
        frames: how many made the matrices.
        held_out: how many others gave `typical` and `threshold`.
        labelled: how many of those had energies, and gave alpha.
        source: name of the frames.
        remarks: what to know of the frames before the numbers are believed.
    """

    roots: Mapping[int, Float64[np.ndarray, "width width"]]
    width: int
    noise: float
    alpha: float | None
    typical: float
    threshold: float
    frames: int
    held_out: int
    labelled: int
    source: str
    remarks: tuple[str, ...] = ()

    def leverages(
        self, features: Float[np.ndarray, "atoms width"], numbers: Integer[np.ndarray, " atoms"]
    ) -> Float64[np.ndarray, " atoms"]:
        """|W F| of each atom: its uncertainty without alpha.

        Args:
            features: of atoms.
            numbers: their atomic numbers.

        Raises:
            ShapeError: the features are of another width.
        """
        if features.shape[1] != self.width:
            raise ShapeError(f"Features have {features.shape[1]} columns, and {UNCERTAINTY} is for {self.width}.")
        leverages = np.empty(len(features))
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            chosen = features[rows].astype(np.float64)
            root = self.roots.get(number)
            turned = chosen / self.noise if root is None else chosen @ root.T
            leverages[rows] = np.sqrt(np.einsum("af,af->a", turned, turned))
        return leverages

    def of_structures(
        self,
        features: Float[np.ndarray, "atoms width"],
        numbers: Integer[np.ndarray, " atoms"],
        sizes: Sequence[int],
    ) -> list[dict[str, Any]]:
        """Results of each structure, by the names that ASE's results have them under.

        `uncertainty_ratio`, a number without unit: how many times the typical uncertainty of the calibration's frames,
        an atom. Where alpha is known, also `energies_uncertainty` [atoms] and their sum `energy_uncertainty`, both eV;
        where it is not, they are absent.

        Args:
            features: of all atoms, structure after structure.
            numbers: their atomic numbers.
            sizes: atoms of each structure, at least one.

        Raises:
            ShapeError: the features are of another width, or of another number of atoms.
        """
        counts = np.asarray(sizes, dtype=np.int64)
        if counts.sum() != len(features) or (counts < 1).any():
            raise ShapeError(f"Structures of {counts.sum()} atoms in all come with features of {len(features)}.")
        if not len(counts):
            return []
        leverages, starts = self.leverages(features, numbers), np.cumsum(counts) - counts
        sums = np.add.reduceat(leverages, starts)
        ratios = sums / (counts * self.typical)
        if self.alpha is None:
            return [{"uncertainty_ratio": ratio} for ratio in ratios.tolist()]
        atoms, structures = np.split(self.alpha * leverages, starts[1:]), (self.alpha * sums).tolist()
        return [
            {"energy_uncertainty": energy, "energies_uncertainty": energies, "uncertainty_ratio": ratio}
            for energy, energies, ratio in zip(structures, atoms, ratios.tolist(), strict=True)
        ]

    def verdict(self, ratio: float, threshold: float | None = None) -> str:
        """Say that a structure is unlike the frames; empty where it is not.

        Args:
            ratio: its `uncertainty_ratio`; what is not finite is unlike them.
            threshold: another one.
        """
        limit = self.threshold if threshold is None else threshold
        if ratio <= limit:
            return ""
        return (
            f"the uncertainty an atom is {ratio:.3g} times that of a typical frame of {self.source}, where up to "
            f"{limit:.3g} is usual"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; roots are little-endian float32 in base 64."""
        return {
            "width": self.width,
            "noise": self.noise,
            "alpha": self.alpha,
            "typical": self.typical,
            "threshold": self.threshold,
            "quantile": QUANTILE,
            "frames": self.frames,
            "held_out": self.held_out,
            "labelled": self.labelled,
            "source": self.source,
            "remarks": list(self.remarks),
            "roots": {
                chemical_symbols[number]: base64.b64encode(root.astype(STORED).tobytes()).decode()
                for number, root in self.roots.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LastLayer":
        """Read what `as_dict` made.

        Raises:
            BundleError: it is nothing that `as_dict` makes.
        """
        try:
            width, frames, held_out, labelled = (
                _count(values[key]) for key in ("width", "frames", "held_out", "labelled")
            )
            noise, typical, threshold, quantile = (
                _positive(values[key]) for key in ("noise", "typical", "threshold", "quantile")
            )
            alpha = None if values["alpha"] is None else _positive(values["alpha"])
            if not (0 < width <= LARGEST_WIDTH and frames and held_out >= labelled):
                raise ValueError("its counts contradict one another")
            if quantile != QUANTILE:
                raise ValueError(f"its threshold is at the quantile {quantile} and not {QUANTILE}")
            if (alpha is None) is not (labelled == 0):
                raise ValueError("alpha goes with frames that have energies")
            source, remarks = values["source"], tuple(values["remarks"])
            if not all(isinstance(text, str) for text in (source, *remarks)):
                raise ValueError("its source or remarks are no text")
            roots = {atomic_numbers[symbol]: _root(text, width) for symbol, text in values["roots"].items()}
            if not roots or 0 in roots:
                raise ValueError("it has no matrix of an element")
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, binascii.Error) as error:
            raise BundleError(f"{UNCERTAINTY} cannot be used ({error}). Export the bundle again.") from error
        return cls(roots, width, noise, alpha, typical, threshold, frames, held_out, labelled, source, remarks)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{str(value)[:40]!r} is not a positive number")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is not a count")
    return value


def _root(text: Any, width: int) -> Float64[np.ndarray, "width width"]:
    root = np.frombuffer(base64.b64decode(text, validate=True), STORED).reshape(width, width).astype(np.float64)
    if not np.isfinite(root).all():
        raise ValueError("a matrix is not finite")
    return root
