"""Rows a second that `screen` reads, packs and writes with an engine that answers at once: what a host keeps up with.

    python scripts/benchmarks/files.py [BUNDLE]

Run it on a machine that is idle, in a folder on the disk that is meant. The bundle is opened for its species and its
cutoff alone; without one, `student:small` is exported for ONNX Runtime.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
from ase.build import molecule

from painn_deploy.engines import NullSession
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.machine import machine
from painn_deploy.runtime.screening import run
from painn_deploy.runtime.screening.bulk import screener
from painn_deploy.runtime.screening.sources import parquet
from painn_deploy.scripts.benchmarks.cases import ETHANOL
from painn_deploy.scripts.benchmarks.contenders.bundles import exported
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["NullEvaluator", "rates", "write_ethanols"]

WAYS = (("parquet", "parquet"), ("extxyz", "parquet"), ("extxyz", "extxyz"))


class NullEvaluator(Evaluator):
    """An evaluator whose engine answers zeros at once; see `Evaluator`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.session = NullSession(self.manifest.outputs)
        self.batch_slots = 65_536  # nothing is measured of such an engine


def write_ethanols(folder: Path, rows: int) -> dict[str, Path]:
    """Perturbed ethanols, each with an id, in files of both formats.

    Args:
        folder: to write into.
        rows: how many.

    Returns:
        The files by their formats.
    """
    import pyarrow

    start, random = molecule(ETHANOL), np.random.default_rng(0)
    positions = start.positions + random.normal(0, 0.03, (rows, len(start), 3))
    files = {kind: folder / f"ethanols.{kind}" for kind in ("parquet", "extxyz")}
    triples = pyarrow.list_(pyarrow.list_(pyarrow.float64(), 3))
    columns = {
        "id": [f"mol-{row:07d}" for row in range(rows)],
        "numbers": pyarrow.array([start.numbers.tolist()] * rows, pyarrow.list_(pyarrow.int32())),
        "positions": pyarrow.array(positions.tolist(), triples),
    }
    parquet().write_table(pyarrow.table(columns), files["parquet"])
    lines = "".join(f"{symbol:<2} %16.8f %16.8f %16.8f\n" for symbol in start.symbols)
    with files["extxyz"].open("w", encoding="ascii") as file:
        for name, one in zip(columns["id"], positions, strict=True):
            file.write(f'{len(start)}\nProperties=species:S:1:pos:R:3 id={name} pbc="F F F"\n')
            file.write(lines % tuple(one.ravel()))
    return files


def rates(bundle: Path, source: Path, output: Path, rows: int, *, rounds: int = 3) -> tuple[float, float]:
    """Rows a second, and µs of processor time a row; the best of some rounds, opening the bundle included.

    Args:
        bundle: a folder NAME.engine.
        source: the input.
        output: is replaced.
        rows: in the input.
        rounds: how many.
    """
    walls, processors = [], []
    with mock.patch.object(run, "Evaluator", NullEvaluator), mock.patch.object(screener, "Evaluator", NullEvaluator):
        for _ in range(rounds):
            wall, processor = time.perf_counter(), time.process_time()
            run.screen(bundle, source, output, overwrite=True, threads=1, device="cpu")
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - processor)
    return rows / min(walls), 1e6 * min(processors) / rows


def main(
    bundle: Annotated[Path | None, typer.Argument(help="A folder NAME.engine; one is exported else.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Ethanols in each file.")] = 200_000,
    rounds: Annotated[int, typer.Option(min=1, help="Of each way; the best counts.")] = 3,
) -> None:
    """Measure, and print as Markdown."""
    with ExitStack() as stack:
        if bundle is None:
            plain = exported("student:small", [molecule(ETHANOL)], ["onnxruntime"], uncertainty=False)
            bundle = stack.enter_context(plain)["onnxruntime"]
        folder = Path(stack.enter_context(TemporaryDirectory(dir=Path.cwd(), prefix="files-")))
        files, table = write_ethanols(folder, rows), []
        for source, kind in WAYS:
            a_second, each = rates(bundle, files[source], folder / f"out.{kind}", rows, rounds=rounds)
            table.append((f"{source} to {kind}", f"{a_second:,.0f}", f"{each:.1f}"))
        print(f"{machine()}; {rows:,} ethanols, the best of {rounds}, an engine that answers at once\n")
        print(markdown(["from and to", "rows a second", "µs of processor time a row"], table))


if __name__ == "__main__":
    run_command(main)
