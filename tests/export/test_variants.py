"""PaiNNs that differ from the usual one: the graph is the student, its forces the slope of its energy."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from painn_deploy.calibration.physics.consistency import displacements, gradient_errors
from painn_deploy.export import load_student
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.errors import CheckpointError
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.model.aggregation import CLOSED_FORM
from painn_deploy.export.model.cutoffs import CUTOFFS, cutoff_function
from painn_deploy.export.model.force_head import explicit_forces, tensors
from painn_deploy.runtime.matrix import graph_inputs
from tests import students
from tests.heads import check_adjoints, explicit_results, graph_of

ZOO = students.zoo()
CUTOFF = 4.0


@pytest.fixture(params=students.VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return students.write_variant(tmp_path, request.param)


@pytest.mark.parametrize("name", ["single atom", "ethanol", "triclinic", "slab", "wire"])
def test_closed_form_adjoints_are_those_of_autograd(variant: Path, name: str) -> None:
    check_adjoints(load_student(variant, dtype=torch.float64), ZOO[name])


def test_forces_are_the_slope_of_the_energy(variant: Path) -> None:
    evaluate, atoms = explicit_results(load_student(variant, dtype=torch.float64)), ZOO["ethanol"]
    forces = evaluate([atoms])[0]["forces"]
    errors = gradient_errors(evaluate, atoms, displacements(atoms), 1e-4)
    assert np.abs(errors).max() < 1e-8 * max(1.0, np.abs(forces).max())


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_the_graph_gives_what_the_student_gives(variant: Path, precision: str) -> None:
    is_double = precision == "fp64"
    exact = load_student(variant, dtype=torch.float64)
    student = exact if is_double else load_student(variant)
    session = onnxruntime.InferenceSession(export_onnx(student, {}, precision).SerializeToString())
    for name in ("single atom", "ethanol", "triclinic", "slab"):
        arrays = graph_inputs([ZOO[name]], CUTOFF, np.float64 if is_double else np.float32)
        found = session.run(None, dict(zip([i.name for i in session.get_inputs()], arrays, strict=True)))
        wanted = explicit_forces(exact, graph_of(ZOO[name]))
        # a random student may be as good in float32 as its own sums of large numbers allow, and no better
        own = explicit_forces(student, tensors(arrays, student.dtype))
        for got, want, mine in zip(found, wanted, own, strict=True):
            scale = max(1.0, float(want.abs().max()))
            allowed = max((1e-11 if is_double else 1e-5) * scale, 2 * float((mine - want).abs().max()))
            np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=allowed)
            np.testing.assert_allclose(got, mine.numpy(), rtol=0, atol=(1e-11 if is_double else 2e-5) * scale)


@pytest.mark.parametrize("steeper", [10, 1e4])
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_a_softplus_is_torch_s_wherever_it_is_straight(tmp_path: Path, precision: str, steeper: float) -> None:
    """torch's is x from 20 on; and e to the power of x, by which others compute it, is infinite in float64 from 710."""
    path = students.write_variant(tmp_path, "shifted softplus")
    weights = load_file(path)
    for key in weights:
        if "intraatomic_context_net.0" in key:
            weights[key] *= steeper
    save_file(weights, path)
    is_double = precision == "fp64"
    exact = load_student(path, dtype=torch.float64)
    session = onnxruntime.InferenceSession(
        export_onnx(exact if is_double else load_student(path), {}, precision).SerializeToString()
    )
    arrays = graph_inputs([ZOO["ethanol"]], CUTOFF, np.float64 if is_double else np.float32)
    found = session.run(None, dict(zip([i.name for i in session.get_inputs()], arrays, strict=True)))
    wanted = explicit_forces(exact, graph_of(ZOO["ethanol"]))
    for got, want in zip(found, wanted, strict=True):
        scale = float(want.abs().max())
        assert scale > 1
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=(1e-11 if is_double else 1e-4) * scale)


@pytest.mark.parametrize("kind", ["painn", "distiller"])
def test_one_interaction_is_exported_where_nothing_checks_types(tmp_path: Path, kind: str) -> None:
    """Types are checked here and not where users are, and a check tells the tracer sizes."""
    path = students.write(tmp_path, kind, num_interactions=1)
    program = "from painn_deploy.export import load_student as s; from painn_deploy.export.graph.onnx_graph import "
    program += f"export_onnx as e; e(s({str(path)!r}), {{}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_can_be_differentiated_twice_as_training_does(variant: Path) -> None:
    student = load_student(variant, dtype=torch.float64).requires_grad_()
    graph = graph_of(ZOO["ethanol"])
    displacements = graph.displacements.requires_grad_()
    found = []
    for sums in (None, CLOSED_FORM):
        energies = student(graph._replace(displacements=displacements), *([] if sums is None else [sums]))
        (gradient,) = torch.autograd.grad(energies.sum(), displacements, create_graph=True)
        forces = gradient.sum(1) - torch.nn.functional.embedding(graph.reverse, gradient.flatten(0, 1)).sum(1)
        weights = [p for p in student.parameters() if p.requires_grad]
        found.append(torch.autograd.grad((forces * forces).sum(), weights, materialize_grads=True))
    for plain, closed in zip(*found, strict=True):
        scale = max(1.0, float(plain.abs().max()))
        np.testing.assert_allclose(closed.detach().numpy(), plain.detach().numpy(), rtol=0, atol=1e-9 * scale)
    assert max(float(each.abs().max()) for each in found[0]) > 0


