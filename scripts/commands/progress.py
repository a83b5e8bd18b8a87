"""A line on the terminal that says which step a command is at."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn

from painn_deploy.export.progress import Tell

__all__ = ["steps"]


@contextmanager
def steps(console: Console) -> Iterator[Tell]:
    """Show one line with the step that is being done and its seconds, for as long as the block runs.

    Args:
        console: to show the line on; a terminal, or nothing is shown.

    Yields:
        A function that changes the line's text.
    """
    columns = (TextColumn("{task.description}"), TextColumn("[dim]{task.elapsed:.0f} s[/]"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting")
        yield lambda line: progress.update(task, description=escape(line))
