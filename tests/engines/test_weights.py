"""The graph's input `weights`: what each atomic energy is multiplied by before it is differentiated.

What it must give is made here from energies in float64 and plain autograd, without the force head that it is held
against.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import BuildOptions
from painn_deploy.engines.contract import check_inputs, padded
from painn_deploy.engines.inductor.onnx_torch import OnnxModule
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export import load_student
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.errors import ExportError, ShapeError
from painn_deploy.export.fields import INPUTS, GraphInputs, inputs_of, outputs_of
from painn_deploy.export.graph.half import rounded, to_half
from painn_deploy.export.graph.int8 import BY_ROW, candidates, to_int8
from painn_deploy.export.graph.onnx_graph import check_contract, export_onnx
from painn_deploy.export.manifest import FORMAT_VERSION, MANIFEST, MODEL, manifest_digest
from painn_deploy.export.model.aggregation import PLAIN
from painn_deploy.export.model.committee import Committee
from painn_deploy.export.model.force_head import tensors
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.pairs.boxes import boxes_of
from painn_deploy.runtime.verlet import VerletList
from painn_deploy.scripts.profiling.of_onnxruntime import open_plain
from tests import students

from .emulated_gpu import EmulatedCuda
from .test_gpu_session import ENGINES, Opened, of_sizes, side_by_side

FILES = Path(__file__).parent / "files"
CUTOFF = 4.0
FP32 = 2e-5
"""eV/Å, and eV of virials: between a graph in float32 and float64."""

STUDENTS = ("painn", "distiller", "committee", "features", "table")
every_student = pytest.mark.parametrize("name", STUDENTS)
every_engine = pytest.mark.parametrize("engine", ENGINES)
others = pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "fused"])
"""Those that a device searches neighbours for, and of which there are bundles of earlier formats."""

Run = Callable[[GraphInputs], Sequence[np.ndarray]]


def structures() -> list[Atoms]:
    """A molecule, a crystal whose atoms are their own neighbours' images, and an atom alone."""
    zoo = students.zoo()
    return [zoo["ethanol"], zoo["triclinic"], zoo["single atom"]]


def ethanols(count: int = 1) -> list[Atoms]:
    return [students.perturbed(molecule("CH3CH2OH"), seed) for seed in range(count)]


def weights_of(kind: str, atoms: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return {
        "owned": rng.integers(0, 2, atoms).astype(float),
        "fractional": rng.uniform(0, 1, atoms).round(3),
        "ones": np.ones(atoms),
        "none": np.zeros(atoms),
        "halves": np.full(atoms, 0.5),
    }[kind]


def weighted(inputs: GraphInputs, weights: np.ndarray) -> GraphInputs:
    return inputs._replace(weights=weights.astype(inputs.weights.dtype))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, torch.dtype], Student]:
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def load(name: str, dtype: torch.dtype) -> Student:
        kind = name if name == "distiller" else "painn"
        student: Student = load_student(students.write(folder, kind), dtype=dtype)
        if name == "committee":
            (other := folder / "other").mkdir(exist_ok=True)
            second = load_student(students.write(other, "painn", seed=1), dtype=dtype)
            return Committee([student, second], ["a", "b"]).eval()
        if name == "table":  # it is made in float64, and is the same student in both types
            exact = load_student(folder / "painn.safetensors", dtype=torch.float64)
            return exact.with_radial_table(16, 128).to(dtype).requires_grad_(False)
        student.gives_features = name == "features"
        return student

    return load


@pytest.fixture(scope="module")
def graphs(loaded: Callable[[str, torch.dtype], Student]) -> Callable[[str, str], onnx.ModelProto]:
    """The graph of a student in a precision; `fp16` as it is at worst."""

    @cache
    def graph(name: str, precision: str) -> onnx.ModelProto:
        if precision == "fp64":
            return export_onnx(loaded(name, torch.float64), {}, "fp64")
        model = export_onnx(loaded(name, torch.float32), {})
        if precision == "int8":
            return to_int8(model, {product.name: BY_ROW for product in candidates(model)})
        return rounded(model) if precision == "fp16" else model

    return graph


