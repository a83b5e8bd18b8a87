"""The job that needs a GPU, rehearsed on the CPU: killed, resumed, and with stages that fail, hang or crash."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from ase.build import molecule
from rich.console import Console

from painn_deploy.export import load_student
from painn_deploy.export.errors import EngineError, EngineUnavailableError, OutputError
from painn_deploy.export.fields import GraphOutputs
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, edges_of
from painn_deploy.scripts.gpu import check as gpu_check
from painn_deploy.scripts.gpu.baseline import eager_figures
from painn_deploy.scripts.gpu.cases import Case, Pace, first_requests, made_cases
from painn_deploy.scripts.gpu.measure import Clock, errors, same_bits
from painn_deploy.scripts.gpu.plan import FORMS, Options, plan
from painn_deploy.scripts.gpu.proofs import Subject, farthest, largest_difference, threads
from painn_deploy.scripts.gpu.record import ABSENT, DONE, FAILED, UNDER_WAY, WAITING, Record
from tests import students
from tests.conftest import ROOT

SCRIPT = str(ROOT / "scripts" / "gpu_check.py")


def run(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_where_it_was_and_ends_with_every_stage(tmp_path: Path) -> None:
    student = students.write(tmp_path, "painn", species=[1, 6, 7, 8])
    output = tmp_path / "results"
    asked = [student, "--device", "cpu", "--quick", "--output", output, "--work", tmp_path / "work"]
    asked += ["--engine", "inductor", "--engine", "onnxruntime", "--engine", "tensorrt", "--precision", "fp32"]
    began = time.monotonic()
    job = subprocess.Popen([sys.executable, SCRIPT, *map(str, asked)], stdout=subprocess.PIPE, text=True)
    while not (output / "figures.json").is_file():
        assert time.monotonic() - began < 120, "no figure after two minutes, on a busy machine too"
        time.sleep(0.05)
    while "eager: 1 ethanol: engine call" not in read(output, "figures")["first"]:
        assert time.monotonic() - began < 300
        time.sleep(0.05)
    busy = run(*asked, "--resume")
    assert "Another job writes to" in one_line(busy.stderr)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    time.sleep(1.0)  # its worker ends with it
    before = read(output, "figures")["first"]
    assert read(output, "summary")["stages"]["first"]["state"] == UNDER_WAY
    refused = run(*asked)
    assert refused.returncode == 2
    assert "holds figures.json, summary.json. Give an empty folder" in one_line(refused.stderr)
    done = run(*asked, "--resume")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = read(output, "summary")["stages"]
    main = ("inductor fp32", "onnxruntime fp32")
    expected = ["first", *(f"proof {name}" for name in main), *(f"sizes {name}" for name in main)]
    expected += ["opening inductor fp32", "torch.compile", "builds", f"form {FORMS[1]}"]
    expected += [*(f"dynamics {name}" for name in main), "speed tensorrt fp32", "proof tensorrt fp32"]
    assert list(stages) == [*expected, "benchmark"]
    for name, of in stages.items():
        assert of["state"] == (ABSENT if "tensorrt" in name or name == "torch.compile" else DONE), (name, of)
        assert "tensorrt" not in name or "not installed" in of["reason"]
    after = read(output, "figures")
    assert before.items() <= after["first"].items(), "a figure was measured again, or lost"
    for name in main:
        assert after["first"][f"{name}: 1 ethanol: errors"]["relative force error"] < 1e-5
        assert after["first"][f"{name}: FP32 is FP32"]["holds"]
        assert after[f"sizes {name}"][f"{name}: 384 atoms of water: errors"]["relative force error"] < 1e-5
        assert after[f"sizes {name}"][f"{name}: 384 atoms of water: ASE call"]["ms"] > 0
        assert after[f"proof {name}"]["many calls"]["holds"]
        assert "no CUDA graphs on cpu" in after[f"proof {name}"]["CUDA graphs against plain launches"]["absent"]
    assert (output / "benchmark.json").is_file()
    assert "times eager" in done.stdout
    again = run(*asked, "--resume")  # nothing is left to do
    assert again.returncode == 0
    assert read(output, "figures") == after


def test_the_fused_kernel_is_proved_like_the_others(tmp_path: Path) -> None:
    student = students.write(tmp_path, "painn", species=[1, 6, 7, 8])
    asked = [student, "--device", "cpu", "--quick", "--output", tmp_path / "results", "--work", tmp_path / "work"]
    done = run(*asked, "--engine", "fused", "--precision", "fp32", "--stage", "proof fused")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = read(tmp_path / "results", "figures")["proof fused fp32"]
    proved = [name for name, value in found.items() if isinstance(value, dict) and value.get("holds")]
    assert {"forces are the student's", "many calls", "threads with a session each"} <= set(proved), found


def test_bad_input_is_an_error_in_words(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    quick = ("--device", "cpu", "--quick")
    for arguments, message in (
        (("--device", "cuda", "-o", tmp_path / "a"), "There is no NVIDIA GPU that can be used here"),
        (("--device", "tpu", "-o", tmp_path / "a"), "'tpu' is no device of this job"),
        ((*quick, "-o", blocked / "sub"), "Cannot write to .*--output|Cannot write to .* -o"),
        ((*quick, "--engine", "torch", "-o", tmp_path / "b"), "There is no engine 'torch'; there are: onnxruntime"),
        ((*quick, "--precision", "bf16", "-o", tmp_path / "b"), "There is no precision 'bf16'"),
        ((*quick, "--form", "fast", "-o", tmp_path / "b"), "'fast' is no form of the graph"),
        ((*quick, "--stage", "second", "-o", tmp_path / "b"), "No stage is called second; there are: first"),
        (("missing.safetensors", *quick, "-o", tmp_path / "c"), r"missing\.safetensors"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert re.search(message, one_line(done.stderr)), done.stderr
    assert not (tmp_path / "a").exists(), "what was refused leaves nothing behind"


def test_a_folder_of_another_job_is_refused(tmp_path: Path) -> None:
    Record.begin(tmp_path, {"device": "one", "student": "a"}, ["first"], resume=False)
    with pytest.raises(OutputError, match="another job .device: one there, two here"):
        Record.begin(tmp_path, {"device": "two", "student": "a"}, ["first"], resume=True)
    sound = (tmp_path / "summary.json").read_text()
    for name, content in (
        ("summary", "{"), ("summary", "[]"), ("summary", '{"job": [], "stages": {}}'),
        ("summary", '{"job": {}, "stages": {"first": 1}}'), ("figures", "[]"), ("figures", '{"first": []}'),
    ):  # fmt: skip
        (tmp_path / "summary.json").write_text(sound)
        (tmp_path / f"{name}.json").write_text(content)
        with pytest.raises(OutputError, match="no readable summary"):
            Record.begin(tmp_path, {"device": "one", "student": "a"}, ["first"], resume=True)


def test_what_failed_is_tried_again_and_what_is_done_is_not(tmp_path: Path) -> None:
    record = Record.begin(tmp_path, {}, ["one", "two", "three"], resume=False)
    for name, state in (("one", DONE), ("two", FAILED), ("three", UNDER_WAY)):
        record.note(name, "figure", 1.5)
        record.note(name, "broken", {"failed": "a reason"})
        record.note(name, "wrong", {"holds": False})
        record.set(name, state, "a reason")
    again = Record.begin(tmp_path, {}, ["one", "two", "three", "four"], resume=True)
    assert again.pending() == ["three", "four", "two"], "what was not tried comes first"
    assert ["figure" in again.figures[name] for name in ("one", "two", "three")] == [True, True, True]
    assert not {"broken", "wrong"} & again.figures["two"].keys(), "what failed is measured again"
    assert json.loads((tmp_path / "summary.json").read_text())["stages"]["two"]["state"] == WAITING


WORKER = """
import json, os, sys, time
from painn_deploy.scripts.gpu.record import *
from pathlib import Path
resume, retry = (word == "True" for word in sys.argv[2:])
record = Record.begin(Path(sys.argv[1]), {{}}, ["first", "second", "third"], resume=resume, retry=retry)
for name in record.pending():
    record.set(name, UNDER_WAY, began=time.time(), budget=1.0 if name == "second" else 60.0)
    record.note(name, "begun", True)
    {what}
    record.set(name, DONE)
