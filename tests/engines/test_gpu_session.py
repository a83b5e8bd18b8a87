"""What a session does with a GPU, on one that is made of host memory, for every engine; what a real one answers is
`make gpu-check`."""

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from painn_deploy.engines.contract import check_indices, check_molecules, padded
from painn_deploy.engines.forms import Form
from painn_deploy.engines.forms import Plan as FormPlan
from painn_deploy.engines.fused.gpu import FusedExecutor
from painn_deploy.engines.fused.plan import Plan
from painn_deploy.engines.fused.weights import pack
from painn_deploy.engines.gpu import device_molecules, device_neighbours, device_positions, recordings
from painn_deploy.engines.gpu import lane as gpu_lane
from painn_deploy.engines.gpu.arena import Arena
from painn_deploy.engines.gpu.device_positions import compile_kernel
from painn_deploy.engines.gpu.recordings import MOST_GRAPHS, MOST_REFUSED
from painn_deploy.engines.gpu.session import GpuSession
from painn_deploy.engines.inductor.gpu import LoadedPackage, TorchExecutor
from painn_deploy.engines.inductor.onnx_torch import OnnxModule
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.engines.onnxruntime.gpu import OrtExecutor, ort_in_words
from painn_deploy.engines.profiles import Profile
from painn_deploy.engines.session import Boxes, CudaGraphs, EngineInfo, MoleculesSession, SearchingSession
from painn_deploy.engines.tensorrt.session import TensorRTSession
from painn_deploy.export import load_student
from painn_deploy.export.errors import DeviceMemoryError, EngineError, ShapeError, StructureError
from painn_deploy.export.fields import FIELDS, GraphOutputs, outputs_of
from painn_deploy.export.graph.onnx_graph import axes_of, export_onnx
from painn_deploy.export.model.committee import Committee
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator, verlet
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.pairs.boxes import boxes_of
from painn_deploy.runtime.verlet import VerletList
from painn_deploy.scripts.gpu import proofs
from painn_deploy.scripts.gpu.proofs import Subject
from tests import students

from . import emulated_gpu
from .fused.host_kernel import loaded

INFO = EngineInfo(backend="emulated", version="0", device="cuda:0", precision="fp32", bundle_sha256="")
PROFILE = Profile((1, 8, 64), (1, 8, 128))
CUTOFF = 4.0
ENGINES = ("tensorrt", "inductor", "onnxruntime", "fused")


@pytest.fixture(scope="module")
def model(painn: Path) -> bytes:
    return export_onnx(load_student(painn), {}).SerializeToString()


class Opened:
    """How a session of each engine is opened on the emulated GPU; `torch` stands for the library."""

    def __init__(self, cuda: emulated_gpu.EmulatedCuda, model: bytes, student: Student | None = None) -> None:
        self.cuda, self.model, self.student = cuda, model, student
        self.torch = emulated_gpu.EmulatedTorch(cuda)
        self.numbers: list[str] = []
        graph = onnx.load_from_string(model)
        self.inputs = tuple(FIELDS[value.name] for value in graph.graph.input)
        self.outputs = outputs_of(axes_of(graph))

    def __call__(self, engine: str, *, index: int = 0, **options: Any) -> GpuSession:
        options = {"cuda_graphs": True, **options}
        if engine == "tensorrt":
            options = {"outputs": self.outputs, "inputs": self.inputs, **options}
            return TensorRTSession(
                emulated_gpu.library(self.cuda, self.model), b"plan", index, PROFILE, INFO, **options
            )
        make = {"inductor": self._inductor, "onnxruntime": self._onnxruntime, "fused": self._fused}[engine]
        return GpuSession(make(index), index, INFO, **options)

    def _inductor(self, index: int) -> Callable[[int, Arena], TorchExecutor]:
        packages = []
        for form, most in (("sums+paired+side", 200), ("sums", None)):
            plan = FormPlan(Form.parse(form), most_cells=most)
            run = OnnxModule(plan.form.lowered(onnx.load_from_string(self.model)))
            packages.append(LoadedPackage(plan, 100.0, self.torch.package(run, self.outputs)))
        boundary = {"outputs": self.outputs, "inputs": self.inputs}
        return lambda stream, arena: TorchExecutor(self.torch, packages, f"cuda:{index}", stream, **boundary)

    def _fused(self, index: int) -> Callable[[int, Arena], FusedExecutor]:
        assert self.student is not None, "its weights are not in the graph"
        packed = pack(self.student)
        plans = [Plan(packed, 9, 36, lanes=2), Plan(packed, 64, 2048, 8, spilled=True, shared_limit=2**24)]
        return lambda stream, arena: FusedExecutor(packed, loaded(self.cuda, plans), 4, stream, arena, self.outputs)

    def _onnxruntime(self, index: int) -> Callable[[int, Arena], OrtExecutor]:
        opened = self

        class RunOptions:
            def add_run_config_entry(self, key: str, value: str) -> None:
                self.number = value if key == "gpu_graph_id" else self.number

            number = ""

        class Session:
            """ONNX Runtime's own, which a stream is sent; what it records by number is for a GPU."""

            def __init__(self, stream: int) -> None:
                self._session, self._stream = onnxruntime.InferenceSession(opened.model), stream

            def io_binding(self) -> Any:
                return self._session.io_binding()

            def run_with_iobinding(self, binding: Any, options: RunOptions) -> None:
                opened.numbers.append(options.number)
                opened.cuda.sent(self._stream)
                self._session.run_with_iobinding(binding)

        library = type("Library", (), {"RunOptions": RunOptions})
        return lambda stream, arena: OrtExecutor(
            library, lambda records: Session(stream), "cpu", 0, 100.0, opened.outputs, opened.inputs
        )


