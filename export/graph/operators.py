"""The ATen operators that a student's energy and gradient consist of, one handler each.

A handler takes the writer and the traced node, writes ONNX nodes, and returns what the traced node became. An
operator, an argument or a shape that is not foreseen raises.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import TensorProto
from torch import fx

from painn_deploy.export.errors import ExportError
from painn_deploy.export.graph.writer import Constant, Shape, Value, Writer, symbolic, traced_shape

__all__ = ["HANDLERS"]

Node = Any  # an fx.Node: the declared type of its arguments is a union of twenty, of which each operator has one

_ELEMENT_TYPES = {
    torch.float64: TensorProto.DOUBLE,
    torch.float32: TensorProto.FLOAT,
    torch.int32: TensorProto.INT32,
}

Handler = Callable[[Writer, Node], Any]


def _elementwise(operator: str, *, reverse: bool = False) -> Handler:
    """A broadcasting operator of one or two operands; a Python number takes the dtype of the other operand."""

    def handle(t: Writer, node: Node) -> Any:
        arguments = list(node.args[::-1] if reverse else node.args)
        if node.kwargs.get("alpha", 1) != 1:
            raise ExportError(f"{node} scales its operand, for which there is no ONNX translation here.")
        if not any(isinstance(t.values.get(a), Value) for a in node.all_input_nodes):
            # a derivative begins with ones: constant along dynamic axes, computed once
            operands = [t.values[a].tensor if isinstance(a, fx.Node) else a for a in node.args]
            return Constant(node.target(*operands))
        shape, names = _aligned(t, node, arguments)
        return Value(t.emit(operator, names)[0], shape)

    return handle


def _aligned(t: Writer, node: Node, arguments: Sequence[Any]) -> tuple[Shape, list[str]]:
    """Operands in shapes that broadcast together, and the shape of the result.

    Where every tensor operand is the same view of something, the view can wait; otherwise each takes its traced shape.
    """
    nodes = [a for a in arguments if isinstance(a, fx.Node) and isinstance(t.values[a], Value)]
    traced = {traced_shape(n) for n in nodes}
    real = {t.values[n].shape for n in nodes}
    dtype = nodes[0].meta["val"].dtype
    waits = len(traced) == len(real) == 1 and traced == {traced_shape(node)} and not _wide_constants(t, arguments)
    names = []
    for a in arguments:
        value = t.values[a] if isinstance(a, fx.Node) else a
        if isinstance(value, Value) and not waits and not value.spread:
            names.append(t.materialised(a))
        else:
            names.append(t.operand(value, dtype))
    return (next(iter(real)) if waits else traced_shape(node)), names


def _wide_constants(t: Writer, arguments: Sequence[Any]) -> bool:
    """Whether a constant has more than a last axis, so that it fits the traced shape alone."""
    constants = [t.values[a].tensor for a in arguments if isinstance(a, fx.Node) and isinstance(t.values[a], Constant)]
    return any(c.dim() > 1 and c.numel() != c.shape[-1] for c in constants)


def _view(t: Writer, node: Node) -> Any:
    """Remembered, not written: whoever needs the traced shape asks for it."""
    value = t.values[node.args[0]]
    if isinstance(value, Constant):
        return _broadcast_constant(value, node)
    if value.spread and traced_shape(node.args[0]) != traced_shape(node):
        raise ExportError(f"{node} views a tensor that is broadcast from {value.shape}.")
    return value


def _broadcast_constant(value: Constant, node: Node) -> Constant:
    """A constant under a traced shape with dynamic axes, which it is constant along."""
    shape = traced_shape(node)
    if value.tensor.numel() == 1:
        return Constant(value.tensor.reshape(1))
    if value.tensor.numel() == value.tensor.shape[-1] == shape[-1]:
        return Constant(value.tensor.reshape(-1))
    trailing = shape[len(shape) - value.tensor.dim() :]
    if len(shape) >= value.tensor.dim() and tuple(value.tensor.shape) == trailing:
        return value
    raise ExportError(f"{node} spreads a constant of shape {tuple(value.tensor.shape)} to {shape}.")


def _matmul(t: Writer, node: Node) -> Any:
    left, right = node.args[-2:]
    bias = t.values[node.args[0]] if len(node.args) == 3 else None
    a, b = t.values[left], t.values[right]
    if isinstance(a, Constant):
        if not isinstance(b, Constant) or bias is not None:
            raise ExportError(f"{node} multiplies a constant by a tensor, for which there is no translation here.")
        return Constant((a.tensor.expand(1, traced_shape(left)[-1]) @ b.tensor).reshape(-1))
    if isinstance(b, Constant) and a.shape[-1] == traced_shape(left)[-1]:
        shape = (*a.shape[:-1], traced_shape(node)[-1])
        name = t.product(a.name, b)
    else:
        shape = traced_shape(node)
        name = t.emit("MatMul", [t.materialised(left), t.materialised(right)])[0]
    if bias is not None:
        if not isinstance(bias, Constant) or bias.tensor.dim() != 1:
            raise ExportError(f"{node} adds something that is not a bias.")
        name = t.emit("Add", [name, t.constant(bias.tensor)])[0]
    return Value(name, shape)


def _batched_matmul(t: Writer, node: Node) -> Value:
    dtype = node.meta["val"].dtype
    names = [t.operand(t.values[a], dtype) if _is_constant(t, a) else t.materialised(a) for a in node.args]
    return Value(t.emit("MatMul", names)[0], traced_shape(node))


def _is_constant(t: Writer, node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(t.values[node], Constant)


def _gather(t: Writer, node: Node) -> Value:
    table, indices = node.args[:2]
    value = t.values[table]
    if isinstance(value, Constant):
        name, row = t.constant(value.tensor), tuple(value.tensor.shape[1:])
    elif value.shape[0] == traced_shape(table)[0]:  # a row may have axes of its own
        name, row = value.name, value.shape[1:]
    else:
        name, row = t.materialised(table), traced_shape(table)[1:]
    return Value(t.emit("Gather", [name, t.materialised(indices)], axis=0)[0], (*traced_shape(indices), *row))


def _sum(t: Writer, node: Node) -> Value:
    rank = len(traced_shape(node.args[0]))
    axes = [axis % rank for axis in node.args[1]] if len(node.args) > 1 else list(range(rank))
    keep = int(len(node.args) > 2 and bool(node.args[2]))
    name = t.emit("ReduceSum", [t.materialised(node.args[0]), t.integers(*axes)], keepdims=keep)[0]
    return Value(name, traced_shape(node))


def _unsqueeze(t: Writer, node: Node) -> Any:
    if isinstance(t.values[node.args[0]], Constant):
        return _broadcast_constant(t.values[node.args[0]], node)
    axis = node.args[1] % len(traced_shape(node))
    return Value(t.emit("Unsqueeze", [t.materialised(node.args[0]), t.integers(axis)])[0], traced_shape(node))


def _squeeze(t: Writer, node: Node) -> Any:
    value = t.values[node.args[0]]
    if isinstance(value, Constant):
        return _broadcast_constant(value, node)
    axis = node.args[1] % len(traced_shape(node.args[0]))
    summed = t.written.get(value.name)
    if summed is not None and summed.op_type == "ReduceSum" and summed.input[1] == t.integers(axis):
        return Value(t.emit("ReduceSum", summed.input, keepdims=0)[0], traced_shape(node))
    return Value(t.emit("Squeeze", [t.materialised(node.args[0]), t.integers(axis)])[0], traced_shape(node))


def _expand(t: Writer, node: Node) -> Any:
    """Left to the reader's broadcasting; a tensor that really is expanded keeps its axes of size one."""
    value = t.values[node.args[0]]
    if isinstance(value, Constant):
        return _broadcast_constant(value, node)
    if traced_shape(node.args[0]) == traced_shape(node):
        return value
    name, shape = t.materialised(node.args[0]), traced_shape(node.args[0])
    return Value(name, (*[1] * (len(traced_shape(node)) - len(shape)), *shape), spread=True)


