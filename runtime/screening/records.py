"""Records of a screening in JSON: read from regular files of bounded size alone, and refused when they say nonsense."""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import OutputError
from painn_deploy.export.reading import AbsentError, read_json
from painn_deploy.runtime.screening.remarks import remarks_from

__all__ = ["PartRecord", "clear_way", "failures_from", "json_bytes", "read_plan", "run_of"]

MOST_BYTES = 256 << 20
"""Of a record: a million failures with their reasons."""


def json_bytes(value: Any) -> bytes:
    """A record as it is written."""
    return f"{json.dumps(value, indent=1)}\n".encode()


def clear_way(path: Path) -> None:
    """Remove what a write would follow or wait for: a link, a pipe, a device; a file is replaced, a folder stays.

    Raises:
        OSError: there is a folder, or it cannot be removed.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise OSError(None, f"{path.name} is a folder; remove it")
    if not stat.S_ISREG(mode):
        path.unlink()


def failures_from(value: Any) -> list[tuple[int, str]]:
    """Index and reason of rows without results.

    Raises:
        ValueError: they are nothing of the kind.
    """
    if not isinstance(value, list):
        raise ValueError("failures are no list")
    made = []
    for one in value:
        match one:
            case [int(index), str(reason)]:
                made.append((index, reason))
            case _:
                raise ValueError("a failure is no pair of an index and a reason")
    return made


_PLAN: dict[str, Callable[[Any], bool]] = {
    "format_version": lambda value: type(value) is int,
    "input_sha256": lambda value: isinstance(value, str),
    "rows": lambda value: type(value) is int and value > 0,
    "output_format": lambda value: isinstance(value, str),
    "engine": lambda value: isinstance(value, dict),
    "relaxation": lambda value: value is None or isinstance(value, dict),
    "chunk_rows": lambda value: type(value) is int and value > 0,
    "batch_slots": lambda value: type(value) is int and value > 0,
    "finished": lambda value: type(value) is bool,
}
_OF_FINISHED = "output_sha256"
"""Of the output; a plan of before there was the key has none."""


def read_plan(path: Path) -> dict[str, Any] | None:
    """The record of an earlier run; None where there was none.

    Raises:
        OutputError: there is something else.
    """
    try:
        plan = read_json(path, MOST_BYTES, finite=False)
        if wrong := [name for name, sound in _PLAN.items() if name not in plan or not sound(plan[name])]:
            raise ValueError(f"{path} has no sound {wrong[0]!r}")
        if plan["finished"]:
            plan["failures"] = failures_from(plan.get("failures"))
            plan["remarks"] = remarks_from(plan.get("remarks", {}))
            if not isinstance(plan.setdefault(_OF_FINISHED, ""), str):
                raise ValueError(f"{path} has no sound {_OF_FINISHED!r}")
    except AbsentError:
        return None
    except ValueError as error:
        raise OutputError(
            f"{path.name} is not the record of a screening: {error}. Give --overwrite to start again, or remove it."
        ) from error
    return plan


def run_of(plan: dict[str, Any]) -> str:
    """A digest of what decides the rows, by which a part is known as one of this run."""
    later = ("finished", "failures", "remarks", _OF_FINISHED)
    return _digest({name: value for name, value in plan.items() if name not in later})


_OF_RECORD = "record_sha256"
"""Of a part's record, without this key."""


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PartRecord:
    """What is known of a part, beside it: by this it is told from one that is cut, altered, swapped or another run's.

    Attributes:
        number: of the chunk.
        rows: in it.
        run: digest of what decides the rows; see `run_of`.
        size: of the part, bytes.
        sha256: of the part.
        failures: index and reason of each row without results.
        remarks: count and example of what was kept otherwise, by kind.
    """

    number: int
    rows: int
    run: str
    size: int
    sha256: str
    failures: list[tuple[int, str]] = field(default_factory=list)
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)

    def written(self) -> bytes:
        """The record as it is written, with a digest of itself: what it says of failures is no less than the rows."""
        return json_bytes(vars(self) | {_OF_RECORD: _digest(vars(self))})

    @classmethod
    def read(cls, path: Path) -> "PartRecord | None":
        """A record; None where there is none that can be read."""
        try:
            match read_json(path, MOST_BYTES, finite=False):
                case {"number": int(number), "rows": int(rows), "run": str(run), "size": int(size), **rest}:
                    failures, remarks = failures_from(rest["failures"]), remarks_from(rest["remarks"])
                    record = cls(number, rows, run, size, str(rest["sha256"]), failures, remarks)
                    return record if rest[_OF_RECORD] == _digest(vars(record)) else None
        except (ValueError, KeyError):
            pass
        return None
