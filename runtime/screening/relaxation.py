"""Relaxation of many structures at once: each has an ASE optimiser of its own, and all share the engine's batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import LBFGS

from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.streaming import Outcome
from painn_deploy.runtime.structures import check_structure

__all__ = ["Relaxation", "relax"]


@dataclass(frozen=True)
class Relaxation:
    """When to stop.

    Attributes:
        fmax: eV/Å; the largest force on any atom that counts as relaxed.
        steps: at most so many.
    """

    fmax: float = 0.05
    steps: int = 500


@dataclass
class _Path:
    """One structure on its way down."""

    index: int
    atoms: Atoms
    optimiser: Any = None
    steps: int = 0
    results: dict[str, Any] = field(default_factory=dict)


def relax(
    evaluator: Evaluator, structures: Sequence[Atoms | StructureError], how: Relaxation, batch_slots: int
) -> list[tuple[Atoms | None, Outcome]]:
    """Move atoms (the cell is kept) until forces are small, constraints obeyed, with L-BFGS.

    Args:
        evaluator: the engine.
        structures: not touched; an error in place of one is its outcome.
        how: when to stop.
        batch_slots: atoms x slots of a batch.

    Returns:
        For each structure, in order, its last geometry and an outcome whose results are those of that geometry, with
        `relax_steps` (int) and `relax_converged` (bool); None and the reason where there is no answer.

    Raises:
        EngineError: the engine failed for every structure of a batch.
    """
    done: list[tuple[Atoms | None, Outcome]] = []
    paths = []
    for index, item in enumerate(structures):
        try:
            if not isinstance(item, Atoms):
                raise item
            sound, atoms = check_structure(item), item.copy()
        except StructureError as error:
            done.append((None, Outcome(index, None, str(error))))
            continue
        atoms.info, atoms.arrays["positions"] = (
            dict(item.info),
            sound.positions.copy(),
        )  # a step is no rounding to others
        done.append((None, Outcome(index, None)))
        paths.append(_Path(index, atoms))
    while paths:
        paths = _advance(evaluator, paths, how, batch_slots, done)
    return done


def _advance(
    evaluator: Evaluator,
    paths: Sequence[_Path],
    how: Relaxation,
    batch_slots: int,
    done: list[tuple[Atoms | None, Outcome]],
) -> list[_Path]:
    """One step of all; those that are at their end are noted in `done`, the others come back."""
    left = []
    answers = evaluator.answer_each([path.atoms for path in paths], batch_slots)
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, Exception):
            done[path.index] = (None, Outcome(path.index, None, _reason(path, str(answer))))
            continue
        path.atoms.calc = SinglePointCalculator(path.atoms, energy=answer["energy"], forces=answer["forces"])
        converged = float(np.linalg.norm(path.atoms.get_forces(), axis=1).max()) <= how.fmax
        if converged or path.steps == how.steps:
            answer |= {"relax_steps": path.steps, "relax_converged": converged}
            path.atoms.calc = None
            done[path.index] = (path.atoms, Outcome(path.index, answer))
            continue
        if path.optimiser is None:
            path.optimiser = LBFGS(path.atoms, logfile=None)
        path.optimiser.step()
        path.steps += 1
        left.append(path)
    return left


def _reason(path: _Path, reason: str) -> str:
    return f"After {path.steps} steps of relaxation: {reason}" if path.steps else reason