def _transpose(t: Writer, node: Node) -> Any:
    rank = len(traced_shape(node))
    value = t.values[node.args[0]]
    if isinstance(value, Constant) and {axis % rank for axis in node.args[1:]} == {rank - 2, rank - 1}:
        return Constant(value.tensor.mT, value.weight, not value.transposed)
    one, other = (axis % rank for axis in node.args[1:])
    order = list(range(rank))
    order[one], order[other] = other, one
    return Value(t.emit("Transpose", [t.materialised(node.args[0])], perm=order)[0], traced_shape(node))


def _concatenate(t: Writer, node: Node) -> Value:
    if len(node.args[0]) == 1 and isinstance(only := t.values[node.args[0][0]], Value):
        return only
    axis = (node.args[1] if len(node.args) > 1 else 0) % len(traced_shape(node))
    return Value(t.emit("Concat", [t.materialised(a) for a in node.args[0]], axis=axis)[0], traced_shape(node))


def _split(t: Writer, node: Node) -> list[Value]:
    if len(node.meta["val"]) == 1:
        return [t.values[node.args[0]]]
    rank = len(traced_shape(node.args[0]))
    axis = (node.args[2] if len(node.args) > 2 else 0) % rank
    shapes = [symbolic(part.shape) for part in node.meta["val"]]
    sizes = [shape[axis] for shape in shapes]
    inputs = [t.materialised(node.args[0]), t.integers(*sizes)]
    return [Value(n, s) for n, s in zip(t.emit("Split", inputs, len(sizes), axis=axis), shapes, strict=True)]


