"""An export that cannot end well is refused before anything takes time, and before other engines are written."""

from pathlib import Path

import pytest

from painn_deploy.engines import get_backend
from painn_deploy.export.errors import EngineError, ExportError
from painn_deploy.scripts import export_engines
from tests import students

NO_GPU = get_backend("inductor").devices() == ("cpu",)
without_gpu = pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")


def refused(checkpoint: Path, folder: Path, **options: object) -> str:
    """The message of an export that is refused when nothing but the student was read."""
    told: list[str] = []
    with pytest.raises(EngineError) as error:
        export_engines(checkpoint, folder, tell=told.append, **options)
    assert told == [f"reading {checkpoint.name}"]
    assert not list(folder.glob("*.engine"))
    return str(error.value)


def test_an_engine_that_cannot_be_made_of_a_student(tmp_path: Path) -> None:
    student = students.write(tmp_path, "distiller")
    said = refused(student, tmp_path / "engines", engines=["onnxruntime", "fused"], device="cpu")
    assert "fused computes the architecture painn, and this student is distiller" in said


@without_gpu
def test_a_device_that_is_not_here(painn: Path, tmp_path: Path) -> None:
    for engine, words in (("inductor", "torch cannot use 'cuda'"), ("fused", "no NVIDIA GPU here")):
        assert words in refused(painn, tmp_path / "engines", engines=["onnxruntime", engine], device="cuda")


@pytest.mark.parametrize("engine", ["inductor", "fused"])
def test_a_compiler_that_is_not_here(engine: str, painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    said = refused(painn, tmp_path / "engines", engines=["onnxruntime", engine], device="cpu")
    assert f"{engine} needs a C++ compiler: install g++" in said


def test_names_that_are_one_text_are_one_name_and_a_device_that_is_none_is_refused(painn: Path, tmp_path: Path) -> None:
    (path,) = export_engines(painn, tmp_path, engines="onnxruntime", precisions="fp32", structures=[students.water()])
    assert path.name == "painn-onnxruntime-fp32.engine"
    for device in ("gpu", "cuda:", "cpu:0"):
        with pytest.raises(ExportError, match=f"no device '{device}' to build for; there are auto, cpu, cuda"):
            export_engines(painn, tmp_path / "other", device=device)


def test_a_form_that_is_none(painn: Path, tmp_path: Path) -> None:
    said = refused(painn, tmp_path / "engines", engines=["inductor"], device="cpu", form="sums+nonsense")
    assert "nonsense" in said


def test_a_gpu_that_a_builder_does_not_know(painn: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    said = refused(painn, tmp_path / "engines", engines=["onnxruntime", "tensorrt-rtx"], compute_capabilities=["12"])
    assert "builds for the compute capabilities" in said


def test_a_gpu_that_nvrtc_does_not_know(painn: Path, tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    options = {"engines": ["onnxruntime", "fused"], "device": "cuda", "compute_capabilities": ["12"]}
    assert "NVRTC cannot compile for compute capability 12" in refused(painn, tmp_path / "engines", **options)
