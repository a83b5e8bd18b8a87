"""What a session does with a GPU, on one that is made of host memory; what a real one answers is `make gpu-check`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from painn_deploy.engines import tensorrt_session
from painn_deploy.engines.backend import EngineInfo, ResidentGraph
from painn_deploy.engines.contract import check_tensors, padded
from painn_deploy.engines.device_positions import compile_kernel
from painn_deploy.engines.onnxruntime import open_graph
from painn_deploy.engines.profiles import Profile
from painn_deploy.engines.tensorrt_session import MOST_GRAPHS, TensorRTSession
from painn_deploy.export import load_student
from painn_deploy.export.errors import DeviceMemoryError, EngineError, ShapeError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.onnx_graph import export_onnx
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.neighbours import SlotLayout, find_pairs, graph_inputs

from . import emulated_gpu, students

INFO = EngineInfo(backend="emulated", version="0", device="cuda:0", precision="fp32", bundle_sha256="")
PROFILE = Profile((1, 8, 64), (1, 8, 128))
CUTOFF = 4.0


@pytest.fixture(scope="module")
def model(painn: Path) -> bytes:
    return export_onnx(load_student(painn), {}).SerializeToString()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> emulated_gpu.EmulatedCuda:
    made = emulated_gpu.EmulatedCuda()
    monkeypatch.setattr(tensorrt_session, "runtime", lambda: made)
    monkeypatch.setattr(tensorrt_session, "compute_capability", lambda index: "86")
    monkeypatch.setattr(tensorrt_session, "DisplacementKernel", emulated_gpu.displacement_kernel(made, tmp_path))
    return made


def open_session(cuda: emulated_gpu.EmulatedCuda, model: bytes, **options: Any) -> TensorRTSession:
    return TensorRTSession(emulated_gpu.library(cuda, model), b"plan", 0, PROFILE, INFO, **options)


def same(got: GraphOutputs, want: Any) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6)


def test_results_are_the_graphs_own_whether_launched_captured_or_replayed(
    cuda: emulated_gpu.EmulatedCuda, model: bytes
) -> None:
    run = open_graph(model)
    with open_session(cuda, model) as session:
        for seed in range(5):
            inputs = graph_inputs([students.water(seed)], CUTOFF)
            same(session.run(inputs), run(inputs))
        assert (cuda.captures, cuda.launches) == (1, 4)
        kept = session.run(graph_inputs([students.water(9)], CUTOFF))
        before = kept.forces.copy()
        session.run(graph_inputs([students.water(10)], CUTOFF))
        assert (kept.forces == before).all(), "a result was overwritten by the next"


def test_larger_and_smaller_structures_take_turns(cuda: emulated_gpu.EmulatedCuda, model: bytes) -> None:
    run = open_graph(model)
    with open_session(cuda, model) as session:
        for name in ("water", *students.zoo(), *students.zoo()):
            atoms = students.zoo().get(name, students.water())
            inputs = graph_inputs([atoms], CUTOFF)
            if inputs.mask.shape[0] <= 64 and inputs.mask.shape[1] <= 128:
                same(session.run(inputs), run(inputs))
                same(session.run(inputs), run(inputs))


def test_graphs_are_bounded_and_can_be_switched_off(cuda: emulated_gpu.EmulatedCuda, model: bytes) -> None:
    with open_session(cuda, model) as session:
        for count in range(1, MOST_GRAPHS + 4):
            inputs = graph_inputs([students.water(i) for i in range(count)], CUTOFF)
            for _ in range(2):
                session.run(inputs)
        assert len(cuda.graphs) == MOST_GRAPHS
    assert not cuda.graphs
    cuda.captures = 0
    with open_session(cuda, model, graphs=False) as session:
        for _ in range(3):
            session.run(inputs)
    assert cuda.captures == 0


def test_batches_alternate_between_two_lanes_in_order(cuda: emulated_gpu.EmulatedCuda, model: bytes) -> None:
    run = open_graph(model)
    batches = [graph_inputs([students.water(i)] * (1 + i % 3), CUTOFF) for i in range(7)]
    with open_session(cuda, model) as session:
        assert list(session.run_many([])) == []
        for got, inputs in zip(session.run_many(iter(batches)), batches, strict=True):
            same(got, run(inputs))
        assert len(cuda.streams) == 2
        abandoned = session.run_many(iter(batches))
        next(abandoned)
        same(session.run(batches[3]), run(batches[3]))


def test_everything_is_given_back(cuda: emulated_gpu.EmulatedCuda, model: bytes) -> None:
    session = open_session(cuda, model)
    inputs = graph_inputs([students.water()], CUTOFF)
    list(session.run_many([inputs] * 4))
    assert cuda.held > 0
    session.close()
    session.close()
    assert (cuda.held, cuda.streams, cuda.graphs) == (0, set(), {})
    with pytest.raises(EngineError, match="session is closed"):
        session.run(inputs)


def test_too_little_memory_says_so_and_the_session_goes_on(cuda: emulated_gpu.EmulatedCuda, model: bytes) -> None:
    run = open_graph(model)
    small, large = (
        graph_inputs([students.water()], CUTOFF),
        graph_inputs([students.water(i) for i in range(20)], CUTOFF),
    )
    with open_session(cuda, model) as session:
        same(session.run(small), run(small))
        cuda.capacity = cuda.held + 1000
        with pytest.raises(DeviceMemoryError, match=r"cudaMalloc(Host)? failed: cudaErrorMemoryAllocation"):
            session.run(large)
        cuda.capacity = 1 << 30
        for inputs in (small, large, small, small):
            same(session.run(inputs), run(inputs))
    assert cuda.held == 0


def test_a_plan_that_is_none_and_a_size_outside_are_refused(cuda: emulated_gpu.EmulatedCuda, model: bytes) -> None:
    with pytest.raises(EngineError, match="cannot load this plan"):
        TensorRTSession(emulated_gpu.library(cuda, model), b"other", 0, PROFILE, INFO)
    with open_session(cuda, model) as session, pytest.raises(ShapeError, match="outside this engine's profile"):
        session.run(graph_inputs([students.water(i) for i in range(22)], CUTOFF))


def resident(atoms: Any, skin: float) -> tuple[ResidentGraph, SlotLayout]:
    pairs, _ = find_pairs(atoms, CUTOFF + skin)
    layout = SlotLayout.of(pairs.first, pairs.second, len(atoms))
    frozen = atoms.copy()
    frozen.positions[:] = 0.0
    shifts, _ = layout.scatter(pairs.displacements(frozen.positions, np.asarray(atoms.cell)), dtype=np.float64)
    stored = np.zeros((layout.atoms, layout.slots), np.uint8)
    stored.reshape(-1)[layout.forward] = stored.reshape(-1)[layout.backward] = 1
    numbers = atoms.numbers.astype(np.int32)
    return ResidentGraph(numbers, layout.neighbours, layout.reverse, shifts, stored, CUTOFF), layout


@pytest.mark.parametrize("name", ["water", "triclinic", "slab"])
def test_positions_alone_give_what_the_whole_graph_gives(
    cuda: emulated_gpu.EmulatedCuda, model: bytes, name: str
) -> None:
    run, rng = open_graph(model), np.random.default_rng(0)
    atoms = {**students.zoo(), "water": students.water()}[name]
    with open_session(cuda, model) as session:
        with pytest.raises(EngineError, match="No structure is followed"):
            session.step(atoms.positions)
        graph, _ = resident(atoms, 1.0)
        session.follow(graph)
        for _ in range(4):
            atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
            pairs, vectors = find_pairs(atoms, CUTOFF)
            own = SlotLayout.of(pairs.first, pairs.second, len(atoms))
            displacements, mask = own.scatter(vectors)
            want = run(GraphInputs(graph.atomic_numbers, displacements, own.neighbours, own.reverse, mask))
            same(session.step(atoms.positions), want)
        assert cuda.launches == 3
        with pytest.raises(ShapeError, match="are followed"):
            session.step(atoms.positions[:1])
        session.run(graph_inputs([students.water()], CUTOFF))
        with pytest.raises(EngineError, match="No structure is followed"):  # its place was taken
            session.step(atoms.positions)


def test_the_kernel_masks_what_is_beyond_the_cutoff(tmp_path: Path) -> None:
    run = emulated_gpu.host_kernel(tmp_path)
    positions = np.array([[0.0, 0, 0], [4.0, 0, 0]])
    neighbours, shifts = np.array([[1, 0], [0, 1]], np.int32), np.zeros((2, 2, 3))
    stored = np.array([[1, 0], [1, 0]], np.uint8)
    displacements, mask = np.full((2, 2, 3), np.nan, np.float32), np.full((2, 2), np.nan, np.float32)
    for distance, edge in ((4.0, 0.0), (np.nextafter(4.0, 0), 1.0)):
        positions[1, 0] = distance
        arrays = [array.ctypes.data for array in (positions, neighbours, shifts, stored)]
        run(4, *arrays, 4.0, 2, 2, displacements.ctypes.data, mask.ctypes.data)
        assert mask.tolist() == [[edge, 0.0], [edge, 0.0]]
        assert displacements[0, 0, 0] == np.float32(distance) == -displacements[1, 0, 0]
        assert not displacements[:, 1].any()


@pytest.mark.parametrize("capability", ["75", "86", "89", "90", "120"])
def test_the_kernel_compiles_for_every_gpu(capability: str) -> None:
    assert compile_kernel(capability).startswith(b"\x7fELF")


def test_an_unknown_gpu_is_an_error_in_words() -> None:
    with pytest.raises(EngineError, match="cannot compile for compute capability 12"):
        compile_kernel("12")


def test_padding_changes_nothing(model: bytes) -> None:
    run = open_graph(model)
    inputs = graph_inputs([students.water(), students.perturbed(students.zoo()["triclinic"], 1)], CUTOFF)
    atoms, slots = inputs.mask.shape
    want, got = run(inputs), run(padded(inputs, atoms + 3, slots + 5))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one[:atoms], other, rtol=0, atol=3e-6)


def test_tensors_are_held_against_the_contract() -> None:
    tensors = [torch.from_numpy(array) for array in graph_inputs([students.water()], CUTOFF)]
    check_tensors(tensors, "cpu")
    with pytest.raises(ShapeError, match=r"on cpu.*on cuda:0"):
        check_tensors(tensors, "cuda:0")
    with pytest.raises(ShapeError, match="5 tensors"):
        check_tensors(tensors[:3], "cpu")
    for index, wrong in ((1, tensors[1].double()), (2, tensors[2].T.contiguous().T), (4, tensors[4][0])):
        with pytest.raises(ShapeError, match="The input"):
            check_tensors([*tensors[:index], wrong, *tensors[index + 1 :]], "cpu")


@pytest.mark.parametrize("name", ["ethanol", "triclinic"])
def test_a_calculator_uploads_positions_alone_while_neighbours_stand(
    cuda: emulated_gpu.EmulatedCuda, model: bytes, bundle: Path, name: str
) -> None:
    rng, atoms = np.random.default_rng(3), students.zoo()[name]
    with PaiNNCalculator(bundle, skin=0.0) as plain, PaiNNCalculator(bundle, skin=0.6) as resident:
        resident._attach(session := open_session(cuda, model))
        follows: list[int] = []
        follow = session.follow
        session.follow = lambda graph: follows.append(1) or follow(graph)
        for step in range(30):
            atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
            if step == 10:
                resident.calculate_batch([students.water()])  # takes the device's place
            if step == 20 and atoms.pbc.any():
                atoms.set_cell(atoms.cell.array * 1.002)  # the same neighbours, other shifts
            got, want = (calculator.get_forces(atoms) for calculator in (resident, plain))
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
        assert 1 < len(follows) < 20
        if atoms.pbc.all():
            np.testing.assert_allclose(resident.get_stress(atoms), plain.get_stress(atoms), rtol=0, atol=1e-5)
