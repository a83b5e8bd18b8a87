"""The studies of speed, as a person runs them; their full-size figures are in docs/studies.md."""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule

from painn_deploy.calibration.physics import consistency
from painn_deploy.calibration.timing import Pace
from painn_deploy.export import load_student
from painn_deploy.export.errors import EngineError
from painn_deploy.scripts.benchmarks import analytical_forces
from painn_deploy.scripts.benchmarks.agreement import check_agreement
from painn_deploy.scripts.benchmarks.cases import DRUGS, Case, druglike, extremes
from painn_deploy.scripts.benchmarks.conditions import Study, busy_cores
from painn_deploy.scripts.benchmarks.contenders import orb
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, edges_of
from painn_deploy.scripts.benchmarks.contenders.pytorch import AUTOGRAD, EXPLICIT, LIST_OF_EDGES, Eager, Padded
from painn_deploy.scripts.benchmarks.run import batches
from painn_deploy.scripts.profiling import of_orb
from painn_deploy.scripts.profiling.of_eager import eager_parts
from painn_deploy.scripts.profiling.purposes import PURPOSES
from painn_deploy.scripts.studies.shared_cores import busy_programs
from tests import students

from .test_studies import run

CONDITIONS = {"machine", "python", "versions", "torch_threads", "busy_cores", "engine_threads"}


