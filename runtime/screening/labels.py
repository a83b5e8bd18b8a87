"""What a row brings under the names of results: replaced by a screening's own, or kept under another name, and told."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import per_config_properties

from painn_deploy.runtime.screening.carrying import ERROR, RESULTS, free
from painn_deploy.runtime.screening.remarks import RENAMED, REPLACED, Remarks, one_line
from painn_deploy.runtime.uncertainty.scale import OF_ATOMS, OF_STRUCTURE

__all__ = ["OURS", "as_label", "labels_of", "merged", "result_row", "with_labels"]

GIVEN = (*RESULTS, "relax_steps", "relax_converged", *OF_STRUCTURE)
"""Of an engine's results, those that are written; of atoms `OF_ATOMS` beside the positions, too."""

OURS = (*GIVEN, *OF_ATOMS, "free_energy", "energies", "stresses", ERROR)
"""Names that in an output are a screening's own, wherever they stood in the input."""


def with_labels(atoms: Atoms, labels: Mapping[str, Any]) -> None:
    """Give atoms labels that an input brought, as results of a calculator; whatever they hold.

    Args:
        atoms: changed in place.
        labels: by ASE's names.
    """
    if labels:
        atoms.calc = SinglePointCalculator(atoms)
        atoms.calc.results = dict(labels)


def as_label(value: Any) -> Any:
    """A list of numbers as an array; anything else as it is."""
    try:
        return np.array(value, float) if isinstance(value, list) else value
    except (TypeError, ValueError):
        return value


def labels_of(atoms: Atoms | None) -> dict[str, Any]:
    """The labels that an input brought; see `with_labels`."""
    found = None if atoms is None or atoms.calc is None else atoms.calc.results
    return {name: value for name, value in (found or {}).items() if value is not None}


def merged(under: Mapping[str, Any], over: Mapping[str, Any], index: int, remarks: Remarks) -> dict[str, Any]:
    """Notes from two places of a row; of two that differ under one name, the first is kept under another.

    Args:
        under: notes that give way.
        over: notes that keep their names.
        index: of the row.
        remarks: names that are changed are counted there.
    """
    made = {**under, **over}
    for name in [name for name in under if name in over and not _same(under[name], over[name])]:
        made[own := free(f"input_{name}", made)] = under[name]
        remarks.add(RENAMED, index, f"one of two {name!r} is {own!r}")
    return made


def _same(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and bool(np.all(one == other))
    except Exception:  # an `==` of any class
        return False


def result_row(
    atoms: Atoms | None,
    results: Mapping[str, Any] | None,
    reason: str,
    *,
    labels: Mapping[str, Any] | None = None,
    index: int = 0,
    remarks: Remarks | None = None,
) -> Atoms:
    """A row of the output: the structure with its `info`, and results in place of those that it brought.

    Args:
        atoms: the structure; None where the input's row could not be read.
        results: as `PaiNNCalculator.calculate_batch` gives them, or None.
        reason: why there are none.
        labels: that the input brought for this row; those that have no result in their place are kept.
        index: of the row in the input.
        remarks: labels that are replaced, or kept under another name, are counted there.
    """
    remarks = Remarks() if remarks is None else remarks
    row = Atoms() if atoms is None else atoms.copy()
    row.calc = None
    row.info = {} if atoms is None else dict(atoms.info)
    if isinstance(row.info.get("id"), float) and row.info["id"] != row.info["id"]:
        del row.info["id"]  # what tables give where there is none
    given = [(name, row.info.pop(name)) for name in OURS if name in row.info]
    given += [(name, row.arrays.pop(name)) for name in OURS if name in row.arrays]
    replaced = []
    for name, value in [*(labels or {}).items(), *given]:
        if name in (*GIVEN, *OF_ATOMS) and name in (results or {}) and (name in OF_STRUCTURE or _is_number(value)):
            replaced.append(name)
        else:
            _keep(row, name, value, index, remarks)
    if replaced:
        remarks.add(REPLACED, index, ", ".join(sorted(set(replaced))))
    if results is None:
        row.info[ERROR] = one_line(reason)
        return row
    row.calc = SinglePointCalculator(row, **{name: results[name] for name in RESULTS if name in results})
    row.info |= {name: results[name] for name in GIVEN[len(RESULTS) :] if name in results}
    for name in OF_ATOMS:
        if name in results:
            row.set_array(name, results[name])
    return row


def _is_number(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except Exception:  # uneven lists, and whatever else a row may bring
        return False


def _keep(row: Atoms, name: str, value: Any, index: int, remarks: Remarks) -> None:
    of_atoms = name in all_properties and name not in per_config_properties
    fits = of_atoms and isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == len(row)
    held: Any = row.arrays if fits else row.info
    held[own := free(f"input_{name}", held)] = value
    remarks.add(RENAMED, index, f"{name!r} is {own!r}")
