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

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple, TypeVar

import onnx
from onnx import helper

from painn_deploy.export.errors import ExportError
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.message_terms import PARTS, Matcher, Term

__all__ = ["ADJOINT", "DOMAIN", "MESSAGES", "messages_in_one_pass"]

DOMAIN, MESSAGES, ADJOINT = "painn_deploy", "Messages", "MessagesAdjoint"
"""Names of the nodes. They are made inside an engine, and no bundle holds one."""


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
    matcher = Matcher(graph)
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


def _levels(graph: EditableGraph, terms: Mapping[str, Term]) -> Mapping[str, int]:
    """How many terms each tensor waits for, one after the other: those of one level wait for none of each other."""
    at = defaultdict[str, int](int)
    for node in graph.nodes:
        level = max((at[name] for name in node.input), default=0)
        for name in node.output:
            at[name] = level + (name in terms)
    return at


def _in_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes so that each comes after those that it reads from."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    reads = {i: {maker[name] for name in node.input if name in maker} for i, node in enumerate(nodes)}
    return [nodes[i] for i in TopologicalSorter(reads).static_order()]


def _joined(terms: Sequence[Term], matcher: Matcher) -> list[onnx.NodeProto]:
    """Nodes for the terms of one level; gradients of dipoles of which one is missing are left to the graph.

    A node gives gradients by distances in one sum. So its parts are of one student, whose gradients end in one total.
    """
    adjoints = [one for term in terms if term.kind == "distance" and (one := _adjoint(term, terms, matcher))]
    taken = {term.output for one in adjoints for term in one.terms}
    sums = [term for term in terms if term.kind == "forward" and term.output not in taken]

    def read(term: Term) -> tuple[str, int]:
        return term.filter.radial, matcher.graph.constants[term.filter.weight].dims[1]

    def ends(one: Adjoint) -> Hashable:
        return read(one.distance), matcher.total(one.distance.output)

    nodes = [_adjoint_node(group, matcher) for group in _apart(adjoints, lambda one: one.distance, ends)]
    return nodes + [_node(group, matcher) for group in _apart(sums, lambda one: one, read)]


def _adjoint(distance: Term, terms: Sequence[Term], matcher: Matcher) -> Adjoint | None:
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
    direction, by_x = of("direction"), of("projected")
    if direction is None or direction.gathered != distance.gathered:
        return None
    return Adjoint(distance, direction, by_x if by_x is not None and by_x.filter == direction.filter else None)


One = TypeVar("One", Term, Adjoint)


def _apart(ones: Iterable[One], term_of: Callable[[One], Term], alike: Callable[[One], Hashable]) -> list[list[One]]:
    """Groups of those that are alike, of which each has one of a part at most."""
    groups, before = defaultdict[Hashable, list[One]](list), Counter[Hashable]()
    for one in ones:
        kind = alike(one)
        of_part = kind, term_of(one).part
        groups[kind, before[of_part]].append(one)
        before[of_part] += 1
    return list(groups.values())


def _node(terms: Sequence[Term], matcher: Matcher) -> onnx.NodeProto:
    """Sums over slots of what this many parts at most send."""
    of_part = {term.part: term for term in terms}
    inputs = [_one(term.filter.radial for term in terms), "neighbours", _one(t.directions for t in terms), "mask"]
    outputs, masked, first = [], [], []
    for part in PARTS:
        if (term := of_part.get(part)) is None:
            inputs += ["", "", ""]
            outputs.append("")
        else:
            x, column = matcher.columns_of(term.gathered)
            inputs += [term.filter.weight, term.filter.bias, x]
            outputs.append(term.output)
        masked.append(bool(term and term.filter.masked))
        first.append(column if term else 0)
    return _made(MESSAGES, inputs, outputs, masked, first)


def _adjoint_node(adjoints: Sequence[Adjoint], matcher: Matcher) -> onnx.NodeProto:
    """Gradients of these sums."""
    of_part = {one.distance.part: one for one in adjoints}
    every = [term for one in adjoints for term in one.terms]
    values = [term for term in every if term.kind != "distance"]
    inputs = [_one(term.filter.radial for term in values), _one(one.distance.filter.radial for one in adjoints)]
    inputs += ["neighbours", _one(term.directions for term in every), "mask"]
    outputs, masked, first = [], [], []
    for part in PARTS:
        if (one := of_part.get(part)) is None:
            inputs += ["", "", "", "", ""]
            outputs += ["", "", ""]
            masked.append(False)
            first.append(0)
            continue
        x, column = matcher.columns_of(one.distance.gathered)
        biases = _one(term.filter.bias for term in one.terms)
        gathered = one.by_x.gathered if one.by_x else ""
        inputs += [one.distance.filter.weight, biases, x, one.distance.own, gathered]
        outputs += [term.output if term else "" for term in one]
        masked.append(one.distance.filter.masked)
        first.append(column)
    return _made(ADJOINT, inputs, outputs, masked, first)


def _made(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], masked: Sequence[bool], first: Sequence[int]
) -> onnx.NodeProto:
    """A node whose attributes say of each part whether it is masked, and in which column of x it begins."""
    name, flags = f"{operator}/{next(name for name in outputs if name)}", [int(one) for one in masked]
    return helper.make_node(operator, inputs, outputs, name=name, domain=DOMAIN, masked=flags, first=list(first))


def _one(names: Iterable[str]) -> str:
    """The one name among these, beside empty ones."""
    found = {name for name in names if name}
    if len(found) > 1:
        raise ExportError(f"Messages of one interaction read {' and '.join(sorted(found))}, where one is foreseen.")
    return found.pop() if found else ""
