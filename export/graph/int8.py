"""INT8 by explicit Q/DQ: chosen products read an operand and a weight of eight bits.

Symmetric, zero point 0. A weight has one scale for each column, the axis that is not summed over, so that a backward
product has a quantised copy of its own. An operand has either one scale for each row, or one for all of it.

Rows differ by orders of magnitude: an edge that is about to leave the cutoff carries little, and so does its gradient.
One scale for all rows leaves such an edge a few steps of 127, and clips, without a word, whatever exceeds the
structures that it was calibrated on. A scale for each row is measured by the graph itself, x·W = r (x/r)·W with r the
row's largest absolute value, needs no range, and clips nothing. It is the default; what both cost is in
docs/precision.md.

With either, channels may be balanced first, x·W = (x/b)·(b W), which takes range from large channels and gives it to
small ones (SmoothQuant, arXiv:2211.10438). And what an element has on average may be taken off first,
x·W = (x - c)·W + c·W, with c and c·W from tables of a row an element: it is a good part of what an atom's row holds,
says nothing of where the others are, and would be rounded with the rest. Everything else of the graph stays as it was.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Float
from onnx import helper

from painn_deploy.export.errors import EngineUnavailableError, ExportError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.graph.edit import EditableGraph, Model, renamed
from painn_deploy.export.graph.products import RESULT, Product, behind_weights, weight_products

__all__ = ["BY_ROW", "LEAST_SIZE", "OperandScale", "candidates", "known_numbers", "to_int8"]

ATOMIC_NUMBERS = GraphInputs._fields[0]

LEAST_SIZE = 16
"""Of the contracted axis and of the columns: below, INT8 saves nothing, and tensor cores take no such product."""


@dataclass(frozen=True)
class OperandScale:
    """How a product's operand becomes INT8.

    Attributes:
        method: in words.
        most: the absolute value that 127 stands for, after balancing; greater ones are clipped to it. None for the
            largest of each row, after balancing too, which nothing exceeds.
        balance: what each channel [contracted] is divided by first; None for nothing.
        centre: what each atomic number's rows [numbers, contracted] are counted from, where rows are atoms; None for 0.
    """

    method: str
    most: float | None = None
    balance: Float[np.ndarray, " contracted"] | None = None
    centre: Float[np.ndarray, "numbers contracted"] | None = None


BY_ROW = OperandScale("row")


def candidates(model: Model) -> list[Product]:
    """The products that INT8 may be used for: forward and backward, without the read-out and the radial basis.

    The radial basis is geometry, and so are the functions of a radial table: what they lose no later layer can mend,
    and to round a row for each slot takes longer than their short products save.

    Args:
        model: in FP32.
    """
    graph = EditableGraph.of(model)
    learnt = behind_weights(graph)
    return [
        product
        for product in weight_products(graph)
        if not (product.is_readout or product.is_of_table)
        and product.operand in learnt
        and min(product.contracted, product.columns) >= LEAST_SIZE
    ]


def known_numbers(model: Model) -> int:
    """Rows of the student's embedding: atomic numbers below it may be looked up.

    Raises:
        ExportError: the graph looks nothing up by atomic number.
    """
    graph = EditableGraph.of(model)
    for node in graph.nodes:
        if node.op_type == "Gather" and node.input[0] in graph.constants and node.input[1] == ATOMIC_NUMBERS:
            return int(graph.constants[node.input[0]].dims[0])
    raise ExportError("The graph has no embedding of atomic numbers.")


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
        nodes = [node]
        for changes in (_centred, _balanced, _by_row):
            nodes = [n for each in nodes for n in (changes(graph, each, scale) if each.name == node.name else [each])]
        return nodes

    changed = graph.rewrite(scaled)
    graph.prune()  # a weight whose balanced copy is read in its place
    return changed


def _centred(graph: EditableGraph, product: onnx.NodeProto, scale: OperandScale) -> list[onnx.NodeProto]:
    """x - c goes in, and c·W is added to what comes out."""
    if (centre := scale.centre) is None:
        return [product]
    name, (operand, weight), result = product.name, product.input, product.output[0]
    parts = ("element", "centred", "uncentred", "element_result")
    element, centred, uncentred, element_result = (f"{name}/{part}" for part in parts)
    through = centre.astype(np.float64) @ graph.array(weight).astype(np.float64)
    tables = [
        graph.constant(f"{name}/{which}", table.astype(np.float32))
        for which, table in (("centres", centre), ("centre_results", through))
    ]
    return [
        helper.make_node("Gather", [tables[0], ATOMIC_NUMBERS], [element], name=element),
        helper.make_node("Sub", [operand, element], [centred], name=centred),
        helper.make_node("Gather", [tables[1], ATOMIC_NUMBERS], [element_result], name=element_result),
        renamed(product, [centred, weight], [uncentred]),
        helper.make_node("Add", [uncentred, element_result], [result], name=f"{name}/centre"),
    ]


def _balanced(graph: EditableGraph, product: onnx.NodeProto, scale: OperandScale) -> list[onnx.NodeProto]:
    """x/b goes in, to a weight whose rows are multiplied by b."""
    if (balance := scale.balance) is None:
        return [product]
    name, (operand, weight) = product.name, product.input
    inverse = graph.constant(f"{name}/balance", (1 / balance).astype(np.float32))
    heavier = graph.constant(f"{name}/weight", (graph.array(weight) * balance[:, None]).astype(np.float32))
    balanced = f"{name}/balanced"
    return [
        helper.make_node("Mul", [operand, inverse], [balanced], name=balanced),
        renamed(product, [balanced, heavier]),
    ]


def _by_row(graph: EditableGraph, product: onnx.NodeProto, scale: OperandScale) -> list[onnx.NodeProto]:
    """r = max |x| over a row, never zero; x/r goes in, and r times what comes out."""
    if scale.most is not None:
        return [product]
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
