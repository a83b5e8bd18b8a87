"""The form for fusing engines gives the same values."""

from pathlib import Path

import numpy as np

from painn_deploy.calibration.parity import check_parity
from painn_deploy.engines.onnxruntime import open_graph
from painn_deploy.export import load_student
from painn_deploy.export.fields import GraphOutputs
from painn_deploy.export.lowering import sums_for_batched_products
from painn_deploy.export.onnx_graph import check_contract, export_onnx
from painn_deploy.export.products import weight_products
from painn_deploy.runtime.neighbours import graph_inputs

from . import students


def test_sums_for_batched_products_give_the_same(checkpoint: Path) -> None:
    import torch

    model = export_onnx(load_student(checkpoint), {})
    before = model.SerializeToString()
    lowered = sums_for_batched_products(model)
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
