"""INT8 as an engine computes it, in training: forward, backward, and differentiable once more.

The engine's products (`painn_deploy.export.graph.int8`) are computed here in float32 with operands and weights rounded
as it rounds them: a step for each row of x and for each column of W, what an element has on average taken off first,
channels balanced. With Q the rounding, f and b the scales of the forward and of the backward product,

    y     = Qf(x)·Qf(W)        what the energy is made of
    dE/dx = Qb(dE/dy)·Qb(W)ᵀ   what the forces are made of; W has another step a column, and so other values

Training differentiates both, and a step has no derivative. The straight-through estimator (Bengio, Léonard & Courville,
arXiv:1308.3432, section 4) takes that of x for that of Q(x): dL/dW is Qf(x)ᵀ·dL/dy + Qb(dE/dy)ᵀ·dL/d(dE/dx), and so on,
with all values as the engine has them.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function

from painn_deploy.calibration.int8.ranges import row_scales
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.graph.int8 import OperandScale, candidates
from painn_deploy.export.graph.onnx_graph import export_onnx, trace
from painn_deploy.export.model.aggregation import Aggregation, linear
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.model.student import NeighbourGraph

__all__ = ["FakeInt8", "ScaleFinder"]

LEVELS = 127
FLOOR = 1e-30  # of a row's largest value, as in the graph


class ScaleFinder:
    """Finds the scales of INT8 of students that differ in their weights alone, whose graph is traced once.

    Args:
        student: one of them, in any precision; it is not changed.
    """

    def __init__(self, student: PaiNN) -> None:
        self._student = copy.deepcopy(student).cpu().float().requires_grad_(False)
        self._traced = trace(self._student)

    def scales_of(self, student: PaiNN, graphs: Sequence[GraphInputs]) -> Mapping[str, OperandScale]:
        """Scales of every product of a student that INT8 may be used for, by the names in its graph.

        Args:
            student: in any precision; it is not changed.
            graphs: of the structures to find what elements have on average, and the balances, on.
        """
        self._student.load_state_dict(student.state_dict())
        model = export_onnx(self._student, {}, traced=self._traced)
        return row_scales(model, candidates(model), graphs)


@dataclass(frozen=True)
class _Side:
    """A product of a layer: its channels' balance [contracted] or [1], and each atom's centre [atoms, contracted]."""

    balance: Tensor
    centre: Tensor | None

    def operand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the engine multiplies in INT8, and the same with what it adds in FP32."""
        centred = x if self.centre is None else x - self.centre
        rounded = _rounded(centred / self.balance, -1) * self.balance
        return rounded, rounded if self.centre is None else rounded + self.centre

    def weight(self, weight: Tensor) -> Tensor:
        """Of a weight [contracted, columns], with a step for each column."""
        balance = self.balance[:, None]
        return _rounded(weight * balance, 0) / balance


def _rounded(values: Tensor, axis: int) -> Tensor:
    step = values.abs().amax(axis, keepdim=True).clamp_min(FLOOR) / LEVELS
    return (values / step).round() * step


def _product(side: _Side | None, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x·W as the engine has it, and the x and W that its derivatives are taken with."""
    if side is None:
        return x @ weight, x, weight
    rounded, whole = side.operand(x)
    narrow = side.weight(weight)
    result = rounded @ narrow
    return (result if side.centre is None else result + side.centre @ weight), whole, narrow


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, forward: _Side | None, backward: _Side | None) -> Tensor:
        result, whole, _ = _product(forward, x, weight.mT)
        ctx.side = backward
        ctx.save_for_backward(whole, weight)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (whole, weight) = grads, ctx.saved_tensors
        by_x = _Backward.apply(grad, weight, ctx.side)  # type: ignore[no-untyped-call]
        # while forces are formed nothing asks for it, and its own derivative never is wanted
        by_weight = None if torch.is_grad_enabled() else grad.flatten(0, -2).mT @ whole.flatten(0, -2)
        return by_x, by_weight, None, None


class _Backward(Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, side: _Side | None) -> Tensor:
        result, whole, narrow = _product(side, grad, weight)
        ctx.save_for_backward(whole, narrow)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (above,), (whole, narrow) = grads, ctx.saved_tensors
        return above @ narrow.mT, whole.flatten(0, -2).mT @ above.flatten(0, -2), None


class FakeInt8:
    """A student's products as its INT8 engine computes them.

    Args:
        student: whose layers they are.
        scales: by the names of the products in its graph, with a scale for each row, see `ScaleFinder`; other
            products stay in float32.
    """

    def __init__(self, student: PaiNN, scales: Mapping[str, OperandScale]) -> None:
        self._layers = {id(layer): name for name, layer in student.named_modules() if isinstance(layer, nn.Linear)}
        device = next(student.parameters()).device

        def on_device(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        self._sides = {
            name: (
                on_device(np.ones(1) if scale.balance is None else scale.balance),
                None if scale.centre is None else on_device(scale.centre),
            )
            for name, scale in scales.items()
        }

    def products(self, graph: NeighbourGraph, sums: Aggregation) -> Aggregation:
        """Sums over neighbours, and products in INT8, of the atoms of a graph.

        Args:
            graph: that the student will be evaluated on.
            sums: how sums over neighbours are computed.
        """
        numbers = graph.atomic_numbers

        def side(name: str) -> _Side | None:
            if name not in self._sides:
                return None
            balance, centre = self._sides[name]
            return _Side(balance, None if centre is None else nn.functional.embedding(numbers, centre))

        def product(layer: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            name = f"{self._layers[id(layer)]}.weight"
            forward, backward = side(f"{name}/forward"), side(f"{name}/backward")
            if forward is None and backward is None:
                return linear(layer, x, weight, bias)
            result: Tensor = _Forward.apply(x, weight, forward, backward)  # type: ignore[no-untyped-call]
            return result if bias is None else result + bias

        return replace(sums, product=product)
