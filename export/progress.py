"""How long work says what it is at."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["Tell", "TellProgress"]

Tell = Callable[[str], None]
"""Shows a line about the step that begins."""


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
