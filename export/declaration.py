"""What the owner of a checkpoint says of it, where the file does not: units, elements, the energy's name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ase.data import atomic_numbers, chemical_symbols

from painn_deploy.export.errors import DeclarationError
from painn_deploy.export.units import energy_unit, length_unit

if TYPE_CHECKING:
    from painn_deploy.export.manifest import Manifest

__all__ = ["ENERGY_KEY", "Declaration", "declaration_of", "joined_species", "parse_species", "species_text"]

ENERGY_KEY = "energy"
"""What SchNetPack calls the energy unless it is told otherwise."""

SEPARATORS = str.maketrans(",;", "  ")


@dataclass(frozen=True)
class Declaration:
    """What a checkpoint's owner says of it; None where nothing was said.

    Attributes:
        energy_unit: of energies per particle, by name or as a number of eV, see `painn_deploy.export.units`.
        length_unit: by name or as a number of Å.
        species: atomic numbers that the student was trained on.
        energy_key: what the model calls the energy.
    """

    energy_unit: str | None = None
    length_unit: str | None = None
    species: tuple[int, ...] | None = None
    energy_key: str | None = None

    @classmethod
    def of(
        cls,
        energy_unit: str | None = None,
        length_unit: str | None = None,
        species: Sequence[str] | None = None,
        energy_key: str | None = None,
    ) -> "Declaration":
        """Read what was written on a command line.

        Args:
            energy_unit: see above.
            length_unit: see above.
            species: symbols, see `parse_species`; None or empty for elements that nobody named.
            energy_key: see above.

        Raises:
            DeclarationError: a unit or an element is none.
        """
        made = cls(energy_unit, length_unit, parse_species(species) if species else None, energy_key)
        made.check()
        return made

    def check(self) -> None:
        """Refuse what is no unit.

        Raises:
            DeclarationError: see above.
        """
        if self.energy_unit is not None:
            energy_unit(self.energy_unit)
        if self.length_unit is not None:
            length_unit(self.length_unit)

    def scales(self, source: str) -> tuple[float, float]:
        """The units in eV and Å.

        Args:
            source: the file, for the message.

        Raises:
            DeclarationError: one was not named, or is none.
        """
        missing = []
        if self.energy_unit is None:
            missing.append("--energy-unit (of the energies that it was trained on: eV, kcal/mol, Hartree, ...)")
        if self.length_unit is None:
            missing.append("--length-unit (of its positions: Ang, Bohr, nm, ...)")
        if self.energy_unit is None or self.length_unit is None:
            raise DeclarationError(
                f"{source} does not say its units; its owner has to. Give {' and '.join(missing)}. Where there are "
                "no such options, `painn-deploy convert FILE -o student.safetensors` makes a file that says them."
            )
        return energy_unit(self.energy_unit), length_unit(self.length_unit)

    def as_dict(self) -> dict[str, Any]:
        """JSON types, without what was not said."""
        values: dict[str, Any] = {key: value for key, value in vars(self).items() if value is not None}
        if self.species is not None:
            values["species"] = [chemical_symbols[z] for z in self.species]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Declaration":
        """The inverse of `as_dict`, as a manifest keeps it; keys that a later version may add are left out.

        Raises:
            DeclarationError: a value is no unit or element.
        """
        units = {key: str(values[key]) for key in ("energy_unit", "length_unit", "energy_key") if key in values}
        return cls.of(**units, species=[str(symbol) for symbol in values.get("species", ())])


def declaration_of(manifest: "Manifest") -> Declaration | None:
    """What was declared of the checkpoint when a bundle was made of it; None where nothing was.

    Raises:
        DeclarationError: the manifest holds what is no unit or element.
    """
    made = Declaration.from_dict(manifest.declared)
    return None if made == Declaration() else made


def parse_species(texts: Sequence[str]) -> tuple[int, ...]:
    """Read elements: `H,C,O`, `H C O`, or one a word; atomic numbers in ascending order, each once.

    Raises:
        DeclarationError: a word is no element, or there is none.
    """
    words = [word for text in texts for word in text.translate(SEPARATORS).split()]
    if unknown := [word for word in words if not atomic_numbers.get(word)]:
        raise DeclarationError(
            f"--species {unknown[0]!r} is no element. Give symbols, such as H,C,O; chlorine is Cl, not CL."
        )
    if not words:
        raise DeclarationError("--species names no element. Give symbols, such as H,C,O, or leave it out.")
    return tuple(sorted({int(atomic_numbers[word]) for word in words}))


def joined_species(arguments: Sequence[str]) -> list[str]:
    """A command line on which elements that follow `--species` as words of their own are one word.

    An option takes one word, and `--species H C O` is what the converter of SchNetPack's environment takes.
    """
    joined: list[str] = []
    for word in arguments:
        if len(joined) > 1 and joined[-2] == "--species" and atomic_numbers.get(word):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def species_text(species: Sequence[int], *, verified: bool, most: int = 24) -> str:
    """The elements of a student as every print shows them.

    Args:
        species: atomic numbers.
        verified: whether somebody said that it was trained on them; else they are the rows of its embedding.
        most: elements that are listed.
    """
    symbols = " ".join(chemical_symbols[z] for z in species[:most]) + (" ..." if len(species) > most else "")
    return symbols if verified else f"{symbols} (unverified: the embedding's rows)"
