"""Figures of the job that needs a GPU: which there are, what they are of, and what is absent where there is no room."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule

from painn_deploy.engines.session import CudaGraphs
from painn_deploy.export import load_student
from painn_deploy.export.errors import DeviceMemoryError, EngineError, ShapeError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, edges_of
from painn_deploy.scripts.gpu import resources
from painn_deploy.scripts.gpu.baseline import eager_figures
from painn_deploy.scripts.gpu.builds import BuildRequest, Bundles
from painn_deploy.scripts.gpu.cases import HUGE, Pace, Request, made_cases, size_requests
from painn_deploy.scripts.gpu.measure import Clock, engine_figures
from painn_deploy.scripts.gpu.opening import opening, slowest
from painn_deploy.scripts.gpu.plan import LAUNCHED, PRECISIONS, REPLAYED, Options, plan
from painn_deploy.scripts.gpu.record import Record, Unavailable
from painn_deploy.scripts.gpu.resources import Sized, floor_figures, memory_figures, peaks_of
from painn_deploy.scripts.profiling.roofline import Peaks
from tests import students
from tests.engines.conftest import cuda  # noqa: F401  a fixture
from tests.engines.test_gpu_session import CUTOFF, model, opened  # noqa: F401  fixtures

WATERS = Request("24 atoms of water", (students.water(0),) * 8)


def kept() -> tuple[dict[str, Any], Callable[[str, Callable[[], Any]], None]]:
    """Figures by name, or what was raised in place of one; and what keeps them."""
    found: dict[str, Any] = {}

    def keep(name: str, measure: Callable[[], Any]) -> None:
        try:
            found[name] = measure()
        except Exception as error:
            found[name] = error

    return found, keep


@pytest.mark.parametrize("engine", ["inductor", "onnxruntime"])
@pytest.mark.parametrize("by_default", [False, True])
def test_every_figure_of_an_engine_is_there_on_a_gpu_of_host_memory(
    request: pytest.FixtureRequest, painn: Path, bundle: Path, engine: str, by_default: bool
) -> None:
    """So that time on a real one is not lost to a mistake in what measures."""
    open_session = request.getfixturevalue("opened")
    student = load_student(painn, dtype=torch.float64)
    lone = Request("1 water", (students.water(0),), pace=Pace(2, 0.1, warm_up=1, least=1))
    cases = made_cases(student, "cpu", [lone, WATERS])
    assert cases.keys() == {"1 water", "24 atoms of water"}
    found, keep = kept()
    with PaiNNCalculator(bundle) as own:
        calculator = own.with_session(open_session(engine, cuda_graphs=by_default))
        engine_figures(keep, calculator, student.float(), cases, Clock(Pace(3, 0.1)))
        assert isinstance(calculator.session, CudaGraphs)
        assert calculator.session.cuda_graphs == by_default, "it is left as it was"
    other = "launched" if by_default else "replayed"
    of_all = ("errors", "engine call", LAUNCHED, "replayed errors", "replayed call", REPLAYED, "from Atoms", "kernels")
    wanted = {f"{name}: {what}" for name in cases for what in (*of_all, f"from Atoms, {other}")}
    assert found.keys() == wanted | {"1 water: ASE call", "1 water: step, positions alone"}
    for name, figure in found.items():
        assert not isinstance(figure, Exception) or "kernels" in name, (name, figure)
        if "errors" in name:
            assert figure["relative force error"] < 1e-5
    assert found["1 water: engine call"]["calls"] <= 2, "a case has a pace of its own"
    assert found["1 water: step, positions alone"]["largest difference of a force, eV/A"] < 1e-5


def test_a_repeated_box_has_the_small_ones_results(painn: Path) -> None:
    student = load_student(painn, dtype=torch.float64)
    (asked,) = [one for one in size_requests(quick=True) if one.repeats != (1, 1, 1)]
    case = made_cases(student, "cpu", [asked])[asked.name]
    energies, forces = EagerModel(student)(edges_of(case.structures[0], CUTOFF, torch.float64))
    assert len(case.structures[0][0]) == len(case.forces[0]) == 384
    np.testing.assert_allclose(case.energies[0], energies.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(case.forces[0], forces.numpy(), rtol=0, atol=1e-10)


def test_the_sizes_are_those_that_performance_is_told_of() -> None:
    asked = {one.name: one for one in size_requests(quick=False)}
    atoms = {name: len(one.structures[0]) * len(one.structures) * np.prod(one.repeats) for name, one in asked.items()}
    assert list(atoms.values()) == [3, 12, 21, 16 * 9, 256 * 9, 4096 * 9, 192, 12_288, 98_304]
    assert [name for name, one in asked.items() if one.pace is not None] == list(atoms)[-2:]
    assert list(atoms)[-1] == "98304 atoms of water"
    assert atoms["98304 atoms of water"] > HUGE > atoms["12288 atoms of water"]


def test_elements_that_a_student_does_not_know_are_left_out(tmp_path: Path) -> None:
    student = load_student(students.write(tmp_path, "painn", species=[1, 8]), dtype=torch.float64)
    assert list(made_cases(student, "cpu", [Request("a", (molecule("CH4"),)), WATERS])) == [WATERS.name]


def test_a_batch_in_pieces_has_the_results_of_one(painn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = load_student(painn, dtype=torch.float64)
    whole = made_cases(student, "cpu", [WATERS])[WATERS.name]
    monkeypatch.setattr("painn_deploy.scripts.gpu.cases.AT_ONCE", 3)
    pieces = made_cases(student, "cpu", [WATERS])[WATERS.name]
    for one, other in zip(whole.energies + whole.forces, pieces.energies + pieces.forces, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("error", [DeviceMemoryError("no room"), ShapeError("32 bits"), torch.OutOfMemoryError("full")])
def test_a_case_without_room_is_absent_and_nothing_more_of_it_is_tried(error: Exception) -> None:
    found, keep = kept()
    tried: list[str] = []

    def fails() -> Any:
        tried.append("")
        raise error

    sized = Sized(keep)
    sized("beside", fails)
    sized("after", lambda: 1)
    sized("errors", fails, decides=True)
    sized("call", fails)
    assert len(tried) == 2
    assert found.pop("after") == 1
    assert all(isinstance(figure, Unavailable) and str(figure) == str(error) for figure in found.values())


def test_any_other_error_stays_one() -> None:
    found, keep = kept()
    Sized(keep)("errors", lambda: 1 / 0, decides=True)
    Sized(keep)("call", lambda: 1)
    assert isinstance(found["errors"], ZeroDivisionError)
    assert found["call"] == 1


def test_eager_has_a_call_of_ase(painn: Path) -> None:
    found, keep = kept()
    student = load_student(painn)
    case = made_cases(load_student(painn, dtype=torch.float64), "cpu", [Request("1 water", (students.water(0),))])
    eager_figures(keep, student, case, "cpu", Clock(Pace(2, 0.1)), compiled=False)
    assert found["1 water: ASE call"]["calls"] == 3, "as few as are needed for a median, however slow they are"
    assert found["1 water: errors"]["relative force error"] < 1e-5


def test_the_floor_is_the_least_time_and_the_share_is_of_the_device(painn: Path, bundle: Path) -> None:
    found, keep = kept()
    cases = made_cases(load_student(painn, dtype=torch.float64), "cpu", [WATERS])
    peaks, times = Peaks(1e30, {"tf32": 1e9}), {f"{WATERS.name}: {REPLAYED}": 50.0}
    floor_figures(keep, bundle, "tf32", cases, lambda: peaks, lambda name: times.get(name))
    floor = found[f"{WATERS.name}: floor"]
    assert floor["bound"] == "arithmetic"
    assert floor["ms"] == pytest.approx(floor["multiply_adds"] / 1e6)
    assert floor["share"] == pytest.approx(floor["ms"] / 50)
    floor_figures(keep, bundle, "tf32", cases, lambda: peaks, lambda name: None)
    assert found[f"{WATERS.name}: floor"]["share"] is None
    assert peaks_of("cpu", "fp32").multiply_adds_per_second["fp32"] > 0
    with pytest.raises(Unavailable, match="no TF32"):
        peaks_of("cpu", "tf32")


def test_memory_is_that_of_a_session_of_its_own(painn: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, keep = kept()
    cases = made_cases(load_student(painn, dtype=torch.float64), "cpu", [WATERS])
    memory_figures(keep, bundle, "cpu", cases)
    assert isinstance(found[f"{WATERS.name}: memory"], Unavailable)
    seen = iter([100, 350])
    monkeypatch.setattr(resources, "used_bytes", lambda device: next(seen))
    monkeypatch.setattr(resources, "PaiNNCalculator", lambda bundle, device: PaiNNCalculator(bundle))
    memory_figures(keep, bundle, "cuda:0", cases)
    assert found[f"{WATERS.name}: memory"] == {"bytes": 250, "CUDA graphs": False}


def test_tf32_comes_last_and_its_bundles_lie_apart(tmp_path: Path) -> None:
    names = [stage.name for stage in plan(Options("student:base", "cuda:0", ""))]
    sizes = [name for name in names if name.startswith("sizes")]
    others = ("onnxruntime fp32", "inductor fp16", "inductor tf32")
    assert sizes == [f"sizes {of}" for of in ("inductor fp32", "fused fp32", *others)]
    last = {p: max(i for i, name in enumerate(names) if name.endswith(p)) for p in PRECISIONS}
    assert max(last, key=last.__getitem__) == "tf32"
    assert not any("onnxruntime tf32" in name for name in names), "its products are FP32 all the same"
    options = Options("student:base", "cpu", str(tmp_path))
    bundles = Bundles(options, Record(tmp_path, {"student": "student-base"}))
    one, other = (BuildRequest("inductor", precision) for precision in ("fp32", "tf32"))
    assert bundles.path(one) != bundles.path(other)
    assert one.exported == {"engines": ["inductor"], "precisions": ["fp32"], "tf32": False, "form": ""}
    assert other.exported == one.exported | {"tf32": True}
    with pytest.raises(Unavailable, match="inductor has no tf32 on cpu"):
        bundles.get(lambda *_: None, "inductor", "tf32")


def test_opening_is_told_by_a_process_of_its_own(bundle: Path, tmp_path: Path) -> None:
    found = opening(bundle, "cpu")
    assert 0 < found["seconds"] < found["seconds of the process"]
    tables = {name.partition(":")[0]: rows for name, rows in found.items() if name.startswith("longest")}
    assert [len(rows) for rows in tables.values()] == [10, 10]
    assert not any(name.startswith("/") for rows in tables.values() for name, *_ in rows)
    with pytest.raises(EngineError, match="ended with 1.*BundleError"):
        opening(tmp_path / "missing.engine", "cpu")


def test_opening_is_told_with_what_it_is_spent_on(bundle: Path) -> None:
    # opened before, since how long the imports of the first opening take is the disk's affair
    twice = """
