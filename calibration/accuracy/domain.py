"""Where a student may be judged: on the user's structures, or else on those default structures on which it is sane.

Most students know one system. On structures that they never saw their energies mean nothing, and float32 cannot hold
them; an engine compared with its student there would be condemned for what is not its fault.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.calibration.accuracy.double import jolted_results
from painn_deploy.calibration.accuracy.errors import describe
from painn_deploy.calibration.accuracy.left_out import LeftOut, summary
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.structures import LARGEST_FORCE
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, prefixed, silent

__all__ = ["Domain", "find_domain", "unsound"]

WORST_BLUR = 1e-2
"""eV/Å; where a student's own forces in float32 are further from float64, float32 says nothing about an engine."""

WORST_ENERGY_BLUR = 1e-3
"""eV an atom, likewise of energies."""

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Domain:
    """Structures that a student is judged on, and what it gives for them.

    Attributes:
        structures: the structures.
        name: of the set that they are of.
        brought: whether the user brought the set; it is a default set otherwise.
        wanted: energy (eV), forces (eV/Å) and stress (eV/Å³) of each, from the student in float64.
        single: the same from the student in PyTorch and float32.
        left_out: the others of the set.
        numbers: of the structures in the file that they are from, from 0.
    """

    structures: Sequence[Atoms]
    name: str
    brought: bool
    wanted: Results
    single: Results
    left_out: tuple[LeftOut, ...] = ()
    numbers: Sequence[int] = ()

    def __len__(self) -> int:
        """How many structures are judged on."""
        return len(self.structures)


def unsound(
    wanted: Mapping[str, Any],
    single: Mapping[str, Any],
    *,
    largest_force: float = LARGEST_FORCE,
    precision: str = "float32",
) -> str:
    """Say why a student cannot be judged on a structure; empty where it can.

    Args:
        wanted: energy (eV) and forces (eV/Å [atoms, 3]) of the student in float64.
        single: the same of the student in float32, or, for an engine in float64, at a geometry that float64 hardly
            tells from it.
        largest_force: eV/Å, of a component; infinite where the user says that the student is for this structure.
        precision: `float32` or `float64`, for the reason.
    """
    forces, blurred = np.asarray(wanted["forces"], float), np.asarray(single["forces"], float)
    if not (np.isfinite(forces).all() and np.isfinite(wanted["energy"])):
        return "the student gives NaN or infinity there"
    if np.abs(forces).max(initial=0.0) > largest_force:
        return f"the student's forces are beyond {largest_force:g} eV/Å there"
    other = "from float64 there" if precision == "float32" else "from those where atoms are 1e-14 Å away"
    if not np.abs(forces - blurred).max(initial=0.0) <= WORST_BLUR:  # NaN is not
        return f"the student's own forces in {precision} are over {1e3 * WORST_BLUR:g} meV/Å {other}"
    if not abs(wanted["energy"] - single["energy"]) <= WORST_ENERGY_BLUR * len(forces):
        return f"the student's own energy in {precision} is over {1e3 * WORST_ENERGY_BLUR:g} meV/atom {other}"
    return ""


def find_domain(
    student: Student,
    structures: Sequence[Atoms],
    name: str,
    *,
    brought: bool,
    numbers: Sequence[int] | None = None,
    in_double: bool = False,
    tell: Tell = silent,
) -> Domain:
    """Evaluate a set of structures with a student, and keep those that it can be judged on.

    Args:
        student: in float64.
        structures: the set.
        name: of the set.
        brought: whether the user brought the set. Large forces are then the user's business.
        numbers: of the structures in the file that they are from, to name them by; their places by default.
        in_double: whether every engine is in `fp64`: then what float64 cannot hold of the student is left out, and what
            float32 cannot hold is no matter.
        tell: called with how many were evaluated.

    Raises:
        DatasetError: nothing is left to judge by.
    """
    wanted = reference_results(student, structures, prefixed(tell, "evaluating with the student in float64: "))
    told = prefixed(tell, "evaluating with the student in float32: ")
    single = reference_results(copy.deepcopy(student).float(), structures, told)
    told = prefixed(tell, "evaluating with the student in float64 at geometries hardly apart: ")
    blurred, precision = (jolted_results(student, structures, told), "float64") if in_double else (single, "float32")
    largest_force = float("inf") if brought else LARGEST_FORCE
    reasons = [
        unsound(*pair, largest_force=largest_force, precision=precision) for pair in zip(wanted, blurred, strict=True)
    ]
    places = range(len(structures)) if numbers is None else numbers
    left_out = tuple(
        LeftOut(place, describe(atoms), reason)
        for place, atoms, reason in zip(places, structures, reasons, strict=True)
        if reason
    )
    kept = [index for index, reason in enumerate(reasons) if not reason]
    if not kept:
        remedy = (
            "Give structures like those that the student was trained on."
            if brought
            else "Give structures like those that it was trained on with --structures."
        )
        why = "; ".join(summary(left_out)) or "it holds none"
        raise DatasetError(f"There is no structure of {name} to judge the student by: {why}. {remedy}")
    return Domain(
        structures=[structures[index] for index in kept],
        name=name,
        brought=brought,
        wanted=[wanted[index] for index in kept],
        single=[single[index] for index in kept],
        left_out=left_out,
        numbers=[places[index] for index in kept],
    )
