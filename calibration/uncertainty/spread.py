"""The spread of a committee's engine, held against its members one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.uncertainty.fitting import scale_of
from painn_deploy.export.model.committee import Committee
from painn_deploy.export.progress import Tell, silent
from painn_deploy.runtime.uncertainty.scale import Scale

__all__ = ["ENERGY_TOLERANCE", "FORCE_TOLERANCE", "scale_of_spread", "spread_errors", "spread_of"]

ENERGY_TOLERANCE, FORCE_TOLERANCE = 1e-5, 1e-4
"""eV an atom and eV/Å: medians over structures of the error of an exact engine's spread. A median, since on a few
structures float32 may hold no member itself, which the parity gate sees to."""

Results = Sequence[Mapping[str, Any]]


def scale_of_spread(committee: Committee, frames: Sequence[Atoms], name: str, tell: Tell = silent) -> Scale:
    """What the spread of a committee's forces is measured by: the mean over the atoms of a typical frame.

    Args:
        committee: in float64.
        frames: like those that its members were trained on; nothing is fitted, so that all of them calibrate.
        name: of the frames.
        tell: called with how many a member has evaluated.

    Raises:
        DatasetError: the members agree on half the frames or more.
    """
    spread = [each["forces_uncertainty"].mean() for each in spread_of(committee, frames, tell)]
    return scale_of(np.array(spread), name, len(frames))


def spread_of(committee: Committee, structures: Sequence[Atoms], tell: Tell = silent) -> list[dict[str, Any]]:
    """`energy_uncertainty` and `forces_uncertainty` of structures, of members that are evaluated one after the other.

    Args:
        committee: in float64.
        structures: to evaluate.
        tell: called with how many a member has evaluated.
    """
    members = [reference_results(one, structures, tell) for one in committee.members]
    found = []
    for each in zip(*members, strict=True):
        forces = np.array([results["forces"] for results in each])
        energy = np.array([results["energy"] for results in each])
        found.append(
            {
                "energy_uncertainty": float(energy.std(ddof=1)),
                "forces_uncertainty": np.sqrt(forces.var(0, ddof=1).sum(-1)),
            }
        )
    return found


def spread_errors(got: Results, wanted: Results) -> dict[str, float]:
    """Errors of an engine's spread.

    Args:
        got: results of the engine.
        wanted: see `spread_of`.

    Returns:
        `energy_median` and `energy_largest`, eV an atom, and `forces_median` and `forces_largest`, eV/Å, over
        structures, of whose atoms the worst counts.
    """
    energies, forces = [], []
    for one, other in zip(got, wanted, strict=True):
        of_atoms = np.abs(one["forces_uncertainty"] - other["forces_uncertainty"])
        energies.append(abs(one["energy_uncertainty"] - other["energy_uncertainty"]) / len(of_atoms))
        forces.append(float(of_atoms.max()))
    return {
        "energy_median": float(np.median(energies)),
        "energy_largest": float(np.max(energies)),
        "forces_median": float(np.median(forces)),
        "forces_largest": float(np.max(forces)),
    }
