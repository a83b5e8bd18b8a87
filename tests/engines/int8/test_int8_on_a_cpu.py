"""INT8 on a CPU: what `inductor` computes is what the graph says, and no processor that saturates is believed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ase import Atoms
from onnx import TensorProto, helper

from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.engines import eight_bits, get_backend
from painn_deploy.engines.eight_bits import COLUMNS, CONTRACTED, LARGEST, is_exact
from painn_deploy.engines.forms import plans_for
from painn_deploy.engines.inductor import int8 as inductor
from painn_deploy.engines.inductor.backend import InductorBackend
from painn_deploy.engines.inductor.int8 import inexact, product, quantised
from painn_deploy.engines.inductor.onnx_torch import OnnxModule
from painn_deploy.engines.onnxruntime import int8 as onnxruntime
from painn_deploy.engines.onnxruntime.backend import OPTIMISED, load_graph, open_graph
from painn_deploy.engines.onnxruntime.int8 import EXACT, PRODUCT
from painn_deploy.export import load_student
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.graph.int8 import BY_ROW, candidates, to_int8
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.manifest import MODEL, read_bundle
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts import export_engines
from tests import students

WIDE = Tolerances(energy=1.0, forces=10.0)

ASKED = """
import json
from painn_deploy.engines.inductor.int8 import inexact
print(json.dumps(inexact()))
"""


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    zoo = students.zoo()
    return [students.perturbed(zoo[name], seed) for seed in range(12) for name in ("water", "ethanol")]


@pytest.fixture(scope="module")
def compressed(painn: Path, frames: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of one package: a form for all sizes."""
    if why := inexact():
        pytest.skip(why)
    options = {"engines": ["inductor"], "precisions": ["int8"], "device": "cpu", "form": "sums+paired+side+frozen"}
    (path,) = export_engines(painn, tmp_path_factory.mktemp("int8"), structures=frames, limits=WIDE, **options)
    return path


def off(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.square(got - wanted).mean()))


def test_the_engine_computes_what_its_graph_says(compressed: Path, painn: Path, frames: list[Atoms]) -> None:
    bundle = read_bundle(compressed)
    assert bundle.json("validation.json")["typed"]["int8_multiply_adds"]["forward"] > 0.3
    run, exact = open_graph(bundle.file(MODEL)), open_graph(export_onnx(load_student(painn), {}).SerializeToString())
    differences = []
    with PaiNNCalculator(compressed) as calculator:
        assert calculator.engine_info["precision"] == "int8"
        for start in range(0, len(frames), 4):
            inputs = graph_inputs(frames[start : start + 4], calculator.manifest.cutoff)
            got, wanted, unrounded = calculator.run_graph(inputs).forces, run(inputs)[1], exact(inputs)[1]
            assert off(wanted, unrounded) > 1e-5, "INT8 must be seen"
            differences.append(off(got, wanted) / off(wanted, unrounded))
    # a value half way between two steps falls to either where sums are taken in another order, and rarely does
    assert np.median(differences) < 0.02
    assert max(differences) < 0.6


@pytest.mark.parametrize("scale", [np.float32(0.25), np.float32(1 / 127), np.float32(0.0371)])
def test_operands_are_rounded_as_onnx_rounds_them(scale: np.float32) -> None:
    """Half to even, and clipped: bit for bit."""
    values = np.concatenate([np.arange(-140, 140, 0.5, np.float32), np.random.default_rng(0).normal(0, 90, 999)])
    x = (values * scale).astype(np.float32)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    typed = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    gives = [helper.make_tensor_value_info("y", TensorProto.INT8, ["n"])]
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("z", TensorProto.INT8, [], [0]),
    ]
    model = helper.make_model(helper.make_graph([node], "q", typed, gives, constants), ir_version=8)
    model.opset_import[0].version = 13
    (wanted,) = load_graph(model.SerializeToString(), "cpu", 1).run(None, {"x": x})
    got = quantised(torch.from_numpy(x), torch.tensor(scale))
    np.testing.assert_array_equal(got.numpy(), wanted)


def test_products_are_exact_sums() -> None:
    rng = np.random.default_rng(1)
    x, w = (torch.from_numpy(rng.integers(-127, 128, size).astype(np.int8)) for size in ((5, 3, 96), (96, 48)))
    columns = torch.from_numpy(rng.uniform(0.1, 1, 48).astype(np.float32))
    got = product(x, torch.tensor(0.5), w, columns)
    wanted = (x.double() @ w.double()) * (torch.tensor(0.5) * columns).double()
    assert got.shape == (5, 3, 48)
    np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=2e-7)


