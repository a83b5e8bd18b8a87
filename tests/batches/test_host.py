"""The benchmark of what is around an engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

from painn_deploy.runtime.pairs import compiled
from painn_deploy.scripts.benchmarks.host import Plan, null_times, overlap


def test_it_measures_every_case_and_leaves_the_engine_out(bundle: Path) -> None:
    found = null_times(bundle, Plan(quick=True))
    assert len(found) == 12
    assert all(spent > 0 for spent in found.values())
    times = overlap(bundle, Plan(quick=True))
    assert times["engine"] > 0
    assert times["around it"] < times["as a whole"]


def test_the_switch_takes_array_code_in_another_process() -> None:
    code = "from painn_deploy.runtime.pairs import compiled; print(compiled.loops(), '|', compiled.status())"
    environment = os.environ | {compiled.SWITCH: "0"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert said.stdout == "None | array code, since PAINN_DEPLOY_COMPILED is 0\n"
    code = f"import sys; sys.modules['numba'] = None\n{code}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith('None | array code; pip install "painn-deploy[fast]"'), json.dumps(said.stdout)


def test_machine_code_is_kept_where_nobody_else_writes(tmp_path: Path) -> None:
    code = "from painn_deploy.runtime.pairs import compiled; compiled.loops().load(); print(compiled.status())"
    environment = os.environ | {"PAINN_DEPLOY_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert said.stdout.startswith("compiled by numba")
    assert len(list(tmp_path.rglob("*.nbi"))) == 7
    (tmp_path / "loops").chmod(0o777)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "it holds machine code" in said.stderr
    assert said.stdout.startswith("compiled by numba"), "it is compiled again, and nothing is taken from there"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == before
