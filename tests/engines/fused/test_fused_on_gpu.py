"""The fused kernel as an engine of a GPU, whose blocks are evaluated on a CPU, and its machine code."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cuda.bindings
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from painn_deploy.engines import get_backend
from painn_deploy.engines.backend import BuildOptions
from painn_deploy.engines.fused import backend as fused_backend
from painn_deploy.engines.fused import gpu as fused_gpu
from painn_deploy.engines.fused.gpu import FusedExecutor
from painn_deploy.engines.fused.groups import groups_of, pieces_of, pieces_of_molecules
from painn_deploy.engines.fused.packed import Packed
from painn_deploy.engines.fused.plan import MOST_ATOMS, SHARED, Plan, plans_for
from painn_deploy.engines.fused.weights import pack
from painn_deploy.engines.gpu.device_positions import compile_kernel
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.engines.session import EngineInfo
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import BundleError, EngineUnavailableError, ShapeError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.model.student import Configuration, Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.pairs.boxes import boxes_of
from painn_deploy.scripts import export_engines
from tests import students
from tests.engines.emulated_gpu import EmulatedCuda

from .host_kernel import HostKernel, loaded
from .molecules import check, matrix, mixture, parts, same_bits

INFO = EngineInfo(backend="fused", version="1", device="cuda:0", precision="fp32", bundle_sha256="")
CAPABILITIES = (*SHARED, "100", "120")


@pytest.fixture(scope="module")
def base() -> Student:
    return load_student("student:base", dtype=torch.float64)


@pytest.fixture(scope="module")
def packed(base: Student) -> Packed:
    return pack(base)


def opened(
    cuda: EmulatedCuda, packed: Packed, plans: Sequence[Plan], multiprocessors: int = 3, threads: int = 1
) -> GpuSession:
    kernels = loaded(cuda, plans, threads)
    return GpuSession(
        lambda stream, arena: FusedExecutor(packed, kernels, multiprocessors, stream, arena), 0, INFO, species=(1, 8)
    )


def executor(session: GpuSession) -> Any:
    (lane,) = session._lanes
    return lane.executor


def test_each_plan_of_a_large_gpu_gives_what_the_student_gives_alone_and_in_a_batch(
    cuda: EmulatedCuda, base: Student, packed: Packed
) -> None:
    plans, batch = plans_for(packed, "90"), mixture()
    spirits = [students.perturbed(molecule("CH3CH2OH"), seed) for seed in range(9)]
    with opened(cuda, packed, plans, 2) as session:
        chosen = []
        for structures in (batch[:1], spirits[:2], spirits, batch, [chain(MOST_ATOMS)], mixture()[6:7] * 5):
            for _ in range(3):  # launched, recorded, replayed
                together = session.run(matrix(structures, base))
            check(base, structures, together)
            chosen.append(executor(session).variant[0])
            for atoms, found in zip(structures, parts(structures, together), strict=True):
                alone = session.run(matrix([atoms], base))
                for one, other in zip(alone, found, strict=True):  # another plan adds up in another order
                    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5)
        assert chosen == [9, 9, 27, 21, 32, 24]
        assert not session.refused_graphs


def chain(atoms: int) -> Atoms:
    """A long molecule."""
    places = [[1.27 * i, 0.43 * (-1) ** i, 0.9 * (i % 3)] for i in range(atoms)]
    return students.perturbed(Atoms(["C"] * atoms, places), 5, 0.05)


def test_a_plan_gives_the_same_bits_whatever_is_beside_a_molecule(
    cuda: EmulatedCuda, base: Student, packed: Packed
) -> None:
    batch = [atoms for atoms in mixture() if len(atoms) < 10]
    with opened(cuda, packed, [Plan(packed, 27, 108)], 1) as session:
        together = session.run(matrix(batch, base))
        for atoms, found in zip(batch, parts(batch, together), strict=True):
            assert same_bits(session.run(matrix([atoms], base)), found)


@pytest.mark.parametrize("spilled", [False, True])
def test_threads_of_a_block_wait_for_each_other(
    cuda: EmulatedCuda, base: Student, packed: Packed, spilled: bool
) -> None:
    plans, batch = [Plan(packed, 12, 72, 6, spilled=spilled)], [atoms for atoms in mixture() if len(atoms) < 10]
    with opened(cuda, packed, plans) as one, opened(cuda, packed, plans, threads=5) as several:
        assert same_bits(one.run(matrix(batch, base)), several.run(matrix(batch, base)))


def test_molecules_are_put_together_where_there_are_more_than_multiprocessors(
    cuda: EmulatedCuda, packed: Packed
) -> None:
    plans = [Plan(packed, 9, 36), Plan(packed, 27, 108)]
    spirit = molecule("CH3CH2OH")
    with opened(cuda, packed, plans, 4) as session:
        (few, many) = (loaded.kernel for loaded in executor(session)._plans)
        for count in (1, 12, 13, 40):
            numbers, positions = np.tile(spirit.numbers, count).astype(np.int32), np.tile(spirit.positions, (count, 1))
            session.run_molecules(np.minimum(numbers, 8), positions, 9 * np.arange(count), 5.0)
        assert (few.sent, many.sent) == ([4, 4], [4, 4])


def test_what_is_too_large_is_refused_with_what_to_do(cuda: EmulatedCuda, base: Student, packed: Packed) -> None:
    with opened(cuda, packed, plans_for(packed, "90")) as session:
        with pytest.raises(
            ShapeError, match="33 atoms that interact, with .* more than the engine fused takes.* 32 at"
        ):
            session.run(matrix([chain(33)], base))
        crystal = bulk("C", "diamond", a=3.57, cubic=True) * (2, 1, 1)
        with pytest.raises(ShapeError, match="16 atoms that interact, with 688 pairs.* this one for a CPU"):
            session.run(matrix([crystal], base))
        inputs = matrix([students.water()], base)
        with pytest.raises(ShapeError, match="no pairing"):
            session.run(inputs._replace(reverse=np.zeros_like(inputs.reverse)))
    backend = get_backend("fused")
    assert [backend.takes("cuda:0", atoms) for atoms in (chain(32), chain(33), crystal)] == [True, False, False]
    assert all(backend.takes("cpu", atoms) for atoms in (chain(33), crystal))


def test_a_device_does_not_search_for_it(cuda: EmulatedCuda, base: Student, packed: Packed) -> None:
    boxes = boxes_of(Atoms("H200", np.random.default_rng(0).uniform(0, 60, (200, 3))), 5.0, 5.0)
    with (
        opened(cuda, packed, [Plan(packed, 9, 36)]) as session,
        pytest.raises(ShapeError, match="takes 9 atoms that interact on a GPU, and this structure has 200"),
    ):
        session.search(boxes, lambda atoms, slots: None)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("features", [16, 96, 128])
def test_plans_fit_every_gpu(packed: Packed, capability: str, features: int) -> None:
    student = packed if features == 96 else pack(made(features))
    if (capability, features) == ("75", 128):
        with pytest.raises(EngineUnavailableError, match="65,536 bytes of shared memory a block, and .* 128 features"):
            plans_for(student, capability)
        return
    plans = plans_for(student, capability)
    assert all(plan.shared <= SHARED.get(capability, 232_448) for plan in plans)
    assert [plan.rows for plan in plans] == sorted({plan.rows for plan in plans})
    if capability in ("90", "100"):
        assert plans[-1].rows == MOST_ATOMS
        assert plans[-1].pairs == MOST_ATOMS * (MOST_ATOMS - 1) // 2


def made(features: int) -> PaiNN:
    torch.manual_seed(0)
    said = {"architecture": "painn", "hidden_dim": features, "num_interactions": 3, "num_rbf": 20, "cutoff": 5.0}
    return PaiNN(Configuration(**said), 10).double().requires_grad_(False)


def test_a_student_too_wide_and_nvrtc_that_is_missing_are_said(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineUnavailableError, match="capability 90 has 232,448 bytes .* a student of 2048 features"):
        plans_for(Packed(packed.weights, {**packed.macros, "FEATURES": 2048}), "90")
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.delattr(cuda.bindings, "nvrtc", raising=False)
    options = BuildOptions(("80",), device="cuda", of_student=pack(made(16)).to_bytes())
    with pytest.raises(EngineUnavailableError, match="NVRTC, which compiles kernels for GPUs, is not installed"):
        get_backend("fused").build(b"", options)


@pytest.mark.parametrize("capability", ["75", "86", "90", "120"])
def test_the_kernel_compiles_for_every_gpu(packed: Packed, capability: str) -> None:
    plan = plans_for(packed, capability)[-1]
    assert compile_kernel(capability, plan.source(), fmad=True).startswith(b"\x7fELF")


def test_pieces_are_cut_where_no_pair_leads_across(base: Student) -> None:
    batch = mixture()
    inputs = graph_inputs(batch, base.configuration.cutoff)
    pieces = pieces_of(inputs.reverse)
    starts = np.cumsum([0, *map(len, batch)])
    assert set(starts) <= set(pieces.bounds), "a molecule may be cut further, and never joined with another"
    assert pieces.slots[-1] == (inputs.reverse != np.arange(inputs.reverse.size).reshape(inputs.reverse.shape)).sum()
    groups = groups_of(pieces, 27, 216)
    assert groups[0] == len(groups) - 2
    assert (groups[1], groups[-1]) == (0, len(inputs.mask))
    assert set(groups[1:]) <= set(pieces.bounds)
    whole = pieces_of_molecules(starts[:-1], int(starts[-1]), int(starts[-1]) + 3)
    assert whole.bounds[-4:].tolist() == [starts[-1], starts[-1] + 1, starts[-1] + 2, starts[-1] + 3]
    assert whole.slots[-1] == sum(len(atoms) * (len(atoms) - 1) for atoms in batch)
    assert whole.most_rows == 21
    # atoms of two molecules that take turns are one piece: a group is a run of rows
    mixed = Atoms("H4", [[0.0, 0, 0], [50.0, 0, 0], [0.9, 0, 0], [50.9, 0, 0]])
    assert pieces_of(graph_inputs([mixed], 5.0).reverse).bounds.tolist() == [0, 4]


@pytest.fixture(scope="module")
def path(painn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, water = tmp_path_factory.mktemp("fused"), [students.water()]
    (path,) = export_engines(
        painn, folder, engines=["fused"], structures=water, device="cuda", compute_capabilities=["86"]
    )
    return path


def test_it_is_built_without_a_gpu_and_says_that_it_was_not_executed(path: Path) -> None:
    bundle = read_bundle(path)
    assert bundle.manifest.bound_to == ("cuda:86",)
    (said,) = get_backend("fused").contents(bundle).items()
    assert said[0] == "kernels for cuda:86"
    assert "groups of up to 9 atoms and 36 pairs" in said[1]
    assert "there is none here" in bundle.json("validation.json")["not_executed"]
    with pytest.raises(EngineUnavailableError, match="compiled for cuda:86 and cannot run on 'auto'; there is"):
        PaiNNCalculator(path)


def test_a_bundle_is_opened_on_a_gpu_of_its_kind(
    cuda: EmulatedCuda, path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []

    def kernel(code: bytes, plan: Plan) -> HostKernel:
        assert code.startswith(b"\x7fELF")
        plans.append(plan)
        return HostKernel(cuda, plan)

    monkeypatch.setattr(fused_gpu, "GroupsKernel", kernel)
    for module in (fused_gpu, fused_backend):
        monkeypatch.setattr(module, "compute_capability", lambda index: "86")
    monkeypatch.setattr(fused_backend, "gpus", lambda: ("cuda:0",))
    batch = [students.water(seed) for seed in range(4)]
    with PaiNNCalculator(path) as one, PaiNNCalculator(bundle, device="cpu") as other:
        assert one.engine_info["device"] == "cuda:0"
        for got, want in zip(one.calculate_batch(batch), other.calculate_batch(batch), strict=True):
            np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=2e-5)
    assert [plan.rows for plan in plans] == [plan.rows for plan in plans_for(pack(made(16)), "86")]
    monkeypatch.setattr(fused_backend, "compute_capability", lambda index: "75")
    with pytest.raises(BundleError, match="compiled for cuda:86, and this machine is cuda:75"):
        PaiNNCalculator(path)
