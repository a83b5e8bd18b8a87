"""Speed of every engine of a student beside PyTorch eager and torch.compile of the same student, in one run.

    python scripts/benchmark_inference.py student:base --output bench

writes benchmark.json, latency.png and throughput.png. Run it on a machine that does nothing else; what ran, it says.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from painn_deploy.engines import get_backend
from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import BundleError, PaiNNDeployError
from painn_deploy.export.files import prepare_output, to_json
from painn_deploy.export.manifest import read_bundle
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.benchmarks.benchmarking import (
    BATCHES,
    EAGER,
    SCHNETPACK,
    Candidate,
    bundle_candidates,
    costs,
    eager_candidates,
    latency,
    scaling,
    sizes,
    throughput,
)
from painn_deploy.scripts.benchmarks.schnetpack_candidate import schnetpack
from painn_deploy.scripts.benchmarks.speed_studies import conditions, made_table
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.profiling.roofline import rooflines

__all__ = ["bench_bundles", "benchmark", "cell", "cost_rows", "read", "report", "roof_rows", "store", "time_bundles"]

ENGINES = ("onnxruntime", "inductor")
PHASES = ("neighbours", "packing", "engine", "results")
PEAK_BATCH = 64
ROOF = ("million multiply-adds", "MB at least", "ms at least", "ms", "share")
COSTS = {
    "export_seconds": "export s",
    "load_seconds": "load s",
    "megabytes": "bundle MB",
    "library_megabytes": "MB of its library",
    "peak_megabytes": "MB of the engine",
}


def benchmark(
    checkpoint: Annotated[str, typer.Argument(help="A .safetensors or .pt file, or student:base.")] = "student:base",
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
    console = Console()
    prepare_output(output)
    student = load_student(checkpoint)
    made, built = _bundles(
        checkpoint, output / "engines", engine or ENGINES, precision or ("fp32",), device, radial_table, console
    )
    with ExitStack() as stack:
        peers = {}
        if schnetpack_python is not None:
            peers[SCHNETPACK] = Candidate(stack.enter_context(schnetpack(schnetpack_python, student)))
        source, path = resolve_checkpoint(checkpoint), output / "benchmark.json"
        of = {"checkpoint": source.name, "checkpoint_sha256": source.sha256}
        found = time_bundles(
            made,
            student,
            device,
            compiled=compiled,
            quick=quick,
            console=console,
            peers=peers,
            keep=lambda so_far: path.write_bytes(to_json(of | so_far)),
        )
    found |= of
    found["costs"] = [row | built[row["candidate"]] for row in found["costs"]]
    report(found, console)
    store(found, output, console)
    return path


def time_bundles(
    bundles: Mapping[str, Path],
    student: Student | None,
    device: str,
    *,
    compiled: bool,
    quick: bool,
    console: Console,
    peers: Mapping[str, Candidate] | None = None,
    keep: Callable[[dict[str, Any]], object] = lambda found: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Time bundles side by side, and beside a student in PyTorch where one is given.

    Args:
        bundles: by what to call them.
        student: in float32, the baseline of every ratio; None for none.
        device: `auto`, `cpu` or `cuda`.
        compiled: time `torch.compile` of the student too.
        quick: small molecules and batches alone.
        console: where progress goes.
        peers: other programs, on the same weights.
        keep: is given what there is so far after each part, so that what fails later costs nothing.

    Returns:
        What benchmark.json holds, but for the checkpoint's name.
    """
    with ExitStack() as stack:
        calculators = {
            name: stack.enter_context(PaiNNCalculator(path, device=device)) for name, path in bundles.items()
        }
        candidates = bundle_candidates(calculators)
        where = "cuda" if any(c.engine_info["device"].startswith("cuda") for c in calculators.values()) else "cpu"
        if student is not None:
            candidates = eager_candidates(student, where, compiled=compiled) | dict(peers or {}) | candidates
        found: dict[str, Any] = {
            "format": 1,
            "device": device,
            "conditions": conditions(None, [c.engine_info["device"] for c in calculators.values()]),
            "engines": {name: dict(calculators[name].engine_info) for name in bundles},
            "radial_tables": {name: read_bundle(path).manifest.radial_table for name, path in bundles.items()},
        }
        species = sorted(set.intersection(*(set(c.manifest.species) for c in calculators.values())))
        structures = sizes(species, quick=quick)
        one = structures.get("ethanol") or next(iter(structures.values()))
        found["latency"] = latency(candidates, structures, _teller(console))
        keep(found)
        found["throughput"] = throughput(candidates, BATCHES[:4] if quick else BATCHES, _teller(console), one)
        keep(found)
    found["scaling"] = [] if quick else scaling(bundles, device, _teller(console))
    keep(found)
    found["costs"] = costs(bundles, device, one, 4 if quick else PEAK_BATCH)
    keep(found)
    found["peaks"], found["roofline"] = rooflines(bundles, found["throughput"], one, where)
    return found