def _slice(t: Writer, node: Node) -> Any:
    given: tuple[Any, ...] = tuple(node.args)
    source, axis, start, end, step = given + (None, 0, 0, None, 1)[len(given) :]
    size = traced_shape(source)[axis]
    start, end = start or 0, size if end is None else end
    last = len(traced_shape(source)) - 1
    if isinstance(value := t.values[source], Constant) and axis % (last + 1) == last:  # the one that it may vary along
        return Constant(value.tensor if value.tensor.numel() == 1 else value.tensor[..., start:end:step])
    if not isinstance(size, int) or step != 1 or start < 0 or end < 0:
        raise ExportError(f"{node} slices a dynamic axis, or with a step, for which there is no translation here.")
    bounds = [t.integers(n) for n in (start, min(end, size), axis)]
    return Value(t.emit("Slice", [t.materialised(source), *bounds])[0], traced_shape(node))


def _silu(t: Writer, node: Node) -> Value:
    value = t.values[node.args[0]]
    sigmoid = t.emit("Sigmoid", [value.name])[0]
    return Value(t.emit("Mul", [value.name, sigmoid])[0], value.shape)


def _reciprocal(t: Writer, node: Node) -> Value:
    value = t.values[node.args[0]]
    one = t.constant(torch.ones((), dtype=node.meta["val"].dtype))
    return Value(t.emit("Div", [one, value.name])[0], value.shape)


def _softplus(t: Writer, node: Node) -> Value:
    """torch's, which is x from 20 on: there ONNX Runtime's overflows in double, at 710."""
    if len(node.args) > 1 and tuple(node.args[1:]) not in ((1,), (1, 20)):
        raise ExportError(f"{node} is a softplus with {node.args[1:]}, for which there is no ONNX translation here.")
    value = t.values[node.args[0]]
    threshold = t.constant(torch.tensor(20.0, dtype=node.meta["val"].dtype))
    is_straight = t.emit("Greater", [value.name, threshold])[0]
    return Value(t.emit("Where", [is_straight, value.name, t.emit("Softplus", [value.name])[0]])[0], value.shape)


def _compare(t: Writer, node: Node) -> Value:
    value = t.values[node.args[0]]
    number = torch.tensor(node.args[1], dtype=node.args[0].meta["val"].dtype)
    return Value(t.emit("Greater", [value.name, t.constant(number)])[0], value.shape)


def _where(t: Writer, node: Node) -> Value:
    names = [t.operand(t.values[a], node.meta["val"].dtype) for a in node.args]
    shapes = {t.values[a].shape for a in node.args if isinstance(t.values[a], Value)}
    if len(shapes) != 1:
        raise ExportError(f"{node} chooses between tensors of different shapes.")
    return Value(t.emit("Where", names)[0], next(iter(shapes)))


