"""Memory, descriptors, threads and maps of this process, and whether they grow."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NOISE", "Growth", "growth", "usage"]

NOISE = 4.0
"""MiB that an allocator may keep more of in the second half of a run without anything being wrong."""

PROC = Path("/proc/self")


def usage() -> dict[str, float]:
    """Resident memory (MiB) after a collection of garbage, open files, threads and memory maps of this process."""
    gc.collect()
    status = dict(line.split(":", 1) for line in (PROC / "status").read_text().splitlines())
    return {
        "rss": int(status["VmRSS"].split()[0]) / 1024,
        "fds": sum(1 for _ in (PROC / "fd").iterdir()) - 1,  # one is of this very look
        "threads": int(status["Threads"]),
        "maps": len((PROC / "maps").read_text().splitlines()),
    }


@dataclass(frozen=True)
class Growth:
    """What a run left behind, from its samples.

    Attributes:
        count: calls, cycles or seconds of the last sample.
        processes: that took part: one more for each time that the run was cut off.
        rss: MiB, first, last and largest.
        slope: MiB for each `unit`, over the second half.
        unit: of the slope.
        grown: MiB, the slope over the second half as a whole.
        fds, threads, maps: how many more at the end than in the middle, within one process.
    """

    count: float
    processes: int
    rss: tuple[float, float, float]
    slope: float
    unit: float
    grown: float
    fds: int
    threads: int
    maps: int

    def problems(self, bound: float, most_maps: int) -> list[str]:
        """What is not flat.

        Args:
            bound: MiB for each unit.
            most_maps: that may be added in the second half.
        """
        found = []
        if self.slope > bound and self.grown > NOISE:
            found.append(f"memory grows by {self.slope:.2f} MiB per {self.unit:,g}, and {bound:g} may be")
        if self.fds > 0:
            found.append(f"{self.fds} more files are open at the end than in the middle")
        if self.threads > 0:
            found.append(f"{self.threads} more threads run at the end than in the middle")
        if self.maps > most_maps:
            found.append(f"{self.maps} more memory maps at the end than in the middle, and {most_maps} may be")
        return found

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def growth(samples: Sequence[dict[str, Any]], unit: float) -> Growth:
    """Fit a line to the second half of a run; each process that took part has an intercept of its own.

    Args:
        samples: of `usage`, with `at` (how far the run was) and `process` (its number).
        unit: that the slope is for.
    """
    last, total = samples[-1], float(samples[-1]["at"])
    half = [sample for sample in samples if sample["at"] >= total / 2]
    runs = {number: [s for s in half if s["process"] == number] for number in sorted({s["process"] for s in half})}
    begun = min(sample["process"] for sample in samples)
    # what a process takes to get going is no growth
    runs = {number: run if number == begun else run[1:] for number, run in runs.items() if len(run) > 2}
    if not runs:
        raise ValueError("there are too few samples of one process in the second half of the run")
    rows = [(index, s["at"], s["rss"]) for index, run in enumerate(runs.values()) for s in run]
    matrix = np.zeros((len(rows), len(runs) + 1))
    for row, (index, at, _) in enumerate(rows):
        matrix[row, 0], matrix[row, 1 + index] = at / unit, 1.0
    solution, *_ = np.linalg.lstsq(matrix, np.array([rss for *_, rss in rows]), rcond=None)
    rss = [sample["rss"] for sample in samples]

    def more(name: str) -> int:
        return max(int(run[-1][name] - run[0][name]) for run in runs.values())

    return Growth(
        total,
        len({sample["process"] for sample in samples}),
        (rss[0], float(last["rss"]), max(rss)),
        float(solution[0]),
        unit,
        float(solution[0]) * (total / 2) / unit,
        more("fds"),
        more("threads"),
        more("maps"),
    )
