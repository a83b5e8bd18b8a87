"""What a bundle costs before and beside its speed: seconds to load it, its size, the memory of its engine."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase import Atoms

from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.runtime import PaiNNCalculator

__all__ = ["costs"]

PEAK = """
import json, sys
from ase import Atoms
from painn_deploy.engines import get_backend
from painn_deploy.export.manifest import read_bundle
from painn_deploy.runtime import PaiNNCalculator
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
bare = peak()
get_backend(read_bundle(sys.argv[1]).manifest.engine).version()
loaded = peak()
threads = json.loads(sys.argv[5])
with PaiNNCalculator(sys.argv[1], device=sys.argv[2], threads=threads) as calculator:
    for _ in range(4):
        calculator.calculate_batch([Atoms(*json.loads(sys.argv[4]))] * int(sys.argv[3]))
print(loaded - bare, peak() - loaded)
"""


def costs(
    bundles: Mapping[str, Path], device: str, atoms: Atoms, batch: int, threads: int | None = None
) -> list[dict[str, Any]]:
    """Load time (s), size on disk (MB), memory of the engine's library, and further memory at a batch (MB, peak).

    Memory is above that of a process which has imported `painn_deploy.runtime`, whose batches are run several times.

    Args:
        bundles: by what to call them.
        device: to run them on.
        atoms: a molecule.
        batch: how many copies of it.
        threads: of a CPU; None for what each engine chooses.

    Returns:
        Rows. One of an engine on a GPU has no memory, since what a process reports of itself is the host's. Where a
        bundle does not run again, in this process or in one of its own, `error` says so in place of what it costs.
    """
    rows: list[dict[str, Any]] = []
    for name, path in bundles.items():
        megabytes = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        rows.append({"candidate": name, "megabytes": megabytes, "batch": batch})
        try:
            rows[-1] |= _measured_costs(path, device, atoms, batch, threads)
        except PaiNNDeployError as error:
            rows[-1]["error"] = str(error)
    return rows


def _measured_costs(path: Path, device: str, atoms: Atoms, batch: int, threads: int | None) -> dict[str, float]:
    """What loading takes, and the memory of an engine on a CPU.

    Raises:
        PaiNNDeployError: the bundle does not run.
    """
    began = time.perf_counter()
    with PaiNNCalculator(path, device=device, threads=threads) as calculator:
        on_cpu = calculator.engine_info["device"] == "cpu"
    found = {"load_seconds": time.perf_counter() - began}
    molecule = json.dumps([atoms.numbers.tolist(), atoms.positions.tolist()])
    command = [sys.executable, "-c", PEAK, str(path), device, str(batch), molecule, json.dumps(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this very Python
    told = re.search(r"^(\d+) (\d+)$", done.stdout, re.MULTILINE)
    if done.returncode or told is None:
        why = (done.stderr.strip() or f"it ended with status {done.returncode}").splitlines()[-1]
        raise PaiNNDeployError(f"{path} does not run in a process of its own: {why}")
    library, above = (int(kibibytes) * 1024 / 1e6 for kibibytes in told.groups())
    return found | ({"library_megabytes": library, "peak_megabytes": above} if on_cpu else {})
