"""Structures that nothing is judged by, and why: counted and named wherever results are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LeftOut", "summary"]


@dataclass(frozen=True)
class LeftOut:
    """A structure that nothing is judged by.

    Attributes:
        index: of the structure in its set, from 0; None for one of no set.
        structure: its name, or its formula.
        reason: why the student cannot be judged there.
    """

    index: int | None
    structure: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(vars(self))


def summary(left_out: Sequence[LeftOut], most: int = 4) -> list[str]:
    """One line a reason: how many structures were left out for it, and the names of some.

    Args:
        left_out: the structures.
        most: names in a line.
    """
    return list(_summarised(left_out, most))


def _summarised(left_out: Sequence[LeftOut], most: int) -> Iterator[str]:
    for reason in dict.fromkeys(each.reason for each in left_out):
        names = [
            each.structure if each.index is None else f"{each.index} ({each.structure})"
            for each in left_out
            if each.reason == reason
        ]
        others = f" and {len(names) - most} more" if len(names) > most else ""
        yield f"{len(names)} left out, since {reason}: {', '.join(names[:most])}{others}"
