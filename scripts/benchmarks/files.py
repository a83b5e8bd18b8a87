"""Rows a second that `screen` reads, packs and writes with an engine that answers at once: what a host keeps up with.

    python scripts/benchmarks/files.py [BUNDLE]

Run it on a machine that is idle, in a folder on the disk that is meant. The bundle is opened for its species and its
cutoff alone; without one, `student:small` is exported for ONNX Runtime.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
from ase.build import molecule

from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.machine import machine
from painn_deploy.runtime.screening import run
from painn_deploy.runtime.screening.bulk import screener
from painn_deploy.runtime.screening.bulk.answers import Answers, Frames
from painn_deploy.runtime.screening.sources import parquet
from painn_deploy.scripts.benchmarks.cases import ETHANOL
from painn_deploy.scripts.benchmarks.contenders.bundles import exported
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown

__all__ = ["NullEvaluator", "NullSession", "at_once", "rates", "write_ethanols"]

WAYS = (("parquet", "parquet"), ("extxyz", "parquet"), ("extxyz", "extxyz"))


class NullSession:
    """An engine that answers zeros at once, and is in all else the session that it stands for.

    Args:
        session: an open one.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """Zeros of the right shapes."""
        atoms = len(inputs.atomic_numbers)
        return GraphOutputs(
            np.zeros(atoms, np.float32), np.zeros((atoms, 3), np.float32), np.zeros((atoms, 3, 3), np.float32)
        )


class NullEvaluator(Evaluator):
    """An evaluator whose engine answers at once, and of nothing uncertain; see `Evaluator`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.session, self.uncertainty = NullSession(self.session), None
        self.batch_slots = 65_536  # nothing is measured of such an engine


def at_once(evaluator: Evaluator, frames: Frames, batch_slots: int) -> Answers:  # noqa: ARG001  a stand-in
    """Zeros for structures, without an evaluator: what is left is files.

    Args:
        evaluator: not asked.
        frames: the structures.
        batch_slots: not needed.
    """
    atoms, count = len(frames.numbers), len(frames)
    return Answers(np.zeros(count), np.zeros(atoms), np.zeros((atoms, 3)), np.full((count, 6), np.nan), {})


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


@contextmanager
def _null(alone: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for module in (run, screener):
            stack.enter_context(mock.patch.object(module, "Evaluator", NullEvaluator))
        if alone:
            stack.enter_context(mock.patch.object(screener, "answers_of", at_once))
        yield


def rates(
    bundle: Path, source: Path, output: Path, rows: int, *, rounds: int = 3, alone: bool = False
) -> tuple[float, float]:
    """Rows a second, and µs of processor time a row; the best of some rounds, opening the bundle included.

    Args:
        bundle: a folder NAME.engine.
        source: the input.
        output: is replaced.
        rows: in the input.
        rounds: how many.
        alone: leave the evaluator out, too.
    """
    walls, processors = [], []
    with _null(alone):
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
            bundle = stack.enter_context(exported("student:small", [molecule(ETHANOL)], ["onnxruntime"]))["onnxruntime"]
        folder = Path(stack.enter_context(TemporaryDirectory(dir=Path.cwd(), prefix="files-")))
        files, table = write_ethanols(folder, rows), []
        for source, kind in WAYS:
            for alone, what in ((False, "null engine"), (True, "files alone")):
                a_second, each = rates(bundle, files[source], folder / f"out.{kind}", rows, rounds=rounds, alone=alone)
                table.append((f"{source} to {kind}", what, f"{a_second:.0f}", f"{each:.1f}"))
        print(f"{machine()}; {rows} ethanols, the best of {rounds}\n")
        print(markdown(["from and to", "with", "rows a second", "µs of processor time a row"], table))


if __name__ == "__main__":
    run_command(main)
