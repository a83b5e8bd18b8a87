"""An engine's errors broken down: by group of structures, by element, by the size of the force, and by structure."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from painn_deploy.calibration.accuracy.errors import Accuracy, compare, describe, mean_cosine
from painn_deploy.calibration.validation_set import group_of

__all__ = ["Breakdown", "ForceErrors", "StructureErrors", "Worst", "break_down", "per_structure"]

MAGNITUDES = (0.0, 0.1, 1.0, 3.0, 10.0, float("inf"))
"""eV/Å, edges of the bins that atoms fall into by the length of their reference force."""

MOST_WORST = 5


@dataclass(frozen=True)
class ForceErrors:
    """Force errors of some of the atoms.

    Attributes:
        name: of these atoms, such as `C` or `1 to 3 eV/Å`.
        atoms: how many.
        mae: eV/Å, over components.
        rmse: eV/Å, over components.
        max: eV/Å, largest component.
        cosine: mean cosine with the reference force, over atoms pulled by more than 0.1 eV/Å; None without one.
    """

    name: str
    atoms: int
    mae: float
    rmse: float
    max: float
    cosine: float | None


@dataclass(frozen=True)
class StructureErrors:
    """Errors on one structure.

    Attributes:
        structure: its name, or its formula.
        atoms: how many.
        energy: eV, of the reference.
        energy_error_per_atom: eV, result minus reference.
        largest_force: eV/Å, largest component of the reference.
        force_rmse: eV/Å.
        force_max: eV/Å, largest component.
        force_cosine: mean cosine with the reference force, over atoms pulled by more than 0.1 eV/Å; None without one.
        net_force: eV/Å, length of the sum of the result's forces.
    """

    structure: str
    atoms: int
    energy: float
    energy_error_per_atom: float
    largest_force: float
    force_rmse: float
    force_max: float
    force_cosine: float | None
    net_force: float


@dataclass(frozen=True)
class Worst:
    """One of the structures with the largest errors.

    Attributes:
        index: of the structure in the file that it is from, from 0.
        name: of the structure, or its formula.
        group: of the structure.
        energy: error, eV an atom, engine minus reference.
        force_rmse: eV/Å, over components.
        force_max: eV/Å, error of the worst component.
        atom: index and element of the atom with the worst component.
    """

    index: int
    name: str
    group: str
    energy: float
    force_rmse: float
    force_max: float
    atom: str


@dataclass(frozen=True)
class Breakdown:
    """Errors over a set of structures, broken down.

    Attributes:
        groups: errors of each group of structures.
        elements: force errors by element, in the order of Z.
        magnitudes: force errors by the length of the reference force.
        worst: structures with the largest force error, worst first.
    """

    groups: Mapping[str, Accuracy]
    elements: tuple[ForceErrors, ...]
    magnitudes: tuple[ForceErrors, ...]
    worst: tuple[Worst, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the units of the attributes."""
        return asdict(self) | {"groups": {name: accuracy.as_dict() for name, accuracy in self.groups.items()}}


def break_down(
    structures: Sequence[Atoms],
    results: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
    places: Sequence[int] | None = None,
) -> Breakdown:
    """Errors of `results` against `reference`, taken apart.

    Args:
        structures: that both are of.
        results: what `PaiNNCalculator.calculate_batch` returns.
        reference: the same of what is right.
        places: of the structures in the file that they are from; None where they are all of it.
    """
    got = np.concatenate([np.asarray(r["forces"]) for r in results])
    want = np.concatenate([np.asarray(r["forces"]) for r in reference])
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    lengths = np.linalg.norm(want, axis=1)
    elements = [
        _force_errors(chemical_symbols[z], got[numbers == z], want[numbers == z]) for z in sorted(set(numbers.tolist()))
    ]
    magnitudes = []
    for low, high in itertools.pairwise(MAGNITUDES):
        inside = (lengths >= low) & (lengths < high)
        name = f"{low:g} eV/Å and more" if high == MAGNITUDES[-1] else f"{low:g} to {high:g} eV/Å"
        if inside.any():
            magnitudes.append(_force_errors(name, got[inside], want[inside]))
    return Breakdown(
        groups=_groups(structures, results, reference),
        elements=tuple(elements),
        magnitudes=tuple(magnitudes),
        worst=_worst(structures, results, reference, range(len(structures)) if places is None else places),
    )


def per_structure(
    structures: Sequence[Atoms], results: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> list[StructureErrors]:
    """Errors of every structure.

    Args:
        structures: see `break_down`, as for the others.
        results: of the engine.
        reference: what is right.
    """
    rows = []
    for atoms, got, want in zip(structures, results, reference, strict=True):
        forces, wanted = np.asarray(got["forces"]), np.asarray(want["forces"])
        rows.append(
            StructureErrors(
                structure=describe(atoms),
                atoms=len(atoms),
                energy=float(want["energy"]),
                energy_error_per_atom=float(got["energy"] - want["energy"]) / len(atoms),
                largest_force=float(np.abs(wanted).max()),
                force_rmse=float(np.sqrt(np.square(forces - wanted).mean())),
                force_max=float(np.abs(forces - wanted).max()),
                force_cosine=mean_cosine(forces, wanted),
                net_force=float(np.linalg.norm(forces.sum(0))),
            )
        )
    return rows


def _groups(structures: Sequence[Atoms], results: Sequence[Any], reference: Sequence[Any]) -> dict[str, Accuracy]:
    members: dict[str, list[int]] = {}
    for index, atoms in enumerate(structures):
        members.setdefault(group_of(atoms), []).append(index)
    return {
        name: compare([structures[i] for i in some], [results[i] for i in some], [reference[i] for i in some])
        for name, some in members.items()
    }


def _force_errors(name: str, got: np.ndarray, want: np.ndarray) -> ForceErrors:
    errors = got - want
    return ForceErrors(
        name=name,
        atoms=len(errors),
        mae=float(np.abs(errors).mean()),
        rmse=float(np.sqrt(np.square(errors).mean())),
        max=float(np.abs(errors).max()),
        cosine=mean_cosine(got, want),
    )


def _worst(
    structures: Sequence[Atoms], results: Sequence[Any], reference: Sequence[Any], places: Sequence[int]
) -> tuple[Worst, ...]:
    rows = per_structure(structures, results, reference)
    found = []
    for index in sorted(range(len(rows)), key=lambda index: -rows[index].force_max)[:MOST_WORST]:
        atoms, row = structures[index], rows[index]
        errors = np.abs(np.asarray(results[index]["forces"]) - np.asarray(reference[index]["forces"]))
        atom = int(errors.max(1).argmax())
        found.append(
            Worst(
                index=places[index],
                name=row.structure,
                group=group_of(atoms),
                energy=row.energy_error_per_atom,
                force_rmse=row.force_rmse,
                force_max=row.force_max,
                atom=f"{atom} ({atoms.symbols[atom]})",
            )
        )
    return tuple(found)
