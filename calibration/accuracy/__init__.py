"""Errors of an engine: measured against its student, broken down, compared, and held to limits."""

from painn_deploy.calibration.accuracy.errors import Accuracy, Limits, compare
from painn_deploy.export.moved import names_of

__all__ = ["Accuracy", "Limits", "compare"]

__getattr__ = names_of(__name__, f"{__name__}.errors")