import json, sys
from pathlib import Path
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.gpu.opening import measured
PaiNNCalculator(sys.argv[1], device="cpu").close()
print(json.dumps(measured(Path(sys.argv[1]), "cpu")))
"""
    told = subprocess.run([sys.executable, "-c", twice, str(bundle)], check=True, capture_output=True)
    tables = {name.partition(":")[0]: rows for name, rows in json.loads(told.stdout).items() if isinstance(rows, list)}
    if sys.version_info < (3, 12):  # whose profiler tells every caller
        assert "calculator.py" in tables["longest with what they call"][0][0]
    assert all(any("_create_inference_session" in name for name, *_ in rows) for rows in tables.values())


def test_the_slowest_are_told_with_their_callers() -> None:
    main, load, way = ("a/b/c/main.py", 3, "main"), ("~", 0, "<built-in load>"), ("<frozen importlib>", 9, "exec")
    stats: Any = {
        main: (1, 1, 0.5, 9.0, {}),
        way: (1, 1, 0.1, 8.0, {main: (1, 1, 0.1, 8.0)}),
        load: (2, 2, 7.0, 7.0, {main: (1, 1, 1.0, 1.0), way: (1, 1, 6.0, 6.0)}),
    }
    assert slowest(stats, own=True)[0] == ["<built-in load>", 2, 7.0, 7.0, "<frozen importlib>:9 exec"]
    assert [row[0] for row in slowest(stats, own=False)] == ["b/c/main.py:3 main", "<built-in load>"]
