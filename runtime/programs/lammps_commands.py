"""The commands of a LAMMPS input, told apart as LAMMPS does."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ase.data import atomic_numbers, chemical_symbols

__all__ = [
    "ADDS",
    "EXPANDED",
    "MODEL",
    "NOTHING",
    "NOT_RUN",
    "RUNS",
    "SETUP",
    "WITHIN_RUNS",
    "Command",
    "commands_of",
    "elements_of",
    "words_of",
]

MODEL = ("pair_style", "pair_coeff", "pair_modify")
"""Commands that say which force field there is between atoms."""

ADDS = ("bond_style", "angle_style", "dihedral_style", "improper_style", "kspace_style")
"""Commands whose styles add forces of their own."""

NOTHING = ("none", "zero")
"""Styles without forces."""

SETUP = frozenset({
    *("angle_coeff", "atom_modify", "atom_style", "balance", "bond_coeff", "boundary", "box", "change_box"),
    *("comm_modify", "comm_style", "create_atoms", "create_bonds", "create_box", "delete_atoms", "delete_bonds"),
    *("dielectric", "dihedral_coeff", "dimension", "displace_atoms", "dump", "dump_modify", "echo", "group"),
    *("improper_coeff", "info", "kspace_modify", "labelmap", "lattice", "log", "mass", "min_modify", "min_style"),
    *("neigh_modify", "neighbor", "next", "newton", "package", "print", "processors", "read_data", "read_restart"),
    *("region", "replicate", "reset_atoms", "reset_timestep", "set", "shell", "special_bonds", "suffix", "thermo"),
    *("thermo_modify", "thermo_style", "timer", "timestep", "undump", "units", "variable", "velocity"),
})  # fmt: skip
"""Commands that need no engine: before any other one it is put into LAMMPS. Later `replicate` would be refused."""

WITHIN_RUNS = frozenset(("print", "shell", "thermo", "variable", "write_data", "write_dump", "write_restart"))
"""Commands that `run ... every` may execute, which LAMMPS does by itself."""

NOT_RUN = {
    "partition": "only some partitions would run it",
    "plugin": "what it brings is not known here",
    "python": "it may do anything to this LAMMPS",
}

EXPANDED = ("include", "jump", "next", *MODEL)
"""Commands that are looked at with their variables' values."""

RUNS = ("run", "minimize", "rerun")
"""Commands that print thermodynamic output."""

NUMBERED = "schnetpack"
"""The pair style whose `pair_coeff` ends with atomic numbers; those of others end with symbols, if with elements."""

WORD = re.compile(r'"""(.*?)"""|"([^"]*)"|\'([^\']*)\'|(\S+)', re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of an input.

    Attributes:
        line: number of its first line.
        text: of all its lines.
    """

    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """Its words without quotes, before a comment."""
        return words_of(self.text)


def commands_of(text: str) -> list[Command]:
    """The commands of an input, without empty lines and those of comments.

    A line that ends with `&` goes on in the next one, and so does one within triple quotes.

    Args:
        text: of the input.
    """
    found: list[Command] = []
    held, first = "", 1
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff")), start=1):
        first = number if not held else first
        held += line.rstrip()
        if held.endswith("&"):
            held = held[:-1]
        elif held.count('"""') % 2:
            held += "\n"
        else:
            found.append(Command(first, held.strip()))
            held = ""
    found.append(Command(first, held.strip()))
    return [command for command in found if command.words]


def words_of(text: str, *, raw: bool = False) -> list[str]:
    """The words of a command before a comment, as LAMMPS tells them apart.

    Args:
        text: of the command.
        raw: keep quotes.
    """
    found: list[str] = []
    for match in WORD.finditer(text):
        quoted = next((part for part in match.groups()[:3] if part is not None), None)
        if quoted is not None:
            found.append(match[0] if raw else quoted)
            continue
        word, hash_sign, _ = match[0].partition("#")
        if word:
            found.append(word)
        if hash_sign:
            break
    return found


def elements_of(style: str, words: Sequence[str]) -> list[str]:
    """The elements that a `pair_coeff * * ...` ends with; none where it does not.

    Args:
        style: the pair style.
        words: of the command, after its name.
    """
    named: list[str] = []
    for word in reversed(words[2:] if list(words[:2]) == ["*", "*"] else []):
        numbered = style == NUMBERED and word.isdecimal() and 0 < int(word) < len(chemical_symbols)
        symbol = chemical_symbols[int(word)] if numbered else word
        if symbol == "NULL":
            return []
        if symbol not in atomic_numbers or symbol == "X":
            break
        named.insert(0, symbol)
    return named
