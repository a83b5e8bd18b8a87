"""Limits as a person writes them: `25meV/A`, `3meV`, `0.1GPa`."""

import re
from collections.abc import Mapping

import typer
from ase.units import GPa

from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.scripts.commands.typed_graphs import INT8_LIMITS

__all__ = ["energy_limit", "force_limit", "lossy_limits", "stress_limit"]

_ENERGY = {"": 1.0, "ev": 1.0, "mev": 1e-3, "ev/atom": 1.0, "mev/atom": 1e-3}
_FORCE = {"": 1.0, "ev/a": 1.0, "mev/a": 1e-3, "ev/å": 1.0, "mev/å": 1e-3, "ev/angstrom": 1.0, "mev/angstrom": 1e-3}
_STRESS = {
    "gpa": GPa,
    "mpa": 1e-3 * GPa,
    "bar": 1e-4 * GPa,
    "ev/a^3": 1.0,
    "mev/a^3": 1e-3,
    "ev/å³": 1.0,
    "mev/å³": 1e-3,
}


def energy_limit(text: str) -> float:
    """Read a limit of energies: eV an atom; a number without a unit is in eV.

    Raises:
        BadParameter: the text is no number with a unit of energy.
    """
    return _parse(text, _ENERGY, "10meV")


def force_limit(text: str) -> float:
    """Read a limit of forces: eV/Å; a number without a unit is in eV/Å.

    Raises:
        BadParameter: the text is no number with a unit of force.
    """
    return _parse(text, _FORCE, "50meV/A")


def stress_limit(text: str) -> float:
    """Read a limit of stresses: eV/Å³; the unit must be given.

    Raises:
        BadParameter: the text is no number with a unit of stress.
    """
    return _parse(text, _STRESS, "0.1GPa")


def lossy_limits(energy: str | None, forces: str | None) -> Tolerances | None:
    """Read the limits of errors that lower precisions may cost.

    Args:
        energy: mean absolute error an atom, as `energy_limit` reads it; None for INT8's default.
        forces: root mean square error, as `force_limit` reads it; None for INT8's default.

    Returns:
        Both limits (eV, eV/Å); None where neither is given, so that each precision keeps its own default.
    """
    if energy is None and forces is None:
        return None
    return Tolerances(
        energy_limit(energy) if energy else INT8_LIMITS.energy, force_limit(forces) if forces else INT8_LIMITS.forces
    )


def _parse(text: str, units: Mapping[str, float], example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?)\s*(\S*)\s*", text)
    if match is None or match[2].lower() not in units:
        known = ", ".join(unit for unit in units if unit)
        raise typer.BadParameter(f"{text!r} is not a limit such as {example}; units: {known}.")
    return float(match[1]) * units[match[2].lower()]
