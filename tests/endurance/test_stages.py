"""A short form of every stage, with fixed seeds: what the full run measures for an hour must hold here too."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, command_line, environment, run_command


def state(output: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "stages" / stage / "state.json").read_text())
    return found


def checked(output: Path, stage: str, bundles: Path, *more: str) -> dict[str, Any]:
    """Run a stage; everything must hold. Figures come back."""
    done = run_command(output, "--stages", stage, "--bundles", str(bundles), *more)
    assert (output / "stages" / stage).is_dir(), done.stdout + done.stderr
    found = state(output, stage)
    assert found["failures"] == [], done.stdout
    assert (found["state"], done.returncode) == ("done", 0)
    figures: dict[str, Any] = found["figures"]
    return figures


def test_calls_leave_nothing_behind_and_answer_as_at_first(shipped: Path, tmp_path: Path) -> None:
    figures = checked(tmp_path / "out", "calls-onnxruntime", shipped)
    assert (figures["calls"], figures["wrong"]) == (2_000, 0)


def test_opening_and_closing_leaves_nothing_behind(shipped: Path, tmp_path: Path) -> None:
    assert set(checked(tmp_path / "out", "cycles-onnxruntime", shipped)["growth"]) == {
        "opened and closed",
        "unpickled and closed",
    }


def test_threads_and_forks_are_right_or_refused(shipped: Path, tmp_path: Path) -> None:
    trials = checked(tmp_path / "out", "threads-onnxruntime", shipped)["trials"]
    assert trials["a calculator each, ASE"] == {"right": 1_200}
    assert len(trials) == 12


def test_dynamics_keep_energy_and_memory(shipped: Path, tmp_path: Path) -> None:
    figures = checked(tmp_path / "out", "dynamics-onnxruntime", shipped)
    assert figures["steps"] > 0
    assert figures["atoms"] == 81


@pytest.mark.slow
def test_killed_screenings_give_the_same_rows(shipped: Path, tmp_path: Path) -> None:
    formats = checked(tmp_path / "out", "rows-onnxruntime", shipped)["formats"]
    assert formats[".extxyz"]["kills"] >= 2, "one that found nothing to stop is made again"
    assert all(found["same"] for name, found in formats.items() if not name.startswith("awkward"))


@pytest.mark.slow
def test_altered_bundles_are_refused_or_the_same(shipped: Path, tmp_path: Path) -> None:
    figures = checked(tmp_path / "out", "bundles-onnxruntime", shipped)
    assert figures["counts"]["not hashed anew: refused"] > 15


def test_hostile_structures_are_refused_or_answered_rightly(shipped: Path, tmp_path: Path) -> None:
    counts = checked(tmp_path / "out", "structures-onnxruntime", shipped)["counts"]
    assert min(counts["answered"], counts["refused"], counts["held against float64"]) > 20


@pytest.mark.slow
def test_inductor_leaves_nothing_behind_and_survives_threads_and_forks(
    compiled: tuple[Path, Path], tmp_path: Path
) -> None:
    """All its stages run in the full form; these are where it may differ from the others."""
    student, folder = compiled
    more = ("--stages", "cycles,threads", "--engine", "inductor", "--student", str(student), "--bundles", str(folder))
    done = run_command(tmp_path / "out", *more)
    failures = [state(tmp_path / "out", f"{kind}-inductor")["failures"] for kind in ("cycles", "threads")]
    assert failures == [[], []], done.stdout
    assert done.returncode == 0


def test_a_run_that_is_killed_goes_on_where_it_was(shipped: Path, tmp_path: Path) -> None:
    output, more = tmp_path / "out", ("--stages", "calls-onnxruntime", "--bundles", str(shipped))
    samples = output / "stages" / "calls-onnxruntime" / "samples.jsonl"
    command = command_line(output, *more, scale=0.003)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path / "cache"), stdout=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not (samples.is_file() and len(samples.read_text().splitlines()) > 5):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # the command alone: its workers end with it
    process.wait()
    time.sleep(0.5)
    left = len(samples.read_text().splitlines())
    time.sleep(0.5)
    assert len(samples.read_text().splitlines()) == left, "a worker outlived the command"
    assert state(output, "calls-onnxruntime")["state"] == "under way"
    refused = run_command(output, *more, scale=0.003)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    done = run_command(output, *more, "--resume", scale=0.003)
    found = state(output, "calls-onnxruntime")
    assert found["state"] == "done", done.stdout
    assert found["figures"]["growth"]["processes"] == 2
    assert found["figures"]["wrong"] == 0
    assert left >= 5
    (tmp_path / "page.md").write_text("Before.\n<!-- figures -->\nof before\n<!-- /figures -->\nAfter.\n")
    page = run_command(output, "--page", "--stages", "calls-onnxruntime", "--document", str(tmp_path / "page.md"))
    assert page.returncode == 0
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert "| calls-onnxruntime | 3,000 | holds |" in text
    assert "of before" not in text


def test_a_bundle_of_another_student_is_refused(bundle: Path, tmp_path: Path) -> None:
    done = run_command(tmp_path / "out", "--stages", "calls-onnxruntime", "--bundles", str(bundle.parent))
    assert done.returncode == 2
    assert "was not made of student:small" in done.stderr
