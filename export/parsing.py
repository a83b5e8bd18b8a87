"""JSON that somebody else may have written: bounded, and the same to every reader."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["UnreadableError", "parse_json", "parse_value"]

DEEPEST = 32
"""Lists and objects inside each other; files of ours have six."""

LONGEST_NUMBER = 20
"""Characters of a whole number, which is one of 64 bits."""


class UnreadableError(ValueError):
    """A file that is not read, or is no JSON of the kind that was asked for.

    The message begins with the file and is a sentence without its full stop.
    """


def parse_json(content: bytes | str, source: str, *, finite: bool = True) -> dict[str, Any]:
    """Parse one JSON object in UTF-8, of which every reader sees the same.

    Args:
        content: of the file.
        source: the file, for messages.
        finite: see `parse_value`.

    Raises:
        UnreadableError: see `parse_value`; or it is no object.
    """
    values = parse_value(content, source, finite=finite)
    if not isinstance(values, dict):
        raise UnreadableError(f"{source} holds no JSON object")
    return values


def parse_value(content: bytes | str, source: str, *, finite: bool = True) -> Any:
    """Parse any JSON value in UTF-8.

    Args:
        content: of the file.
        source: the file, for messages.
        finite: refuse NaN, infinity and whole numbers beyond 64 bits, which other readers of JSON do not read; else
            whoever uses the values has to.

    Raises:
        UnreadableError: it is not text, not JSON, gives a key twice, is nested deeper than any of ours, or holds a
            number or a text that cannot be written again.
    """
    hooks: dict[str, Any] = {"parse_constant": _constant, "parse_float": _finite, "parse_int": _whole} if finite else {}
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        values = json.loads(text, object_pairs_hook=_once, **hooks)
        if "\\ud" in text or "\\uD" in text:  # half of a pair that stands for one character, perhaps
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{source} is not text in UTF-8 ({error.reason} at byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise UnreadableError(f"{source} is not JSON: it holds half of a character") from error
    except RecursionError as error:
        raise UnreadableError(f"{source} is not JSON that is read here: it is nested too deep") from error
    except ValueError as error:
        raise UnreadableError(f"{source} is not JSON: {error}") from error
    if _nested(values) > DEEPEST:
        raise UnreadableError(f"{source} is not JSON that is read here: it is nested deeper than {DEEPEST}")
    return values


def _nested(values: Any) -> int:
    """How many lists and objects are inside each other; one that is too many at most is looked at."""
    level, depth = [values] if isinstance(values, Mapping | list) else [], 0
    while level and depth <= DEEPEST:
        inner: list[Any] = []
        for each in level:
            inner.extend(each.values() if isinstance(each, Mapping) else each)
        level, depth = [each for each in inner if isinstance(each, Mapping | list)], depth + 1
    return depth


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in made if keys.count(key) > 1)
        raise ValueError(f"it gives the key {twice[:40]!r} twice")
    return made


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"it holds a whole number of {len(text):,} digits")
    return int(text)


def _constant(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"it holds {text[:40]}, which is too large for a number")
    return number
