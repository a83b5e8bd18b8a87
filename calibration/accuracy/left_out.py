"""Structures that nothing is judged by, and why: counted and named wherever results are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LeftOut", "named", "summary"]


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


def named(structures: Sequence[LeftOut], most: int) -> str:
    """Numbers and names of the first structures, and how many more there are.

    Args:
        structures: of one kind.
        most: names.
    """
    names = [each.structure if each.index is None else f"{each.index} ({each.structure})" for each in structures[:most]]
    return ", ".join(names) + (f" and {len(structures) - most} more" if len(structures) > most else "")


def summary(left_out: Sequence[LeftOut], most: int = 4) -> list[str]:
    """One line a reason: how many structures were left out for it, and the names of some.

    Args:
        left_out: the structures.
        most: names in a line.
    """
    reasons: dict[str, list[LeftOut]] = {}
    for each in left_out:
        reasons.setdefault(each.reason, []).append(each)
    return [f"{len(some)} left out, since {reason}: {named(some, most)}" for reason, some in reasons.items()]
