"""A user's own LAMMPS input, run with an engine in the place of its force field.

Every command goes through here, one by one: what LAMMPS would read by itself, loops and conditions among it, might hold
another force field, or computes that need one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ase.data import atomic_masses, atomic_numbers

from painn_deploy.export.errors import EngineError, PaiNNDeployError, SpeciesError
from painn_deploy.export.parsing import UnreadableError
from painn_deploy.export.progress import Tell, silent
from painn_deploy.export.reading import read_regular
from painn_deploy.runtime.calculator import PaiNNCalculator
from painn_deploy.runtime.lammps import SKIN, LammpsForces, info_of, lammps_in_words
from painn_deploy.runtime.programs.lammps_commands import (
    ADDS,
    EXPANDED,
    MODEL,
    NOT_RUN,
    NOTHING,
    RUNS,
    SETUP,
    WITHIN_RUNS,
    Command,
    commands_of,
    elements_of,
    words_of,
)

__all__ = ["THERMO", "InputFile"]

ZERO = "pair_coeff * *"
"""What `pair_style zero` needs once there is a box."""

FOREIGN = ("epair", "evdwl", "ecoul", "elong", "emol", "ebond", "eangle", "edihed", "eimp", "etail")
"""Thermodynamic output of LAMMPS's own styles, of which there are none."""

THERMO = "thermo_style custom step temp pe ke etotal press vol"
"""In the place of LAMMPS's default, which has the pair style's energy and not the whole."""

MARK = "painn_branch"
"""Variable by which LAMMPS says which branch of an `if` is taken."""

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

MOST_BYTES = 16 * 2**20
"""Of an input; positions are in other files."""

DEEPEST = 16
"""Inputs that include each other."""

ALIKE = 0.02
"""Share of its mass by which an isotope mixture, or a rounded mass, differs from an element's."""


class _Jump(NamedTuple):
    """Where an input goes on: in a file, None for the same one, behind a label, None for its beginning."""

    file: Path | None
    label: str | None