def names_of(student: Student) -> list[str]:
    return [field.name for field in outputs_of(student.axes)]


def exact(student: Student, inputs: GraphInputs, weights: np.ndarray) -> dict[str, np.ndarray]:
    """What a graph must give, by autograd of the sum of weights times energies.

    Args:
        student: in float64.
        inputs: in float64.
        weights: of the atoms; those among the inputs are spoilt first, so that nothing else reads them.
    """
    graph = tensors(inputs._replace(weights=np.full_like(inputs.weights, np.nan)), torch.float64)
    factors = torch.as_tensor(weights)
    energies, gradients, forces = [], [], []
    for member in student.members:
        vectors = graph.displacements.detach().requires_grad_()
        moves = torch.zeros(len(weights), 3, dtype=torch.float64, requires_grad=True)
        moved = vectors + (moves[graph.neighbours] - moves[:, None]) * graph.mask[..., None]
        energy = member(graph._replace(displacements=moved), PLAIN) * factors
        gradient, slope = torch.autograd.grad(energy.sum(), (vectors, moves))
        energies.append(energy.detach())
        gradients.append(gradient)
        forces.append(-slope)
    gradient, force = torch.stack(gradients).mean(0), torch.stack(forces)
    found = {
        "atomic_energies": torch.stack(energies).mean(0),
        "forces": force.mean(0),
        "virials": torch.einsum("akx,aky->axy", gradient, graph.displacements),
    }
    if "members" in student.axes:
        found |= {"member_energies": torch.stack(energies, -1), "forces_uncertainty": force.std(0).norm(dim=-1)}
    return {key: value.numpy() for key, value in found.items()}


