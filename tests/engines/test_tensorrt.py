"""What can be proved of TensorRT without a GPU: plans are built and read, and what cannot run says why."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx

from painn_deploy.calibration.int8.ranges import row_scales
from painn_deploy.calibration.structures import calibration_structures, trusted_species
from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import BuildOptions
from painn_deploy.engines.profiles import DEFAULT_PROFILE, Profile, plan_profile
from painn_deploy.engines.tensorrt.builder import Messages, build_plan
from painn_deploy.engines.tensorrt.plan import read_plan
from painn_deploy.export import load_student
from painn_deploy.export.errors import BundleError, EngineError, EngineUnavailableError, ShapeError
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.half import to_half
from painn_deploy.export.graph.int8 import candidates, to_int8
from painn_deploy.export.graph.lowering import sums_for_batched_products
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.manifest import manifest_digest, read_bundle
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts import cli, export_engines
from tests import students
from tests.conftest import ROOT

from .tensorrt_interface import check_signature


@pytest.fixture(scope="module")
def plan_bundle(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = export_engines(painn, tmp_path_factory.mktemp("rtx"), engines=["tensorrt-rtx"])
    return path


def test_a_plan_is_built_without_a_gpu_and_says_that_it_was_not_executed(plan_bundle: Path) -> None:
    bundle = read_bundle(plan_bundle)
    assert plan_bundle.name == "painn-tensorrt-rtx-fp32.engine"
    assert bundle.manifest.bound_to == ("86", "89", "120")
    assert Profile.from_mapping(bundle.manifest.profiles[0]) == DEFAULT_PROFILE
    assert bundle.manifest.engine_version == tensorrt_rtx.__version__
    validation = json.loads(bundle.file("validation.json"))
    assert "needs a GPU" in validation["not_executed"]
    assert "force_rmse" not in validation
    assert 0 < validation["graph_parity"]["forces"] < 2e-4  # symmetric CH4 of a random student blurs in float32


def test_inspect_says_what_a_plan_is_bound_to_and_holds(plan_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = read_plan(read_bundle(plan_bundle).file("model.plan"))
    cli.inspect(plan_bundle)
    said = " ".join(capsys.readouterr().out.split())
    for words in ("bound to │ 86, 89, 120", f"{contents.launches} launches an evaluation", "Float"):
        assert words in said


def test_an_fp32_plan_holds_fp32_kernels_and_no_others(plan_bundle: Path) -> None:
    contents = read_plan(read_bundle(plan_bundle).file("model.plan"))
    assert contents.constants["Float"] > 0
    assert not {"Half", "Int8", "FP8", "BFloat16"} & contents.constants.keys()
    assert {"function", "fully_connected"} <= contents.kernels.keys()
    assert any("Gath" in name for name in contents.kernels["function"])
    assert contents.count > 0


# What a plan for 86 names (a product inside a fused kernel once more), and launches. A bound that is passed is a loss.
MOST_KERNELS = {
    ("distiller/original", "fp32", 0): (68, 57),
    ("distiller/original", "fp16", 0): (75, 61),
    ("distiller/original", "int8", 0): (67, 65),
    ("distiller/original", "fp32", 56): (57, 46),
    ("distiller/original", "fp16", 56): (64, 50),
    ("schnetpack/painn_128x3", "fp32", 0): (93, 76),
    ("schnetpack/painn_128x3", "fp16", 0): (100, 80),
    ("schnetpack/painn_128x3", "int8", 0): (86, 86),
}


@pytest.mark.parametrize(("name", "precision", "rank"), list(MOST_KERNELS))
def test_plans_of_real_students_hold_what_they_must_and_few_kernels(
    references: Path, name: str, precision: str, rank: int
) -> None:
    student = load_student(references / f"{name}.safetensors")
    exact = export_onnx(student.with_radial_table(rank, 1024) if rank else student, {})
    graph = EditableGraph(exact)
    sums_for_batched_products(graph)
    model = graph.model()
    if precision == "int8":
        cutoff, some = student.configuration.cutoff, calibration_structures(trusted_species(student))[::12]
        graphs = [graph_inputs([atoms], cutoff) for atoms in some]
        model = to_int8(model, row_scales(model, candidates(model), graphs))
    if precision != "fp32":
        model = to_half(model)
    built = get_backend("tensorrt-rtx").build(model.SerializeToString(), BuildOptions(("86",)))
    contents = read_plan(built.files["model.plan"])
    named, launches = MOST_KERNELS[name, precision, rank]
    assert 0 < contents.count <= named
    assert contents.launches <= launches
    assert ("Half" in contents.constants) == (precision == "fp16")  # with every product in INT8 no half weight is left
    assert ("Int8" in contents.constants) == (precision == "int8")
    products = [n for n in contents.kernels["fully_connected"] if "/" in n]
    assert len(products) >= 10


@pytest.mark.parametrize("capability", ["86", "89", "120"])
def test_real_students_build_for_every_series(checkpoint: Path, capability: str) -> None:
    model = export_onnx(load_student(checkpoint), {}).SerializeToString()
    built = get_backend("tensorrt-rtx").build(model, BuildOptions((capability,), Profile((1, 9, 512), (1, 8, 64))))
    assert built.bound_to == (capability,)
    assert built.files["model.plan"]


@pytest.mark.parametrize("narrow", [False, True])
def test_turing_has_no_fp32_products(painn: Path, narrow: bool) -> None:
    """A limit of TensorRT-RTX that its message states, and FP16-mixed graphs keep FP32 products where digits matter.

    Once it builds, the default list can grow.
    """
    model = export_onnx(load_student(painn), {})
    model = to_half(model) if narrow else model
    with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
        get_backend("tensorrt-rtx").build(model.SerializeToString(), BuildOptions(("75",)))


def export_engines_for(painn: Path, capability: str) -> Any:
    model = export_onnx(load_student(painn), {}).SerializeToString()
    return get_backend("tensorrt-rtx").build(model, BuildOptions((capability,)))


def test_unknown_gpus_are_refused_with_those_that_are_known(painn: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"75, 80, 86, 89, 120, 121, not for 90.*engine tensorrt"):
        export_engines_for(painn, "90")


def test_tf32_is_in_the_manifest_of_a_plan_that_was_built_with_it(
    painn: Path, plan_bundle: Path, tmp_path: Path
) -> None:
    (path,) = export_engines(painn, tmp_path, engines=["tensorrt-rtx"], compute_capabilities=["86"], tf32=True)
    assert read_bundle(path).manifest.tf32
    assert not read_bundle(plan_bundle).manifest.tf32


def test_a_plan_cannot_run_here_and_says_why(plan_bundle: Path, tmp_path: Path) -> None:
    for device in ("auto", "cuda:0", "cpu"):
        with pytest.raises(EngineUnavailableError, match=r"runs on NVIDIA GPUs, and there is none here.*onnxruntime"):
            PaiNNCalculator(plan_bundle, device=device)
    copy = Path(shutil.copytree(plan_bundle, tmp_path / plan_bundle.name))
    plan = bytearray((copy / "model.plan").read_bytes())
    plan[len(plan) // 2] ^= 1
    (copy / "model.plan").write_bytes(plan)
    with pytest.raises(BundleError, match="altered"):  # before anything in it is deserialised
        PaiNNCalculator(copy)


def test_a_plan_of_another_version_or_gpu_is_refused(
    plan_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from painn_deploy.engines.tensorrt import backend as tensorrt

    monkeypatch.setattr(tensorrt, "gpus", lambda: ("cuda:0", "cuda:1"))
    monkeypatch.setattr(tensorrt, "compute_capability", lambda index: ("86", "90")[index])
    manifest = json.loads((plan_bundle / "manifest.json").read_text())
    copy = Path(shutil.copytree(plan_bundle, tmp_path / plan_bundle.name))
    changed = manifest | {"engine_version": "1.0.0"}
    (copy / "manifest.json").write_text(json.dumps(changed | {"manifest_sha256": manifest_digest(changed)}))
    with pytest.raises(BundleError, match=r"built by tensorrt-rtx 1\.0\.0.*Export it again"):
        PaiNNCalculator(copy)
    with pytest.raises(BundleError, match=r"cuda:1 is 90.*--compute-capability 90"):
        PaiNNCalculator(plan_bundle, device="cuda:1")
    with pytest.raises(EngineUnavailableError, match="cannot run on 'cuda:7'"):
        PaiNNCalculator(plan_bundle, device="cuda:7")


def test_tensorrt_names_its_extra_where_it_is_not_installed(painn: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"painn-deploy\[tensorrt\]"):
        export_engines(painn, tmp_path / "out", engines=["tensorrt"])
    assert not (tmp_path / "out").exists()


def test_the_engines_header_is_one_of_this_version(plan_bundle: Path) -> None:
    """Without a GPU the header's form can be read and its device cannot."""
    runtime = tensorrt_rtx.Runtime(Messages(tensorrt_rtx).logger)
    plan = read_bundle(plan_bundle).file("model.plan")
    size = runtime.engine_header_size
    _, fine = runtime.get_engine_validity(plan[:size])
    _, broken = runtime.get_engine_validity(bytes(size))
    assert fine == 0
    assert broken != 0


