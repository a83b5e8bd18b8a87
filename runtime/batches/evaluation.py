"""Windows of structures through an engine, which works on one while the next is made ready.

A window is checked, searched, grouped into batches of like sizes and packed in the caller's thread; another thread
hands its batches to the engine, one after another, and the caller makes results of those that came back.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from ase.symbols import Symbols
from jaxtyping import Float64, Int32, Int64

from painn_deploy.engines.session import MoleculesOutputs
from painn_deploy.engines.timings import Timings
from painn_deploy.export.errors import EngineError, OwnershipError, ShapeError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.manifest import Manifest
from painn_deploy.runtime.batches.answers import Answers, Gathering
from painn_deploy.runtime.batches.pairs import PairLists, refuse_one_spot
from painn_deploy.runtime.batches.windows import Window
from painn_deploy.runtime.grouping import divided
from painn_deploy.runtime.limits import SizeLimits
from painn_deploy.runtime.species import AtomicReferences
from painn_deploy.runtime.structures import bounds_of
from painn_deploy.runtime.uncertainty.scale import RATIO, VERDICT
from painn_deploy.runtime.uncertainty.source import Uncertainty
from painn_deploy.runtime.uncertainty.watch import Doubts

__all__ = ["Engine", "evaluated"]

ON_DEVICE = 24
"""Atoms of a molecule whose pairs a device forms. There an atom has a slot for each other one, and of a larger molecule
many are beyond the cutoff. Not measured on a GPU yet."""

TURN = 2e-4
"""Seconds between two threads' turns, see `_ShortTurns`."""

T = TypeVar("T")


@runtime_checkable
class Engine(Protocol):
    """What an `Evaluator` is here."""

    manifest: Manifest
    limits: SizeLimits
    references: AtomicReferences
    uncertainty: Uncertainty | None
    doubts: Doubts
    timings: Timings

    @property
    def dtype(self) -> np.dtype:
        """Of displacements and mask."""

    @property
    def slot_step(self) -> int:
        """The number of columns of a matrix is a multiple of it."""

    @property
    def most_atoms(self) -> int | None:
        """Atoms that one batch may hold."""

    @property
    def forms_molecules(self) -> bool:
        """Whether the engine's device forms pairs of small molecules itself."""

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """The engine; whoever else asks meanwhile waits.

        Args:
            inputs: of the graph contract.
        """

    def run_molecules(
        self,
        numbers: Int32[np.ndarray, " atoms"],
        positions: Float64[np.ndarray, "atoms 3"],
        starts: Int64[np.ndarray, " molecules"],
    ) -> MoleculesOutputs:
        """The same of molecules whose pairs the device forms.

        Args:
            numbers: Z.
            positions: Å.
            starts: first row of each molecule.
        """

    def digested(self, numbers: np.ndarray, outputs: GraphOutputs) -> GraphOutputs:
        """Outputs with what uncertainties are made of.

        Args:
            numbers: atomic numbers.
            outputs: of the engine.
        """


class _Molecules(NamedTuple):
    """A batch whose pairs the engine's device forms."""

    atomic_numbers: Int32[np.ndarray, " atoms"]
    positions: Float64[np.ndarray, "atoms 3"]
    starts: Int64[np.ndarray, " molecules"]


Outputs = GraphOutputs | MoleculesOutputs | Exception
"""Of a batch; or why there are none."""


