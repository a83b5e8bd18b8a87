"""An engine as a TorchSim model, so that TorchSim's integrators, optimisers and autobatching run on it.

`torch_sim.integrate(structures, PaiNNModel("student-onnxruntime-fp32.engine"), integrator=..., n_steps=...)`
"""

from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from jaxtyping import Bool

from painn_deploy.engines import EngineInfo
from painn_deploy.engines.owner import SoleUse
from painn_deploy.export.described import described
from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.periodicity import unrepeated
from painn_deploy.runtime.replicas import ReplicaList, answered
from painn_deploy.runtime.results import cell_volumes, not_finite
from painn_deploy.runtime.structures import as_directions, as_numbers, as_reals, bounds_of
from painn_deploy.runtime.verlet import DEFAULT_SKIN

try:
    import torch_sim
    from torch_sim.autobatching import BinningAutoBatcher, InFlightAutoBatcher
    from torch_sim.models.interface import ModelInterface
except ModuleNotFoundError as error:
    raise ImportError(
        'painn_deploy.runtime.torchsim needs TorchSim: pip install "painn-deploy[torchsim]"', name=error.name
    ) from error

__all__ = ["PaiNNModel"]

MOST_ATOMS = 100_000
"""That TorchSim's batchers move together where no other number is given: the pairs of all are in memory at once."""

OURS = "painn_deploy_most_atoms"
"""Attribute of models that say how many atoms, and of batchers that ask for it: no class, which a reload replaces."""


