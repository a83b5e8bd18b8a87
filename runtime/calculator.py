"""`PaiNNCalculator`: an engine as an ASE calculator, for one structure or for many at once."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from painn_deploy.engines import EngineInfo, Session, get_backend
from painn_deploy.engines.session import Closing, FollowingSession
from painn_deploy.export.errors import EngineError, ShapeError, SpeciesError, StructureError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.manifest import Manifest, read_bundle
from painn_deploy.runtime.limits import Limits
from painn_deploy.runtime.neighbours import FLAT, LocalGraph, join
from painn_deploy.runtime.packing import pack
from painn_deploy.runtime.sizing import measured_batch_slots, remembered_batch_slots
from painn_deploy.runtime.skin import WIDER, VerletList
from painn_deploy.runtime.streaming import Outcome, Prepared, stream
from painn_deploy.runtime.timings import Timings

__all__ = ["PaiNNCalculator"]


class PaiNNCalculator(Closing, Calculator):
    """An ASE calculator backed by an engine.

    A calculator belongs to one thread at a time, as every ASE calculator does; open one for each. Copying or pickling
    it opens the bundle again. Energies are in eV, forces in eV/Å, stresses in eV/Å³ (Voigt order xx, yy, zz, yz, xz,
    xy, ASE's sign). The stress is that of the symmetrised virial, for any structure whose cell has a volume.

    Args:
        bundle: a folder NAME.engine, made by `painn-deploy export`.
        device: `auto`, or what the backend names, such as `cpu` or `cuda:0`. Nothing falls back to another device.
        threads: of the CPU; None for as many as there are cores.
        skin: Å; neighbours within cutoff and skin are found once and reused while no edge can be missing. Results are
            those of a search at every step. None for 0.5 Å where it widens the matrix little, as in molecules, and for
            none elsewhere: a liquid would pay more for the wider matrix than searches take.

    Attributes:
        manifest: what the bundle says of itself.
        neighbour_list: of the structure that moves; its `searches` and `updates` count.
        timings: milliseconds a calculation spends in each phase; `timings.as_dict()`, `timings.reset()`.

    Raises:
        BundleError: the bundle is damaged, foreign or of a newer format.
        EngineUnavailableError: its backend or the device is not here.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress", "stresses"]

    def __init__(
        self, bundle: str | Path, *, device: str = "auto", threads: int | None = None, skin: float | None = None
    ) -> None:
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ValueError(f"threads = {threads!r} is not a number of threads; give 1 or more, or None.")
        if skin is not None and not 0 <= skin < float("inf"):
            raise ValueError(f"skin = {skin!r} is not a length in Å; give 0 to search at every step, or None.")
        super().__init__()
        self.atoms: Atoms | None = None
        self._spare: Atoms | None = None
        self._opened_with = (str(bundle), device, threads, skin)
        opened = read_bundle(bundle)
        self.manifest: Manifest = opened.manifest
        self.neighbour_list = VerletList(self.manifest.cutoff, skin)
        backend = get_backend(self.manifest.engine)
        self._attach(backend.open(opened, device, threads))
        self.threads = threads
        self._batch_slots: int | None = None
        on_cpu = self._session.info["device"] == "cpu"
        self._default_slots = backend.batch_slots(self._session.info["device"])
        self._limits = Limits(self.manifest.profiles, int(self.manifest.configuration.get("hidden_dim", 128)), on_cpu)
        self.timings = Timings()
        self._references = np.full(len(chemical_symbols) + 1, np.nan)
        self._references[list(self.manifest.species)] = self.manifest.atomic_references
        self._referenced: tuple[bytes, np.ndarray] = (
            b"",
            np.empty(0),
        )  # those of the last composition: a step asks again

    def _attach(self, session: Session) -> None:
        """Run on a session; whether it can follow a structure is asked once, since asking takes as long as packing."""
        self._session = session
        self.neighbour_list.slot_step = getattr(session, "slot_step", 1)  # on a CPU each column is worth saving
        self._follower = session if isinstance(session, FollowingSession) else None
        self.neighbour_list.most_widening = WIDER if self._follower is None else math.inf

    @property
    def session(self) -> Session:
        """The open engine itself, with whatever its backend can do beside running."""
        return self._session

    @property
    def engine_info(self) -> EngineInfo:
        """Backend, its version, device, precision and bundle hash: what runs, not what was asked for."""
        return self._session.info

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,  # noqa: ARG002  ASE passes it, and we look ourselves
    ) -> None:
        """ASE's entry: everything is computed at once, since forces cost less than a second call would.

        Raises:
            StructureError: see `calculate_batch`.
            PropertyNotImplementedError: a stress is asked for and the cell has no volume.
        """
        if atoms is None and self.atoms is None:
            raise StructureError("There is no structure to calculate: attach the calculator to Atoms, or give them.")
        with self.timings.phase("ase"):
            self._remember(atoms)
        self.results = self._single(self.atoms)
        for name in ("stress", "stresses"):
            if name in properties and name not in self.results:
                raise PropertyNotImplementedError(
                    f"{name}: the cell has no volume; set three cell vectors that are independent."
                )

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:  # noqa: ARG002  ASE passes it
        """What changed since the last calculation, to the last bit: ASE's own comparison takes a third of a step.

        Charges and magnetic moments change nothing here, and are not compared. `tol` is ASE's, and not used.
        """
        last = self.atoms
        if last is None or len(last) != len(atoms):
            return list(all_changes)
        changes = [name for name in ("positions", "numbers") if _differ(last.arrays[name], atoms.arrays[name])]
        changes += ["cell"] if _differ(last.cell.array, atoms.cell.array) else []
        return [*changes, "pbc"] if _differ(last.pbc, atoms.pbc) else changes

    def _remember(self, atoms: Atoms | None) -> None:
        """Keep what is calculated, as ASE's own `calculate` does; where atoms only moved, in the copy of before."""
        if atoms is None:
            return
        spare = self._spare
        if spare is None or _differ(spare.numbers, atoms.numbers) or _differ(spare.pbc, atoms.pbc):
            spare = self._spare = atoms.copy()
        else:
            spare.positions[:] = atoms.positions
            spare.cell.array[:] = atoms.cell.array
        self.atoms = spare

    def reset(self) -> None:
        """Forget the last structure and its results, as ASE does before each new one."""
        self.atoms, self.results = None, {}

    def _single(self, atoms: Atoms) -> dict[str, Any]:
        """One structure that moves from call to call."""
        with self.timings.phase("neighbours"):
            reference = self.references(atoms.numbers)
            follower = self._follower
            resident = None if follower is None else self.neighbour_list.resident(atoms, follower.following)
            if resident is None:
                inputs = self.neighbour_list.inputs(atoms)
                self._limits.check(*inputs.mask.shape)
        with self.timings.phase("engine"):
            if follower is None or resident is None:
                outputs = self._session.run(inputs)
            else:
                if follower.following is not resident:
                    follower.follow(resident)
                outputs = follower.step(np.ascontiguousarray(atoms.positions))
        with self.timings.phase("results"):
            results = _results(atoms, outputs, reference)
        self.timings.calculations += 1
        return results

    def calculate_batch(self, structures: Iterable[Atoms]) -> list[dict[str, Any]]:
        """Evaluate structures together, molecules and crystals mixed; calculators attached to them are not touched.

        They are packed into padded matrices of like sizes and bounded memory; results keep the order given.

        Returns:
            For each structure, in order: energy and free_energy (float, eV), energies [atoms] (eV), forces [atoms, 3]
            (eV/Å), and where the cell has a volume stress [6] and stresses [atoms, 6] (eV/Å³). float64 arrays.

        Raises:
            StructureError: one of them has no atoms, NaN positions, two atoms on one spot, dependent periodic cell
                vectors, or (SpeciesError) an element that the student has not learnt; the message says which.
            ShapeError: one of them is larger than the engine was built for.
            EngineError: the engine failed.
        """
        structures = structures if isinstance(structures, Atoms | str) else list(structures)
        if isinstance(structures, Atoms | str) or not all(isinstance(atoms, Atoms) for atoms in structures):
            raise StructureError("calculate_batch takes a list of Atoms; put a single structure into a list of one.")
        prepared = []
        for index, atoms in enumerate(structures):
            try:
                prepared.append(self.prepare(atoms))
            except (StructureError, ShapeError) as error:
                if len(structures) == 1:
                    raise
                raise type(error)(f"Structure {index}: {error}") from error
        results: list[dict[str, Any]] = [{}] * len(structures)
        for batch in pack([one.size for one in prepared], self.batch_slots, self.most_atoms):
            for index, answer in zip(batch, self.run_prepared([prepared[i] for i in batch]), strict=True):
                if isinstance(answer, EngineError):
                    raise EngineError(f"Structure {index}: {answer}") from answer
                results[index] = answer
        return results

    def stream(self, structures: Iterable[Atoms | StructureError]) -> Iterator[Outcome]:
        """The same for any number of structures, of which only some are in memory at a time.

        An outcome comes for each structure, in order; one that has no answer says why and does not stop the rest.

        Args:
            structures: any iterable, a generator for instance.

        Raises:
            EngineError: the engine failed for every structure of a batch.
        """
        return stream(self, structures, self.batch_slots)

    @property
    def batch_slots(self) -> int:
        """Atoms x slots of a batch: what `tune_batches` measured here once, or a default that suits most CPUs."""
        if self._batch_slots is None:
            self._batch_slots = remembered_batch_slots(self) or self._default_slots
        return self._batch_slots

    @batch_slots.setter
    def batch_slots(self, slots: int) -> None:
        if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
            raise ValueError(f"batch_slots = {slots!r} is not a number of atoms x slots; give 1 or more.")
        self._batch_slots = slots

    @property
    def batch_slots_known(self) -> bool:
        """Whether `batch_slots` was measured here or set, and is not the default."""
        return self._batch_slots is not None or remembered_batch_slots(self) is not None

    def tune_batches(self) -> int:
        """Measure which batches are fastest here, and remember it for this engine, device and machine; seconds."""
        self._batch_slots = measured_batch_slots(self)
        return self._batch_slots

    @property
    def most_atoms(self) -> int | None:
        """That one batch may hold, where the engine was built for a range; None where it takes any number."""
        return self._limits.most_atoms

    def prepare(self, atoms: Atoms) -> Prepared:
        """Check a structure and find its neighbours.

        Raises:
            StructureError: it is nothing that a force field can answer for.
            ShapeError: it is larger than the engine was built for, or than there is memory.
        """
        with self.timings.phase("neighbours"):
            references = self.references(atoms.numbers)
            graph = LocalGraph.of(atoms, self.manifest.cutoff)
        self._limits.check(len(graph.numbers), graph.slots)
        return Prepared(atoms, graph, references)

    def run_prepared(self, batch: Sequence[Prepared]) -> list[dict[str, Any] | EngineError]:
        """Structures through the engine in one matrix; for each its results, or the error of its alone.

        Raises:
            EngineError: the engine failed on the whole.
        """
        with self.timings.phase("packing"):
            inputs = join([one.graph for one in batch], slot_step=self.neighbour_list.slot_step)
        with self.timings.phase("engine"):
            outputs, start = self._session.run(inputs), 0
        answers: list[dict[str, Any] | EngineError] = []
        with self.timings.phase("results"):
            for one in batch:
                rows = slice(start, start + len(one.atoms))
                try:
                    answers.append(
                        _results(one.atoms, GraphOutputs(*(array[rows] for array in outputs)), one.references)
                    )
                except EngineError as error:
                    answers.append(error)
                start = rows.stop
        self.timings.calculations += len(batch)
        return answers

    def run_graph(self, inputs: GraphInputs) -> GraphOutputs:
        """The bare engine: the graph contract's inputs to its outputs, without atomic references."""
        return self._session.run(inputs)

    def references(self, numbers: np.ndarray) -> np.ndarray:
        """Atomic reference energies, eV, of atomic numbers [atoms].

        Raises:
            SpeciesError: one of them is no element that the student has learnt.
        """
        if self._referenced[0] == (key := numbers.tobytes()):
            return self._referenced[1]
        inside = (numbers >= 0) & (numbers < len(self._references))
        references = self._references[np.where(inside, numbers, 0)]
        unknown = np.isnan(references)
        if unknown.any():
            atom = int(unknown.argmax())
            known = " ".join(chemical_symbols[z] for z in self.manifest.species[:20])
            more = " ..." if len(self.manifest.species) > 20 else ""
            number = int(numbers[atom])
            symbol = chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "no element"
            raise SpeciesError(
                f"Atom {atom} is {symbol} (Z = {number}), which this student has no "
                f"embedding for; it knows {known}{more}. Use a student that was trained on it."
            )
        self._referenced = key, references
        return references

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold what the calculator was opened with, not the engine."""
        return _reopen, self._opened_with

    def close(self) -> None:
        """Give back the engine's memory; the calculator cannot be used afterwards."""
        self._session.close()


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one shape and type differ in a bit, which is quicker to see than whether numbers do."""
    return one.tobytes() != other.tobytes()


def _reopen(bundle: str, device: str, threads: int | None, skin: float | None) -> PaiNNCalculator:
    return PaiNNCalculator(bundle, device=device, threads=threads, skin=skin)


def cell_volume(atoms: Atoms) -> float:
    """Å³; 0 where the cell vectors are dependent or not finite, so that there is no stress."""
    cell = np.asarray(atoms.cell)
    if not cell.any():  # a molecule: most calls end here
        return 0.0
    volume = abs(float(np.linalg.det(cell))) if np.isfinite(cell).all() else 0.0
    return volume if volume > FLAT * float(np.prod(np.linalg.norm(cell, axis=1))) else 0.0


def _results(atoms: Atoms, outputs: GraphOutputs, reference: np.ndarray) -> dict[str, Any]:
    """ASE's results of one structure; sums are in float64."""
    energies = outputs.atomic_energies.astype(np.float64) + reference
    forces = outputs.forces.astype(np.float64)
    virials = outputs.virials.astype(np.float64)
    energy = float(energies.sum())
    # a sum in float64 is finite if and only if what was summed is: float32 is far from its range
    if not math.isfinite(energy + float(forces.sum()) + float(virials.sum())):
        raise EngineError(
            f"The engine gave NaN or infinity for {atoms.symbols}. Its geometry is too far from "
            "anything the student has learnt, or overflows the engine's precision."
        )
    results: dict[str, Any] = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
    volume = cell_volume(atoms)
    if volume > 0:
        symmetric = (virials + virials.transpose(0, 2, 1)) / (2 * volume)
        results["stresses"] = full_3x3_to_voigt_6_stress(symmetric)
        results["stress"] = full_3x3_to_voigt_6_stress(symmetric.sum(0))
    return results
