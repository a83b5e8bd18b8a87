"""Where the time of a calculation goes, by phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PHASES", "Timings"]

PHASES = ("neighbours", "packing", "transfer", "engine", "results", "ase")


class Timings:
    """Seconds spent in each phase since the start or the last `reset`, and how many calculations there were."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.calculations = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def as_dict(self) -> dict[str, float]:
        """Milliseconds a calculation, by phase, with their sum as `total`."""
        count = max(self.calculations, 1)
        spent = {name: 1e3 * seconds / count for name, seconds in self.seconds.items()}
        return {**spent, "total": sum(spent.values())}
