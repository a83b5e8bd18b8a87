"""A graph that is edited: the model that was given stays, what was inferred holds until nodes change."""

import numpy as np
import onnx
import pytest
from onnx import helper

from painn_deploy.export.errors import ExportError
from painn_deploy.export.graph.edit import EditableGraph, renamed, tensor_types


@pytest.fixture
def model() -> onnx.ModelProto:
    """y = (x W)^2, beside a node and a constant that nothing needs."""
    return onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18], producer_name: "somebody">
        g (float[atoms, 2] x) => (float[atoms, 3] y)
        <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[1] unread = {7}> {
            product = MatMul(x, w)
            dead = Neg(product)
            y = Mul(product, product)
        }
    """)


def test_the_model_that_was_given_stays(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    graph = EditableGraph(model)
    assert graph.model() == model
    assert graph.rewrite(lambda node: [renamed(node, name="another")])
    graph.constant("new", np.ones(2))
    graph.inputs.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1]))
    graph.outputs.append("product")
    assert graph.prune()
    assert model.SerializeToString() == before
    made = graph.model()
    assert made.producer_name == "somebody"
    assert [value.name for value in made.graph.input] == ["x", "z"]
    assert [value.name for value in made.graph.output] == ["y", "product"]
    assert tensor_types(made)["product"] == (onnx.TensorProto.FLOAT, ("atoms", 3))


def test_a_rewrite_says_whether_it_changed_anything(model: onnx.ModelProto) -> None:
    graph = EditableGraph(model)
    assert not graph.rewrite(lambda _: None)
    assert graph.model() == model
    assert graph.prune()
    assert [node.op_type for node in graph.nodes] == ["MatMul", "Mul"]
    assert list(graph.constants) == ["w"]
    assert not graph.prune()


def test_what_is_inferred_is_inferred_once_until_nodes_change(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return tensor_types(*arguments)

    monkeypatch.setattr("painn_deploy.export.graph.edit.tensor_types", counted)
    graph = EditableGraph(model)
    assert graph.types["product"] == (onnx.TensorProto.FLOAT, ("atoms", 3))
    assert EditableGraph.of(graph).types is EditableGraph(graph).types is graph.types
    assert len(calls) == 1
    graph.rewrite(lambda n: [helper.make_node("MatMul", ["w", "w2"], ["product"])] if n.op_type == "MatMul" else None)
    graph.constant("w2", np.ones((3, 4), np.float32))
    graph.outputs = ["product"]
    assert graph.types["product"].shape == (2, 4)
    assert len(calls) == 2


def test_ancestors_stop_at_what_is_known(model: onnx.ModelProto) -> None:
    graph = EditableGraph(model)
    assert graph.ancestors(["y"]) == {"y", "product", "x", "w"}
    assert graph.ancestors(["y"], known={"product"}) == {"y", "product"}


def test_a_constant_is_shared_by_name_and_value(model: onnx.ModelProto) -> None:
    graph = EditableGraph(model)
    assert graph.constant("unread", np.array([7], np.float32)) == "unread"
    for value in (np.array([8], np.float32), np.array([7.0]), np.array(7, np.float32)):
        with pytest.raises(ExportError, match="holds another constant unread"):
            graph.constant("unread", value)
    assert graph.array("unread") == 7


def test_shapes_that_do_not_fit_are_an_error_in_words(model: onnx.ModelProto) -> None:
    assert tensor_types(model, {"atoms": 5, "slots": 2})["product"].shape == (5, 3)
    unknown = onnx.ModelProto()
    unknown.CopyFrom(model)
    unknown.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="finds no shape for product, dead"):
        tensor_types(unknown)
    model.graph.initializer[0].dims[:] = [3, 2]
    with pytest.raises(ExportError, match="cannot infer the shapes.*Incompatible dimensions"):
        tensor_types(model)
