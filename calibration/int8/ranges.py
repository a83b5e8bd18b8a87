"""How an operand becomes INT8, found on structures: what its channels are balanced by, and a range for all rows.

A range is the maximum, a percentile, or what entropy or squared error say; a scale for each row needs none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from jaxtyping import Float

from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.int8 import OperandScale, known_numbers
from painn_deploy.export.graph.products import Product

__all__ = [
    "METHODS", "OperandStatistics", "balance_of", "measure_operands", "open_tensors", "operand_scale", "row_scales",
    "structure_maxima",
]  # fmt: skip

METHODS = ("max", "percentile", "entropy", "mse")
"""How one range for all rows of an operand is found: the largest value; the value that one in ten thousand exceeds; the
range that keeps most of the distribution's information (Kullback-Leibler, as in TensorRT); the range whose mean square
rounding error is least."""

PERCENTILE = 99.99
LEAST_CHANNEL = 1e-2
"""Of the largest channel: what a smaller one counts as, so that one that was silent on the calibration structures does
not rule its row when it speaks."""
LEAST_MAXIMUM = 1e-6
"""The same where a range is of all rows, which a channel that speaks up cannot rule."""
BINS = 2048
COARSE_BINS = 512
LEVELS = 127


class OperandStatistics:
    """Statistics of one product's operand: the largest values of its channels, and a histogram.

    Args:
        product: the product.
        weight: of the product [contracted, columns].
    """

    def __init__(self, product: Product, weight: Float[np.ndarray, "contracted columns"]) -> None:
        self.product = product
        self.weight_maxima = np.abs(weight).max(1)
        self.maxima = np.zeros(product.contracted)
        self.histograms: dict[bool, np.ndarray] = {}

    def balance(self) -> Float[np.ndarray, " contracted"]:
        """√(largest operand / largest weight) of each channel, scaled to a geometric mean of one."""
        return balance_of(self.maxima, self.weight_maxima, LEAST_MAXIMUM)

    def most(self, *, balanced: bool) -> float:
        """Largest absolute value, after balancing or without."""
        return float((self.maxima / self.balance()).max() if balanced else self.maxima.max())

    def count(self, values: Float[np.ndarray, "... contracted"]) -> None:
        """Add an operand's values to the histograms; its maxima must be complete."""
        for balanced in (False, True):
            scaled = np.abs(values / self.balance() if balanced else values)
            counts, _ = np.histogram(scaled, BINS, (0.0, max(self.most(balanced=balanced), 1e-30)))
            self.histograms[balanced] = self.histograms.get(balanced, 0) + counts


def structure_maxima(
    model: onnx.ModelProto, products: Sequence[Product], graphs: Iterable[GraphInputs]
) -> Float[np.ndarray, "structures products"]:
    """Logarithm of the largest absolute value of each product's operand, structure by structure.

    Args:
        model: in FP32.
        products: of the model.
        graphs: of one structure each.
    """
    operands, rows = _operands(model, products), []
    for graph in graphs:
        largest = {name: float(np.abs(values).max()) for name, values in operands(graph).items()}
        rows.append([np.log(largest[product.operand] + 1e-12) for product in products])
    return np.array(rows)


def balance_of(
    operand: Float[np.ndarray, " contracted"], weight: Float[np.ndarray, " contracted"], least: float = LEAST_CHANNEL
) -> Float[np.ndarray, " contracted"]:
    """√(operand / weight) of each channel, scaled to a geometric mean of one.

    With a step of the size of |x/b| for x/b and of |b W| for b W, rounding of either leaves an error in proportion to
    |x/b| |b W|, which this makes least (Cauchy and Schwarz).

    Args:
        operand: root mean square of each channel.
        weight: of each row.
        least: of the largest channel or row, what smaller ones count as.
    """
    operand = np.maximum(operand, least * max(operand.max(), 1e-30))
    weight = np.maximum(weight, least * max(weight.max(), 1e-30))
    balance = np.sqrt(operand / weight)
    return np.asarray(balance / np.exp(np.log(balance).mean()))


