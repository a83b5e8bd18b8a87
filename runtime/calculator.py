"""`PaiNNCalculator`: an engine as an ASE calculator, for one structure or for many at once."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.outputs import Properties, all_outputs

from painn_deploy.engines import EngineInfo, Session
from painn_deploy.engines.owner import SoleUse
from painn_deploy.engines.session import Closing
from painn_deploy.engines.timings import Timings
from painn_deploy.export.bundle import Bundle, the_same
from painn_deploy.export.described import described
from painn_deploy.export.errors import OwnershipError, StructureError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.manifest import Manifest
from painn_deploy.runtime.batches.answers import Answers
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.motion.moving import MovingStructure
from painn_deploy.runtime.streaming import Outcome, stream
from painn_deploy.runtime.structures import check_structure, differ
from painn_deploy.runtime.uncertainty.watch import Limit

__all__ = ["PaiNNCalculator"]


class _Record(NamedTuple):
    """The results of a calculation, and whose it was: replaced whole, so that no thread sees half of two."""

    results: dict[str, Any]
    thread: threading.Thread


class PaiNNCalculator(Closing, Calculator):
    """An ASE calculator backed by an engine.

    A calculator belongs to one thread at a time, as every ASE calculator does; open one for each. A second thread that
    asks at the same time, or reads results after another's took the place of its own, gets an error, and so does a
    process that was forked from the one that opened it. Copying or pickling it opens the same bundle again, from its
    folder; a bundle that is in memory alone is copied or pickled with it, whole.

    `results` is a new dict for each calculation, which a subclass or a wrapper may change, as it may that of any other
    calculator of ASE. Its arrays are closed for writing, so that nobody changes them unseen: put others in their place.

    Energies are in eV, forces in eV/Å, stresses in eV/Å³ (Voigt order xx, yy, zz, yz, xz, xy, ASE's sign). The stress
    is that of the symmetrised virial, for any structure whose cell has a volume.

    Args:
        bundle: a folder NAME.engine, made by `painn-deploy export`, or a `Bundle`, which may be in memory alone.
        device: `auto`, or what the backend names, such as `cpu` or `cuda:0`. Nothing falls back to another device.
        threads: of the CPU; None for as many as there are cores.
        skin: Å; neighbours within cutoff and skin are found once and reused while no edge can be missing. Results are
            those of a search at every step. None for 0.5 Å where it widens the matrix little, as in molecules, and for
            none elsewhere: a liquid would pay more for the wider matrix than searches take.
        warn_above: a result that is so many times as uncertain as the frames of its calibration gets a warning, the
            first time; all are counted in `evaluator.doubts.count`. `threshold` is what 99 % of these frames are up
            to; None for no limit.

    Attributes:
        evaluator: the open engine with its species, size limits and batches.
        manifest: the bundle's description of itself.
        moving: the structure that moves from call to call, with what the device keeps of it.
        neighbour_list: of that structure; its `searches` and `updates` count.
        timings: milliseconds a calculation spends in each phase; `timings.as_dict()`, `timings.reset()`.

    Raises:
        BundleError: the bundle is damaged, foreign or of a newer format.
        EngineUnavailableError: its backend or the device is not here.
    """

    implemented_properties: list[str] = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]  # noqa: RUF012
    _last: Atoms | None = None
    _spare: Atoms | None = None
    _given: Atoms | None = None

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        skin: float | None = None,
        warn_above: Limit | None = None,
    ) -> None:
        if skin is not None and not 0 <= skin < float("inf"):
            raise ValueError(f"skin = {skin!r} is not a length in Å; give 0 to search at every step, or None.")
        before = set(vars(self))
        self._sole, self._mine = SoleUse("This calculator"), threading.local()
        super().__init__()
        self.evaluator = Evaluator(bundle, device=device, threads=threads, warn_above=warn_above)
        sha256 = self.engine_info["bundle_sha256"]
        self._opened_with = (self.evaluator.source, sha256, device, threads, skin, warn_above)
        self.manifest: Manifest = self.evaluator.manifest
        self.threads = threads
        self.timings: Timings = self.evaluator.timings
        if self.evaluator.uncertainty is not None:
            self.implemented_properties = [*type(self).implemented_properties, *self.evaluator.uncertainty.names]
        self.moving = MovingStructure(self.evaluator, skin)
        self.neighbour_list = self.moving.neighbour_list
        self._own_names = {"_own_names", *vars(self)} - before  # a subclass's are copied with it

    def with_session(self, session: Session) -> "PaiNNCalculator":
        """Run on another session, such as `painn_deploy.engines.NullSession`; the calculator itself.

        Args:
            session: of the graph contract; whoever made the one of before closes it.
        """
        self.evaluator.session = session
        self.moving.with_session(session)
        return self

    @property
    def session(self) -> Session:
        """The open engine itself, with whatever its backend can do beside running."""
        return self.evaluator.session

    @property
    def engine_info(self) -> EngineInfo:
        """Backend, version, device, precision (`Manifest.arithmetic`) and bundle hash of the engine that runs."""
        return self.evaluator.engine_info

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = ("energy",),
        system_changes: Sequence[str] = all_changes,  # noqa: ARG002  ASE passes it, and we look ourselves
    ) -> None:
        """ASE's entry: everything is computed at once, since forces cost less than a second call would.

        Args:
            atoms: the structure; None for the one of before.
            properties: names of results; a stress that is asked for must be there.
            system_changes: ASE passes them; not used.

        Raises:
            StructureError: see `calculate_batch`.
            PropertyNotImplementedError: a stress is asked for and the cell has no volume.

        Warns:
            PeriodicityWarning: the structure looks like a crystal and has no periodic direction; once for each
                composition.
        """
        with self._sole:
            if atoms is not None:
                with self.timings.phase("ase"):
                    self._remember(check_structure(atoms))
            if self._last is None:
                raise StructureError(
                    "There is no structure to calculate: attach the calculator to Atoms, or give them."
                )
            self.results = {}  # should this calculation fail, the results of the one before are not its own
            results = self._single(self._last)
            for value in results.values():
                if isinstance(value, np.ndarray):
                    value.flags.writeable = False
            self.results = results
        for name in ("stress", "stresses"):
            if name in (properties or ()) and name not in self._record.results:
                raise PropertyNotImplementedError(
                    f"{name}: the cell has no volume; set three cell vectors that are independent."
                )

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """ASE's way to a result, which is computed if it is not that of the last calculation.

        Args:
            name: of the result.
            atoms: the structure; None for the one of before.
            allow_calculation: whether it may be computed; else None is returned.

        Raises:
            OwnershipError: another thread is asking.
            StructureError: see `calculate_batch`.
            PropertyNotImplementedError: an engine has no such result, or not for such a cell.
        """
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(f"{name}: an engine gives {', '.join(self.implemented_properties)}.")
        with self._sole:  # from the calculation to its result: another thread's must not come between
            if atoms is not None and self.check_state(atoms):
                self.reset()
            if name not in self._record.results:
                if not allow_calculation:
                    return None
                self.calculate(atoms, [name])
            self._mine.record = self._record
            result = self._record.results[name]
        return result.copy() if isinstance(result, np.ndarray) else result

    def calculation_required(self, atoms: Atoms, properties: Sequence[str]) -> bool:
        """Whether ASE would have to ask for a calculation.

        Args:
            atoms: the structure.
            properties: names of results.
        """
        return bool(self.check_state(atoms)) or any(name not in self._record.results for name in properties)

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Any:
        """ASE's `Properties` of a structure; see `get_property`.

        Args:
            atoms: the structure.
            properties: names of results.
        """
        with self._sole:
            return super().calculate_properties(atoms, properties)

    def export_properties(self) -> Any:
        """ASE's `Properties` of the last results: those that ASE has a name for, which uncertainties have not."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    @property
    def results(self) -> dict[str, Any]:
        """Results of the last calculation, which the next one leaves as they are.

        Raises:
            OwnershipError: this thread has calculated, and the results of another, which still runs, have taken the
                place of its own.
        """
        record, mine = self._record, getattr(self._mine, "record", None)
        if mine not in (None, record) and record.thread is not threading.current_thread() and record.thread.is_alive():
            raise OwnershipError(
                "The results of this calculator are by now another thread's. Open a calculator for each thread "
                "(copy.deepcopy opens another of the same bundle), or ask for those of a structure: "
                "atoms.get_potential_energy(), atoms.get_forces()."
            )
        return record.results

    @results.setter
    def results(self, results: dict[str, Any]) -> None:
        record = _Record(results, threading.current_thread())
        self._record, self._mine.record = record, record if results else None

    @property
    def atoms(self) -> Atoms | None:
        """A copy of the structure of the last calculation, which the next one leaves as it is.

        Raises:
            OwnershipError: see `results`; or another thread is calculating.
        """
        with self._sole:
            _ = self.results
            if self._given is None and self._last is not None:
                self._given = self._last.copy()
            return self._given

    @atoms.setter
    def atoms(self, atoms: Atoms | None) -> None:
        self._given = None
        self._last = None if atoms is None else check_structure(atoms).copy()

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:  # noqa: ARG002  ASE passes it
        """List what changed since the last calculation, to the last bit; ASE's own comparison takes a third of a step.

        Charges and magnetic moments change nothing here, and are not compared.

        Args:
            atoms: the structure.
            tol: ASE passes it; not used.
        """
        last = self._last
        try:
            if last is None or len(last) != len(atoms):
                return list(all_changes)
            changes = [name for name in ("positions", "numbers") if differ(last.arrays[name], atoms.arrays[name])]
            changes += ["cell"] if differ(last.cell.array, atoms.cell.array) else []
            return [*changes, "pbc"] if differ(last.pbc, atoms.pbc) else changes
        except (AttributeError, KeyError, TypeError):  # no structure: `calculate` says what is wrong with it
            return list(all_changes)

    def _remember(self, atoms: Atoms) -> None:
        """Keep what is calculated, as ASE's own `calculate` does; where atoms only moved, in the copy of before."""
        spare = self._spare
        if spare is None or differ(spare.numbers, atoms.numbers) or differ(spare.pbc, atoms.pbc):
            spare = self._spare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            self.evaluator.periodicity.look(atoms)
        else:
            spare.positions[:] = atoms.positions
            cell = atoms.cell.array
            if spare.cell.array.tobytes() != cell.tobytes():
                spare.cell.array[:] = cell
                self.evaluator.periodicity.look(atoms)
        self._last, self._given = spare, None

    def reset(self) -> None:
        """Forget the last structure and its results, as ASE does before each new one."""
        self.atoms, self.results = None, {}

    def _single(self, atoms: Atoms) -> dict[str, Any]:
        """One structure that moves from call to call."""
        with self.timings.phase("neighbours"):
            references = self.evaluator.references(atoms.numbers)
        outputs = self.moving.outputs(atoms)
        with self.timings.phase("results"):
            results = self.evaluator.results_of(atoms.numbers, atoms.cell.array, outputs, references)
        self.timings.calculations += 1
        return results

    def calculate_batch(self, structures: Iterable[Atoms]) -> list[dict[str, Any]]:
        """Evaluate structures together, molecules and crystals mixed; calculators attached to them are not touched.

        Returns and raises what `Evaluator.calculate_batch` does: for each structure, in order, energy and free_energy
        (float, eV), energies [atoms] (eV), forces [atoms, 3] (eV/Å), and where the cell has a volume stress [6] and
        stresses [atoms, 6] (eV/Å³).
        """
        return self.evaluator.calculate_batch(structures)

    def stream(self, structures: Iterable[Atoms | StructureError]) -> Iterator[Outcome]:
        """The same for any number of structures, of which only some are in memory at a time.

        An outcome comes for each structure, in order; one without results says why and does not stop the rest.

        Args:
            structures: any iterable, a generator for instance.

        Raises:
            EngineError: the engine failed for every structure of a batch.
        """
        return stream(self.evaluator, structures, look=self.evaluator.periodicity.look)

    @property
    def evaluate(self) -> Callable[..., Answers]:
        """Structures side by side in arrays, and arrays of results: `Evaluator.evaluate`."""
        return self.evaluator.evaluate

    def run_graph(self, inputs: GraphInputs) -> GraphOutputs:
        """The bare engine: the graph contract's inputs to its outputs, without atomic references."""
        return self.evaluator.run(inputs)

    @property
    def batch_slots(self) -> int:
        """Atoms x slots of a batch: as measured here by `tune_batches`, or a default that suits most machines."""
        return self.evaluator.batch_slots

    @batch_slots.setter
    def batch_slots(self, slots: int) -> None:
        self.evaluator.batch_slots = slots

    @property
    def batch_slots_known(self) -> bool:
        """Whether `batch_slots` was measured here or set, and is not the default."""
        return self.evaluator.batch_slots_known

    def tune_batches(self) -> int:
        """Measure which batches are fastest here, and remember it for this engine, device and machine; seconds."""
        return self.evaluator.tune_batches()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold what the calculator was opened with and what a subclass added, not the engine."""
        added = {name: value for name, value in vars(self).items() if name not in self._own_names}
        return _reopen, (type(self), *self._opened_with), added or None

    def __repr__(self) -> str:
        """One line: bundle, engine, precision, device and student; it never raises."""
        evaluator, kind = getattr(self, "evaluator", None), type(self).__name__
        return described(kind, None) if evaluator is None else evaluator.described(kind)

    def close(self) -> None:
        """Give back the engine's memory; the calculator cannot be used afterwards."""
        self.evaluator.close()


def _reopen(
    kind: type[PaiNNCalculator],
    source: Bundle | str,
    sha256: str,
    device: str,
    threads: int | None,
    skin: float | None,
    warn_above: Limit | None = None,
) -> PaiNNCalculator:
    calculator = kind.__new__(kind)  # a subclass may be made of other arguments
    options: dict[str, Any] = {"device": device, "threads": threads, "skin": skin, "warn_above": warn_above}
    PaiNNCalculator.__init__(calculator, the_same(source, sha256), **options)
    return calculator
