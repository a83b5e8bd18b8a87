"""Speed of every engine of a student beside PyTorch eager and torch.compile of the same student, in one run.

    python scripts/benchmark_inference.py student:base --output bench

writes benchmark.json, latency.png and throughput.png. Run it on a machine that does nothing else; what ran, it says.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from painn_deploy.calibration.origin import load_origin
from painn_deploy.engines import get_backend
from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.export.files import prepare_output, to_json, write_output
from painn_deploy.export.manifest import read_bundle
from painn_deploy.export.model.student import Student
from painn_deploy.scripts.benchmarks.cases import copies, sizes
from painn_deploy.scripts.benchmarks.conditions import STUDENT, Checkpoint, conditions
from painn_deploy.scripts.benchmarks.contenders.bundles import opened
from painn_deploy.scripts.benchmarks.contenders.contender import Contender
from painn_deploy.scripts.benchmarks.contenders.pytorch import Eager
from painn_deploy.scripts.benchmarks.contenders.schnetpack_contender import schnetpack
from painn_deploy.scripts.benchmarks.footprint import costs
from painn_deploy.scripts.benchmarks.results import report, store
from painn_deploy.scripts.benchmarks.run import BATCHES, latency, scaling, throughput
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.profiling.roofline import rooflines

__all__ = ["bench_bundles", "benchmark", "time_bundles"]

ENGINES = ("onnxruntime", "inductor")
PEAK_BATCH = 64
Keep = Callable[[dict[str, Any]], object]


def benchmark(
    checkpoint: Checkpoint = STUDENT,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for benchmark.json and the plots.")] = Path(
        "bench"
    ),
    engine: Annotated[list[str] | None, typer.Option(help="Repeatable; onnxruntime and inductor if not given.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="Repeatable; fp32 if not given.")] = None,
    radial_table: Annotated[
        bool, typer.Option("--radial-table", help="Engines with one, beside those without.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option(help="Time torch.compile of the eager student too.")] = True,
    schnetpack_python: Annotated[
        str | None,
        typer.Option("--schnetpack", help="Python of an environment with SchNetPack: times its calculator, too."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small molecules and batches, to see that it runs.")] = False,
) -> Path:
    """Latency by size, throughput by batch, memory, load and build times."""
    console, source = Console(), resolve_checkpoint(checkpoint)
    prepare_output(output)
    student = load_student(checkpoint)
    made, built = _bundles(
        checkpoint, output / "engines", engine or ENGINES, precision or ("fp32",), device, radial_table, console
    )
    with ExitStack() as stack:
        peers = [stack.enter_context(schnetpack(schnetpack_python, student))] if schnetpack_python else []
        _kept(
            lambda keep: time_bundles(
                made, student, device, compiled=compiled, quick=quick, console=console, peers=peers, keep=keep
            ),
            {"checkpoint": source.name, "checkpoint_sha256": source.sha256},
            output,
            console,
            built,
        )
    return output / "benchmark.json"


def _kept(
    run: Callable[[Keep], dict[str, Any]],
    of: Mapping[str, str],
    output: Path | None,
    console: Console,
    built: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Time, print tables, and write files where they are wanted, so far as there is something after each part."""

    def keep(so_far: Mapping[str, Any]) -> None:
        if output is not None:
            write_output(output / "benchmark.json", to_json({**of, **so_far}))

    found = {**run(keep), **of}
    found["costs"] = [row | dict((built or {}).get(row["candidate"], {})) for row in found["costs"]]
    report(found, console)
    if output is not None:
        store(found, output, console)


