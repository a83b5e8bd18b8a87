"""Measurements of engines in the staged job: errors against float64, clocks of host and device."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch.profiler import ProfilerActivity, profile

from painn_deploy.engines import Session
from painn_deploy.engines.gpu.recordings import MOST_CELLS, recordable
from painn_deploy.engines.session import CudaGraphs, FollowingSession, SearchingSession
from painn_deploy.export.errors import DeviceMemoryError, EngineError
from painn_deploy.export.fields import GraphOutputs
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.verlet import MANY
from painn_deploy.scripts.benchmarks.standing import in_boxes, resident_of
from painn_deploy.scripts.gpu.cases import SIGMA, Case, Pace
from painn_deploy.scripts.gpu.plan import LAUNCHED, REPLAYED, Figures
from painn_deploy.scripts.gpu.record import Unavailable
from painn_deploy.scripts.gpu.resources import RECORDED, Sized

__all__ = ["ASE_CALL", "Clock", "engine_figures", "errors", "mover_of", "same_bits", "worst"]

ASE_CALL = "ASE call"
"""Figure of `atoms.get_forces()` at new positions, with CUDA graphs where a session has them."""


class Clock:
    """Times of calls.

    Args:
        pace: how many.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def at(self, pace: Pace | None) -> "Clock":
        """A clock of another pace; this one where that is None."""
        return self if pace is None else Clock(pace)

    @property
    def calls(self) -> int:
        """Of one figure at most."""
        return self._pace.calls

    def host(self, call: Callable[[int], object], prepare: Callable[[], object] = lambda: None) -> dict[str, float]:
        """Median and quartiles of whole calls, ms.

        Args:
            call: takes its number, and returns when its result is in the host's memory.
            prepare: called before each, outside the time that is taken.
        """
        pace, began = self._pace, time.perf_counter()
        spent: list[float] = []
        for i in range(pace.warm_up):
            prepare()
            call(i)
        while len(spent) < pace.least or (len(spent) < pace.calls and time.perf_counter() - began < pace.seconds):
            prepare()
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