def _clamp(t: Writer, node: Node) -> Value:
    value = t.values[node.args[0]]
    name, dtype = value.name, node.args[0].meta["val"].dtype
    least, most = (*node.args[1:], None)[:2]
    for operator, bound in (("Max", least), ("Min", most)):
        if bound is not None:
            name = t.emit(operator, [name, t.constant(torch.tensor(bound, dtype=dtype))])[0]
    return Value(name, value.shape)


def _convert(t: Writer, node: Node) -> Value:
    """Another element type; whatever else a copy may change is not foreseen."""
    if set(node.kwargs) != {"dtype"} or node.kwargs["dtype"] not in _ELEMENT_TYPES:
        raise ExportError(f"{node} copies with {node.kwargs}, for which there is no translation here.")
    value = t.values[node.args[0]]
    return Value(t.emit("Cast", [value.name], to=_ELEMENT_TYPES[node.kwargs["dtype"]])[0], value.shape)


def _ones(_: Writer, node: Node) -> Constant:
    return Constant(torch.ones(1, dtype=node.meta["val"].dtype))


def _zeros(_: Writer, node: Node) -> Constant:
    return Constant(torch.zeros(1, dtype=node.meta["val"].dtype))


def _fill(_: Writer, node: Node) -> Constant:
    return Constant(torch.full((1,), node.args[1], dtype=node.meta["val"].dtype))


def _number(_: Writer, node: Node) -> Constant:
    return Constant(torch.tensor(node.args[0], dtype=node.meta["val"].dtype))


def _alias(t: Writer, node: Node) -> Any:
    return t.values[node.args[0]]


def _pick(t: Writer, node: Node) -> Any:
    return t.values[node.args[0]][node.args[1]]


def _size(_: Writer, __: Node) -> None:
    """Sizes are read off the traced shapes; nothing is computed for them."""


HANDLERS: dict[str, Handler] = {
    "add.Scalar": _elementwise("Add"),
    "add.Tensor": _elementwise("Add"),
    "addmm.default": _matmul,
    "alias.default": _alias,
    "bmm.default": _batched_matmul,
    "cat.default": _concatenate,
    "clamp.default": _clamp,
    "clamp_min.default": _clamp,
    "clone.default": _alias,
    "cos.default": _elementwise("Cos"),
    "detach.default": _alias,
    "div.Tensor": _elementwise("Div"),
    "embedding.default": _gather,
    "empty_like.default": _zeros,  # what is in it is overwritten by what follows
    "exp.default": _elementwise("Exp"),
    "expand.default": _expand,
    "fill_.Scalar": _fill,
    "getitem": _pick,
    "gt.Scalar": _compare,
    "mm.default": _matmul,
    "mul": _size,
    "mul.Scalar": _elementwise("Mul"),
    "mul.Tensor": _elementwise("Mul"),
    "neg.default": _elementwise("Neg"),
    "ones_like.default": _ones,
    "reciprocal.default": _reciprocal,
    "rsub.Scalar": _elementwise("Sub", reverse=True),
    "scalar_tensor.default": _number,
    "sigmoid.default": _elementwise("Sigmoid"),
    "silu.default": _silu,
    "sin.default": _elementwise("Sin"),
    "slice.Tensor": _slice,
    "softplus.default": _softplus,
    "split.Tensor": _split,
    "sqrt.default": _elementwise("Sqrt"),
    "squeeze.dim": _squeeze,
    "sub.Tensor": _elementwise("Sub"),
    "sub_.Tensor": _elementwise("Sub"),
    "sum.default": _sum,
    "sum.dim_IntList": _sum,
    "sym_size.int": _size,
    "transpose.int": _transpose,
    "unsqueeze.default": _unsqueeze,
    "_to_copy.default": _convert,
    "_unsafe_view.default": _view,
    "view.default": _view,
    "where.self": _where,
    "zeros_like.default": _zeros,
}
