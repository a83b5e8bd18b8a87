"""From an engine's outputs to the results that ASE names; sums are in float64."""

import math
from typing import Any

import numpy as np
from ase.symbols import Symbols
from jaxtyping import Float64, Integer

from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphOutputs
from painn_deploy.runtime.structures import FLAT
from painn_deploy.runtime.uncertainty.source import Uncertainty

__all__ = ["as_results", "cell_volume", "cell_volumes", "checked_results", "not_finite", "voigt_stresses"]


def cell_volume(cell: Float64[np.ndarray, "3 3"]) -> float:
    """Å³; 0 where the cell vectors are dependent or not finite, so that there is no stress."""
    return 0.0 if not cell.any() else float(cell_volumes(cell[None])[0])  # of a molecule: most calls end here


def cell_volumes(cells: Float64[np.ndarray, "structures 3 3"]) -> Float64[np.ndarray, " structures"]:
    """The same of many.

    Args:
        cells: rows are cell vectors, Å.
    """
    if not cells.any():
        return np.zeros(len(cells))
    finite = np.isfinite(cells).all((1, 2))
    sane = cells if finite.all() else np.where(finite[:, None, None], cells, 0.0)
    with np.errstate(over="ignore"):  # of cells past all lengths, which nothing is computed for
        volumes: np.ndarray = np.abs(np.linalg.det(sane))
        return np.where(volumes > FLAT * np.linalg.norm(sane, axis=2).prod(1), volumes, 0.0)


def voigt_stresses(
    virials: Float64[np.ndarray, "atoms 3 3"], volumes: Float64[np.ndarray, " atoms"] | float
) -> Float64[np.ndarray, "atoms 6"]:
    """Stress of each atom: its symmetrised virial over the volume, xx, yy, zz, yz, xz, xy, eV/Å³.

    Args:
        virials: eV.
        volumes: of the cell that each atom is in, Å³; one for all of one structure.
    """
    halves = 2 * (volumes[:, None] if isinstance(volumes, np.ndarray) else volumes)
    ones, others = virials.reshape(-1, 9)[:, [0, 4, 8, 5, 2, 1]], virials.reshape(-1, 9)[:, [0, 4, 8, 7, 6, 3]]
    stresses: np.ndarray = (ones + others) / halves
    return stresses


def as_results(
    energies: Float64[np.ndarray, " atoms"],
    forces: Float64[np.ndarray, "atoms 3"],
    virials: Float64[np.ndarray, "atoms 3 3"],
    cell: Float64[np.ndarray, "3 3"],
) -> dict[str, Any]:
    """ASE's results of one structure.

    Args:
        energies: of atoms, atomic references included, eV.
        forces: eV/Å.
        virials: of atoms, eV.
        cell: Å; a stress is there where it has a volume.
    """
    energy = float(energies.sum())
    results: dict[str, Any] = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
    volume = cell_volume(cell)
    if volume > 0:
        results["stresses"] = voigt_stresses(virials, volume)
        results["stress"] = results["stresses"].sum(0)
    return results


def checked_results(
    numbers: Integer[np.ndarray, " atoms"],
    cell: Float64[np.ndarray, "3 3"],
    outputs: GraphOutputs,
    references: Float64[np.ndarray, " atoms"],
    uncertainty: Uncertainty | None = None,
) -> dict[str, Any]:
    """ASE's results of one structure, from what an engine gave for it.

    Args:
        numbers: atomic numbers, for messages.
        cell: Å; a stress is there where it has a volume.
        outputs: rows of its atoms.
        references: atomic reference energies, eV.
        uncertainty: what makes further results of the outputs' `extras`, which it has digested; None for none.

    Raises:
        EngineError: the engine gave NaN or infinity.
    """
    energies = outputs.atomic_energies.astype(np.float64) + references
    forces, virials = outputs.forces.astype(np.float64), outputs.virials.astype(np.float64)
    # a sum in float64 is finite if and only if its terms are: float32 is far from its range
    if not math.isfinite(float(energies.sum()) + float(forces.sum()) + float(virials.sum())):
        raise not_finite(str(Symbols(numbers)))
    results = as_results(energies, forces, virials, cell)
    if uncertainty is not None:
        found = uncertainty.results(numbers, outputs.extras)
        if any(value != value for value in found.values() if isinstance(value, float)):  # NaN alone is not itself
            raise not_finite(str(Symbols(numbers)))
        results |= found
    return results


def not_finite(name: str) -> EngineError:
    """The error of a structure for which an engine gave NaN or infinity."""
    return EngineError(
        f"The engine gave NaN or infinity for {name}. Its geometry is too far from anything the student has learnt, or "
        "overflows the engine's precision."
    )
