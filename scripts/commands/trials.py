"""Which structures an export judges a student's engines on, and which it fits something of them on: never the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from ase import Atoms

from painn_deploy.calibration.accuracy.domain import Domain, find_domain
from painn_deploy.calibration.structures import (
    DEFAULT_NAME,
    check_species,
    default_structures,
    read_known,
    trusted_species,
    warn_of_lacking,
)
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, silent
from painn_deploy.runtime.matrix import local_graphs

__all__ = ["Given", "Trial", "choose_trial"]

Given = str | Path | Sequence[Atoms] | None
"""Structures of the user's: a file of any format that ASE reads, or themselves; None where there are none."""

HELD_OUT = 5
"""Where one set both fits and judges, every structure with this multiple as its number is held out for judging."""

Item = TypeVar("Item")

MOST = 1000
"""Structures of a set that are used; of a longer trajectory as many, evenly spread."""


@dataclass(frozen=True)
class Trial:
    """The structures of an export.

    Attributes:
        domain: that engines are judged on, with what the student gives there.
        fitted: structures of the user's that INT8 and radial tables are fitted on; none where default sets are.
        fitted_on: name of these.
        sizes: atoms and slots of all structures of the user's, which shape profiles are planned for.
    """

    domain: Domain
    fitted: Sequence[Atoms]
    fitted_on: str
    sizes: Sequence[tuple[int, int]]


def choose_trial(
    student: Student,
    structures: Given,
    training: Given,
    *,
    fits: bool,
    in_double: bool = False,
    tell: Tell = silent,
) -> Trial:
    """Choose what an export judges on, and what it fits on.

    Args:
        student: in float64.
        structures: of the user's, to judge on; the default set without.
        training: of the user's, to fit on. Without, all `structures` but every fifth, which alone then judges; without
            either a default set.
        fits: whether anything is fitted.
        in_double: see `find_domain`.
        tell: called with how many structures were evaluated.

    Raises:
        DatasetError: a file cannot be read, a structure holds an element that the student does not know, or no
            structure is left to judge by.
        StructureError: a structure holds NaN, no atoms, or two atoms on one spot; the message gives its number.

    Warns:
        PeriodicityWarning: structures of a set look like crystals and have no periodic direction.
    """
    (given, given_name), (fitted, fitted_on) = _read(structures, student), _read(training, student)
    same = _same(structures, training)
    cutoff = student.configuration.cutoff
    # each set as a whole: an error about a structure gives its number in the file
    sizes = [graph.size for each in ([given] if same else [given, fitted]) for graph in local_graphs(each, cutoff)]
    if structures is None:
        given, given_name = default_structures(trusted_species(student)), DEFAULT_NAME
    judged, named = list(range(len(given))), given_name
    if structures is not None and fits and (training is None or same):
        judged, named, rest, fitted_on = _parted(len(given), given_name)
        fitted = [given[index] for index in rest]
    judged, named = _spread(judged, named)
    brought = structures is not None
    chosen = [given[index] for index in judged]
    domain = find_domain(student, chosen, named, brought=brought, numbers=judged, in_double=in_double, tell=tell)
    return Trial(domain, *_spread(fitted, fitted_on), sizes)


def _read(given: Given, student: Student) -> tuple[list[Atoms], str]:
    if given is None:
        return [], ""
    if isinstance(given, str | Path):
        return read_known(given, student), Path(given).name
    name = f"{len(given)} structures given in Python"
    check_species(given, student.species, name)
    warn_of_lacking(given, student.configuration.cutoff, "those given in Python")
    return list(given), name


def _same(one: Given, other: Given) -> bool:
    if isinstance(one, str | Path) and isinstance(other, str | Path):
        return Path(one).resolve() == Path(other).resolve()
    return one is not None and one is other


def _parted(count: int, name: str) -> tuple[list[int], str, list[int], str]:
    """Every fifth structure, the others, and names for both; fewer than five structures are all in both."""
    numbers = list(range(count))
    if count < HELD_OUT:
        both = f"{name}, whose {count} structures both fit and judge: give {HELD_OUT} or more to hold some out"
        return numbers, both, numbers, both
    judged = numbers[HELD_OUT - 1 :: HELD_OUT]
    rest = [index for index in numbers if index % HELD_OUT != HELD_OUT - 1]
    return (
        *(judged, f"{name}: every fifth of {count} structures, held out from what was fitted"),
        *(rest, f"{name}: {len(rest)} of {count} structures, all but every fifth"),
    )


def _spread(items: Sequence[Item], name: str) -> tuple[list[Item], str]:
    if len(items) <= MOST:
        return list(items), name
    picked = np.linspace(0, len(items) - 1, MOST).astype(int)
    return [items[i] for i in picked], f"{name} ({MOST} of {len(items)}, evenly spread)"
