"""Labels of a teacher: how it is loaded, what it says of a structure, and the files that its answers are kept in."""

import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from painn_deploy.export.errors import DatasetError
from painn_deploy.export.files import whole_file, write_whole
from painn_deploy.scripts.distillation.structures import Structure

__all__ = [
    "Label", "arrays_of", "follow", "labelled", "load_teacher", "one_thread_a_process", "read_part", "write_arrays",
    "write_json", "write_part",
]  # fmt: skip

REPORT_EVERY = 30.0  # s, where there is no terminal to draw a bar on


def load_teacher(teacher: str) -> Callable[[], Any]:
    """The maker of fresh ASE calculators: `tblite:METHOD`, or `package.module:factory` called without arguments."""
    module_name, _, name = teacher.partition(":")
    if not name:
        raise DatasetError(f"--teacher {teacher!r} is neither 'tblite:METHOD' nor 'package.module:factory'")
    try:
        module = importlib.import_module("tblite.ase" if module_name == "tblite" else module_name)
        return partial(module.TBLite, method=name, verbosity=0) if module_name == "tblite" else getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise DatasetError(
            f"the teacher {teacher!r} cannot be imported ({error}): tblite comes with "
            "pip install 'painn-deploy[train]'; another teacher has to be on the Python path"
        ) from error


@dataclass(frozen=True)
class Label:
    """A structure with the teacher's energy in eV and its forces in eV/Å."""

    structure: Structure
    energy: float
    forces: Float[np.ndarray, "atoms 3"]

    @property
    def largest_force(self) -> float:
        """The largest norm of the forces, eV/Å; NaN where energy or forces are not finite."""
        largest = float(np.linalg.norm(self.forces, axis=1).max())
        return largest if np.isfinite(self.energy) and np.isfinite(largest) else float("nan")


def labelled(structure: Structure, calculator: Any) -> Label:
    """A structure with its energy and forces.

    Args:
        structure: to be labelled; it is not touched.
        calculator: an ASE calculator of the teacher.
    """
    atoms = structure.atoms.copy()
    atoms.calc = calculator
    return Label(structure, float(atoms.get_potential_energy()), np.asarray(atoms.get_forces()))


def write_part(path: Path, kept: list[Label], dropped: int, failures: list[str]) -> None:
    """Write the labels of one item, as one npz file.

    Args:
        path: of the file.
        kept: labels.
        dropped: structures whose labels were out of bounds.
        failures: why the teacher gave no label, once for each structure.
    """
    write_arrays(path, **arrays_of(kept), dropped=np.array(dropped), failures=np.array(failures, dtype=str))


def arrays_of(kept: Sequence[Label]) -> dict[str, np.ndarray]:
    """What a training set holds of labels, by the names in its file; see `painn_deploy.scripts.distillation.batches`.

    Args:
        kept: labels.
    """
    atoms = [label.structure.atoms for label in kept]
    return {
        "numbers": np.concatenate([np.zeros(0), *(one.numbers for one in atoms)]).astype(np.int8),
        "positions": np.concatenate([np.zeros((0, 3)), *(one.positions for one in atoms)]),
        "forces": np.concatenate([np.zeros((0, 3)), *(label.forces for label in kept)]).astype(np.float32),
        "energies": np.array([label.energy for label in kept], dtype=np.float64),
        "offsets": np.cumsum([0, *map(len, atoms)], dtype=np.int64),
        "kinds": np.array([label.structure.kind for label in kept], dtype=str),
    }


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an npz file that is either complete or not there.

    Args:
        path: of the file.
        arrays: by name.
    """
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy takes the names for its own options


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file that is either complete or not there.

    Args:
        path: of the file.
        content: what JSON can hold.
    """
    write_whole(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


@contextmanager
def one_thread_a_process() -> Iterator[None]:
    """Processes started inside share the cores among them: numerical libraries read this when they are loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def follow(finished: Iterator[None], before: int, total: int) -> None:
    """A progress bar on a terminal, a line every half minute elsewhere: rate and time left.

    Args:
        finished: yields once for each item done.
        before: items that were done earlier.
        total: items in all.
    """
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    start = reported = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("labels", total=total, completed=before, rate="")
        for done, _ in enumerate(finished, start=1):
            now = time.monotonic()
            rate = done / (now - start)
            progress.update(task, advance=1, rate=f"{rate:.2f} items/s")
            if not console.is_terminal and now - reported > REPORT_EVERY:
                reported, left = now, (total - before - done) / rate / 60
                console.print(f"{before + done}/{total} items, {rate:.2f} items/s, about {left:.0f} min left")


def read_part(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as part:
        return dict(part)
