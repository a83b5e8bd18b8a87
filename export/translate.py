"""From a traced graph of ATen operators to a lean ONNX graph.

The general exporter of torch writes some 1,600 nodes for one of these models, a third of them Reshapes, and deletes
additions of 1e-8, which a vector norm cannot do without. The few operators that a student's energy and gradient consist of are
translated here one to one instead. Three things are done on the way, none of which changes a value:

- what depends on weights alone is computed once, in their dtype;
- a view is not written down but remembered: a matrix product over the last axis needs no flattening in ONNX;
- a node that was written before, with the same inputs and attributes, is used again.

An operator or a shape that is not foreseen raises; nothing is approximated and nothing is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from painn_deploy.export.errors import ExportError
from painn_deploy.export.fields import INPUTS, OUTPUTS

__all__ = ["OPSET", "translate"]

OPSET = 18
"""Read by every TensorRT and ONNX Runtime that we support, and the first in which all reductions agree."""

IR_VERSION = 10

_ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}

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
    """A tensor that depends on weights alone; broadcasts to the traced shape."""

    tensor: Tensor


def translate(module: fx.GraphModule, name: str) -> onnx.ModelProto:
    """Write a traced graph as an ONNX model that keeps the graph contract.

    Args:
        module: the traced graph, its placeholders in the contract's order, its outputs too.
        name: of the ONNX graph.

    Raises:
        ExportError: the graph holds an operator or a shape that is not foreseen.
    """
    return _Translator(module).model(name)


class _Translator:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.values: dict[fx.Node, Any] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.written: dict[Any, tuple[str, ...]] = {}

    def model(self, name: str) -> onnx.ModelProto:
        fields = iter(INPUTS)
        outputs: Sequence[fx.Node] = ()
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = Value(next(fields).name, _shape(node))
            elif node.op == "get_attr":
                self.values[node] = Constant(_attribute(self.module, node.target))
            elif node.op == "output":
                outputs = node.args[0]
            else:
                self.values[node] = self._translate(node)
        for node, field in zip(outputs, OUTPUTS, strict=True):
            self.nodes.append(helper.make_node("Identity", [self.materialised(node)], [field.name]))
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(f.name, _ELEMENT_TYPES[f.dtype], f.shape) for f in INPUTS],
            [helper.make_tensor_value_info(f.name, _ELEMENT_TYPES[f.dtype], f.shape) for f in OUTPUTS],
            list(self.initialisers.values()),
        )
        _rename_outputs(graph)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def _translate(self, node: fx.Node) -> Any:
        inputs = [self.values.get(n) for n in node.all_input_nodes]
        if inputs and all(isinstance(value, Constant) for value in inputs) and not _has_dynamic_arguments(node):
            return self._fold(node)
        name = getattr(node.target, "__name__", str(node.target))
        handler = _HANDLERS.get(name)
        if handler is None:
            raise ExportError(f"The traced graph holds {node.target}, for which there is no ONNX translation here.")
        return handler(self, node)

    def _fold(self, node: fx.Node) -> Any:
        """Compute now what depends on weights alone."""

        def tensor(value: Any) -> Any:
            return self.values[value].tensor if isinstance(value, fx.Node) else value

        if not callable(node.target):
            raise ExportError(f"The traced graph calls {node.target!r}, which cannot be computed.")
        result = node.target(*fx.map_arg(node.args, tensor), **fx.map_arg(node.kwargs, tensor))
        return [Constant(r) for r in result] if isinstance(result, list | tuple) else Constant(result)

    def emit(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> tuple[str, ...]:
        """Write a node, or find the same one written before."""
        key = (operator, tuple(inputs), outputs, tuple(sorted((k, str(v)) for k, v in attributes.items())))
        if key not in self.written:
            stem = f"{operator.lower()}_{len(self.nodes)}"
            names = (stem,) if outputs == 1 else tuple(f"{stem}_{i}" for i in range(outputs))
            self.nodes.append(helper.make_node(operator, list(inputs), list(names), name=stem, **attributes))
            self.written[key] = names
        return self.written[key]

    def constant(self, tensor: Tensor) -> str:
        """Name of an initialiser, shared among equal ones."""
        array = tensor.detach().contiguous().numpy()
        key = ("initialiser", str(array.dtype), array.shape, array.tobytes())
        if key not in self.written:
            name = f"constant_{len(self.initialisers)}"
            self.initialisers[name] = numpy_helper.from_array(np.array(array), name)
            self.written[key] = (name,)
        return self.written[key][0]

    def integers(self, *numbers: int) -> str:
        return self.constant(torch.tensor(numbers, dtype=torch.int64))

    def materialised(self, node: fx.Node) -> str:
        """Name of a tensor that has the traced shape in truth."""
        value, shape = self.values[node], _shape(node)
        if isinstance(value, Constant):
            if tuple(value.tensor.shape) != shape:
                raise ExportError(f"{node} is a constant broadcast to {shape}, which its reader does not expect.")
            return self.constant(value.tensor)
        return self.reshaped(value, shape)

    def reshaped(self, value: Value, shape: Shape) -> str:
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

    def operand(self, value: Any, shape: Shape, dtype: torch.dtype) -> str:
        """An input of an elementwise operator whose other inputs have `shape` in truth."""
        if isinstance(value, Constant):
            return self.constant(value.tensor)
        if isinstance(value, Value):
            return value.name
        return self.constant(torch.tensor(value, dtype=dtype))


def _rename_outputs(graph: onnx.GraphProto) -> None:
    """Let the last nodes carry the contract's names, in place of Identity nodes after them."""
    final = {n.input[0]: n.output[0] for n in graph.node if n.op_type == "Identity"}
    kept = [n for n in graph.node if n.op_type != "Identity"]
    if len(final) != len(OUTPUTS) or not final.keys() <= {name for n in kept for name in n.output}:
        return  # an output that is also an input or a constant keeps its Identity
    for node in kept:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = final.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)


