"""How commands are run from a shell: errors of ours are one line and no traceback, and any text can be printed."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from painn_deploy.export.errors import PaiNNDeployError

__all__ = ["print_any_text", "print_own_warnings", "run_command"]


def print_any_text() -> None:
    """Print what the output's encoding lacks, such as Å in a batch job's log, as an escape instead of failing at it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def print_own_warnings() -> None:
    """Print a warning of ours as one line, as errors are; Python's own form names a line of whoever calls commands."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **further: Any) -> None:
        if category.__module__.startswith("painn_deploy."):
            print(f"warning: {message}", file=sys.stderr)
        else:
            others(message, category, *where, **further)

    warnings.showwarning = show


def run_command(command: Callable[..., Any]) -> None:
    """Read a function's arguments from the command line, and call it; an error of ours is exit status 1."""
    print_any_text()
    print_own_warnings()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except PaiNNDeployError as error:
        raise SystemExit(f"error: {error}") from error
