"""Messages in one pass: the kernels are the sums over neighbours and their gradients, interpreted on a CPU; the graph
that holds them is the student; and they become machine code."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ase.build import bulk
from torch import Tensor

from painn_deploy.engines.forms import Form, plans_for
from painn_deploy.engines.inductor.onnx_torch import OnnxModule
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.export import load_student
from painn_deploy.export.errors import EngineError, EngineUnavailableError
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.half import rounded, to_half
from painn_deploy.export.graph.message_terms import PARTS
from painn_deploy.export.graph.messages import ADJOINT, DOMAIN, MESSAGES, messages_in_one_pass
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.model.aggregation import PLAIN
from painn_deploy.export.model.committee import Committee
from painn_deploy.export.model.force_head import explicit_forces, tensors
from painn_deploy.runtime.matrix import graph_inputs
from tests import students
from tests.engines.messages import interpreted
from tests.heads import graph_of

pytest.importorskip("triton", reason="Triton is for Linux on x86-64 alone")

ZOO = students.zoo()
CUTOFF = students.CONFIGURATION["cutoff"]
TILE = 16
"""Slots."""

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def there() -> Iterator[Call]:
    """Calls a function where kernels are interpreted."""
    with interpreted.process() as call:
        yield call


class Case:
    """Random sums over the neighbours of two structures, in float64.

    Args:
        columns: radial functions.
        features: of an atom.
        biased: whether filters have a bias, and are masked.
        bare: whether dipoles are without x.
    """

    def __init__(self, columns: int, features: int, *, biased: bool = False, bare: bool = False) -> None:
        g = torch.Generator().manual_seed(columns + features)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        structures = [ZOO["ethanol"], students.perturbed(bulk("Si", a=4.0, cubic=True))]
        graph = tensors(graph_inputs(structures, CUTOFF, np.float64), torch.float64)
        self.mask, self.neighbours = graph.mask, graph.neighbours
        self.distances, self.directions = PLAIN.geometry(graph.displacements, graph.mask, 0.0)
        atoms = len(self.mask)
        self.centres = torch.linspace(0, CUTOFF, columns, dtype=torch.float64)
        self.weights = [random(columns, features) for _ in PARTS]
        self.biases = [random(features) for _ in PARTS] if biased else [None] * 3
        self.x = [random(atoms, features), random(atoms, features), random(atoms, 3, features)]
        self.gradients = [random(atoms, features), random(atoms, 3, features), random(atoms, 3, features)]
        self.bare = bare

    def radial(self, distances: Tensor) -> Tensor:
        """Gaussians, 0 where the mask is unless filters are masked; [atoms, slots, columns]."""
        gaussians = torch.exp(-((distances.unsqueeze(-1) - self.centres) ** 2))
        return gaussians if self.masked else gaussians * self.mask.unsqueeze(-1)

    @property
    def masked(self) -> bool:
        """Whether filters are multiplied by the mask."""
        return self.biases[0] is not None

    def sums(self, distances: Tensor, directions: Tensor, x: list[Tensor]) -> list[Tensor]:
        """What `painn_deploy.export.model.aggregation` sums."""
        filters = [self.radial(distances) @ weight for weight in self.weights]
        if self.masked:
            mask = self.mask.unsqueeze(-1)
            filters = [(w + bias) * mask for w, bias in zip(filters, self.biases, strict=True)]
        dipoles = PLAIN.directed(directions, filters[1])
        if not self.bare:
            dipoles = PLAIN.dipoles(directions, filters[1], x[1], self.neighbours)
        return [
            PLAIN.scalars(filters[0], x[0], self.neighbours),
            dipoles,
            PLAIN.vectors(filters[2], x[2], self.neighbours),
        ]

    def slopes(self) -> Tensor:
        """Derivatives of the radial functions by the distance."""
        return torch.func.jvp(self.radial, (self.distances,), (torch.ones_like(self.distances),))[1]

    @property
    def gathered(self) -> list[Tensor | None]:
        """What is gathered of each part."""
        return [self.x[0], None if self.bare else self.x[1], self.x[2]]


def single(*given: Tensor | None) -> list[np.ndarray | None]:
    """Arrays of what is given, in float32."""
    arrays = [None if one is None else one.numpy() for one in given]
    return [a.astype(np.float32) if a is not None and a.dtype == np.float64 else a for a in arrays]


def close(got: np.ndarray | None, want: Tensor) -> None:
    assert got is not None
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=3e-6 * max(1.0, float(want.abs().max())))


CASES = {
    "one tile": (8, 32, {}),
    "columns and features that fill no tile": (21, 40, {}),
    "fewer features than a tile": (24, 5, {}),
    "biases, and a mask": (20, 36, {"biased": True}),
    "dipoles without x": (16, 33, {"bare": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_the_sums_and_their_gradients(there: Call, name: str) -> None:
    columns, features, said = CASES[name]
    case = Case(columns, features, **said)
    assert case.mask.shape[1] > TILE, "more than one tile"
    flags, radial, slope = [int(case.masked)] * 3, case.radial(case.distances), case.slopes()

    variables = [one.clone().requires_grad_() for one in (case.distances, case.directions, *case.x)]
    want = case.sums(variables[0], variables[1], variables[2:])
    total = sum((one * gradient).sum() for one, gradient in zip(want, case.gradients, strict=True))
    by_distance, by_direction, *by_x = torch.autograd.grad(total, variables, allow_unused=True)

    inputs = [radial, case.neighbours, case.directions, case.mask]
    for part in range(3):
        inputs += [case.weights[part], case.biases[part], case.gathered[part]]
    for got, exact in zip(there(interpreted.sums, single(*inputs), flags), want, strict=True):
        close(got, exact.detach())

    inputs = [radial, slope, case.neighbours, case.directions, case.mask]
    for part, gradient in enumerate(case.gradients):
        wanted = gradient if case.gathered[part] is not None else None
        inputs += [case.weights[part], case.biases[part], case.gathered[part], gradient, wanted]
    found = there(interpreted.gradients, single(*inputs), flags)
    close(found[0] + found[3] + found[6], by_distance)
    close(found[4], by_direction)
    assert [found[1], found[7]] == [None, None]
    for part, of_x in enumerate(by_x):
        if case.gathered[part] is None:
            assert found[3 * part + 2] is None
        else:
            close(found[3 * part + 2], of_x)


def in_tf32(x: Tensor) -> Tensor:
    """The nearest number of ten bits behind the point, of two the larger."""
    bits = x.float().numpy().view(np.int32) + 0x1000
    return torch.from_numpy((bits >> 13 << 13).view(np.float32)).double()


def test_tf32_rounds_to_the_nearest(there: Call) -> None:
    """A tensor core drops digits, so that all products would be too small; for that it may not be given any."""
    case, precision = Case(21, 40, biased=True), "tf32"
    inputs = [case.radial(case.distances), case.neighbours, case.directions, case.mask]
    for part in range(3):
        inputs += [case.weights[part], case.biases[part], case.gathered[part]]
    got = there(interpreted.sums, single(*inputs), [1, 1, 1], precision=precision)
    exact = case.sums(case.distances, case.directions, case.x)
    radial, case.weights = in_tf32(case.radial(case.distances)), [in_tf32(weight) for weight in case.weights]
    case.radial = lambda _: radial  # type: ignore[method-assign]
    for found, want, other in zip(got, case.sums(case.distances, case.directions, case.x), exact, strict=True):
        close(found, want)
        assert np.abs(found - other.numpy()).max() > 1e-4


def test_a_gradient_may_be_gathered_for_two(there: Call) -> None:
    case = Case(24, 32)
    case.gradients[1] = case.gradients[2]
    inputs = [case.radial(case.distances), case.slopes(), case.neighbours, case.directions, case.mask]
    for part, gradient in enumerate(case.gradients):
        inputs += [case.weights[part], None, case.gathered[part], gradient, gradient]
    once = there(interpreted.gradients, single(*inputs), [0, 0, 0], same=(14, 19))
    twice = there(interpreted.gradients, single(*inputs), [0, 0, 0])
    assert [one is None for one in once] == [one is None for one in twice]
    assert all(np.array_equal(a, b) for a, b in zip(once, twice, strict=True) if a is not None)


@pytest.mark.parametrize("present", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_a_part_that_is_not_there_changes_no_other(there: Call, present: tuple[int, ...]) -> None:
    """And x may be some columns of a wider tensor."""
    case = Case(24, 32)
    variables = [one.clone().requires_grad_() for one in (case.distances, case.directions, *case.x)]
    want = case.sums(variables[0], variables[1], variables[2:])
    total = sum((want[part] * case.gradients[part]).sum() for part in present)
    by_distance, by_direction, *by_x = torch.autograd.grad(total, variables, allow_unused=True)
    radial, first = case.radial(case.distances), [5, 3, 0]
    wide = [torch.cat([torch.ones(len(x), f), x, x[:, :7]], 1) if f else x for x, f in zip(case.x, first, strict=True)]

    inputs = [radial, case.neighbours, case.directions, case.mask]
    for part in range(3):
        inputs += [case.weights[part], None, wide[part]] if part in present else [None] * 3
    for part, got in enumerate(there(interpreted.sums, single(*inputs), [0, 0, 0], first)):
        if part in present:
            close(got, want[part].detach())
        else:
            assert got is None

    inputs = [radial, case.slopes(), case.neighbours, case.directions, case.mask]
    for part, gradient in enumerate(case.gradients):
        inputs += [case.weights[part], None, wide[part], gradient, gradient] if part in present else [None] * 5
    found = there(interpreted.gradients, single(*inputs), [0, 0, 0], first)
    close(sum(found[3 * part] for part in present), by_distance)
    for part in range(3):
        assert (found[3 * part + 2] is not None) == (part in present)
        if part in present:
            close(found[3 * part + 2], by_x[part])
    if 1 in present:
        close(found[4], by_direction)


def arrays_of(inputs: GraphInputs, form: str) -> Sequence[np.ndarray]:
    atoms, slots = inputs.mask.shape
    return (*inputs, *(pair_inputs(inputs.reverse, atoms * slots // 2 + 1) if Form.parse(form).paired else ()))


def evaluated(there: Call, model: onnx.ModelProto, form: str, inputs: GraphInputs) -> list[np.ndarray]:
    found: list[np.ndarray] = there(interpreted.evaluate, model.SerializeToString(), form, arrays_of(inputs, form))
    return found


def gathered(model: onnx.ModelProto, form: str, features: int) -> list[str]:
    """What a graph in a form still gathers of the neighbours' features."""
    types = EditableGraph(model).types
    nodes = [node for node in Form.parse(form).lowered(model).graph.node if "neighbours" in node.input]
    return [n.input[0] for n in nodes if n.op_type == "Gather" and types[n.input[0]].shape[-1] == features]