def row_scales(
    model: onnx.ModelProto, products: Sequence[Product], graphs: Sequence[GraphInputs]
) -> Mapping[str, OperandScale]:
    """A scale for each row of each product's operand, centred on its element's mean and balanced; by products' names.

    Args:
        model: in FP32.
        products: of the model.
        graphs: of the calibration structures; each is run twice.
    """
    weights, operands, numbers = EditableGraph(model), _operands(model, products), known_numbers(model)
    names = {product.operand for product in products}
    counts, sums = np.zeros(numbers), {p.operand: np.zeros(1) for p in products if p.rows == ("atoms",)}
    for graph in graphs:
        element, values_of = np.eye(numbers)[graph.atomic_numbers], operands(graph)
        counts += element.sum(0)
        for name, total in sums.items():
            sums[name] = total + element.T @ values_of[name].astype(np.float64)
    centres = {name: total / np.maximum(counts, 1)[:, None] for name, total in sums.items()}
    squares = dict.fromkeys(names, np.zeros(1))
    for graph in graphs:
        for name, values in operands(graph).items():
            left = values - centres[name][graph.atomic_numbers] if name in centres else values.astype(np.float64)
            rows = left.reshape(-1, left.shape[-1])
            rows /= np.maximum(np.abs(rows).max(1, keepdims=True), 1e-30)  # each row has a step of its own
            squares[name] = squares[name] + np.square(rows).sum(0)
    rows_of_weights = dict.fromkeys(names, np.zeros(1))  # products of one operand share its scaled form
    for product in products:
        weight = weights.array(product.weight).astype(np.float64)
        rows_of_weights[product.operand] = rows_of_weights[product.operand] + np.square(weight).sum(1)
    balances = {name: balance_of(np.sqrt(squares[name]), np.sqrt(rows_of_weights[name])) for name in names}
    return {
        product.name: OperandScale(
            "row, centred and balanced", None, balances[product.operand], centres.get(product.operand)
        )
        for product in products
    }


def measure_operands(
    model: onnx.ModelProto, products: Sequence[Product], graphs: Sequence[GraphInputs]
) -> Mapping[str, OperandStatistics]:
    """Statistics of each product's operand, by the products' names.

    Args:
        model: in FP32.
        products: of the model.
        graphs: of the calibration structures; each is run twice.
    """
    weights = EditableGraph(model)
    statistics = {p.name: OperandStatistics(p, weights.array(p.weight)) for p in products}
    operands = _operands(model, products)
    for graph in graphs:
        values = operands(graph)
        for entry in statistics.values():
            channels = np.abs(values[entry.product.operand]).reshape(-1, entry.product.contracted).max(0)
            entry.maxima = np.maximum(entry.maxima, channels)
    for graph in graphs:
        values = operands(graph)
        for entry in statistics.values():
            entry.count(values[entry.product.operand])
    return statistics


def operand_scale(statistics: OperandStatistics, method: str, *, balanced: bool) -> OperandScale:
    """Find an operand's scale by one method.

    Args:
        statistics: of the operand.
        method: one of `METHODS`.
        balanced: whether channels are balanced first.
    """
    most, histogram = statistics.most(balanced=balanced), statistics.histograms[balanced]
    find = {"max": lambda *_: most, "percentile": _percentile, "entropy": _entropy, "mse": _least_squares}[method]
    found = float(find(histogram, most))
    balance = statistics.balance() if balanced else None
    return OperandScale(f"{method}, balanced" if balanced else method, max(found, 1e-30), balance)


def _percentile(histogram: Float[np.ndarray, " bins"] | np.ndarray, most: float) -> float:
    share = np.cumsum(histogram) / histogram.sum()
    return most * float(np.searchsorted(share, PERCENTILE / 100) + 1) / BINS


def _least_squares(histogram: np.ndarray, most: float) -> float:
    """The range with the least mean square error of rounding and clipping."""
    centres = (np.arange(BINS) + 0.5) * most / BINS
    candidates = most * np.linspace(0.1, 1.0, 91)
    errors = []
    for limit in candidates:
        step = limit / LEVELS
        errors.append(float((histogram * (np.clip(np.round(centres / step), 0, LEVELS) * step - centres) ** 2).sum()))
    return float(candidates[int(np.argmin(errors))])


def _entropy(histogram: np.ndarray, most: float) -> float:
    from onnxruntime.quantization.calibrate import HistogramCollector

    coarse = histogram.reshape(COARSE_BINS, -1).sum(1)  # the package's search takes seconds with more
    collector = HistogramCollector("entropy", True, 2 * COARSE_BINS, LEVELS, PERCENTILE, "same")
    mirrored, edges = np.concatenate([coarse[::-1], coarse]), np.linspace(-most, most, 2 * COARSE_BINS + 1)
    low, high = collector.get_entropy_threshold((mirrored, edges, -most, most, most), LEVELS)[:2]
    return float(max(-float(low), float(high)))


def _operands(model: onnx.ModelProto, products: Iterable[Product]) -> Callable[[GraphInputs], dict[str, np.ndarray]]:
    """Ready to run: gives the operands of products, by the tensors' names."""
    names = list(dict.fromkeys(product.operand for product in products))
    run = open_tensors(model, names)
    return lambda graph: dict(zip(names, run(graph), strict=True))


def open_tensors(model: onnx.ModelProto, names: Sequence[str]) -> Callable[[GraphInputs], list[np.ndarray]]:
    """Ready to run on one CPU core: gives tensors of float32 from inside a graph.

    Args:
        model: it is not changed.
        names: of the tensors.
    """
    graph = EditableGraph(model)
    graph.outputs += [name for name in names if name not in graph.outputs]
    return open_graph(graph.model().SerializeToString(), names)
