"""The cost of one evaluation of an ONNX graph at a size: multiply-adds, bytes, memory; counted, not measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import helper

from painn_deploy.export.errors import ExportError
from painn_deploy.export.fields import OUTPUTS
from painn_deploy.export.graph.edit import EditableGraph, tensor_types

__all__ = ["Cost", "count", "energy_only", "sized"]

VIEWS = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""They give the same bytes another shape."""

MOVES = frozenset({"Concat", "Expand", "Gather", "Slice", "Split", "Tile", "Transpose"})
"""They copy, and compute nothing."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensors:
    """Sizes of a graph's tensors.

    Attributes:
        shapes: by name.
        widths: bytes of one element, by name.
    """

    shapes: Mapping[str, Shape]
    widths: Mapping[str, int]

    def bytes_of(self, name: str) -> int:
        """Of the whole tensor."""
        return prod(self.shapes[name]) * self.widths[name]


@dataclass(frozen=True)
class Cost:
    """Of one evaluation.

    Attributes:
        multiply_adds: of matrix products, those between activations included.
        elementwise: results of other arithmetic; of a reduction, what it reads. None where they were not counted.
        bytes_written: read and written if each node reads its inputs from memory and writes its outputs there.
        bytes_least: weights and the graph's inputs read once, its outputs written once.
        peak_bytes: weights, and the most that activations take at any time when each is freed after its last reader.
        weight_bytes: of all constants that are read.
    """

    multiply_adds: int
    elementwise: int | None
    bytes_written: int
    bytes_least: int
    peak_bytes: int
    weight_bytes: int

    @property
    def operations(self) -> int:
        """Floating point operations: two for a multiply-add, one for each other result that was counted."""
        return 2 * self.multiply_adds + (self.elementwise or 0)

    @property
    def intensity(self) -> float:
        """Operations a byte, if every operator reads and writes memory."""
        return self.operations / self.bytes_written

    @property
    def intensity_limit(self) -> float:
        """Operations a byte, if nothing but weights, inputs and outputs went through memory."""
        return self.operations / self.bytes_least


def count(model: onnx.ModelProto, atoms: int, slots: int, pairs: int = 0) -> Cost:
    """Count a graph that keeps the contract at a size, padding included.

    Args:
        model: the graph.
        atoms: of the size.
        slots: of the size.
        pairs: of the size, for a graph whose filters are computed once a pair.

    Raises:
        ExportError: a shape or an operator is not known.
    """
    tensors, graph = sized(model, atoms, slots, pairs), model.graph
    multiply_adds = elementwise = moved = 0
    for node in graph.node:
        made = sum(prod(tensors.shapes[name]) for name in node.output)
        read = [name for name in node.input if name]
        if node.op_type in VIEWS:
            continue
        if node.op_type == "MatMul":
            multiply_adds += made * tensors.shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            swapped = any(a.name == "transA" and a.i for a in node.attribute)
            multiply_adds += made * tensors.shapes[node.input[0]][0 if swapped else 1]
        elif node.op_type in ("Einsum", "Conv"):
            raise ExportError(f"{node.name} is {node.op_type}, whose multiply-adds are not counted here.")
        elif node.op_type.startswith("Reduce"):
            elementwise += prod(tensors.shapes[node.input[0]])
        elif node.op_type not in MOVES:
            elementwise += made
        moved += sum(tensors.bytes_of(name) for name in node.output)
        if node.op_type in ("Gather", "Slice"):  # they read what they take
            moved += sum(tensors.bytes_of(name) for name in node.output)
            read = read[1:] if node.op_type == "Gather" else []
        moved += sum(tensors.bytes_of(name) for name in read)
    taken = {name for node in graph.node for name in node.input}
    weights = sum(tensors.bytes_of(t.name) for t in graph.initializer if t.name in taken)
    ends = sum(tensors.bytes_of(v.name) for v in (*graph.input, *graph.output))
    return Cost(multiply_adds, elementwise, moved, weights + ends, weights + _peak(model, tensors), weights)


def sized(model: onnx.ModelProto, atoms: int, slots: int, pairs: int = 0) -> Tensors:
    """Every tensor's shape at a size.

    Args:
        model: see `count`, as for the others.
        atoms: of the size.
        slots: of the size.
        pairs: of the size.

    Raises:
        ExportError: shape inference does not find one.
    """
    types = tensor_types(model, {"atoms": atoms, "slots": slots, "pairs": pairs})
    shapes = {name: tuple(n for n in tensor.shape if isinstance(n, int)) for name, tensor in types.items()}
    unknown = [name for name, shape in shapes.items() if len(shape) < len(types[name].shape)]
    if unknown:
        raise ExportError(f"ONNX finds no shape for {', '.join(unknown[:5])} at {atoms} atoms x {slots} slots.")
    return Tensors(shapes, {name: _width(tensor.element) for name, tensor in types.items()})


def _width(kind: int) -> int:
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize)


def _peak(model: onnx.ModelProto, tensors: Tensors) -> int:
    """Bytes of inputs and activations at the worst moment, nodes run in the order that they are written in."""
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    owner: dict[str, str] = {}  # a view lives as long as what it is a view of
    last: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            if name and name not in constants:
                last[owner.get(name, name)] = index
        if node.op_type in VIEWS:
            owner[node.output[0]] = owner.get(node.input[0], node.input[0])
    for value in graph.output:
        last[owner.get(value.name, value.name)] = len(graph.node)
    live = {value.name: tensors.bytes_of(value.name) for value in graph.input}
    peak = sum(live.values())
    for index, node in enumerate(graph.node):
        if node.op_type not in VIEWS:
            live |= {name: tensors.bytes_of(name) for name in node.output}
        peak = max(peak, sum(live.values()))
        live = {name: size for name, size in live.items() if last.get(name, -1) > index}
    return peak


def energy_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """The part of a graph that its atomic energies depend on, with the same inputs."""
    graph = EditableGraph(model)
    graph.outputs = [OUTPUTS[0].name]
    graph.prune()
    return graph.model()