def _attribute(module: Any, target: Any) -> Tensor:
    for part in str(target).split("."):
        module = getattr(module, part)
    if not isinstance(module, Tensor):
        raise ExportError(f"The traced graph reads {target}, which is not a tensor.")
    return module


def _shape(node: fx.Node) -> Shape:
    return tuple(size if isinstance(size, int) else size.node.expr for size in node.meta["val"].shape)


def _has_dynamic_arguments(node: fx.Node) -> bool:
    return any(not isinstance(size, int) for size in _flat_sizes(node.meta.get("val")))


def _flat_sizes(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, list | tuple):
        return [size for item in value for size in _flat_sizes(item)]
    return []


# --- operators -------------------------------------------------------------------------------------------------------

Handler = Callable[[_Translator, fx.Node], Any]


def _elementwise(operator: str, *, reverse: bool = False) -> Handler:
    """A broadcasting operator of one or two operands; a Python number takes the dtype of the other operand."""

    def handle(t: _Translator, node: fx.Node) -> Value:
        arguments = list(node.args[::-1] if reverse else node.args)
        if node.kwargs.get("alpha", 1) != 1:
            raise ExportError(f"{node} scales its operand, for which there is no ONNX translation here.")
        shape, names = _aligned(t, node, arguments)
        return Value(t.emit(operator, names)[0], shape)

    return handle


def _aligned(t: _Translator, node: fx.Node, arguments: Sequence[Any]) -> tuple[Shape, list[str]]:
    """Operands in shapes that broadcast together, and the shape of the result.

    Where every tensor operand is the same view of something, the view can wait; otherwise each takes its traced shape.
    """
    nodes = [a for a in arguments if isinstance(a, fx.Node) and isinstance(t.values[a], Value)]
    traced = {_shape(n) for n in nodes}
    real = {t.values[n].shape for n in nodes}
    dtype = nodes[0].meta["val"].dtype
    waits = len(traced) == len(real) == 1 and traced == {_shape(node)} and not _wide_constants(t, arguments, real)
    names = []
    for a in arguments:
        value = t.values[a] if isinstance(a, fx.Node) else a
        if isinstance(value, Value) and not waits and not value.spread:
            names.append(t.materialised(a))
        else:
            names.append(t.operand(value, _shape(node), dtype))
    return (next(iter(real)) if waits else _shape(node)), names


def _wide_constants(t: _Translator, arguments: Sequence[Any], real: set[Shape]) -> bool:
    """Whether a constant has more than a last axis, so that it fits the traced shape alone."""
    constants = [t.values[a].tensor for a in arguments if isinstance(a, fx.Node) and isinstance(t.values[a], Constant)]
    return any(c.dim() > 1 and c.numel() != c.shape[-1] for c in constants)


def _view(t: _Translator, node: fx.Node) -> Any:
    """Remembered, not written: whoever needs the traced shape asks for it."""
    value = t.values[node.args[0]]
    if isinstance(value, Constant):
        return _broadcast_constant(value, node)
    if value.spread and _shape(node.args[0]) != _shape(node):
        raise ExportError(f"{node} views a tensor that is broadcast from {value.shape}.")
    return value


