"""The scripts that keep their paths: each starts, and what measures a student takes the one that ships."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import ase.io
import pytest
import typer

from painn_deploy.scripts.benchmarks import analytical_forces, batching, druglike, force_optimizations, inference
from painn_deploy.scripts.studies import analytical_forces as explicit_forces
from painn_deploy.scripts.studies import (
    complexity,
    detailed_validation,
    force_computation,
    model_card,
    precision,
    trade,
)
from tests import students
from tests.conftest import ROOT

from .test_studies import run

ENTRIES = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem not in ("__init__", "cli"))
OF_A_STUDENT = [
    analytical_forces.main,
    batching.main,
    complexity.main,
    detailed_validation.main,
    druglike.main,
    explicit_forces.main,
    force_computation.main,
    force_optimizations.main,
    inference.benchmark,
    model_card.card,
    precision.study,
    trade.trade,
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_says_what_it_takes(
    entry: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{entry}.py", "--help"])
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(str(ROOT / "scripts" / f"{entry}.py"), run_name="__main__")
    assert raised.value.code in (0, None)
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("command", OF_A_STUDENT, ids=lambda command: command.__module__.rpartition(".")[2])
def test_nobody_must_name_a_student(command: Any) -> None:
    app = typer.Typer()
    app.command()(command)
    given = {parameter.name: parameter.required for parameter in typer.main.get_command(app).params}
    of_student = [given[n] for n in ("checkpoint", "checkpoints", "student", "students", "bundle") if n in given]
    assert of_student
    assert not any(of_student)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for each other on a busy machine take most of the time."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_batching_measures_a_bundle_of_the_student_that_ships(one_thread: None) -> None:
    done = run("benchmark_batching", "--quick", "--part", "batches")
    assert done.returncode == 0, done.stderr
    heading = "| ethanols in a batch | ms of processor time an ethanol | against half the batch |"
    assert f"{heading}\n|---|---|---|\n| 1 | " in done.stdout


def test_a_part_that_there_is_not_is_refused() -> None:
    refused = run("benchmark_batching", "--part", "nothing")
    assert refused.returncode == 2
    assert "There is no part 'nothing'" in refused.stderr


@pytest.mark.slow
def test_every_part_of_batching_runs(bundle: Path, painn: Path, one_thread: None) -> None:
    done = run("benchmark_batching", bundle, "--student", painn, "--quick")
    assert done.returncode == 0, done.stderr
    assert "by skin" in done.stdout
    assert "| a second of processor time |" in done.stdout
    assert "| 64 | " in done.stdout
    refused = run("benchmark_batching", bundle, "--quick")
    assert refused.returncode == 1
    assert "was not made from" in refused.stderr


@pytest.mark.parametrize("script", ["validate_analytical_forces", "validate_model_detailed"])
def test_the_student_that_ships_is_validated(script: str, tmp_path: Path, one_thread: None) -> None:
    ase.io.write(tmp_path / "water.extxyz", students.water())
    done = run(script, "--structures", tmp_path / "water.extxyz", "--output", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["checkpoint"] == "student:base"


@pytest.mark.slow
def test_the_student_that_ships_is_benchmarked(tmp_path: Path, one_thread: None) -> None:
    done = run("benchmark_inference", "--quick", "--engine", "onnxruntime", "--no-compiled", "-o", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "benchmark.json").read_text())["checkpoint"] == "student-base"
