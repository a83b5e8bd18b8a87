"""benchmark.json: read again, as tables for a screen or a document, and as plots."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from ase.build import molecule
from rich.console import Console
from rich.markup import escape

from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.export.files import to_json, write_output
from painn_deploy.scripts.benchmarks.cases import ETHANOL
from painn_deploy.scripts.benchmarks.contenders.contender import EAGER
from painn_deploy.scripts.commands.outputs import made_table

__all__ = ["Section", "plot", "read", "report", "sections", "store"]

PHASES = ("neighbours", "packing", "engine", "results")
ROOF = ("million multiply-adds", "MB at least", "ms at least", "ms", "share")
COSTS = {
    "export_seconds": "export s",
    "load_seconds": "load s",
    "megabytes": "bundle MB",
    "library_megabytes": "MB of its library",
    "peak_megabytes": "MB of the engine",
}


@dataclass(frozen=True)
class Section:
    """One table of a benchmark.

    Attributes:
        caption: what it shows, with units.
        headings: of the columns.
        rows: cells, as text.
        errors: of bundles that have no row of their own making.
    """

    caption: str
    headings: list[str]
    rows: list[list[str]]
    errors: list[str] = field(default_factory=list)


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


def sections(found: Mapping[str, Any], phases_of: Sequence[str] | None = None) -> Iterator[Section]:
    """Every table: ms and ratios to eager, rates, sizes, phases, costs, and the least time of the work.

    Args:
        found: a benchmark.
        phases_of: structures whose phases are shown; those of all otherwise.
    """
    names = list(dict.fromkeys(row["candidate"] for row in found["latency"]))
    batches = list(dict.fromkeys(row["batch"] for row in found["throughput"]))
    one, several = _named(found["throughput"][0]["structure"])
    unit = "ms and times the speed of eager" if EAGER in names else "ms"
    by_size = {(row["structure"], row["atoms"], row["candidate"]): row for row in found["latency"]}
    by_batch = {(row["batch"], row["candidate"]): row for row in found["throughput"]}
    for key, title in (("whole", "Whole calls"), ("engine", "Engines alone")):
        rows = [
            [f"{structure}, {atoms} atoms", *(_cell(by_size.get((structure, atoms, name)), key) for name in names)]
            for structure, atoms in dict.fromkeys(case[:2] for case in by_size)
        ]
        rows += [
            [f"{batch} {several if batch > 1 else one}", *(_cell(by_batch.get((batch, name)), key) for name in names)]
            for batch in batches
        ]
        yield Section(f"{title}, {unit}:", [title.lower(), *names], rows)
    rates = [[f"{batch}", *(f"{by_batch[batch, n]['structures_per_second']:,.0f}" for n in names)] for batch in batches]
    yield Section(
        f"{several[0].upper()}{several[1:]} a second, neighbour search and packing included:", ["batch", *names], rates
    )
    yield _scaling(found)
    phases = [
        [f"{row['structure']}, {row['candidate']}", *(f"{row['phases'].get(phase, 0):.3f}" for phase in PHASES)]
        for row in found["latency"]
        if row["phases"] and (phases_of is None or row["structure"] in phases_of)
    ]
    yield Section("Where the milliseconds of a whole call go:", ["", *PHASES], phases)
    keys = [key for key in COSTS if any(key in row for row in found["costs"])]
    rows = [[row["candidate"], *(f"{row[key]:.1f}" if key in row else "-" for key in keys)] for row in found["costs"]]
    errors = [f"{row['candidate']}: {row['error']}" for row in found["costs"] if "error" in row]
    caption = f"Costs, memory at {found['costs'][0]['batch']} {several}:"
    yield Section(caption, ["", *(COSTS[key] for key in keys)], rows, errors)
    yield _roof(found, several)


def _named(formula: str) -> tuple[str, str]:
    """What one molecule is called, and several of it."""
    ethanol = formula == str(molecule(ETHANOL).symbols)
    return ("ethanol", "ethanols") if ethanol else (formula, formula)


def _cell(row: Mapping[str, Any] | None, key: str) -> str:
    """Milliseconds of one case, and their ratio to eager where it was timed."""
    if row is None or row[key] is None:  # nothing that can be had alone
        return "-"
    ratio = f" ({row[key]['ratio']:.1f}x)" if "ratio" in row[key] else ""
    spent = row[key]["milliseconds"]
    return f"{spent:,.0f}{ratio}" if spent >= 1000 else f"{spent:.3g}{ratio}"


def _scaling(found: Mapping[str, Any]) -> Section:
    """Whole calls on ever more water."""
    ours = list(found["engines"])
    cost = {(row["atoms"], row["candidate"]): row["microseconds_an_atom"] for row in found["scaling"]}
    rows = [
        [f"{atoms:,} atoms", *(f"{cost[atoms, name]:.0f}" if (atoms, name) in cost else "-" for name in ours)]
        for atoms in dict.fromkeys(atoms for atoms, _ in cost)
    ]
    return Section("Water, µs an atom of a whole call, each engine alone in memory:", ["", *ours], rows)


def _roof(found: Mapping[str, Any], several: str) -> Section:
    """What the roofline says of each engine, one batch after the other."""
    peaks = found["peaks"]
    fastest = ", ".join(f"{2e-9 * rate:,.0f} in {kind}" for kind, rate in peaks["multiply_adds_per_second"].items())
    caption = (
        f"The least time of the work, at {1e-9 * peaks['bytes_per_second']:,.0f} GB/s and {fastest} billion operations "
        "a second, which this machine reached in this run, and the engine's own:"
    )
    rows = [
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
    return Section(caption, [several, *ROOF], rows)


def report(found: Mapping[str, Any], console: Console) -> None:
    """Print every table that has rows.

    Args:
        found: a benchmark.
        console: to print on.
    """
    for section in sections(found):
        if section.rows:
            console.print(made_table(section.caption.removesuffix(":"), section.headings, section.rows))
        for error in section.errors:
            console.print(f"[red]{escape(error)}[/]", soft_wrap=True, highlight=False)


def store(found: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Write benchmark.json and its plots.

    Args:
        found: a benchmark.
        folder: that is there.
        console: to say so on.
    """
    path = folder / "benchmark.json"
    write_output(path, to_json(found))
    plot(found, folder)
    console.print(f"wrote {path}, latency.png and throughput.png", soft_wrap=True)


def plot(found: Mapping[str, Any], folder: Path) -> None:
    """Draw milliseconds by atoms, and structures a second by batch.

    Args:
        found: a benchmark.
        folder: for latency.png and throughput.png.
    """
    _, several = _named(found["throughput"][0]["structure"])
    figures: dict[str, tuple[str, str, str, Callable[[Any], float]]] = {
        "latency": ("atoms", "atoms", "ms of a whole call", lambda row: row["whole"]["milliseconds"]),
        "throughput": (
            *("batch", f"{several} in a batch", "structures a second"),
            lambda row: row["structures_per_second"],
        ),
    }
    for kind, (key, below, beside, value) in figures.items():
        rows = sorted(found[kind], key=itemgetter(key))
        with drawn(folder / f"{kind}.png", (6.5, 4.0)) as axes:
            for name in dict.fromkeys(row["candidate"] for row in found[kind]):
                points = [(row[key], value(row)) for row in rows if row["candidate"] == name]
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
            axes.set(xscale="log", yscale="log", xlabel=below, ylabel=beside)
            axes.set_title(f"{found['checkpoint']}, {found['conditions']['machine']}")
            axes.legend()