@pytest.fixture
def opened(cuda: emulated_gpu.EmulatedCuda, model: bytes, painn: Path) -> Opened:
    return Opened(cuda, model, load_student(painn))


def same(got: GraphOutputs, want: Any) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6)


every_engine = pytest.mark.parametrize("engine", ENGINES)
searching = pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "fused"])
"""Those that evaluate structures whose neighbours the device finds; `fused` refuses them in its own tests."""


@every_engine
def test_results_are_the_graphs_own_whether_launched_recorded_or_replayed(
    opened: Opened, model: bytes, engine: str
) -> None:
    run, cuda = open_graph(model), opened.cuda
    with opened(engine) as session:
        for seed in range(5):
            inputs = graph_inputs([students.water(seed)], CUTOFF)
            same(session.run(inputs), run(inputs))
        if engine == "onnxruntime":  # it records its kernels alone: 0 is its own number, -1 records nothing
            assert opened.numbers == ["-1", "-1", "-1", "-1", "1", "1", "1", "1"]  # two of them before it is recorded
        else:
            assert (cuda.captures, cuda.launches) == (1, 3)
        kept = session.run(graph_inputs([students.water(9)], CUTOFF))
        before = kept.forces.copy()
        session.run(graph_inputs([students.water(10)], CUTOFF))
        assert (kept.forces == before).all(), "a result was overwritten by the next"


@pytest.mark.parametrize(
    ("engine", "kind"), [(e, k) for e in ENGINES for k in ("features", "committee") if (e, k) != ("fused", "committee")]
)
def test_what_a_graph_gives_besides_comes_down_too(
    cuda: emulated_gpu.EmulatedCuda, painn: Path, tmp_path: Path, engine: str, kind: str
) -> None:
    student: Student = load_student(painn)
    if kind == "committee":
        student = Committee([student, load_student(students.write(tmp_path, "painn", seed=1))], ["a", "b"]).eval()
    else:
        student.gives_features = True
    model = export_onnx(student, {}).SerializeToString()
    names = [field.name for field in outputs_of(student.axes)]
    run = open_graph(model, names)
    with Opened(cuda, model, student)(engine) as session:
        for seed in range(4):
            inputs = graph_inputs([students.water(seed), students.water(seed + 1)], CUTOFF)
            got, want = session.run(inputs), run(inputs)
            same(got, want[:3])
            assert list(got.extras) == names[3:]
            for one, other in zip(got.extras.values(), want[3:], strict=True):
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=0, atol=3e-6)


@every_engine
def test_a_call_copies_twice_and_waits_once(opened: Opened, engine: str) -> None:
    inputs = graph_inputs([students.water()], CUTOFF)
    with opened(engine, cuda_graphs=False) as session:
        session.run(inputs)
        before = opened.cuda.copies, opened.cuda.waits
        session.run(inputs)
        assert (opened.cuda.copies - before[0], opened.cuda.waits - before[1]) == (2, 1)


@every_engine
def test_the_time_on_the_device_is_that_of_the_engine_and_of_a_replay(opened: Opened, engine: str) -> None:
    inputs = graph_inputs([students.water()], CUTOFF)
    with opened(engine, cuda_graphs=False) as session:
        assert session.device_time(inputs, 7) == (1.0, None)  # the emulated device takes 1 ms for all it is sent
        assert isinstance(session, CudaGraphs)
        session.graphs = True  # the former name
        launched, replayed = session.device_time(inputs, 7)
        assert (launched, replayed) == (1.0, 3.0 if engine == "onnxruntime" else 1.0)  # with its copies, or as a whole
        assert session.cuda_graphs


