"""Structures side by side and the answers to them: what a chunk's ordinary rows are between reading and writing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float64, Int64

from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.streaming import stream
from painn_deploy.runtime.uncertainty.scale import OF_ATOMS, OF_STRUCTURE

__all__ = ["Answers", "Frames", "answers_of"]


@dataclass(frozen=True)
class Frames:
    """Structures side by side.

    Attributes:
        numbers: atomic numbers of all atoms.
        positions: Å.
        offsets: the first atom of each structure, and the end.
        cells: Å; zeros where there is none.
        pbc: directions that repeat.
    """

    numbers: Int64[np.ndarray, " atoms"]
    positions: Float64[np.ndarray, "atoms 3"]
    offsets: Int64[np.ndarray, " bounds"]
    cells: Float64[np.ndarray, "frames 3 3"]
    pbc: Bool[np.ndarray, "frames 3"]

    def __len__(self) -> int:
        """How many structures."""
        return len(self.cells)

    def atoms(self, place: int) -> Atoms:
        """One of the structures."""
        own = slice(self.offsets[place], self.offsets[place + 1])
        return Atoms(self.numbers[own], self.positions[own], cell=self.cells[place], pbc=self.pbc[place])


@dataclass(frozen=True)
class Answers:
    """Answers to structures side by side; numbers of one that has none are NaN.

    Attributes:
        energy: eV.
        energies: of atoms, eV.
        forces: eV/Å.
        stress: eV/Å³; NaN where the cell has no volume.
        reasons: why a structure has no answer, by its place.
        uncertainties: by name, one for each structure or for each atom; NaN or None where it is not known.
    """

    energy: Float64[np.ndarray, " frames"]
    energies: Float64[np.ndarray, " atoms"]
    forces: Float64[np.ndarray, "atoms 3"]
    stress: Float64[np.ndarray, "frames 6"]
    reasons: dict[int, str]
    uncertainties: Mapping[str, np.ndarray] = field(default_factory=dict)


def answers_of(evaluator: Evaluator, frames: Frames, batch_slots: int) -> Answers:
    """Answers to structures, by way of `stream`, which takes one structure after another.

    This is the one place where a screening of columns meets the engine: an evaluator that takes arrays belongs here.

    Args:
        evaluator: the engine.
        frames: the structures.
        batch_slots: atoms x slots of a batch.

    Raises:
        EngineError: the engine failed for every structure of a batch.
    """
    atoms, count, reasons = len(frames.numbers), len(frames), dict[int, str]()
    made = Answers(
        np.full(count, np.nan),
        np.full(atoms, np.nan),
        np.full((atoms, 3), np.nan),
        np.full((count, 6), np.nan),
        reasons,
        _unknown(evaluator, count, atoms),
    )
    for outcome in stream(evaluator, map(frames.atoms, range(count)), batch_slots):
        place, found = outcome.index, outcome.results
        if found is None:
            reasons[place] = outcome.reason
            continue
        own = slice(frames.offsets[place], frames.offsets[place + 1])
        made.energy[place], made.energies[own], made.forces[own] = found["energy"], found["energies"], found["forces"]
        if "stress" in found:
            made.stress[place] = found["stress"]
        for name, values in made.uncertainties.items():
            if name in found:
                values[own if name in OF_ATOMS else place] = found[name]
    return made


def _unknown(evaluator: Evaluator, count: int, atoms: int) -> dict[str, Any]:
    """Arrays for the uncertainties of a bundle, none of which is known yet."""
    names = () if evaluator.uncertainty is None else evaluator.uncertainty.names
    return {
        name: np.full(atoms, np.nan)
        if name in OF_ATOMS
        else np.full(count, np.nan)
        if OF_STRUCTURE[name] == "float"
        else np.full(count, None, object)
        for name in names
    }
