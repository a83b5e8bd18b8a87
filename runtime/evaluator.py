"""`Evaluator`: an open engine that answers for structures, one batch after another."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.symbols import Symbols
from jaxtyping import Float64, Int32, Int64, Integer

from painn_deploy.engines import EngineInfo, Session, get_backend
from painn_deploy.engines.session import (
    Admit,
    Boxes,
    Closing,
    Finder,
    MoleculesOutputs,
    MoleculesSession,
    Nearest,
    SearchingSession,
)
from painn_deploy.engines.timings import Timings
from painn_deploy.export.bundle import Bundle, read_bundle, the_same
from painn_deploy.export.described import NOT_OPEN, described
from painn_deploy.export.errors import EngineError, StructureError
from painn_deploy.export.fields import GraphInputs, GraphOutputs, real_type
from painn_deploy.export.manifest import Manifest
from painn_deploy.export.progress import Tell, silent
from painn_deploy.runtime.batches.answers import Answers
from painn_deploy.runtime.batches.evaluation import evaluated
from painn_deploy.runtime.batches.frames import Frames, named
from painn_deploy.runtime.batches.windows import windows_of, windows_of_atoms
from painn_deploy.runtime.limits import SizeLimits
from painn_deploy.runtime.periodicity import Watch
from painn_deploy.runtime.results import checked_results
from painn_deploy.runtime.sizing import BatchSizes
from painn_deploy.runtime.species import AtomicReferences
from painn_deploy.runtime.uncertainty.source import uncertainty_of
from painn_deploy.runtime.uncertainty.watch import Doubts, Limit, checked_limit

__all__ = ["Evaluator"]


class Evaluator(Closing):
    """An open engine with what it takes to answer for structures: species, size limits and batches.

    It belongs to one thread at a time; copying or pickling it opens the bundle again. ASE's bookkeeping, and the
    neighbour list of a structure that moves, are `PaiNNCalculator`'s.

    Args:
        bundle: a folder NAME.engine, made by `painn-deploy export`, or an open bundle.
        device: `auto`, or a name of the backend's, such as `cpu` or `cuda:0`. Nothing falls back to another device.
        threads: of the CPU; None for as many as there are cores.
        warn_above: how many times as uncertain as its calibration's frames a result may be before there is a warning,
            or `threshold`, what 99 % of these are up to; None for no limit.

    Attributes:
        source: what it was opened from: the folder, or the bundle where that has none.
        manifest: the bundle's description of itself.
        forms_molecules: whether the engine's device forms pairs of small molecules itself.
        references: atomic reference energies by atomic numbers.
        uncertainty: what makes uncertainties of what the graph gives; None where it gives nothing to make them of.
        limits: sizes that the engine takes.
        doubts: counts results beyond `warn_above`.
        timings: milliseconds that a calculation spends in each phase.
        periodicity: warns of crystals that came without their periodic directions.
        threads: as given.
        turn: held while the session runs: a stream's thread and the caller's take turns.

    Raises:
        BundleError: the bundle is damaged, foreign or of a newer format; or there is a limit, and it does not say how
            sure it is.
        EngineUnavailableError: its backend or the device is not here.
        ValueError: the limit is no positive number, and not `threshold`.
    """

    _closed = False

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        warn_above: Limit | None = None,
    ) -> None:
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ValueError(f"threads = {threads!r} is not a number of threads; give 1 or more, or None.")
        opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
        # absolute, for copies when the current folder is another
        self.source: Bundle | str = opened if opened.path is None else str(opened.path.resolve())
        self.manifest: Manifest = opened.manifest
        self.uncertainty = uncertainty_of(opened)
        if warn_above is not None:
            warn_above = checked_limit(warn_above, "warn_above", self.uncertainty, opened)
        self.doubts = Doubts(warn_above)
        self.threads, self._device, self.turn = threads, device, threading.Lock()
        backend = get_backend(self.manifest.engine)
        self.session = backend.open(opened, device, threads)
        self.references = AtomicReferences(
            self.manifest.species, self.manifest.atomic_references, verified=self.manifest.species_verified
        )
        self.timings = Timings()
        self.periodicity = Watch(self.manifest.cutoff)
        on_cpu = self.engine_info["device"] == "cpu"
        width = self.dtype.itemsize // np.dtype(np.float32).itemsize  # a number of float64 takes the room of two
        features = int(self.manifest.configuration.get("hidden_dim", 128))
        self.limits = SizeLimits(self.manifest.profiles, width * features, on_cpu)
        self._default_slots = backend.batch_slots(self.engine_info["device"]) // width
        self._sizes = BatchSizes(self.engine_info, threads)
        self._batch_slots: int | None = None

    @property
    def session(self) -> Session:
        """The open engine, with whatever its backend can do beside running."""
        return self._session

    @session.setter
    def session(self, session: Session) -> None:
        self._session = session
        self.forms_molecules = isinstance(session, MoleculesSession)  # asking takes as long as packing a molecule

    @property
    def engine_info(self) -> EngineInfo:
        """Backend, version, device, precision (`Manifest.arithmetic`) and bundle hash of the engine that runs."""
        return {**self.session.info, "precision": self.manifest.arithmetic}

    @property
    def dtype(self) -> np.dtype:
        """Type of displacements, mask and results of the engine: float64 for `fp64`, else float32."""
        return real_type(self.manifest.precision)

    @property
    def slot_step(self) -> int:
        """The number of columns of a matrix is a multiple of it."""
        return int(getattr(self.session, "slot_step", 1))

    @property
    def most_atoms(self) -> int | None:
        """Atoms that one batch may hold, where the engine was built for a range; None where it takes any number."""
        return self.limits.most_atoms

    @property
    def batch_slots(self) -> int:
        """Atoms x slots of a batch: as measured here by `tune_batches`, or a default that suits most machines."""
        if self._batch_slots is None:
            self._batch_slots = self._sizes.remembered() or self._default_slots
        return self._batch_slots

    @batch_slots.setter
    def batch_slots(self, slots: int) -> None:
        if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
            raise ValueError(f"batch_slots = {slots!r} is not a number of atoms x slots; give 1 or more.")
        self._batch_slots = slots

    @property
    def batch_slots_known(self) -> bool:
        """Whether `batch_slots` was measured here or set, and is not the default."""
        return self._batch_slots is not None or self._sizes.remembered() is not None

    def tune_batches(self, tell: Tell = silent) -> int:
        """Measure which batches are fastest here, and remember it for this engine, device and machine; seconds.

        Args:
            tell: called with how many rounds are done.

        Raises:
            EngineError: the engine cannot run the smallest batch.
        """
        self._batch_slots = self._sizes.measured(
            self.run, self.manifest.species[0], self.manifest.cutoff, self.most_atoms, tell
        )
        return self._batch_slots

    def run(self, inputs: GraphInputs) -> GraphOutputs:
        """The bare engine: the graph contract's inputs to its outputs, without atomic references.

        Raises:
            ShapeError: arrays that do not keep the contract, or lie outside every profile.
            EngineError: the engine failed, or is closed.
        """
        with self.turn:
            return self.session.run(inputs)

    @property
    def finder(self) -> Finder | None:
        """`SearchingSession.search` of the session, in turn; None where the device finds no neighbours."""
        session = self.session
        if not isinstance(session, SearchingSession):
            return None

        def find(boxes: Boxes, admit: Admit) -> Nearest:
            with self.turn:
                return session.search(boxes, admit)

        return find

    def run_molecules(
        self,
        numbers: Int32[np.ndarray, " atoms"],
        positions: Float64[np.ndarray, "atoms 3"],
        starts: Int64[np.ndarray, " molecules"],
    ) -> MoleculesOutputs:
        """The bare engine on molecules whose pairs its device forms.

        Args:
            numbers: Z.
            positions: Å.
            starts: first row of each molecule.

        Raises:
            ShapeError: as `run`.
            EngineError: as `run`; or its device forms no pairs.
        """
        with self.turn:
            if not isinstance(self.session, MoleculesSession):
                raise EngineError("This engine's device forms no pairs of molecules; give it a matrix.")
            return self.session.run_molecules(numbers, positions, starts, self.manifest.cutoff)

    def digested(self, numbers: Integer[np.ndarray, " atoms"], outputs: GraphOutputs) -> GraphOutputs:
        """Outputs with what uncertainties are made of in place of what the graph gives for it.

        Args:
            numbers: atomic numbers.
            outputs: of the engine.
        """
        if self.uncertainty is not None:
            outputs.extras = self.uncertainty.digest(numbers, outputs.extras)
        return outputs

    def results_of(
        self,
        numbers: Integer[np.ndarray, " atoms"],
        cell: Float64[np.ndarray, "3 3"],
        outputs: GraphOutputs,
        references: Float64[np.ndarray, " atoms"],
    ) -> dict[str, Any]:
        """ASE's results of one structure, and its uncertainties where there are any; see `checked_results`.

        Args:
            numbers: atomic numbers.
            cell: Å.
            outputs: rows of its atoms, digested.
            references: atomic reference energies, eV.

        Raises:
            EngineError: the engine gave NaN or infinity.

        Warns:
            UncertaintyWarning: it is the first beyond the limit.
        """
        results = checked_results(numbers, cell, outputs, references, self.uncertainty)
        if self.doubts.limit is not None:
            self.doubts.look(results, str(Symbols(numbers)))
        return results

    def evaluate(
        self,
        numbers: Any,
        positions: Any,
        offsets: Any,
        cells: Any = None,
        pbc: Any = None,
        *,
        strict: bool = True,
        batch_slots: int | None = None,
    ) -> Answers:
        """Evaluate structures that lie side by side in arrays, with no object for each.

        Args:
            numbers: atomic numbers of all atoms, structure after structure, [atoms].
            positions: Å, [atoms, 3].
            offsets: first atom of each structure, and the number of atoms at the end, [structures + 1].
            cells: rows are cell vectors, Å, [structures, 3, 3], or [3, 3] of all; None for none.
            pbc: in which directions they repeat: [structures, 3], three flags or one of all; None for no direction.
            strict: raise for the first structure that has no answer; else its results are NaN, and `faults` says why.
            batch_slots: atoms x slots of a batch; None for `batch_slots` of this evaluator.

        Returns:
            Energies (eV), forces (eV/Å) and stresses (eV/Å³) in float64, in the order given.

        Raises:
            StructureError: the arrays do not fit together; or as `calculate_batch`.
            ShapeError: as `calculate_batch`.
            EngineError: as `calculate_batch`; or the engine refuses each one of several.

        Warns:
            PeriodicityWarning: as `calculate_batch`.
        """
        frames, first = Frames.given(numbers, positions, offsets, cells, pbc), 0
        parts = []
        for answers in self.answers(frames, batch_slots, self.periodicity.look):
            if strict and answers.faults:
                index, fault = min(answers.faults.items(), key=lambda one: one[0])
                raise named(first + index, fault, len(frames))
            parts.append(answers)
            first += len(answers)
        return Answers.joined(parts)

    def answers(
        self, frames: Frames, batch_slots: int | None = None, look: Callable[[Atoms], None] | None = None
    ) -> Iterator[Answers]:
        """Answers for structures side by side, window after window.

        Args:
            frames: structures.
            batch_slots: atoms x slots of a batch; None for `batch_slots` of this evaluator.
            look: see `answer_each`.

        Raises:
            EngineError: see `answer_each`.
        """
        slots = self.batch_slots if batch_slots is None else batch_slots
        return evaluated(self, windows_of(frames, slots, look), slots, lambda made: made)

    def answer_each(
        self,
        structures: Iterable[Any],
        batch_slots: int | None = None,
        look: Callable[[Atoms], None] | None = None,
    ) -> Iterator[dict[str, Any] | Exception]:
        """Results of each structure, or why it has none, in order; a window of structures is in memory.

        Args:
            structures: `Atoms`; an error in place of one, as a reader may give, is its answer.
            batch_slots: atoms x slots of a batch; None for `batch_slots` of this evaluator.
            look: called with each that is sound and looks like a crystal that repeats in no direction.

        Raises:
            EngineError: the engine refuses each one of several structures, so that they are not to blame.
        """
        slots = self.batch_slots if batch_slots is None else batch_slots
        for answers in evaluated(self, windows_of_atoms(structures, slots, look), slots, Answers.dicts):
            yield from answers

    def calculate_batch(self, structures: Iterable[Atoms]) -> list[dict[str, Any]]:
        """Evaluate structures together, molecules and crystals mixed; calculators attached to them are not touched.

        They are packed into padded matrices of like sizes and bounded memory; results keep the order given.

        Returns:
            For each structure, in order: energy and free_energy (float, eV), energies [atoms] (eV), forces [atoms, 3]
            (eV/Å), and where the cell has a volume stress [6] and stresses [atoms, 6] (eV/Å³). float64 arrays. Of a
            bundle that has them, uncertainties as well, see `painn_deploy.runtime.uncertainty`.

        Raises:
            StructureError: one of them has no atoms, NaN positions, two atoms on one spot, dependent periodic cell
                vectors, or (SpeciesError) an element that the student has not learnt; the message says which.
            ShapeError: one of them is larger than the engine was built for.
            EngineError: the engine failed, or gave NaN or infinity for one of them.

        Warns:
            PeriodicityWarning: one of them looks like a crystal and has no periodic direction.
        """
        structures = structures if isinstance(structures, Atoms | str) else list(structures)
        if isinstance(structures, Atoms | str) or not all(isinstance(atoms, Atoms) for atoms in structures):
            raise StructureError("calculate_batch takes a list of Atoms; put a single structure into a list of one.")
        results = []
        for index, answer in enumerate(self.answer_each(structures, look=self.periodicity.look)):
            if isinstance(answer, Exception):
                raise named(index, answer, len(structures))
            results.append(answer)
        return results

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold what the evaluator was opened with, not the engine."""
        opened_with = self._device, self.threads, self.doubts.limit
        return _reopen, (self.source, self.engine_info["bundle_sha256"], *opened_with)

    def __repr__(self) -> str:
        """One line: bundle, engine, precision, device and student."""
        return self.described(type(self).__name__)

    def described(self, kind: str) -> str:
        """The same for what this is a part of; it never raises, whatever could not be opened or is closed by now.

        Args:
            kind: name of the class.
        """
        device, source = None, getattr(self, "source", None)
        with suppress(Exception):  # none was opened
            device = self.session.info["device"]
        path = Path(source) if isinstance(source, str) else None
        state = "closed" if self._closed else "" if device else NOT_OPEN
        return described(kind, getattr(self, "manifest", None), path, device=device, state=state)

    def close(self) -> None:
        """Give back the engine's memory; the evaluator cannot be used afterwards."""
        self._closed = True
        with self.turn:
            self.session.close()


def _reopen(
    source: Bundle | str, sha256: str, device: str, threads: int | None, warn_above: Limit | None = None
) -> Evaluator:
    return Evaluator(the_same(source, sha256), device=device, threads=threads, warn_above=warn_above)
