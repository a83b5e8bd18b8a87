"""An ONNX graph as a torch module, so that torch's compiler builds the same graph that every other backend runs.

Only the operators that our graphs hold are known; another one raises. Attributes and shapes are read once, so that
tracing meets plain tensor code.
"""

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from painn_deploy.engines.inductor.int8 import product, quantised
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.graph.messages import DOMAIN, MESSAGES

__all__ = ["TYPES", "OnnxModule"]


class OnnxModule(nn.Module):
    """Runs the nodes of a model in order.

    Args:
        model: one that keeps the graph contract.
        precision: of products inside of messages; see `painn_deploy.engines.inductor.messages.messages`.

    Raises:
        EngineError: the graph holds an operator that is not known here.
        EngineUnavailableError: it holds messages in one pass, and there is no Triton.
    """

    def __init__(self, model: onnx.ModelProto, precision: str = "ieee") -> None:
        super().__init__()
        self.precision = precision
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        self.integers: dict[str, list[int]] = {}
        self.weights: dict[str, str] = {}
        for index, tensor in enumerate(model.graph.initializer):
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            if value.dtype == torch.int64:  # shapes and axes: known to the tracer, not data
                self.integers[tensor.name] = value.tolist()
            else:
                self.weights[tensor.name] = f"weight_{index}"  # torch allows no dots
                self.register_buffer(self.weights[tensor.name], value)
        self.steps: list[tuple[Callable[..., Any], list[str], list[str], Mapping[str, Any]]] = []
        eight_bits = {n.output[0]: list(n.input[:2]) for n in model.graph.node if n.op_type == "DequantizeLinear"}
        for node in model.graph.node:
            if node.domain == DOMAIN:
                self.steps.append(self._messages(node))
                continue
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                self._check_scale(node)
            if node.op_type == "DequantizeLinear":  # what it gives only products read, which take eight bits as well
                continue
            if node.op_type not in _OPERATORS:
                raise EngineError(f"The graph holds {node.op_type}, which the inductor engine has no torch code for.")
            run, read = _OPERATORS[node.op_type], list(node.input)
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if not eight_bits.keys().isdisjoint(read):
                if node.op_type != "MatMul" or not eight_bits.keys() >= set(read):
                    raise EngineError(f"{node.name} reads INT8 and is no product of two operands in INT8.")
                run, read = product, [*eight_bits[read[0]], *eight_bits[read[1]]]
            elif node.op_type == "QuantizeLinear":
                read, attributes = read[:2], {}
            self.steps.append((run, read, list(node.output), attributes))

    def _messages(self, node: onnx.NodeProto) -> tuple[Callable[..., Any], list[str], list[str], Mapping[str, Any]]:
        """The step of a node that stands for what an interaction sums, or for its adjoint."""
        try:
            from painn_deploy.engines.inductor import messages
        except ImportError as error:
            raise EngineUnavailableError(
                "Messages in one pass are kernels of Triton, which is missing here: pip install triton, or take a form "
                "without the word `messages`."
            ) from error
        said = {attribute.name: list(attribute.ints) for attribute in node.attribute}
        run: Callable[..., Any] = messages.messages if node.op_type == MESSAGES else messages.adjoint
        return run, list(node.input), list(node.output), said | {"precision": self.precision}

    def _check_scale(self, node: onnx.NodeProto) -> None:
        """Refuse any scale but one of an operand, or of each column of a weight; and a zero point that is not 0."""
        stored = [getattr(self, self.weights[name]) for name in node.input[1:] if name in self.weights]
        if len(stored) == 2:
            scale, zero = stored
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            of_columns = node.input[0] in self.weights and axis == 1
            if zero.dtype == torch.int8 and not zero.any() and (scale.numel() == 1 or of_columns):
                return
        raise EngineError(
            f"{node.name} has a zero point, or scales of rows; foreseen are one scale, or one for each column of a "
            "weight, and a zero point of 0 in int8."
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The contract's inputs to its outputs."""
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        values |= self.integers | {"": None}  # an operand that is not there has no name
        values |= {name: getattr(self, weight) for name, weight in self.weights.items()}
        for run, names, outputs, attributes in self.steps:
            results = run(*(values[name] for name in names), **attributes)
            for name, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=True):
                values[name] = result
        return tuple(values[name] for name in self.outputs)


def _gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    if axis != 0:
        raise EngineError(f"The graph gathers along axis {axis}; rows alone are foreseen.")
    if x.is_contiguous() and x.storage_offset() == 0:
        # the same tensor, but now the compiler writes it down before it gathers from it, where else it would compute
        # each atom's rows anew for every neighbour of that atom, and write down those
        x = x.as_strided(x.shape, x.stride())
    return x[indices]


def _reduce_sum(x: Tensor, axes: list[int], keepdims: int = 1) -> Tensor:
    return x.sum(axes, keepdim=bool(keepdims))


def _reshape(x: Tensor, shape: list[int]) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _slice(x: Tensor, starts: list[int], ends: list[int], axes: list[int]) -> Tensor:
    for start, end, axis in zip(starts, ends, axes, strict=True):
        x = x.narrow(axis, start, end - start)
    return x


def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: list[int]) -> Tensor:
    return x.squeeze(axes)


def _cast(x: Tensor, to: int) -> Tensor:
    if to not in TYPES:
        raise EngineError(f"The graph casts to ONNX type {to}; double, float, half and int32 alone are foreseen.")
    return x.to(TYPES[to])


TYPES: Mapping[int, torch.dtype] = {
    int(onnx.TensorProto.DOUBLE): torch.float64,
    int(onnx.TensorProto.FLOAT): torch.float32,
    int(onnx.TensorProto.FLOAT16): torch.float16,
    int(onnx.TensorProto.INT32): torch.int32,
}

_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "Cast": _cast,
    "Concat": lambda *xs, axis: torch.cat(xs, axis),
    "Cos": torch.cos,
    "Div": torch.div,
    "Exp": torch.exp,
    "Gather": _gather,
    "Greater": torch.gt,
    "Identity": lambda x: x,
    "MatMul": torch.matmul,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "QuantizeLinear": quantised,
    "ReduceMax": lambda x, axes, keepdims=1: x.amax(axes, keepdim=bool(keepdims)),
    "ReduceSum": _reduce_sum,
    "Reshape": _reshape,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Slice": _slice,
    "Softplus": torch.nn.functional.softplus,
    "Split": lambda x, sizes, axis=0: tuple(x.split(sizes, axis)),
    "Sqrt": torch.sqrt,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
    "Where": torch.where,
}