"""


def supervised(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, deadline: float | None = None
) -> tuple[bool, dict[str, Any]]:
    """The job with a worker of ours in place of the one that measures."""

    def begin(options: Options, folder: Path, *, resume: bool, retry: bool) -> Any:
        program = textwrap.dedent(WORKER).format(what=what)
        return subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(resume), str(retry)], stdin=subprocess.PIPE
        )

    monkeypatch.setattr(gpu_check, "_begin", begin)
    options = Options("student:base", "cpu", "")
    in_time = gpu_check._supervised(options, folder, deadline, resume=False, console=Console(quiet=True))
    return in_time, read(folder, "summary")["stages"]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("name == 'second' and os.kill(os.getpid(), 11)", "its process ended by signal 11"),
        ("name == 'second' and os._exit(5)", "its process ended with status 5"),
        ("name == 'second' and time.sleep(60)", "it took longer than 1 s"),
    ],
)
def test_a_stage_that_crashes_or_hangs_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, reason: str
) -> None:
    in_time, stages = supervised(tmp_path, monkeypatch, what)
    assert in_time
    assert [of["state"] for of in stages.values()] == [DONE, FAILED, DONE]
    assert stages["second"]["reason"] == reason


def test_a_job_stops_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_time, stages = supervised(tmp_path, monkeypatch, "name == 'third' and time.sleep(60)", time.monotonic() + 3)
    assert not in_time
    assert [of["state"] for of in stages.values()] == [DONE, DONE, UNDER_WAY]


@pytest.mark.parametrize("status", [2, 4])
def test_a_worker_that_never_begins_a_stage_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    Record.begin(tmp_path, {}, ["first"], resume=False)
    command = [sys.executable, "-c", f"raise SystemExit({status})"]
    monkeypatch.setattr(gpu_check, "_begin", lambda *_, **__: subprocess.Popen(command, stdin=subprocess.PIPE))
    expected = typer.Exit if status == 2 else OutputError  # with 2 the worker has said why itself
    with pytest.raises(expected):
        gpu_check._supervised(Options("s", "cpu", ""), tmp_path, None, resume=True, console=Console(quiet=True))


def test_the_plan_begins_with_what_matters_and_asks_nothing_twice() -> None:
    names = [stage.name for stage in plan(Options("student:base", "cuda:0", "", forms=FORMS))]
    assert names[:4] == ["first", "proof inductor fp32", "proof fused fp32", "proof onnxruntime fp32"]
    assert not any("fused" in name and "fp32" not in name for name in names)
    assert len(set(names)) == len(names)
    assert not any("inductor int8" in name for name in names)
    assert plan(Options("s", "cpu", "", stages=("proof ind",)))[0].name == "proof inductor fp32"
    with pytest.raises(EngineUnavailableError, match="There is no engine"):
        Options("s", "cpu", "", engines=("caffe",)).check()
    with pytest.raises(EngineError, match="is no form"):
        Options("s", "cpu", "", forms=("x",)).check()
    options = Options("s", "cpu", "", quick=True, forms=("sums",))
    assert Options.from_mapping(json.loads(json.dumps(options.as_dict()))) == options


def test_the_student_stays_where_it_is(painn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch module moves in place, and the references of a later stage are computed on the CPU."""
    student, moved = load_student(painn, dtype=torch.float64), []
    monkeypatch.setattr(EagerModel, "to", lambda self, device: moved.append(self.student) or self)
    cases = made_cases(student, "cpu", first_requests(quick=True))
    eager_figures(lambda name, measure: measure(), student.float(), cases, "cpu", Clock(Pace(1, 0.1)), compiled=False)
    assert len(moved) == 2
    assert all(one is not student for one in moved)


