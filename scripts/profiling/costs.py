"""What one evaluation of an ONNX graph costs at a size: multiply-adds, bytes, memory; counted, not measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import helper

from painn_deploy.export.errors import ExportError
from painn_deploy.export.fields import OUTPUTS
from painn_deploy.export.graph.products import ancestors

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


class Operations:
    """What arithmetic and traffic say of each other, for whatever has counted both."""

    multiply_adds: int
    elementwise: int | None
    bytes_written: int
    bytes_least: int

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


@dataclass(frozen=True)
class Cost(Operations):
    """Of one evaluation.

    Attributes:
        multiply_adds: of matrix products, those between activations included.
        elementwise: results of other arithmetic; of a reduction, what it reads.
        bytes_written: read and written if each node reads its inputs from memory and writes its outputs there.
        bytes_least: weights and the graph's inputs read once, its outputs written once.
        peak_bytes: weights, and the most that activations take at any time when each is freed after its last reader.
        weight_bytes: of all constants.
    """

    multiply_adds: int
    elementwise: int
    bytes_written: int
    bytes_least: int
    peak_bytes: int
    weight_bytes: int


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
    weights = sum(tensors.bytes_of(t.name) for t in graph.initializer)
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
    model = onnx.ModelProto.FromString(model.SerializeToString())
    numbers = {"atoms": atoms, "slots": slots, "pairs": pairs}
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = numbers[axis.dim_param]
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    widths = {t.name: _width(t.data_type) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if all(axis.HasField("dim_value") for axis in axes):
            shapes[value.name] = tuple(axis.dim_value for axis in axes)
            widths[value.name] = _width(value.type.tensor_type.elem_type)
    unknown = [name for node in graph.node for name in node.output if name not in shapes]
    if unknown:
        raise ExportError(f"ONNX finds no shape for {', '.join(unknown[:5])} at {atoms} atoms x {slots} slots.")
    return Tensors(shapes, widths)


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
    kept = ancestors(model, {OUTPUTS[0].name})
    nodes = [node for node in model.graph.node if any(name in kept for name in node.output)]
    constants = [tensor for tensor in model.graph.initializer if tensor.name in kept]
    outputs = [value for value in model.graph.output if value.name == OUTPUTS[0].name]
    graph = helper.make_graph(nodes, model.graph.name, list(model.graph.input), outputs, constants)
    made = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    made.metadata_props.extend(model.metadata_props)
    return made