@every_engine
def test_a_size_that_launching_costs_nothing_is_not_recorded(
    opened: Opened, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (graph_inputs([students.water(i) for i in range(count)], CUTOFF) for count in (1, 4))
    monkeypatch.setattr(recordings, "MOST_CELLS", 3 * 8)  # of the small one, whose slots are rounded up
    with opened(engine) as session:
        for _ in range(4):
            session.run(large)
            session.run(small)
        (lane,) = session._lanes
        assert [key[1:3] for key in lane.recordings.keys] == [(3, 8)]
        assert not session.refused_graphs, "nothing was refused: it was not tried"


@every_engine
def test_larger_and_smaller_structures_take_turns(opened: Opened, model: bytes, engine: str) -> None:
    run = open_graph(model)
    with opened(engine) as session:
        for name in ("water", *students.zoo(), *students.zoo()):
            atoms = students.zoo().get(name, students.water())
            inputs = graph_inputs([atoms], CUTOFF)
            if inputs.mask.shape[0] <= 64 and inputs.mask.shape[1] <= 128:
                for _ in range(2):
                    same(session.run(inputs), run(inputs))
        # sizes that alternate are recorded too, each after a run of its own size
        batches = [graph_inputs([students.water(i) for i in range(count)], CUTOFF) for count in (1, 2, 3)]
        for _ in range(4):
            for inputs in batches:
                same(session.run(inputs), run(inputs))
        assert not session.refused_graphs


@every_engine
def test_a_liquid_s_slots_are_rounded_before_they_are_recorded(opened: Opened, engine: str) -> None:
    rng = np.random.default_rng(0)
    atoms = Atoms("O60", rng.uniform(0, 9, (60, 3)))
    sizes = set()
    with opened(engine) as session:
        for _ in range(24):
            atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
            inputs = graph_inputs([atoms], CUTOFF)
            sizes.add(inputs.mask.shape[1])
            session.run(inputs)
        (lane,) = session._lanes
        assert len(lane.recordings.keys) <= 2 < len(sizes), sizes
        assert all(key[2] % session.slot_step == 0 for key in lane.recordings.keys)


def test_a_matrix_of_the_right_width_is_not_padded_again(
    opened: Opened, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened("tensorrt") as session:
        inputs = graph_inputs([students.water()], CUTOFF, slot_step=session.slot_step)
        assert inputs.mask.shape == (3, 8)
        monkeypatch.setattr(gpu_lane, "padded", lambda graph, *size: graph if graph.mask.shape == size else 1 / 0)
        same(session.run(inputs), open_graph(model)(inputs))


@pytest.mark.parametrize("engine", ["tensorrt", "inductor"])
def test_graphs_are_bounded_and_can_be_switched_off(opened: Opened, engine: str) -> None:
    cuda = opened.cuda
    with opened(engine) as session:
        for count in range(1, MOST_GRAPHS + 4):
            inputs = padded(graph_inputs([students.water()], CUTOFF), count + 2, 8)
            for _ in range(2):
                session.run(inputs)
        (lane,) = session._lanes
        assert len(lane.recordings.keys) == MOST_GRAPHS
        assert len(cuda.graphs) == (MOST_GRAPHS if engine == "tensorrt" else 0)
        if engine == "inductor":  # one pool for all: each would keep as much memory as an evaluation takes
            assert opened.torch.resets == 3
            assert len(set(map(id, opened.torch.pools))) == 1
            assert set(opened.torch.modes) == {"thread_local"}, "what another thread allocates would end a recording"
    assert not cuda.graphs
    cuda.captures = 0
    with opened(engine, cuda_graphs=False) as session:
        for _ in range(3):
            session.run(inputs)
    assert cuda.captures == 0


@pytest.mark.parametrize("engine", ["tensorrt", "inductor"])
def test_what_cannot_be_recorded_is_launched_and_told_once(opened: Opened, model: bytes, engine: str) -> None:
    run, cuda = open_graph(model), opened.cuda
    cuda.refuse_captures = True
    with opened(engine) as session:
        inputs = graph_inputs([students.water()], CUTOFF)
        same(session.run(inputs), run(inputs))
        with pytest.warns(RuntimeWarning, match="3 atoms x 8 slots could not be recorded.*kernel by kernel"):
            same(session.run(inputs), run(inputs))
        for _ in range(3):  # remembered: neither tried nor told again
            same(session.run(inputs), run(inputs))
        assert list(session.refused_graphs) == [("graph", 3, 8)]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for count in range(2, 2 + MOST_REFUSED):
                for _ in range(2):
                    session.run(graph_inputs([students.water(i) for i in range(count)], CUTOFF))
        assert len(session.refused_graphs) == MOST_REFUSED == len(told) + 1
        assert "No further size is tried" in str(told[-1].message)


def test_a_capture_that_breaks_costs_no_later_one(opened: Opened) -> None:
    with opened("inductor") as session:
        opened.torch.break_captures = True
        inputs = graph_inputs([students.water()], CUTOFF)
        session.run(inputs)
        with pytest.warns(RuntimeWarning, match="previous error during capture"):
            session.run(inputs)
        opened.torch.break_captures = False
        for _ in range(3):
            session.run(graph_inputs([students.water(seed) for seed in range(2)], CUTOFF))
        assert len(session.refused_graphs) == 1
        assert opened.cuda.launches == 1


@pytest.mark.parametrize("engine", ["tensorrt", "inductor"])
def test_a_size_is_recorded_again_once_memory_has_moved(opened: Opened, model: bytes, engine: str) -> None:
    run = open_graph(model)
    small, large = (graph_inputs([students.water(i) for i in range(count)], CUTOFF) for count in (1, 20))
    with opened(engine) as session:
        for inputs in (small, small, small, large, small, small, small):
            same(session.run(inputs), run(inputs))
        assert opened.cuda.captures == 2
        assert opened.cuda.launches == 2, "the third call of each time"
        assert not session.refused_graphs


@every_engine
def test_batches_come_back_in_order(opened: Opened, model: bytes, engine: str) -> None:
    run = open_graph(model)
    batches = [graph_inputs([students.water(i)] * (1 + i % 3), CUTOFF) for i in range(7)]
    with opened(engine) as session:
        assert list(session.run_many([])) == []
        for got, inputs in zip(session.run_many(iter(batches)), batches, strict=True):
            same(got, run(inputs))
        assert len(opened.cuda.streams) == (2 if engine == "tensorrt" else 1)
        abandoned = session.run_many(iter(batches))
        next(abandoned)
        same(session.run(batches[3]), run(batches[3]))


@every_engine
def test_everything_is_given_back_by_close_and_by_a_session_that_is_dropped(opened: Opened, engine: str) -> None:
    cuda = opened.cuda
    inputs = graph_inputs([students.water()], CUTOFF)
    released: list[int] = []
    options = {} if engine == "tensorrt" else {"release": lambda: released.append(1)}
    session = opened(engine, **options)
    list(session.run_many([inputs] * 4))
    assert cuda.held > 0
    session.close()
    session.close()
    assert (cuda.held, cuda.events, cuda.graphs) == (0, {}, {})
    streams = len(cuda.streams)
    with pytest.raises(EngineError, match="session is closed"):
        session.run(inputs)
    session = opened(engine, **options)
    session.run(inputs)
    assert cuda.held > 0
    del session
    gc.collect()
    assert (cuda.held, cuda.graphs, len(cuda.streams)) == (0, {}, streams), "streams are used again"
    assert len(released) == (0 if engine == "tensorrt" else 2)


@every_engine
def test_too_little_memory_says_so_and_the_session_goes_on(opened: Opened, model: bytes, engine: str) -> None:
    run, cuda = open_graph(model), opened.cuda
    small, large = (
        graph_inputs([students.water()], CUTOFF),
        graph_inputs([students.water(i) for i in range(20)], CUTOFF),
    )
    with opened(engine) as session:
        same(session.run(small), run(small))
        cuda.capacity = cuda.held + 1000
        with pytest.raises(DeviceMemoryError, match="too little free memory.*cudaErrorMemoryAllocation.*batch_slots"):
            session.run(large)
        cuda.capacity = 1 << 30
        for inputs in (small, large, small, small):
            same(session.run(inputs), run(inputs))
    assert cuda.held == 0


def test_onnx_runtime_s_full_memory_is_told_apart() -> None:
    for said, kind in (
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer",
            DeviceMemoryError,
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : no kernel image is available", EngineError),
    ):
        with pytest.raises(EngineError) as raised, ort_in_words("onnxruntime failed"):
            raise RuntimeError(said)
        assert type(raised.value) is kind


def test_a_context_takes_memory_for_its_sizes_and_not_for_its_profile(opened: Opened) -> None:
    with opened("tensorrt") as session:
        session.run(graph_inputs([students.water()], CUTOFF))
        assert 0 < opened.cuda.held < emulated_gpu.activations((64, 128)) / 4


@every_engine
def test_the_callers_current_gpu_stays_the_current_one(opened: Opened, engine: str) -> None:
    cuda = opened.cuda
    graph = VerletList(CUTOFF, 1.0).resident(students.water(), None)
    with opened(engine, index=1) as session:
        assert cuda.device == 0
        session.run(graph_inputs([students.water()], CUTOFF))
        session.follow(graph)
        for _ in range(3):
            session.step(students.water().positions)
        list(session.run_many([graph_inputs([students.water()], CUTOFF)] * 3))
        assert cuda.device == 0
        if engine == "inductor":
            assert opened.torch._device == "cuda:1"
    assert cuda.device == 0


def test_a_plan_that_is_none_and_a_size_outside_are_refused(opened: Opened, model: bytes) -> None:
    with pytest.raises(EngineError, match="cannot load this plan"):
        TensorRTSession(emulated_gpu.library(opened.cuda, model), b"other", 0, PROFILE, INFO)
    with opened("tensorrt") as session, pytest.raises(ShapeError, match="outside this engine's profile"):
        session.run(graph_inputs([students.water(i) for i in range(22)], CUTOFF))


@pytest.mark.parametrize("engine", ["inductor", "onnxruntime"])
def test_more_than_32_bits_can_index_is_refused(opened: Opened, engine: str) -> None:
    with opened(engine) as session:
        (lane,) = session._lanes
        lane.executor.check(2**31 // 100 // 64, 64)  # 100 elements a slot
        with pytest.raises(ShapeError, match=f"kernels of {engine} on a GPU index with 32 bits.*serve 335544 atoms"):
            lane.executor.check(335_545, 64)


@every_engine
def test_indices_that_lead_elsewhere_are_refused(opened: Opened, engine: str) -> None:
    inputs = graph_inputs([students.water()], CUTOFF)
    with opened(engine, species=(1, 8)) as session:
        for name, value, message in (
            ("neighbours", 3, "neighbours holds 3, and its values lie between 0 and 2"),
            ("neighbours", -1, "neighbours holds -1"),
            ("reverse", 6, "reverse holds 6, and its values lie between 0 and 5"),
            ("atomic_numbers", 9, "atomic_numbers holds 9, and its values lie between 0 and 8"),
        ):
            wrong = getattr(inputs, name).copy()
            wrong.flat[-1] = value
            with pytest.raises(ShapeError, match=message):
                session.run(inputs._replace(**{name: wrong}))
    check_indices(inputs.atomic_numbers, inputs.neighbours, inputs.reverse)


@every_engine
@pytest.mark.parametrize("name", ["water", "triclinic", "slab", "single atom"])
def test_positions_alone_give_what_the_whole_graph_gives(opened: Opened, model: bytes, engine: str, name: str) -> None:
    run, rng, cuda = open_graph(model), np.random.default_rng(0), opened.cuda
    atoms = {**students.zoo(), "water": students.water()}[name]
    with opened(engine) as session:
        with pytest.raises(EngineError, match="No structure is followed"):
            session.step(atoms.positions)
        graph = VerletList(CUTOFF, 1.0).resident(atoms, None)
        session.follow(graph)
        for _ in range(4):
            atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
            same(session.step(atoms.positions), run(graph_inputs([atoms], CUTOFF)))
        before = cuda.copies
        session.step(atoms.positions)
        if engine == "onnxruntime":
            assert cuda.copies - before == 2
        else:
            assert cuda.launches == 3
        with pytest.raises(ShapeError, match="are followed"):
            session.step(np.zeros((7, 3)))
        session.run(graph_inputs([students.water()], CUTOFF))
        with pytest.raises(EngineError, match="No structure is followed"):  # its place was taken
            session.step(atoms.positions)


def test_the_kernel_masks_what_is_beyond_the_cutoff() -> None:
    run = emulated_gpu.host_kernel()
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


@pytest.mark.parametrize("name", students.zoo())
def test_the_kernel_forms_what_the_host_forms_to_the_bit(name: str) -> None:
    """Displacements, mask, and the last bit of every distance: with the cutoff there, host and kernel agree."""
    run, atoms = emulated_gpu.host_kernel(), students.zoo()[name]
    verlet = VerletList(CUTOFF, 1.0)
    graph = verlet.resident(atoms, None)
    assert graph is not None
    displacements, mask = np.empty((*graph.stored.shape, 3), np.float32), np.empty(graph.stored.shape, np.float32)

    def kernel(cutoff: float) -> None:
        arrays = [a.ctypes.data for a in (atoms.positions, graph.neighbours, graph.shifts, graph.stored)]
        shape = graph.stored.shape
        run(mask.size, *arrays, cutoff, *shape, displacements.ctypes.data, mask.ctypes.data)

    for seed in range(3):
        atoms.positions += np.random.default_rng(seed).normal(0, 0.05, atoms.positions.shape)
        inputs = verlet.inputs(atoms)
        assert verlet.searches == 1
        kernel(CUTOFF)
        np.testing.assert_array_equal(displacements, inputs.displacements)
        np.testing.assert_array_equal(mask, inputs.mask)
    standing = verlet._stored.standing
    found, matrix = standing.found, standing.matrix
    found.form(atoms.positions, verlet._stored.now)
    for pair, distance in enumerate(found.distances):
        for cutoff in (distance, np.nextafter(distance, 9.0)):
            kernel(cutoff)
            ends = matrix.forward[pair], matrix.backward[pair]
            assert [bool(mask.flat[end]) for end in ends] == [found.within(cutoff)[pair]] * 2 == [cutoff > distance] * 2


@pytest.mark.parametrize("capability", ["75", "86", "89", "90", "120"])
def test_the_kernels_compile_for_every_gpu(capability: str) -> None:
    for source in (device_positions.KERNEL, device_molecules.KERNEL, device_neighbours.KERNEL):
        assert compile_kernel(capability, source).startswith(b"\x7fELF")


def test_an_unknown_gpu_is_an_error_in_words() -> None:
    with pytest.raises(EngineError, match="cannot compile for compute capability 12.*--upgrade nvidia-cuda-nvrtc"):
        compile_kernel("12")


def of_sizes(sizes: Sequence[int], seed: int) -> list[Atoms]:
    """Molecules whose atoms lie some 1.2 Å apart along a chain, so that those of many are longer than the cutoff."""
    rng = np.random.default_rng(seed)
    made = []
    for size in sizes:
        steps = rng.normal([1.5, 0.0, 0.0], size=(size, 3))
        steps *= 1.2 / np.linalg.norm(steps, axis=1, keepdims=True)
        made.append(Atoms(rng.choice([1, 6, 7, 8], size), np.cumsum(steps, axis=0) + rng.uniform(-50, 50, 3)))
    return made


def side_by_side(molecules: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, positions and starts."""
    numbers = np.concatenate([atoms.numbers for atoms in molecules]).astype(np.int32)
    sizes = [len(atoms) for atoms in molecules]
    return numbers, np.concatenate([atoms.positions for atoms in molecules]), np.cumsum([0, *sizes[:-1]])


@every_engine
def test_molecules_whose_pairs_the_device_forms_give_what_the_whole_graph_gives(
    opened: Opened, model: bytes, engine: str
) -> None:
    run, rng = open_graph(model), np.random.default_rng(0)
    with opened(engine) as session:
        assert isinstance(session, MoleculesSession)
        for seed in range(20):
            most = 6 if seed % 2 else 31  # of the small ones `inductor` computes filters once a pair
            sizes = [1] if seed == 0 else rng.integers(1, most, 1 + seed % 4).tolist()
            molecules = of_sizes(sizes if sum(sizes) <= 64 else sizes[:2], seed)
            arrays = side_by_side(molecules)
            for _ in range(1 + 3 * (seed % 5 == 0)):  # launched, recorded, replayed
                outputs, nearest = session.run_molecules(*arrays, CUTOFF)
                for one, other in zip(outputs, run(graph_inputs(molecules, CUTOFF)), strict=True):
                    np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * max(1.0, np.abs(other).max()))
            for atoms, start in zip(molecules, arrays[2], strict=True):
                apart = atoms.get_all_distances() + np.diag(np.full(len(atoms), np.inf))
                np.testing.assert_allclose(nearest[start : start + len(atoms)], apart.min(axis=1), rtol=1e-12)
        assert not session.refused_graphs


@every_engine
def test_molecules_upload_atoms_alone_in_one_copy_and_wait_once(opened: Opened, engine: str) -> None:
    cuda, arrays = opened.cuda, side_by_side(of_sizes([9] * 7, 0))
    moved: list[int] = []
    copy = cuda._copy
    cuda._copy = lambda *given: moved.append(given[2]) or copy(*given)
    with opened(engine, cuda_graphs=False) as session:
        session.run_molecules(*arrays, CUTOFF)
        moved.clear()
        before = cuda.waits
        session.run_molecules(*arrays, CUTOFF)
        if engine == "fused":  # where its groups begin
            assert moved.pop(1) == 4 * (63 + 2)
        assert len(moved) == 2
        assert cuda.waits == before + 1
        assert moved[0] == 256 * (6 + 5)  # 63 positions, four arrays of 4 bytes an atom, and where padding is
    if engine != "onnxruntime":
        with opened(engine) as session:
            before, kept = cuda.launches, session.run_molecules(*arrays, CUTOFF)
            forces, nearest = kept.outputs.forces.copy(), kept.nearest.copy()
            moved_by_one = arrays[0], arrays[1] + np.random.default_rng(0).normal(0, 0.01, arrays[1].shape), arrays[2]
            for _ in range(3):
                last = session.run_molecules(*moved_by_one, CUTOFF)
            assert cuda.launches == before + 2
            assert (kept.outputs.forces == forces).all()
            assert (kept.nearest == nearest).all()
            assert not (last.nearest == nearest).all()


@every_engine
def test_molecules_take_the_place_of_what_was_followed(opened: Opened, engine: str) -> None:
    atoms = students.water()
    with opened(engine) as session:
        session.follow(VerletList(CUTOFF, 1.0).resident(atoms, None))
        session.run_molecules(*side_by_side([atoms]), CUTOFF)
        assert session.following is None
        with pytest.raises(EngineError, match="No structure is followed"):
            session.step(atoms.positions)
    assert opened.cuda.held == 0


@every_engine
def test_two_atoms_on_one_spot_are_seen_by_the_device(opened: Opened, engine: str) -> None:
    molecules = of_sizes([9, 1, 5, 20], 3)
    molecules[2].positions[4] = molecules[2].positions[1] + [0.0, 9e-4, 0.0]
    arrays = side_by_side(molecules)
    with opened(engine) as session:
        _, nearest = session.run_molecules(*arrays, CUTOFF)
    assert (nearest < 1e-3).nonzero()[0].tolist() == [11, 14]
    molecules[2].positions[4] = molecules[2].positions[1] + [0.0, 1.1e-3, 0.0]
    with opened(engine) as session:
        assert (session.run_molecules(*side_by_side(molecules), CUTOFF).nearest >= 1e-3).all()


@every_engine
def test_molecules_that_do_not_fit_together_or_the_engine_are_refused(opened: Opened, engine: str) -> None:
    numbers, positions, starts = side_by_side([students.water(), students.water()])
    for wrong, message in (
        ((numbers.astype(np.int64), positions, starts), "numbers of molecules is int64"),
        ((numbers, positions[:4], starts), r"positions of molecules is float64 \(4, 3\)"),
        ((numbers, positions.astype(np.float32), starts), "positions of molecules is float32"),
        ((numbers, positions, starts.astype(np.int32)), "starts of molecules is int32"),
    ):
        with pytest.raises(ShapeError, match=message):
            check_molecules(*wrong)
    with opened(engine, species=(1, 8)) as session:
        for wrong, message in (
            ((numbers, positions, starts[:0]), "0 molecules of 6 atoms"),
            ((numbers[:0], positions[:0], starts[:1]), "1 molecules of 0 atoms"),
            ((numbers, positions, np.array([1, 3])), "must start at row 0"),
            ((numbers, positions, np.array([0, 3, 3])), "none is without atoms"),
            ((numbers, positions, np.array([0, 6])), "none is without atoms"),
            (
                (numbers + np.int32(1), positions, starts),
                "numbers of molecules holds 9, and its values lie between 0 and 8",
            ),
            ((-numbers, positions, starts), "numbers of molecules holds -8"),
        ):
            with pytest.raises(ShapeError, match=message):
                session.run_molecules(*wrong, CUTOFF)
        session.run_molecules(numbers, positions, starts, CUTOFF)
    with opened("tensorrt") as session:
        for sizes in ([30, 30, 5], [64, 1]):
            with pytest.raises(ShapeError, match="outside this engine's profile"):
                session.run_molecules(*side_by_side(of_sizes(sizes, 0)), CUTOFF)


def test_padding_changes_nothing(model: bytes) -> None:
    run = open_graph(model)
    inputs = graph_inputs([students.water(), students.perturbed(students.zoo()["triclinic"], 1)], CUTOFF)
    atoms, slots = inputs.mask.shape
    want, got = run(inputs), run(padded(inputs, atoms + 3, slots + 5))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one[:atoms], other, rtol=0, atol=3e-6)


@every_engine
@pytest.mark.parametrize("name", ["ethanol", "triclinic"])
def test_a_calculator_uploads_positions_alone_while_neighbours_stand(
    opened: Opened, bundle: Path, engine: str, name: str
) -> None:
    rng, atoms = np.random.default_rng(3), students.zoo()[name]
    with PaiNNCalculator(bundle, skin=0.0) as plain, PaiNNCalculator(bundle, skin=0.6) as resident:
        resident.with_session(session := opened(engine))
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


@every_engine
def test_a_calculator_leaves_pairs_of_small_molecules_to_the_device(opened: Opened, bundle: Path, engine: str) -> None:
    zoo = [*students.zoo().values(), molecule("C60")]
    structures = [students.perturbed(zoo[index % len(zoo)], index, 0.02) for index in range(60)]
    with PaiNNCalculator(bundle) as plain, PaiNNCalculator(bundle) as calculator:
        calculator.with_session(session := opened(engine))
        calculator.batch_slots = 240
        asked: dict[str, list[int]] = {"run": [], "run_molecules": []}
        for name, sizes in asked.items():
            method = getattr(session, name)
            setattr(session, name, lambda *a, m=method, s=sizes: (s.append(len(getattr(a[0], "mask", a[0]))), m(*a))[1])
        for got, want in zip(calculator.calculate_batch(structures), plain.calculate_batch(structures), strict=True):
            assert got.keys() == want.keys()
            np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=2e-5)
            assert abs(got["energy"] - want["energy"]) < 3e-6 * len(got["forces"])
        left = [atoms for atoms in structures if len(atoms) <= 24 and not atoms.pbc.any()]
        assert sum(asked["run_molecules"]) == sum(map(len, left)) > 0
        assert sum(asked["run"]) == sum(map(len, structures)) - sum(map(len, left))
        twice = structures[3].copy()
        twice.positions[1] = twice.positions[0]
        outcomes = list(calculator.stream([*structures[:9], twice, structures[9]]))
        assert [outcome.index for outcome in outcomes if outcome.results is None] == [9]
        with pytest.raises(StructureError, match="on one spot"):
            plain.calculate_batch([twice])
        assert "on one spot" in outcomes[9].reason


def sorted_into_boxes(atoms: Atoms, skin: float = 0.6) -> Boxes:
    return boxes_of(atoms, CUTOFF, CUTOFF + skin)


def any_size(atoms: int, slots: int) -> None:
    """Admits all."""


SEARCHED = ("water", "triclinic", "slab", "outside the cell", "wire", "single atom", "far apart")


@searching
@pytest.mark.parametrize("name", SEARCHED)
def test_neighbours_that_the_device_found_give_what_the_whole_graph_gives(
    opened: Opened, model: bytes, engine: str, name: str
) -> None:
    run, rng, atoms = open_graph(model), np.random.default_rng(0), students.zoo()[name]
    sizes: list[tuple[int, int]] = []
    with opened(engine) as session:
        assert isinstance(session, SearchingSession)
        for _ in range(3):
            boxes = sorted_into_boxes(atoms)
            nearest = session.search(boxes, lambda *size: sizes.append(size))
            assert session.following is boxes
            assert sizes[-1] == (len(atoms), session.slot_step * -(-sizes[-1][1] // session.slot_step))
            assert nearest.distance == find_pairs(atoms, CUTOFF + 0.6).nearest().distance
            for _ in range(4):  # launched, recorded, replayed
                same(session.step(atoms.positions), run(graph_inputs([atoms], CUTOFF)))
                atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        session.run(graph_inputs([students.water()], CUTOFF))
        assert session.following is None
        session.follow(boxes)  # again, after something else took its place
        assert session.following is boxes
        same(session.step(boxes.positions), run(graph_inputs([Atoms(atoms, positions=boxes.positions)], CUTOFF)))
        assert not session.refused_graphs
    assert opened.cuda.held == 0


@searching
def test_a_search_that_is_not_admitted_leaves_nothing_followed(opened: Opened, engine: str) -> None:
    atoms = students.zoo()["triclinic"]

    def refuse(atoms: int, slots: int) -> None:
        raise ShapeError("too large")

    with opened(engine, species=(1, 6, 8)) as session:
        session.search(sorted_into_boxes(atoms), any_size)
        with pytest.raises(ShapeError, match="too large"):
            session.search(sorted_into_boxes(atoms), refuse)
        with pytest.raises(EngineError, match="No structure is followed"):
            session.step(atoms.positions)
        with pytest.raises(ShapeError, match="atomic_numbers of boxes holds 13"):
            session.search(sorted_into_boxes(students.zoo()["one atom in a cell shorter than the cutoff"]), any_size)
    with opened("tensorrt") as session, pytest.raises(ShapeError, match="outside this engine's profile"):
        session.search(sorted_into_boxes(students.zoo()["outside the cell"].repeat((11, 3, 1))), any_size)


@searching
@pytest.mark.parametrize("skin", [0.6, None])
def test_a_calculator_leaves_the_search_to_the_device(
    opened: Opened, bundle: Path, engine: str, skin: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verlet, "MANY", 5)
    rng, atoms, searched = np.random.default_rng(3), students.zoo()["outside the cell"].repeat((2, 2, 2)), 0

    def none_here(*given: Any) -> None:
        raise AssertionError("a search on the host")

    with PaiNNCalculator(bundle, skin=0.0) as plain, PaiNNCalculator(bundle, skin=skin) as calculator:
        calculator.with_session(opened(engine))
        for step in range(30):
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
            before = calculator.neighbour_list.searches
            if step == 10:
                calculator.calculate_batch([students.water()])  # takes the device's place
            if step == 20:
                atoms.set_cell(atoms.cell.array * 1.002)  # other shifts
            if step == 25:
                atoms.pbc = [True, True, False]
            want = plain.get_forces(atoms)
            with monkeypatch.context() as patch:
                patch.setattr(verlet, "find_pairs", none_here)
                got = calculator.get_forces(atoms)
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
            assert calculator.neighbour_list.searches == before + 1 or step not in (0, 20, 25)
            searched += calculator.neighbour_list.searches - before
        counted = calculator.neighbour_list
        assert 4 <= searched == counted.searches < 25
        assert counted.searches + counted.updates == 30
        atoms.positions[3] = atoms.positions[1] + [0.0, 1e-4, 0.0]
        with pytest.raises(StructureError, match="on one spot"):
            calculator.get_forces(atoms)
        atoms.positions[3] += [0.0, 1.5, 0.0]
        np.testing.assert_allclose(calculator.get_forces(atoms), plain.get_forces(atoms), rtol=0, atol=1e-4)


@searching
@pytest.mark.parametrize("skin", [0.6, 0.0])
def test_a_part_of_a_structure_has_its_weights_on_a_device_that_searches(
    opened: Opened, bundle: Path, engine: str, skin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verlet, "MANY", 5)
    atoms = students.zoo()["outside the cell"].repeat((2, 2, 2))
    weights = (np.arange(len(atoms)) < len(atoms) // 2).astype(np.float32)
    with PaiNNCalculator(bundle, skin=0.0) as plain, PaiNNCalculator(bundle, skin=skin) as calculator:
        calculator.with_session(opened(engine))
        for _ in range(2):
            for each in (plain, calculator):
                each.neighbour_list.weigh(weights)
            want, got = plain.moving.outputs(atoms), calculator.moving.outputs(atoms)
            np.testing.assert_allclose(got.atomic_energies, want.atomic_energies, rtol=0, atol=2e-5)
            np.testing.assert_allclose(got.forces, want.forces, rtol=0, atol=2e-5)
            np.testing.assert_array_equal(got.atomic_energies == 0, weights == 0)
            assert isinstance(calculator.session.following, Boxes) == (skin > 0), "the device searched where it may"
            weights = 1 - weights


def test_a_skin_that_does_not_fit_is_done_without(
    opened: Opened, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default skin is left out where the engine's profile ends before it; one that was asked for is an error."""
    monkeypatch.setattr(verlet, "MANY", 5)
    atoms = bulk("Al", a=4.05, cubic=True).repeat(2)
    slots = [graph_inputs([atoms], reach).mask.shape[1] for reach in (CUTOFF, CUTOFF + verlet.DEFAULT_SKIN)]
    assert slots[0] < slots[1]

    def fits(atoms: int, columns: int) -> None:
        if columns >= slots[1]:
            raise ShapeError("too many slots")

    with PaiNNCalculator(bundle, skin=0.0) as plain, PaiNNCalculator(bundle) as calculator:
        calculator.with_session(opened("onnxruntime"))
        calculator.neighbour_list.admit = fits
        calculator.neighbour_list.slot_step = 1
        for _ in range(4):
            atoms.rattle(0.01)
            np.testing.assert_allclose(calculator.get_forces(atoms), plain.get_forces(atoms), rtol=0, atol=1e-4)
        assert calculator.neighbour_list.searches == 1 + 4
    with PaiNNCalculator(bundle, skin=0.5) as calculator:
        calculator.with_session(opened("onnxruntime"))
        calculator.neighbour_list.admit = fits
        with pytest.raises(ShapeError, match="too many slots"):
            calculator.get_forces(atoms)


PROVED = ("replays", "lanes", "positions_alone", "searches", "molecules_alone")


@pytest.mark.parametrize("engine", ["inductor", "onnxruntime"])
@pytest.mark.parametrize("name", PROVED)
def test_what_a_gpu_is_to_prove_holds_on_one_of_host_memory(
    opened: Opened, bundle: Path, engine: str, name: str
) -> None:
    """So that time on a real one is not lost to a mistake in a proof."""

    class OnHostMemory(Subject):
        def open(self, *, graphs: bool = False) -> PaiNNCalculator:
            return PaiNNCalculator(bundle).with_session(opened(engine, cuda_graphs=graphs))

    holds, figures = getattr(proofs, name)(OnHostMemory(bundle, "cuda:0", 10, CUTOFF))
    assert holds, figures
