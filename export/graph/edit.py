"""An ONNX graph as its rewrites see it: nodes, what tensors are and depend on, and other nodes in the place of some.

A rewrite takes an `EditableGraph` and changes it in place; it says what it requires and ensures, and returns whether it
changed anything. A function that only asks, or that makes another model, takes a model or such a graph. What ONNX
infers of a graph is inferred once, until its nodes change. A model that is given is never changed.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from painn_deploy.export.errors import ExportError

__all__ = ["EditableGraph", "Model", "TensorType", "renamed", "tensor_types"]


class TensorType(NamedTuple):
    """Element type (of `onnx.TensorProto.DataType`) and shape of a tensor, dynamic axes by name."""

    element: int
    shape: tuple[str | int, ...]


class EditableGraph:
    """A copy of a model's graph.

    Args:
        model: an ONNX model, or such a graph of one; it is not changed.

    Attributes:
        inputs: of the graph, in order.
        outputs: names of its results, in order.
        constants: weights and other initialisers, by name.
    """

    def __init__(self, model: "Model") -> None:
        self._types: Mapping[str, TensorType] | None = model._types if isinstance(model, EditableGraph) else None
        self._model = model.model() if isinstance(model, EditableGraph) else model
        self._nodes = [renamed(node) for node in self._model.graph.node]
        self._outputs = {value.name: value for value in self._model.graph.output}
        self.inputs = list(self._model.graph.input)
        self.outputs = list(self._outputs)
        self.constants = {tensor.name: tensor for tensor in self._model.graph.initializer}

    @classmethod
    def of(cls, model: "Model") -> "EditableGraph":
        """The graph of a model; a graph is given back itself, so that what was inferred for it is used again."""
        return model if isinstance(model, cls) else cls(model)

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """In the order in which they run."""
        return self._nodes

    @nodes.setter
    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        self._nodes, self._types = list(nodes), None

    @property
    def types(self) -> Mapping[str, TensorType]:
        """Element type and shape of each tensor, by name; see `tensor_types`."""
        if self._types is None:
            self._types = tensor_types(self.model())
        return self._types

    def array(self, name: str) -> np.ndarray:
        """The value of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant, or find the one of this name and value; gives back the name.

        Args:
            name: that nodes are to read it by.
            value: of it.

        Raises:
            ExportError: there is another one of this name.
        """
        held = numpy_helper.to_array(self.constants.setdefault(name, numpy_helper.from_array(value, name)))
        if (held.dtype, held.shape, held.tobytes()) != (value.dtype, value.shape, value.tobytes()):
            raise ExportError(f"The graph holds another constant {name}, so that this rewrite cannot be done to it.")
        return name

    def ancestors(self, names: Collection[str], known: Collection[str] = ()) -> set[str]:
        """Tensors that these depend on, themselves included.

        Args:
            names: of tensors.
            known: tensors that are given, and whose own ancestors do not count.
        """
        found = set(names)
        for node in reversed(self._nodes):
            if any(name in found and name not in known for name in node.output):
                found.update(filter(None, node.input))  # an operand that is not there has no name
        return found

    def rewrite(self, replacement: Callable[[onnx.NodeProto], Sequence[onnx.NodeProto] | None]) -> bool:
        """Go through the nodes in order and put others in the place of each; whether any was replaced.

        Args:
            replacement: gives what stands in a node's place, or None to leave it.
        """
        written = [(node, replacement(node)) for node in self._nodes]
        if all(nodes is None for _, nodes in written):
            return False
        self.nodes = [n for node, nodes in written for n in ([node] if nodes is None else nodes)]
        return True

    def prune(self) -> bool:
        """Drop nodes that no output depends on, and constants that no node reads; whether there were any."""
        before = len(self._nodes), len(self.constants)
        kept = self.ancestors(self.outputs)
        self.nodes = [node for node in self._nodes if kept.intersection(node.output)]
        read = {name for node in self._nodes for name in node.input}
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in read}
        return before != (len(self._nodes), len(self.constants))

    def model(self) -> onnx.ModelProto:
        """The graph as a model, with the metadata of the one that it was made of; a new output is of float32."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph, new = model.graph, helper.make_tensor_value_info
        del graph.node[:], graph.initializer[:], graph.input[:], graph.output[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self.constants.values())
        graph.input.extend(self.inputs)
        graph.output.extend(self._outputs.get(name) or new(name, TensorProto.FLOAT, None) for name in self.outputs)
        return model


Model = onnx.ModelProto | EditableGraph


def renamed(
    node: onnx.NodeProto,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    name: str | None = None,
) -> onnx.NodeProto:
    """A copy of a node.

    Args:
        node: it is not changed.
        inputs: names of what the copy reads, if others.
        outputs: names of what it writes, if others.
        name: its own, if another.
    """
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    if inputs is not None:
        copy.input[:] = inputs
    if outputs is not None:
        copy.output[:] = outputs
    if name is not None:
        copy.name = name
    return copy


def tensor_types(model: onnx.ModelProto, sizes: Mapping[str, int] | None = None) -> Mapping[str, TensorType]:
    """Element types and shapes of a model's tensors, as ONNX infers them, by name.

    Args:
        model: it is not changed.
        sizes: of dynamic axes, by name; an axis without one stays dynamic.

    Raises:
        ExportError: ONNX does not know an operator or finds no shape, or a node's operands do not fit each other.
    """
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in (*sized.graph.input, *sized.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if sizes and axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]
    del sized.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(sized, strict_mode=True, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"ONNX cannot infer the shapes of this graph: {error}") from error
    types = {tensor.name: TensorType(tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shape = tuple(a.dim_param or (a.dim_value if a.HasField("dim_value") else "?") for a in kind.shape.dim)
            types[value.name] = TensorType(kind.elem_type, shape)
    unknown = [name for node in graph.node for name in node.output if name and name not in types]
    if unknown:
        raise ExportError(f"ONNX finds no shape for {', '.join(unknown[:5])}.")
    return types
