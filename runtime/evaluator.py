"""`Evaluator`: an open engine that answers for structures, one batch after another."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.symbols import Symbols
from jaxtyping import Float64, Integer

from painn_deploy.engines import EngineInfo, Session, get_backend
from painn_deploy.engines.session import Closing
from painn_deploy.engines.timings import Timings
from painn_deploy.export.bundle import Bundle, read_bundle, the_same
from painn_deploy.export.described import NOT_OPEN, described
from painn_deploy.export.errors import EngineError, OwnershipError, ShapeError, StructureError
from painn_deploy.export.fields import GraphInputs, GraphOutputs, real_type
from painn_deploy.export.manifest import Manifest
from painn_deploy.export.progress import Tell, silent
from painn_deploy.runtime.grouping import group
from painn_deploy.runtime.limits import SizeLimits, too_many_neighbours
from painn_deploy.runtime.matrix import LocalGraph, join
from painn_deploy.runtime.periodicity import Watch
from painn_deploy.runtime.results import checked_results
from painn_deploy.runtime.sizing import BatchSizes
from painn_deploy.runtime.species import AtomicReferences
from painn_deploy.runtime.structures import check_structure
from painn_deploy.runtime.uncertainty.source import uncertainty_of
from painn_deploy.runtime.uncertainty.watch import Doubts, Limit, checked_limit

__all__ = ["Evaluator", "Prepared"]

Answer = dict[str, Any] | EngineError


@dataclass(frozen=True)
class Prepared:
    """A structure that the engine can answer for.

    Attributes:
        cell: of then, Å; whoever gave the structure may move it on before the engine has answered.
        graph: its neighbours.
        references: atomic reference energies, eV.
    """

    cell: Float64[np.ndarray, "3 3"]
    graph: LocalGraph
    references: Float64[np.ndarray, " atoms"]

    @property
    def size(self) -> tuple[int, int]:
        """Atoms and slots."""
        return self.graph.size


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
        session: the open engine, with whatever its backend can do beside running.
        references: atomic reference energies by atomic numbers.
        uncertainty: what makes uncertainties of what the graph gives; None where it gives nothing to make them of.
        limits: sizes that the engine takes.
        doubts: counts results beyond `warn_above`.
        timings: milliseconds that a calculation spends in each phase.
        periodicity: warns of crystals that came without their periodic directions.
        threads: as given.

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
        # absolute, so that copies find it whatever the current folder is by then
        self.source: Bundle | str = opened if opened.path is None else str(opened.path.resolve())
        self.manifest: Manifest = opened.manifest
        self.uncertainty = uncertainty_of(opened)
        if warn_above is not None:
            warn_above = checked_limit(warn_above, "warn_above", self.uncertainty, opened)
        self.doubts = Doubts(warn_above)
        self.threads, self._device = threads, device
        backend = get_backend(self.manifest.engine)
        self.session: Session = backend.open(opened, device, threads)
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
    def engine_info(self) -> EngineInfo:
        """Backend, its version, device, precision and bundle hash of the engine that runs."""
        return self.session.info

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
        return self.session.run(inputs)

    def prepare(self, atoms: Atoms, look: Callable[[Atoms], None] | None = None) -> Prepared:
        """Check a structure and find its neighbours.

        Args:
            atoms: the structure.
            look: called with it, as `check_structure` gives it back, once it is found to be sound.

        Raises:
            StructureError: it is nothing that a force field can answer for.
            ShapeError: it is larger than the engine was built for, or than there is memory.
        """
        with self.timings.phase("neighbours"):
            atoms = check_structure(atoms)
            references = self.references(atoms.numbers)
            try:
                graph = LocalGraph.of(atoms, self.manifest.cutoff)
            except MemoryError as error:
                raise too_many_neighbours(len(atoms), error) from error
        self.limits.check(*graph.size)
        if look is not None:
            look(atoms)
        return Prepared(atoms.cell.array.copy(), graph, references)

    def run_prepared(self, batch: Sequence[Prepared]) -> list[Answer]:
        """Structures through the engine in one matrix; for each its results, or the error that concerns it alone.

        Raises:
            EngineError: the engine failed on the whole matrix.
        """
        with self.timings.phase("packing"):
            inputs = join([one.graph for one in batch], self.dtype, self.slot_step)
        with self.timings.phase("engine"):
            outputs, start = self.digested(inputs.atomic_numbers, self.session.run(inputs)), 0
        answers: list[Answer] = []
        with self.timings.phase("results"):
            for one in batch:
                rows = slice(start, start + len(one.graph.numbers))
                start = rows.stop
                own = outputs.rows(rows)
                try:
                    answers.append(self.results_of(one.graph.numbers, one.cell, own, one.references))
                except EngineError as error:
                    answers.append(error)
        self.timings.calculations += len(batch)
        return answers

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

    def evaluate(self, prepared: Sequence[Prepared], batch_slots: int | None = None) -> list[Answer]:
        """Results of each structure, or the error for which it has none; in the order given.

        A batch that the engine refuses is run again one by one, so that only the culprit is without results.

        Args:
            prepared: structures; they are grouped into batches of like sizes.
            batch_slots: atoms x slots of a batch; None for `batch_slots` of this evaluator.

        Raises:
            EngineError: the engine refuses each one of several, so that they are not to blame.
        """
        answers: dict[int, Answer] = {}
        sizes = [one.size for one in prepared]
        for batch in group(sizes, self.batch_slots if batch_slots is None else batch_slots, self.most_atoms):
            answers |= zip(batch, self._batch([prepared[index] for index in batch]), strict=True)
        return [answers[index] for index in range(len(prepared))]

    def _batch(self, batch: Sequence[Prepared]) -> list[Answer]:
        try:
            return self.run_prepared(batch)
        except OwnershipError:  # no structure's fault
            raise
        except (EngineError, MemoryError) as error:
            if len(batch) == 1:
                return [_as_engine_error(error)]
            return self._one_by_one(batch)

    def _one_by_one(self, batch: Sequence[Prepared]) -> list[Answer]:
        answers: list[Answer] = []
        refusals = []
        for one in batch:
            try:
                answers += self.run_prepared([one])
            except OwnershipError:
                raise
            except (EngineError, MemoryError) as error:
                answers.append(_as_engine_error(error))
                refusals.append(error)
        if len(refusals) == len(batch):
            raise refusals[-1]
        return answers

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
        prepared = []
        for index, atoms in enumerate(structures):
            try:
                prepared.append(self.prepare(atoms, self.periodicity.look))
            except (StructureError, ShapeError) as error:
                if len(structures) == 1:
                    raise
                raise type(error)(f"Structure {index}: {error}") from error
        results = []
        for index, answer in enumerate(self.evaluate(prepared)):
            if isinstance(answer, EngineError):
                raise type(answer)(f"Structure {index}: {answer}") from answer
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
        self.session.close()


def _reopen(
    source: Bundle | str, sha256: str, device: str, threads: int | None, warn_above: Limit | None = None
) -> Evaluator:
    return Evaluator(the_same(source, sha256), device=device, threads=threads, warn_above=warn_above)


def _as_engine_error(error: EngineError | MemoryError) -> EngineError:
    text = str(error)
    if isinstance(error, EngineError) and "bad_alloc" not in text and "allocate memory" not in text:
        return error
    return EngineError(f"It needs more memory than there is: {text or 'out of memory'}.")
