"""Other forms of a graph give the same values."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from painn_deploy.calibration.accuracy.parity import check_parity
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.engines.onnxruntime.backend import load_graph, open_graph
from painn_deploy.export import load_student
from painn_deploy.export.fields import OUTPUTS, GraphInputs, GraphOutputs
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.lowering import filters_once_a_pair, products_side_by_side, sums_for_batched_products
from painn_deploy.export.graph.onnx_graph import check_contract, export_onnx
from painn_deploy.export.graph.products import weight_products
from painn_deploy.runtime.matrix import graph_inputs
from tests import students


def rewritten(rewrite: Callable[..., bool], model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """A model after a rewrite that changes it once, and finds nothing more to change."""
    graph = EditableGraph(model)
    assert rewrite(graph, **options)
    once = graph.model()
    assert not rewrite(graph, **options)
    assert graph.model() == once
    return once


def test_sums_for_batched_products_give_the_same(checkpoint: Path) -> None:
    model = export_onnx(load_student(checkpoint), {})
    before = model.SerializeToString()
    lowered = rewritten(sums_for_batched_products, model)
    assert model.SerializeToString() == before
    check_contract(lowered)
    products = {n.name for n in lowered.graph.node if n.op_type == "MatMul"}
    mixing = {n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[0].startswith("constant")}
    assert products == {p.name for p in weight_products(model)} | mixing
    one, other = open_graph(model.SerializeToString()), open_graph(lowered.SerializeToString())
    inputs = graph_inputs([students.water(), students.zoo()["slab"]], 4.0)
    for a, b in zip(one(inputs), other(inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(a).max()))
    student = load_student(checkpoint, dtype=torch.float64)
    check_parity(lambda graph: GraphOutputs(*other(graph)), student)


def test_sums_can_take_the_place_of_every_product_but_those_with_weights(checkpoint: Path) -> None:
    model = export_onnx(load_student(checkpoint), {})
    some = rewritten(sums_for_batched_products, model, of_products=True)
    lowered = rewritten(sums_for_batched_products, some, mixing=True)
    products = {n.name for n in lowered.graph.node if n.op_type == "MatMul"}
    assert products == {p.name for p in weight_products(model)}
    run = open_graph(lowered.SerializeToString())
    check_parity(lambda graph: GraphOutputs(*run(graph)), load_student(checkpoint, dtype=torch.float64))


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_filters_once_a_pair_give_the_same(checkpoint: Path, table: bool, side_by_side: bool) -> None:
    student = load_student(checkpoint)
    model = export_onnx(student.with_radial_table(24, 512) if table else student, {})
    before = model.SerializeToString()
    paired = rewritten(filters_once_a_pair, model)
    assert model.SerializeToString() == before
    rows = _rows_of_products(paired)
    assert {shape[0] for shape in rows} == {"atoms", "pairs"}  # none is computed slot by slot
    assert sum(shape[0] == "pairs" for shape in rows) == sum("slots" in p.rows for p in weight_products(model))
    if side_by_side:
        separate, paired = paired, rewritten(products_side_by_side, paired)
        assert len(_rows_of_products(paired)) < len(rows) == len(_rows_of_products(separate))
    session = load_graph(paired.SerializeToString(), "cpu", 1)

    def run(inputs: GraphInputs) -> GraphOutputs:
        arrays = inputs._asdict() | pair_inputs(inputs.reverse)._asdict()
        return GraphOutputs(*session.run([field.name for field in OUTPUTS], arrays))

    exact = open_graph(before)
    for batch in ([atoms] for atoms in students.zoo().values()):
        inputs = graph_inputs(batch, student.configuration.cutoff)
        for got, wanted in zip(run(inputs), exact(inputs), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))
    if not table:
        check_parity(run, load_student(checkpoint, dtype=torch.float64))


def _rows_of_products(model: onnx.ModelProto) -> list[tuple[str | int, ...]]:
    """Axes but the last of the results of products with weights."""
    weights = {t.name for t in model.graph.initializer}
    shapes = {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    products = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    return [shapes[n.output[0]][:-1] for n in products]


def test_a_sum_over_slots_is_no_function_of_a_slot() -> None:
    """What looks like a filter, and depends on more than one slot, is left alone."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[atoms, slots, 3] displacements, float[atoms, slots] mask) => (float[atoms, n] atomic_energies)
        <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[1] one = {1}> {
            squares = Mul(displacements, displacements)
            summed = ReduceSum <keepdims = 0> (squares, one)
            atomic_energies = MatMul(summed, w)
        }
    """)
    paired = rewritten(filters_once_a_pair, model)
    assert [n.op_type for n in paired.graph.node if n.op_type == "ReduceSum"] == ["ReduceSum"]
    inputs = graph_inputs([students.water()], 4.0)
    one, other = (load_graph(m.SerializeToString(), "cpu", 1) for m in (model, paired))
    arrays = {"displacements": inputs.displacements, "mask": inputs.mask}
    (wanted,) = one.run(None, arrays)
    (got,) = other.run(None, arrays | pair_inputs(inputs.reverse)._asdict())
    np.testing.assert_array_equal(got, wanted)