class InputFile:
    """An input file of LAMMPS with an engine in the place of its force field.

    Every command is LAMMPS's own, but for the force field: `pair_style` becomes `zero`, with the student's cutoff, and
    `pair_coeff` and `pair_modify` are left out; each is told. The engine is there before the first fix, compute or run
    of a box. What would add forces of its own is refused.

    Args:
        lammps: made by `painn_deploy.runtime.lammps.start_lammps`, without a box.
        calculator: whose engine answers.
        elements: of LAMMPS's types, in order; None for those that `pair_coeff * * ...` ends with.
        tell: called with what is done otherwise than the file says.

    Attributes:
        forces: the engine in LAMMPS; None where no box needs it yet.
    """

    def __init__(
        self, lammps: Any, calculator: PaiNNCalculator, elements: Sequence[str] | None = None, tell: Tell = silent
    ) -> None:
        self._lammps, self._calculator, self._tell = lammps, calculator, tell
        self._given = None if elements is None else list(elements)
        self._zero = f"pair_style zero {calculator.manifest.cutoff:g} nocoeff"
        self._told: set[str] = set()
        self._skips, self._depth, self._computed = False, 0, False
        self._cleared()

    def _cleared(self) -> None:
        """Begin anew, as LAMMPS does by `clear`."""
        self.forces: LammpsForces | None = None
        self._skin = SKIN
        self._elements, self._style = self._given, ""
        self._bare = self._thermo = self._modified = self._masses_seen = False

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
        self._run(path)
        if not self._computed:
            raise EngineError(f"{path} computes nothing with the engine: it has no box with a fix, a compute or a run.")

    def _run(self, path: Path) -> None:
        commands, here = commands_of(_read(path)), 0
        while here < len(commands):
            command = commands[here]
            with _located(path, command.line):
                jump = self._step(path, command)
            here += 1
            if jump is None:
                continue
            with _located(path, command.line):
                if jump.file is not None:
                    path, commands = jump.file, commands_of(_read(jump.file))
                labels = [place for place, one in enumerate(commands) if one.words[:2] == ["label", jump.label]]
                if jump.label is not None and not labels:
                    raise EngineError(f"There is no `label {jump.label}` in {path}.")
                here = labels[0] + 1 if labels else 0

    def _step(self, path: Path, command: Command) -> _Jump | None:
        """Run one command; where it leads if it is a jump."""
        text, words = command.text, command.words
        if words and ("$" in words[0] or words[0] in EXPANDED):
            text = self._expanded(text)
            words = words_of(text)
        if not words or words[0] == "label":
            return None
        word, *rest = words
        if word == "jump":
            return self._jump(path, rest)
        if word == "if":
            return self._branch(path, command)
        if word == "include":
            self._include(Path(rest[0]) if rest else Path())
            return None
        if word in NOT_RUN:
            raise EngineError(f"`{word}` is not run, since {NOT_RUN[word]}: use LammpsForces from Python.")
        if word in ADDS and rest and rest[0] not in NOTHING:
            raise EngineError(_added(word, rest[0]))
        if word in MODEL and rest[:1] != ["none"]:
            self._replace(path, command, words)
        elif word in MODEL or word in ADDS:
            self._plain(text)
        else:
            if word not in SETUP and self.forces is None and self._lammps.extract_setting("box_exist"):
                self._begin()
            self._look(path, command, words)
            whole = word != "write_data" or "nocoeff" in rest
            self._command(text if whole else f"{' '.join(words_of(text, raw=True))} nocoeff")
        if word == "clear":
            self._cleared()
        elif word == "neighbor":
            self._skin = float(words_of(self._expanded(text))[1])  # LAMMPS has just taken it for a number
            if self.forces is not None:
                self.forces.reach_for(self._skin)
        elif word == "next":
            self._skips = self._skips or not all(self._lammps.has_id("variable", name) for name in rest)
        elif word in ("fix", "run"):
            _refuse_others(self._styles())
        if self._bare and self._lammps.extract_setting("box_exist"):
            self._plain(ZERO)
            self._bare = False
        return None

    def _expanded(self, text: str) -> str:
        """A command with its variables' values."""
        if "$" not in text:
            return text
        with lammps_in_words(text):
            return str(self._lammps.expand(text))

    def _jump(self, path: Path, words: Sequence[str]) -> _Jump | None:
        if self._skips:  # a variable of the last `next` is at its end
            self._skips = False
            return None
        if not words:
            raise EngineError("`jump` needs the name of a file, or SELF.")
        same = words[0] == "SELF" or Path(words[0]) == path
        return _Jump(None if same else Path(words[0]), words[1] if len(words) > 1 else None)

    def _branch(self, path: Path, command: Command) -> _Jump | None:
        """Ask LAMMPS which branch is taken, and run its commands one by one."""
        raw = words_of(command.text, raw=True)
        if len(raw) < 4 or raw[2] != "then":
            raise EngineError(f"`{command.text}` is no `if` of LAMMPS: if CONDITION then COMMAND ...")
        branches: list[tuple[str | None, list[str]]] = [(raw[1], [])]
        place = 3
        while place < len(raw):
            if raw[place] == "elif" and place + 1 < len(raw):
                branches.append((raw[place + 1], []))
                place += 1
            elif raw[place] == "else":
                branches.append((None, []))
            else:
                branches[-1][1].append(words_of(raw[place])[0])
            place += 1
        asked = ""
        for number, (condition, _) in enumerate(branches):
            lead = "else" if condition is None else f"if {condition} then" if number == 0 else f"elif {condition}"
            asked += f'{lead} "variable {MARK} string {number}" '
        self._plain(f"variable {MARK} string none")
        self._plain(asked)
        chosen = self._lammps.extract_variable(MARK)
        self._plain(f"variable {MARK} delete")
        jump: _Jump | None = None
        for text in branches[int(chosen)][1] if chosen != "none" else ():
            jump = self._step(path, Command(command.line, text)) or jump
        return jump

    def _include(self, path: Path) -> None:
        if self._depth >= DEEPEST:
            raise EngineError(f"{path} is included {DEEPEST} files deep; does it include itself?")
        self._depth += 1
        try:
            self._run(path)
        finally:
            self._depth -= 1

    def _replace(self, path: Path, command: Command, words: Sequence[str]) -> None:
        """Leave a command of the force field out, or put one without forces in its place."""
        said = f"{path}, line {command.line}: `{' '.join(words)}`"
        if words[0] == "pair_style":
            self._style = words[1] if len(words) > 1 else ""
            self._tell_once(f"{said} becomes `{self._zero}`: forces are the engine's")
            self._plain(self._zero)
            self._bare = True
            return
        self._tell_once(f"{said} is left out: forces are the engine's")
        named = elements_of(self._style, words[1:]) if words[0] == "pair_coeff" else []
        if self._given is not None and named not in ([], self._given):
            self._tell_once(f"warning: {said} names other elements than --elements, which are taken")
        elif named:
            if self._elements not in (None, named):
                raise SpeciesError(
                    f"The types are {', '.join(self._elements or ())} by an earlier pair_coeff, and "
                    f"{', '.join(named)} by this one: give --elements."
                )
            self._elements = named

    def _begin(self) -> None:
        """Put the engine into LAMMPS."""
        types = self._lammps.extract_setting("ntypes")
        if self._elements is None:
            raise SpeciesError(
                f"Which elements are the {types} types of this input? Give them in their order, such as "
                f"--elements {','.join(['C', 'H', 'O', 'N'][:types]) or 'C'}."
            )
        if len(self._elements) != types:
            raise SpeciesError(
                f"{len(self._elements)} elements ({', '.join(self._elements)}) are given for {types} types; there must "
                "be one for each, in their order: --elements."
            )
        if wrong := [symbol for symbol in self._elements if symbol not in atomic_numbers]:
            raise SpeciesError(f"{wrong[0]} is no element; --elements are symbols, such as C,H,O.")
        styles = self._styles()
        if (found := styles.pop("pair_style", "none")) not in NOTHING:  # of a restart
            self._plain(self._zero)
            self._plain(ZERO)
            self._tell_once(f"`pair_style {found}` of the restart becomes `zero`: forces are the engine's")
        _refuse_others(styles)
        named = dict(enumerate(self._elements, start=1))
        self.forces, self._computed = LammpsForces(self._lammps, self._calculator, named, self._skin), True
        self._tell_once(f"types: {', '.join(f'{kind} {element}' for kind, element in named.items())}")

    def _look(self, path: Path, command: Command, words: Sequence[str]) -> None:
        """See what a command is about to do that a user should know, or that LAMMPS would do by itself."""
        word, *rest = words
        said = f"{path}, line {command.line}: "
        self._modified = self._modified or word == "thermo_modify"
        if word == "thermo_style":
            self._thermo = True
            if zeros := [one for one in rest if one in FOREIGN or one in ("one", "multi")]:
                self._tell_once(
                    f"warning: {said}{', '.join(zeros)} has energies of LAMMPS's own styles, which are 0; `pe` is the "
                    "engine's"
                )
        if word in RUNS and not self._thermo:
            self._thermo = True
            if self._modified:
                self._tell_once("warning: E_pair of LAMMPS's default thermo_style is 0; `pe` is the engine's")
            else:
                self._plain(THERMO)
                self._tell_once(f"`{THERMO}` takes the place of LAMMPS's default, whose E_pair would be 0")
        if word == "compute" and "pair" in rest[3:]:
            self._tell_once(f"warning: {said}what `pair` stands for is 0; the engine's part is that of `fix`")
        if word == "run" and "every" in rest:
            inside = rest[rest.index("every") + 2 :]
            for one in (words_of(self._expanded(text)) for text in inside if text != "NULL"):
                if one and one[0] not in WITHIN_RUNS:
                    raise EngineError(
                        f"LAMMPS would execute `{' '.join(one)}` by itself within the run: end the run before it, and "
                        "make it a command of its own, in a loop for instance."
                    )
        if word not in SETUP and self.forces is not None:
            self._look_at_masses()

    def _tell_once(self, line: str) -> None:
        """Tell something; in a loop the first time."""
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    def _command(self, text: str) -> None:
        """Run a command: what may compute something through the engine's own checks."""
        if self.forces is None or words_of(text)[0] in SETUP:
            self._plain(text)
        else:
            self.forces.command(text)

    def _plain(self, text: str) -> None:
        with lammps_in_words(text):
            self._lammps.command(text)

    def _styles(self) -> dict[str, str]:
        """Styles of what gives forces, by the commands that set them."""
        found = STYLES.findall(info_of(self._lammps, "system"))
        return {CALLED[one or other]: style for one, other, style in found}

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
                self._tell_once(
                    f"warning: type {kind} is to be {element} and has a mass of {mass:g}, which is that of "
                    f"{others[0]}: are the elements in the order of the types?"
                )


def _is_mass_of(mass: float, symbol: str) -> bool:
    own = float(atomic_masses[atomic_numbers[symbol]])
    return abs(mass - own) <= ALIKE * own


def _refuse_others(styles: Mapping[str, str]) -> None:
    for command, style in styles.items():
        if style not in NOTHING:
            raise EngineError(_added(command, style))


def _added(command: str, style: str) -> str:
    return (
        f"`{command} {style}` adds forces of its own to the engine's, which are those of all atoms already: remove it "
        "with its coefficients, and give read_data `nocoeff` where the file holds some."
    )


def _read(path: Path) -> str:
    try:
        return read_regular(path, MOST_BYTES, follow=True).decode(errors="surrogateescape")
    except UnreadableError as error:
        raise EngineError(f"An input of LAMMPS cannot be read: {error}.") from error


@contextmanager
def _located(path: Path, line: int) -> Iterator[None]:
    """Errors of ours with the place in the file, which is the innermost one's."""
    try:
        yield
    except PaiNNDeployError as error:
        if isinstance(error.__cause__, _Placed):
            raise
        raise type(error)(f"{path}, line {line}: {error}") from _Placed(error)


class _Placed(Exception):  # noqa: N818  it is no error of its own
    """An error that its place was put before."""
