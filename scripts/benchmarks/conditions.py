"""What the times of a run depend on, and the options by which the studies of speed are told of it."""

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from painn_deploy.calibration.timing import Pace
from painn_deploy.export.versions import installed
from painn_deploy.runtime.machine import machine
from painn_deploy.scripts.commands.outputs import write_result

__all__ = [
    "STUDENT",
    "Checkpoint",
    "Output",
    "ProcessorTime",
    "Threads",
    "busy_cores",
    "chosen_pace",
    "compared",
    "conditions",
    "finish",
    "set_threads",
]

BUSY = 0.1
"""Cores used by others, from which on times are not to be trusted."""

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


def chosen_pace(*, quick: bool, processor: bool, threads: int | None) -> Pace:
    """The pace that the command line asks for.

    Args:
        quick: few calls.
        processor: take processor time.
        threads: that were asked for.

    Raises:
        BadParameter: processor time of several threads, which is no time that anybody waits for.
    """
    if processor and threads != 1:
        raise typer.BadParameter("--processor-time is of one thread: give --threads 1 with it.")
    return Pace(quick=quick, processor=processor)


def set_threads(threads: int | None) -> None:
    """Let torch run on so many; None leaves it as it is."""
    if threads is not None:
        torch.set_num_threads(threads)


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


def compared(milliseconds: Mapping[str, float], baseline: str, names: Sequence[str] | None = None) -> list[str]:
    """Cells of a table: times, and how many times faster than the baseline.

    Args:
        milliseconds: by contender.
        baseline: its name.
        names: of the contenders, in order; all of them otherwise.
    """
    first = milliseconds[baseline]
    return [f"{milliseconds[name]:.3f} ({first / milliseconds[name]:.1f}x)" for name in names or milliseconds]


def finish(console: Console, values: Mapping[str, Any], threads: int | None, output: Path | None) -> None:
    """Print what a run's times depend on, and write it all where it is wanted.

    Args:
        console: to print on.
        values: what the study found.
        threads: that engines were opened with, see `conditions`.
        output: JSON file; None for none.
    """
    found = conditions(threads)
    engine, versions = found["engine_threads"], found["versions"]
    runtimes = [f"{name} {version}" for name, version in versions.items() if name.startswith("onnxruntime")]
    console.print(
        f"{found['machine']}; torch {torch.__version__} on {found['torch_threads']} threads, "
        f"{' and '.join(runtimes) or 'onnxruntime'} on {engine}{' threads' if threads else ''}",
        soft_wrap=True,
        highlight=False,
    )
    if (found["busy_cores"] or 0.0) > BUSY:
        console.print(
            f"[yellow]other programs use {found['busy_cores']:.1f} cores[/]: read ratios alone, and those with care",
            soft_wrap=True,
        )
    if output is not None:
        write_result({"conditions": found, **values}, output)
        console.print(f"wrote {escape(str(output))}", soft_wrap=True)
