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
from onnx import helper

from painn_deploy.export.errors import EngineUnavailableError, ExportError
from painn_deploy.export.graph.edit import EditableGraph, Model, renamed
from painn_deploy.export.graph.products import RESULT, Product, behind_weights, weight_products

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


def candidates(model: Model) -> list[Product]:
    """The products that INT8 may be used for: forward and backward, without the read-out and the radial basis.

    The radial basis is geometry: what it loses no later layer can mend, and its products are short.

    Args:
        model: in FP32.
    """
    graph = EditableGraph.of(model)
    learnt = behind_weights(graph)
    return [
        product
        for product in weight_products(graph)
        if not product.is_readout
        and product.operand in learnt
        and min(product.contracted, product.columns) >= LEAST_SIZE
    ]


def to_int8(model: Model, scales: Mapping[str, OperandScale]) -> onnx.ModelProto:
    """Quantise products.

    Args:
        model: in FP32; it is not changed.
        scales: of the operands, by the products' names; products that are not named stay as they are.

    Raises:
        ExportError: the graph has no product of one of these names.
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
    graph = EditableGraph(model)
    if unknown := sorted(scales.keys() - {node.name for node in graph.nodes}):
        raise ExportError(f"The graph has no product {', '.join(unknown)}: scales are of one student's graph.")
    if not scales:  # the package would take every product
        return graph.model()
    _scaled(graph, scales)
    # an operand that several products read has one scale: the widest that one of them asks for
    widest: dict[str, float] = {}
    for node in graph.nodes:
        if scale := scales.get(node.name):
            most = 1.0 if scale.most is None else scale.most
            widest[node.input[0]] = max(widest.get(node.input[0], 0.0), most)
    limits = {name: TensorData(lowest=np.float32(-most), highest=np.float32(most)) for name, most in widest.items()}
    logging.getLogger().addFilter(_quiet)
    try:
        quantiser = QDQQuantizer(
            graph.model(),
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


def _scaled(graph: EditableGraph, scales: Mapping[str, OperandScale]) -> bool:
    """Let chosen products read operands that are balanced, or divided by the largest value of each row; whether any do.

    Requires products that are not INT8 yet. Ensures the same values up to rounding.
    """

    def scaled(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        scale = scales.get(node.name)
        if scale is None:
            return None
        if scale.most is None:
            return _by_row(graph, node)
        if scale.balance is None:
            return None
        balance = graph.constant(f"{node.name}/balance", (1 / scale.balance).astype(np.float32))
        weight = (graph.array(node.input[1]) * scale.balance[:, None]).astype(np.float32)
        balanced = f"{node.name}/balanced"
        return [
            helper.make_node("Mul", [node.input[0], balance], [balanced], name=balanced),
            renamed(node, [balanced, graph.constant(f"{node.name}/weight", weight)]),
        ]

    changed = graph.rewrite(scaled)
    graph.prune()  # a weight whose balanced copy is read in its place
    return changed


def _by_row(graph: EditableGraph, product: onnx.NodeProto) -> list[onnx.NodeProto]:
    """r = max |x| over a row, never zero; x/r goes in, and r times what comes out."""
    axis = graph.constant("row_axis", np.array([-1]))
    floor = graph.constant("row_floor", np.array(1e-30, np.float32))
    name, (operand, weight), result = product.name, product.input, product.output[0]
    parts = ("absolute", "largest", "row", "scaled", "unscaled")
    absolute, largest, row, scaled, unscaled = (f"{name}/{part}" for part in parts)
    return [
        helper.make_node("Abs", [operand], [absolute], name=absolute),
        helper.make_node("ReduceMax", [absolute, axis], [largest], name=largest, keepdims=1),
        helper.make_node("Max", [largest, floor], [row], name=row),
        helper.make_node("Div", [operand, row], [scaled], name=scaled),
        renamed(product, [scaled, weight], [unscaled]),
        helper.make_node("Mul", [unscaled, row], [result], name=f"{name}{RESULT}"),
    ]


def _quiet(record: logging.LogRecord) -> bool:
    """Drops the package's remarks on tensors that it was told to leave alone."""
    return record.levelno >= logging.ERROR