class _Work:
    """A window that was made ready."""

    def __init__(self, engine: Engine, window: Window, batch_slots: int) -> None:
        self._engine, self._frames, self.faults = engine, window.frames, window.faults
        with engine.timings.phase("neighbours"):
            self._references: Float64[np.ndarray, " atoms"] = window.frames.examine(engine.references, self.faults)
            counts, left = window.frames.counts, np.zeros(len(window.frames), bool)
            if engine.forms_molecules:
                left = ~window.frames.pbc.any(1) & (counts <= ON_DEVICE) & (counts > 0)
            self._pairs = PairLists.of(window.frames, engine.manifest.cutoff, self.faults, left)
            slots = self._pairs.slots_of_all(window.frames, left)
            for index in (~engine.limits.surely(counts, slots)).nonzero()[0].tolist():
                try:
                    if index not in self.faults:
                        engine.limits.check(int(counts[index]), int(slots[index]))
                except ShapeError as error:
                    self.faults[index] = error
            sound = np.ones(len(counts), bool)
            sound[list(self.faults)] = False
            if window.look is not None and (window.watched or window.frames.cells.any()):
                boxed = np.asarray(window.frames.cells.any((1, 2)) & ~window.frames.pbc.any(1))
                boxed[list(window.watched)] = True
                for index in (boxed & sound).nonzero()[0].tolist():
                    window.look(index)
            batches = []
            for alike in (sound & ~left, sound & left):
                chosen = alike.nonzero()[0]
                if len(chosen):
                    divisions = divided(counts[chosen], slots[chosen], batch_slots, engine.most_atoms)
                    batches += [chosen[one] for one in divisions]
        self._left = left
        self._inputs = [(batch, self._packed_or_not(batch)) for batch in batches]
        self._outputs: Future[list[Outputs]] = Future()

    def _packed_or_not(self, chosen: Int64[np.ndarray, " chosen"]) -> GraphInputs | _Molecules | MemoryError:
        try:
            return self._packed(chosen)
        except MemoryError as error:
            return error

    def _packed(self, chosen: Int64[np.ndarray, " chosen"]) -> GraphInputs | _Molecules:
        """Structures in one matrix, or side by side for a device that makes one."""
        engine, frames = self._engine, self._frames
        with engine.timings.phase("packing"):
            if not self._left[chosen[0]]:
                return self._pairs.packed(frames, chosen, engine.dtype, engine.slot_step)
            counts = frames.counts[chosen]
            rows = frames.rows_of(chosen)
            positions = np.ascontiguousarray(frames.positions[rows])
            return _Molecules(frames.numbers[rows].astype(np.int32), positions, bounds_of(counts)[:-1])

    def run(self, worker: ThreadPoolExecutor | None, stopped: threading.Event) -> None:
        """Hand its batches to the engine: at once, or where a worker comes to it.

        Args:
            worker: None for this thread.
            stopped: set where nobody waits for the answers any more.
        """
        if worker is None:
            self._outputs.set_result(self._run(stopped))
        else:
            self._outputs = worker.submit(self._run, stopped)

    def _run(self, stopped: threading.Event) -> list[Outputs]:
        outputs: list[Outputs] = []
        for _, inputs in self._inputs:
            if stopped.is_set():
                break
            try:
                outputs.append(inputs if isinstance(inputs, MemoryError) else _run(self._engine, inputs))
            except Exception as error:  # it is raised where results are made of it
                outputs.append(error)
        return outputs

    def answers(self) -> Answers:
        """Of all its structures, once the engine has answered."""
        engine, frames = self._engine, self._frames
        gathering = Gathering(frames, self._references, engine.uncertainty, self.faults)
        for (chosen, inputs), outputs in zip(self._inputs, self._outputs.result(), strict=True):
            if not isinstance(outputs, Exception) and not isinstance(inputs, MemoryError):
                self._take(gathering, chosen, inputs.atomic_numbers, outputs)
            elif isinstance(outputs, EngineError | MemoryError) and not isinstance(outputs, OwnershipError):
                self._one_by_one(gathering, chosen, outputs)
            elif isinstance(outputs, Exception):  # no structure's fault
                raise outputs
        with engine.timings.phase("results"):
            answers = gathering.answers()
        if engine.doubts.limit is not None and RATIO in answers.uncertainties:
            ratios = answers.uncertainties[RATIO]
            for index in (ratios > engine.doubts.limit).nonzero()[0].tolist():
                told = {RATIO: float(ratios[index]), VERDICT: answers.uncertainties[VERDICT][index]}
                engine.doubts.look(told, str(Symbols(frames.numbers[frames.rows(index)])))
        engine.timings.calculations += sum(len(chosen) for chosen, _ in self._inputs)
        return answers

    def _take(
        self,
        gathering: Gathering,
        chosen: Int64[np.ndarray, " chosen"],
        numbers: Int32[np.ndarray, " atoms"],
        outputs: GraphOutputs | MoleculesOutputs,
    ) -> None:
        with self._engine.timings.phase("results"):
            if isinstance(outputs, MoleculesOutputs):
                counts = self._frames.counts[chosen]
                nearest = np.minimum.reduceat(outputs.nearest, bounds_of(counts)[:-1])
                refuse_one_spot(self._frames, chosen, nearest, self._engine.manifest.cutoff, self.faults)
                outputs = outputs.outputs
            gathering.add(chosen, self._engine.digested(numbers, outputs))

    def _one_by_one(
        self, gathering: Gathering, chosen: Int64[np.ndarray, " chosen"], error: EngineError | MemoryError
    ) -> None:
        """Run a batch again that the engine refused, so that only the culprit is without results."""
        if len(chosen) == 1:
            self.faults[int(chosen[0])] = _as_engine_error(error)
            return
        refusals = []
        for index in chosen.tolist():
            alone = np.array([index])
            try:
                inputs = self._packed(alone)
                self._take(gathering, alone, inputs.atomic_numbers, _run(self._engine, inputs))
            except OwnershipError:
                raise
            except (EngineError, MemoryError) as refusal:
                self.faults[index] = _as_engine_error(refusal)
                refusals.append(refusal)
        if len(refusals) == len(chosen):
            raise refusals[-1]


