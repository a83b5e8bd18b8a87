"""Measurements of the staged job: cases, errors against float64, clocks of host and device."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from torch.profiler import ProfilerActivity, profile

from painn_deploy.engines import Session
from painn_deploy.engines.contract import padded
from painn_deploy.engines.gpu.lane import SLOT_STEP
from painn_deploy.engines.session import CudaGraphs, FollowingSession, SearchingSession
from painn_deploy.export.errors import EngineError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.verlet import MANY
from painn_deploy.scripts.benchmarks.cases import box_of_water
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, Edges, edges_of
from painn_deploy.scripts.benchmarks.standing import in_boxes, resident_of
from painn_deploy.scripts.gpu.plan import LAUNCHED, REPLAYED
from painn_deploy.scripts.gpu.record import Unavailable

__all__ = [
    "Case",
    "Clock",
    "Pace",
    "eager_figures",
    "engine_figures",
    "errors",
    "made_cases",
    "same_bits",
]

SETS = 4
"""Sets of positions of a case, taken in turn: a result that is remembered is no time."""

SIGMA = 0.02
"""Å, that every atom is moved by in every direction."""

WARM_UP = 3

Figures = Callable[[str, Callable[[], Any]], None]
"""Keeps a figure by name, if it is not kept already; given what measures it."""


@dataclass(frozen=True)
class Pace:
    """How long is measured.

    Attributes:
        calls: of one figure at most.
        seconds: of one figure at most.
    """

    calls: int
    seconds: float


@dataclass(frozen=True)
class Case:
    """Structures that are evaluated together, several times over with different positions.

    Attributes:
        name: such as `64 ethanols`.
        structures: of each set.
        inputs: of each set, all of one shape.
        edges: the same as a list of edges in float32.
        energies: of each set, eV of each structure in float64, without atomic references.
        forces: of each set, eV/Å in float64.
    """

    name: str
    structures: list[list[Atoms]]
    inputs: list[GraphInputs]
    edges: list[Edges]
    energies: list[np.ndarray]
    forces: list[np.ndarray]


class Clock:
    """Times of calls.

    Args:
        pace: how many.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def host(self, call: Callable[[int], object]) -> dict[str, float]:
        """Median and quartiles of whole calls, ms; `call(i)` returns when its result is in the host's memory."""
        began = time.perf_counter()
        spent: list[float] = []
        for i in range(WARM_UP):
            call(i)
        while len(spent) < 3 or (len(spent) < self._pace.calls and time.perf_counter() - began < self._pace.seconds):
            before = time.perf_counter()
            call(len(spent))
            spent.append(1e3 * (time.perf_counter() - before))
        low, middle, high = np.percentile(spent, [25, 50, 75])
        return {"ms": float(middle), "quarter": float(low), "three quarters": float(high), "calls": len(spent)}

    def torch_device(self, call: Callable[[int], object], device: str, rounds: int = 3) -> float:
        """ms of one call on a GPU, by CUDA events about many of them; the median of a few rounds.

        Args:
            call: takes a round's number.
            device: such as `cuda:0`.
            rounds: of which the median is taken.
        """
        calls = max(3, self._pace.calls // 4)
        spent: list[float] = []
        with torch.cuda.device(device):
            call(0)
            torch.cuda.synchronize()
            for _ in range(rounds):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                for i in range(calls):
                    call(i)
                end.record()
                end.synchronize()
                spent.append(start.elapsed_time(end) / calls)
        return statistics.median(spent)


def made_cases(student: Student, device: str, *, quick: bool) -> dict[str, Case]:
    """The cases that a student is good for, with its results in float64, by eager autograd on the device.

    Args:
        student: in float64.
        device: that the references are computed on.
        quick: small ones alone.
    """
    cutoff = student.configuration.cutoff
    ethanol = molecule("CH3CH2OH")
    given = {"1 ethanol": [ethanol], "64 ethanols": [ethanol] * 64, "1024 ethanols": [ethanol] * 1024}
    given["1536 atoms of water"] = [box_of_water() * (2, 2, 2)]
    if quick:
        given = {"1 ethanol": [ethanol], "8 ethanols": [ethanol] * 8}
    model = EagerModel(copy.deepcopy(student)).to(device)  # a module moves in place
    cases, rng = {}, np.random.default_rng(0)
    for name, structures in given.items():
        if not {int(z) for atoms in structures for z in atoms.numbers} <= set(student.species):
            continue
        moved = [[_moved(atoms, rng) for atoms in structures] for _ in range(SETS)]
        inputs = [graph_inputs(one, cutoff, slot_step=SLOT_STEP) for one in moved]
        widest = max(one.mask.shape[1] for one in inputs)
        results = [model(edges_of(one, cutoff, torch.float64).to(device)) for one in moved]
        energies, forces = ([values.cpu().numpy() for values in column] for column in zip(*results, strict=True))
        edges = [edges_of(one, cutoff) for one in moved]
        inputs = [padded(one, len(one.mask), widest) for one in inputs]  # one shape, so that one CUDA graph serves all
        cases[name] = Case(name, moved, inputs, edges, energies, forces)
    return cases


def _moved(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = atoms.copy()
    moved.positions += rng.normal(0, SIGMA, moved.positions.shape)
    return moved


def errors(case: Case, one: int, atomic: np.ndarray, forces: np.ndarray, shift: np.ndarray | float = 0.0) -> Any:
    """Of one set, against float64.

    Args:
        case: the case.
        one: which of its sets.
        atomic: energies of atoms, eV [atoms].
        forces: eV/Å [atoms, 3].
        shift: eV that each atom's energy is corrected by outside of the engine.
    """
    wanted, edges = case.forces[one], case.edges[one]
    difference = forces.astype(np.float64) - wanted
    structure = edges.structure.numpy()
    energies = np.bincount(structure, atomic.astype(np.float64) + shift, minlength=edges.structures)
    off = np.abs(energies - case.energies[one]) / np.bincount(structure, minlength=edges.structures)
    return {
        "finite": bool(np.isfinite(forces).all() and np.isfinite(atomic).all()),
        "relative force error": float(np.linalg.norm(difference) / np.linalg.norm(wanted)),
        "force RMSE, eV/A": float(np.sqrt((difference**2).mean())),
        "largest force error, eV/A": float(np.abs(difference).max()),
        "largest energy error, eV an atom": float(off.max()),
    }


def same_bits(one: GraphOutputs, other: GraphOutputs) -> bool:
    """Whether all outputs are finite, and the same to the bit.

    Args:
        one: outputs.
        other: outputs of the same shapes.
    """
    return all(np.isfinite(a).all() and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _worst(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest of each error over sets; NaN is the largest."""
    worst = {key: float(np.max([one[key] for one in found])) for key in found[0] if key != "finite"}
    return {"finite": all(one["finite"] for one in found), **worst}


def engine_figures(
    keep: Figures, calculator: PaiNNCalculator, student: Student, cases: Mapping[str, Case], clock: Clock, calls: int
) -> None:
    """Errors and times of an engine on every case, the engine alone and from `Atoms`.

    Args:
        keep: keeps a figure.
        calculator: on the engine.
        student: that it was made of.
        cases: by name.
        clock: for times on the host.
        calls: between two events of the device.
    """
    session, manifest = calculator.session, calculator.manifest
    references = np.array([float(student.atomic_references[z]) for z in manifest.species])
    shifts = np.zeros(max(manifest.species) + 1)
    shifts[list(manifest.species)] = np.array(manifest.atomic_references) - references
    for case in cases.values():
        _engine_figures(keep, session, case, shifts, clock)
        if isinstance(session, CudaGraphs):
            _gpu_figures(keep, session, case, shifts, manifest.cutoff, clock, calls)
    for case in cases.values():
        _whole_figures(keep, calculator, case, clock)
    if isinstance(session, CudaGraphs):  # last: a profiler may leave a process slower than it was
        for case in cases.values():
            _kernel_figures(keep, session, case)


def _engine_errors(session: Session, case: Case, shifts: np.ndarray) -> dict[str, Any]:
    """The largest of a case; `shifts` are eV by atomic number that energies are corrected by outside of the engine."""
    found = []
    for one, inputs in enumerate(case.inputs):
        outputs = session.run(inputs)
        found.append(errors(case, one, outputs.atomic_energies, outputs.forces, shifts[inputs.atomic_numbers]))
    return _worst(found)


def _engine_figures(keep: Figures, session: Session, case: Case, shifts: np.ndarray, clock: Clock) -> None:
    """Of plain launches."""
    if isinstance(session, CudaGraphs):
        session.cuda_graphs = False
    keep(f"{case.name}: errors", lambda: _engine_errors(session, case, shifts))
    keep(f"{case.name}: engine call", lambda: clock.host(lambda i: session.run(case.inputs[i % SETS])))


def _gpu_figures(
    keep: Figures, session: CudaGraphs, case: Case, shifts: np.ndarray, cutoff: float, clock: Clock, calls: int
) -> None:
    """Of the device, of CUDA graphs, and of steps that upload positions alone."""
    name, inputs = case.name, case.inputs
    keep(f"{name}: {LAUNCHED}", lambda: session.device_time(inputs[0], calls).launched)
    session.cuda_graphs = True

    def replayed(measure: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: _replayed(session, case, measure)

    keep(f"{name}: replayed errors", replayed(lambda: _engine_errors(session, case, shifts)))
    keep(f"{name}: replayed call", replayed(lambda: clock.host(lambda i: session.run(inputs[i % SETS]))))
    keep(f"{name}: {REPLAYED}", replayed(lambda: session.device_time(inputs[0], calls).replayed))
    if len(case.structures[0]) == 1 and isinstance(session, FollowingSession):
        keep(f"{name}: step, positions alone", lambda: _steps(session, case, cutoff, clock))
        _search_figures(keep, session, case, cutoff, clock)
    session.cuda_graphs = False


def _kernel_figures(keep: Figures, session: CudaGraphs, case: Case) -> None:
    """How many kernels one evaluation launches, and which take longest."""

    def measure() -> dict[str, Any]:
        session.run(case.inputs[0])
        try:
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                session.run(case.inputs[0])
                torch.cuda.synchronize()
        except RuntimeError as error:
            raise Unavailable(f"torch's profiler does not run here: {error}") from error
        rows = [row for row in seen.key_averages() if str(row.device_type).endswith("CUDA")]
        rows.sort(key=lambda row: -row.self_device_time_total)
        return {
            "launches": sum(row.count for row in rows),
            "us": sum(row.self_device_time_total for row in rows),
            "longest: name, launches, us": [[r.key[:80], r.count, r.self_device_time_total] for r in rows[:16]],
        }

    keep(f"{case.name}: kernels", measure)


def _whole_figures(keep: Figures, calculator: PaiNNCalculator, case: Case, clock: Clock) -> None:
    """From `Atoms` to results."""
    keep(
        f"{case.name}: from Atoms",
        lambda: clock.host(lambda i: calculator.calculate_batch(case.structures[i % SETS])),
    )


def _replayed(session: CudaGraphs, case: Case, measure: Callable[[], Any]) -> Any:
    """Measurements made once a case's size was recorded; no plain launch passes for a replay."""
    for _ in range(3):
        session.run(case.inputs[0])
    if (reason := session.refused_graphs.get(("graph", *case.inputs[0].mask.shape))) is not None:
        raise EngineError(f"A CUDA graph of this size was refused: {reason}")
    return measure()


def _search_figures(keep: Figures, session: Session, case: Case, cutoff: float, clock: Clock) -> None:
    """A search by the device and by the host, until the device holds the structure."""
    frames = [one[0] for one in case.structures]
    if not isinstance(session, SearchingSession) or len(frames[0]) < MANY:
        return
    boxes = [in_boxes(one, cutoff) for one in frames]

    def admit(atoms: int, slots: int) -> None:
        """Any size."""

    ways: dict[str, Callable[[int], Any]] = {
        "host, its search and the upload": lambda i: session.follow(resident_of(frames[i % SETS], cutoff)),
        "device, from boxes": lambda i: session.search(boxes[i % SETS], admit),
        "device, boxes made": lambda i: session.search(in_boxes(frames[i % SETS], cutoff), admit),
    }
    for way, call in ways.items():
        keep(f"{case.name}: search, {way}", partial(clock.host, call))


def _steps(session: FollowingSession, case: Case, cutoff: float, clock: Clock) -> Any:
    """A step of dynamics that uploads positions alone: its time, and what it differs by from a whole evaluation."""
    frames = [np.ascontiguousarray(one[0].positions) for one in case.structures]
    wanted = [session.run(inputs) for inputs in case.inputs]
    session.follow(resident_of(case.structures[0][0], cutoff))
    found = clock.host(lambda i: session.step(frames[i % SETS]))
    apart = [np.abs(session.step(frames[i]).forces - wanted[i].forces).max() for i in range(SETS)]
    return found | {"largest difference of a force, eV/A": float(np.max(apart))}


def eager_figures(
    keep: Figures, student: Student, cases: Mapping[str, Case], device: str, clock: Clock, *, compiled: bool
) -> None:
    """The same of PyTorch eager with autograd, or of what torch.compile makes of it.

    Args:
        keep: keeps a figure.
        student: in float32.
        cases: by name.
        device: `cpu` or a GPU.
        clock: for times.
        compiled: compile it first; the time of that is in a figure of its own.
    """
    model = EagerModel(copy.deepcopy(student)).to(device)
    if compiled:
        model.atomic = torch.compile(model.atomic, dynamic=True)
    for case in cases.values():
        _eager_figures(keep, model, case, device, clock)


def _eager_figures(keep: Figures, model: EagerModel, case: Case, device: str, clock: Clock) -> None:
    def whole(i: int) -> list[np.ndarray]:
        return [tensor.cpu().numpy() for tensor in model(case.edges[i % SETS].to(device))]

    def first() -> dict[str, Any]:
        began, found = time.perf_counter(), []
        for one, edges in enumerate(case.edges):
            structure = edges.structure.numpy()
            energies, forces = whole(one)
            found.append(errors(case, one, (energies / np.bincount(structure))[structure], forces))
        return _worst(found) | {"seconds of the first calls": time.perf_counter() - began}

    keep(f"{case.name}: errors", first)
    keep(f"{case.name}: engine call", lambda: clock.host(whole))
    if device != "cpu":
        resident = [edges.to(device) for edges in case.edges]
        keep(f"{case.name}: {LAUNCHED}", lambda: clock.torch_device(lambda i: model(resident[i % SETS]), device))
