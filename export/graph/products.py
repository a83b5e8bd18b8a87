"""The matrix products of a graph with the student's weights: what lower precisions are about, each with its name."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

__all__ = ["Product", "ancestors", "behind_weights", "weight_products"]

READOUT = "readout."
RESULT = "/result"


@dataclass(frozen=True)
class Product:
    """A product of a tensor [..., contracted] with a weight [contracted, columns].

    Attributes:
        name: of the node: the weight's name and `forward`, `slope` (of a filter) or `backward`.
        operand: name of the tensor.
        weight: name of the initialiser.
        output: name of the result; of an INT8 product with a scale for each row, after that scale.
        contracted: length of the axis that is summed over.
        columns: of the weight.
        rows: axes of the result but the last, dynamic ones by name.
        is_int8: whether operand and weight are eight bits wide.
    """

    name: str
    operand: str
    weight: str
    output: str
    contracted: int
    columns: int
    rows: tuple[str | int, ...]
    is_int8: bool = False

    @property
    def is_forward(self) -> bool:
        """Whether the energy depends on it; only the gradient does on the others."""
        return self.name.split("/")[1] == "forward"

    @property
    def is_readout(self) -> bool:
        """Whether it belongs to the read-out, which keeps its precision."""
        return self.name.startswith(READOUT)

    def multiply_adds(self, atoms: int, slots: int) -> int:
        """Of one evaluation at a size, padding included."""
        count = self.contracted * self.columns
        for axis in self.rows:
            count *= {"atoms": atoms, "slots": slots}.get(str(axis), 0) or int(axis)
        return count


def weight_products(model: onnx.ModelProto) -> Sequence[Product]:
    """Products with the student's weights, in the graph's order.

    Args:
        model: a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`, quantised or not.
    """
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    widened = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    results = {n.name: n.output[0] for n in model.graph.node if n.name.endswith(RESULT)}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.output)
    }
    found = []
    for node in model.graph.node:
        if node.op_type == "MatMul" and "/" in node.name:
            operand, weight = node.input
            weight = widened.get(weight, weight)
            is_int8, rows = weight != node.input[1], shapes[node.output[0]][:-1]
            output = results.get(f"{node.name}{RESULT}", node.output[0])
            contracted, columns = weights[weight]
            found.append(Product(node.name, operand, weight, output, contracted, columns, rows, is_int8))
    return found


def behind_weights(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors that depend on a weight, the embedding's included; the others are pure geometry.

    Args:
        model: a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`.
    """
    tables = {t.name for t in model.graph.initializer}
    products = {p.output for p in weight_products(model)}
    behind: set[str] = set()
    for node in model.graph.node:
        looked_up = node.op_type == "Gather" and node.input[0] in tables
        if looked_up or node.output[0] in products or any(name in behind for name in node.input):
            behind.update(node.output)
    return behind


def ancestors(model: onnx.ModelProto, names: Collection[str], known: Collection[str] = ()) -> set[str]:
    """Tensors that these depend on, themselves included.

    Args:
        model: its nodes are in the order in which they run.
        names: of tensors.
        known: tensors that are given, and whose own ancestors do not count.
    """
    found = set(names)
    for node in reversed(model.graph.node):
        if any(name in found and name not in known for name in node.output):
            found.update(node.input)
    return found
