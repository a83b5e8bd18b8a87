"""The same graph in a form that an engine likes better."""

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper

from painn_deploy.export.fields import PAIR_INPUTS
from painn_deploy.export.graph.edit import EditableGraph, renamed
from painn_deploy.export.graph.products import is_weight_product

__all__ = ["filters_once_a_pair", "products_side_by_side", "sums_for_batched_products", "sums_for_products"]


def sums_for_batched_products(graph: EditableGraph, *, of_products: bool = False, mixing: bool = False) -> bool:
    """Write products of two tensors, which are small matrices by the thousand, as a multiplication and a sum.

    An engine that fuses elementwise work with the sum after it makes one kernel of what would be padding, a matrix
    product and unpadding: 83 launches instead of 98 for `painn` with 128 features in a TensorRT-RTX plan. An engine
    that does not fuse would write [atoms, slots, 3, features] to memory, so this is not for those.

    Requires a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`. Ensures the same values up to the order
    of sums; products with weights stay products.

    Args:
        graph: in FP32.
        of_products: only where an operand was multiplied elementwise just before, so that it need not be written: what
            an engine likes that fuses, and has a fast product of its own for operands that are there.
        mixing: also `distiller`'s products of a constant matrix with Cartesian axes, three by three.

    Returns:
        Whether there was such a product.
    """
    kept = {node.name for node in graph.nodes if is_weight_product(node)}
    constants = set(graph.constants)
    multiplied: set[str] = set()

    def as_sum(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if node.op_type == "Mul" or (node.op_type in ("Reshape", "Unsqueeze") and node.input[0] in multiplied):
            multiplied.update(node.output)
        batched = node.op_type == "MatMul" and node.name not in kept
        batched = batched and (mixing or not constants.intersection(node.input))
        if not batched or (of_products and not multiplied.intersection(node.input)):
            return None
        return _as_sum(graph, node)

    return graph.rewrite(as_sum)


def sums_for_products(graph: EditableGraph) -> bool:
    """Write products with weights as a multiplication and a sum, too, which is for a few atoms.

    So small a product takes a library longer than an engine takes that fuses it with what stands around it: cuBLAS
    spends 51 us on one of nine rows.

    Requires what `sums_for_batched_products` does, and to come after lowerings that look for products. Ensures the same
    values up to the order of sums.

    Args:
        graph: in FP32.

    Returns:
        Whether there was such a product.
    """
    return graph.rewrite(lambda node: _as_sum(graph, node) if node.op_type == "MatMul" else None)


_AXES = {"axis_last": -1, "axis_second": -2, "axis_third": -3}


def _as_sum(graph: EditableGraph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """[..., m, k] · [..., k, n] as [..., m, k, 1] · [..., 1, k, n], summed over k."""
    last, second, third = (graph.constant(name, np.array([axis])) for name, axis in _AXES.items())
    (left, right), name = node.input, node.name
    return [
        helper.make_node("Unsqueeze", [left, last], [f"{name}_left"], name=f"{name}_left"),
        helper.make_node("Unsqueeze", [right, third], [f"{name}_right"], name=f"{name}_right"),
        helper.make_node("Mul", [f"{name}_left", f"{name}_right"], [f"{name}_product"], name=f"{name}_product"),
        helper.make_node("ReduceSum", [f"{name}_product", second], [node.output[0]], name=name, keepdims=0),
    ]


def filters_once_a_pair(graph: EditableGraph) -> bool:
    """Compute filters once for both slots of a pair, for an engine that can look them up where it reads them.

    A filter is a function of the distance alone, so it is the same in both slots, and most of a graph's multiply-adds
    make filters and their slopes. How many pairs there are is not seen from the contract's shapes, so such a graph
    takes `PAIR_INPUTS` as well: it is made inside an engine, and no bundle holds one.

    Requires a graph that keeps the contract. Ensures the same values up to the order of sums, where a pair's two
    displacements are exact negatives and its masks are equal, as the contract has it; and that the graph takes
    `PAIR_INPUTS`, even where it computes nothing for them.

    Args:
        graph: in FP32 or FP16-mixed.

    Returns:
        Whether the graph did not take `PAIR_INPUTS` before.
    """
    if {value.name for value in graph.inputs}.intersection(field.name for field in PAIR_INPUTS):
        return False
    even, wide = _functions_of_the_distance(graph)
    outputs = set(graph.outputs)
    looked_up = {n for node in graph.nodes if not even.issuperset(node.output) for n in node.input if n in wide}
    looked_up |= outputs & wide
    of_pairs, of_slots = graph.ancestors(looked_up), graph.ancestors(outputs, looked_up) - looked_up
    # slots come first there: where indices lie in a row along slots, torch's compiler vectorises over slots, along
    # which nothing else does, and its code is three times slower
    nodes = [helper.make_node("Transpose", ["pair_of_slot"], [_LOOK_UP], perm=[1, 0])]
    for name, shape in {"displacements": [-1, 1, 3], "mask": [-1, 1]}.items():  # a pair is an atom with one slot
        flat = graph.constant(f"{name}/flat_shape", np.array(shape))
        nodes += [
            helper.make_node("Reshape", [name, flat], [f"{name}/flat"]),
            helper.make_node("Gather", [f"{name}/flat", "pairs"], [f"{name}{_OF_PAIRS}"], axis=0),
        ]
    axis = graph.constant("axis_slots", np.array([1]))
    for node in graph.nodes:
        if of_pairs.intersection(node.output):
            inputs = [name if name in graph.constants else f"{name}{_OF_PAIRS}" for name in node.input]
            made = [f"{name}{_OF_PAIRS}" for name in node.output]
            nodes.append(renamed(node, inputs, made, f"{node.name}{_OF_PAIRS}"))
        for name in node.output:
            if name in looked_up:
                row = f"{name}{_OF_PAIRS}/row"
                nodes.append(helper.make_node("Squeeze", [f"{name}{_OF_PAIRS}", axis], [row]))
                nodes.append(helper.make_node("Gather", [row, _LOOK_UP], [name], axis=0))
        if of_slots.intersection(node.output):
            nodes.append(node)
    graph.nodes = nodes
    graph.inputs += [helper.make_tensor_value_info(f.name, onnx.TensorProto.INT32, f.shape) for f in PAIR_INPUTS]
    return True


_OF_PAIRS = "/of_pairs"
_LOOK_UP = "pair_of_slot/transposed"


def _functions_of_the_distance(graph: EditableGraph) -> tuple[set[str], set[str]]:
    """Tensors that hold the same in both slots of a pair, slot by slot; and those of them that a product made."""
    even, wide = {"mask"}, set[str]()
    for node in graph.nodes:
        varying = [name for name in node.input if name not in graph.constants]
        squared = node.op_type == "Mul" and set(node.input) == {"displacements"}  # (-r)² is r² to the bit
        if squared or (varying and even.issuperset(varying) and _is_slotwise(node, graph)):
            even.update(node.output)
            if node.op_type == "MatMul" or wide.intersection(varying):
                wide.update(node.output)
    return even, wide


def _is_slotwise(node: onnx.NodeProto, graph: EditableGraph) -> bool:
    """Whether what a node makes of [atoms, slots, ...] in a slot depends on what is in that slot alone."""
    match node.op_type:
        case "MatMul":
            return node.input[1] in graph.constants
        case "Gather":
            return node.input[0] in graph.constants
        case "ReduceSum" | "Squeeze" | "Unsqueeze":
            return node.input[1] in graph.constants and bool((graph.array(node.input[1]) >= _FEATURES).all())
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


def products_side_by_side(graph: EditableGraph) -> bool:
    """Make one product of those that multiply the same tensor by different weights.

    A molecule's products are so small that starting one takes as long as computing it. Of a batch, whose results leave
    the cache, one wide result costs more than it saves.

    Requires products with names of their own. Ensures the same values; the weights that were joined stay in the graph.

    Args:
        graph: in any precision.

    Returns:
        Whether there were such products.
    """
    groups = defaultdict[str, list[onnx.NodeProto]](list)
    for node in graph.nodes:
        if node.op_type == "MatMul" and node.input[1] in graph.constants:
            groups[node.input[0]].append(node)
    group_of = {node.name: group for group in groups.values() if len(group) > 1 for node in group}

    def joined(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        group = group_of.get(node.name)
        if group is None:
            return None
        if node.name != group[0].name:
            return []
        name, parts = f"{node.output[0]}/side_by_side", [graph.array(product.input[1]) for product in group]
        weights = graph.constant(f"{name}/weights", np.concatenate(parts, 1))
        sizes = graph.constant(f"{name}/sizes", np.array([part.shape[1] for part in parts]))
        return [
            helper.make_node("MatMul", [node.input[0], weights], [name], name=name),
            helper.make_node("Split", [name, sizes], [product.output[0] for product in group], axis=-1),
        ]

    return graph.rewrite(joined)