def outputs(value: float) -> GraphOutputs:
    return GraphOutputs(np.full(2, value, "f4"), np.zeros((2, 3), "f4"), np.zeros((2, 3, 3), "f4"))


def test_nan_is_neither_equal_nor_close() -> None:
    fine, broken = outputs(1.0), outputs(float("nan"))
    assert same_bits(fine, outputs(1.0))
    assert not same_bits(broken, broken)
    assert np.isnan(largest_difference(fine, broken))
    for some in ([fine, broken, fine], [broken, fine, fine]):  # wherever it stands
        assert not farthest([fine] * 3, some) <= 1.0
    case = Case("case", [], [], [edges_of([molecule("OH")], 4.0)], [np.array([2.0])], [np.ones((2, 3))])
    found = errors(case, 0, np.array([1.0, np.nan]), np.ones((2, 3), "f4"))
    assert not found["finite"]
    assert np.isnan(found["largest energy error, eV an atom"])


def test_a_thread_that_crashes_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(bundle, "cpu", 1, 4.0)
    assert threads(subject)[0]
    original, opened = subject.open, []

    def once(**options: Any) -> Any:
        opened.append(1)
        if len(opened) > 1:
            raise RuntimeError("a driver's own words")
        return original(**options)

    monkeypatch.setattr(subject, "open", once)
    holds, figures = threads(subject)
    assert not holds
    assert "a driver's own words" in figures["first"]


def test_its_environment_is_no_part_of_a_job() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "tests that are not marked see no GPU"
