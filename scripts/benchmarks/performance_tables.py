"""The tables of docs/performance.md, from what `scripts/benchmark_inference.py` measured.

    python scripts/benchmarks/performance_tables.py bench/benchmark.json ... --document docs/performance.md

Everything between the marks of the document is written anew; the first file's student is judged by the criteria, unless
`--tables` asks for the first so many tables alone, as docs/kernels.md has them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.scripts.benchmarks.contenders.contender import EAGER, ORB, PEERS
from painn_deploy.scripts.benchmarks.results import read, sections
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown, write_between_marks

__all__ = ["beside_orb", "criteria", "page"]

PHASES_OF = ("ethanol", "512 waters")
"""Structures whose phases the document shows."""

ENGINE = "onnxruntime"
"""What analyze_model_complexity.py times students with."""


def page(
    benchmarks: Annotated[list[Path], typer.Argument(help="Files that benchmark_inference.py wrote.")],
    document: Annotated[Path, typer.Option(help="Markdown with the marks to write between.")] = Path(
        "docs/performance.md"
    ),
    complexity: Annotated[
        Path | None, typer.Option(help="What analyze_model_complexity.py wrote beside Orb-v2, for that criterion.")
    ] = None,
    tables: Annotated[int | None, typer.Option(help="Of each student, without the criteria; all if not given.")] = None,
) -> None:
    """Write the tables into the document.

    Raises:
        OutputError: the document lacks the marks.
        PaiNNDeployError: a file cannot be read, or Orb-v2 was not timed in it.
    """
    found = [read(path) for path in benchmarks]
    parts = [_student(each, tables) for each in found]
    if tables is None:
        parts += ["## By the seed project's criteria", *criteria(found[0], beside_orb(complexity))]
    write_between_marks(document, "\n\n".join(parts))
    print(f"wrote {document}")


def _student(found: Mapping[str, Any], tables: int | None = None) -> str:
    conditions = found["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    parts = [
        f"## {found['checkpoint']}",
        f"{conditions['machine']}, torch on {conditions['torch_threads']} threads, engines on "
        f"{conditions['engine_threads']} ({versions}); others used {conditions['busy_cores']:.1f} cores.",
    ]
    for section in islice(sections(found, PHASES_OF), tables):
        parts += [section.caption, markdown(section.headings, section.rows)]
        parts += [f"**Failed.** {error}" for error in section.errors]
    return "\n\n".join(parts)


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
    """What the seed project asked for, each met or not by our best engine of this run.

    Args:
        found: a benchmark.
        orb: what Orb-v2 was timed on, in another run, and how many times faster our engine was.
    """
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
    rows = [[what, how, "met" if met else "**not met**"] for what, how, met in lines]
    yield markdown(["criterion", "found", ""], rows)


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


if __name__ == "__main__":
    run_command(page)
