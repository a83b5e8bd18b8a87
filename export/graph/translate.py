"""From a traced graph of ATen operators to a lean ONNX graph.

The general exporter of torch writes six times as many nodes for one of these models, which compute sizes as they run;
its optimiser leaves a quarter more than are needed, and deletes additions of 1e-8, without which the gradient of a
vector norm is 0/0 for a lone atom (torch 2.13; tests/export/test_general_exporter.py makes both and fails when it is no
longer so). The few operators that a student's energy and gradient consist of are translated here one to one instead.
Three things are done on the way, none of which changes a value:

- what depends on weights alone is computed once, in their dtype;
- a view is not written down but remembered: a matrix product over the last axis needs no flattening in ONNX;
- a node that was written before, with the same inputs and attributes, is used again.

An operator or a shape that is not foreseen raises; nothing is approximated and nothing is left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx

from painn_deploy.export.errors import ExportError
from painn_deploy.export.fields import INPUTS, OUTPUTS, Field
from painn_deploy.export.graph.edit import EditableGraph, renamed
from painn_deploy.export.graph.operators import HANDLERS
from painn_deploy.export.graph.writer import Constant, Value, Writer, traced_shape

__all__ = ["OPSET", "translate"]

OPSET = 18
"""Read by every TensorRT and ONNX Runtime that we support, and the first in which all reductions agree."""

IR_VERSION = 10

_ELEMENT_TYPES = {"float64": TensorProto.DOUBLE, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


def translate(
    module: fx.GraphModule,
    name: str,
    weights: Mapping[str, Tensor],
    precision: str = "fp32",
    results: Sequence[Field] = OUTPUTS,
) -> onnx.ModelProto:
    """Write a traced graph as an ONNX model that keeps the graph contract.

    Args:
        module: the traced graph, its placeholders in the contract's order, its outputs too.
        name: of the ONNX graph.
        weights: the student's, by name; products with them carry their names.
        precision: that it was traced in, `fp32` or `fp64`.
        results: the outputs' fields.

    Raises:
        ExportError: the graph holds an operator or a shape that is not foreseen.
    """
    writer = Writer()
    names = {tensor.data_ptr(): weight for weight, tensor in weights.items()}
    fields = iter(INPUTS)
    outputs: Sequence[fx.Node] = ()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            writer.values[node] = Value(next(fields).name, traced_shape(node))
        elif node.op == "get_attr":
            tensor = _attribute(module, node.target)
            writer.values[node] = Constant(tensor, names.get(tensor.data_ptr(), ""))
        elif node.op == "output":
            outputs = node.args[0]
        else:
            writer.values[node] = _became(writer, node)
    for node, field in zip(outputs, results, strict=True):
        writer.nodes.append(helper.make_node("Identity", [writer.materialised(node)], [field.name]))
    written = helper.make_graph(
        writer.nodes,
        name,
        [_declared(field, precision) for field in INPUTS],
        [_declared(field, precision) for field in results],
        list(writer.initialisers.values()),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    graph = EditableGraph(helper.make_model(written, opset_imports=opsets, ir_version=IR_VERSION))
    _name_outputs(graph)
    graph.prune()  # such as what was traced for its shape alone
    _name_products(graph)
    return graph.model()


def _declared(field: Field, precision: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(field.name, _ELEMENT_TYPES[field.dtype_in(precision)], field.shape)


def _became(writer: Writer, node: fx.Node) -> Any:
    inputs = [writer.values.get(n) for n in node.all_input_nodes]
    if inputs and all(isinstance(value, Constant) for value in inputs) and not _is_dynamic(node.meta.get("val")):
        return _folded(writer, node)
    name = getattr(node.target, "__name__", str(node.target))
    if name not in HANDLERS:
        raise ExportError(f"The traced graph holds {node.target}, for which there is no ONNX translation here.")
    return HANDLERS[name](writer, node)


def _folded(writer: Writer, node: fx.Node) -> Any:
    """Compute now what depends on weights alone."""

    def tensor(value: fx.Node) -> Any:
        return writer.values[value].tensor

    if not callable(node.target):
        raise ExportError(f"The traced graph calls {node.target!r}, which cannot be computed.")
    result = node.target(*fx.map_arg(node.args, tensor), **fx.map_arg(node.kwargs, tensor))
    # a bias may have been joined to its weight, which comes first
    first = next((v for n in node.all_input_nodes if (v := writer.values[n]).weight), Constant(torch.empty(0)))
    swaps = getattr(node.target, "__name__", "").split(".")[0] in ("t", "transpose")
    results = [Constant(r, first.weight, first.transposed != swaps) for r in _listed(result)]
    return results if isinstance(result, list | tuple) else results[0]


def _listed(result: Any) -> Sequence[Any]:
    return result if isinstance(result, list | tuple) else [result]


def _name_outputs(graph: EditableGraph) -> bool:
    """Let the last nodes carry the contract's names, in place of Identity nodes after them; whether they could.

    Requires the outputs to be what Identity nodes make, and no other such nodes.
    """
    final = {n.input[0]: n.output[0] for n in graph.nodes if n.op_type == "Identity"}
    made = {name for node in graph.nodes for name in node.output}
    if len(final) != len(graph.outputs) or not final.keys() <= made:
        return False  # an output that is also an input or a constant keeps its Identity

    def ended(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        inputs, outputs = ([final.get(name, name) for name in names] for names in (node.input, node.output))
        return [] if node.op_type == "Identity" else [renamed(node, inputs, outputs)]

    return graph.rewrite(ended)


def _name_products(graph: EditableGraph) -> None:
    """`weight/forward` where the energy depends on a product, `weight/slope` where only a filter's derivative does, and
    `weight/backward` where gradients are taken back; numbered from the second on.
    """
    energy = graph.ancestors([OUTPUTS[0].name])
    seen: Counter[str] = Counter()
    for node in graph.nodes:
        if "/" in node.name:
            name = node.name if node.output[0] in energy else node.name.replace("/forward", "/slope")
            seen[name] += 1
            node.name = name if seen[name] == 1 else f"{name}/{seen[name]}"


def _attribute(module: Any, target: Any) -> Tensor:
    for part in str(target).split("."):
        module = getattr(module, part)
    if not isinstance(module, Tensor):
        raise ExportError(f"The traced graph reads {target}, which is not a tensor.")
    return module


def _is_dynamic(value: Any) -> bool:
    """Whether a traced value is a size that is not known, or has an axis of such a size."""
    if isinstance(value, torch.SymInt):
        return True
    if isinstance(value, Tensor):
        return any(not isinstance(size, int) for size in value.shape)
    return isinstance(value, list | tuple) and any(_is_dynamic(item) for item in value)
