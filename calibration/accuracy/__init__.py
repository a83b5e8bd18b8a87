"""Errors of an engine against its student: measured, broken down by group and element, and compared with tolerances."""

from painn_deploy.calibration.accuracy.errors import Accuracy, Limits, Tolerances, compare
from painn_deploy.export.moved import names_of

__all__ = ["Accuracy", "Limits", "Tolerances", "compare"]

__getattr__ = names_of(__name__, f"{__name__}.errors")
