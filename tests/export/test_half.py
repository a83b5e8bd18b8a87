"""The FP16-mixed graph: what is half, that types agree, and that simulated roundings, TF32's too, really round."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from painn_deploy.calibration.int8.ranges import open_tensors
from painn_deploy.calibration.int8.yardstick import Yardstick
from painn_deploy.calibration.structures import default_structures, trusted_species, within_reach
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export import load_student
from painn_deploy.export.errors import ExportError
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.half import half_tensors, rounded, to_half
from painn_deploy.export.graph.onnx_graph import check_contract, export_onnx
from painn_deploy.export.graph.products import weight_products
from painn_deploy.export.graph.tf32 import rounded_products, tf32
from painn_deploy.runtime.matrix import graph_inputs
from tests import students


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> onnx.ModelProto:
    return export_onnx(load_student(checkpoint), {})


def test_every_product_but_the_readouts_is_named_and_half(model: onnx.ModelProto) -> None:
    products = weight_products(model)
    half = half_tensors(model)
    names = [product.name for product in products]
    assert len(set(names)) == len(names)
    assert any(p.is_forward for p in products)
    assert any(not p.is_forward for p in products)
    for product in products:
        assert (product.output in half.computed | half.stored) != product.is_readout
    geometry = [p for p in products if p.output in half.stored]  # the radial basis times its weights
    assert geometry
    assert all(p.name.startswith("filters") and "/backward" not in p.name for p in geometry)


def test_a_weights_two_products_are_each_others_transposes(model: onnx.ModelProto) -> None:
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    products = {p.name: p for p in weight_products(model)}
    paired = [n for n in products if n.endswith("/forward") and n.replace("forward", "backward") in products]
    whole = 0
    for name in paired:
        one, other = (weights[products[n].weight] for n in (name, name.replace("forward", "backward")))
        whole += one.shape == other.T.shape and (one == other.T).all()
    assert whole >= 2


def test_the_graph_is_strongly_typed_and_keeps_the_contract(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    typed = to_half(model)
    assert model.SerializeToString() == before, "the FP32 graph was changed"
    check_contract(typed)
    inferred = onnx.shape_inference.infer_shapes(typed, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    types |= {t.name: t.data_type for t in inferred.initializer}
    half = half_tensors(model)
    assert {name for name in half.computed | half.stored if types[name] != TensorProto.FLOAT16} == set()
    for node in typed.graph.node:
        kinds = {types[n] for n in node.input if types[n] in (TensorProto.FLOAT, TensorProto.FLOAT16)}
        assert len(kinds) <= 1, f"{node.name} mixes types"
    for node in typed.graph.node:
        if node.op_type in ("ReduceSum", "Sqrt", "Exp", "Cos", "Div"):
            assert types[node.output[0]] == TensorProto.FLOAT


def test_the_simulation_rounds_every_half_tensor(model: onnx.ModelProto) -> None:
    simulated = rounded(model)
    half = half_tensors(model)
    names = sorted(half.computed | half.stored)
    run = open_tensors(simulated, names)
    changed = 0
    exact = open_tensors(model, names)
    inputs = graph_inputs([students.water()], 4.0)
    for name, values, before in zip(names, run(inputs), exact(inputs), strict=True):
        assert values.dtype == np.float32
        assert (values == values.astype(np.float16).astype(np.float32)).all(), name
        changed += not np.array_equal(values, before)
    assert changed > len(names) / 2


def test_a_weight_beyond_half_is_refused(tmp_path: Path) -> None:
    model = export_onnx(load_student(students.write(tmp_path, "painn")), {})
    name = next(p for p in weight_products(model) if not p.is_readout and p.output in half_tensors(model).computed)
    for tensor in model.graph.initializer:
        if tensor.name == name.weight:
            array = numpy_helper.to_array(tensor).copy()
            array[0, 0] = 1e5
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(ExportError, match="does not fit into FP16.*export this student in fp32"):
        to_half(model)


@pytest.mark.parametrize("name", ["distiller/original", "schnetpack/painn_128x3", "student:base"])
def test_real_students_lose_little(request: pytest.FixtureRequest, name: str) -> None:
    """The design's limits: 0.3 meV an atom and 1.5 meV/Å, here on perturbed G2 molecules."""
    ships = name.startswith("student:")
    student = load_student(name if ships else request.getfixturevalue("references") / f"{name}.safetensors")
    model = export_onnx(student, {})
    structures = [a for a in default_structures(trusted_species(student)) if not a.pbc.any()]
    run = open_graph(model.SerializeToString())
    kept = within_reach([run(graph_inputs([a], student.configuration.cutoff))[1] for a in structures])
    yardstick = Yardstick(model, [structures[i] for i in kept], student.configuration.cutoff)
    errors = yardstick.errors(open_graph(rounded(model).SerializeToString()), {})
    assert 0 < errors.energy_mae < 0.3e-3
    assert 0 < errors.force_rmse < 1.5e-3


def test_products_in_tf32_read_the_nearest_numbers_of_ten_bits(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    numbers = (10 ** rng.uniform(-30, 30, 100_000) * rng.choice([-1, 1], 100_000)).astype(np.float32)
    narrow = tf32(numbers)
    assert not (narrow.view(np.uint32) & 0x1FFF).any()
    assert (np.abs(narrow - numbers) <= 2.0**-11 * np.abs(numbers)).all()

    before = model.SerializeToString()
    simulated = rounded_products(model)
    assert model.SerializeToString() == before, "the FP32 graph was changed"
    graph = EditableGraph(simulated)
    products = [node for node in graph.nodes if node.op_type == "MatMul"]
    computed = sorted({name for node in products for name in node.input} - graph.constants.keys())
    assert len(products) == sum(node.op_type == "MatMul" for node in model.graph.node)
    structures = [students.perturbed(students.zoo()["ethanol"])]
    inputs = graph_inputs(structures, students.CONFIGURATION["cutoff"])
    for name, value in zip(computed, open_tensors(simulated, computed)(inputs), strict=True):
        assert not (value.view(np.uint32) & 0x1FFF).any(), name
    for name in {name for node in products for name in node.input} & graph.constants.keys():
        assert not (graph.array(name).view(np.uint32) & 0x1FFF).any(), name
