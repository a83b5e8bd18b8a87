"""What figures are of: machine, versions, commit, day, student and bundle."""

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from painn_deploy.engines.gpu.machine import machine
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.checkpoint import resolve_checkpoint
from painn_deploy.export.errors import OutputError
from painn_deploy.export.versions import installed

from .plan import Options

__all__ = ["identity"]

PACKAGES = ("painn-deploy", "torch", "onnxruntime", "tensorrt-rtx", "numpy", "ase", "vesin", "pyarrow")

ROOT = Path(__file__).parents[2]


def identity(options: Options, bundle: Path) -> dict[str, Any]:
    """The identity of a stage's figures.

    Args:
        options: of the run.
        bundle: that the stage is about.

    Raises:
        BundleError: the bundle is damaged.
        OutputError: it is of another student, which nothing could be held against.
    """
    read = read_bundle(bundle)
    if read.manifest.checkpoint_sha256 != resolve_checkpoint(options.student).sha256:
        raise OutputError(f"{bundle} was not made of {options.student}. Name its checkpoint with --student.")
    return {
        "machine": machine(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": installed(PACKAGES),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "student": options.student,
        "bundle_sha256": read.sha256,
        "scale": options.scale,
        "seed": options.seed,
    }


def _commit() -> str:
    """The commit that is checked out, and whether files were changed since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f"{git('rev-parse', '--short=12', 'HEAD') or 'unknown'}{', with changes' if changed else ''}"
    except OSError:  # no git here
        return "unknown"