def test_scales_that_are_not_foreseen_are_refused(painn: Path) -> None:
    model = export_onnx(load_student(painn), {})
    model = to_int8(model, {candidates(model)[0].name: BY_ROW})
    OnnxModule(model)
    shifted = onnx.ModelProto.FromString(model.SerializeToString())
    quantise = next(node for node in shifted.graph.node if node.op_type == "QuantizeLinear")
    zero = next(one for one in shifted.graph.initializer if one.name == quantise.input[2])
    zero.CopyFrom(helper.make_tensor(zero.name, TensorProto.INT8, [], [3]))
    with pytest.raises(EngineError, match="has a zero point"):
        OnnxModule(shifted)
    other = onnx.ModelProto.FromString(model.SerializeToString())
    given = next(node for node in other.graph.node if node.op_type == "DequantizeLinear").output[0]
    next(node for node in other.graph.node if node.op_type == "MatMul" and given in node.input).op_type = "Add"
    with pytest.raises(EngineError, match="reads INT8 and is no product"):
        OnnxModule(other)


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="instructions of x86")
def test_a_processor_that_saturates_is_not_believed(compressed: Path) -> None:
    """oneDNN without VNNI, as on an older processor: its products are really wrong."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")}
    if why := inexact():
        pytest.skip(why)
    said = []
    for restriction in ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}):
        done = subprocess.run(
            [sys.executable, "-c", ASKED], capture_output=True, text=True, check=True, env=clean | restriction
        )
        said.append(json.loads(done.stdout.splitlines()[-1]))
    assert said[0] == ""
    assert "are wrong on this processor with ONEDNN_MAX_CPU_ISA" in said[1]


def test_neither_built_nor_opened_where_products_are_wrong(
    compressed: Path, painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor, "inexact", lambda: "torch's products are wrong.")
    with pytest.raises(EngineUnavailableError, match=r"cannot run here: torch's products are wrong\."):
        PaiNNCalculator(compressed)
    told: list[str] = []
    with pytest.raises(EngineUnavailableError, match=r"inductor has no int8 here\. torch's products are wrong"):
        export_engines(painn, tmp_path, engines=["inductor"], precisions=["int8"], device="cpu", tell=told.append)
    assert not told, "it is said before any work"


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """What the proofs of ONNX Runtime's products will say, one after the other."""
    said: list[bool] = []
    monkeypatch.setattr(onnxruntime, "is_exact", lambda *_: said.pop(0))
    onnxruntime.settings_for_int8.cache_clear()
    yield said
    onnxruntime.settings_for_int8.cache_clear()


def test_onnx_runtime_is_asked_for_exact_products_where_it_saturates(
    painn: Path, frames: list[Atoms], proofs: list[bool]
) -> None:
    model = export_onnx(load_student(painn), {})
    int8 = to_int8(model, {product.name: BY_ROW for product in candidates(model)}).SerializeToString()
    inputs, found = graph_inputs(frames[:4], 4.0), []
    for said in ([True], [False, True]):
        onnxruntime.settings_for_int8.cache_clear()
        proofs[:] = said
        session = load_graph(int8, "cpu", 1)
        assert not proofs
        if len(said) == 2:
            assert session.get_session_options().get_session_config_entry(EXACT) == "1"
        found.append(open_graph(int8)(inputs)[1])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5 * np.abs(found[0]).max())
    proofs[:] = [False]
    load_graph(model.SerializeToString(), "cpu", 1)
    assert proofs == [False], "a graph without INT8 needs no proof"


def test_what_onnx_runtime_cannot_multiply_is_refused_everywhere(
    painn: Path, frames: list[Atoms], tmp_path: Path, proofs: list[bool]
) -> None:
    """By an engine that is opened as by a search, whose figures would be wrong."""
    proofs[:] = [True]
    (path,) = export_engines(painn, tmp_path, precisions=["int8"], structures=frames, limits=WIDE)
    PaiNNCalculator(path, device="cpu").close()
    for act in (
        lambda: PaiNNCalculator(path, device="cpu"),
        lambda: export_engines(painn, tmp_path / "other", precisions=["int8"], structures=frames, limits=WIDE),
    ):
        onnxruntime.settings_for_int8.cache_clear()
        proofs[:] = [False, False]
        with pytest.raises(EngineUnavailableError, match=r"ONNX Runtime's products .* are wrong .* Export in fp32"):
            act()


def test_the_products_that_are_proved_are_those_of_bundles(tmp_path: Path) -> None:
    """ONNX Runtime fuses them, and its operand is uint8: of int8 it has other kernels."""
    load_graph(PRODUCT, "cpu", 1, profile=tmp_path)
    graph = onnx.load(tmp_path / OPTIMISED).graph
    assert [node.op_type for node in graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    zero = next(one for one in graph.initializer if one.name == graph.node[0].input[2])
    assert zero.data_type == TensorProto.UINT8


def test_int8_is_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InductorBackend, "devices", lambda _: ("cuda:0", "cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    backend = get_backend("inductor")
    assert "give --device cpu" in backend.lacks("int8", "auto")
    assert backend.lacks("int8", "cpu") == ""
    assert backend.lacks("fp16", "auto") == ""
    with pytest.raises(EngineError, match="no engine in int8 on cuda"):
        plans_for("cuda", "", "int8")
    with pytest.raises(EngineError, match="no engine in int8 on cpu of the form sums.inline"):
        plans_for("cpu", "sums+inline", "int8")


def test_sums_of_16_bits_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bits, "ROWS", (2, 9))

    def in_pairs(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """As the instruction VPMADDUBSW adds them: one operand has no sign, so that it is shifted by 128 before."""
        shifted, weight = x.astype(int) + 128, weight.astype(int)
        halves = [shifted[:, first::2, None] * weight[first::2] for first in (0, 1)]
        return (halves[0] + halves[1]).clip(-(2**15), 2**15 - 1).sum(1) - 128 * weight.sum(0)

    weight = np.full((CONTRACTED, COLUMNS), LARGEST, np.int8)
    assert not is_exact(lambda x: in_pairs(x, weight), weight)
    assert is_exact(lambda x: x.astype(int) @ weight.astype(int), weight)


def test_the_graph_that_is_written_down() -> None:
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("z", TensorProto.INT8, [], [0]),
        helper.make_tensor("n", TensorProto.INT64, [2], [CONTRACTED, COLUMNS]),
    ]
    value = helper.make_tensor("v", TensorProto.INT8, [1], [LARGEST])
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["w"], value=value),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["c"]),
        helper.make_node("MatMul", ["b", "c"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("x", CONTRACTED), ("y", COLUMNS))
    )
    graph, opset = helper.make_graph(nodes, "", [x], [y], constants), helper.make_opsetid("", 17)
    assert onnx.ModelProto.FromString(PRODUCT) == helper.make_model(graph, opset_imports=[opset], ir_version=8)
