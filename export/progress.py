"""How long work says what it is doing: it is given a function, and calls it with a line as each step begins."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

__all__ = ["Tell", "TellProgress", "counting", "prefixed", "silent"]

Tell = Callable[[str], None]


def silent(line: str) -> None:
    """Show nothing."""


def prefixed(tell: Tell, words: str) -> Tell:
    """A `Tell` for a part of some work: its lines come after words that say of what they are.

    Args:
        tell: of the whole.
        words: before each line, with what parts them from it.
    """
    return lambda line: tell(f"{words}{line}")


def counting(tell: Tell, total: int, what: str = "structures") -> Callable[[int], None]:
    """Tell how many of a known number are done: at once that none is, and then whenever some more are.

    Args:
        tell: called with a line such as `12 of 400 structures`.
        total: how many there are.
        what: they are.

    Returns:
        A function to call with how many more are done.
    """
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        tell(f"{done} of {total} {what}")

    more(0)
    return more


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
