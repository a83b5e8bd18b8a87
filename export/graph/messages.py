"""Sums over neighbours as one node for all that an interaction sums, for an engine that has a kernel for it.

A graph writes an interaction as terms: each forms a filter for every slot, [atoms, slots, features], multiplies it by
gathered rows and sums over slots, or over features. `messages_in_one_pass` finds the terms by what they compute and
joins those that wait for the same: scalars, dipoles and vectors into one node, `Messages`, and their adjoints into
another, `MessagesAdjoint`. What the nodes compute is written below in terms of filters w = (φ·W + b)·m with the radial
functions φ of a slot, and their slopes w' = (φ'·W)·m, directions u, and rows x_j of the neighbour:

| term | forward | adjoint by distance | adjoint by direction | adjoint by x |
|---|---|---|---|---|
| scalars | Σ_k w x_j | Σ_f w' x_j g_i | | Σ_k w g_j |
| dipoles | Σ_k u ⊗ w x_j | u·Σ_f w' x_j g_i | Σ_f w x_j g_i | Σ_k w (-u·g_j) |
| vectors | Σ_k w x_j | Σ_f w' x_j·g_i | | Σ_k w g_j |

Dipoles may be without x, which is then 1. These are the sums of `painn_deploy.export.model.aggregation` and the
adjoints of `painn_deploy.export.model.explicit`, and no others are looked for.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import onnx
from onnx import TensorProto, helper

from painn_deploy.export.errors import ExportError
from painn_deploy.export.graph.edit import EditableGraph

__all__ = ["ADJOINT", "DOMAIN", "MESSAGES", "PARTS", "messages_in_one_pass"]

DOMAIN, MESSAGES, ADJOINT = "painn_deploy", "Messages", "MessagesAdjoint"
"""Names of the nodes. They are made inside an engine, and no bundle holds one."""

PARTS = ("scalars", "dipoles", "vectors")
"""What an interaction sums, in the order of the nodes' operands."""


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


class Adjoint(NamedTuple):
    """The gradients of one sum over slots.

    Attributes:
        distance: by the distance of each slot.
        direction: by the direction of each slot; of dipoles.
        by_x: by what is gathered; None where that is a table of elements.
    """

    distance: Term
    direction: Term | None
    by_x: Term | None

    @property
    def terms(self) -> tuple[Term, ...]:
        """Those that there are."""
        return tuple(term for term in self if term is not None)


def messages_in_one_pass(graph: EditableGraph) -> bool:
    """Join the terms of each interaction into one node, and their adjoints into another.

    Requires a graph made by `painn_deploy.export.graph.onnx_graph.export_onnx`, and to come before other lowerings.
    Ensures the same values up to the order of sums, in FP16 with fewer roundings. The nodes are of `DOMAIN`; an engine
    has to know them.

    Args:
        graph: in FP32 or FP16-mixed.

    Returns:
        Whether there were such terms.
    """
    matcher = _Matcher(graph)
    found = matcher.terms()
    waiting = defaultdict[int, list[Term]](list)
    for name, level in _levels(graph, found).items():
        if name in found:
            waiting[level].append(found[name])
    nodes = [node for level in sorted(waiting) for node in _joined(waiting[level], matcher)]
    if not nodes:
        return False
    replaced = {name for node in nodes for name in node.output}
    graph.nodes = _in_order([*(n for n in graph.nodes if replaced.isdisjoint(n.output)), *nodes])
    graph.prune()
    return True


