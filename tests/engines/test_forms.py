"""Forms of the graph: every one gives what the graph gives, and says what it is."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from painn_deploy.engines.forms import CPU_FORMS, GPU_FORMS, WORDS, Form, Plan, plans_for
from painn_deploy.engines.inductor.backend import PACKAGES, _packages
from painn_deploy.engines.inductor.compile import traced
from painn_deploy.engines.inductor.onnx_torch import OnnxModule
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.engines.onnxruntime.backend import elements_a_slot
from painn_deploy.export import load_student
from painn_deploy.export.bundle import Bundle, read_bundle
from painn_deploy.export.errors import BundleError, EngineError
from painn_deploy.export.graph.half import to_half
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.runtime.matrix import graph_inputs
from tests import students

ROUTES = [
    "+".join(words) or "plain" for n in range(4) for words in itertools.combinations(("sums", "paired", "side"), n)
]
ROUTES += ["products", "products+paired+side", "dots", "sums+dots", "sums+paired+side+dots"]


def results(model: onnx.ModelProto, form: Form, structures: list) -> list[np.ndarray]:
    inputs = graph_inputs(structures, 4.0, slot_step=8)
    atoms, slots = inputs.mask.shape
    # as many pairs as a session on a GPU gives: more than there are
    arrays = (*inputs, *(pair_inputs(inputs.reverse, atoms * slots // 2 + 1) if form.paired else ()))
    module = OnnxModule(form.lowered(model))
    return [output.numpy() for output in module(*(torch.from_numpy(array) for array in arrays))]


@pytest.mark.parametrize("written", ROUTES)
def test_every_form_gives_what_the_graph_gives(checkpoint: Path, written: str) -> None:
    model = export_onnx(load_student(checkpoint), {})
    structures = [students.perturbed(atoms, seed) for seed, atoms in enumerate(students.zoo().values())]
    plain = results(model, Form(), structures)
    for got, want in zip(results(model, Form.parse(written), structures), plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1.0, np.abs(want).max()))


def test_half_precision_takes_every_form_too(painn: Path) -> None:
    exact = export_onnx(load_student(painn), {})
    half, structures = to_half(exact), [students.water(seed) for seed in range(3)]
    want = results(exact, Form(), structures)
    for written in ("plain", "sums+paired+side", "sums+paired+side+dots"):
        for got, exactly in zip(results(half, Form.parse(written), structures), want, strict=True):
            np.testing.assert_allclose(got, exactly, rtol=0, atol=2e-2 * max(1.0, np.abs(exactly).max()))


def test_a_form_is_written_and_read() -> None:
    for form in (Form(), *(plan.form for plan in (*CPU_FORMS.values(), *GPU_FORMS.values()))):
        assert Form.parse(str(form)) == form
        assert set(form.words) <= set(WORDS)
    assert Form.parse("sums+paired@1024,16") == Form(("sums", "paired"), 1024, 16)
    assert str(Form()) == "plain@72,8"
    for wrong in ("", "sum", "sums+sums", "sums,paired", "sums@", "sums@1,8", "sums@72", "sums@a,b", "@72,8"):
        if wrong == "sums@":
            assert Form.parse(wrong) == Form(("sums",))
            continue
        with pytest.raises(EngineError, match=r"is no form of the graph|behind '@'"):
            Form.parse(wrong)


def test_what_is_compiled_how_depends_on_the_device() -> None:
    form = Form.parse("frozen+inline+tuned+descent+unchecked")
    on_cpu, on_gpu = form.settings("cpu"), form.settings("cuda")
    assert on_cpu["max_autotune_gemm_backends"] == "CPP"
    assert "assert_indirect_indexing" not in on_cpu, "on a CPU indices are checked where they are read"
    assert on_gpu == {
        "freezing": True,
        "max_autotune": True,
        "max_autotune_gemm_backends": "ATEN,TRITON",
        "coordinate_descent_tuning": True,
        "assert_indirect_indexing": False,
    }
    assert form.settings("cuda", tf32=True) == on_gpu | {"max_autotune_gemm_backends": "ATEN"}
    assert form.settings("cpu", tf32=True) == on_cpu


def test_the_smallest_package_that_serves_a_size_runs_it() -> None:
    for plans in (plans_for("cpu", ""), plans_for("cuda", "")):
        *smaller, large = plans.values()
        assert smaller[0].serves(9, 8)
        assert not any(plan.serves(10_000, 8) or plan.serves(400, 1_000) for plan in smaller)
        assert not smaller[0].serves(16, 1_000)
        assert large.serves(10**6, 60)
        assert [Plan.from_mapping(plan.as_dict()) for plan in plans.values()] == [*smaller, large]
    assert list(plans_for("cuda", "sums@9,8")) == ["large.pt2"]


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ({}, "names no package"),
        ({"a.pt2": None}, "does not say what a.pt2 is for"),
        ({"a.pt2": {}}, "does not say what a.pt2 is for"),
        ({"a.pt2": {"form": 5, "most_atoms": None, "most_cells": None, "elements_a_slot": 1.0}}, "what a.pt2 is for"),
        ({"a.pt2": {"form": "x", "most_atoms": None, "most_cells": None, "elements_a_slot": 1.0}}, "what a.pt2 is for"),
        (
            {"a.pt2": {"form": "plain", "most_atoms": "9", "most_cells": None, "elements_a_slot": 1.0}},
            "'9' is no number",
        ),
        (
            {"a.pt2": {"form": "plain", "most_atoms": None, "most_cells": None, "elements_a_slot": []}},
            "what a.pt2 is for",
        ),
        (
            {"a.pt2": {"form": "plain", "most_atoms": None, "most_cells": None, "elements_a_slot": 1.0}},
            "lists no a.pt2",
        ),
        ([], "JSON object"),
    ],
)
def test_f17_packages_of_another_shape_are_refused(bundle: Path, packages: object, message: str) -> None:
    sound = read_bundle(bundle)
    files = {name: sound.file(name) for name in sound.manifest.files} | {PACKAGES: json.dumps(packages).encode()}
    odd = Bundle.in_memory(replace(sound.manifest, bound_to=("cpu:AVX2",)), files)
    with pytest.raises(BundleError, match=message):
        _packages(odd)


@pytest.mark.parametrize("rank", [0, 12])
def test_how_wide_a_graph_is_for_each_slot(checkpoint: Path, rank: int) -> None:
    """What 32-bit indices are held against: ONNX Runtime's is known by formula, a compiled one's is counted."""
    student = load_student(checkpoint)
    model = export_onnx(student.with_radial_table(rank, 64) if rank else student, {})
    _, counted = traced(torch, model, "cpu", 72, 8)
    assert counted == elements_a_slot(student.configuration.hidden_dim, rank)