class PaiNNModel(ModelInterface):
    """A bundle behind TorchSim's model interface.

    Energies are in eV, forces in eV/Å, stresses in eV/Å³ with ASE's sign, of the symmetrised virial; NaN where a cell
    has no volume. Neighbours are kept in Verlet lists, one for each system, so that a step that moves atoms a little
    searches nothing. Positions come to main memory at each call, since that is where neighbours are found.

    TorchSim 0.3 has one flag for whether systems repeat: a slab, periodic in two directions of three, comes to a model
    as a molecule. A system whose cell would bring images of its atoms within the cutoff, and which does not repeat, is
    therefore refused, and `pbc` says what the systems really are.

    TorchSim's batchers count atoms for this model (`memory_scales_with` is "n_atoms"), and move at most 100,000
    together unless `max_memory_scaler` gives another number: memory is what their pairs take in main memory, since the
    engine cuts its own batches, so that there is no GPU's memory to be measured, and molecules have no density.

    Args:
        bundle: a folder NAME.engine.
        device: of the engine, as for `PaiNNCalculator`.
        threads: of the CPU.
        skin: Å; 0 searches at every step.
        dtype: of what comes back; the engine itself computes in its own precision.
        state_device: of TorchSim's tensors; the CPU by default.
        pbc: in which directions all systems repeat, one flag or three, whatever TorchSim says; None for what it says.

    Attributes:
        evaluator: the engine; `evaluator.timings` says where the time goes.

    Raises:
        BundleError, EngineUnavailableError: as for `PaiNNCalculator`.
        StructureError: `pbc` is neither one flag nor three.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        skin: float = DEFAULT_SKIN,
        dtype: torch.dtype = torch.float64,
        state_device: str | torch.device = "cpu",
        pbc: bool | Sequence[bool] | Bool[np.ndarray, "3"] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= skin < float("inf"):
            raise ValueError(f"skin = {skin!r} is not a length in Å; give 0 to search at every step.")
        self._pbc, self._looked = None if pbc is None else as_directions(pbc), b""
        self.evaluator, self._sole = Evaluator(bundle, device=device, threads=threads), SoleUse("This model")
        self._device, self._dtype = torch.device(state_device), dtype
        self._compute_stress = self._compute_forces = True
        self._memory_scales_with = "n_atoms"
        setattr(self, OURS, MOST_ATOMS)
        cutoff, slots = self.evaluator.manifest.cutoff, self.evaluator.batch_slots
        self.neighbours = ReplicaList(cutoff, skin, slots, self.evaluator.most_atoms, self.evaluator.dtype)

    @property
    def calculator(self) -> Evaluator:
        """`evaluator`, under the name that it had before."""
        return self.evaluator

    @property
    def engine_info(self) -> EngineInfo:
        """The engine that runs; see `PaiNNCalculator.engine_info`."""
        return self.evaluator.engine_info

    def __repr__(self) -> str:
        """One line, as of `PaiNNCalculator`."""
        evaluator, kind = getattr(self, "evaluator", None), type(self).__name__
        return described(kind, None) if evaluator is None else evaluator.described(kind)

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        """Energy [systems], forces [atoms, 3] and stress [systems, 3, 3] of every system of a state.

        Of a bundle that has them, uncertainties as well, with the names and units of `PaiNNCalculator`, of systems or
        of atoms; NaN of a system where one is not known.

        Args:
            state: a SimState, or a mapping with its fields.

        Raises:
            StructureError: a system is nothing that a force field can answer for; the message says which.
            EngineError: the engine failed, or gave NaN or infinity; another thread is asking (OwnershipError).
        """
        if isinstance(state, dict):
            state = _as_state(state)
        timings = self.evaluator.timings
        with timings.phase("transfer"):
            numbers, owners = as_numbers(_array(state.atomic_numbers)), as_numbers(_array(state.system_idx))
            positions = as_reals(_array(state.positions), "positions")
            cells = as_reals(_array(state.row_vector_cell), "cells")
        if numbers.shape != owners.shape or positions.shape != (*numbers.shape, 3) or cells.shape[1:] != (3, 3):
            raise StructureError(
                f"A state cannot have atomic numbers of the shape {numbers.shape}, positions of {positions.shape}, "
                f"system_idx of {owners.shape} and cells of {cells.shape}; they must be (atoms,), (atoms, 3), (atoms,) "
                "and (systems, 3, 3)."
            )
        sorted_by_system = len(owners) > 0 and owners[0] == 0 and np.isin(np.diff(owners), (0, 1)).all()
        if not sorted_by_system or owners[-1] != len(cells) - 1:
            raise StructureError("A state must list its atoms system by system, and every system must have one.")
        counts = np.bincount(owners)
        starts = bounds_of(counts)
        periodic = self._periodic(as_directions(_array(state.pbc)))
        with self._sole:  # the lists of neighbours are one thread's
            return self._answer(numbers, positions, cells, periodic, starts)

    def _periodic(self, given: Bool[np.ndarray, "3"]) -> Bool[np.ndarray, "3"]:
        """Directions that repeat: TorchSim's, or those that this model was given."""
        if self._pbc is None:
            return given
        if (given & ~self._pbc).any():
            raise StructureError(
                f"TorchSim's pbc is {given.tolist()}, and this model's {self._pbc.tolist()}: it would move atoms from "
                "one side of a cell to the other in a direction that does not repeat. Give it structures with "
                "pbc=False; the model knows what repeats."
            )
        return self._pbc

    def _answer(
        self, numbers: np.ndarray, positions: np.ndarray, cells: np.ndarray, periodic: np.ndarray, starts: np.ndarray
    ) -> dict[str, torch.Tensor]:
        timings = self.evaluator.timings
        references = self.evaluator.references(numbers)
        with timings.phase("neighbours"):
            batches = self.neighbours.batches(numbers, positions, cells, periodic, starts)
            if self._pbc is None and not periodic.any() and cells.any():
                self._refuse_crystals(numbers, positions, cells, starts)
        energies, forces, virials, extras = answered(self.evaluator, batches)
        energies += references
        timings.calculations += 1
        with timings.phase("results"):
            results = self._results(energies, forces, virials, cells, starts) | self._doubts(numbers, extras, starts)
            return {
                name: torch.as_tensor(value, dtype=self.dtype, device=self.device) for name, value in results.items()
            }

    def _doubts(
        self, numbers: np.ndarray, extras: Mapping[str, np.ndarray], starts: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Uncertainties of systems and of their atoms."""
        source = self.evaluator.uncertainty
        if source is None:
            return {}
        found = source.of_many(numbers, extras, starts).items()
        return {name: values for name, values in found if not isinstance(values, list)}  # a tensor holds no words

    def _refuse_crystals(
        self, numbers: np.ndarray, positions: np.ndarray, cells: np.ndarray, starts: np.ndarray
    ) -> None:
        """Refuse systems that do not repeat, with cells as of crystals; those that stay are looked at once."""
        key = numbers.tobytes() + starts.tobytes() + cells.tobytes()
        if key == self._looked:
            return
        cutoff = self.evaluator.manifest.cutoff
        for system, cell in enumerate(cells):
            rows = slice(int(starts[system]), int(starts[system + 1]))
            atoms = Atoms(numbers[rows], positions[rows], cell=cell)
            if (image := unrepeated(atoms, cutoff)) is None:
                continue
            atom, other = image.names(atoms)
            raise StructureError(
                f"Structure {system} repeats in no direction, and its cell would bring an image of {other} within "
                f"{image.distance:.2f} Å of {atom}; the cutoff is {cutoff:g} Å. TorchSim 0.3 makes that of every "
                "structure that is not periodic in all three directions: PaiNNModel(..., pbc=(True, True, False)) is "
                "for slabs, pbc=True for crystals, and pbc=False if the cell stands for nothing."
            )
        self._looked = key

    def _results(
        self, energies: np.ndarray, forces: np.ndarray, virials: np.ndarray, cells: np.ndarray, starts: np.ndarray
    ) -> dict[str, np.ndarray]:
        energy, virial = np.add.reduceat(energies, starts[:-1]), np.add.reduceat(virials, starts[:-1])
        finite = np.isfinite(energy) & np.isfinite(virial).all((1, 2))
        finite &= np.logical_and.reduceat(np.isfinite(forces).all(1), starts[:-1])
        if not finite.all():
            raise not_finite(f"system {int(finite.argmin())}")
        volumes = cell_volumes(cells)[:, None, None]
        symmetric = (virial + virial.transpose(0, 2, 1)) / 2
        stress = np.divide(symmetric, volumes, out=np.full_like(symmetric, np.nan), where=volumes > 0)
        return {"energy": energy, "forces": forces, "stress": stress}


def _as_state(fields: dict[str, Any]) -> Any:
    try:
        return torch_sim.SimState(**{"masses": torch.ones_like(fields["positions"][:, 0]), **fields})
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise StructureError(f"This is no state of TorchSim ({type(error).__name__}): {error}.") from error


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _let_the_model_decide(batcher: Any) -> None:
    """Batchers of TorchSim 0.3 scale with density, whatever a model says, which divides by a molecule's volume of zero.

    And where they have no limit, they measure a GPU's memory: not where this model's is, and an error on a CPU. Neither
    can be said in a model, and `autobatcher=True` makes its batcher itself.
    """
    load = batcher.load_states
    if hasattr(load, OURS):  # this module is loaded again
        return

    @wraps(load)
    def load_states(self: Any, states: Any) -> Any:
        if (most := getattr(self.model, OURS, None)) is not None:
            self.memory_scales_with = self.model.memory_scales_with
            self.max_memory_scaler = self.max_memory_scaler or most
        return load(self, states)

    setattr(load_states, OURS, True)
    batcher.load_states = load_states


_let_the_model_decide(BinningAutoBatcher)
_let_the_model_decide(InFlightAutoBatcher)
