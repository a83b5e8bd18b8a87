"""Structures to validate on, the parity gate, accuracy against the student in float64, and the physics audit."""

from painn_deploy.calibration.accuracy.errors import Accuracy, Limits, Tolerances, compare

__all__ = ["Accuracy", "Limits", "Tolerances", "compare"]