def time_bundles(
    bundles: Mapping[str, Path],
    student: Student | None,
    device: str,
    *,
    compiled: bool,
    quick: bool,
    console: Console,
    threads: int | None = None,
    peers: Sequence[Contender] = (),
    keep: Keep = lambda found: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Time bundles side by side, and beside a student in PyTorch where one is given.

    Args:
        bundles: by what to call them.
        student: in float32, the baseline of every ratio; None for none.
        device: `auto`, `cpu` or `cuda`.
        compiled: time `torch.compile` of the student too.
        quick: small molecules and batches alone.
        console: where progress goes.
        threads: of the CPU, for engines and PyTorch alike; None for what each chooses.
        peers: other contenders, on the same weights.
        keep: is given what there is so far after each part, so that what fails later costs nothing.

    Returns:
        What benchmark.json holds, but for the checkpoint's name.
    """

    def tell(line: str) -> None:
        console.print(f"[dim]{escape(line)}[/]", highlight=False)

    with opened(bundles, device, threads) as engines:
        where = "cuda" if any(engine.device.startswith("cuda") for engine in engines) else "cpu"
        contenders: list[Contender] = [*engines]
        if student is not None:
            eager = [Eager(student, where), *([Eager(student, where, compiled=True)] if compiled else [])]
            contenders = [*eager, *peers, *engines]
        manifests = {engine.name: engine.calculator.manifest for engine in engines}
        found: dict[str, Any] = {
            "format": 1,
            "device": device,
            "conditions": conditions(threads, [engine.device for engine in engines]),
            "engines": {engine.name: dict(engine.calculator.engine_info) for engine in engines},
            "radial_tables": {name: manifest.radial_table for name, manifest in manifests.items()},
        }
        cases = sizes(sorted(set.intersection(*(set(m.species) for m in manifests.values()))), quick=quick)
        one = next((case for case in cases if case.name == "ethanol"), cases[0]).given[0]
        found["latency"] = latency(contenders, cases, tell)
        keep(found)
        found["throughput"] = throughput(contenders, copies(one, BATCHES[:4] if quick else BATCHES), tell)
        keep(found)
    found["scaling"] = [] if quick else scaling(bundles, device, tell, threads)
    keep(found)
    tell("loading each engine, alone in a process for its memory")
    found["costs"] = costs(bundles, device, one, 4 if quick else PEAK_BATCH, threads)
    keep(found)
    tell("copying and multiplying, for the machine's peaks")
    found["peaks"], found["roofline"] = rooflines(bundles, found["throughput"], one, where)
    return found


def bench_bundles(
    bundles: Sequence[Path],
    reference: Sequence[str],
    output: Path | None,
    *,
    quick: bool,
    threads: int | None = None,
    device: str,
    console: Console,
) -> None:
    """Time bundles, print tables, and write files where they are wanted: `painn-deploy bench`.

    Args:
        bundles: folders NAME.engine.
        reference: the checkpoint that they were made from, or those of all members of a committee: the baseline of
            ratios; empty for no ratios.
        output: folder for benchmark.json and plots; None for none.
        quick: small molecules and batches alone.
        threads: of the CPU, for engines and PyTorch alike, from then on in this process; None for what each chooses.
        device: `auto`, `cpu` or `cuda`.
        console: to print on.

    Raises:
        BundleError: one cannot be read.
        CheckpointError: one was not made from the reference.
    """
    made: dict[str, Path] = {}
    for path in bundles:
        made[path.stem if path.stem not in made else str(path)] = path
    read = [read_bundle(path) for path in bundles]
    student, source = load_origin(read, reference) if reference else (None, None)
    sources = {bundle.manifest.checkpoint_sha256 for bundle in read}
    if output is not None:
        prepare_output(output)
    if threads is not None:
        torch.set_num_threads(threads)
    _kept(
        lambda keep: time_bundles(
            made, student, device, compiled=False, quick=quick, console=console, threads=threads, keep=keep
        ),
        {"checkpoint": "bundles" if source is None else source.name, "checkpoint_sha256": " ".join(sorted(sources))},
        output,
        console,
    )


def _bundles(
    checkpoint: str,
    folder: Path,
    engines: list[str] | tuple[str, ...],
    precisions: list[str] | tuple[str, ...],
    device: str,
    table: bool,
    console: Console,
) -> tuple[dict[str, Path], dict[str, dict[str, float]]]:
    """Bundles by what to call them, and the seconds that building each took, measuring it included."""
    made, built = {}, {}
    for tabled, engine, precision in product((False, True) if table else (False,), engines, precisions):
        if precision not in get_backend(engine).precisions:
            continue
        name = f"{engine} {precision}{' table' if tabled else ''}"
        console.print(f"exporting {name}")
        began = time.perf_counter()
        (made[name],) = export_engines(
            checkpoint,
            folder / ("table" if tabled else "plain"),
            engines=(engine,),
            precisions=(precision,),
            device=device,
            radial_table=tabled,
            overwrite=True,
        )
        built[name] = {"export_seconds": time.perf_counter() - began}
    if not made:
        raise PaiNNDeployError(f"No engine of {', '.join(engines)} has a precision of {', '.join(precisions)}.")
    return made, built


if __name__ == "__main__":
    run_command(benchmark)
