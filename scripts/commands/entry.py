"""How the stand-alone scripts are run from a shell: errors of ours are one line and exit status 1, no traceback."""

from collections.abc import Callable
from typing import Any

import typer

from painn_deploy.export.errors import PaiNNDeployError

__all__ = ["run_command"]


def run_command(command: Callable[..., Any]) -> None:
    """Read a function's arguments from the command line, and call it."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except PaiNNDeployError as error:
        raise SystemExit(f"error: {error}") from error
