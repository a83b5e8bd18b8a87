"""Shape profiles: the ranges of atoms and slots that an engine is built for, chosen from data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from painn_deploy.export.errors import ShapeError

__all__ = ["DEFAULT_PROFILE", "Profile", "plan_profile"]

HEADROOM = 1.25
"""How far beyond the largest structure given a profile reaches: MD breathes."""


@dataclass(frozen=True)
class Profile:
    """Least, most likely and largest number of atoms and of slots, padding and batching included.

    Attributes:
        atoms: (min, opt, max).
        slots: (min, opt, max).
    """

    atoms: tuple[int, int, int]
    slots: tuple[int, int, int]

    @classmethod
    def from_mapping(cls, values: Any) -> "Profile":
        """From a manifest.

        Raises:
            ShapeError: it is not two rising triples.
        """
        axes = [values.get(name) for name in ("atoms", "slots")] if isinstance(values, Mapping) else []
        triples = [tuple(axis) for axis in axes if isinstance(axis, list | tuple)]
        whole = all(type(size) is int for triple in triples for size in triple)
        if [*map(len, triples)] != [3, 3] or not whole or not all(1 <= a <= b <= c for a, b, c in triples):
            raise ShapeError(f"{str(values)[:200]} is not a shape profile; export the bundle again.")
        atoms, slots = triples
        return cls(atoms, slots)

    def as_dict(self) -> dict[str, list[int]]:
        """Plain JSON types, for the manifest."""
        return {name: list(triple) for name, triple in asdict(self).items()}

    def check(self, atoms: int, slots: int) -> None:
        """Refuse a size outside the profile.

        Args:
            atoms: rows.
            slots: columns.

        Raises:
            ShapeError: it says how to rebuild.
        """
        if not (self.atoms[0] <= atoms <= self.atoms[2] and self.slots[0] <= slots <= self.slots[2]):
            raise ShapeError(
                f"{atoms} atoms x {slots} slots lie outside this engine's profile of up to {self.atoms[2]} atoms x "
                f"{self.slots[2]} slots. Export it again with --structures FILE, a file that holds structures as "
                "large and as dense as these."
            )


DEFAULT_PROFILE = Profile(atoms=(1, 64, 4096), slots=(1, 16, 96))
"""Molecules to small boxes of a liquid; 96 slots hold every neighbour within 5 Å in diamond, the densest crystal."""


def plan_profile(sizes: Sequence[tuple[int, int]]) -> Profile:
    """A profile that serves structures like these, alone and in batches.

    Args:
        sizes: atoms and slots of each; none gives the default.
    """
    if not sizes:
        return DEFAULT_PROFILE
    atoms, slots = (sorted(column) for column in zip(*sizes, strict=True))
    most_slots = 8 * -(-int(HEADROOM * slots[-1]) // 8)
    most_atoms = max(DEFAULT_PROFILE.atoms[2], int(HEADROOM * atoms[-1]))
    return Profile((1, atoms[len(atoms) // 2], most_atoms), (1, slots[len(slots) // 2], most_slots))
