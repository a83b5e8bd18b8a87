"""FP32 graphs whose products read what products in TF32 read: operands of ten bits behind the binary point, not 23.

Operands are rounded to the nearest, as NVIDIA's libraries do. A tensor core that is given FP32 numbers drops their last
thirteen bits instead, which is always to the same side, so that errors add up. So kernels of our own round before they
multiply, see `painn_deploy.engines.inductor.messages_kernel`.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from painn_deploy.export.fields import AS_WRITTEN
from painn_deploy.export.graph.edit import EditableGraph, Model, renamed

__all__ = ["rounded_products", "tf32"]

SPLITTER = np.array(2**13 + 1, np.float32)
"""One more than how many times finer the spacing of FP32 is than TF32's."""


def tf32(array: np.ndarray) -> np.ndarray:
    """The nearest numbers that TF32 has, by Dekker's splitting, Numer. Math. 18, 224 (1971).

    Args:
        array: of float32, of numbers below 4e34.
    """
    scaled = SPLITTER * array
    return np.asarray(scaled - (scaled - array), np.float32)


def rounded_products(model: Model) -> onnx.ModelProto:
    """An FP32 graph that gives what it gives where its products of matrices are in TF32 and add up in FP32.

    Its metadata say that it is to be run as it is written, and our backend of ONNX Runtime does so.

    Args:
        model: whose floats are FP32; it is not changed. Products in INT8 stay what they are.
    """
    graph = EditableGraph(model)
    operands = {name for name, tensor in graph.types.items() if tensor.element == TensorProto.FLOAT}
    operands -= {name for node in graph.nodes if node.op_type == "DequantizeLinear" for name in node.output}
    narrow: dict[str, str] = {}

    def reading_less(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if node.op_type != "MatMul" or not operands.issuperset(node.input):
            return None
        ahead: list[onnx.NodeProto] = []
        for name in node.input:
            if name not in narrow:
                narrow[name] = f"{name}_tf32"
                if name in graph.constants:
                    graph.constant(narrow[name], tf32(graph.array(name)))
                else:
                    ahead += _rounding(graph, name, narrow[name])
        return [*ahead, renamed(node, map(narrow.__getitem__, node.input))]

    graph.rewrite(reading_less)
    graph.prune()  # weights whose narrow copies are read in their place
    simulated = graph.model()
    if all(each.key != AS_WRITTEN for each in simulated.metadata_props):
        simulated.metadata_props.add(key=AS_WRITTEN, value="every rounding in this graph counts")
    return simulated


def _rounding(graph: EditableGraph, name: str, result: str) -> list[onnx.NodeProto]:
    """Nodes that compute `tf32` of a tensor."""
    splitter = graph.constant("tf32_splitter", SPLITTER)
    scaled, rest = f"{result}_scaled", f"{result}_rest"
    steps = (("Mul", (name, splitter), scaled), ("Sub", (scaled, name), rest), ("Sub", (scaled, rest), result))
    return [helper.make_node(kind, read, [made], name=made) for kind, read, made in steps]
