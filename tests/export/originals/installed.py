"""Other people's packages beside this interpreter's torch, in a folder of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

# What `import schnetpack` needs besides numpy, scipy, ase and torch. Without their dependencies: SchNetPack asks for
# sympy <= 1.12, which no torch of the last two years accepts.
SCHNETPACK = (
    "schnetpack==2.1.1", "matscipy==1.3.1", "h5py==3.16.0", "omegaconf==2.3.1", "antlr4-python3-runtime==4.9.3",
    "PyYAML==6.0.3", "tqdm==4.70.1", "torch-ema==0.3", "dirsync==2.2.6", "fasteners==0.20",
    "pytorch-lightning==2.6.6", "torchmetrics==1.9.0", "lightning-utilities==0.15.3",
)  # fmt: skip
# SchNetPack 2.1.1 imports a type variable that torch 2.13 no longer has; nothing computes with it.
SHIM = "import typing, torch.utils.data.dataloader as d\nd.T_co = typing.TypeVar('T_co', covariant=True)\n"


def install(packages: Sequence[str], folder: Path, shim: str = "") -> dict[str, str]:
    """The variables under which those packages can be imported, of which each is named and no dependency is added."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{packages[0]} cannot be installed here: {done.stderr.strip()[-300:]}"
        if os.environ.get("PAINN_DEPLOY_DEMAND_REFERENCES"):
            pytest.fail(message)
        pytest.skip(message)
    (folder / "sitecustomize.py").write_text(shim)
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def written(environment: dict[str, str], program: Path, folder: Path) -> Path:
    """The folder that a program wrote its files into."""
    done = run(environment, program, folder)
    assert done.returncode == 0, done.stderr
    return folder
