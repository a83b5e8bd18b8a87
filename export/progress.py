"""How long work says what it is doing: it is given a function, and calls it with a line as each step begins."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["Tell", "TellProgress", "silent"]

Tell = Callable[[str], None]


def silent(line: str) -> None:
    """Show nothing."""


@runtime_checkable
class TellProgress(Protocol):
    """A `Tell` that also shows how far a step is."""

    def __call__(self, line: str, done: int | None = None, total: int | None = None) -> None:
        """Show a line.

        Args:
            line: about the step that begins.
            done: parts of it that are done; None where that is not known.
            total: parts of it.
        """
