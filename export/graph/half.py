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
from onnx import TensorProto, helper, numpy_helper

from painn_deploy.export.errors import ExportError
from painn_deploy.export.fields import AS_WRITTEN
from painn_deploy.export.graph.products import behind_weights, weight_products

__all__ = ["HalfTensors", "half_tensors", "rounded", "to_half"]

_SUMS = ("Add", "Sub")
_FOLLOWS = (
    "Add", "Sub", "Mul", "Neg", "Sigmoid", "Concat", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Reshape",
)  # fmt: skip
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfTensors:
    """What is half in the FP16-mixed graph.

    Attributes:
        computed: tensors that are computed in half.
        stored: tensors that are computed in FP32 and kept in half.
    """

    computed: frozenset[str]
    stored: frozenset[str]


def half_tensors(model: onnx.ModelProto) -> HalfTensors:
    """What becomes half of an FP32 graph, by the rules above.

    Args:
        model: in FP32.
    """
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    of_slots = {v.name for v in inferred if "slots" in [d.dim_param for d in v.type.tensor_type.shape.dim]}
    products = [p for p in weight_products(model) if not p.is_readout]
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    learnt, ahead = behind_weights(model), set[str]()  # ahead: tensors from which a product is still to come
    for node in reversed(graph.node):
        if any(name in ahead for name in node.output) or node.output[0] in {p.output for p in products}:
            ahead.update(node.input)
    stored = {p.output for p in products if p.operand not in learnt or p.is_int8}
    half = {p.output for p in products}
    for node in graph.node:
        if not all(name in of_slots and name in ahead for name in node.output):
            continue
        operands = [name for name in node.input if name not in constants]
        if node.op_type == "Gather":
            half.update(node.output)
        elif node.op_type in _FOLLOWS and any(name in half for name in operands):
            adds_up = node.op_type in _SUMS and not all(name in half for name in operands)
            summed = node.op_type == "Mul" and all(r.op_type == "ReduceSum" for r in readers[node.output[0]])
            if not adds_up and not summed:
                half.update(node.output)
    return HalfTensors(frozenset(half - stored), frozenset(stored))


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP16-mixed graph of an FP32 one, strongly typed: every change of type is a Cast.

    Args:
        model: in FP32; it is not changed.

    Raises:
        ExportError: a weight does not fit into half.
    """
    return _typed(model, simulate=False)


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """An FP32 graph that gives what `to_half` gives at worst: each half tensor is rounded to half and widened again.

    ONNX Runtime's CPU keeps chains of half nodes in FP32 and so flatters a typed graph; this one it cannot flatter. Its
    metadata say that it is to be run as it is written, and our backend does so.

    Args:
        model: in FP32; it is not changed.
    """
    return _typed(model, simulate=True)


def _typed(model: onnx.ModelProto, *, simulate: bool) -> onnx.ModelProto:
    half = half_tensors(model)
    writer = _Retyping(model, half, simulate=simulate)
    for node in model.graph.node:
        writer.retype(node)
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    del typed.graph.node[:], typed.graph.initializer[:], typed.graph.value_info[:]
    typed.graph.node.extend(writer.nodes)
    read = {name for node in writer.nodes for name in node.input}
    typed.graph.initializer.extend(t for t in writer.initialisers.values() if t.name in read)
    if simulate:
        typed.metadata_props.add(key=AS_WRITTEN, value="every rounding in this graph counts")
    return typed


class _Retyping:
    """Nodes with their operands cast to the type that they compute in; each tensor is cast once."""

    def __init__(self, model: onnx.ModelProto, half: HalfTensors, *, simulate: bool) -> None:
        self.half, self.simulate = half, simulate
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers = {t.name: t for t in model.graph.initializer}
        # indices and booleans are what they are in every precision
        self.floats = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        known = onnx.shape_inference.infer_shapes(model).graph
        for value in (*known.input, *known.value_info, *known.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                self.floats.add(value.name)
        self.halves: set[str] = set()
        self.cast: dict[str, str] = {}

    def retype(self, node: onnx.NodeProto) -> None:
        output = node.output[0]
        computed, stored = output in self.half.computed, output in self.half.stored
        narrowed = stored or (computed and self.simulate)  # in a node after this one
        written = onnx.NodeProto()
        written.CopyFrom(node)
        written.input[:] = [self._read(name, half=computed) for name in node.input]
        if narrowed:
            written.output[:] = [f"{name}_exact" for name in node.output]
        self.nodes.append(written)
        if narrowed:
            for exact, name in zip(written.output, node.output, strict=True):
                self._narrow(exact, name)
        if computed or stored:
            self.halves.update(node.output)

    def _read(self, name: str, *, half: bool) -> str:
        """A tensor under the type wanted; what is neither float nor half stays what it is."""
        is_half = name in self.halves
        if name not in self.floats or is_half == half or (self.simulate and is_half):
            return name
        if name not in self.cast:
            self.cast[name] = f"{name}_{'half' if half else 'float'}"
            if name in self.initialisers:
                self._narrow_constant(name, self.cast[name])
            elif half:
                self._narrow(name, self.cast[name])
            else:
                self._cast(name, self.cast[name], TensorProto.FLOAT)
        return self.cast[name]

    def _narrow(self, name: str, result: str) -> None:
        if self.simulate:
            self._cast(name, f"{name}_narrow", TensorProto.FLOAT16)
            self._cast(f"{name}_narrow", result, TensorProto.FLOAT)
        else:
            self._cast(name, result, TensorProto.FLOAT16)

    def _cast(self, name: str, result: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [name], [result], name=f"{name}_as_{result}", to=to))

    def _narrow_constant(self, name: str, result: str) -> None:
        array = numpy_helper.to_array(self.initialisers[name])
        if not (np.abs(array) < _LARGEST).all():
            raise ExportError(
                f"A weight of {np.abs(array).max():.3g} does not fit into FP16, whose largest number is {_LARGEST:g}; "
                "export this student in fp32, or train it with weight decay."
            )
        narrow = array.astype(np.float16)
        self.initialisers[result] = numpy_helper.from_array(
            narrow.astype(np.float32) if self.simulate else narrow, result
        )