Change = Callable[[Any], Any]


def check_student(there: Call, path: Path, form: str, change: Change = lambda student: student) -> None:
    """Energies, forces and virials of a form are those of the student in float64, molecules and periodic alike."""
    exact, student = change(load_student(path, dtype=torch.float64)), change(load_student(path))
    model = export_onnx(student, {})
    assert not gathered(model, form, student.configuration.hidden_dim), "all messages are found"
    for name in ("ethanol", "slab", "single atom"):
        found = evaluated(there, model, form, graph_inputs([ZOO[name]], CUTOFF))
        own = evaluated(there, model, "plain", graph_inputs([ZOO[name]], CUTOFF))
        for got, mine, want in zip(found, own, explicit_forces(exact, graph_of(ZOO[name])), strict=False):
            scale = max(1.0, float(want.abs().max()))
            allowed = max(1e-5 * scale, 2 * float(np.abs(mine - want.numpy()).max()))
            np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=allowed)


@pytest.mark.parametrize("form", ["messages", "sums+messages+paired+side+dots"])
def test_a_graph_with_them_is_the_student(there: Call, checkpoint: Path, form: str) -> None:
    check_student(there, checkpoint, form)


@pytest.mark.parametrize(
    "name",
    [
        "a basis an interaction",
        "a basis an interaction, and shared filters",
        "vectors mixed with a bias",
        "repulsion",
        "one interaction",
        "all at once",
    ],
)
def test_a_graph_with_them_is_any_painn(there: Call, tmp_path: Path, name: str) -> None:
    check_student(there, students.write_variant(tmp_path, name), "sums+messages")


