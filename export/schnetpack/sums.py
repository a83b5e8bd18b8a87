"""A result of a SchNetPack model as a sum of what its output modules give."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

__all__ = ["Sum"]

ROUNDED = 1e-6
"""Of a factor, by which two that are meant to be the same may differ: one may be in float32."""


@dataclasses.dataclass(frozen=True)
class Sum:
    """A result in terms of output modules.

    Attributes:
        of: `energy`, or `forces` or `stress` as derivatives of one.
        terms: how often each output module is in it, by its place.
        references: added for each atom of an element, float64 [elements], or [1] if it is the same for all; None where
            nothing is.
        beyond: why it cannot be deployed; None if it can.
    """

    of: str
    terms: Mapping[int, float]
    references: Tensor | None = None
    beyond: str | None = None

    def scaled(self, factor: float) -> "Sum":
        """The same, multiplied."""
        terms = {place: factor * times for place, times in self.terms.items()}
        references = None if self.references is None else factor * self.references
        return dataclasses.replace(self, terms=terms, references=references)

    def plus(self, other: "Sum") -> "Sum":
        """The sum of both."""
        terms = {p: self.terms.get(p, 0.0) + other.terms.get(p, 0.0) for p in (*self.terms, *other.terms)}
        return Sum(self.of, terms, _added(self.references, other.references), self.beyond or other.beyond)

    def offset(self, added: Tensor) -> "Sum":
        """The same with energies of elements, see `references`."""
        return dataclasses.replace(self, references=_added(self.references, added))

    def differentiated(self, of: str) -> "Sum":
        """Its derivative: what is added for elements has none."""
        return dataclasses.replace(self, of=of, references=None)

    def without(self, why: str) -> "Sum":
        """The same, which cannot be deployed any more."""
        return dataclasses.replace(self, beyond=self.beyond or why)

    def same(self, other: "Sum") -> bool:
        """Whether both have the same terms, as often."""
        pairs = [(self.terms.get(p, 0.0), other.terms.get(p, 0.0)) for p in self.terms.keys() | other.terms.keys()]
        return all(abs(one - two) <= ROUNDED * abs(two) for one, two in pairs)


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two rows for elements, as long as the shorter one; a single number is for all elements."""
    if one is None or other is None:
        return one if other is None else other
    if 1 in (len(one), len(other)):
        return one + other
    length = min(len(one), len(other))
    return one[:length] + other[:length]
