"""What the stand-alone speed studies share: engines of a checkpoint, the conditions of a run, tables."""

import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from ase import Atoms
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from painn_deploy.engines import Session, get_backend
from painn_deploy.export.manifest import read_bundle
from painn_deploy.export.versions import installed, onnxruntimes
from painn_deploy.scripts.demo import machine
from painn_deploy.scripts.exporting import export_engines
from painn_deploy.scripts.studies import write_result

__all__ = [
    "Checkpoint",
    "Output",
    "Pace",
    "ProcessorTime",
    "Threads",
    "chosen_pace",
    "compared",
    "conditions",
    "exported",
    "finish",
    "made_table",
    "open_session",
    "set_threads",
]

BUSY = 0.1
"""Cores used by others, from which on times are not to be trusted."""
REST = 0.5
LIBRARIES = ("torch", "onnxruntime", "numpy", "ase", "vesin")


class Pace:
    """How many calls a time is the median of, and by which clock.

    Args:
        quick: only enough to see that everything runs.
        processor: take processor time, which other programs disturb least; fewer calls then do.

    Attributes:
        unit: of the times.
    """

    def __init__(self, *, quick: bool, processor: bool = False) -> None:
        self.calls, self.blocks = (2, 1) if quick else (10, 3 if processor else 5)
        self.processor = processor
        self.unit = "ms of processor time" if processor else "ms"

    def as_dict(self) -> dict[str, Any]:
        """For `painn_deploy.scripts.timing.medians`."""
        clock = time.process_time if self.processor else time.perf_counter
        return {"calls": self.calls, "blocks": self.blocks, "clock": clock}


def chosen_pace(*, quick: bool, processor: bool, threads: int | None) -> Pace:
    """What the command line asks for.

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


@contextmanager
def exported(checkpoint: str, structures: Sequence[Atoms], engines: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Bundles of a checkpoint by engine, in a folder that is gone afterwards."""
    with TemporaryDirectory() as folder:
        paths = export_engines(checkpoint, folder, engines=engines, structures=structures)
        yield dict(zip(engines, paths, strict=True))


def open_session(bundle: Path, threads: int | None) -> Session:
    """The bare engine on the CPU; the caller closes it."""
    opened = read_bundle(bundle)
    return get_backend(opened.manifest.engine).open(opened, "cpu", threads)


Checkpoint = Annotated[str, typer.Argument(help="A .safetensors or .pt file, or a student that ships.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of the CPU; each library's own choice otherwise.")]
ProcessorTime = Annotated[
    bool, typer.Option("--processor-time", help="Take processor time, for a busy machine; with --threads 1.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")]
"""Options that mean the same to every study."""


def compared(milliseconds: Mapping[str, float], names: Sequence[str], baseline: str) -> list[str]:
    """Cells of a table: times, and how many times faster than the baseline."""
    return [f"{milliseconds[name]:.3f} ({milliseconds[baseline] / milliseconds[name]:.1f}x)" for name in names]


def made_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows under headings, the first column to the left and the others to the right."""
    table = Table(title=escape(title))
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if index else "left", no_wrap=not index, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def finish(console: Console, values: dict[str, Any], threads: int | None, output: Path | None) -> None:
    """Print what a run's times depend on, and write it all where it is wanted."""
    found = conditions(threads)
    engine = found["engine_threads"]
    runtimes = [f"{name} {version}" for name, version in onnxruntimes().items()]
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
