import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ase.build import molecule

from painn_deploy.calibration.accuracy.parity import check_parity
from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import BuildOptions
from painn_deploy.engines.forms import CPU_FORMS
from painn_deploy.engines.inductor import backend as inductor
from painn_deploy.engines.inductor import pairs
from painn_deploy.engines.inductor.backend import CPU_BATCH_SLOTS, TUNED, InductorBackend
from painn_deploy.engines.inductor.compile import Asked, compiling
from painn_deploy.engines.inductor.gpu import LEAST, torch_in_words
from painn_deploy.engines.inductor.onnx_torch import OnnxModule
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.engines.session import CudaGraphs
from painn_deploy.export import load_student
from painn_deploy.export.errors import (
    BundleError,
    DeviceMemoryError,
    EngineError,
    EngineUnavailableError,
    ExportError,
)
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.manifest import MODEL, manifest_digest, read_bundle
from painn_deploy.export.model.force_head import tensors
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts import export_engines
from tests import students

ZOO = students.zoo()


def test_a_process_beside_this_one_says_why_it_failed(painn: Path) -> None:
    model = export_onnx(load_student(painn), {})
    model.graph.node[0].op_type = "Det"
    with (
        compiling(model.SerializeToString(), Asked("plain", "cpu", tf32=False)) as result,
        pytest.raises(EngineError, match="could not compile the form plain: The graph holds Det"),
    ):
        result()


def test_the_graph_runs_in_torch_as_it_runs_in_onnx_runtime(checkpoint: Path) -> None:
    module = OnnxModule(export_onnx(load_student(checkpoint), {}))

    def run(inputs):
        from painn_deploy.export.fields import GraphOutputs

        return GraphOutputs(*(output.numpy() for output in module(*tensors(inputs, torch.float32))))

    check_parity(run, load_student(checkpoint, dtype=torch.float64), [[atoms] for atoms in ZOO.values()])


def test_results_are_the_student_s_at_every_size(compiled: Path, painn: Path, bundle: Path) -> None:
    student = load_student(painn, dtype=torch.float64)
    with PaiNNCalculator(compiled) as calculator, PaiNNCalculator(bundle) as other:
        check_parity(calculator.run_graph, student)
        structures = list(ZOO.values())
        for one, two in zip(calculator.calculate_batch(structures), other.calculate_batch(structures), strict=True):
            np.testing.assert_allclose(one["forces"], two["forces"], rtol=1e-5, atol=1e-5)
        for atoms in (ZOO["single atom"], ZOO["far apart"], ZOO["water"]):  # 1 x 1, 2 x 1, 3 x 2
            once, again = (calculator.run_graph(graph_inputs([atoms], 4.0)) for _ in range(2))
            assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
            check_parity(calculator.run_graph, student, [[atoms]])
        assert calculator.batch_slots == CPU_BATCH_SLOTS
        with pytest.raises(EngineUnavailableError, match="no CUDA graphs on 'cpu'"):
            calculator.session.cuda_graphs = True
        assert not isinstance(calculator.session, CudaGraphs)
        info = calculator.engine_info
    assert (info["backend"], info["device"], info["precision"]) == ("inductor", "cpu", "fp32")
    with pytest.raises(EngineError, match="closed"):
        calculator.calculate_batch([students.water()])


def test_the_graph_that_is_counted_is_the_one_that_runs(compiled: Path, bundle: Path) -> None:
    """A bundle holds the graph itself, and torch is given it in the form of the package that serves a size."""
    opened, other = read_bundle(compiled), read_bundle(bundle)
    assert opened.file(MODEL) == other.file(MODEL)
    held = onnx.load_from_string(opened.file(MODEL))
    for waters, name in ((1, "small.pt2"), (40, "large.pt2")):
        inputs = graph_inputs([students.water(seed) for seed in range(waters)], 4.0)
        graph = get_backend("inductor").executed_graph(opened, *inputs.mask.shape)
        assert graph == CPU_FORMS[name].form.lowered(held)
        got = OnnxModule(graph)(*map(torch.from_numpy, (*inputs, *pair_inputs(inputs.reverse, LEAST))))
        for one, want in zip(got, open_graph(opened.file(MODEL))(inputs), strict=True):
            np.testing.assert_allclose(one.numpy(), want, rtol=0, atol=1e-5)
    assert get_backend("onnxruntime").executed_graph(other, 3, 2) == held
    assert get_backend("inductor").contents(opened) == {
        "forms": "sums+paired+side+frozen+inline@72,8 for up to 32 atoms and up to 640 atoms x slots; "
        "sums+paired+frozen@72,8 for all other sizes"
    }
    assert get_backend("onnxruntime").contents(other) == {}


