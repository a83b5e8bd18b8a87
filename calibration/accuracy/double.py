"""What float64 resolves of a student: where symmetry, large forces or a far origin leave less than 1e-9 eV/Å."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.calibration.accuracy.errors import compare
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, silent

__all__ = ["BLUR_FACTOR", "FORCE_ERROR", "JOLT", "RELATIVE", "allowed_error", "jolted", "jolted_results"]

JOLT = 1e-14
"""Å, about what float64 resolves of a bond near the origin."""

RELATIVE = 1e-13
"""Of the largest value: what the order of sums may cost in float64, some hundred roundings."""

BLUR_FACTOR = 10
"""If the student itself, in PyTorch and float32, is further than a tenth of a tolerance from float64, this multiple of
its error, there or at geometries that float32 hardly tells from it, replaces the tolerance: float32 resolves no more
where symmetry makes a vector norm vanish, or where forces are huge. Of an engine in `fp64`, which computes as its
student does, the student at geometries that float64 hardly tells from it stands for that error."""

FORCE_ERROR = 1e-8
"""eV/Å, RMSE of an engine in `fp64`; its gate allows a tenth of it in any component where the student is smooth."""


def jolted(atoms: Atoms, rng: np.random.Generator, jolt: float = JOLT) -> Atoms:
    """A copy that a type of numbers hardly tells from a structure.

    Args:
        atoms: the structure.
        rng: draws where to each atom goes.
        jolt: Å, about how far; where positions have fewer digits left, as far as their last one.
    """
    moved = atoms.copy()
    moved.positions += rng.normal(0, np.maximum(jolt, np.spacing(np.abs(moved.positions))))
    return moved


def jolted_results(student: Student, structures: Sequence[Atoms], tell: Tell = silent) -> list[dict[str, Any]]:
    """Results of a student at geometries that float64 hardly tells from those given, see `reference_results`.

    Args:
        student: in float64.
        structures: to evaluate near.
        tell: called with how many are done.
    """
    rng = np.random.default_rng(0)
    return reference_results(student, [jolted(atoms, rng) for atoms in structures], tell)


def allowed_error(student: Student, structures: Sequence[Atoms], wanted: Sequence[Mapping[str, Any]]) -> float:
    """The largest RMSE of forces, eV/Å, of an engine in `fp64` that computes as its student does.

    Args:
        student: in float64.
        structures: that the engine is measured on.
        wanted: what the student gives for them.
    """
    blur = compare(structures, jolted_results(student, structures), wanted).force_rmse
    largest = max((float(np.abs(result["forces"]).max(initial=0.0)) for result in wanted), default=0.0)
    return max(FORCE_ERROR, BLUR_FACTOR * blur, RELATIVE * largest)
