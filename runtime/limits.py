"""How large a structure an engine can take: the shape profiles it was built for, and this machine's memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from painn_deploy.engines.profiles import Profile
from painn_deploy.export.errors import ShapeError

__all__ = ["SizeLimits", "available_memory"]

BYTES = 120
"""Of memory for each slot and feature on a CPU; ONNX Runtime was measured to take 127 to 130 on crystals."""

UNCHECKED = 65_536
"""Atoms x slots that need under a gigabyte; asking the system for its memory would take longer than a small run."""


class SizeLimits:
    """Sizes that an engine takes; what is refused here would fail later with a worse message, or end the process.

    Args:
        profiles: of the bundle; empty for an engine that serves any size.
        features: of the student's widest layer.
        on_cpu: whether the engine works in main memory.
    """

    def __init__(self, profiles: Sequence[Mapping[str, Any]], features: int, on_cpu: bool) -> None:
        self._profiles = [Profile.from_mapping(profile) for profile in profiles]
        self._bytes = BYTES * features if on_cpu else 0
        self._served = UNCHECKED
        self.most_atoms = max((profile.atoms[2] for profile in self._profiles), default=None)

    def check(self, atoms: int, slots: int) -> None:
        """Refuse a structure that no batch can hold.

        Args:
            atoms: of the structure.
            slots: neighbours of its busiest atom.

        Raises:
            ShapeError: it lies outside every profile, or needs more memory than there is.
        """
        for number, profile in enumerate(self._profiles, start=1):
            # batches and padding raise a size to a profile's least, so only its largest bounds a structure
            if atoms <= profile.atoms[2] and slots <= profile.slots[2]:
                break
            if number == len(self._profiles):
                profile.check(atoms, slots)
        size = atoms * slots
        if size <= self._served or not self._bytes:
            return
        available = available_memory()
        if available is not None and size * self._bytes > available:
            raise ShapeError(
                f"{atoms} atoms with up to {slots} neighbours each need about {size * self._bytes / 2**30:.1f} GiB, "
                f"and {available / 2**30:.1f} GiB are free. Use a machine with more memory, or a smaller cell."
            )
        self._served = size  # what an engine has had it keeps, so that it would be counted twice


def available_memory() -> int | None:
    """Bytes that can be had without swapping, as Linux estimates them; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