def _run(engine: Engine, inputs: "GraphInputs | _Molecules") -> GraphOutputs | MoleculesOutputs:
    with engine.timings.phase("engine"):
        return engine.run_molecules(*inputs) if isinstance(inputs, _Molecules) else engine.run(inputs)


class _ShortTurns:
    """While anybody is inside, threads take turns at the interpreter every `TURN` and not every 5 ms.

    The thread that runs the engine needs the interpreter between two batches, for microseconds. Structures are made
    ready and results made in Python, and it would wait as long for its turn as the engine works on a batch.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(TURN, self._before))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                sys.setswitchinterval(self._before)


_short_turns = _ShortTurns()


def evaluated(engine: Engine, windows: Iterable[Window], batch_slots: int, make: Callable[[Answers], T]) -> Iterator[T]:
    """Answers for one window after another; while the engine works on one, the next is made ready.

    Args:
        engine: that answers.
        windows: of structures.
        batch_slots: atoms x slots of a batch.
        make: what is made of the answers, in their place.

    Raises:
        EngineError: the engine refuses each one of several structures of a batch, so that they are not to blame.
    """
    worker: ThreadPoolExecutor | None = None
    stopped = threading.Event()
    waiting: deque[_Work] = deque()
    try:
        for window in windows:
            with _short_turns:
                work = _Work(engine, window, batch_slots)
                if worker is None and not window.last:  # the last one has nothing beside it
                    worker = ThreadPoolExecutor(1, "painn-deploy-engine")
                work.run(worker, stopped)
            waiting.append(work)
            if len(waiting) > 1:
                yield _made(waiting.popleft(), make)
        while waiting:
            yield _made(waiting.popleft(), make)
    finally:
        stopped.set()
        if worker is not None:
            worker.shutdown(cancel_futures=True)


def _made(work: _Work, make: Callable[[Answers], T]) -> T:
    with _short_turns:
        return make(work.answers())


def _as_engine_error(error: EngineError | MemoryError) -> EngineError:
    text = str(error)
    if isinstance(error, EngineError) and "bad_alloc" not in text and "allocate memory" not in text:
        return error
    return EngineError(f"It needs more memory than there is: {text or 'out of memory'}.")
