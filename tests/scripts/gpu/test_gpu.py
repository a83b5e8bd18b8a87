"""What needs an NVIDIA GPU: stages of `scripts/gpu_check.py`, one by one, each in a process of its own.

An illegal address ends a GPU's context with its process, so that no test here can be the reason why another fails.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from painn_deploy.scripts.gpu.plan import Options, plan
from painn_deploy.scripts.gpu.record import ABSENT, DONE
from tests.conftest import ROOT, VISIBLE

pytestmark = pytest.mark.gpu

STAGES = [
    stage.name
    for stage in plan(Options("student:base", "cuda:0", ""))
    if stage.kind in ("first", "proof", "sizes", "opening", "dynamics")
]
ASKED = "from painn_deploy.engines.gpu.driver import driver; found = driver(); print(found.gpus, found.reason)"


@pytest.fixture(scope="module")
def with_gpu() -> dict[str, str]:
    """The environment in which a GPU is visible; skips where there is none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if environment[VISIBLE] != "all":
        environment["CUDA_VISIBLE_DEVICES"] = environment[VISIBLE]
    done = subprocess.run([sys.executable, "-c", ASKED], env=environment, capture_output=True, text=True, check=True)
    count, _, reason = done.stdout.strip().partition(" ")
    if count == "0":
        pytest.skip(f"there is no NVIDIA GPU that can be used: {reason}")
    return environment


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_holds_on_this_gpu(with_gpu: dict[str, str], stage: str, tmp_path: Path) -> None:
    output = tmp_path / "results"
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--output", str(output), "--stage", stage]
    done = subprocess.run([*command, "--quick"], env=with_gpu, capture_output=True, text=True, check=False)
    assert (output / "summary.json").is_file(), done.stderr
    found = json.loads((output / "summary.json").read_text())["stages"][stage]
    if found["state"] == ABSENT:
        pytest.skip(found["reason"])
    assert found["state"] == DONE, f"{found.get('reason')}\n{done.stdout[-3000:]}"
