"""The purpose of each tensor of a student's ONNX graph: the part of the model, energy or gradient."""

from collections.abc import Mapping

import onnx

from painn_deploy.export.fields import OUTPUTS
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.scripts.profiling.costs import sized

__all__ = ["PURPOSES", "purposes"]

RADIAL, MESSAGES, UPDATES, READOUT = "radial part", "messages", "updates", "read-out"
SLOPES, GRADIENT_EDGES, GRADIENT_ATOMS = (
    "backward: slopes of filters",
    "backward: over neighbours",
    "backward: on atoms",
)
PURPOSES = (RADIAL, MESSAGES, UPDATES, READOUT, SLOPES, GRADIENT_EDGES, GRADIENT_ATOMS)

PARTS = {"filters": RADIAL, "message": MESSAGES, "mixing": UPDATES, "update": UPDATES, "readout": READOUT}
"""By the first word of a weight's name."""

MARK = 1_000_003
"""Slots that no other size of a graph is a multiple of."""


def purposes(model: onnx.ModelProto) -> Mapping[str, str]:
    """The purpose of every node's outputs, by the tensor's name.

    What needs distances alone is the radial part, or the filters' slopes where only the gradient reads it. What is as
    wide as the neighbour matrix is messages, or the gradient over neighbours. What is left is on atoms: it goes with
    the product with weights before it.

    Args:
        model: a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`, or one that an engine made of it,
            whose tensors keep their names.
    """
    shapes = sized(model, 7, MARK).shapes
    graph = EditableGraph(model)
    forward = graph.ancestors([OUTPUTS[0].name])
    elements = {"atomic_numbers"}  # and what depends on them
    found: dict[str, str] = {}
    order: dict[str, int] = {}
    for node in graph.nodes:
        inputs = [name for name in node.input if name and name not in graph.constants]
        wide = any(size and size % MARK == 0 for name in (*inputs, *node.output) for size in shapes[name])
        geometric = not elements.intersection(inputs) and wide
        if not geometric:
            elements.update(node.output)
        named = PARTS.get(node.name.split(".")[0]) if "/" in node.name else None
        if node.output[0] not in forward:
            purpose = SLOPES if geometric else GRADIENT_EDGES if wide else GRADIENT_ATOMS
        elif geometric or named == RADIAL:
            purpose = RADIAL
        elif wide:
            purpose = MESSAGES
        else:
            written = [name for name in inputs if name in order]
            purpose = named or (found[max(written, key=order.__getitem__)] if written else MESSAGES)
        order |= dict.fromkeys(node.output, len(order))
        found |= dict.fromkeys(node.output, purpose)
    return found
