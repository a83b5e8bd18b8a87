"""A user's own LAMMPS input, run with an engine in the place of its force field."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.data import atomic_masses, atomic_numbers, chemical_symbols

from painn_deploy.export.errors import EngineError, PaiNNDeployError, SpeciesError
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.progress import Tell, silent
from painn_deploy.export.reading import read_regular
from painn_deploy.runtime.calculator import PaiNNCalculator
from painn_deploy.runtime.lammps import LammpsForces

__all__ = ["Command", "InputFile", "commands_of", "elements_of"]

MODEL = ("pair_style", "pair_coeff", "pair_modify")
"""Commands that say which force field there is between atoms."""

ADDS = ("bond_style", "angle_style", "dihedral_style", "improper_style", "kspace_style")
"""Commands whose styles add forces of their own."""

ZERO = "pair_coeff * *"
"""What `pair_style zero` needs once there is a box."""

NOTHING = ("none", "zero")
"""Styles without forces."""

FLOW = re.compile(r"\b(?:jump|label)\b")
"""Commands that go on at another place of the file, which LAMMPS must read itself."""

STYLES = re.compile(r"^(?:(Atoms|Bonds|Angles|Dihedrals|Impropers) .*|(Kspace) )style += +(\S+)", re.MULTILINE)
"""Lines of LAMMPS's `info system`."""

CALLED = {
    "Atoms": "pair_style",
    "Bonds": "bond_style",
    "Angles": "angle_style",
    "Dihedrals": "dihedral_style",
    "Impropers": "improper_style",
    "Kspace": "kspace_style",
}

NUMBERED = "schnetpack"
"""The pair style whose `pair_coeff` ends with atomic numbers; those of others end with symbols, if with elements."""

MOST_BYTES = 16 * 2**20
"""Of an input; positions are in other files."""

ALIKE = 0.02
"""Share of its mass by which an isotope mixture, or a rounded mass, differs from an element's."""


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
        """What stands before a comment."""
        return self.text.partition("#")[0].split()


def commands_of(text: str) -> list[Command]:
    """The commands of an input, without empty lines and those of comments.

    A line that ends with `&` goes on in the next one, and so does one within triple quotes.

    Args:
        text: of the input.
    """
    found: list[Command] = []
    held, first = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
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


def elements_of(commands: Sequence[Command]) -> list[str]:
    """The elements of LAMMPS's types, by the last `pair_coeff * *` that ends with some; none where none does.

    Args:
        commands: of an input.
    """
    style, found = "", list[str]()
    for command in commands:
        word, *rest = command.words
        if word == "pair_style" and rest:
            style = rest[0]
        if word == "pair_coeff" and rest[:2] == ["*", "*"]:
            named: list[str] = []
            for one in reversed(rest[2:]):
                if style == NUMBERED and one.isdecimal() and 0 < int(one) < len(chemical_symbols):
                    one = chemical_symbols[int(one)]
                if one not in atomic_numbers or one == "X":
                    break
                named.insert(0, one)
            found = named or found
    return found