def quick(script: str, *arguments: object) -> str:
    """Where no checkpoint is named, `student:base` is measured."""
    done = run(script, *arguments, "--quick", "--threads", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(path: Path) -> Any:
    values = json.loads(path.read_text())
    assert set(values["conditions"]) == CONDITIONS
    return values


def test_profile_force_computation(tmp_path: Path) -> None:
    printed = quick("profile_force_computation", "-o", tmp_path)
    assert "whole call" in printed
    values = read(tmp_path / "profile.json")
    for part in ("neighbour search", "radial part", "messages", "updates", "read-out"):
        for method in ("eager", "onnxruntime"):
            assert values[method]["energy"][part] > 0
            assert values[method]["forces"][part] > 0
    assert values["eager"]["forces"].keys() - values["eager"]["energy"].keys() == {"backward"}
    assert values["onnxruntime"]["forces"].keys() == {"neighbour search", *PURPOSES}  # fusion lost none of them
    for name in ("eager-energy", "eager-forces", "onnxruntime-energy", "onnxruntime-forces"):
        trace = json.loads((tmp_path / f"{name}.trace.json").read_text())
        events = trace["traceEvents"] if isinstance(trace, dict) else trace
        assert any(event.get("dur", 0) > 0 for event in events)
        if name == "eager-forces":
            assert {"messages", "backward"} <= {event.get("name") for event in events}


def test_benchmark_force_optimizations(tmp_path: Path) -> None:
    quick("benchmark_force_optimizations", "-o", tmp_path / "out.json")
    rows = read(tmp_path / "out.json")["rows"]
    assert [row["batch"] for row in rows] == [1, 4]
    for row in rows:
        assert row["milliseconds"].keys() == {LIST_OF_EDGES, EXPLICIT, "onnxruntime"}
        assert row["ratio"][LIST_OF_EDGES] == 1
        assert 0 < row["largest_difference"] < 1e-4


def test_processor_time_is_of_one_thread(painn: Path) -> None:
    done = run("benchmark_force_optimizations", painn, "--quick", "--processor-time", "--threads", 2)
    assert done.returncode == 2
    assert "give --threads 1" in " ".join(done.stderr.replace("│", " ").split())


class Shifted(Padded):
    def run(self, prepared: Any) -> np.ndarray:
        return super().run(prepared) + 0.01


def test_methods_that_differ_are_not_timed(painn: Path) -> None:
    student, study = load_student(painn), Study.begin(None, None, quick=True)
    cases = [Case.of("water", molecule("H2O"))]
    contenders = [Eager(student), Padded(student, AUTOGRAD), Padded(student, EXPLICIT)]
    (row,) = batches(study, "title", contenders, cases, alone=True)
    assert (row["batch"], row["atoms"]) == (1, 3)
    assert set(row["ratio"]) == {"eager", AUTOGRAD, EXPLICIT}
    assert row["ratio"]["eager"] == 1
    for alone in (True, False):
        with pytest.raises(EngineError, match=r"padded, explicit and eager differ by 1.0e-02 eV/Å on water"):
            batches(study, "title", [*contenders[:2], Shifted(student, EXPLICIT)], cases, alone=alone)


def test_forces_that_are_no_numbers_agree_with_nothing() -> None:
    right = np.ones((2, 3))
    assert check_agreement({"a": right, "b": right + 1e-4}, "a", "x") == pytest.approx(1e-4)
    with pytest.raises(EngineError, match="c and a differ by nan"):
        check_agreement({"a": right, "b": right, "c": np.full((2, 3), np.nan)}, "a", "x")


def test_benchmark_analytical_forces(tmp_path: Path) -> None:
    assert "are the gradient" in quick("benchmark_analytical_forces", "-o", tmp_path / "out.json")
    rows = {row["structure"]: row for row in read(tmp_path / "out.json")["rows"]}
    assert {"single atom", "two atoms 50 Å apart", "two atoms 0.7 Å apart", "ethanol, O-H of 0.7 Å"} < rows.keys()
    for row in rows.values():
        assert row["exact"] is True
        assert row["head64"] < 1e-12 * max(1, row["force"])
        assert max(row["errors"].values()) < 1e-4 * max(1, row["force"])
    assert rows["single atom"]["force"] == rows["two atoms 50 Å apart"]["force"] == 0
    assert rows["two atoms 0.7 Å apart"]["force"] > 0.1


def test_a_head_that_is_not_the_gradient_is_found(painn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = consistency.explicit_forces

    def wrong(*arguments: Any) -> Any:
        outputs = right(*arguments)
        return outputs._replace(forces=outputs.forces * (1 + 1e-7))

    monkeypatch.setattr(consistency, "explicit_forces", wrong)
    (row,) = analytical_forces.study(str(painn), [Case.of("water", molecule("H2O"))], 1, Pace(quick=True))
    assert not row["exact"]


def test_cases_are_what_they_are_called() -> None:
    found = {case.name: case.given[0] for case in extremes((1, 6, 7, 8), quick=False)}
    assert found["two atoms 0.7 Å apart"].get_distance(0, 1) == pytest.approx(0.7)
    squeezed = found["ethanol, O-H of 0.7 Å"]
    assert squeezed.get_chemical_symbols()[2:4] == ["O", "H"]
    assert squeezed.get_distance(2, 3) == pytest.approx(0.7)
    alkane = found["alkane C16"]
    assert alkane.get_chemical_formula() == "C16H34"
    carbons = [i for i, z in enumerate(alkane.numbers) if z == 6]
    assert [alkane.get_distance(i, j) for i, j in pairwise(carbons)] == pytest.approx([1.53] * 15)
    distances = alkane.get_all_distances()
    np.fill_diagonal(distances, 9)
    assert distances.min() == pytest.approx(1.09)
    for i in carbons:
        around = np.flatnonzero(distances[i] < 1.6)
        assert len(around) == 4
        angles = [alkane.get_angle(a, i, b) for a, b in zip(around, np.roll(around, 1), strict=True)]
        assert np.ptp(angles) < 15
    assert extremes((1, 8), quick=False)[-1].name == "water"


def test_benchmark_batched_forces_druglike(tmp_path: Path) -> None:
    quick("benchmark_batched_forces_druglike", "--processor-time", "-o", tmp_path / "out.json")
    values = read(tmp_path / "out.json")
    assert values["unit"] == "ms of processor time"
    assert list(values["molecules"]) == list(DRUGS[:4])
    assert [(row["batch"], row["atoms"]) for row in values["rows"]] == [(1, 21), (4, 98)]
    assert all(row["ratio"]["eager, one by one"] == 1 for row in values["rows"])
    assert all(0 < row["largest_difference"] < 1e-4 for row in values["rows"])


def test_drug_like_molecules_are_whole_and_the_same_each_time() -> None:
    one, again = (druglike(len(DRUGS), (1, 6, 7, 8)) for _ in range(2))
    assert [atoms.info["name"] for atoms in one] == list(DRUGS)
    for atoms, same in zip(one, again, strict=True):
        assert 20 <= len(atoms) <= 40
        assert np.array_equal(atoms.positions, same.positions)
        distances = atoms.get_all_distances()
        np.fill_diagonal(distances, 9)
        assert distances.min() > 0.9
        assert distances.min(0).max() < 1.6


def test_analyze_model_complexity(painn: Path, tmp_path: Path) -> None:
    printed = quick("analyze_model_complexity", painn, "-o", tmp_path / "out.json")
    values = read(tmp_path / "out.json")
    row = values["rows"][0]
    assert row["parameters"] == load_student(painn).num_parameters
    assert row["atoms"] == 9
    assert 0 < row["energy_multiply_adds"] < row["multiply_adds"]
    assert 0 < row["intensity"] < row["intensity_limit"]
    assert {"painn, onnxruntime", "painn, eager"} <= values["milliseconds"].keys()
    assert ("orb-models is not installed" in printed.replace("\n", " ")) != orb.is_installed()


def test_other_programs_are_seen() -> None:
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        busy = busy_cores()
    finally:
        spinning.kill()
        spinning.wait()
    assert busy is None or busy > 0.2


@pytest.mark.skipif(sys.platform != "linux", reason="a program's cores are chosen on Linux alone")
def test_shared_cores_are_measured(bundle: Path) -> None:
    done = run("studies/shared_cores", bundle, "--seconds", 0.1, "--molecules")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| onnxruntime")]
    assert [(cells[1].strip(), int(cells[2])) for cells in rows] == [("ethanol", 9), ("aspirin", 21)]
    assert all(float(cell) > 0 for cells in rows for cell in cells[3:])
    assert "other programs use" in done.stdout
    with busy_programs(2):
        before = os.times().children_user
        time.sleep(0.3)
    assert os.times().children_user > before


def test_traffic_of_a_peer_is_counted() -> None:
    left, right = torch.ones(4, 8), torch.ones(8, 2)
    with of_orb._Traffic() as traffic:
        product = left @ right.t().t()  # views move nothing
        total = (product + 1).sum()
    assert traffic.moved == 4 * (32 + 16 + 8) + 4 * (8 + 8) + 4 * (8 + 1)
    assert traffic.peak == 4 * (8 + 8 + 1)
    del product, total
    assert traffic.live == 0


@pytest.mark.parametrize("kind", ["painn", "distiller"])
def test_parts_add_up_and_leave_no_hooks(kind: str, tmp_path: Path) -> None:
    student = load_student(students.write(tmp_path, kind))
    model, cutoff = EagerModel(student), student.configuration.cutoff
    energy, both = eager_parts(model, lambda: edges_of([students.water()], cutoff), device="cpu", calls=3)
    assert set(energy) == {"radial part", "messages", "updates", "read-out"}
    assert set(both) == {*energy, "backward"}
    assert min(*energy.values(), *both.values()) > 0
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in student.modules())