def check(outputs: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
    for key, value in want.items():
        np.testing.assert_allclose(outputs[key], value, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("kind", ["owned", "fractional", "ones", "none"])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@every_student
def test_a_graph_gives_energies_forces_and_virials_of_the_weighted_energy(
    loaded: Any, graphs: Any, name: str, precision: str, kind: str
) -> None:
    student = loaded(name, torch.float64)
    inputs = graph_inputs(structures(), CUTOFF, np.float64)
    weights = weights_of(kind, len(inputs.mask))
    want, names = exact(student, inputs, weights), names_of(student)
    if precision == "fp32":
        inputs = graph_inputs(structures(), CUTOFF)
    inputs = weighted(inputs, weights)
    found = dict(zip(names, open_graph(graphs(name, precision).SerializeToString(), names)(inputs), strict=True))
    check(found, want, FP32 if precision == "fp32" else 1e-9)


@pytest.mark.parametrize("kind", ["owned", "fractional"])
@every_student
def test_a_graph_gives_the_same_in_torch_in_every_form(loaded: Any, graphs: Any, name: str, kind: str) -> None:
    from painn_deploy.engines.forms import Form
    from painn_deploy.engines.inductor.pairs import pair_inputs

    student, inputs = loaded(name, torch.float64), graph_inputs(structures(), CUTOFF)
    weights = weights_of(kind, len(inputs.mask))
    want = exact(student, graph_inputs(structures(), CUTOFF, np.float64), weights)
    inputs = weighted(inputs, weights)
    for text in ("plain", "sums+paired+side", "products+paired", "sums+dots"):
        form = Form.parse(text)
        module = OnnxModule(form.lowered(graphs(name, "fp32")))
        arrays = (*inputs, *(pair_inputs(inputs.reverse) if form.paired else ()))
        outputs = module(*(torch.as_tensor(array) for array in arrays))
        found = dict(zip(names_of(student), (output.numpy() for output in outputs), strict=True))
        check(found, want, FP32)


def two_and_a_crystal(precision: str) -> GraphInputs:
    """Two ethanols and a crystal, in the type of a precision."""
    frames = [*ethanols(2), students.zoo()["triclinic"]]
    return graph_inputs(frames, CUTOFF, np.float64 if precision == "fp64" else np.float32)


LINEAR = {"fp64": 1e-14, "fp32": 1e-6, "fp16": 1e-3, "int8": 2e-2}
"""Of the forces' root mean square. What is rounded to half or to eight bits is rounded anew for each weight."""


@pytest.mark.parametrize("precision", LINEAR)
@every_student
def test_results_for_weights_and_for_what_is_left_of_them_add_up(
    loaded: Any, graphs: Any, name: str, precision: str
) -> None:
    inputs, names = two_and_a_crystal(precision), names_of(loaded(name, torch.float32))
    run, atoms = open_graph(graphs(name, precision).SerializeToString(), names), len(inputs.mask)

    def found(weights: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, run(weighted(inputs, weights)), strict=True))

    whole = found(np.ones(atoms))
    for kind in ("owned", "fractional"):
        weights = weights_of(kind, atoms)
        one, rest = found(weights), found(1 - weights)
        for key in ("forces", "virials"):
            size = np.sqrt((whole[key] ** 2).mean())
            assert np.sqrt(((one[key] + rest[key] - whole[key]) ** 2).mean()) < LINEAR[precision] * size, (key, kind)
        if name != "committee":  # no rounding but of the product itself, in any precision
            factors = weights.astype(inputs.weights.dtype)
            np.testing.assert_array_equal(one["atomic_energies"], whole["atomic_energies"] * factors)
        else:
            np.testing.assert_array_equal(
                one["member_energies"], whole["member_energies"] * weights.astype(inputs.weights.dtype)[:, None]
            )
        if name == "features":  # what an atom is like does not depend on who counts it
            np.testing.assert_array_equal(one["features"], whole["features"])


@pytest.mark.parametrize("precision", LINEAR)
@every_student
def test_what_is_not_counted_gives_zeros_and_leaves_the_rest_as_it_was_to_the_bit(
    graphs: Any, name: str, precision: str
) -> None:
    """INT8 divides by the largest of a row, and rows of atoms that do not count are zero on the way back."""
    inputs = two_and_a_crystal(precision)
    run, atoms = open_graph(graphs(name, precision).SerializeToString()), len(inputs.mask)
    weights = np.zeros(atoms)
    for array in run(weighted(inputs, weights)):
        assert (array == 0).all()
    weights[:9] = 1.0  # the first ethanol
    for one, whole in zip(run(weighted(inputs, weights)), run(inputs), strict=True):
        np.testing.assert_array_equal(one[:9], whole[:9])
        assert (one[9:] == 0).all()


@pytest.mark.parametrize("precision", LINEAR)
@every_student
def test_half_of_every_weight_is_half_of_everything(graphs: Any, name: str, precision: str) -> None:
    inputs = two_and_a_crystal(precision)
    run = open_graph(graphs(name, precision).SerializeToString())
    halves = run(weighted(inputs, weights_of("halves", len(inputs.mask))))
    for key, half, whole in zip(("energies", "forces", "virials"), halves, run(inputs), strict=True):
        if precision == "fp16" and key != "energies":  # the smallest numbers of half lose a bit
            np.testing.assert_allclose(2 * half, whole, rtol=0, atol=2e-5)
        else:
            np.testing.assert_array_equal(2 * half, whole)


def test_the_typed_graph_in_half_is_as_good_as_the_simulated_one(graphs: Any) -> None:
    model = to_half(graphs("painn", "fp32"))
    check_contract(model)
    inputs = weighted(two_and_a_crystal("fp16"), weights_of("fractional", 20))
    runs = [open_graph(each.SerializeToString()) for each in (model, graphs("painn", "fp16"), graphs("painn", "fp32"))]
    typed, simulated, want = (run(inputs)[1] for run in runs)
    assert np.abs(typed - want).max() < 2 * np.abs(simulated - want).max()


def test_a_contract_without_weights_is_none_of_a_new_graph(graphs: Any) -> None:
    old = onnx.load_from_string(students.without_weights(graphs("painn", "fp32").SerializeToString()))
    with pytest.raises(ExportError, match=r"its inputs are .*, not .*'weights'"):
        check_contract(old)
    assert [field.name for field in inputs_of(FORMAT_VERSION)] == [field.name for field in INPUTS]
    for before in (1, 2):
        assert [field.name for field in inputs_of(before)] == [value.name for value in old.graph.input]


def test_weights_are_checked_and_padded_like_the_other_inputs() -> None:
    inputs = graph_inputs([students.water()], CUTOFF)
    for wrong in (inputs.weights.astype(np.float64), np.ones(4, np.float32), np.ones(6, np.float32)[::2]):
        with pytest.raises(ShapeError, match=r"input weights is .*reads a contiguous float32 array \[atoms\]"):
            check_inputs(inputs._replace(weights=wrong))
    check_inputs(graph_inputs([students.water()], CUTOFF, np.float64), "fp64")
    larger = padded(weighted(inputs, np.array([0.0, 0.5, 1.0])), 5, 4)
    assert larger.weights.tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    check_inputs(larger)


# Engines


def test_a_compiled_engine_gives_what_the_graph_gives(compiled: Path, painn: Path) -> None:
    student = load_student(painn, dtype=torch.float64)
    with PaiNNCalculator(compiled) as calculator:
        for frames in ([students.water()], structures(), ethanols(40)):  # of both packages
            inputs = graph_inputs(frames, CUTOFF)
            for kind in ("owned", "fractional", "none"):
                weights = weights_of(kind, len(inputs.mask))
                outputs = calculator.run_graph(weighted(inputs, weights))
                want = exact(student, graph_inputs(frames, CUTOFF, np.float64), weights)
                check(outputs._asdict(), want, FP32)


@pytest.fixture(scope="module")
def model(painn: Path) -> bytes:
    return export_onnx(load_student(painn), {}).SerializeToString()


def alike(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * max(1.0, np.abs(other).max()))


@every_engine
def test_a_gpu_is_given_the_weights_of_each_call(cuda: EmulatedCuda, model: bytes, painn: Path, engine: str) -> None:
    run = open_graph(model)
    graph = graph_inputs(ethanols(2), CUTOFF)
    calls = [weighted(graph, weights_of(kind, 18)) for kind in ("owned", "ones", "fractional", "none", "ones", "owned")]
    with Opened(cuda, model, load_student(painn))(engine) as session:
        for inputs in calls:  # launched, recorded and replayed
            alike(session.run(inputs), run(inputs))
        for got, inputs in zip(session.run_many(calls), calls, strict=True):
            alike(got, run(inputs))
        assert session.device_time(calls[0], calls=3).launched > 0


def resident_of(atoms: Atoms, weights: np.ndarray) -> Any:
    found = VerletList(CUTOFF, 0.5).resident(atoms, None)
    assert (found.weights == 1).all()
    return replace(found, weights=weights.astype(np.float32))


@every_engine
def test_a_followed_structure_keeps_its_weights(cuda: EmulatedCuda, model: bytes, painn: Path, engine: str) -> None:
    run = open_graph(model)
    with Opened(cuda, model, load_student(painn))(engine) as session:
        for name, kind in (("ethanol", "owned"), ("triclinic", "fractional"), ("ethanol", "ones")):
            atoms = students.zoo()[name]
            weights = weights_of(kind, len(atoms))
            session.follow(resident_of(atoms, weights))
            for seed in range(4):
                moved = students.perturbed(atoms, seed, 0.02)
                alike(session.step(moved.positions), run(weighted(graph_inputs([moved], CUTOFF), weights)))


@others
def test_where_a_device_makes_the_inputs_every_weight_is_one(cuda: EmulatedCuda, model: bytes, engine: str) -> None:
    """Also after a call with others, whose place on the device these take."""
    run, atoms, molecules = open_graph(model), students.zoo()["triclinic"], of_sizes([3, 9, 5], 0)
    other = weighted(graph_inputs(ethanols(2), CUTOFF), np.zeros(18))
    want = run(graph_inputs(molecules, CUTOFF))
    with Opened(cuda, model)(engine) as session:
        for _ in range(3):
            session.run(other)
            session.search(boxes_of(atoms, CUTOFF, CUTOFF + 0.5), lambda atoms, slots: None)
            by_atom = session.step(atoms.positions)
            alike(by_atom, run(graph_inputs([atoms], CUTOFF)))
            session.run(other)
            alike(session.run_molecules(*side_by_side(molecules), CUTOFF).outputs, want)


@others
def test_a_device_that_searches_is_given_the_weights(cuda: EmulatedCuda, model: bytes, engine: str) -> None:
    run, atoms = open_graph(model), students.zoo()["triclinic"].repeat((2, 2, 1))
    with Opened(cuda, model)(engine) as session:
        for kind in ("owned", "fractional", "ones", "owned"):
            weights = weights_of(kind, len(atoms)).astype(np.float32)
            session.search(boxes_of(atoms, CUTOFF, CUTOFF + 0.5, weights), lambda atoms, slots: None)
            want = run(weighted(graph_inputs([atoms], CUTOFF), weights))
            for _ in range(3):  # launched, recorded and replayed
                alike(session.step(atoms.positions), want)


@others
def test_a_search_uploads_weights_beside_atomic_numbers(cuda: EmulatedCuda, model: bytes, engine: str) -> None:
    boxes, moved = boxes_of(students.zoo()["triclinic"], CUTOFF, CUTOFF + 0.5), list[int]()
    copy = cuda._copy
    cuda._copy = lambda *given: moved.append(given[2]) or copy(*given)
    copies = []
    for graph in (model, students.without_weights(model)):
        with Opened(cuda, graph)(engine) as session:
            moved.clear()
            session.search(boxes, lambda atoms, slots: None)
            copies.append(tuple(moved))
    (_, _, new, _), (_, _, old, _) = copies
    assert (old, new) == (4 * 2, 256 + 4 * 2)  # two atoms; an array begins at a multiple of 256 bytes


# Bundles of earlier formats

OLD = FILES / "format2.engine"


@pytest.fixture(params=[1, 2])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle that painn-deploy wrote before there were weights, and the same as the first format had it."""
    if request.param == 2:
        return OLD
    (target := tmp_path / "format1.engine").mkdir()
    for file in OLD.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    values = json.loads((OLD / MANIFEST).read_text()) | {"format_version": 1}
    del values["axes"], values["members"]
    (target / MANIFEST).write_text(json.dumps(values | {"manifest_sha256": manifest_digest(values)}))
    return target


def refused(run: Callable[[GraphInputs], object], inputs: GraphInputs) -> None:
    atoms = len(inputs.mask)
    for weights, value in ((np.zeros(atoms), "0"), (np.r_[np.ones(atoms - 1), 0.5], "0.5"), ([np.nan] * atoms, "nan")):
        with pytest.raises(ShapeError, match=rf"weights holds {value}, .*takes no weights.*before 3.*Export .* again"):
            run(weighted(inputs, np.asarray(weights)))


def test_a_bundle_of_an_earlier_format_gives_its_old_answers(old: Path) -> None:
    with PaiNNCalculator(old, device="cpu") as calculator:
        assert [field.name for field in calculator.manifest.inputs] == [f.name for f in INPUTS if f.name != "weights"]
        frames = []
        for want in json.loads((FILES / "format2.json").read_text()):
            atoms = Atoms(want["numbers"], want["positions"], cell=want["cell"], pbc=want["pbc"], calculator=calculator)
            assert abs(atoms.get_potential_energy() - want["energy"]) < 1e-6
            np.testing.assert_allclose(atoms.get_forces(), want["forces"], rtol=0, atol=1e-6)
            if want["pbc"]:
                np.testing.assert_allclose(atoms.get_stress(), want["stress"], rtol=0, atol=1e-6)
            frames.append(atoms)
        assert len(calculator.calculate_batch(frames)) == len(frames) == 3


def test_a_bundle_of_an_earlier_format_refuses_weights(old: Path) -> None:
    inputs = graph_inputs(ethanols(), CUTOFF)
    with PaiNNCalculator(old, device="cpu") as calculator:
        want = calculator.run_graph(inputs)
        refused(calculator.run_graph, inputs)
        inputs.weights[0] = 0.5  # into arrays that were checked before
        with pytest.raises(ShapeError, match="takes no weights"):
            calculator.run_graph(inputs)
        inputs.weights[0] = 1.0
        for one, other in zip(calculator.run_graph(inputs), want, strict=True):
            np.testing.assert_array_equal(one, other)


def test_with_ones_a_graph_gives_the_bits_that_it_gave_before_it_took_weights(tmp_path: Path) -> None:
    held = read_bundle(OLD)
    path = students.write(tmp_path, "painn", hidden_dim=8, num_rbf=6)
    same = hashlib.sha256(path.read_bytes()).hexdigest()
    assert same == held.manifest.checkpoint_sha256, "this is not the student that the bundle was made of"
    new = export_onnx(load_student(path), {}).SerializeToString()
    for frames in ([students.water()], structures(), ethanols(40)):
        inputs = graph_inputs(frames, CUTOFF)
        for one, other in zip(open_graph(new)(inputs), open_graph(held.file(MODEL))(inputs), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", LINEAR)
@every_student
def test_with_ones_the_bits_are_those_without_weights_in_every_precision(
    graphs: Any, name: str, precision: str
) -> None:
    inputs, model = two_and_a_crystal(precision), graphs(name, precision).SerializeToString()
    for one, other in zip(open_graph(model)(inputs), open_graph(students.without_weights(model))(inputs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_tools_that_read_the_graph_of_a_bundle_read_an_old_one() -> None:
    inputs, held = graph_inputs(ethanols(), CUTOFF), read_bundle(OLD)
    graph = get_backend("onnxruntime").executed_graph(held, 9, 8)
    want = open_graph(held.file(MODEL))(inputs)
    for run in (open_graph(graph.SerializeToString()), open_plain(graph, inputs)):
        for one, other in zip(run(inputs), want, strict=True):
            np.testing.assert_array_equal(one, other)
        refused(run, inputs)


def test_a_compiled_engine_of_an_earlier_format_runs_and_refuses_weights() -> None:
    held, backend = read_bundle(OLD), get_backend("inductor")
    built = backend.build(held.file(MODEL), BuildOptions(device="cpu", form="paired"))
    manifest = replace(
        held.manifest, engine="inductor", engine_version=backend.version(), bound_to=built.bound_to, files={}
    )
    bundle = Bundle.in_memory(manifest, {MODEL: held.file(MODEL), **built.files})
    inputs, run = graph_inputs(ethanols(), CUTOFF), open_graph(held.file(MODEL))
    with backend.open(bundle, "cpu") as session:
        alike(session.run(inputs), run(inputs))
        refused(session.run, inputs)


@others
def test_an_engine_of_an_earlier_format_on_a_gpu_runs_and_refuses_weights(cuda: EmulatedCuda, engine: str) -> None:
    model = read_bundle(OLD).file(MODEL)
    run, atoms = open_graph(model), students.zoo()["triclinic"]
    inputs, molecules = graph_inputs(ethanols(2), CUTOFF), of_sizes([3, 9, 5], 0)
    want = run(graph_inputs([atoms], CUTOFF))
    with Opened(cuda, model)(engine) as session:
        for _ in range(4):
            alike(session.run(inputs), run(inputs))
        for got in session.run_many([inputs] * 3):
            alike(got, run(inputs))
        refused(session.run, inputs)
        refused(lambda given: list(session.run_many([inputs, given])), inputs)
        with pytest.raises(ShapeError, match="takes no weights"):
            session.follow(resident_of(atoms, np.array([1.0, 0.0])))
        assert session.following is None
        session.follow(resident_of(atoms, np.ones(2)))
        alike(session.step(atoms.positions), want)
        with pytest.raises(ShapeError, match="takes no weights"):
            session.search(
                boxes_of(atoms, CUTOFF, CUTOFF + 0.5, np.array([1, 0], np.float32)), lambda atoms, slots: None
            )
        assert session.following is None
        session.search(boxes_of(atoms, CUTOFF, CUTOFF + 0.5), lambda atoms, slots: None)
        alike(session.step(atoms.positions), want)
        alike(session.run_molecules(*side_by_side(molecules), CUTOFF).outputs, run(graph_inputs(molecules, CUTOFF)))
