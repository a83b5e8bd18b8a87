"""Structures to validate on, the parity gate, and accuracy against the student in float64."""

from painn_deploy.calibration.accuracy.errors import Accuracy, Limits, compare

__all__ = ["Accuracy", "Limits", "compare"]
