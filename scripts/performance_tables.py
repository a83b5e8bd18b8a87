"""The tables of docs/performance.md, from what `scripts/benchmark_inference.py` measured.

    python scripts/performance_tables.py bench/benchmark.json ... --document docs/performance.md

Everything between the marks of the document is written anew; the first file's student is judged by the criteria.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from painn_deploy.export.errors import OutputError, PaiNNDeployError
from painn_deploy.scripts.analyze_model_complexity import ENGINE, ORB
from painn_deploy.scripts.benchmark_inference import PHASES, ROOF, cell, cost_rows, read, roof_rows
from painn_deploy.scripts.benchmarking import EAGER, PEERS
from painn_deploy.scripts.entry import run_command

__all__ = ["beside_orb", "criteria", "page"]

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def page(
    benchmarks: Annotated[list[Path], typer.Argument(help="Files that benchmark_inference.py wrote.")],
    document: Annotated[Path, typer.Option(help="Markdown with the marks to write between.")] = Path(
        "docs/performance.md"
    ),
    complexity: Annotated[
        Path | None, typer.Option(help="What analyze_model_complexity.py wrote beside Orb-v2, for that criterion.")
    ] = None,
) -> None:
    """Write the tables into the document.

    Raises:
        OutputError: the document lacks the marks.
        PaiNNDeployError: a file cannot be read, or Orb-v2 was not timed in it.
    """
    found = [read(path) for path in benchmarks]
    text = document.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise OutputError(f"{document} has no {BEGIN} and {END} to write between.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    students = [_student(each) for each in found]
    tables = "\n\n".join([*students, "## By the seed project's criteria", *criteria(found[0], beside_orb(complexity))])
    document.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
    print(f"wrote {document}")


def _student(found: Mapping[str, Any]) -> str:
    conditions = found["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    names = list(dict.fromkeys(row["candidate"] for row in found["latency"]))
    parts = [
        f"## {found['checkpoint']}",
        f"{conditions['machine']}, torch on {conditions['torch_threads']} threads, engines on "
        f"{conditions['engine_threads']} ({versions}); others used {conditions['busy_cores']:.1f} cores.",
    ]
    for key, title in (("whole", "Whole calls"), ("engine", "Engines alone")):
        cases = dict.fromkeys((row["structure"], row["atoms"]) for row in found["latency"])
        rows = [[f"{n}, {a} atoms", *(cell(found["latency"], key, c, structure=n) for c in names)] for n, a in cases]
        batches = dict.fromkeys(row["batch"] for row in found["throughput"])
        rows += [
            [f"{b} ethanol{'s' if b > 1 else ''}", *(cell(found["throughput"], key, c, batch=b) for c in names)]
            for b in batches
        ]
        parts += [f"{title}, ms and times the speed of eager:", table([title.lower(), *names], rows)]
    rates = [
        [str(batch), *(_rate(found, candidate, batch) for candidate in names)]
        for batch in dict.fromkeys(row["batch"] for row in found["throughput"])
    ]
    parts += ["Ethanols a second, neighbour search and packing included:", table(["batch", *names], rates)]
    ours = list(found["engines"])
    large = dict.fromkeys(row["atoms"] for row in found["scaling"])
    scaled = [[f"{atoms:,} atoms", *(_scaled(found, name, atoms) for name in ours)] for atoms in large]
    parts += ["Water, µs an atom of a whole call, each engine alone in memory:", table(["", *ours], scaled)]
    phases = [
        [f"{row['structure']}, {row['candidate']}", *(f"{row['phases'][phase]:.3f}" for phase in PHASES)]
        for row in found["latency"]
        if row["phases"] and row["structure"] in ("ethanol", "512 waters")
    ]
    parts += ["Where the milliseconds of a whole call go:", table(["", *PHASES], phases)]
    heads, costs, errors = cost_rows(found)
    parts += [f"Costs, memory at {found['costs'][0]['batch']} ethanols:", table(["", *heads], costs)]
    parts += [f"**Failed.** {error}" for error in errors]
    peaks = found["peaks"]
    fastest = ", ".join(f"{2e-9 * rate:,.0f} in {kind}" for kind, rate in peaks["multiply_adds_per_second"].items())
    parts += [
        f"The least time of the work, at {1e-9 * peaks['bytes_per_second']:,.0f} GB/s and {fastest} billion operations "
        "a second, which this machine reached in this run, and the engine's own:",
        table(["ethanols", *ROOF], roof_rows(found)),
    ]
    return "\n\n".join(parts)


def _rate(found: Mapping[str, Any], candidate: str, batch: int) -> str:
    (row,) = (r for r in found["throughput"] if r["candidate"] == candidate and r["batch"] == batch)
    return f"{row['structures_per_second']:,.0f}"


def _scaled(found: Mapping[str, Any], candidate: str, atoms: int) -> str:
    rows = [r for r in found["scaling"] if r["candidate"] == candidate and r["atoms"] == atoms]
    return f"{rows[0]['microseconds_an_atom']:.0f}" if rows else "-"


def beside_orb(complexity: Path | None) -> tuple[str, float] | None:
    """What was timed, and how many times faster the slowest of our engines was than Orb-v2 in the same run.

    Raises:
        PaiNNDeployError: the file cannot be read, or Orb-v2 was not timed in it.
    """
    if complexity is None:
        return None
    try:
        found = json.loads(complexity.read_text(encoding="utf-8"))
        times, timed_on = found["milliseconds"], found["timed_on"]
        orb = min(spent for name, spent in times.items() if name.startswith(f"{ORB},"))
        ours, slowest = max((spent, name) for name, spent in times.items() if name.endswith(f", {ENGINE}"))
    except (OSError, ValueError, KeyError) as error:
        raise PaiNNDeployError(
            f"{complexity} holds no times of Orb-v2 ({error}): run analyze_model_complexity.py where orb-models is "
            "installed, with -o."
        ) from error
    return f"{timed_on}, {slowest.removesuffix(f', {ENGINE}')}", orb / ours


def criteria(found: Mapping[str, Any], orb: tuple[str, float] | None = None) -> Iterator[str]:
    """What the seed project asked for, each met or not by our best engine of this run; Orb-v2 is timed in another."""
    ours = [row for row in found["latency"] if row["candidate"] not in PEERS]
    batched = [row for row in found["throughput"] if row["candidate"] not in PEERS]
    (alone,) = (r for r in found["throughput"] if r["candidate"] == EAGER and r["batch"] == 1)

    def least(structure: str) -> float:
        return min(float(row["whole"]["milliseconds"]) for row in ours if row["structure"] == structure)

    small = max(least(row["structure"]) for row in ours if row["atoms"] < 10)
    rate = max(row["structures_per_second"] for row in batched)
    at_16 = max((row["structures_per_second"] for row in batched if row["batch"] == 16), default=0.0)
    weighed = [row for row in found["costs"] if "peak_megabytes" in row]
    lines = [
        ("5 ms a structure (aspirin)", f"{least('aspirin'):.2f} ms", least("aspirin") <= 5),
        ("2 ms a structure (aspirin)", f"{least('aspirin'):.2f} ms", least("aspirin") <= 2),
        ("below 1 ms for less than 10 atoms", f"{small:.2f} ms", small < 1),
        ("500 structures a second", f"{rate:,.0f}", rate >= 500),
        ("1,000 structures a second", f"{rate:,.0f}", rate >= 1000),
        ("16 times eager one by one, in batches of 16", f"{at_16 / alone['structures_per_second']:.1f} times",
         at_16 >= 16 * alone["structures_per_second"]),
    ]  # fmt: skip
    if weighed:  # of engines on a GPU the host's memory says little
        lines.append(_memory(weighed))
    if orb is not None:
        lines.append((f"10 times faster than Orb-v2 ({orb[0]})", f"{orb[1]:.0f} times", orb[1] >= 10))
    yield f"{found['checkpoint']}, whole calls of its best engine in the run above:"
    yield table(["criterion", "found", ""], [[what, how, "met" if met else "**not met**"] for what, how, met in lines])


def _memory(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, bool]:
    """The criterion of memory, by the engine that takes least."""
    memory, library, leanest = min(
        (row["library_megabytes"] + row["peak_megabytes"], row["library_megabytes"], row["candidate"]) for row in rows
    )
    return (
        f"50 MB above a bare process, at {rows[0]['batch']} ethanols",
        f"{memory:.0f} MB ({leanest}), {library:.0f} of them the engine's library",
        memory <= 50,
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run from a shell."""
    run_command(page)


if __name__ == "__main__":
    main()
