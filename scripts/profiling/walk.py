"""Study: how far a reader walks: functions of ours that one job enters, the files they are in, and changes of room.

    python scripts/profiling/walk.py export student:base
    python scripts/profiling/walk.py positions student:base

The first walk is from the command to the bundle on disk, the second from positions to forces. Functions that an import
runs are not counted, nor are lambdas and comprehensions. This file imports only names that stay, so that an older state
of the repository is counted with PYTHONPATH=ITS/typings.
"""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from ase.build import molecule

from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.cli import app as commands

NAMESPACE = "painn_deploy"
FAR = 0.6
"""Å that an atom moves for a search: more than half of any skin."""

Checkpoint = Annotated[str, typer.Argument(help="A .safetensors or .pt file, or a student that ships.")]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass
class Walk:
    """The functions that one job entered.

    Attributes:
        functions: module and name of each, in the order in which they were first entered.
        calls: how often any of them was entered.
        moves: module that ran, each time that it became another one, by a call or a return.
    """

    functions: list[tuple[str, str]] = field(default_factory=list)
    calls: int = 0
    moves: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """Module of each function, in the same order."""
        return [module for module, _ in self.functions]

    @property
    def rooms(self) -> list[str]:
        """Room of each function, in the same order."""
        return [_room(module) for module in self.files]


@contextmanager
def walking() -> Iterator[Walk]:
    """Record the functions of ours that the block enters on this thread."""
    walk, seen, stack = Walk(), set[tuple[str, str]](), list[tuple[str, bool]]()  # of the stack: module, by an import

    def note(frame: FrameType, event: str, _: Any) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if event not in ("call", "return") or not module.startswith(f"{NAMESPACE}.") or module == __name__:
            return
        if event == "return":
            if stack:
                stack.pop()
            if stack and not stack[-1][1]:
                _note_move(walk.moves, stack[-1][0])
            return
        code = frame.f_code
        importing = code.co_name in ("<module>", "find_spec") or (bool(stack) and stack[-1][1])
        stack.append((module, importing))
        if importing:
            return
        _note_move(walk.moves, module)
        if code.co_name.startswith("<") or code.co_filename.startswith("<"):  # the latter are made by dataclasses
            return
        walk.calls += 1
        named = (module, code.co_qualname)
        if named not in seen:
            seen.add(named)
            walk.functions.append(named)

    sys.setprofile(note)
    try:
        yield walk
    finally:
        sys.setprofile(None)


def _note_move(moves: list[str], module: str) -> None:
    if not moves or moves[-1] != module:
        moves.append(module)


def _room(module: str) -> str:
    return module.split(".")[1]


def _changes(names: list[str]) -> int:
    return sum(one != other for one, other in pairwise(names))


def _print(walks: dict[str, Walk], *, listed: bool) -> None:
    """A table of counts, and the functions themselves where they are wanted."""
    print("| walk | functions | files | changes of file | of room | calls | moves between files | between rooms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, walk in walks.items():
        moved = [_room(module) for module in walk.moves]
        counts = (len(walk.functions), len(set(walk.files)), _changes(walk.files), _changes(walk.rooms), walk.calls)
        print(f"| {name} | {' | '.join(map(str, (*counts, _changes(walk.moves), _changes(moved))))} |")
    print(
        "\nChanges are counted along the distinct functions, in the order in which they are first entered; moves at "
        "every call and return."
    )
    for name, walk in walks.items() if listed else ():
        print(f"\n{name}:")
        for module, function in walk.functions:
            print(f"    {module.removeprefix(f'{NAMESPACE}.')}: {function}")


Listed = Annotated[bool, typer.Option("--list", help="Print the functions, too.")]


@app.command()
def export(checkpoint: Checkpoint = "student:base", listed: Listed = False) -> None:
    """The command `painn-deploy export CHECKPOINT -o FOLDER` with all defaults, to the bundle and what it prints."""
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), walking() as walk:
        commands(["export", checkpoint, "-o", str(Path(folder) / "out")], standalone_mode=False)
    _print({f"export {checkpoint}": walk}, listed=listed)


@app.command()
def positions(checkpoint: Checkpoint = "student:base", listed: Listed = False) -> None:
    """ASE's call for forces with new positions: onnxruntime on the CPU, in FP32, everything warm."""
    with TemporaryDirectory() as folder:
        (bundle,) = export_engines(checkpoint, folder, structures=[molecule("CH3CH2OH")])
        with PaiNNCalculator(bundle, device="cpu") as calculator:
            walks = {
                "ethanol, neighbours stand": _step(calculator, molecule("CH3CH2OH"), _shaken),
                "ethanol, neighbours are searched": _step(calculator, molecule("CH3CH2OH"), _moved_far),
                "water, 27 molecules, periodic": _step(calculator, _liquid(), _shaken),
            }
    _print(walks, listed=listed)


def _step(calculator: PaiNNCalculator, atoms: Atoms, move: Callable[[Atoms], None]) -> Walk:
    """The walk of one step, after some of the same kind."""
    atoms.calc = calculator
    for _ in range(3):
        move(atoms)
        atoms.get_forces()
    move(atoms)
    with walking() as walk:
        atoms.get_forces()
    return walk


def _shaken(atoms: Atoms) -> None:
    atoms.positions += np.random.default_rng(int(atoms.positions.sum() * 1e6) % 2**32).normal(0, 0.002, (len(atoms), 3))


def _moved_far(atoms: Atoms) -> None:
    atoms.positions[-1, 2] += FAR if atoms.positions[-1, 2] < 0 else -FAR


def _liquid() -> Atoms:
    """Water molecules on a cubic grid, each turned its own way, at the density of the liquid."""
    rng, side, spacing = np.random.default_rng(0), 3, 3.1
    box = Atoms(cell=[side * spacing] * 3, pbc=True)
    for index in np.ndindex(side, side, side):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += spacing * (np.array(index) + 0.5)
        box += one
    return box


if __name__ == "__main__":
    app()