def test_a_graph_with_them_is_a_student_with_a_radial_table(there: Call, checkpoint: Path) -> None:
    check_student(there, checkpoint, "sums+messages", lambda student: student.with_radial_table(8, 256))


@pytest.mark.parametrize("kind", ["painn", "distiller"])
def test_half_operands_cost_no_more_than_halves_everywhere(there: Call, tmp_path: Path, kind: str) -> None:
    exact = export_onnx(load_student(students.write(tmp_path, kind)), {})
    inputs = graph_inputs([students.water(0), ZOO["ethanol"]], CUTOFF)
    want, worst = (evaluated(there, model, "plain", inputs) for model in (exact, rounded(exact)))
    found = evaluated(there, to_half(exact), "sums+messages", inputs)
    for got, halves, exactly in zip(found, worst, want, strict=True):
        error = np.sqrt(np.mean((got - exactly) ** 2))
        assert 0 < error < 1.5 * np.sqrt(np.mean((halves - exactly) ** 2))


@pytest.mark.parametrize("name", ["student:base", "distiller/original", "schnetpack/painn_128x3"])
def test_forces_of_a_trained_student_are_as_good_as_float32_can_give_them(
    request: pytest.FixtureRequest, there: Call, name: str
) -> None:
    path: Any = name
    if ":" not in name:
        path = request.getfixturevalue("references") / f"{name}.safetensors"
    student, atoms = load_student(path), ZOO["ethanol"]
    cutoff, form = student.configuration.cutoff, "sums+messages+paired"
    exact = tensors(graph_inputs([atoms], cutoff, np.float64), torch.float64)
    want = explicit_forces(load_student(path, dtype=torch.float64), exact)
    found = evaluated(there, export_onnx(student, {}), form, graph_inputs([atoms], cutoff))
    assert np.abs(found[1] - want.forces.numpy()).max() < 1e-5, "eV/Å"


