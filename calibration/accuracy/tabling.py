"""The smallest radial table of a student whose measured force error is within a bound."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.calibration.accuracy.double import FORCE_ERROR, jolted_results
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.structures import within_reach
from painn_deploy.export.errors import ExportError
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, prefixed, silent

__all__ = ["LARGEST_ERROR", "Tabled", "find_table"]

LARGEST_ERROR = 2e-5
"""eV/Å, of a force component: below what float32 itself resolves of such a student."""

RANKS = (16, 24, 32, 40, 48, 56, 64, 80, 96)
"""Multiples of eight, which matrix units like."""

INTERVALS = (512, 1024, 2048)


@dataclass(frozen=True)
class Tabled:
    """A radial table that was found, as the manifest holds it.

    Attributes:
        rank: functions of its basis.
        intervals: between knots, from 0 to the cutoff.
        max_force_error: eV/Å, largest component against the student without it, both in float64.
        max_energy_error: eV an atom, likewise.
        bound: eV/Å, the largest force error that was accepted.
        structures: how many both errors were measured on.
        measured_on: name of the structures.
    """

    rank: int
    intervals: int
    max_force_error: float
    max_energy_error: float
    bound: float
    structures: int
    measured_on: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def find_table(
    student: Student,
    structures: Sequence[Atoms],
    measured_on: str,
    bound: float = LARGEST_ERROR,
    wanted: Sequence[Mapping[str, Any]] | None = None,
    tell: Tell = silent,
) -> Tabled:
    """Find the smallest table within the bound: fewest functions first, since each costs every edge a product.

    Structures with forces far beyond chemistry are left out, and those at a cusp, where no table could be near: forces
    there are rounding noise.

    Args:
        student: in float64.
        structures: to measure errors on.
        measured_on: name of the structures.
        bound: eV/Å, largest error of a force component.
        wanted: the student's own results on the structures; computed here if they are not given.
        tell: called with the table that is measured, and on how many structures it was.

    Raises:
        ExportError: no table that we would build is within the bound, or there is no structure to measure on.
    """
    told = prefixed(tell, "evaluating without a radial table: ")
    wanted = reference_results(student, structures, told) if wanted is None else wanted
    kept = within_reach([result["forces"] for result in wanted])
    near, exact = [structures[i] for i in kept], [wanted[i] for i in kept]
    moved = jolted_results(student, near, prefixed(tell, "evaluating without it at geometries hardly apart: "))
    smooth = [_apart(*pair)[0] <= max(bound, FORCE_ERROR) for pair in zip(moved, exact, strict=True)]
    near, exact = [list(itertools.compress(each, smooth)) for each in (near, exact)]
    if not near:
        raise ExportError(
            "There is no structure with forces of chemistry, off a cusp, to measure the radial table's error on."
        )
    filters = student.configuration.hidden_dim * 2  # at least so many; a basis needs no more functions than filters
    forces, energy = float("inf"), float("inf")
    for rank in (rank for rank in RANKS if rank <= filters):
        for intervals in INTERVALS:
            size = f"a radial table of {rank} functions and {intervals} intervals"
            tell(f"fitting {size}")
            tabled = student.with_radial_table(rank, intervals)
            found = reference_results(tabled, near, prefixed(tell, f"measuring {size}: "))
            before = forces
            forces, energy = map(max, zip(*map(_apart, found, exact), strict=True))
            if forces <= bound:
                return Tabled(rank, intervals, forces, energy, bound, len(near), measured_on)
            if intervals > INTERVALS[0] and forces > 0.5 * before:
                break  # finer knots do not help: it is the rank
    raise ExportError(
        f"No radial table of up to {RANKS[-1]} functions keeps forces within {bound:.1e} eV/Å (the last one's are "
        f"{forces:.1e} off). Export without --radial-table, or allow more with --max-table-error."
    )


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """By how much two results differ: the largest of force components, eV/Å, and energies, eV an atom."""
    forces = float(np.abs(one["forces"] - other["forces"]).max())
    return forces, abs(one["energy"] - other["energy"]) / len(other["forces"])
