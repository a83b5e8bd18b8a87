"""Where the time of a calculation goes, by phase."""

import time

__all__ = ["PHASES", "Timings"]

PHASES = ("ase", "neighbours", "packing", "transfer", "engine", "results")
"""ASE's own bookkeeping; the search or its update; batches put together; copies from and to tensors of other libraries
(an engine's own copies are part of its time); the engine; results taken apart."""


class _Phase:
    """One phase, entered again and again; phases of one name do not nest."""

    def __init__(self, timings: "Timings", name: str) -> None:
        self._timings, self._name, self._started = timings, name, 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._timings.seconds[self._name] += time.perf_counter() - self._started


class Timings:
    """Seconds spent in each phase since the start or the last `reset`, and how many calculations there were."""

    def __init__(self) -> None:
        self.reset()
        self._phases = {name: _Phase(self, name) for name in PHASES}

    def reset(self) -> None:
        """Start again from zero."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.calculations = 0

    def phase(self, name: str) -> "_Phase":
        """Add the time of a block to a phase: `with timings.phase("engine"): ...`."""
        return self._phases[name]

    def as_dict(self) -> dict[str, float]:
        """Milliseconds a calculation, by phase, with their sum as `total`."""
        count = max(self.calculations, 1)
        spent = {name: 1e3 * seconds / count for name, seconds in self.seconds.items()}
        return {**spent, "total": sum(spent.values())}
