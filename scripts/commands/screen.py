"""What `painn-deploy screen` shows while it runs, and says at its end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from painn_deploy.runtime.screening.run import Summary

__all__ = ["Display", "display", "report"]

QUIET = 10.0
"""Seconds between lines where there is no terminal to draw a bar on."""

SHOWN = 20
"""Failures that are printed; all of them are in the output and in OUT.screening.json."""


class Display:
    """Rows done, rate and time left: a bar on a terminal, a line now and then in a log."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._task = bar.add_task("starting", total=None)
        self._begun = self._told = time.monotonic()

    def tell(self, line: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=escape(line))

    def __call__(self, done: int, total: int, computed: int) -> None:
        """Show how far it is; the rate is that of the rows of this run."""
        now = time.monotonic()
        if computed == 0:
            self._begun = now
        rate = computed / (now - self._begun) if now > self._begun else 0.0
        left = f"{_duration((total - done) / rate)} left" if rate else ""
        speed = f"{rate:,.0f} structures/s" if rate else ""
        self._bar.update(
            self._task, completed=done, total=total, description=f"{done:,} of {total:,}  {speed}  {left}".strip()
        )
        if not self._console.is_terminal and (now - self._told > QUIET or done == total):
            self._told = now
            self._console.print(f"{done} of {total}  {speed}  {left}".strip(), highlight=False, soft_wrap=True)


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """A display for as long as the block runs."""
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        yield Display(console, bar)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def report(summary: Summary, output: str, out: Console, err: Console) -> None:
    """The result: where it is, and what has no answer."""
    rows = f"{summary.rows} rows" if summary.rows != 1 else "1 row"
    there = summary.rows - summary.computed
    before = f", {there} of them by an earlier run" if there else ""
    out.print(f"wrote {escape(output)}: {rows}{before}", soft_wrap=True, highlight=False)
    if not summary.failures:
        return
    err.print(f"[yellow]{len(summary.failures)} of {rows} have no results[/]:", highlight=False)
    for index, reason in summary.failures[:SHOWN]:
        err.print(f"  {index}: {escape(reason)}", soft_wrap=True, highlight=False)
    if len(summary.failures) > SHOWN:
        err.print(f"  and {len(summary.failures) - SHOWN} more, in {escape(output)}.screening.json", soft_wrap=True)
