"""`painn-deploy screen`: a screening with its progress on the terminal, and its result at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.errors import OutputError
from painn_deploy.export.packed import packing_of
from painn_deploy.runtime.labelling import select as pick
from painn_deploy.runtime.screening.relaxation import Relaxation
from painn_deploy.runtime.screening.run import Summary, screen
from painn_deploy.runtime.uncertainty.source import uncertainty_of
from painn_deploy.runtime.uncertainty.watch import Limit, without_uncertainty

__all__ = ["SOME_FAILED", "Display", "display", "report", "run_screen"]

SOME_FAILED = 3
"""Exit status where the output is complete and some of its rows have no results."""

QUIET = 10.0
"""Seconds between lines where there is no terminal to draw a bar on."""

SHOWN = 20
"""Failures that are printed; all of them are in the output and in OUT.screening.json."""


def run_screen(
    bundle: Path,
    source: Path,
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    workers: int | None,
    address: str | None,
    worker_memory: float | None,
    relaxation: tuple[float, int] | None,
    flag_above: Limit | None = None,
    select: int | None = None,
    batch_size: int | None,
    threads: int | None = None,
    device: str,
    out: Console,
    err: Console,
) -> Summary:
    """Compute every structure of a file with a bundle's engine, and print where the results are.

    Args:
        bundle: folder NAME.engine.
        source: .extxyz (compressed, too), .db or .traj (ASE), or .parquet.
        output: likewise, by its suffix, but for .traj.
        resume: go on where an earlier run was stopped.
        overwrite: replace what is there.
        workers: processes on Ray; None for this process alone.
        address: of a Ray cluster.
        worker_memory: GiB that a worker may take.
        relaxation: largest force (eV/Å) and steps of a relaxation before; None for none.
        flag_above: see `painn_deploy.runtime.screening.screen`.
        select: structures that are chosen for labels, see `painn_deploy.runtime.labelling.select`; None for none.
        batch_size: rows that are computed and written together; None for the default.
        threads: of the CPU; None for the engine's own choice.
        device: that the engine runs on.
        out: console for the result.
        err: console for progress, and for structures that have no result.

    Returns:
        The outcome, failures of earlier runs of a resumed one included.

    Raises:
        BadParameter: options of workers are given, and no workers; or threads for workers.
        Exit: with status 130, the run was interrupted.
        PaiNNDeployError: see `painn_deploy.runtime.screening.screen`.
    """
    if workers is None and (address is not None or worker_memory is not None):
        raise typer.BadParameter("--address and --worker-memory are about workers; give --workers N too.")
    if workers is not None and threads is not None:
        raise typer.BadParameter("--threads is for a run without workers: a worker has one CPU. Leave one of them out.")
    chosen = None if select is None else _selected(output)
    if chosen is not None:
        _check_selection(bundle, source, chosen, again=overwrite or resume)
    with display(err) as shown:
        try:
            summary = screen(
                bundle,
                source,
                output,
                resume=resume,
                overwrite=overwrite,
                workers=workers,
                address=address,
                relaxation=None if relaxation is None else Relaxation(*relaxation),
                flag_above=flag_above,
                chunk_rows=batch_size,
                threads=threads,
                device=device,
                memory=worker_memory,
                progress=shown,
                tell=shown.tell,
            )
        except KeyboardInterrupt:
            err.print("interrupted; what was done is kept, go on with --resume")
            raise typer.Exit(130) from None
    report(summary, str(output), out, err)
    if select is not None and chosen is not None:
        with display(err) as shown:
            found = pick(output, select, read_bundle(bundle).manifest.cutoff, chosen, tell=shown.tell)
        out.print(
            f"wrote {escape(str(chosen))}: {len(found.rows)} of the {found.candidates} most uncertain structures, the "
            "first to label first",
            soft_wrap=True,
            highlight=False,
        )
        if len(found.rows) < select:
            err.print(f"note: {len(found.rows)} differ, so that no {select} were chosen", highlight=False)
    return summary


def _selected(output: Path) -> Path:
    """The file that chosen structures are written to."""
    whole = Path(output.stem) if packing_of(output) else output
    return output.with_name(f"{whole.stem}.selected.extxyz")


def _check_selection(bundle: Path, source: Path, chosen: Path, *, again: bool) -> None:
    """Refuse, before any work, what could choose nothing at its end.

    Raises:
        BundleError: the bundle does not say how sure it is.
        OutputError: there is such a file, and it is not to be replaced, or is the input.
    """
    if uncertainty_of(read_bundle(bundle)) is None:
        raise without_uncertainty(bundle, "--select")
    if chosen.exists() and source.exists() and chosen.samefile(source):
        raise OutputError(f"{chosen} is the input, and the choice would replace it. Give the output another name.")
    if chosen.exists() and not again:
        raise OutputError(f"{chosen} exists. Give --overwrite to replace it, or another name for the output.")


class Display:
    """Shows rows done, rate and time left: a bar on a terminal, a line now and then in a log.

    Args:
        console: for the lines.
        bar: on the same console.
    """

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._task = bar.add_task("starting", total=None)
        self._begun = self._told = time.monotonic()

    def tell(self, line: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=escape(line))

    def __call__(self, done: int, total: int, computed: int) -> None:
        """Show how far the screening is.

        Args:
            done: rows with a result, those of earlier runs included.
            total: rows.
            computed: rows that this run computed; the rate is theirs.
        """
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
    """Print where the results are, what was kept otherwise than it came, and which structures have no results.

    Args:
        summary: of the screening.
        output: file with the results.
        out: console for the result.
        err: console for notes, and for structures that have no results.
    """
    rows = f"{summary.rows} rows" if summary.rows != 1 else "1 row"
    there = summary.rows - summary.computed
    before = f", {there} of them by an earlier run" if there else ""
    out.print(f"wrote {escape(output)}: {rows}{before}", soft_wrap=True, highlight=False)
    for kind, (count, example) in summary.remarks.items():
        err.print(f"note: {kind}: {count}, as in {escape(example)}", soft_wrap=True, highlight=False)
    if not summary.failures:
        return
    err.print(f"[yellow]{len(summary.failures)} of {rows} have no results[/]:", highlight=False)
    for index, reason in summary.failures[:SHOWN]:
        err.print(f"  {index}: {escape(reason)}", soft_wrap=True, highlight=False)
    if len(summary.failures) > SHOWN:
        err.print(f"  and {len(summary.failures) - SHOWN} more, in {escape(output)}.screening.json", soft_wrap=True)
