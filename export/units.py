"""Units that a user may name: of energy per particle, and of length.

A file of SchNetPack does not say its units. Whoever trained it does, by one of the names here or by a number: the value
of the unit in eV or Å.
"""

import difflib
import math
import unicodedata
from collections.abc import Mapping

from ase import units

from painn_deploy.export.errors import DeclarationError

__all__ = ["ENERGIES", "LENGTHS", "energy_unit", "length_unit"]

ENERGIES: Mapping[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": units.Hartree,
    "Ha": units.Hartree,
    "Rydberg": units.Rydberg,
    "Ry": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "J/mol": 1e-3 * units.kJ / units.mol,
    "cm^-1": units.invcm,
    "1/cm": units.invcm,
}
"""eV of each unit of energy per particle; one mole of particles where the name says so."""

LENGTHS: Mapping[str, float] = {
    "Ang": 1.0,
    "Angstrom": 1.0,
    "Å": 1.0,
    "A": 1.0,
    "Bohr": units.Bohr,
    "a0": units.Bohr,
    "nm": units.nm,
    "pm": 1e-3 * units.nm,
}
"""Å of each unit of length."""

MACROSCOPIC = {"kcal": "kcal/mol", "cal": "kcal/mol", "kj": "kJ/mol", "j": "J/mol"}
"""Units of an amount of matter, in lower case, and what is meant by them."""

ENERGY_RANGE, LENGTH_RANGE = (1e-6, 1e3), (1e-3, 1e3)
"""eV and Å: a number outside is no unit that a force field was trained in."""


def energy_unit(text: str) -> float:
    """A unit of energy per particle, in eV, of its name or of a number.

    Raises:
        DeclarationError: it is no such unit, or the number is no sane one.
    """
    if (meant := MACROSCOPIC.get(text.strip().lower())) is not None:
        raise DeclarationError(
            f"The energy unit {text.strip()!r} is no energy per particle, but of 6e23 of them: did you mean {meant}?"
        )
    return _value(text, ENERGIES, ENERGY_RANGE, "energy", "eV", "--energy-unit")


def length_unit(text: str) -> float:
    """A unit of length, in Å, of its name or of a number.

    Raises:
        DeclarationError: it is no unit of length, or the number is no sane one.
    """
    return _value(text, LENGTHS, LENGTH_RANGE, "length", "Å", "--length-unit")


def _value(
    text: str, known: Mapping[str, float], bounds: tuple[float, float], kind: str, target: str, option: str
) -> float:
    name = unicodedata.normalize("NFKC", text.strip())  # ångström has a sign beside the letter
    if name in known:
        return known[name]
    try:
        number = float(name)
    except ValueError:
        raise DeclarationError(
            f"{name!r} is no unit of {kind} that {option} knows{_hint(name, known, target)}."
        ) from None
    low, high = bounds
    if not (math.isfinite(number) and low <= number <= high):
        raise DeclarationError(
            f"{option} {name}: a number is the value of the unit in {target}, and lies between {low:g} and {high:g}. "
            f"Names are: {', '.join(known)}."
        )
    return number


def _hint(name: str, known: Mapping[str, float], target: str) -> str:
    """What may be meant; a name in another case is no match, since meV is not MeV."""
    folded = {each.casefold(): each for each in known}
    near = [folded[name.casefold()]] if name.casefold() in folded else difflib.get_close_matches(name, known, 1, 0.7)
    meant = f": did you mean {near[0]}?" if near else ""
    return f"{meant or '.'} There are {', '.join(known)}, or a number, its value in {target}"