def bench_bundles(
    bundles: Sequence[Path], reference: str | None, output: Path | None, *, quick: bool, device: str, console: Console
) -> None:
    """What `painn-deploy bench` does: time bundles, print tables, and write files where they are wanted.

    Raises:
        BundleError: one cannot be read, or was not made of the reference.
    """
    student = None if reference is None else load_student(reference)
    made = {}
    for path in bundles:
        bundle = read_bundle(path)
        if reference is not None and bundle.manifest.checkpoint_sha256 != resolve_checkpoint(reference).sha256:
            raise BundleError(f"{path} was not made of {reference}, so that it is no baseline for it.")
        made[path.stem if path.stem not in made else str(path)] = path
    sources = {read_bundle(path).manifest.checkpoint_sha256 for path in bundles}
    of = {"checkpoint": reference or "bundles", "checkpoint_sha256": " ".join(sorted(sources))}

    def keep(so_far: dict[str, Any]) -> None:
        if output is not None:
            (output / "benchmark.json").write_bytes(to_json(of | so_far))

    if output is not None:
        prepare_output(output)
    found = time_bundles(made, student, device, compiled=False, quick=quick, console=console, keep=keep) | of
    report(found, console)
    if output is not None:
        store(found, output, console)


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


def _teller(console: Console) -> Any:
    return lambda line: console.print(f"[dim]timing {line}[/]", highlight=False)


def report(found: dict[str, Any], console: Console) -> None:
    """Tables for a reader: ms and ratios to eager, whole call and engine alone."""
    names = list(dict.fromkeys(row["candidate"] for row in found["latency"]))
    for key, title in (("whole", "whole call"), ("engine", "engine alone")):
        rows = [
            [
                f"{structure} ({atoms})",
                *(cell(found["latency"], key, candidate, structure=structure) for candidate in names),
            ]
            for structure, atoms in dict.fromkeys((row["structure"], row["atoms"]) for row in found["latency"])
        ]
        unit = "ms and times the speed of eager" if EAGER in names else "ms"
        console.print(made_table(f"{title}, {unit}", ["structure (atoms)", *names], rows))
        rows = [
            [str(batch), *(cell(found["throughput"], key, candidate, batch=batch) for candidate in names)]
            for batch in dict.fromkeys(row["batch"] for row in found["throughput"])
        ]
        console.print(made_table(f"batches of {found['throughput'][0]['structure']}, {title}", ["batch", *names], rows))
    phases = [
        [row["structure"], row["candidate"], *(f"{row['phases'].get(phase, 0):.3f}" for phase in PHASES)]
        for row in found["latency"]
        if row["phases"]
    ]
    console.print(made_table("where a whole call's ms go", ["structure", "candidate", *PHASES], phases))
    heads, rows, errors = cost_rows(found)
    batch = found["costs"][0]["batch"]
    console.print(made_table(f"costs; memory at a batch of {batch} molecules", ["candidate", *heads], rows))
    for error in errors:
        console.print(f"[red]{escape(error)}[/]", soft_wrap=True, highlight=False)
    console.print(made_table("the engine and the least time of its work", ["", *ROOF], roof_rows(found)))


