"""What opening a bundle takes, in a process of its own: seconds, and the functions that take most of them.

python -m painn_deploy.scripts.gpu.opening BUNDLE DEVICE FIGURES
"""

import cProfile
import json
import os
import pstats
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from painn_deploy.export.errors import EngineError

__all__ = ["opening", "slowest"]

MOST = 10
"""Functions that are told."""

Stats = dict[tuple[str, int, str], tuple[int, int, float, float, dict[Any, Any]]]
"""As `pstats` has them: calls without recursion, calls, seconds of its own, cumulative seconds, and of each caller
the same."""


def opening(bundle: Path, device: str) -> dict[str, Any]:
    """Seconds of imports, of opening, of the first evaluation and of opening again, in a fresh process.

    Args:
        bundle: that is opened.
        device: on which.

    Raises:
        EngineError: the process failed; the message holds its last words.
    """
    with TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "painn_deploy.scripts.gpu.opening", str(bundle), device, str(figures)]
        began = time.perf_counter()
        # it ends when its standard input does, and so with this process, however that ends
        with subprocess.Popen(  # noqa: S603 - this very Python
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            said = b"" if process.stdout is None else process.stdout.read()
            code = process.wait()
        whole = time.perf_counter() - began
        if code:
            words = said.decode(errors="replace").strip()[-600:]
            raise EngineError(f"The process that opens {bundle.name} ended with {code}: {words}")
        found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
        return found | {"seconds of the process": whole}


def slowest(stats: Stats, *, own: bool) -> list[list[Any]]:
    """The functions that take longest: name, calls, cumulative seconds, seconds of its own, and who calls it longest.

    Args:
        stats: of a profile.
        own: by the seconds of its own; else by cumulative seconds, and then without Python's own ways to a module.
    """
    seen = [(function, of) for function, of in stats.items() if own or not function[0].startswith("<frozen importlib")]
    seen.sort(key=lambda item: item[1][2] if own else item[1][3], reverse=True)
    rows: list[list[Any]] = []
    for function, (_, calls, alone, cumulative, callers) in seen[:MOST]:
        caller = max(callers, key=lambda one: float(callers[one][3]), default=None)
        rows.append([_name(*function), calls, cumulative, alone, "" if caller is None else _name(*caller)])
    return rows


def _name(file: str, line: int, function: str) -> str:
    """A function's name, with the end of its file's path."""
    return function if not line else f"{'/'.join(Path(file).parts[-3:])}:{line} {function}"


def measured(bundle: Path, device: str) -> dict[str, Any]:
    """The same in this process, which should have imported nothing; see `opening`."""
    began = time.perf_counter()
    from ase import Atoms

    from painn_deploy.runtime import PaiNNCalculator
    from painn_deploy.runtime.matrix import graph_inputs

    found: dict[str, Any] = {"seconds of imports": time.perf_counter() - began}
    profiler, began = cProfile.Profile(), time.perf_counter()
    profiler.enable()
    calculator = PaiNNCalculator(bundle, device=device)
    profiler.disable()
    found["seconds"], began = time.perf_counter() - began, time.perf_counter()
    with calculator:
        species = calculator.manifest.species[0]
        pair = Atoms([species] * 2, [[0, 0, 0], [0, 0, 1.2]])
        calculator.session.run(graph_inputs([pair], calculator.manifest.cutoff))
        found["seconds of the first evaluation"] = time.perf_counter() - began
    began = time.perf_counter()
    PaiNNCalculator(bundle, device=device).close()
    found["seconds of opening it again"] = time.perf_counter() - began
    stats: Stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    columns = "name, calls, cumulative s, own s, called by"
    return found | {
        f"longest with what they call: {columns}": slowest(stats, own=False),
        f"longest by themselves: {columns}": slowest(stats, own=True),
    }


def _end_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(9)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    given, asked_device, target = sys.argv[1:]
    try:
        Path(target).write_text(json.dumps(measured(Path(given), asked_device)), encoding="utf-8")
        status = 0
    except Exception as error:  # its words are all that the process that began this one sees
        sys.stderr.write(f"{type(error).__name__}: {error}")
        sys.stderr.flush()
        status = 1
    os._exit(status)  # the thread that reads standard input would hold the interpreter's end up
