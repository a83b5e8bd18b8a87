"""FP16-mixed: the graph of the same student with half as many bytes where most of the bytes are, typed node by node.

There are ten to a hundred times as many slots as atoms. So what a slot has is half: filters, what is gathered for it,
and what is computed of these. What an atom has is FP32, except that the products with the student's weights read and
give half. FP32 stay also geometry, radial basis and cutoff, and the product of the basis with its weights, whose result
alone is half; sums over neighbours, and products that are formed to be summed; the read-out, where the energy is made;
and, from the last product on, the assembly of forces and virials. Inputs and outputs are FP32. The choice was measured:
each of these in half costs more error than it saves traffic (`scripts/precision_study.py`).

An engine that fuses may keep a half tensor in a register at more than half's precision; none may keep it at less. So
`rounded` is what a typed graph costs at most: the same nodes in FP32, with every half tensor rounded to half.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from painn_deploy.export.errors import ExportError
from painn_deploy.export.fields import AS_WRITTEN
from painn_deploy.export.graph.edit import EditableGraph, Model, renamed
from painn_deploy.export.graph.products import behind_weights, weight_products

__all__ = ["HalfTensors", "half_tensors", "rounded", "to_half"]

_SUMS = ("Add", "Sub")
_FOLLOWS = (
    "Add", "Sub", "Mul", "Neg", "Sigmoid", "Concat", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Reshape",
)  # fmt: skip
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfTensors:
    """The tensors that are half in the FP16-mixed graph.

    Attributes:
        computed: tensors that are computed in half.
        stored: tensors that are computed in FP32 and kept in half.
    """

    computed: frozenset[str]
    stored: frozenset[str]


def half_tensors(model: Model) -> HalfTensors:
    """Choose the tensors of an FP32 graph that become half, by the rules above.

    Args:
        model: in FP32.
    """
    graph = EditableGraph.of(model)
    of_slots = {name for name, tensor in graph.types.items() if "slots" in tensor.shape}
    products = [p for p in weight_products(graph) if not p.is_readout]
    half = {p.output for p in products}
    learnt, ahead = behind_weights(graph), graph.ancestors(half)  # ahead: a product is still to come from these
    read_by = defaultdict(set)
    for node in graph.nodes:
        for name in node.input:
            read_by[name].add(node.op_type)
    stored = {p.output for p in products if p.operand not in learnt or p.is_int8}
    for node in graph.nodes:
        if not all(name in of_slots and name in ahead for name in node.output):
            continue
        operands = [name for name in node.input if name not in graph.constants]
        if node.op_type == "Gather":
            half.update(node.output)
        elif node.op_type in _FOLLOWS and any(name in half for name in operands):
            adds_up = node.op_type in _SUMS and not all(name in half for name in operands)
            summed = node.op_type == "Mul" and read_by[node.output[0]] <= {"ReduceSum"}
            if not adds_up and not summed:
                half.update(node.output)
    return HalfTensors(frozenset(half - stored), frozenset(stored))


def to_half(model: Model) -> onnx.ModelProto:
    """The FP16-mixed graph of an FP32 one, strongly typed: every change of type is a Cast.

    Args:
        model: in FP32; it is not changed.

    Raises:
        ExportError: a weight does not fit into half.
    """
    graph = EditableGraph(model)
    _retype(graph, simulate=False)
    return graph.model()


def rounded(model: Model) -> onnx.ModelProto:
    """An FP32 graph that gives what `to_half` gives at worst: each half tensor is rounded to half and widened again.

    ONNX Runtime's CPU keeps chains of half nodes in FP32 and so flatters a typed graph; this one it cannot flatter. Its
    metadata say that it is to be run as it is written, and our backend does so.

    Args:
        model: in FP32; it is not changed.

    Raises:
        ExportError: a weight does not fit into half.
    """
    graph = EditableGraph(model)
    _retype(graph, simulate=True)
    simulated = graph.model()
    simulated.metadata_props.add(key=AS_WRITTEN, value="every rounding in this graph counts")
    return simulated


def _retype(graph: EditableGraph, *, simulate: bool) -> bool:
    """Compute and keep in half what `half_tensors` finds; whether it finds any.

    Requires a graph in FP32. Ensures that no node reads both types, and that inputs and outputs keep theirs; with
    `simulate`, that all types stay FP32 and every half tensor holds a number that half can hold.
    """
    half = half_tensors(graph)
    graph.rewrite(_Retyping(graph, half, simulate=simulate).retyped)
    graph.prune()  # weights whose narrow copies are read in their place
    return bool(half.computed | half.stored)


class _Retyping:
    """Nodes with their operands cast to the type that they compute in; each tensor is cast once."""

    def __init__(self, graph: EditableGraph, half: HalfTensors, *, simulate: bool) -> None:
        self.graph, self.half, self.simulate = graph, half, simulate
        # indices and booleans are what they are in every precision
        self.floats = {name for name, tensor in graph.types.items() if tensor.element == TensorProto.FLOAT}
        self.halves: set[str] = set()
        self.cast: dict[str, str] = {}

    def retyped(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node, casts of its operands before it, and roundings of its results behind it."""
        output = node.output[0]
        computed, stored = output in self.half.computed, output in self.half.stored
        narrowed = stored or (computed and self.simulate)  # in a node after this one
        casts: list[onnx.NodeProto] = []
        inputs = [self._read(name, casts, half=computed) for name in node.input]
        outputs = [f"{name}_exact" if narrowed else name for name in node.output]
        if computed or stored:
            self.halves.update(node.output)
        behind = [n for exact, name in zip(outputs, node.output, strict=True) for n in self._narrow(exact, name)]
        return [*casts, renamed(node, inputs, outputs), *(behind if narrowed else ())]

    def _read(self, name: str, casts: list[onnx.NodeProto], *, half: bool) -> str:
        """A tensor under the type wanted; what is neither float nor half stays what it is."""
        is_half = name in self.halves
        if name not in self.floats or is_half == half or (self.simulate and is_half):
            return name
        if name not in self.cast:
            self.cast[name] = f"{name}_{'half' if half else 'float'}"
            if name in self.graph.constants:
                self._narrow_constant(name, self.cast[name])
            elif half:
                casts += self._narrow(name, self.cast[name])
            else:
                casts.append(_cast(name, self.cast[name], TensorProto.FLOAT))
        return self.cast[name]

    def _narrow(self, name: str, result: str) -> list[onnx.NodeProto]:
        if not self.simulate:
            return [_cast(name, result, TensorProto.FLOAT16)]
        narrow = f"{name}_narrow"
        return [_cast(name, narrow, TensorProto.FLOAT16), _cast(narrow, result, TensorProto.FLOAT)]

    def _narrow_constant(self, name: str, result: str) -> None:
        array = self.graph.array(name)
        if not (np.abs(array) < _LARGEST).all():
            raise ExportError(
                f"A weight of {np.abs(array).max():.3g} does not fit into FP16, whose largest number is {_LARGEST:g}; "
                "export this student in fp32, or train it with weight decay."
            )
        narrow = array.astype(np.float16)
        self.graph.constant(result, narrow.astype(np.float32) if self.simulate else narrow)


def _cast(name: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [result], name=f"{name}_as_{result}", to=to)