def cost_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings, rows and errors of what each bundle costs; a cost that no row has is left out."""
    keys = [key for key in COSTS if any(key in row for row in found["costs"])]
    rows = [[row["candidate"], *(f"{row[key]:.1f}" if key in row else "-" for key in keys)] for row in found["costs"]]
    errors = [f"{row['candidate']}: {row['error']}" for row in found["costs"] if "error" in row]
    return [COSTS[key] for key in keys], rows, errors


def roof_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """What the roofline says of each engine, one batch after the other."""
    return [
        [
            f"{row['batch']:,}, {row['candidate']}",
            f"{row['multiply_adds'] / 1e6:,.0f}",
            f"{row['bytes_least'] / 1e6:,.1f}",
            f"{row['least_milliseconds']:.3g} ({row['bound']})",
            f"{row['milliseconds']:.3g}",
            f"{row['share']:.0%}",
        ]
        for row in sorted(found["roofline"], key=lambda row: row["batch"])
    ]


def cell(rows: Sequence[Mapping[str, Any]], key: str, candidate: str, **wanted: Any) -> str:
    """Milliseconds of one case, and their ratio to eager where it was timed."""
    row = next((r for r in rows if r["candidate"] == candidate and all(r[k] == v for k, v in wanted.items())), None)
    if row is None or row[key] is None:  # nothing that can be had alone
        return "-"
    ratio = f" ({row[key]['ratio']:.1f}x)" if "ratio" in row[key] else ""
    spent = row[key]["milliseconds"]
    return f"{spent:,.0f}{ratio}" if spent >= 1000 else f"{spent:.3g}{ratio}"


def store(found: dict[str, Any], folder: Path, console: Console) -> None:
    """Write benchmark.json and its plots into a folder that is there."""
    path = folder / "benchmark.json"
    path.write_bytes(to_json(found))
    plot(found, folder)
    console.print(f"wrote {path}, latency.png and throughput.png", soft_wrap=True)


def plot(found: dict[str, Any], folder: Path) -> None:
    """Milliseconds by atoms, and structures a second by batch."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["candidate"] for row in found["latency"]))
    figures = (
        ("latency", "atoms", _whole, "ms of a whole call", "atoms"),
        ("throughput", "batch", _rate, "structures a second", "ethanols in a batch"),
    )
    for kind, axis, value, label, below in figures:
        figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
        for name in names:
            rows = sorted((row for row in found[kind] if row["candidate"] == name), key=lambda row: row[axis])
            ax.plot([row[axis] for row in rows], [value(row) for row in rows], marker="o", markersize=4, label=name)
        ax.set(xscale="log", yscale="log", xlabel=below, ylabel=label)
        ax.set_title(f"{found['checkpoint']}, {found['conditions']['machine']}", fontsize=9)
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=8)
        figure.savefig(folder / f"{kind}.png", dpi=150)
        plt.close(figure)


def _whole(row: dict[str, Any]) -> float:
    return float(row["whole"]["milliseconds"])


def _rate(row: dict[str, Any]) -> float:
    return float(row["structures_per_second"])


def read(path: Path) -> dict[str, Any]:
    """A benchmark.json.

    Raises:
        PaiNNDeployError: it cannot be read, or is none.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PaiNNDeployError(f"Cannot read {path}: {error}.") from error
    if not isinstance(found, dict) or found.get("format") != 1 or "latency" not in found:
        raise PaiNNDeployError(f"{path} is not what scripts/benchmark_inference.py writes (benchmark.json).")
    return found


if __name__ == "__main__":
    run_command(benchmark)