def worst(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest of each error over sets; NaN is the largest."""
    largest = {key: float(np.max([one[key] for one in found])) for key in found[0] if key != "finite"}
    return {"finite": all(one["finite"] for one in found), **largest}


def mover_of(atoms: Atoms) -> tuple[Atoms, Callable[[], None]]:
    """A copy of a structure, and what gives it new positions near its own: its neighbours stand, as in most steps."""
    moving, start, rng = atoms.copy(), atoms.positions.copy(), np.random.default_rng(2)

    def move() -> None:
        moving.positions = start + rng.normal(0, SIGMA, start.shape)

    return moving, move


def engine_figures(
    keep: Figures, calculator: PaiNNCalculator, student: Student, cases: Mapping[str, Case], clock: Clock
) -> None:
    """Errors and times of an engine on every case, the engine alone and from `Atoms`.

    Args:
        keep: keeps a figure.
        calculator: on the engine.
        student: that it was made of.
        cases: by name.
        clock: for times; of a case with a pace of its own, at that.
    """
    session, manifest = calculator.session, calculator.manifest
    references = np.array([float(student.atomic_references[z]) for z in manifest.species])
    shifts = np.zeros(max(manifest.species) + 1)
    shifts[list(manifest.species)] = np.array(manifest.atomic_references) - references
    by_default = isinstance(session, CudaGraphs) and session.cuda_graphs
    kept = {name: Sized(keep) for name in cases}
    for name, case in cases.items():
        _engine_figures(kept[name], session, case, shifts, clock.at(case.pace))
        if isinstance(session, CudaGraphs):
            _gpu_figures(kept[name], session, case, shifts, manifest.cutoff, clock.at(case.pace))
    for name, case in cases.items():
        _whole_figures(kept[name], calculator, case, clock.at(case.pace), by_default=by_default)
    if isinstance(session, CudaGraphs):  # last: a profiler may leave a process slower than it was
        for name, case in cases.items():
            _kernel_figures(kept[name], session, case)
        session.cuda_graphs = by_default


def _engine_errors(session: Session, case: Case, shifts: np.ndarray) -> dict[str, Any]:
    """The largest of a case; `shifts` are eV by atomic number that energies are corrected by outside of the engine."""
    found = []
    for one, inputs in enumerate(case.inputs):
        outputs = session.run(inputs)
        found.append(errors(case, one, outputs.atomic_energies, outputs.forces, shifts[inputs.atomic_numbers]))
    return worst(found)


def _engine_figures(keep: Sized, session: Session, case: Case, shifts: np.ndarray, clock: Clock) -> None:
    """Of plain launches."""
    if isinstance(session, CudaGraphs):
        session.cuda_graphs = False
    inputs = case.inputs
    keep(f"{case.name}: errors", lambda: _engine_errors(session, case, shifts), decides=True)
    keep(f"{case.name}: engine call", lambda: clock.host(lambda i: session.run(inputs[i % len(inputs)])))


def _gpu_figures(keep: Sized, session: CudaGraphs, case: Case, shifts: np.ndarray, cutoff: float, clock: Clock) -> None:
    """Of the device, of CUDA graphs, and of steps that upload positions alone."""
    name, inputs, calls = case.name, case.inputs, clock.calls
    keep(f"{name}: {LAUNCHED}", lambda: session.device_time(inputs[0], calls).launched)
    session.cuda_graphs = True

    def replayed(measure: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: _replayed(session, case, measure)

    keep(f"{name}: replayed errors", replayed(lambda: _engine_errors(session, case, shifts)))
    keep(f"{name}: replayed call", replayed(lambda: clock.host(lambda i: session.run(inputs[i % len(inputs)]))))
    keep(f"{name}: {REPLAYED}", replayed(lambda: session.device_time(inputs[0], calls).replayed))
    if case.lone is not None and isinstance(session, FollowingSession):
        keep(f"{name}: step, positions alone", lambda: _steps(session, case, cutoff, clock))
        _search_figures(keep, session, case, cutoff, clock)
    session.cuda_graphs = False


def _kernel_figures(keep: Sized, session: CudaGraphs, case: Case) -> None:
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

    session.cuda_graphs = False
    keep(f"{case.name}: kernels", measure)


def _whole_figures(keep: Sized, calculator: PaiNNCalculator, case: Case, clock: Clock, *, by_default: bool) -> None:
    """From `Atoms` to results, as a session is by default and the other way, and a call of ASE."""
    session, structures = calculator.session, case.structures

    def from_atoms() -> dict[str, float]:
        return clock.host(lambda i: calculator.calculate_batch(structures[i % len(structures)]))

    def replayed() -> dict[str, float]:
        for one in structures * RECORDED:  # whatever sizes the sets have
            calculator.calculate_batch(one)
        return from_atoms()

    ways = {True: ("replayed", replayed), False: ("launched", from_atoms)}
    if isinstance(session, CudaGraphs):
        session.cuda_graphs = by_default
    keep(f"{case.name}: from Atoms", ways[by_default][1])
    if isinstance(session, CudaGraphs) and not case.huge:
        session.cuda_graphs = not by_default
        name, measure = ways[not by_default]
        keep(f"{case.name}: from Atoms, {name}", measure)
    if case.lone is not None:
        if isinstance(session, CudaGraphs):
            session.cuda_graphs = True
        atoms, move = mover_of(case.lone)
        atoms.calc = calculator

        def ase_call() -> dict[str, float]:
            for _ in range(RECORDED):
                move()
                atoms.get_forces()
            return clock.host(lambda _: atoms.get_forces(), move)

        keep(f"{case.name}: {ASE_CALL}", ase_call)


def _replayed(session: CudaGraphs, case: Case, measure: Callable[[], Any]) -> Any:
    """Measurements made once a case's size was recorded; no plain launch passes for a replay."""
    if not recordable(*case.inputs[0].mask.shape):
        raise Unavailable(f"More than {MOST_CELLS} atoms x slots are launched kernel by kernel.")
    for _ in range(RECORDED):
        session.run(case.inputs[0])
    if (reason := session.refused_graphs.get(("graph", *case.inputs[0].mask.shape))) is not None:
        told = f"A CUDA graph of this size was refused: {reason}"
        raise (DeviceMemoryError if "memory" in reason else EngineError)(told)
    return measure()


def _any_size(atoms: int, slots: int) -> None:
    """Admits every matrix."""


def _search_figures(keep: Sized, session: Session, case: Case, cutoff: float, clock: Clock) -> None:
    """A search by the device and by the host, until the device holds the structure."""
    frames = [one[0] for one in case.structures]
    if not isinstance(session, SearchingSession) or len(frames[0]) < MANY:
        return
    boxes = [in_boxes(one, cutoff) for one in frames]
    sets = len(frames)
    ways: dict[str, Callable[[int], Any]] = {
        "host, its search and the upload": lambda i: session.follow(resident_of(frames[i % sets], cutoff)),
        "device, from boxes": lambda i: session.search(boxes[i % sets], _any_size),
        "device, boxes made": lambda i: session.search(in_boxes(frames[i % sets], cutoff), _any_size),
    }
    for way, call in ways.items():
        if case.huge and way.startswith("host"):
            continue
        keep(f"{case.name}: search, {way}", partial(clock.host, call))


def _steps(session: FollowingSession, case: Case, cutoff: float, clock: Clock) -> Any:
    """A step of dynamics that uploads positions alone: its time, and what it differs by from a whole evaluation."""
    frames = [np.ascontiguousarray(one[0].positions) for one in case.structures]
    sets, wanted = len(frames), [session.run(inputs) for inputs in case.inputs]
    if case.huge and isinstance(session, SearchingSession):
        session.search(in_boxes(case.structures[0][0], cutoff), _any_size)
    else:
        session.follow(resident_of(case.structures[0][0], cutoff))
    found = clock.host(lambda i: session.step(frames[i % sets]))
    apart = [np.abs(session.step(frames[i]).forces - wanted[i].forces).max() for i in range(sets)]
    return found | {"largest difference of a force, eV/A": float(np.max(apart))}