def test_a_graph_that_tensorrt_cannot_read_is_an_error_in_words() -> None:
    with pytest.raises(EngineError, match="cannot read the graph"):
        build_plan(tensorrt_rtx, b"not a graph", BuildOptions())


def test_every_call_fits_the_full_librarys_own_signatures(tmp_path: Path) -> None:
    """See tests/engines/tensorrt_interface.py: our code builds, loads and runs against TensorRT's real interface."""
    program = [sys.executable, "-m", "tests.engines.tensorrt_interface", str(tmp_path)]
    root = ROOT
    subprocess.run([*program, "stubs"], check=True, cwd=root)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    ran = subprocess.run(program, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "kernels").read_bytes() == b"plan", "what TensorRT-RTX compiled is kept"
    called = set(json.loads(ran.stdout))
    assert {
        "Builder.build_serialized_network", "NetworkDefinitionCreationFlag", "IBuilderConfig.clear_flag",
        "IBuilderConfig.set_timing_cache", "IBuilderConfig.progress_monitor =", "IOptimizationProfile.set_shape",
        "Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "IExecutionContext.set_tensor_address",
        "ExecutionContextAllocationStrategy", "IExecutionContext.update_device_memory_size_for_shapes",
        "IExecutionContext.set_device_memory", "IRuntimeConfig.set_execution_context_allocation_strategy",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy =", "IRuntimeConfig.set_runtime_cache",
        "IRuntimeCache.serialize", "IExecutionContext.is_stream_capturable",
    } <= called  # fmt: skip


