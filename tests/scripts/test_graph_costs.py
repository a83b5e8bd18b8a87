"""Counts of graphs that can be counted by hand, and of real ones against what is known of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export import load_student
from painn_deploy.export.errors import ExportError
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.lowering import filters_once_a_pair
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.graph.products import weight_products
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.profiling.costs import count, energy_only, sized
from painn_deploy.scripts.profiling.purposes import PURPOSES, SLOPES, purposes
from tests import students


def by_hand(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """mask [atoms, slots] to y, with a weight [3, 5]."""
    weight = numpy_helper.from_array(np.ones((3, 5), np.float32), "weight")
    axes = numpy_helper.from_array(np.array([-1]), "axes")
    graph = helper.make_graph(
        list(nodes),
        "by_hand",
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, ("atoms", "slots"))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight, axes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_a_graph_counted_by_hand() -> None:
    model = by_hand(
        helper.make_node("MatMul", ["mask", "weight"], ["product"]),  # [2, 3] x [3, 5]
        helper.make_node("Exp", ["product"], ["exponential"]),
        helper.make_node("Unsqueeze", ["exponential", "axes"], ["view"]),
        helper.make_node("ReduceSum", ["view", "axes"], ["y"], keepdims=0),
    )
    cost = count(model, 2, 3)
    assert cost.multiply_adds == 2 * 3 * 5
    assert cost.elementwise == 10 + 10
    assert cost.operations == 60 + 20
    weights, inputs = 4 * 15 + 8, 4 * 6
    assert cost.weight_bytes == weights
    assert cost.bytes_written == (inputs + 60 + 40) + (40 + 40) + (40 + 8 + 40)
    assert cost.bytes_least == weights + inputs + 40
    assert cost.peak_bytes == weights + 80  # two tensors of ten numbers; the mask is no longer read
    assert count(model, 4, 3).multiply_adds == 2 * cost.multiply_adds


def test_what_cannot_be_counted_raises() -> None:
    with pytest.raises(ExportError, match="Einsum"):
        count(by_hand(helper.make_node("Einsum", ["mask", "weight"], ["y"], equation="as,sf->af")), 2, 3)
    unknown = by_hand(
        helper.make_node("NonZero", ["mask"], ["where"]),
        helper.make_node("Cast", ["where"], ["y"], to=TensorProto.FLOAT),
    )
    with pytest.raises(ExportError, match="finds no shape for where"):
        sized(unknown, 2, 3)


@pytest.fixture(scope="module", params=["painn", "distiller"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return export_onnx(load_student(students.write(tmp_path_factory.mktemp("model"), request.param)), {})


def test_a_student_s_graph(model: onnx.ModelProto) -> None:
    inputs = graph_inputs([students.water(), students.zoo()["benzene"]], students.CONFIGURATION["cutoff"])
    atoms, slots = inputs.mask.shape
    both, alone = count(model, atoms, slots), count(energy_only(model), atoms, slots)
    with_weights = sum(product.multiply_adds(atoms, slots) for product in weight_products(model))
    assert with_weights < both.multiply_adds < 2 * with_weights
    assert 1.5 < both.multiply_adds / alone.multiply_adds < 3
    assert both.bytes_least < both.peak_bytes < both.bytes_written
    shapes = sized(model, atoms, slots).shapes
    run = open_graph(model.SerializeToString())(inputs)
    assert [shapes[value.name] for value in model.graph.output] == [output.shape for output in run]
    energies = open_graph(energy_only(model).SerializeToString(), ["atomic_energies"])(inputs)[0]
    np.testing.assert_allclose(energies, run[0], rtol=0, atol=1e-5)


def test_filters_are_counted_once_a_pair(model: onnx.ModelProto) -> None:
    atoms, slots, pairs = 9, 8, 36
    of_slots = sum(p.multiply_adds(atoms, slots) for p in weight_products(model) if "slots" in p.rows)
    paired = EditableGraph(model)
    filters_once_a_pair(paired)
    saved = count(model, atoms, slots).multiply_adds - count(paired.model(), atoms, slots, pairs).multiply_adds
    assert saved == of_slots / 2 > 0


def test_every_node_has_the_purpose_that_its_name_tells(model: onnx.ModelProto) -> None:
    meant = purposes(model)
    assert set(meant.values()) == set(PURPOSES)
    assert {name for node in model.graph.node for name in node.output} == set(meant)
    words = {
        "filters": "radial",
        "message": "messages",
        "mixing": "updates",
        "update": "updates",
        "readout": "read-out",
    }
    named = [node for node in model.graph.node if "/" in node.name]
    assert named
    for node in named:
        purpose, use = meant[node.output[0]], node.name.split("/")[1]
        if use == "forward":
            assert purpose.startswith(words[node.name.split(".")[0]]), node.name
        else:
            assert purpose == SLOPES if use == "slope" else purpose.startswith("backward"), node.name
    assert meant["atomic_energies"] == "read-out"
    assert meant["forces"] == meant["virials"] == "backward: over neighbours"
