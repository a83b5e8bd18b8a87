"""How long work says what it is doing: it is given a function, and calls it with a line as each step begins."""

from collections.abc import Callable

__all__ = ["Tell", "silent"]

Tell = Callable[[str], None]


def silent(line: str) -> None:
    """Show nothing."""
