"""The elements that a student knows, and their reference energies."""

from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float64, Int

from painn_deploy.export.declaration import species_text
from painn_deploy.export.errors import SpeciesError

__all__ = ["AtomicReferences"]

NAMED = 20
"""Elements that an error names at most."""


class AtomicReferences:
    """Reference energies of atoms, looked up by atomic number.

    Args:
        species: atomic numbers that the student knows.
        energies: of an isolated atom of each, eV.
        verified: whether it is known to have been trained on them; else they are the rows of its embedding.
    """

    def __init__(self, species: Sequence[int], energies: Sequence[float], *, verified: bool = True) -> None:
        self._verified = verified
        self._species = tuple(species)
        self._table = np.full(len(chemical_symbols) + 1, np.nan)
        self._table[list(species)] = energies
        self._last: tuple[tuple[str, bytes], np.ndarray] = (
            ("", b""),
            np.empty(0),
        )  # a step of dynamics asks for the same again

    def __call__(self, numbers: Int[np.ndarray, " atoms"]) -> Float64[np.ndarray, " atoms"]:
        """The reference energy of each atom, eV; the array is closed for writing.

        Raises:
            SpeciesError: one of them is no element that the student has learnt.
        """
        key, last = (numbers.dtype.str, numbers.tobytes()), self._last  # read once: another thread may replace it
        if last[0] == key:
            return last[1]
        references = self.table(numbers)
        unknown = np.isnan(references)
        if unknown.any():
            raise self._unknown(int(unknown.argmax()), int(numbers[unknown.argmax()]))
        references.flags.writeable = False  # it is handed out again and again
        self._last = key, references
        return references

    def table(self, numbers: Int[np.ndarray, " atoms"]) -> Float64[np.ndarray, " atoms"]:
        """The same of atoms of any structures; NaN of one that is no element that the student has learnt.

        Args:
            numbers: atomic numbers.
        """
        inside = (numbers >= 0) & (numbers < len(self._table))
        found: np.ndarray = self._table[numbers if inside.all() else np.where(inside, numbers, 0)]
        return found

    def _unknown(self, atom: int, number: int) -> SpeciesError:
        known = species_text(self._species, verified=self._verified, most=NAMED)
        symbol = chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "no element"
        return SpeciesError(
            f"Atom {atom} is {symbol} (Z = {number}), which this student has no embedding for; it knows {known}. "
            "Use a student that was trained on it."
        )