def test_a_call_that_does_not_fit_is_found() -> None:
    doc = "set_flag(self: X, flag: BuilderFlag, more: int = 1) -> None\n\n  Sets."
    check_signature("IBuilderConfig.set_flag", doc, 1, set())
    check_signature("IBuilderConfig.set_flag", doc, 1, {"more"})
    for given, named in ((0, set()), (3, set()), (1, {"other"})):
        with pytest.raises(TypeError, match="fits none of"):
            check_signature("IBuilderConfig.set_flag", doc, given, named)


def test_profiles_are_planned_from_data() -> None:
    assert plan_profile([]) == DEFAULT_PROFILE
    profile = plan_profile([(9, 8), (21, 20), (6000, 58)])
    assert profile == Profile((1, 21, 7500), (1, 20, 72))
    assert plan_profile([(3, 2)]).atoms[2] == DEFAULT_PROFILE.atoms[2]
    assert Profile.from_mapping(profile.as_dict()) == profile
    profile.check(7500, 72)
    for atoms, slots in ((7501, 1), (1, 73)):
        with pytest.raises(ShapeError, match=r"outside this engine's profile.*--structures FILE"):
            profile.check(atoms, slots)
    for broken in ({}, {"atoms": [1, 2], "slots": [1, 2, 3]}, {"atoms": [3, 2, 1], "slots": [1, 2, 3]}):
        with pytest.raises(ShapeError, match="not a shape profile"):
            Profile.from_mapping(broken)


def test_structures_given_at_export_set_the_profile(painn: Path, tmp_path: Path) -> None:
    large = students.zoo()["triclinic"].repeat((12, 12, 12))
    (path,) = export_engines(painn, tmp_path, engines=["tensorrt-rtx"], structures=[large], compute_capabilities=["86"])
    manifest = read_bundle(path).manifest
    assert manifest.bound_to == ("86",)
    assert manifest.profiles[0]["atoms"][2] == max(4096, int(1.25 * len(large)))
