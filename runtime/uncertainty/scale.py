"""What an uncertainty is measured by: what is typical of the frames that it was calibrated on, and where they end."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float64

__all__ = [
    "FAMILIAR",
    "FLAG",
    "NAMES",
    "NONSENSE",
    "NUMBERS",
    "OF_ATOMS",
    "OF_STRUCTURE",
    "QUANTILE",
    "RATIO",
    "UNFAMILIAR",
    "UNKNOWN_ELEMENT",
    "VERDICT",
    "Scale",
    "one_of",
]

RATIO, VERDICT = "uncertainty_ratio", "uncertainty_verdict"
"""Names of results: how many times the typical uncertainty of the calibration's frames, and the same in words."""

FLAG = "uncertainty_flag"
"""Of a screening's row: whether its ratio is above the limit that was asked for."""

OF_STRUCTURE: Mapping[str, str] = MappingProxyType(
    {"energy_uncertainty": "float", RATIO: "float", VERDICT: "text", FLAG: "truth"}
)
OF_ATOMS = ("energies_uncertainty", "forces_uncertainty")
"""Names of all uncertainties that a structure, and that each of its atoms may have; kinds of the former."""

NAMES = (*OF_STRUCTURE, *OF_ATOMS)

NUMBERS = (RATIO, "energy_uncertainty")
"""Those of a structure that are numbers, which programs other than Python take."""

FAMILIAR, UNFAMILIAR, UNKNOWN_ELEMENT = "familiar", "unfamiliar", "unknown element"
"""The words: up to the threshold, above it, or with an element that no frame held."""

QUANTILE = 0.99
"""Of the frames of the calibration, those whose ratio is up to the threshold."""

NONSENSE = "it holds values that make no sense"


def one_of(found: Mapping[str, Any], index: int, rows: slice) -> dict[str, Any]:
    """The uncertainties of one structure of several: those that are known.

    Args:
        found: by name, arrays of structures or of atoms, NaN where one is not known; words in a list or an array.
        index: of the structure.
        rows: of its atoms.
    """
    made: dict[str, Any] = {}
    for name, values in found.items():
        if name in OF_ATOMS:
            own = values[rows]
            if own[0] == own[0]:  # NaN alone is not itself
                made[name] = own.copy()
        elif isinstance(values, list) or values.dtype == object:
            made[name] = values[index]
        elif name == RATIO or values[index] == values[index]:  # the one that is NaN only where the engine's answer is
            made[name] = float(values[index])
    return made


@dataclass(frozen=True)
class Scale:
    """What is typical of the frames of a calibration.

    Attributes:
        typical: the median over these frames, in whatever the uncertainty is before it is divided by this.
        threshold: of the ratio to the typical one, up to which `QUANTILE` of these frames are.
        fitted_on: name of the frames.
        frames: how many the uncertainty was made from, and how many calibrated.
        remarks: sentences about what is not as it should be.
    """

    typical: float
    threshold: float
    fitted_on: str
    frames: tuple[int, int]
    remarks: tuple[str, ...] = ()

    def of_many(self, values: Float64[np.ndarray, " structures"]) -> dict[str, Any]:
        """How uncertain structures are.

        Args:
            values: of each, in the unit of `typical`; infinite with an element that no frame held.

        Returns:
            `uncertainty_ratio` (an array) and `uncertainty_verdict` (a list of words).
        """
        ratios = values / self.typical
        others, threshold = {math.inf: UNKNOWN_ELEMENT}, self.threshold
        words = [FAMILIAR if ratio <= threshold else others.get(ratio, UNFAMILIAR) for ratio in ratios.tolist()]
        return {RATIO: ratios, VERDICT: words}

    def as_dict(self, kind: str) -> dict[str, Any]:
        """Plain JSON types.

        Args:
            kind: of the uncertainty that it measures.
        """
        return {
            "kind": kind,
            **asdict(self),
            "frames": list(self.frames),
            "remarks": list(self.remarks),
            "quantile": QUANTILE,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], kind: str) -> "Scale":
        """Read what `as_dict` made.

        Args:
            values: by key; others may be among them.
            kind: that it must be of.

        Raises:
            ValueError: it is nothing that `as_dict` makes, or of another kind.
        """
        try:
            typical, threshold = float(values["typical"]), float(values["threshold"])
            made, calibrated = values["frames"]
            fitted_on, remarks = values["fitted_on"], values["remarks"]
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(str(error)[:200]) from error
        sound = (
            values.get("kind") == kind
            and all(0 < number < math.inf for number in (typical, threshold))
            and all(type(count) is int and count > 0 for count in (made, calibrated))
            and all(type(values[key]) in (int, float) for key in ("typical", "threshold"))
            and isinstance(remarks, list)
            and all(isinstance(text, str) for text in (fitted_on, *remarks))
        )
        if not sound:
            raise ValueError(NONSENSE)
        return cls(typical, threshold, fitted_on, (made, calibrated), tuple(remarks))