def test_results_are_the_same_on_both_sides_of_every_size(compiled: Path, bundle: Path) -> None:
    """Of atoms, pairs and padding, with vector widths and blocks of matrix products in between."""
    rng = np.random.default_rng(0)
    water, methane = students.water(), molecule("CH4")
    with PaiNNCalculator(compiled) as calculator, PaiNNCalculator(bundle) as other:
        sizes = []
        for waters in range(40):
            for methanes in {0, 1, waters % 7}:
                molecules = [m.copy() for m in [water] * waters + [methane] * methanes]
                if not molecules:
                    continue
                for atoms in molecules:
                    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
                inputs = graph_inputs(molecules, 4.0)
                sizes.append(len(inputs.mask))
                for got, wanted in zip(calculator.run_graph(inputs), other.run_graph(inputs), strict=True):
                    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * max(1, np.abs(wanted).max()))
    assert min(sizes) < (CPU_FORMS["small.pt2"].most_atoms or 0) < max(sizes)


def test_a_package_of_an_older_kind_is_refused(compiled: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compiled, tmp_path / "older.engine"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "large.pt2").rename(copy / "model.pt2")
    manifest["files"]["model.pt2"] = manifest["files"].pop("large.pt2")
    (copy / "manifest.json").write_text(json.dumps(manifest | {"manifest_sha256": manifest_digest(manifest)}))
    with pytest.raises(BundleError, match=r"lists no large\.pt2\. Export it again"):
        PaiNNCalculator(copy)


