"""How large a structure an engine can take: the shape profiles it was built for, and this machine's memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from painn_deploy.engines.profiles import Profile
from painn_deploy.export.errors import ShapeError

try:
    import resource
except ModuleNotFoundError:  # a system without such limits
    resource = None  # type: ignore[assignment]

__all__ = ["SizeLimits", "available_memory", "too_many_neighbours"]

BYTES = 120
"""Of memory for each slot and feature on a CPU; ONNX Runtime was measured to take 127 to 130 on crystals."""

UNCHECKED = 65_536
"""Atoms x slots that need under a gigabyte; asking the system for its memory would take longer than a small run."""


UNLIMITED = 2**60
"""Bytes; a control group of the first version has a limit about as large as this where it has none."""


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

    def surely(
        self, atoms: Int64[np.ndarray, " structures"], slots: Int64[np.ndarray, " structures"]
    ) -> Bool[np.ndarray, " structures"]:
        """Which structures `check` would let pass without a question to the system.

        Args:
            atoms: of each structure.
            slots: neighbours of each one's busiest atom.
        """
        fits = np.full(len(atoms), not self._profiles)
        for profile in self._profiles:
            fits |= (atoms <= profile.atoms[2]) & (slots <= profile.slots[2])
        return fits & (atoms * slots <= self._served) if self._bytes else fits

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
                f"{atoms} atoms with up to {slots} neighbours each need about {size * self._bytes / 2**30:.3g} GiB, "
                f"and {available / 2**30:.3g} GiB are free. Use a machine, or a limit, with more memory, or a smaller "
                "structure."
            )
        self._served = size  # what an engine has had it keeps, so that it would be counted twice


def too_many_neighbours(atoms: int, error: MemoryError) -> ShapeError:
    """The error of a structure whose neighbours take more memory than there is.

    Args:
        atoms: of the structure.
        error: that finding them met.
    """
    return ShapeError(
        f"The neighbours of {atoms} atoms need more memory than there is ({str(error) or 'it is full'}). Use a machine "
        "with more memory, or a smaller structure."
    )


def available_memory() -> int | None:
    """Bytes that this process can have without swapping, or being stopped for them; None where no system says.

    It is the least of what Linux estimates for the machine, what the control groups that the process is in have left,
    as a scheduler or a container sets them, and what its own limits (`ulimit -v`, `ulimit -d`) leave.
    """
    return min((left for left in (_of_machine(), _of_groups(), *_of_process()) if left is not None), default=None)


def _of_machine() -> int | None:
    lines = _text(Path("/proc/meminfo")).splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _of_groups(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The least that any control group of this process, or one above it, has left; of either version."""
    left = []
    for line in _text(groups).splitlines():
        _, controllers, inside = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            base, files = root, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            base, files = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        folder = base / inside.strip("/")
        # in a container the path may be that of the host, where only the root can be seen
        places = [place for place in (folder, *folder.parents) if place.is_relative_to(base)]
        left += [_group_left(place, *files) for place in places]
    return min((one for one in left if one is not None), default=None)


def _group_left(folder: Path, most: str, used: str, prefix: str) -> int | None:
    """Bytes that one group has left; its cache of files gives way."""
    limit, usage = _text(folder / most).strip(), _text(folder / used).strip()
    if not limit.isdigit() or not usage.isdigit() or int(limit) >= UNLIMITED:
        return None
    facts = dict(line.split(None, 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    cached = [facts.get(f"{prefix}{kind}_file", "0").strip() for kind in ("active", "inactive")]
    return max(int(limit) - int(usage) + sum(int(size) for size in cached if size.isdigit()), 0)


def _of_process() -> list[int]:
    """Bytes that this process's own limits leave."""
    pages, left = _text(Path("/proc/self/statm")).split(), []
    kinds = () if resource is None else ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5))
    for kind, column in kinds:
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and len(pages) > column:
            left.append(max(limit - int(pages[column]) * resource.getpagesize(), 0))
    return left


def _text(path: Path) -> str:
    """Of a file that the system keeps; empty where it keeps none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
