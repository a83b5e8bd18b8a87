"""The same graph in a form that an engine likes better."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from painn_deploy.export.fields import PAIR_INPUTS
from painn_deploy.export.graph.products import ancestors, weight_products

__all__ = ["filters_once_a_pair", "products_side_by_side", "sums_for_batched_products"]


def sums_for_batched_products(
    model: onnx.ModelProto, *, of_products: bool = False, mixing: bool = False
) -> onnx.ModelProto:
    """Write products of two tensors, which are small matrices by the thousand, as a multiplication and a sum.

    An engine that fuses elementwise work with the sum after it makes one kernel of what would be padding, a matrix
    product and unpadding: 83 launches instead of 98 for `painn` with 128 features in a TensorRT-RTX plan. An engine
    that does not fuse would write [atoms, slots, 3, features] to memory, so this is not for those.

    Requires a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`. Ensures the same values up to the order
    of sums; products with weights stay products.

    Args:
        model: in FP32; it is not changed.
        of_products: only where an operand was multiplied elementwise just before, so that it need not be written: what
            an engine likes that fuses, and has a fast product of its own for operands that are there.
        mixing: also `distiller`'s products of a constant matrix with Cartesian axes, three by three.
    """
    constants = {t.name for t in model.graph.initializer}
    kept = {product.name for product in weight_products(model)}
    axes = {name: numpy_helper.from_array(np.array([axis]), name) for name, axis in _AXES.items()}
    nodes: list[onnx.NodeProto] = []
    multiplied: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Mul" or (node.op_type in ("Reshape", "Unsqueeze") and node.input[0] in multiplied):
            multiplied.update(node.output)
        batched = node.op_type == "MatMul" and node.name not in kept
        batched = batched and (mixing or not constants.intersection(node.input))
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
    return _with_nodes(model, nodes, [tensor for name, tensor in axes.items() if name not in constants])


_AXES = {"axis_last": -1, "axis_second": -2, "axis_third": -3}


def filters_once_a_pair(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute filters once for both slots of a pair, for an engine that can look them up where it reads them.

    A filter is a function of the distance alone, so it is the same in both slots, and most of a graph's multiply-adds
    make filters and their slopes. How many pairs there are is not seen from the contract's shapes, so such a graph
    takes `PAIR_INPUTS` as well: it is made inside an engine, and no bundle holds one.

    Requires a graph that keeps the contract. Ensures the same values up to the order of sums, where a pair's two
    displacements are exact negatives and its masks are equal, as the contract has it.

    Args:
        model: it is not changed.
    """
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    even, wide = _functions_of_the_distance(model.graph.node, constants)
    outputs = {value.name for value in model.graph.output}
    looked_up = {n for node in model.graph.node if not even.issuperset(node.output) for n in node.input if n in wide}
    looked_up |= outputs & wide
    of_pairs, of_slots = ancestors(model, looked_up), ancestors(model, outputs, looked_up) - looked_up
    flat = {"displacements": [-1, 1, 3], "mask": [-1, 1]}  # a pair is an atom with one slot
    # slots come first there: where indices lie in a row along slots, torch's compiler vectorises over slots, along
    # which nothing else does, and its code is three times slower
    nodes = [helper.make_node("Transpose", ["pair_of_slot"], [_LOOK_UP], perm=[1, 0])]
    for name in flat:
        nodes += [
            helper.make_node("Reshape", [name, f"{name}/flat_shape"], [f"{name}/flat"]),
            helper.make_node("Gather", [f"{name}/flat", "pairs"], [f"{name}{_OF_PAIRS}"], axis=0),
        ]
    for node in model.graph.node:
        if of_pairs.intersection(node.output):
            nodes.append(_renamed(node, constants))
        for name in node.output:
            if name in looked_up:
                row = f"{name}{_OF_PAIRS}/row"
                nodes.append(helper.make_node("Squeeze", [f"{name}{_OF_PAIRS}", "axis_slots"], [row]))
                nodes.append(helper.make_node("Gather", [row, _LOOK_UP], [name], axis=0))
        if of_slots.intersection(node.output):
            nodes.append(node)
    shapes = {f"{name}/flat_shape": shape for name, shape in flat.items()} | {"axis_slots": [1]}
    paired = _with_nodes(model, nodes, [numpy_helper.from_array(np.array(s), name) for name, s in shapes.items()])
    paired.graph.input.extend(
        helper.make_tensor_value_info(f.name, onnx.TensorProto.INT32, f.shape) for f in PAIR_INPUTS
    )
    return paired


_OF_PAIRS = "/of_pairs"
_LOOK_UP = "pair_of_slot/transposed"


def _functions_of_the_distance(
    nodes: Iterable[onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> tuple[set[str], set[str]]:
    """Tensors that hold the same in both slots of a pair, slot by slot; and those of them that a product made."""
    even, wide = {"mask"}, set[str]()
    for node in nodes:
        varying = [name for name in node.input if name not in constants]
        squared = node.op_type == "Mul" and set(node.input) == {"displacements"}  # (-r)² is r² to the bit
        if squared or (varying and even.issuperset(varying) and _is_slotwise(node, constants)):
            even.update(node.output)
            if node.op_type == "MatMul" or wide.intersection(varying):
                wide.update(node.output)
    return even, wide


def _is_slotwise(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether what a node makes of [atoms, slots, ...] in a slot depends on what is in that slot alone."""
    match node.op_type:
        case "MatMul":
            return node.input[1] in constants
        case "Gather":
            return node.input[0] in constants
        case "ReduceSum" | "Squeeze" | "Unsqueeze":
            return node.input[1] in constants and bool((constants[node.input[1]] >= _FEATURES).all())
        case "Split":
            return any(a.name == "axis" and a.i >= _FEATURES for a in node.attribute)
    return node.op_type in _ELEMENTWISE


_FEATURES = 2
"""The first axis after atoms and slots."""

_ELEMENTWISE = frozenset(
    (
        "Add",
        "Cast",
        "Cos",
        "Div",
        "Exp",
        "Greater",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Sigmoid",
        "Sin",
        "Sqrt",
        "Sub",
        "Where",
    )
)


def _renamed(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> onnx.NodeProto:
    """The same node for pairs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name += _OF_PAIRS
    copy.input[:] = [name if name in constants else f"{name}{_OF_PAIRS}" for name in node.input]
    copy.output[:] = [f"{name}{_OF_PAIRS}" for name in node.output]
    return copy


def products_side_by_side(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make one product of those that multiply the same tensor by different weights.

    A molecule's products are so small that starting one takes as long as computing it. Of a batch, whose results leave
    the cache, one wide result costs more than it saves.

    Args:
        model: it is not changed.
    """
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    groups = defaultdict[str, list[onnx.NodeProto]](list)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            groups[node.input[0]].append(node)
    group_of = {node.name: group for group in groups.values() if len(group) > 1 for node in group}
    nodes: list[onnx.NodeProto] = []
    joined: list[onnx.TensorProto] = []
    for node in model.graph.node:
        group = group_of.get(node.name)
        if group is None:
            nodes.append(node)
        elif node.name == group[0].name:
            name, parts = f"{node.output[0]}/side_by_side", [weights[product.input[1]] for product in group]
            joined.append(numpy_helper.from_array(np.concatenate(parts, 1), f"{name}/weights"))
            joined.append(numpy_helper.from_array(np.array([part.shape[1] for part in parts]), f"{name}/sizes"))
            nodes.append(helper.make_node("MatMul", [node.input[0], f"{name}/weights"], [name], name=name))
            nodes.append(helper.make_node("Split", [name, f"{name}/sizes"], [p.output[0] for p in group], axis=-1))
    return _with_nodes(model, nodes, joined)


def _with_nodes(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto]
) -> onnx.ModelProto:
    """A copy of a model with other nodes, and with more initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # may be the model's own
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    copy.graph.initializer.extend(initializers)
    return copy
