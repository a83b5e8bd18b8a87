"""What an uncertainty is measured by: what is typical of the frames that it was calibrated on, and where they end."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

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

    def results(self, value: float) -> dict[str, Any]:
        """How uncertain one structure is.

        Args:
            value: in the unit of `typical`; infinite with an element that no frame held.

        Returns:
            `uncertainty_ratio` and `uncertainty_verdict`.
        """
        ratio = value / self.typical
        words = FAMILIAR if ratio <= self.threshold else UNKNOWN_ELEMENT if ratio == math.inf else UNFAMILIAR
        return {RATIO: ratio, VERDICT: words}

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