def test_a_table_of_its_filters_is_close(variant: Path) -> None:
    student = load_student(variant, dtype=torch.float64)
    graph = graph_of(ZOO["ethanol"])
    exact, tabled = (explicit_forces(s, graph) for s in (student, student.with_radial_table(12, 2048)))
    scale = float(exact.forces.abs().max())
    assert 0 < float((exact.forces - tabled.forces).abs().max()) < 1e-3 * scale


@pytest.mark.parametrize("kind", CUTOFFS)
def test_cutoff_functions_end_where_they_say_and_are_finite_beyond(kind: str) -> None:
    faded = cutoff_function(kind, CUTOFF, switch_on=1.5, power=6)
    d = torch.linspace(0, 1.5 * CUTOFF, 1201, dtype=torch.float64, requires_grad=True)
    values = faded(d)
    (slopes,) = torch.autograd.grad(values.sum(), d)
    assert torch.isfinite(values).all()
    assert torch.isfinite(slopes).all()
    inside = d.detach() < CUTOFF
    assert values[0].item() == pytest.approx(1.0, abs=1e-12)
    assert (values[inside].diff() <= 1e-15).all()
    assert abs(values[~inside][0].item()) < 1e-12
    near = torch.tensor([CUTOFF - 1e-3], dtype=torch.float64)
    assert 0 <= faded(near).item() < 1e-5
    assert np.isfinite(faded(d.detach().float()).numpy()).all()


def test_the_polynomial_is_dimenet_s() -> None:
    p, x = 6, torch.linspace(0, 1, 101, dtype=torch.float64)
    wanted = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    found = cutoff_function("polynomial", CUTOFF, power=p)(x * CUTOFF)
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repulsion.cutoff": torch.tensor([4.5])}, "repulsion reaches to 4.5 Å and its messages to 4 Å"),
        ({"repulsion.cutoff": torch.tensor([0.0])}, "repulsion reaches to 0"),
        ({"repulsion.cutoff": None}, "needed are coefficients and exponents of equal length, and .*cutoff, switch_on"),
        ({"repulsion.exponents": torch.ones(3)}, "of equal length"),
        ({"repulsion.strength": torch.tensor([float("nan")])}, "one finite number each"),
        ({"repulsion.switch_on": torch.tensor([2.5])}, "begins to fade at 2.5 Å and ends at 2.5 Å"),
        ({"repulsion.b": torch.ones(1)}, "its repulsion holds a_power, a_scale, b, "),
        ({"energy_scales": torch.ones(3)}, "energy_scales has the shape"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = students.write_variant(tmp_path, "repulsion that ends early")
    weights = load_file(path) | {key: value for key, value in changes.items() if value is not None}
    save_file({key: value for key, value in weights.items() if changes.get(key, value) is not None}, path)
    with pytest.raises(CheckpointError, match=message):
        load_student(path)


def test_a_frequency_may_be_negative(tmp_path: Path) -> None:
    """Training may turn its sign, which turns the sine."""
    path = students.write(tmp_path, "painn-bessel")
    graph = graph_of(ZOO["ethanol"])
    before = explicit_forces(load_student(path, dtype=torch.float64), graph).forces
    weights = load_file(path)
    weights["representation.radial_basis.freqs"][2] *= -1
    weights["representation.filter_net.weight"][:, 2] *= -1
    save_file(weights, path)
    after = explicit_forces(load_student(path, dtype=torch.float64), graph).forces
    np.testing.assert_allclose(after.numpy(), before.numpy(), rtol=0, atol=1e-12)


def test_a_repulsion_that_is_not_said_is_not_ignored(tmp_path: Path) -> None:
    path = students.write_variant(tmp_path, "repulsion")
    said = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in said.items() if k != "repulsion"}))
    with pytest.raises(CheckpointError, match=r"no place for: repulsion\.a_power"):
        load_student(path)


def test_that_vectors_are_mixed_with_biases_is_remarked(tmp_path: Path) -> None:
    """Of any file, since whoever converts one keeps the weights and not what was said of them."""
    biased = students.write_variant(tmp_path, "vectors mixed with a bias")
    assert any("depends on how the structure lies" in remark for remark in load_checkpoint(biased)[1].remarks)
    assert load_checkpoint(students.write(tmp_path, "painn"))[1].remarks == ()
