"""Remarks: what a screening keeps otherwise than it came, counted by kind, with an example of each."""

from collections.abc import Mapping
from typing import Any

__all__ = [
    "AS_TEXT",
    "CELL_UNREAD",
    "CONSTRAINT",
    "ENDLESS",
    "IN_INFO",
    "LATIN",
    "LEFT_OUT",
    "NOT_NAMED",
    "NO_ELEMENT",
    "RENAMED",
    "REPLACED",
    "UNCERTAIN",
    "UNREAD",
    "UNRELAXED",
    "UNREPEATED",
    "Remarks",
    "one_line",
    "remarks_from",
]

RENAMED = "kept under another name"
AS_TEXT = "kept as text, or as a plain list"
IN_INFO = "columns of atoms kept beside the row"
LEFT_OUT = "left out"
CONSTRAINT = "constraints left out"
NO_ELEMENT = "atomic numbers of no element, kept as a list"
UNREAD = "labels or notes that cannot be read"
LATIN = "lines that are not UTF-8, read as Latin-1"
CELL_UNREAD = "comments that seem to name a cell, which was not read"
UNREPEATED = "cells without periodic directions that bring images within the cutoff, computed as molecules in vacuum"
ENDLESS = "last lines without an end: where a file was cut short in one, its last number is half of what it was"
NOT_NAMED = "columns of atoms that no Properties name, which were not read"
UNCERTAIN = "structures above --flag-above"
UNRELAXED = "structures not at rest when relaxation had done its last step"
REPLACED = "labels that the input brought were replaced"

MOST_LETTERS = 600
"""Of a reason or an example: enough for any of ours, and a bound for what an input may put into one."""


def one_line(text: str) -> str:
    """A text as one line of bounded length, what cannot be printed escaped: for a terminal, a log, a row."""
    short = text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}..."
    if short.isprintable():
        return short
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


class Remarks:
    """What was kept otherwise than it came: how often for each kind, and the first example.

    Args:
        kinds: count and example by kind, as `as_dict` gives them.
    """

    def __init__(self, kinds: Mapping[str, tuple[int, str]] | None = None) -> None:
        self._kinds: dict[str, tuple[int, str]] = dict(kinds or {})

    def add(self, kind: str, index: int, example: str) -> None:
        """Count one.

        Args:
            kind: a constant of this module.
            index: of the row.
            example: what became of what; only the first of a kind is kept.
        """
        count, first = self._kinds.get(kind, (0, ""))
        self._kinds[kind] = (count + 1, first or one_line(f"row {index}: {example}"))

    def merge(self, kinds: Mapping[str, tuple[int, str]]) -> None:
        """Add the counts of later rows; examples of the earlier stay."""
        for kind, (count, example) in kinds.items():
            before, first = self._kinds.get(kind, (0, ""))
            self._kinds[kind] = (before + count, first or example)

    def as_dict(self) -> dict[str, tuple[int, str]]:
        """Count and example by kind."""
        return dict(self._kinds)


def remarks_from(value: Any) -> dict[str, tuple[int, str]]:
    """Counts and examples as they were written to JSON.

    Raises:
        ValueError: they are nothing of the kind.
    """
    if not isinstance(value, dict):
        raise ValueError("remarks are no object")
    made = {}
    for kind, pair in value.items():
        match pair:
            case [int(count), str(example)]:
                made[str(kind)] = (count, example)
            case _:
                raise ValueError("a remark is no pair of a count and an example")
    return made
