"""The benchmark runs for real, and what got slower is found."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from ase.build import molecule
from rich.console import Console

from painn_deploy.calibration.timing import mover, samples
from painn_deploy.export.errors import PaiNNDeployError
from painn_deploy.runtime import PaiNNCalculator, machine
from painn_deploy.scripts.benchmarks import footprint, inference
from painn_deploy.scripts.benchmarks.cases import sizes
from painn_deploy.scripts.benchmarks.compare import compare
from painn_deploy.scripts.benchmarks.contenders.bundles import Bundle
from painn_deploy.scripts.benchmarks.contenders.contender import EAGER
from painn_deploy.scripts.benchmarks.footprint import costs
from painn_deploy.scripts.benchmarks.inference import bench_bundles, benchmark
from painn_deploy.scripts.benchmarks.performance_tables import page
from painn_deploy.scripts.benchmarks.results import read, report, sections
from painn_deploy.scripts.commands.outputs import MARKS, markdown, write_between_marks
from painn_deploy.scripts.profiling import roofline
from painn_deploy.scripts.profiling.costs import Cost
from painn_deploy.scripts.profiling.roofline import Peaks, Roof, measured_peaks, roof
from tests import students
from tests.conftest import ROOT

from .test_cli import run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    checkpoint = students.write(folder, "distiller", species=[1, 6, 8])
    return benchmark(
        str(checkpoint), folder / "out", engine=["onnxruntime"], radial_table=True, compiled=False, quick=True
    )


def test_it_times_every_candidate_on_every_structure_and_batch(found: Path) -> None:
    values = read(found)
    candidates = {EAGER, "onnxruntime fp32", "onnxruntime fp32 table"}
    for rows, key, cases in (("latency", "structure", 4), ("throughput", "batch", 4)):
        assert {row["candidate"] for row in values[rows]} == candidates
        assert len({row[key] for row in values[rows]}) == cases
        for row in values[rows]:
            for what in ("whole", "engine"):
                assert 0 < row[what]["quarter"] <= row[what]["milliseconds"] <= row[what]["three_quarters"]
            if row["candidate"] == EAGER:
                assert row["whole"]["ratio"] == row["engine"]["ratio"] == 1
    ours = [row for row in values["latency"] if row["candidate"] != EAGER]
    for row in ours:
        assert row["phases"]["engine"] > 0
        assert row["phases"]["neighbours"] > 0
    assert values["radial_tables"]["onnxruntime fp32 table"]["max_force_error"] < 2e-5
    assert {"machine", "versions", "torch_threads", "busy_cores"} <= values["conditions"].keys()
    for row in values["costs"]:
        assert min(row["export_seconds"], row["load_seconds"], row["peak_megabytes"], row["megabytes"]) > 0
    assert {row["candidate"] for row in values["roofline"]} == candidates - {EAGER}
    assert {row["batch"] for row in values["roofline"]} == {1, 8}
    for row in values["roofline"]:
        assert row["share"] == pytest.approx(row["least_milliseconds"] / row["milliseconds"])
        assert row["least_milliseconds"] > 0
    for name in ("latency.png", "throughput.png"):
        assert (found.parent / name).stat().st_size > 10_000


def test_the_least_time_is_that_of_the_slower_of_arithmetic_and_traffic() -> None:
    peaks = Peaks(bytes_per_second=1e9, multiply_adds_per_second={"fp32": 1e9, "int8": 4e9})
    cost = Cost(3_000_000, elementwise=0, bytes_written=9_000_000, bytes_least=2_000_000, peak_bytes=0, weight_bytes=0)
    assert roof(cost, peaks, "fp32") == Roof(3.0, "arithmetic")
    assert roof(cost, peaks, "int8") == Roof(2.0, "memory")


def test_peaks_are_measured_and_a_device_that_is_not_here_is_refused() -> None:
    peaks = measured_peaks("cpu", ("fp32", "int8"))
    assert 1e8 < peaks.bytes_per_second < 1e13
    assert 1e8 < peaks.multiply_adds_per_second["fp32"] <= peaks.multiply_adds_per_second["int8"] < 1e14
    if not torch.cuda.is_available():
        with pytest.raises(PaiNNDeployError, match="no GPU that torch can use"):
            measured_peaks("cuda")


def test_peaks_are_measured_on_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[torch.Tensor] = []

    def once(work: Callable[[], torch.Tensor], kind: str) -> float:
        results.append(work())
        return 1.0

    monkeypatch.setattr(roofline, "_best", once)
    monkeypatch.setattr(roofline, "COPIED", {"cpu": 4096})
    monkeypatch.setattr(roofline, "ORDERS", {"cpu": 64})
    measured_peaks("cpu", ("fp32", "int8"))
    assert {str(result.dtype) for result in results} == {"torch.float32", "torch.int32"}
    for result in results:
        assert len(result.unique()) > result.numel() / 3, "of ones every sum is the same, and a GPU takes less power"


def test_a_bundle_that_fails_costs_no_other_its_row(
    found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle,) = (found.parent / "engines" / "plain").iterdir()
    shutil.copytree(bundle, tmp_path / "damaged.engine")
    (tmp_path / "damaged.engine" / "model.onnx").write_bytes(b"nothing")
    bundles = {"damaged": tmp_path / "damaged.engine", "whole": bundle}
    damaged, whole = costs(bundles, "cpu", molecule("H2O"), 2)
    assert "altered after export" in damaged["error"]
    assert "error" not in whole
    assert min(whole["load_seconds"], whole["peak_megabytes"], whole["megabytes"]) > 0

    monkeypatch.setattr(footprint, "PEAK", "import sys; print('told'); sys.exit('a library is missing')")
    (alone,) = costs({"alone": bundle}, "cpu", molecule("H2O"), 2)
    assert alone["error"].endswith("does not run in a process of its own: a library is missing")
    monkeypatch.setattr(footprint, "PEAK", "print('12 34'); print('and a library that talks')")
    (talks,) = costs({"talks": bundle}, "cpu", molecule("H2O"), 2)
    assert talks["peak_megabytes"] == 34 * 1024 / 1e6


def test_tables_show_what_failed_and_what_has_no_memory_of_its_own(found: Path, tmp_path: Path) -> None:
    values = read(found)
    first, second = values["costs"]
    for row in (first, second):  # as of engines on a GPU
        del row["library_megabytes"], row["peak_megabytes"]
    del second["load_seconds"]
    second["error"] = "it does not run in a process of its own: no [library]"
    (tmp_path / "benchmark.json").write_text(json.dumps(values))
    console = Console(width=200, record=True, quiet=False)
    report(values, console)
    printed = console.export_text()
    assert "onnxruntime fp32 table: it does not run in a process of its own: no [library]" in printed
    assert "MB of the engine" not in printed
    document = tmp_path / "performance.md"
    document.write_text("<!-- figures --><!-- /figures -->")
    page([tmp_path / "benchmark.json"], document)
    text = document.read_text()
    assert "**Failed.** onnxruntime fp32 table: it does not run" in text
    assert "50 MB above a bare process" not in text
    page([found], document)
    assert "50 MB above a bare process" in (whole := document.read_text())
    page([found], document, tables=1)
    first = document.read_text()
    assert whole.count("\n|---") > first.count("\n|---") == 1
    assert "criteria" in whole
    assert "criteria" not in first


def test_what_was_timed_is_kept_when_a_later_part_fails(
    found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise PaiNNDeployError("no peaks")

    monkeypatch.setattr(inference, "rooflines", fails)
    (bundle,) = (found.parent / "engines" / "plain").iterdir()
    with pytest.raises(PaiNNDeployError, match="no peaks"):
        bench_bundles([bundle], [], tmp_path / "out", quick=True, device="cpu", console=Console(quiet=True))
    kept = read(tmp_path / "out" / "benchmark.json")
    assert kept["checkpoint"] == "bundles"
    assert kept["latency"]
    assert kept["throughput"]
    assert kept["costs"][0]["peak_megabytes"] > 0


def test_the_machine_of_a_gpu_s_times_has_the_gpu_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_of", {"cpu": None, "cuda:0": "NVIDIA First", "cuda:1": "NVIDIA First"}.get)
    assert machine.machine(["cpu"]) == machine.machine()
    assert machine.machine(["cpu", "cuda:0", "cuda:1"]) == f"{machine.machine()}, NVIDIA First"
    assert machine.machine().startswith(machine.processor())


def test_every_call_computes(found: Path) -> None:
    (bundle,) = (found.parent / "engines" / "plain").iterdir()
    with PaiNNCalculator(bundle, device="cpu") as calculator:
        (water,) = sizes([1, 8], quick=True)
        fresh = mover(water.given, np.random.default_rng(0))
        samples({"engine": Bundle(calculator, "engine").whole}, fresh, calls=3, blocks=2)
        assert calculator.timings.calculations == 2 * (2 + 3), "a result that is remembered is no time"


def test_what_got_slower_by_ratio_is_flagged_and_nothing_else(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(found, found)
    assert "none fell by more than 5%" in capsys.readouterr().out
    values = read(found)
    worse, other_machine = copy.deepcopy(values), copy.deepcopy(values)
    row = next(row for row in worse["latency"] if row["structure"] == "ethanol" and row["candidate"] != EAGER)
    row["engine"]["ratio"] *= 0.94
    for each in other_machine["latency"]:  # twice as slow throughout: the ratios are the same
        each["whole"]["milliseconds"] *= 2
    for name, content in (("worse", worse), ("other", other_machine)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    compare(found, tmp_path / "other.json")
    with pytest.raises(typer.Exit) as raised:
        compare(found, tmp_path / "worse.json")
    assert raised.value.exit_code == 1
    told = capsys.readouterr().out
    assert "ethanol" in told
    assert "engine" in told
    assert "-6%" in told
    compare(found, tmp_path / "worse.json", tolerance=0.1)


def test_files_that_are_no_benchmark_or_of_another_student_are_refused(found: Path, tmp_path: Path) -> None:
    other = read(found) | {"checkpoint_sha256": "0" * 64, "checkpoint": "another"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(PaiNNDeployError, match=r"of distiller, .* of another: two students"):
        compare(found, tmp_path / "other.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(PaiNNDeployError, match="is not what scripts/benchmark_inference.py writes"):
        compare(found, tmp_path / "list.json")
    with pytest.raises(PaiNNDeployError, match="Cannot read"):
        compare(found, tmp_path / "missing.json")


def test_the_document_s_tables_are_written_between_its_marks(found: Path, tmp_path: Path) -> None:
    document, orb = tmp_path / "performance.md", tmp_path / "complexity.json"
    document.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    times = {"student, onnxruntime": 0.5, "student, eager": 2.0, "Orb-v2, eager": 4.0}
    orb.write_text(json.dumps({"timed_on": "ethanol", "milliseconds": times}))
    page([found], document, orb)
    text = document.read_text()
    assert text.startswith("before\n<!-- figures -->\n\n## distiller\n")
    assert text.endswith("<!-- /figures -->\nafter\n")
    assert "old" not in text
    assert "| 10 times faster than Orb-v2 (ethanol, student) | 8 times | **not met** |" in text
    aspirin = min(
        row["whole"]["milliseconds"]
        for row in read(found)["latency"]
        if row["structure"] == "aspirin" and row["candidate"] != EAGER
    )
    assert f"| 2 ms a structure (aspirin) | {aspirin:.2f} ms |" in text
    for file, message in ((found, "holds no times of Orb-v2"), (tmp_path / "none.json", "holds no times of Orb-v2")):
        with pytest.raises(PaiNNDeployError, match=message):
            page([found], document, file)
    document.write_text("no marks")
    with pytest.raises(PaiNNDeployError, match="to write between"):
        page([found], document)


def test_a_document_is_written_again_as_it_was(found: Path, tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    page([found, found], document)
    first = document.read_text()
    page([found, found], document)
    assert document.read_text() == first
    assert first.count("## distiller\n") == 2


WRITTEN = ["docs/performance.md", "docs/precision.md", *(f"export/students/{s}.md" for s in ("small", "base", "large"))]


@pytest.mark.parametrize("name", WRITTEN)
def test_the_documents_figures_are_as_the_one_writer_spells_them(name: str, tmp_path: Path) -> None:
    """What stands between the marks comes back to the byte, and every table of it from its cells."""
    text, document = (ROOT / name).read_text(encoding="utf-8"), tmp_path / "document.md"
    document.write_text(text, encoding="utf-8")
    inside = text.split(MARKS[0])[1].split(MARKS[1])[0].strip("\n")
    write_between_marks(document, inside)
    assert document.read_text(encoding="utf-8") == text
    tables = [block for block in inside.split("\n\n") if block.startswith("|")]
    assert tables
    for block in tables:
        heads, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines())
        assert markdown(heads, rows) == block


def test_the_document_has_the_sections_that_are_written(found: Path) -> None:
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    captions = [section.caption for section in sections(read(found))]
    assert len(captions) == 7
    for caption in captions[:5]:  # the last two name a batch and a machine's peaks
        assert caption in document


def test_bundles_are_timed_beside_the_student_that_they_were_made_of_and_no_other(found: Path, tmp_path: Path) -> None:
    (bundle,) = (found.parent / "engines" / "plain").iterdir()
    output = tmp_path / "bench"
    command = ["bench", bundle, "--quick", "-o", output, "--device", "cpu", "--reference"]
    done = run(*command, found.parent.parent / "distiller.safetensors")
    assert done.returncode == 0, done.stderr
    assert "times the speed of eager" in done.stdout
    assert {row["candidate"] for row in read(output / "benchmark.json")["latency"]} == {EAGER, bundle.stem}
    refused = run(*command, "student:base")
    assert refused.returncode == 2
    assert "was not made from" in " ".join(refused.stderr.split())
