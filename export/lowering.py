"""The same graph in a form that a fusing engine likes better."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from painn_deploy.export.products import weight_products

__all__ = ["sums_for_batched_products"]


def sums_for_batched_products(model: onnx.ModelProto, *, of_products: bool = False) -> onnx.ModelProto:
    """Write products of two tensors, which are small matrices by the thousand, as a multiplication and a sum.

    An engine that fuses elementwise work with the sum after it makes one kernel of what would be padding, a matrix
    product and unpadding: 83 launches instead of 98 for `painn` with 128 features in a TensorRT-RTX plan. An engine
    that does not fuse would write [atoms, slots, 3, features] to memory, so this is not for those.

    Requires a graph made by `painn_deploy.export.onnx_graph.export_onnx`. Ensures the same values up to the order of
    sums; products with weights stay products.

    Args:
        model: in FP32; it is not changed.
        of_products: only where an operand was multiplied elementwise just before, so that it need not be written: what
            an engine likes that fuses, and has a fast product of its own for operands that are there.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    constants = {t.name for t in model.graph.initializer}
    kept = {product.name for product in weight_products(model)}
    axes = {name: numpy_helper.from_array(np.array([axis]), name) for name, axis in _AXES.items()}
    nodes: list[onnx.NodeProto] = []
    multiplied: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Mul" or (node.op_type in ("Reshape", "Unsqueeze") and node.input[0] in multiplied):
            multiplied.update(node.output)
        batched = node.op_type == "MatMul" and node.name not in kept and not constants.intersection(node.input)
        if not batched or (of_products and not multiplied.intersection(node.input)):
            nodes.append(node)
            continue
        # [..., m, k, 1] · [..., 1, k, n], summed over k
        (left, right), name = node.input, node.name
        nodes += [
            helper.make_node("Unsqueeze", [left, "axis_last"], [f"{name}_left"], name=f"{name}_left"),
            helper.make_node("Unsqueeze", [right, "axis_third"], [f"{name}_right"], name=f"{name}_right"),
            helper.make_node("Mul", [f"{name}_left", f"{name}_right"], [f"{name}_product"], name=f"{name}_product"),
            helper.make_node("ReduceSum", [f"{name}_product", "axis_second"], [node.output[0]], name=name, keepdims=0),
        ]
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del lowered.graph.node[:]
    lowered.graph.node.extend(ordered)
    lowered.graph.initializer.extend(axes.values())
    return lowered


_AXES = {"axis_last": -1, "axis_second": -2, "axis_third": -3}
