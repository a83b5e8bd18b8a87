"""The bundles of the job: made when a stage asks for one, or side by side, each in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from painn_deploy.engines import get_backend
from painn_deploy.engines.gpu.cuda import compute_capability
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.files import to_json
from painn_deploy.export.manifest import SUFFIX
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.gpu.plan import TF32, Figures, Options
from painn_deploy.scripts.gpu.record import Record, Unavailable

__all__ = ["BuildRequest", "Bundles", "build_all"]

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
        precision: of it, one of the job's.
        form: of the graph, empty for the engine's own.
    """

    engine: str
    precision: str
    form: str = ""

    @property
    def written(self) -> str:
        """The precision that its manifest has."""
        return "fp32" if self.precision == TF32 else self.precision

    @property
    def exported(self) -> dict[str, Any]:
        """Arguments of `export_engines`."""
        return {
            "engines": [self.engine], "precisions": [self.written], "tf32": self.precision == TF32, "form": self.form,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{self.engine} {self.precision} {self.form}".strip()


def build_all(
    options: Options, wanted: Sequence[BuildRequest], folder: Callable[[BuildRequest], Path]
) -> Iterator[tuple[BuildRequest, Callable[[], dict[str, Any]]]]:
    """Make bundles; for each, as it is ready, what gives the seconds it took or raises why it failed.

    Args:
        options: of the job.
        wanted: which.
        folder: that a bundle goes to.
    """
    cores = os.cpu_count() or 1
    workers = max(1, min(len(wanted), cores // CORES))
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // workers))}

    def build(one: BuildRequest) -> dict[str, Any]:
        asked = {
            "student": options.student, "output": str(folder(one)), "device": options.device, "overwrite": True,
            **one.exported,
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


class Bundles:
    """The bundles of a job, each made when it is first asked for; what failed in this process is not tried again.

    Args:
        options: of the job.
        record: of the job, whose machine, versions and student the bundles are of.
    """

    def __init__(self, options: Options, record: Record) -> None:
        self._options, self._record = options, record
        self._failed: dict[Path, Exception] = {}

    def get(self, keep: Figures, engine: str, precision: str, form: str = "") -> Path:
        """An engine's bundle, exported if it is not there.

        Args:
            keep: runs a step and keeps what it returns in the record.
            engine: backend.
            precision: one of the job's.
            form: of the graph; empty for the backend's own.

        Raises:
            Unavailable: the engine cannot run on the job's device.
        """
        one = BuildRequest(engine, precision, form)
        self._check_here(one)
        path = self.path(one)
        if path.is_dir():
            return path
        if path in self._failed:  # it would take as long again
            raise self._failed[path]
        began = time.perf_counter()
        try:
            (made,) = export_engines(
                self._options.student,
                path.parent,
                compute_capabilities=[compute_capability(0)] if engine == "tensorrt-rtx" else [],
                device=self._options.device,
                tell=self._record.tell,
                **one.exported,
            )
        except Exception as error:
            self._failed[path] = error
            raise
        keep(f"{engine} {precision}: seconds of the export", lambda: time.perf_counter() - began)
        return made

    def build(self, keep: Figures, wanted: Sequence[BuildRequest]) -> None:
        """Those of engines that are here, side by side.

        Args:
            keep: runs a step and keeps what it returns in the record.
            wanted: which.
        """
        missing = []
        for one in wanted:
            with suppress(Unavailable, EngineUnavailableError):  # its own stage says so
                self._check_here(one)
                missing += [] if self.path(one).is_dir() else [one]
        for one, outcome in build_all(self._options, missing, self.folder):
            keep(f"{one}: build", self._remembered(one, outcome))

    def _remembered(self, one: BuildRequest, outcome: Callable[[], Any]) -> Callable[[], Any]:
        def result() -> Any:
            try:
                return outcome()
            except Exception as error:
                self._failed[self.path(one)] = error
                raise

        return result

    def folder(self, one: BuildRequest) -> Path:
        """Of bundles in a form; those of another machine, version or student lie elsewhere."""
        of = hashlib.sha256(to_json(self._record.job)).hexdigest()[:16]
        return Path(self._options.work) / of / (one.form.translate(str.maketrans("+@,", "---")) or "default")

    def path(self, one: BuildRequest) -> Path:
        """Of a bundle, as `export_engines` names it.

        Args:
            one: what is asked for.
        """
        return self.folder(one) / f"{self._record.job['student']}-{one.engine}-{one.precision}{SUFFIX}"

    def _check_here(self, one: BuildRequest) -> None:
        """Refuse what cannot run on the job's device.

        Raises:
            Unavailable: it says why.
        """
        engine, device = one.engine, self._options.device
        backend, kind = get_backend(engine), device.partition(":")[0]
        if not any(other.partition(":")[0] == kind for other in backend.devices()):
            raise Unavailable(f"{engine} {backend.version()} cannot run on {device} here.")
        if one.written not in backend.precisions or (one.precision == TF32 and not backend.honours_tf32(device)):
            raise Unavailable(f"{engine} has no {one.precision} on {kind}.")