def _broadcast_constant(value: Constant, node: fx.Node) -> Constant:
    """A constant under a traced shape with dynamic axes, which it is constant along."""
    shape = _shape(node)
    if value.tensor.numel() == 1:
        return Constant(value.tensor.reshape(1))
    if value.tensor.numel() == value.tensor.shape[-1] == shape[-1]:
        return Constant(value.tensor.reshape(-1))
    trailing = shape[len(shape) - value.tensor.dim() :]
    if len(shape) >= value.tensor.dim() and tuple(value.tensor.shape) == trailing:
        return value
    raise ExportError(f"{node} spreads a constant of shape {tuple(value.tensor.shape)} to {shape}.")


def _matmul(t: _Translator, node: fx.Node) -> Any:
    left, right = node.args[-2:]
    bias = t.values[node.args[0]] if len(node.args) == 3 else None
    a, b = t.values[left], t.values[right]
    if isinstance(a, Constant):
        if not isinstance(b, Constant) or bias is not None:
            raise ExportError(f"{node} multiplies a constant by a tensor, for which there is no translation here.")
        return Constant((a.tensor.expand(1, _shape(left)[-1]) @ b.tensor).reshape(-1))
    if isinstance(b, Constant) and a.shape[-1] == _shape(left)[-1]:
        shape = (*a.shape[:-1], _shape(node)[-1])
        name = t.emit("MatMul", [a.name, t.constant(b.tensor)])[0]
    else:
        shape = _shape(node)
        name = t.emit("MatMul", [t.materialised(left), t.materialised(right)])[0]
    if bias is not None:
        if not isinstance(bias, Constant) or bias.tensor.dim() != 1:
            raise ExportError(f"{node} adds something that is not a bias.")
        name = t.emit("Add", [name, t.constant(bias.tensor)])[0]
    return Value(name, shape)


def _batched_matmul(t: _Translator, node: fx.Node) -> Value:
    names = [t.operand(t.values[a], (), torch.float32) if _is_constant(t, a) else t.materialised(a) for a in node.args]
    return Value(t.emit("MatMul", names)[0], _shape(node))


