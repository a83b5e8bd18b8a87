"""`painn-deploy lammps` on ranks, as a user starts it."""

import subprocess
import sys
from pathlib import Path

__all__ = ["run_lammps"]


def run_lammps(
    bundle: Path, folder: Path, text: str, ranks: int, *options: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run an input in a folder, and fail where it is not over after so many seconds."""
    (folder / "in.lammps").write_text(text)
    program = [sys.executable, "-m", "painn_deploy.scripts.cli", "lammps", str(bundle), "in.lammps"]
    command = [*program, "--ranks", str(ranks), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)
