"""The matrix products of a graph with the student's weights: what lower precisions are about, each with its name."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from painn_deploy.export.graph.edit import EditableGraph, Model

__all__ = ["RESULT", "Product", "behind_weights", "is_weight_product", "weight_products"]

READOUT, TABLE = "readout.", "radial_table."
RESULT = "/result"
"""Behind a product's name: the node that gives its result where the product itself is scaled."""


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

    @property
    def is_of_table(self) -> bool:
        """Whether it makes filters of the functions of a radial table, which are geometry as the basis is."""
        return self.name.startswith(TABLE)

    def multiply_adds(self, atoms: int, slots: int) -> int:
        """Multiply-adds of one evaluation at a size, padding included.

        Args:
            atoms: rows of the matrix.
            slots: columns of the matrix.
        """
        count = self.contracted * self.columns
        for axis in self.rows:
            count *= {"atoms": atoms, "slots": slots}.get(str(axis), 0) or int(axis)
        return count


def is_weight_product(node: onnx.NodeProto) -> bool:
    """Whether a node is a product with a weight of the student's: they have names of their own.

    Args:
        node: of a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`.
    """
    return node.op_type == "MatMul" and "/" in node.name


def weight_products(model: Model) -> Sequence[Product]:
    """Products with the student's weights, in the graph's order.

    Args:
        model: a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`, quantised or not.

    Raises:
        ExportError: ONNX infers no shapes for the graph.
    """
    graph = EditableGraph.of(model)
    widened = {n.output[0]: n.input[0] for n in graph.nodes if n.op_type == "DequantizeLinear"}
    results = {n.name: n.output[0] for n in graph.nodes if n.name.endswith(RESULT)}
    found = []
    for node in graph.nodes:
        if is_weight_product(node):
            operand, weight = node.input
            weight = widened.get(weight, weight)
            is_int8, rows = weight != node.input[1], graph.types[node.output[0]].shape[:-1]
            output = results.get(f"{node.name}{RESULT}", node.output[0])
            contracted, columns = graph.constants[weight].dims
            found.append(Product(node.name, operand, weight, output, contracted, columns, rows, is_int8))
    return found


def behind_weights(model: Model) -> set[str]:
    """Names of the tensors that depend on a weight, the embedding's included; the others are pure geometry.

    Args:
        model: a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`.
    """
    graph = EditableGraph.of(model)
    behind = {product.output for product in weight_products(graph)}
    for node in graph.nodes:
        looked_up = node.op_type == "Gather" and node.input[0] in graph.constants
        if looked_up or behind.intersection(node.input):
            behind.update(node.output)
    return behind
