"""A backend is its module and its line in `BACKENDS`, and nothing else."""

import sys
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import onnx
import pytest

from painn_deploy import engines
from painn_deploy.engines.onnxruntime.backend import OnnxRuntimeBackend
from painn_deploy.export.errors import ExportError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts import cli
from tests import students


class Toy(OnnxRuntimeBackend):
    name = "toy"
    precisions = ("fp32", "int8")
    rest_precision = "fp16"

    def __init__(self) -> None:
        self.lowered = 0

    def lower(self, model: onnx.ModelProto) -> onnx.ModelProto:
        self.lowered += 1
        return super().lower(model)

    def batch_slots(self, device: str) -> int:
        return 77

    def contents(self, bundle: object) -> dict[str, str]:
        return {"wheels": "of wood"}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setattr(engines, "BACKENDS", {**engines.BACKENDS, "toy": "toy_of_the_tests"})
    monkeypatch.setitem(sys.modules, "toy_of_the_tests", SimpleNamespace(BACKEND=made))
    return made


def test_a_new_backend_is_its_module_and_its_line(
    toy: Toy, painn: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ase.io.write(structures := tmp_path / "water.extxyz", [students.water()])
    cli.export(str(painn), tmp_path, engine=["toy"], structures=structures)
    path = tmp_path / "painn-toy-fp32.engine"
    assert toy.lowered == 1
    manifest = read_bundle(path).manifest
    assert (manifest.engine, manifest.tf32, manifest.bound_to) == ("toy", False, ())
    with PaiNNCalculator(path) as calculator, PaiNNCalculator(bundle) as other:
        assert calculator.engine_info["backend"] == "toy"
        assert (calculator.batch_slots, other.batch_slots) == (77, 2048)
        got, want = (one.calculate_batch([students.water()])[0]["forces"] for one in (calculator, other))
        np.testing.assert_array_equal(got, want)
    cli.validate([path], str(painn), structures=structures, audit=False)
    assert "faithful" in capsys.readouterr().out
    cli.inspect(path)
    assert "wood" in capsys.readouterr().out
    with pytest.raises(ExportError, match="The engine toy has no TF32"):
        cli.export(str(painn), tmp_path / "other", engine=["toy"], tf32=True)
    with pytest.raises(ExportError, match="The engine toy has no fp16; it has fp32, int8"):
        cli.export(str(painn), tmp_path / "other", engine=["toy"], precision=["fp16"])


def test_the_rest_of_an_int8_graph_is_what_the_backend_asks_for(toy: Toy, painn: Path) -> None:
    from painn_deploy.calibration.structures import calibration_structures
    from painn_deploy.export import load_student
    from painn_deploy.export.graph.onnx_graph import export_onnx
    from painn_deploy.scripts.commands.typed_graphs import TypedGraphs

    graphs = TypedGraphs(
        export_onnx(load_student(painn), {}), 4.0, lambda: (calibration_structures((1, 6, 7, 8))[:24], "some")
    )
    assert graphs.get("int8", "toy").report["other_products"] == "fp16"
    assert graphs.get("int8", "onnxruntime").report["other_products"] == "fp32"
