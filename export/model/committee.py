"""A committee: students of one architecture that were trained apart, whose spread says how sure their mean is."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from painn_deploy.export.errors import ConfigurationError
from painn_deploy.export.model.aggregation import PLAIN, Aggregation
from painn_deploy.export.model.student import Answer, NeighbourGraph, Student

__all__ = ["Committee"]


class Committee(Student):
    """The mean of several students. Its atomic references are the mean of theirs.

    The spread over its members is of their energies with their own references, and of their forces.

    Args:
        students: at least two, of one configuration; each keeps its weights.
        names: of the students, for messages.

    Raises:
        ConfigurationError: there are fewer than two, or they differ in more than their weights.
    """

    def __init__(self, students: Sequence[Student], names: Sequence[str]) -> None:
        if len(students) < 2:
            raise ConfigurationError(
                f"A committee has two students or more, and {', '.join(names) or 'nothing'} was given. One student "
                "is exported without --committee."
            )
        first = students[0]
        for student, name in zip(students[1:], names[1:], strict=True):
            if differing := _differing(first, student):
                raise ConfigurationError(
                    f"{names[0]} and {name} differ in {', '.join(differing)}, and the members of a committee share "
                    "these. Export them apart, or give students that were trained with the same settings."
                )
        rows = min(len(student.atomic_references) for student in students)
        super().__init__(first.configuration, rows)
        del self.embedding  # each member has its own
        self.students = nn.ModuleList(students)
        self.atomic_references = torch.stack([one.atomic_references[:rows] for one in students]).mean(0)

    @property
    def members(self) -> Sequence[Student]:
        """Its students, in the order given."""
        return tuple(cast(Sequence[Student], self.students))

    @property
    def axes(self) -> dict[str, int]:
        """See `Student.axes`."""
        return {"members": len(self.students)}

    @property
    def feature_width(self) -> int:
        """Of each member's features."""
        return self.members[0].feature_width

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and arithmetic."""
        return self.members[0].dtype

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that every member answers for."""
        return tuple(z for z in self.members[0].species if all(z in one.species for one in self.members[1:]))

    def with_radial_table(self, rank: int, intervals: int) -> Student:
        """The same committee, of members with a table of their own each.

        Args:
            rank: see `Student.with_radial_table`.
            intervals: likewise.
        """
        members = [one.with_radial_table(rank, intervals) for one in self.members]
        return Committee(members, [""] * len(members)).eval()

    def answer(self, graph: NeighbourGraph, aggregation: Aggregation = PLAIN) -> Answer:
        """Means over the members.

        Args:
            graph: see `Student.answer`.
            aggregation: likewise.
        """
        answers = [one.answer(graph, aggregation) for one in self.members]
        energies, features = (torch.stack(list(each)).mean(0) for each in zip(*answers, strict=True))
        return Answer(energies, features)

    def wanted_filters(self, distances: Float[Tensor, " distances"]) -> Float[Tensor, "distances filters"]:
        """Every member's filters side by side; see `Student.wanted_filters`."""
        return torch.cat([one.wanted_filters(distances) for one in self.members], -1)


def _differing(one: Student, other: Student) -> list[str]:
    """What two students differ in beside their weights, in the words of a configuration."""
    mine, theirs = one.configuration.as_dict(), other.configuration.as_dict()
    found = [
        f"{key} ({mine.get(key)} and {theirs.get(key)})"
        for key in dict.fromkeys((*mine, *theirs))
        if mine.get(key) != theirs.get(key)
    ]
    shapes: list[dict[str, tuple[int, ...]]] = [
        {name: tuple(tensor.shape) for name, tensor in student.state_dict().items() if not name.startswith("embedding")}
        for student in (one, other)
    ]
    return found or [
        name for name in dict.fromkeys((*shapes[0], *shapes[1])) if shapes[0].get(name) != shapes[1].get(name)
    ]