def test_results_are_the_same_beside_others(there: Call, painn: Path) -> None:
    model, waters = export_onnx(load_student(painn), {}), [students.water(seed) for seed in range(3)]
    first = evaluated(there, model, "sums+messages", graph_inputs(waters, CUTOFF, slot_step=8))
    for index, atoms in enumerate(waters):
        alone = evaluated(there, model, "sums+messages", graph_inputs([atoms], CUTOFF, slot_step=8))
        for got, want in zip(alone, first, strict=True):  # sums of atoms are torch's here, and not those of a kernel
            rows = want[3 * index : 3 * index + 3]
            np.testing.assert_allclose(got, rows, rtol=0, atol=1e-6 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["painn", "distiller"])
def test_no_tensor_of_the_size_of_filters_is_written(tmp_path: Path, kind: str, half: bool) -> None:
    """But for a radial network's hidden layers, of which the last is what a filter is a product of."""
    features, layers = 40, 3
    student = load_student(students.write(tmp_path, kind, hidden_dim=features, num_interactions=layers))
    model = export_onnx(student, {})
    graph = EditableGraph(to_half(model) if half else model)
    types = graph.types
    assert messages_in_one_pass(graph)
    made = [node.op_type for node in graph.nodes if node.domain == DOMAIN]
    assert made.count(ADJOINT) == layers
    apart = 0 if kind == "painn" else layers - 1
    assert made.count(MESSAGES) == layers + apart, "a radial network has dipoles of its own, which wait for nothing"
    left = [name for node in graph.nodes if not node.domain for name in node.output]
    assert not gathered(to_half(model) if half else model, "messages", features)
    widths = {types[name].shape[2:] for name in left if types[name].shape[1:2] == ("slots",)}
    assert (3, features) not in widths
    assert ((features,) in widths) == (kind == "distiller")


