"""Bundles that take long to compile, made side by side, each in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.scripts.gpu.plan import Options

__all__ = ["BuildRequest", "build_all"]

CORES = 2
"""For one compilation, of which most is done by one."""

PROGRAM = """
import json, os, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(9)), daemon=True).start()
from painn_deploy.scripts.commands.export import export_engines
asked = json.loads(sys.argv[1])
try:
    export_engines(asked.pop("student"), asked.pop("output"), **asked)
except Exception as error:
    sys.stderr.write(f"{type(error).__name__}: {error}")
    sys.stderr.flush()
    os._exit(1)
os._exit(0)  # the thread that reads standard input would hold the interpreter's end up
"""
"""Ends with the process that began it, whose end closes its standard input."""


class BuildRequest(NamedTuple):
    """A bundle to be made.

    Attributes:
        engine: by name.
        precision: of it.
        form: of the graph, empty for the engine's own.
    """

    engine: str
    precision: str
    form: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision} {self.form}".strip()


def build_all(
    options: Options, wanted: Sequence[BuildRequest], folder: Callable[[str], Path]
) -> Iterator[tuple[BuildRequest, Callable[[], dict[str, Any]]]]:
    """Make bundles; for each, as it is ready, what gives the seconds it took or raises why it failed.

    Args:
        options: of the job.
        wanted: which.
        folder: that bundles of a form go to.
    """
    cores = os.cpu_count() or 1
    workers = max(1, min(len(wanted), cores // CORES))
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // workers))}

    def build(one: BuildRequest) -> dict[str, Any]:
        asked = {
            "student": options.student, "output": str(folder(one.form)), "engines": [one.engine],
            "precisions": [one.precision], "device": options.device, "form": one.form, "overwrite": True,
        }  # fmt: skip
        began = time.perf_counter()
        command = [sys.executable, "-c", PROGRAM, json.dumps(asked)]
        with subprocess.Popen(  # noqa: S603 - this very Python
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        ) as process:
            said = b"" if process.stderr is None else process.stderr.read()
            code = process.wait()
        if code:
            kind, _, words = said.decode(errors="replace").strip().partition(": ")
            if kind == EngineUnavailableError.__name__:
                raise EngineUnavailableError(words)
            raise EngineError(f"{kind}: {words}"[-600:] if kind else f"its process ended with {code}")
        return {"seconds": time.perf_counter() - began}

    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(build, one): one for one in wanted}
        for done in as_completed(running):
            yield running[done], done.result
