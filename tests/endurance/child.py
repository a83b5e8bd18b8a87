"""Children with limits of time and memory, which end with the process that began them, whatever ends that."""

import ctypes
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

__all__ = ["Emit", "Ended", "end_with_parent", "in_child", "what_failed"]

Emit = Callable[[Any], None]
"""Takes what JSON can hold to the parent, at once."""

GIB = 2**30
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        how: `done`, `error`, `signal`, `hang` (no message within the limit) or `status`.
        detail: of the error, or the number of the signal or status.
    """

    how: str
    detail: Any = None

    def __str__(self) -> str:
        """In a few words."""
        match self.how:
            case "done":
                return "done"
            case "error":
                return f"{self.detail['error']}: {self.detail['text']} ({self.detail['where']})"
            case "hang":
                return f"no answer within {self.detail:g} s"
        return f"ended by {self.how} {self.detail}"


def end_with_parent() -> None:
    """Have this process killed when its parent ends (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def what_failed(error: BaseException) -> dict[str, Any]:
    """An exception in plain words: its class, whether it is ours, its text, and where it was raised."""
    from painn_deploy.export.errors import PaiNNDeployError

    frames = traceback.extract_tb(error.__traceback__)
    where = f"{'/'.join(frames[-1].filename.split('/')[-3:])}:{frames[-1].lineno}" if frames else ""
    return {
        "error": type(error).__name__,
        "ours": isinstance(error, PaiNNDeployError),
        "text": str(error)[:300],
        "where": where,
    }


def in_child(
    function: Callable[..., None], *args: Any, seconds: float, gib: float, heard: Callable[[Any], None]
) -> Ended:
    """Run a function in a forked child.

    Args:
        function: called with an `Emit` and `args`; an exception ends the child and is told.
        args: of the function.
        seconds: that may pass until its first message, between two, and until its end.
        gib: memory that it may take beyond what this process has.
        heard: called here with each message.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            _limited(gib)
            _told(function, args, writing)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        return _followed(pid, reading, seconds, heard)
    finally:
        os.close(reading)


def _limited(gib: float) -> None:
    """In the child: a session of its own, its parent's end, quiet, and no more memory than that."""
    os.setsid()
    end_with_parent()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    with open("/proc/self/statm") as file:  # noqa: PTH123
        has = int(file.read().split()[5]) * resource.getpagesize()
    most = int(has + gib * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _told(function: Callable[..., None], args: tuple[Any, ...], writing: int) -> None:
    def emit(message: Any) -> None:
        data = json.dumps(message, default=str).encode() + b"\n"
        while data:
            data = data[os.write(writing, data) :]

    try:
        function(lambda value: emit({"message": value}), *args)
        end: Any = {"end": None}
    except BaseException as error:
        end = {"end": what_failed(error)}
    emit(end)


def _followed(pid: int, reading: int, seconds: float, heard: Callable[[Any], None]) -> Ended:
    ended: Ended | None = None
    rest, deadline, status = b"", time.monotonic() + seconds, None
    while ended is None:
        ready, _, _ = select.select([reading], [], [], 0.05 if status is None else 0)
        chunk = os.read(reading, 1 << 16) if ready else b""
        if not chunk and status is not None:  # it is gone, and all that it wrote was read
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            deadline, value = time.monotonic() + seconds, json.loads(line)
            if "message" in value:
                heard(value["message"])
            else:
                ended = Ended("done") if value["end"] is None else Ended("error", value["end"])
        if ended is None and time.monotonic() > deadline:
            ended = Ended("hang", seconds)
        if status is None:
            done, found = os.waitpid(pid, os.WNOHANG)
            status = found if done else None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what it began ends too
    if status is None:
        _, status = os.waitpid(pid, 0)
    if ended is not None:
        return ended
    code = os.waitstatus_to_exitcode(status)
    return Ended("signal", -code) if code < 0 else Ended("status", code)
