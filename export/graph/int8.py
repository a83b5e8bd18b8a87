"""INT8 by explicit Q/DQ: chosen products read an operand and a weight of eight bits.

Symmetric, zero point 0. A weight has one scale for each column, the axis that is not summed over, so that a backward
product has a quantised copy of its own. An operand has either one scale for each row, or one for all of it.

Rows differ by orders of magnitude: an edge that is about to leave the cutoff carries little, and so does its gradient.
One scale for all rows leaves such an edge a few steps of 127, and clips, without a word, whatever exceeds the
structures that it was calibrated on. A scale for each row is measured by the graph itself, x·W = r (x/r)·W with r the
row's largest absolute value, needs no range, and clips nothing. It is the default; what both cost is in
docs/precision.md.

With one scale for all rows, channels may be balanced first, x·W = (x/b)·(b W), which takes range from large channels
and gives it to small ones (SmoothQuant, arXiv:2211.10438). Everything else of the graph stays as it was.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Float
from onnx import helper, numpy_helper

from painn_deploy.export.errors import EngineUnavailableError
from painn_deploy.export.graph.products import Product, behind_weights, weight_products

__all__ = ["BY_ROW", "LEAST_SIZE", "OperandScale", "candidates", "to_int8"]

LEAST_SIZE = 16
"""Of the contracted axis and of the columns: below, INT8 saves nothing, and tensor cores take no such product."""


@dataclass(frozen=True)
class OperandScale:
    """How a product's operand becomes INT8.

    Attributes:
        method: in words.
        most: the absolute value that 127 stands for, after balancing; greater ones are clipped to it. None for the
            largest of each row, which nothing exceeds.
        balance: what each channel [contracted] is divided by first; None for nothing.
    """

    method: str
    most: float | None = None
    balance: Float[np.ndarray, " contracted"] | None = None


BY_ROW = OperandScale("row")


def candidates(model: onnx.ModelProto) -> list[Product]:
    """The products that INT8 may be used for: forward and backward, without the read-out and the radial basis.

    The radial basis is geometry: what it loses no later layer can mend, and its products are short.

    Args:
        model: in FP32.
    """
    learnt = behind_weights(model)
    return [
        product
        for product in weight_products(model)
        if not product.is_readout
        and product.operand in learnt
        and min(product.contracted, product.columns) >= LEAST_SIZE
    ]


def to_int8(model: onnx.ModelProto, scales: Mapping[str, OperandScale]) -> onnx.ModelProto:
    """Quantise products.

    Args:
        model: in FP32; it is not changed.
        scales: of the operands, by the products' names; products that are not named stay as they are.

    Raises:
        EngineUnavailableError: onnxruntime, whose quantization package does the work, is not installed.
    """
    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    except ImportError as error:
        raise EngineUnavailableError(
            'INT8 needs onnxruntime for its quantization package: pip install "painn-deploy[cpu,export]".'
        ) from error
    prepared = _prepared(model, scales)
    # an operand that several products read has one scale: the widest that one of them asks for
    widest: dict[str, float] = {}
    for product in weight_products(prepared):
        if product.name in scales:
            most = scales[product.name].most
            widest[product.operand] = max(widest.get(product.operand, 0.0), 1.0 if most is None else most)
    limits = {name: TensorData(lowest=np.float32(-most), highest=np.float32(most)) for name, most in widest.items()}
    logging.getLogger().addFilter(_quiet)
    try:
        quantiser = QDQQuantizer(
            prepared,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
            nodes_to_quantize=list(scales),
            nodes_to_exclude=[],
            op_types_to_quantize=["MatMul"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()  # it adds its nodes at the end
    finally:
        logging.getLogger().removeFilter(_quiet)
    quantised: onnx.ModelProto = quantiser.model.model
    return quantised


def _prepared(model: onnx.ModelProto, scales: Mapping[str, OperandScale]) -> onnx.ModelProto:
    """A copy whose chosen products read operands that are balanced, or divided by the largest value of each row."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {t.name: t for t in copy.graph.initializer}

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = numpy_helper.from_array(value, name)
        return name

    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        scale = scales.get(node.name)
        if scale is None:
            nodes.append(node)
        elif scale.most is None:
            axis, floor = constant("row_axis", np.array([-1])), constant("row_floor", np.array(1e-30, np.float32))
            nodes += _by_row(node, axis, floor)
        else:
            if scale.balance is not None:
                weight = numpy_helper.to_array(constants[node.input[1]]) * scale.balance[:, None]
                balance = constant(f"{node.name}/balance", (1 / scale.balance).astype(np.float32))
                balanced = f"{node.name}/balanced"
                nodes.append(helper.make_node("Mul", [node.input[0], balance], [balanced], name=balanced))
                node.input[:] = [balanced, constant(f"{node.name}/weight", weight.astype(np.float32))]
            nodes.append(node)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    read = {name for node in ordered for name in node.input}
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(ordered)
    copy.graph.initializer.extend(tensor for name, tensor in constants.items() if name in read)
    return copy


def _by_row(product: onnx.NodeProto, axis: str, floor: str) -> list[onnx.NodeProto]:
    """r = max |x| over a row, never zero; x/r goes in, and r times what comes out."""
    name, operand, result = product.name, product.input[0], product.output[0]
    absolute, largest, row, scaled = (f"{name}/{part}" for part in ("absolute", "largest", "row", "scaled"))
    inner = onnx.NodeProto()
    inner.CopyFrom(product)
    inner.input[0], inner.output[0] = scaled, f"{name}/unscaled"
    return [
        helper.make_node("Abs", [operand], [absolute], name=absolute),
        helper.make_node("ReduceMax", [absolute, axis], [largest], name=largest, keepdims=1),
        helper.make_node("Max", [largest, floor], [row], name=row),
        helper.make_node("Div", [operand, row], [scaled], name=scaled),
        inner,
        helper.make_node("Mul", [inner.output[0], row], [result], name=f"{name}/result"),
    ]


def _quiet(record: logging.LogRecord) -> bool:
    """Drops the package's remarks on tensors that it was told to leave alone."""
    return record.levelno >= logging.ERROR