def _is_constant(t: _Translator, node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(t.values[node], Constant)


def _gather(t: _Translator, node: fx.Node) -> Value:
    table, indices = node.args[:2]
    value = t.values[table]
    if isinstance(value, Constant):
        name, row = t.constant(value.tensor), tuple(value.tensor.shape[1:])
    elif value.shape[0] == _shape(table)[0]:  # a row may have axes of its own
        name, row = value.name, value.shape[1:]
    else:
        name, row = t.materialised(table), _shape(table)[1:]
    return Value(t.emit("Gather", [name, t.materialised(indices)], axis=0)[0], (*_shape(indices), *row))


def _sum(t: _Translator, node: fx.Node) -> Value:
    rank = len(_shape(node.args[0]))
    axes = [axis % rank for axis in node.args[1]] if len(node.args) > 1 else list(range(rank))
    keep = int(len(node.args) > 2 and bool(node.args[2]))
    name = t.emit("ReduceSum", [t.materialised(node.args[0]), t.integers(*axes)], keepdims=keep)[0]
    return Value(name, _shape(node))


def _unsqueeze(t: _Translator, node: fx.Node) -> Any:
    if isinstance(t.values[node.args[0]], Constant):
        return _broadcast_constant(t.values[node.args[0]], node)
    axis = node.args[1] % len(_shape(node))
    return Value(t.emit("Unsqueeze", [t.materialised(node.args[0]), t.integers(axis)])[0], _shape(node))


def _squeeze(t: _Translator, node: fx.Node) -> Any:
    if isinstance(t.values[node.args[0]], Constant):
        return _broadcast_constant(t.values[node.args[0]], node)
    axis = node.args[1] % len(_shape(node.args[0]))
    return Value(t.emit("Squeeze", [t.materialised(node.args[0]), t.integers(axis)])[0], _shape(node))


def _expand(t: _Translator, node: fx.Node) -> Any:
    """Left to the reader's broadcasting; a tensor that really is expanded keeps its axes of size one."""
    value = t.values[node.args[0]]
    if isinstance(value, Constant):
        return _broadcast_constant(value, node)
    if _shape(node.args[0]) == _shape(node):
        return value
    name, shape = t.materialised(node.args[0]), _shape(node.args[0])
    return Value(name, (*[1] * (len(_shape(node)) - len(shape)), *shape), spread=True)


def _transpose(t: _Translator, node: fx.Node) -> Any:
    rank = len(_shape(node))
    value = t.values[node.args[0]]
    if isinstance(value, Constant) and {axis % rank for axis in node.args[1:]} == {rank - 2, rank - 1}:
        return Constant(value.tensor.mT)
    one, other = (axis % rank for axis in node.args[1:])
    order = list(range(rank))
    order[one], order[other] = other, one
    return Value(t.emit("Transpose", [t.materialised(node.args[0])], perm=order)[0], _shape(node))


def _concatenate(t: _Translator, node: fx.Node) -> Value:
    axis = (node.args[1] if len(node.args) > 1 else 0) % len(_shape(node))
    return Value(t.emit("Concat", [t.materialised(a) for a in node.args[0]], axis=axis)[0], _shape(node))


def _split(t: _Translator, node: fx.Node) -> list[Value]:
    rank = len(_shape(node.args[0]))
    axis = (node.args[2] if len(node.args) > 2 else 0) % rank
    shapes = [tuple(s if isinstance(s, int) else s.node.expr for s in part.shape) for part in node.meta["val"]]
    sizes = [shape[axis] for shape in shapes]
    inputs = [t.materialised(node.args[0]), t.integers(*sizes)]
    return [Value(n, s) for n, s in zip(t.emit("Split", inputs, len(sizes), axis=axis), shapes, strict=True)]


def _slice(t: _Translator, node: fx.Node) -> Value:
    source, axis, start, end, step = [*node.args, *([0, 0, None, None, 1][len(node.args) :])]
    size = _shape(source)[axis]
    start, end = start or 0, size if end is None else end
    if not isinstance(size, int) or step != 1 or start < 0 or end < 0:
        raise ExportError(f"{node} slices a dynamic axis, or with a step, for which there is no translation here.")
    bounds = [t.integers(n) for n in (start, min(end, size), axis)]
    return Value(t.emit("Slice", [t.materialised(source), *bounds])[0], _shape(node))


def _silu(t: _Translator, node: fx.Node) -> Value:
    value = t.values[node.args[0]]
    sigmoid = t.emit("Sigmoid", [value.name])[0]
    return Value(t.emit("Mul", [value.name, sigmoid])[0], value.shape)


def _compare(t: _Translator, node: fx.Node) -> Value:
    value = t.values[node.args[0]]
    number = torch.tensor(node.args[1], dtype=node.args[0].meta["val"].dtype)
    return Value(t.emit("Greater", [value.name, t.constant(number)])[0], value.shape)


def _where(t: _Translator, node: fx.Node) -> Value:
    names = [t.operand(t.values[a], _shape(node), torch.float32) for a in node.args]
    shapes = {t.values[a].shape for a in node.args if isinstance(t.values[a], Value)}
    if len(shapes) != 1:
        raise ExportError(f"{node} chooses between tensors of different shapes.")
    return Value(t.emit("Where", names)[0], next(iter(shapes)))


def _ones(t: _Translator, node: fx.Node) -> Constant:
    return Constant(torch.ones(1, dtype=node.meta["val"].dtype))


def _number(t: _Translator, node: fx.Node) -> Constant:
    return Constant(torch.tensor(node.args[0], dtype=node.meta["val"].dtype))


def _alias(t: _Translator, node: fx.Node) -> Any:
    return t.values[node.args[0]]


def _pick(t: _Translator, node: fx.Node) -> Any:
    return t.values[node.args[0]][node.args[1]]


def _size(t: _Translator, node: fx.Node) -> None:
    """Sizes are read off the traced shapes; nothing is computed for them."""


_HANDLERS: dict[str, Handler] = {
    "add.Tensor": _elementwise("Add"),
    "addmm.default": _matmul,
    "alias.default": _alias,
    "bmm.default": _batched_matmul,
    "cat.default": _concatenate,
    "clone.default": _alias,
    "cos.default": _elementwise("Cos"),
    "detach.default": _alias,
    "div.Tensor": _elementwise("Div"),
    "embedding.default": _gather,
    "exp.default": _elementwise("Exp"),
    "expand.default": _expand,
    "getitem": _pick,
    "gt.Scalar": _compare,
    "mm.default": _matmul,
    "mul": _size,
    "mul.Scalar": _elementwise("Mul"),
    "mul.Tensor": _elementwise("Mul"),
    "neg.default": _elementwise("Neg"),
    "ones_like.default": _ones,
    "rsub.Scalar": _elementwise("Sub", reverse=True),
    "scalar_tensor.default": _number,
    "sigmoid.default": _elementwise("Sigmoid"),
    "silu.default": _silu,
    "sin.default": _elementwise("Sin"),
    "slice.Tensor": _slice,
    "split.Tensor": _split,
    "sqrt.default": _elementwise("Sqrt"),
    "squeeze.dim": _squeeze,
    "sub.Tensor": _elementwise("Sub"),
    "sum.default": _sum,
    "sum.dim_IntList": _sum,
    "sym_size.int": _size,
    "transpose.int": _transpose,
    "unsqueeze.default": _unsqueeze,
    "_unsafe_view.default": _view,
    "view.default": _view,
    "where.self": _where,
}