class InputFile:
    """An input file of LAMMPS with an engine in the place of its force field.

    Every command is LAMMPS's own, but for the force field: `pair_style` becomes `zero`, with the student's cutoff, and
    `pair_coeff` and `pair_modify` are left out; each is told. As soon as there is a box the engine is there, before any
    fix or compute that comes later. What would add forces of its own is refused.

    Args:
        lammps: made by `painn_deploy.runtime.lammps.start_lammps`, without a box.
        calculator: whose engine answers.
        elements: of LAMMPS's types, in order; None for those that the last `pair_coeff * * ...` ends with.
        tell: called with what is done otherwise than the file says.

    Attributes:
        forces: the engine in LAMMPS; None as long as there is no box.
    """

    def __init__(
        self, lammps: Any, calculator: PaiNNCalculator, elements: Sequence[str] | None = None, tell: Tell = silent
    ) -> None:
        self._lammps, self._calculator, self._tell = lammps, calculator, tell
        self._elements = None if elements is None else list(elements)
        self.forces: LammpsForces | None = None
        self._masses_seen = self._zero = False

    def run(self, path: Path) -> None:
        """Run a file; paths in it are relative to the current folder, as in LAMMPS itself.

        Args:
            path: of the file.

        Raises:
            EngineError: LAMMPS refuses a command, or would compute something without the engine or beside it; the
                message names the line.
            SpeciesError: a type has no element, or one that the student has not learnt.
            StructureError: as `PaiNNCalculator` raises it.
        """
        commands = commands_of(_read(path))
        if self._elements is None:
            self._elements = elements_of(commands) or None
        self._run(path, commands)
        if self.forces is None:
            raise EngineError(f"{path} makes no box, so that there is nothing to compute: read_data, or create_box.")

    def _run(self, path: Path, commands: Sequence[Command]) -> None:
        for place, command in enumerate(commands):
            word, *rest = command.words
            included = None
            with _located(path, command.line):
                if FLOW.search(command.text):
                    self._hand_over(path, commands[place:])
                    return
                if word in ADDS and rest and rest[0] not in NOTHING:
                    raise EngineError(_added(word, rest[0]))
                if word == "include" and len(rest) == 1 and "$" not in rest[0]:
                    included = Path(rest[0].strip("\"'"))
                    further = commands_of(_read(included))
                elif word in MODEL and rest[:1] != ["none"]:
                    self._replaced(path, command)
                else:
                    self._command(command.text)
                if self.forces is None and self._lammps.extract_setting("box_exist"):
                    self._begin()
            if included is not None:
                self._run(included, further)

    def _replaced(self, path: Path, command: Command) -> None:
        """Leave a command of the force field out, or put one without forces in its place."""
        said = f"{path}, line {command.line}: `{' '.join(command.words)}`"
        if command.words[0] == "pair_style":
            zero = f"pair_style zero {self._calculator.manifest.cutoff:g}"
            self._tell(f"{said} becomes `{zero}`: forces are the engine's")
            self._command(zero)
            self._zero = True
            if self.forces is not None:
                self._command(ZERO)
        else:
            self._tell(f"{said} is left out: forces are the engine's")

    def _hand_over(self, path: Path, commands: Sequence[Command]) -> None:
        """Let LAMMPS read the rest, in which it goes to and fro."""
        if self.forces is None:
            raise EngineError("`label` and `jump` come before there is a box; make the box first.")
        kept = []
        for command in commands:
            if command.words[0] in MODEL:
                self._replaced(path, command)
            else:
                kept.append(command.text)
        with tempfile.TemporaryDirectory(prefix="painn-deploy-") as folder:
            file = Path(folder, path.name)
            file.write_text("\n".join(kept) + "\n", errors="surrogateescape")
            self._command(f'include "{file}"')

    def _command(self, text: str) -> None:
        if self.forces is None:
            try:
                self._lammps.command(text)
            except Exception as error:  # what its library raises, it does not say
                raise EngineError(f"LAMMPS does not run `{text}`: {error}") from error
            return
        self._look_at_masses()
        self.forces.command(text)
        self._refuse_others()

    def _begin(self) -> None:
        types = self._lammps.extract_setting("ntypes")
        if self._elements is None:
            raise SpeciesError(
                f"Which elements are the {types} types of this input? Give them in their order, such as "
                f"--elements {','.join(['C', 'H', 'O', 'N'][:types]) or 'C'}."
            )
        if len(self._elements) != types:
            raise SpeciesError(
                f"{len(self._elements)} elements ({', '.join(self._elements)}) are given for {types} types; there must "
                "be one for each, in their order."
            )
        named = dict(enumerate(self._elements, start=1))
        if self._zero:
            self._command(ZERO)
        self.forces = LammpsForces(self._lammps, self._calculator, named)
        self._refuse_others()
        self._tell(f"types: {', '.join(f'{kind} {element}' for kind, element in named.items())}")

    def _refuse_others(self) -> None:
        """Whatever made them, files that LAMMPS read itself among them."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "system")
            self._lammps.command(f'info system out overwrite "{file}"')
            for one, other, style in STYLES.findall(file.read_text()):
                if style not in NOTHING:
                    raise EngineError(_added(CALLED[one or other], style))

    def _look_at_masses(self) -> None:
        """Tell, once, where a type has the mass of another element than it is said to be."""
        masses = self._lammps.numpy.extract_atom("mass")
        if self._masses_seen or masses is None or not (masses[1:] > 0).all():
            return
        self._masses_seen = True
        for kind, element in enumerate(self._elements or (), start=1):
            mass = float(masses[kind])
            others = [symbol for symbol in self._elements or () if _is_mass_of(mass, symbol)]
            if others and not _is_mass_of(mass, element):
                self._tell(
                    f"warning: type {kind} is to be {element} and has a mass of {mass:g}, which is that of "
                    f"{others[0]}: are the elements in the order of the types?"
                )


def _is_mass_of(mass: float, symbol: str) -> bool:
    own = float(atomic_masses[atomic_numbers[symbol]])
    return abs(mass - own) <= ALIKE * own


def _added(command: str, style: str) -> str:
    return (
        f"`{command} {style}` adds forces of its own to the engine's, which are those of all atoms already: remove the "
        "command."
    )


def _read(path: Path) -> str:
    try:
        return read_regular(path, MOST_BYTES, follow=True).decode(errors="surrogateescape")
    except UnreadableError as error:
        raise EngineError(f"An input of LAMMPS cannot be read: {error}.") from error


@contextmanager
def _located(path: Path, line: int) -> Iterator[None]:
    """Errors of ours with the place in the file."""
    try:
        yield
    except PaiNNDeployError as error:
        raise type(error)(f"{path}, line {line}: {error}") from error
