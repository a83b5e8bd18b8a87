"""What became slower between two runs of `scripts/benchmark_inference.py`, by ratio to each run's own eager baseline.

    python scripts/compare_benchmarks.py before/benchmark.json after/benchmark.json

Exits 1 where a ratio fell by more than the tolerance. Machines and days differ; ratios within a run much less.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.scripts.benchmarks.contenders.contender import EAGER
from painn_deploy.scripts.benchmarks.results import read
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import made_table

__all__ = ["compare", "ratios", "slower"]

TOLERANCE = 0.05
Case = tuple[str, str, str]


def compare(
    before: Annotated[Path, typer.Argument(help="A benchmark.json.")],
    after: Annotated[Path, typer.Argument(help="A later one, of the same student.")],
    tolerance: Annotated[float, typer.Option(help="By which a ratio may fall.")] = TOLERANCE,
) -> None:
    """Flag what got slower against eager."""
    console, (one, two) = Console(), (read(before), read(after))
    if one["checkpoint_sha256"] != two["checkpoint_sha256"]:
        raise PaiNNDeployError(f"{before} is of {one['checkpoint']}, {after} of {two['checkpoint']}: two students.")
    first, second = ratios(one), ratios(two)
    if not first.keys() & second.keys():
        raise PaiNNDeployError(f"{before} and {after} have no case in common.")
    for lost in sorted(first.keys() - second.keys()):
        console.print(f"[yellow]only in {before}[/]: {', '.join(lost)}", soft_wrap=True)
    flagged = slower(first, second, tolerance)
    rows = [
        [*case, f"{first[case]:.2f}x", f"{second[case]:.2f}x", f"{second[case] / first[case] - 1:+.0%}"]
        for case in flagged
    ]
    if rows:
        headings = ["case", "candidate", "what", "before", "after", "change"]
        console.print(made_table("slower than it was, against eager", headings, rows))
        raise typer.Exit(1)
    console.print(f"{len(first.keys() & second.keys())} ratios compared: none fell by more than {tolerance:.0%}")


def slower(before: Mapping[Case, float], after: Mapping[Case, float], tolerance: float) -> list[Case]:
    """Cases whose ratio to eager fell by more than the tolerance.

    Args:
        before: ratios by case, contender and what was timed.
        after: the same of a later run.
        tolerance: share of the ratio before.
    """
    return [case for case in before if case in after and after[case] < before[case] * (1 - tolerance)]


def ratios(found: Mapping[str, Any]) -> dict[Case, float]:
    """Ratio to eager by case, contender and what was timed."""
    return {
        (f"{row['structure']} x {row['batch']}" if "batch" in row else row["structure"], row["candidate"], what): row[
            what
        ]["ratio"]
        for row in (*found["latency"], *found["throughput"])
        for what in ("whole", "engine")
        if row["candidate"] != EAGER and row[what] is not None
    }


if __name__ == "__main__":
    run_command(compare)
