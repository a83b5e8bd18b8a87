"""Sums over neighbours and their gradients in a graph, found by what they compute.

What they compute is written in `painn_deploy.export.graph.messages`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import onnx
from onnx import TensorProto

from painn_deploy.export.graph.edit import EditableGraph

__all__ = ["PARTS", "Filter", "Matcher", "Term"]

PARTS = ("scalars", "dipoles", "vectors")
"""What an interaction sums."""


_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}


class Filter(NamedTuple):
    """A filter, or its slope: radial functions times a weight.

    Attributes:
        radial: tensor [atoms, slots, columns].
        weight: constant [columns, features].
        bias: constant [features]; empty where there is none.
        masked: whether it is multiplied by the mask.
        is_slope: whether it is a slope.
    """

    radial: str
    weight: str
    bias: str = ""
    masked: bool = False
    is_slope: bool = False


class Term(NamedTuple):
    """A sum over slots or features.

    Attributes:
        kind: `forward`, `distance` or `direction`; a sum that is an adjoint by x is `forward` too, but of dipoles,
            which have `projected`.
        part: of `PARTS`.
        filter: that it sums, or whose slope it sums.
        output: tensor that it gives.
        gathered: tensor whose rows it gathers; empty where there are none.
        own: gradient of which it takes the atom's own row; empty where it takes none.
        directions: tensor [atoms, slots, 3]; empty where it takes none.
    """

    kind: str
    part: str
    filter: Filter
    output: str
    gathered: str
    own: str = ""
    directions: str = ""


class Matcher:
    """Finds terms by what they compute, casts aside.

    Args:
        graph: it is not changed.
    """

    def __init__(self, graph: EditableGraph) -> None:
        self.graph = graph
        self.made = {name: node for node in graph.nodes for name in node.output}
        self.readers = defaultdict[str, list[onnx.NodeProto | None]](list)
        for node in graph.nodes:
            for name in node.input:
                self.readers[name].append(node)
        for name in graph.outputs:
            self.readers[name].append(None)

    def source(self, name: str) -> str:
        """The tensor that a chain of casts between float and half began with."""
        while (node := self.made.get(name)) is not None and node.op_type == "Cast":
            if not {self.graph.types[name].element, self.graph.types[node.input[0]].element} <= _FLOATS:
                break
            name = node.input[0]
        return name

    def total(self, name: str) -> str:
        """The sum that a tensor ends in, where it and what it was added to are read by nothing else."""
        while len(readers := self.readers[name]) == 1 and readers[0] is not None and readers[0].op_type == "Add":
            name = readers[0].output[0]
        return name

    def node(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The node that made a tensor, casts aside, if it is of this operator.

        Args:
            name: of the tensor.
            operator: of the node.
        """
        node = self.made.get(self.source(name))
        return node if node is not None and node.op_type == operator else None

    def columns_of(self, name: str) -> tuple[str, int]:
        """The tensor that holds these columns, and the first of them; the tensor itself where it is no part of one."""
        node = self.made.get(name)
        if node is None or node.op_type != "Split" or node.input[1] not in self.graph.constants:
            return name, 0
        axes = [a.i for a in node.attribute if a.name == "axis"]
        if axes not in ([1], [-1]) or len(self._shape(name)) != 2:
            return name, 0
        sizes = self.graph.array(node.input[1])
        return node.input[0], int(sizes[: list(node.output).index(name)].sum())

    def terms(self) -> Mapping[str, Term]:
        """Terms by the tensor that they give, in the graph's order."""
        found: dict[str, Term] = {}
        for node in self.graph.nodes:
            match node.op_type:
                case "ReduceSum":
                    term = self._over_slots(node) or self._along(node)
                case "MatMul":
                    term = self._dipoles(node) or self._by_direction(node)
                case "Squeeze":
                    term = self._over_features(node)
                case _:
                    term = None
            if term is not None and self._is_sound(term):
                found[term.output] = term
        return found

    def _is_sound(self, term: Term) -> bool:
        """Whether operands have the shapes that the term is written for, and a slope no bias."""
        weight, bias = self.graph.constants[term.filter.weight], self.graph.constants.get(term.filter.bias)
        width = weight.dims[-1]
        scalars, vectors = ("atoms", width), ("atoms", 3, width)
        gathers_vectors = term.part == "vectors" or term.kind == "projected"
        wanted = {
            term.gathered: vectors if gathers_vectors else scalars,
            term.own: scalars if term.part == "scalars" else vectors,
            term.directions: ("atoms", "slots", 3),
        }
        shaped = all(self._shape(name) == shape for name, shape in wanted.items() if name)
        biased = bias is None or (list(bias.dims) == [width] and not term.filter.is_slope)
        is_float = self.graph.types[term.output].element == TensorProto.FLOAT
        return shaped and biased and is_float and (term.kind == "distance") == term.filter.is_slope

    def _over_slots(self, node: onnx.NodeProto) -> Term | None:
        """Σ_k w x_j; or Σ_k w (-u·g_j)."""
        product = self.node(node.input[0], "Mul")
        if product is None or not self._axes(node, 1):
            return None
        for wide, rows in self._both(product):
            if (made := self._filter(wide)) and (x := self._gathered(rows, 2)):
                return Term("forward", "scalars", made, node.output[0], x)
            raised = self.node(wide, "Unsqueeze")
            if raised and (made := self._filter(raised.input[0])) and (x := self._gathered(rows, 3)):
                return Term("forward", "vectors", made, node.output[0], x)
            if (made := self._filter(wide)) and (projected := self._projected(rows)):
                directions, x = projected
                return Term("projected", "dipoles", made, node.output[0], x, directions=directions)
        return None

    def _projected(self, name: str) -> tuple[str, str] | None:
        """u and g of -u·g_j."""
        summed = self.node(name, "ReduceSum")
        product = self.node(summed.input[0], "Mul") if summed and self._axes(summed, 2, -2) else None
        for turned, rows in self._both(product) if product else ():
            raised = self.node(turned, "Unsqueeze")
            negative = self.node(raised.input[0], "Neg") if raised else None
            if negative and (x := self._gathered(rows, 3)):
                return self.source(negative.input[0]), x
        return None

    def _dipoles(self, node: onnx.NodeProto) -> Term | None:
        """Σ_k u ⊗ w x_j."""
        turned = self.node(node.input[0], "Transpose")
        if turned is None or self._shape(turned.input[0])[1:] != ("slots", 3):
            return None
        if (message := self._message(node.input[1])) is None:
            return None
        made, x = message
        return Term("forward", "dipoles", made, node.output[0], x, directions=self.source(turned.input[0]))

    def _by_direction(self, node: onnx.NodeProto) -> Term | None:
        """Σ_f w x_j g_i, a vector for each slot."""
        turned = self.node(node.input[1], "Transpose")
        if turned is None or self._shape(turned.input[0])[:2] != ("atoms", 3):
            return None
        if (message := self._message(node.input[0])) is None:
            return None
        return Term("direction", "dipoles", message[0], node.output[0], message[1], turned.input[0])

    def _along(self, node: onnx.NodeProto) -> Term | None:
        """u·Σ_f w' x_j g_i."""
        product = self.node(node.input[0], "Mul")
        if product is None or not self._axes(node, 2, -1):
            return None
        for directions, slope in self._both(product):
            summed = self.node(slope, "MatMul")
            if summed and (term := self._by_direction(summed)):
                return term._replace(kind="distance", output=node.output[0], directions=self.source(directions))
        return None

    def _over_features(self, node: onnx.NodeProto) -> Term | None:
        """Σ_f w' x_j g_i."""
        summed = self.node(node.input[0], "MatMul")
        own = self.node(summed.input[1], "Unsqueeze") if summed else None
        if summed is None or own is None:
            return None
        if (message := self._message(summed.input[0])) and message[1]:
            return Term("distance", "scalars", message[0], node.output[0], message[1], own.input[0])
        flat, own = self.node(summed.input[0], "Reshape"), self.node(own.input[0], "Reshape")
        product = self.node(flat.input[0], "Mul") if flat and own else None
        for wide, rows in self._both(product) if product else ():
            raised = self.node(wide, "Unsqueeze")
            if raised and own and (made := self._filter(raised.input[0])) and (x := self._gathered(rows, 3)):
                return Term("distance", "vectors", made, node.output[0], x, own.input[0])
        return None

    def _message(self, name: str) -> tuple[Filter, str] | None:
        """Filter and gathered scalars of w x_j; without scalars where it is w alone."""
        if (made := self._filter(name)) is not None:
            return made, ""
        product = self.node(name, "Mul")
        for wide, rows in self._both(product) if product else ():
            if (made := self._filter(wide)) and (x := self._gathered(rows, 2)):
                return made, x
        return None

    def _filter(self, name: str) -> Filter | None:
        """(φ·W + b)·m, of which b and m may be missing."""
        masked, bias = False, ""
        if (product := self.node(name, "Mul")) is not None:
            for wide, factor in self._both(product):
                raised = self.node(factor, "Unsqueeze")
                if raised is not None and self.source(raised.input[0]) == "mask" and self._is(raised.input[1], 2, -1):
                    name, masked = wide, True
                    break
        if (total := self.node(name, "Add")) is not None:
            for wide, constant in self._both(total):
                if constant in self.graph.constants:
                    name, bias = wide, constant
                    break
        product = self.node(name, "MatMul")
        if product is None or product.input[1] not in self.graph.constants:
            return None
        if self._shape(product.input[0])[:2] != ("atoms", "slots"):
            return None
        radial, weight = product.input
        return Filter(radial, weight, bias, masked, is_slope="/slope" in product.name)

    def _gathered(self, name: str, axes: int) -> str | None:
        """The tensor whose rows are gathered for the neighbours, if it has so many axes."""
        node = self.node(name, "Gather")
        if node is None or node.input[1] != "neighbours" or node.input[0] in self.graph.constants:
            return None
        if any(a.i for a in node.attribute if a.name == "axis"):
            return None
        return node.input[0] if len(self._shape(node.input[0])) == axes else None

    def _axes(self, node: onnx.NodeProto, *wanted: int) -> bool:
        """Whether a node sums over one of these axes and does not keep it."""
        kept = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        return not kept and len(node.input) > 1 and self._is(node.input[1], *wanted)

    def _is(self, name: str, *wanted: int) -> bool:
        """Whether a tensor is a constant of one of these numbers."""
        return name in self.graph.constants and self.graph.array(name).tolist() in [[number] for number in wanted]

    def _shape(self, name: str) -> tuple[str | int, ...]:
        return self.graph.types[name].shape

    def _both(self, node: onnx.NodeProto) -> Iterable[tuple[str, str]]:
        """Operands of a node that does not mind their order, both ways."""
        left, right = node.input
        return (left, right), (right, left)
