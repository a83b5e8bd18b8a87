"""What the times of a run depend on, and the options by which the studies of speed are told of it."""

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from painn_deploy.calibration.timing import Pace
from painn_deploy.engines.gpu.machine import machine
from painn_deploy.export.versions import installed, onnxruntimes
from painn_deploy.scripts.commands.outputs import made_table, write_result

__all__ = [
    "STUDENT",
    "Checkpoint",
    "Output",
    "ProcessorTime",
    "Study",
    "Threads",
    "busy_cores",
    "compared",
    "conditions",
]

BUSY = 0.1
"""Above this many cores used by other programs, times are reported as unreliable."""

REST = 0.5
LIBRARIES = ("torch", "onnxruntime", "numpy", "ase", "vesin")
STUDENT = "student:base"
"""What is measured where no checkpoint is named."""

Checkpoint = Annotated[str, typer.Argument(help="A .safetensors or .pt file, or a student that ships.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of the CPU; each library's own choice otherwise.")]
ProcessorTime = Annotated[
    bool, typer.Option("--processor-time", help="Take processor time, for a busy machine; with --threads 1.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")]
"""Options that mean the same to every study."""


@dataclass(frozen=True)
class Study:
    """A study of speed under way, as its command line wants it.

    Attributes:
        console: to print on.
        pace: of the times.
        threads: of engines and of torch; None for each library's own choice.
        output: JSON file; None for none.
    """

    console: Console
    pace: Pace
    threads: int | None
    output: Path | None

    @classmethod
    def begin(cls, threads: int | None, output: Path | None, *, quick: bool, processor: bool = False) -> "Study":
        """Check the options, and let torch run on as many threads as they say.

        Args:
            threads: see `Study`, as for the next.
            output: JSON file.
            quick: few calls.
            processor: take processor time.

        Raises:
            BadParameter: processor time of several threads, which is no time that anybody waits for.
        """
        if processor and threads != 1:
            raise typer.BadParameter("--processor-time is of one thread: give --threads 1 with it.")
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(Console(), Pace(quick=quick, processor=processor), threads, output)

    def show(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table.

        Args:
            title: above it.
            columns: headings.
            rows: cells.
        """
        self.console.print(made_table(title, columns, rows))

    def finish(self, values: Mapping[str, Any]) -> None:
        """Print what the times depend on, and write it with the values where they are wanted."""
        found, console = conditions(self.threads), self.console
        runtimes = [f"{name} {version}" for name, version in onnxruntimes().items()]
        console.print(
            f"{found['machine']}; torch {torch.__version__} on {found['torch_threads']} threads, "
            f"{' and '.join(runtimes) or 'onnxruntime'} on {found['engine_threads']}"
            f"{' threads' if self.threads else ''}",
            soft_wrap=True,
            highlight=False,
        )
        if (busy := found["busy_cores"] or 0.0) > BUSY:
            told = f"[yellow]other programs use {busy:.1f} cores[/]: read ratios alone, and those with care"
            console.print(told, soft_wrap=True)
        if self.output is not None:
            write_result({"conditions": found, **values}, self.output)
            console.print(f"wrote {escape(str(self.output))}", soft_wrap=True)


def conditions(threads: int | None, devices: Iterable[str] = ()) -> dict[str, Any]:
    """Machine, versions, threads, and what others use of the machine, as JSON.

    Args:
        threads: that engines were opened with; None where each chooses by the size of the graph.
        devices: that engines run on, such as `cuda:0`.
    """
    return {
        "machine": machine(devices),
        "python": platform.python_version(),
        "versions": installed(LIBRARIES),
        "torch_threads": torch.get_num_threads(),
        "busy_cores": busy_cores(),
        "engine_threads": "by size, up to all cores" if threads is None else threads,
    }


def busy_cores() -> float | None:
    """Cores that other programs use while this one rests for half a second; None where the system does not say."""
    statistics = Path("/proc/stat")
    if not statistics.is_file():
        return None
    before = _busy_ticks(statistics)
    time.sleep(REST)
    return (_busy_ticks(statistics) - before) / os.sysconf("SC_CLK_TCK") / REST


def _busy_ticks(statistics: Path) -> int:
    user, nice, system, _, _, interrupts, soft, *_ = map(int, statistics.read_text().split("\n")[0].split()[1:])
    return user + nice + system + interrupts + soft


def compared(milliseconds: Mapping[str, float], baseline: str) -> list[str]:
    """Cells of a table: times, and how many times faster than the baseline.

    Args:
        milliseconds: by contender.
        baseline: its name.
    """
    return [f"{spent:.3f} ({milliseconds[baseline] / spent:.1f}x)" for spent in milliseconds.values()]