class _Matcher:
    """Finds terms by what they compute, casts aside.

    Args:
        graph: it is not changed.
    """

    def __init__(self, graph: EditableGraph) -> None:
        self.graph = graph
        self.made = {name: node for node in graph.nodes for name in node.output}

    def source(self, name: str) -> str:
        """The tensor that a chain of casts began with."""
        while (node := self.made.get(name)) is not None and node.op_type == "Cast":
            name = node.input[0]
        return name

    def node(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The node that made a tensor, casts aside, if it is of this operator."""
        node = self.made.get(self.source(name))
        return node if node is not None and node.op_type == operator else None

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
            if term is not None and self.graph.types[term.output].element == TensorProto.FLOAT:
                found[term.output] = term
        return found

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

    def _by_direction(self, node: onnx.NodeProto, *, of_slopes: bool = False) -> Term | None:
        """Σ_f w x_j g_i, a vector for each slot; or Σ_f w' x_j g_i."""
        turned = self.node(node.input[1], "Transpose")
        if turned is None or self._shape(turned.input[0])[:2] != ("atoms", 3):
            return None
        if (message := self._message(node.input[0])) is None or message[0].is_slope != of_slopes:
            return None
        return Term("direction", "dipoles", message[0], node.output[0], message[1], turned.input[0])

    def _along(self, node: onnx.NodeProto) -> Term | None:
        """u·Σ_f w' x_j g_i."""
        product = self.node(node.input[0], "Mul")
        if product is None or not self._axes(node, 2, -1):
            return None
        for directions, slope in self._both(product):
            summed = self.node(slope, "MatMul")
            if summed and (term := self._by_direction(summed, of_slopes=True)):
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
                if raised is not None and self.source(raised.input[0]) == "mask":
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
        return Filter(*product.input, bias, masked, is_slope="/slope" in product.name)

    def _gathered(self, name: str, axes: int) -> str | None:
        """The tensor whose rows are gathered for the neighbours, if it has so many axes."""
        node = self.node(name, "Gather")
        if node is None or node.input[1] != "neighbours" or node.input[0] in self.graph.constants:
            return None
        return node.input[0] if len(self._shape(node.input[0])) == axes else None

    def _axes(self, node: onnx.NodeProto, *wanted: int) -> bool:
        """Whether a node sums over one of these axes and does not keep it."""
        kept = any(a.name == "keepdims" and a.i for a in node.attribute)
        axes = node.input[1]
        return not kept and axes in self.graph.constants and self.graph.array(axes).tolist() in [[w] for w in wanted]

    def _shape(self, name: str) -> tuple[str | int, ...]:
        return self.graph.types[name].shape

    def _both(self, node: onnx.NodeProto) -> Iterable[tuple[str, str]]:
        """Operands of a node that does not mind their order, both ways."""
        left, right = node.input
        return (left, right), (right, left)


def _levels(graph: EditableGraph, terms: Mapping[str, Term]) -> Mapping[str, int]:
    """How many terms each tensor waits for, one after the other: those of one level wait for none of each other."""
    at = defaultdict[str, int](int)
    for node in graph.nodes:
        level = max((at[name] for name in node.input), default=0)
        for name in node.output:
            at[name] = level + (name in terms)
    return at


def _in_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes so that each comes after those that it reads from, and otherwise as they were."""
    made = {name for node in nodes for name in node.output if name}
    known, ordered, left = set[str](), list[onnx.NodeProto](), list(nodes)
    while left:
        later = []
        for node in left:
            if any(name in made and name not in known for name in node.input):
                later.append(node)
            else:
                ordered.append(node)
                known.update(node.output)
        if len(later) == len(left):
            raise ExportError(f"{later[0].name} waits for itself.")
        left = later
    return ordered


def _joined(terms: Sequence[Term], matcher: _Matcher) -> list[onnx.NodeProto]:
    """Nodes for the terms of one level; a sum over features whose partners are missing is left to the graph."""
    adjoints = [one for term in terms if term.kind == "distance" and (one := _adjoint(term, terms, matcher))]
    taken = {term.output for one in adjoints for term in one.terms}
    sums = [term for term in terms if term.kind == "forward" and term.output not in taken]
    nodes = [_adjoint_node(group) for group in _apart(adjoints, lambda one: one.distance, matcher)]
    return nodes + [_node(group) for group in _apart(sums, lambda one: one, matcher)]


def _adjoint(distance: Term, terms: Sequence[Term], matcher: _Matcher) -> Adjoint | None:
    """What belongs to a gradient by distances: the others of the same filter and gradient."""

    def of(kind: str) -> Term | None:
        for term in terms:
            same = (term.kind, term.part, term.filter.weight) == (kind, distance.part, distance.filter.weight)
            same = same and term.filter.masked == distance.filter.masked
            if same and matcher.source(term.own or term.gathered) == matcher.source(distance.own):
                return term
        return None

    if distance.part != "dipoles":
        return Adjoint(distance, None, of("forward"))
    direction = of("direction")
    if direction is None or direction.gathered != distance.gathered:
        return None
    return Adjoint(distance, direction, of("projected"))


One = TypeVar("One", Term, Adjoint)


def _apart(ones: Iterable[One], term_of: Callable[[One], Term], matcher: _Matcher) -> list[list[One]]:
    """Groups with the same radial functions and width, of which each has one of a part at most."""
    groups: dict[tuple[str, int, int], list[One]] = {}
    for one in ones:
        term = term_of(one)
        width = matcher.graph.constants[term.filter.weight].dims[1]
        number = 0
        while any(term_of(other).part == term.part for other in groups.get((term.filter.radial, width, number), ())):
            number += 1
        groups.setdefault((term.filter.radial, width, number), []).append(one)
    return list(groups.values())


def _node(terms: Sequence[Term]) -> onnx.NodeProto:
    """Sums over slots of what this many parts at most send."""
    of_part = {term.part: term for term in terms}
    inputs = [_one(term.filter.radial for term in terms), "neighbours", _one(t.directions for t in terms), "mask"]
    outputs, masked = [], []
    for part in PARTS:
        term = of_part.get(part)
        inputs += [term.filter.weight, term.filter.bias, term.gathered] if term else ["", "", ""]
        outputs.append(term.output if term else "")
        masked.append(bool(term and term.filter.masked))
    return _made(MESSAGES, inputs, outputs, masked)


def _adjoint_node(adjoints: Sequence[Adjoint]) -> onnx.NodeProto:
    """Gradients of these sums."""
    of_part = {one.distance.part: one for one in adjoints}
    every = [term for one in adjoints for term in one.terms]
    values = [term for term in every if term.kind != "distance"]
    inputs = [_one(term.filter.radial for term in values), _one(one.distance.filter.radial for one in adjoints)]
    inputs += ["neighbours", _one(term.directions for term in every), "mask"]
    outputs, masked = [], []
    for part in PARTS:
        if (one := of_part.get(part)) is None:
            inputs += ["", "", "", "", ""]
            outputs += ["", "", ""]
            masked.append(False)
            continue
        biases = _one(term.filter.bias for term in one.terms)
        gathered = one.by_x.gathered if one.by_x else ""
        inputs += [one.distance.filter.weight, biases, one.distance.gathered, one.distance.own, gathered]
        outputs += [term.output if term else "" for term in one]
        masked.append(one.distance.filter.masked)
    return _made(ADJOINT, inputs, outputs, masked)


def _made(operator: str, inputs: Sequence[str], outputs: Sequence[str], masked: Sequence[bool]) -> onnx.NodeProto:
    name = f"{operator}/{next(name for name in outputs if name)}"
    flags = [int(one) for one in masked]
    return helper.make_node(operator, inputs, outputs, name=name, domain=DOMAIN, masked=flags)


def _one(names: Iterable[str]) -> str:
    """The one name among these, beside empty ones."""
    found = {name for name in names if name}
    if len(found) > 1:
        raise ExportError(f"Messages of one interaction read {' and '.join(sorted(found))}, where one is foreseen.")
    return found.pop() if found else ""