def test_a_package_is_bound_to_its_torch_and_its_cpu(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((compiled / "manifest.json").read_text())
    assert manifest["compute_capability"] == [f"cpu:{torch.backends.cpu.get_cpu_capability()}"]
    assert read_bundle(compiled).manifest.bound_to == tuple(manifest["compute_capability"])
    with pytest.raises(EngineUnavailableError, match="compiled for cpu:.* and cannot run on"):
        PaiNNCalculator(compiled, device="cuda")
    for change, message in (
        ({"engine_version": "2.1.0"}, r"compiled by torch 2\.1\.0.*Export it again"),
        ({"compute_capability": ["cpu:VSX"]}, "compiled for cpu:VSX.*Export it again here"),
    ):
        copy = Path(shutil.copytree(compiled, tmp_path / "copy", dirs_exist_ok=True))
        changed = manifest | change
        (copy / "manifest.json").write_text(json.dumps(changed | {"manifest_sha256": manifest_digest(changed)}))
        with pytest.raises(BundleError, match=message):
            PaiNNCalculator(copy)


def test_a_package_of_another_gpu_is_refused(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(compiled, tmp_path / "copy"))
    changed = json.loads((copy / "manifest.json").read_text()) | {"compute_capability": ["cuda:86"]}
    (copy / "manifest.json").write_text(json.dumps(changed | {"manifest_sha256": manifest_digest(changed)}))
    monkeypatch.setattr(torch.version, "cuda", None)  # as in a build for CPUs
    with pytest.raises(EngineUnavailableError, match=r"compiled for cuda:86 and cannot run on 'cuda:0'.*without CUDA"):
        PaiNNCalculator(copy)
    monkeypatch.setattr(InductorBackend, "devices", lambda _: ("cuda:0", "cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(BundleError, match=r"compiled for cuda:86, and this machine is cuda:90\. Export it again here"):
        PaiNNCalculator(copy)


def test_a_full_gpu_is_an_error_of_its_own() -> None:
    with (
        pytest.raises(DeviceMemoryError, match="too little free memory.*batch_slots"),
        torch_in_words(torch, "It failed"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(EngineError, match="It failed: an illegal memory access"), torch_in_words(torch, "It failed"):
        raise RuntimeError("an illegal memory access")


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(EngineUnavailableError, match=r"C\+\+ compiler"):
        get_backend("inductor").build(b"", BuildOptions(device="cpu"))


@pytest.mark.slow
def test_a_form_that_is_asked_for_is_compiled_and_runs(painn: Path, tmp_path: Path) -> None:
    """One that a GPU may be given."""
    (path,) = export_engines(
        painn,
        tmp_path,
        engines=["inductor"],
        structures=[students.water()],
        device="cpu",
        form="sums+side+unchecked@30,8",
    )
    packages = json.loads((path / "packages.json").read_text())
    assert [of["form"] for of in packages.values()] == ["sums+side+unchecked@30,8"]
    # filters and slopes of one layer side by side: of 16 features, three times and twice
    assert packages["large.pt2"]["elements_a_slot"] == 5 * 16
    with PaiNNCalculator(path) as calculator:
        check_parity(calculator.run_graph, load_student(painn, dtype=torch.float64))


def test_tf32_is_a_gpu_s(
    compiled: Path, bundle: Path, painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an engine has none, the export ends before any work; where it has, it is asked of torch and recorded."""
    assert not read_bundle(compiled).manifest.tf32
    assert not read_bundle(bundle).manifest.tf32
    for engines, device, message in (
        (["inductor"], "cpu", "The engine inductor has no TF32 on cpu"),
        (["inductor"], "auto", "The engine inductor has no TF32:"),
        (["onnxruntime"], "auto", "The engine onnxruntime has no TF32:"),
        (["tensorrt-rtx", "onnxruntime"], "cuda", "The engine onnxruntime has no TF32 on cuda"),
    ):
        told: list[str] = []
        with pytest.raises(ExportError, match=f"{message}.*NVIDIA GPU these have it: tensorrt, tensorrt-rtx, inductor"):
            export_engines(painn, tmp_path / "out", engines=engines, device=device, tf32=True, tell=told.append)
        assert not told
        assert not (tmp_path / "out").exists()
    asked: list[Asked] = []
    monkeypatch.setattr(InductorBackend, "devices", lambda _: ("cuda:0", "cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(inductor, "compiled_form", lambda model, one: asked.append(one) or (b"package", 1.0))
    for tf32, device, done in ((True, "auto", True), (True, "cpu", False), (False, "cuda", False)):
        built = InductorBackend().build(b"", BuildOptions(device=device, tf32=tf32))
        assert (built.tf32, {one.tf32 for one in asked}) == (done, {done})
        asked.clear()


def test_each_package_is_announced_when_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line stands there for as long as what it says takes."""
    events: list[str] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(inductor, "compiled_form", lambda *_: events.append("compiled") or (b"package", 1.0))
    InductorBackend().build(b"", BuildOptions(device="cpu"), lambda line: events.append(line.split(", ")[-1]))
    assert events == ["1 of 2", "compiled", "2 of 2", "compiled"]


def test_bundles_from_before_forms_were_written_down_still_open(compiled: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compiled, tmp_path / "older.engine"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "packages.json").unlink()
    del manifest["files"]["packages.json"]
    (copy / "manifest.json").write_text(json.dumps(manifest | {"manifest_sha256": manifest_digest(manifest)}))
    inputs = graph_inputs([students.water()], 4.0)
    with PaiNNCalculator(copy) as older, PaiNNCalculator(compiled) as newer:
        assert all(map(np.array_equal, older.run_graph(inputs), newer.run_graph(inputs)))


def test_another_model_s_precision_is_not_ours(compiled: Path) -> None:
    inputs = graph_inputs([students.water(seed) for seed in range(40)], 4.0)
    with PaiNNCalculator(compiled) as calculator:
        exact = calculator.run_graph(inputs)
        torch.set_float32_matmul_precision("medium")
        try:
            assert all(map(np.array_equal, calculator.run_graph(inputs), exact))
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")


def test_a_graph_with_an_unknown_operator(painn: Path) -> None:
    model = export_onnx(load_student(painn), {})
    model.graph.node[0].op_type = "Det"
    with pytest.raises(EngineError, match="holds Det"):
        OnnxModule(model)


def test_a_compiler_that_fails_says_so(painn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("error: unknown register")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(EngineError, match="unknown register"):
        InductorBackend().build(export_onnx(load_student(painn), {}).SerializeToString(), BuildOptions())


FAULTS = """
import resource, sys
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.cases import box_of_water
with PaiNNCalculator(sys.argv[1], threads=1) as calculator:
    inputs = graph_inputs([box_of_water() * (2, 2, 1)], calculator.manifest.cutoff)
    for _ in range(3):
        calculator.run_graph(inputs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    calculator.run_graph(inputs)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_a_large_structure_s_memory_is_kept_from_call_to_call(compiled: Path) -> None:
    def faults(**environment: str) -> int:
        command = [sys.executable, "-c", FAULTS, str(compiled)]
        clean = {name: value for name, value in os.environ.items() if name not in TUNED} | environment
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
        return int(done.stdout)

    tuned_by_the_user = faults(MALLOC_MMAP_THRESHOLD_="131072")  # glibc's own default, said aloud
    assert tuned_by_the_user > 2_000
    assert faults() < tuned_by_the_user / 4


@pytest.mark.parametrize("name", ["ethanol", "triclinic", "single atom"])
def test_pairs_are_looked_for_once_while_neighbours_stand(
    compiled: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def looking(reverse: np.ndarray, least: int) -> object:
        looked.append(reverse.size)
        return pair_inputs(reverse, least)

    monkeypatch.setattr(pairs, "pair_inputs", looking)
    atoms, rng = ZOO[name].copy(), np.random.default_rng(0)
    with PaiNNCalculator(compiled, skin=0.5) as calculator, PaiNNCalculator(compiled, skin=0.0) as plain:
        for _ in range(15):
            atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
            looked.clear()
            before = calculator.neighbour_list.searches
            forces = calculator.get_forces(atoms)
            searched = calculator.neighbour_list.searches - before
            # a single atom is padded to two, in arrays that are new at each step
            assert len(looked) == (1 if name == "single atom" else searched)
            np.testing.assert_allclose(forces, plain.get_forces(atoms), rtol=0, atol=2e-5)
        assert 0 < calculator.neighbour_list.searches < 15
