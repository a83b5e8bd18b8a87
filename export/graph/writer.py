"""The writer of an ONNX graph: it keeps tensors under their real shapes, and writes no node twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, fx

from painn_deploy.export.errors import ExportError

__all__ = ["Constant", "Shape", "Value", "Writer", "symbolic", "traced_shape"]

Shape = tuple[Any, ...]  # int, or torch.SymInt for the dynamic axes


@dataclass(frozen=True)
class Value:
    """A tensor of the ONNX graph under the shape that it really has there; the traced shape may be another view of it.

    Attributes:
        name: in the ONNX graph.
        shape: in the ONNX graph.
        spread: whether axes of size one stand for larger ones of the traced shape.
    """

    name: str
    shape: Shape
    spread: bool = False


@dataclass(frozen=True)
class Constant:
    """A tensor that depends on weights alone; broadcasts to the traced shape.

    Attributes:
        tensor: its value.
        weight: name of the student's weight that it was made from, empty where it is not one.
        transposed: whether it is that weight with its axes swapped, as a forward product reads it.
    """

    tensor: Tensor
    weight: str = ""
    transposed: bool = False


class Writer:
    """Nodes and initialisers of a graph in the making, and what each traced node became.

    Attributes:
        values: what each traced node became: a `Value`, a `Constant`, or a list of them.
        nodes: of the ONNX graph, in order.
        initialisers: of the ONNX graph, by name.
        written: the node that gives a tensor, by the tensor's name.
    """

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.written: dict[str, onnx.NodeProto] = {}
        self._written: dict[Any, tuple[str, ...]] = {}

    def product(self, operand: str, weight: Constant) -> str:
        """Write the product of a tensor with a weight, named by the weight and how it is read.

        Args:
            operand: name of the tensor.
            weight: right-hand side.
        """
        (output,) = self.emit("MatMul", [operand, self.constant(weight.tensor)])
        node = self.nodes[-1]
        if output == node.output[0] and weight.weight:  # else it was written before
            node.name = f"{weight.weight}/{'forward' if weight.transposed else 'backward'}"
        return output

    def emit(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> tuple[str, ...]:
        """Write a node, or find the same one written before.

        Args:
            operator: ONNX's name of it.
            inputs: names of tensors.
            outputs: how many it has.
            attributes: of the node.
        """
        key = (operator, tuple(inputs), outputs, tuple(sorted((k, str(v)) for k, v in attributes.items())))
        if key not in self._written:
            stem = f"{operator.lower()}_{len(self.nodes)}"
            names = (stem,) if outputs == 1 else tuple(f"{stem}_{i}" for i in range(outputs))
            self.nodes.append(helper.make_node(operator, list(inputs), list(names), name=stem, **attributes))
            self.written.update(dict.fromkeys(names, self.nodes[-1]))
            self._written[key] = names
        return self._written[key]

    def constant(self, tensor: Tensor) -> str:
        """Name of an initialiser, shared among equal ones."""
        array = tensor.detach().contiguous().numpy()
        key = ("initialiser", str(array.dtype), array.shape, array.tobytes())
        if key not in self._written:
            name = f"constant_{len(self.initialisers)}"
            self.initialisers[name] = numpy_helper.from_array(np.array(array), name)
            self._written[key] = (name,)
        return self._written[key][0]

    def integers(self, *numbers: int) -> str:
        return self.constant(torch.tensor(numbers, dtype=torch.int64))

    def materialised(self, node: fx.Node) -> str:
        """Name of an ONNX tensor whose own shape is the traced one; a Reshape is written where it is not."""
        value, shape = self.values[node], traced_shape(node)
        if isinstance(value, Constant):
            if len(shape) == 2 and value.tensor.numel() == shape[1] and not isinstance(shape[0], int):
                return self.spread_over_atoms(value.tensor)
            if tuple(value.tensor.shape) != shape:
                raise ExportError(f"{node} is a constant broadcast to {shape}, which its reader does not expect.")
            return self.constant(value.tensor)
        return self.reshaped(value, shape)

    def spread_over_atoms(self, row: Tensor) -> str:
        """The same row for every atom, as the gradient of a linear read-out is; sizes are the mask's."""
        edges = self.emit("ReduceSum", ["mask", self.integers(1)], keepdims=1)[0]
        zeros = self.emit("Mul", [edges, self.constant(torch.zeros((), dtype=row.dtype))])[0]
        return self.emit("Add", [zeros, self.constant(row.reshape(1, -1))])[0]

    def reshaped(self, value: Value, shape: Shape) -> str:
        """Name of a tensor with the value's elements in a shape; a Reshape is written where it differs.

        Args:
            value: tensor.
            shape: traced shape, dynamic axes by name.
        """
        if value.shape == shape:
            return value.name
        if value.spread:
            raise ExportError(
                f"{value.name} is broadcast from {value.shape} to {shape}, which its reader does not expect."
            )
        target = []
        for axis, size in enumerate(shape):
            if isinstance(size, int):
                target.append(size)
            else:  # 0 copies the input's size
                same = axis < len(value.shape) and value.shape[axis] == size
                target.append(0 if same else -1)
        if target.count(-1) > 1:
            raise ExportError(f"{value.name}: {value.shape} cannot be reshaped to {shape} without computing sizes.")
        return self.emit("Reshape", [value.name, self.integers(*target)])[0]

    def operand(self, value: Any, dtype: torch.dtype) -> str:
        """An input of an elementwise operator, under its real shape; a Python number takes `dtype`.

        Args:
            value: tensor, weight or Python number.
            dtype: of a number.
        """
        if isinstance(value, Constant):
            return self.constant(value.tensor)
        if isinstance(value, Value):
            return value.name
        return self.constant(torch.tensor(value, dtype=dtype))


def traced_shape(node: fx.Node) -> Shape:
    """The shape that tracing gave a node, dynamic axes as symbols."""
    return symbolic(node.meta["val"].shape)


def symbolic(sizes: Sequence[Any]) -> Shape:
    """Sizes with their dynamic ones as symbols that can be compared."""
    return tuple(size if isinstance(size, int) else size.node.expr for size in sizes)