def test_students_of_a_committee_are_told_apart(there: Call, tmp_path: Path) -> None:
    """They share radial functions; and what is found may not depend on the order in which nodes stand."""
    members = [load_student(students.write(tmp_path, "painn", seed=seed)) for seed in range(2)]
    model = export_onnx(Committee(members, ["a", "b"]), {})
    inputs = graph_inputs([ZOO["ethanol"]], CUTOFF)
    want = evaluated(there, model, "plain", inputs)
    rng = np.random.default_rng(0)
    for _ in range(3):
        shuffled = onnx.ModelProto()
        shuffled.CopyFrom(model)
        del shuffled.graph.node[:]
        shuffled.graph.node.extend(in_any_order(model, rng))
        for got, exact in zip(evaluated(there, shuffled, "messages", inputs), want, strict=True):
            np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5 * max(1.0, np.abs(exact).max()))


def in_any_order(model: onnx.ModelProto, rng: np.random.Generator) -> list[onnx.NodeProto]:
    """Nodes of a graph in a random order, each after those that it reads from."""
    left, known = list(model.graph.node), {v.name for v in (*model.graph.input, *model.graph.initializer)}
    ordered = []
    while left:
        ready = [i for i, node in enumerate(left) if known.issuperset(node.input)]
        ordered.append(left.pop(rng.choice(ready)))
        known.update(ordered[-1].output)
    return ordered


@pytest.mark.parametrize("kind", ["painn", "distiller"])
def test_a_program_of_any_size_holds_them(tmp_path: Path, kind: str) -> None:
    model, form = export_onnx(load_student(students.write(tmp_path, kind)), {}), Form.parse("sums+messages+split@9,8")
    with interpreted.process(interprets=False) as call:
        program, without = (call(interpreted.trace, model.SerializeToString(), one) for one in (str(form), "sums@9,8"))
    nodes = [node for node in form.lowered(model).graph.node if node.domain == DOMAIN]
    assert program.precisions == ["tf32x3"] * len(nodes)
    assert not without.precisions
    assert program.elements <= without.elements


def test_they_are_machine_code_that_works_in_registers() -> None:
    capabilities = ["80", "86", "89", "90", "100", "120"]
    asked = [sys.executable, "-m", "tests.engines.messages.machine_code", *capabilities]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 2 * 4 * (len(capabilities) + 1)
    for kernel, takes in found.items():
        # some of hundreds of numbers, where operands are rounded or split, or of a network as wide as features
        allowed = 48 if "tf32" in kernel or "distiller" in kernel else 0
        assert takes["spilled"] <= allowed, f"{kernel} keeps {takes['spilled']} bytes of a thread in memory"


def test_how_products_inside_are_computed_is_said_by_the_form() -> None:
    assert Form.parse("messages").products_in_kernels() == "ieee"
    assert Form.parse("messages+split").products_in_kernels() == "tf32x3"
    assert Form.parse("messages+split").products_in_kernels(tf32=True) == "tf32"


def test_without_triton_it_is_said_what_to_do(painn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Form.parse("messages").lowered(export_onnx(load_student(painn), {}))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setitem(sys.modules, "triton.runtime", None)
    with pytest.raises(EngineUnavailableError, match="Triton, which is missing here: pip install triton, or take a"):
        OnnxModule(model)


def test_they_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(EngineUnavailableError, match="is for a GPU: its messages are kernels of Triton"):
        plans_for("cpu", "sums+messages")
    with pytest.raises(EngineError, match="'split' is about the products inside of 'messages'"):
        Form.parse("sums+split")
    value = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["atoms", "slots"])
    bare = onnx.helper.make_model(onnx.helper.make_graph([], "none", [value], [value]))
    with pytest.raises(EngineError, match="holds none that are known: take another"):
        Form.parse("messages").lowered(bare)
