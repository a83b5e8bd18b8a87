"""What an engine answered for structures side by side, in arrays; and as a dict for each."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.symbols import Symbols
from jaxtyping import Float64, Int64

from painn_deploy.export.fields import GraphOutputs
from painn_deploy.runtime.batches.frames import Faults, Frames
from painn_deploy.runtime.results import cell_volumes, not_finite, voigt_stresses
from painn_deploy.runtime.structures import bounds_of
from painn_deploy.runtime.uncertainty.scale import OF_ATOMS, OF_STRUCTURE, RATIO, one_of
from painn_deploy.runtime.uncertainty.source import Uncertainty

__all__ = ["Answers"]


@dataclass
class Answers:
    """Results of structures side by side, in the units that ASE has; NaN where a structure has no answer.

    Attributes:
        offsets: first atom of each structure, and the number of atoms at the end.
        energy: of each structure, eV.
        energies: of each atom, atomic references included, eV.
        forces: eV/Å.
        stress: xx, yy, zz, yz, xz, xy in eV/Å³, ASE's sign; NaN too where the cell has no volume.
        stresses: of each atom; likewise.
        uncertainties: by name, see `painn_deploy.runtime.uncertainty`: of structures or of atoms, NaN where one is not
            known; None in place of words.
        faults: why structures have no answer, by their places.
    """

    offsets: Int64[np.ndarray, " bounds"]
    energy: Float64[np.ndarray, " frames"]
    energies: Float64[np.ndarray, " atoms"]
    forces: Float64[np.ndarray, "atoms 3"]
    stress: Float64[np.ndarray, "frames 6"]
    stresses: Float64[np.ndarray, "atoms 6"]
    uncertainties: dict[str, np.ndarray] = field(default_factory=dict)
    faults: Faults = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.energy)

    def uncertain(self, name: str) -> np.ndarray:
        """Uncertainties of one name; of structures none of which was answered, none is known.

        Args:
            name: of the result.
        """
        if name in self.uncertainties:
            return self.uncertainties[name]
        length = len(self.energies if name in OF_ATOMS else self.energy)
        return np.full(length, None, object) if OF_STRUCTURE.get(name) == "text" else np.full(length, np.nan)

    def dicts(self) -> list[dict[str, Any] | Exception]:
        """ASE's results of each structure, in arrays of its own, or why there are none."""
        energies, forces, stress, stresses = self.energies, self.forces, self.stress, self.stresses
        bounds, faults = self.offsets.tolist(), self.faults
        more = bool(self.uncertainties) or bool((stress[:, 0] == stress[:, 0]).any())
        made: list[dict[str, Any] | Exception] = []
        start = 0
        for index, (stop, energy) in enumerate(zip(bounds[1:], self.energy.tolist(), strict=True)):
            if faults and index in faults:
                made.append(faults[index])
            else:
                results = {
                    "energy": energy,
                    "free_energy": energy,
                    "energies": energies[start:stop].copy(),
                    "forces": forces[start:stop].copy(),
                }
                if more:
                    if stress[index, 0] == stress[index, 0]:  # NaN alone is not itself
                        results |= {"stresses": stresses[start:stop].copy(), "stress": stress[index].copy()}
                    results |= one_of(self.uncertainties, index, slice(start, stop))
                made.append(results)
            start = stop
        return made

    @staticmethod
    def joined(parts: "list[Answers]") -> "Answers":
        """Answers for structures after one another.

        Args:
            parts: at least one.
        """
        if len(parts) == 1:
            return parts[0]
        offsets, faults, frames = [np.zeros(1, np.int64)], Faults(), 0
        for part in parts:
            offsets.append(part.offsets[1:] + offsets[-1][-1])
            faults |= {frames + index: fault for index, fault in part.faults.items()}
            frames += len(part)
        names = {name for part in parts for name in part.uncertainties}
        found = {name: np.concatenate([part.uncertain(name) for part in parts]) for name in sorted(names)}
        return Answers(
            np.concatenate(offsets),
            np.concatenate([part.energy for part in parts]),
            np.concatenate([part.energies for part in parts]),
            np.concatenate([part.forces for part in parts]),
            np.concatenate([part.stress for part in parts]),
            np.concatenate([part.stresses for part in parts]),
            found,
            faults,
        )


class Gathering:
    """Answers of one window of structures as they come from the engine, batch after batch.

    Args:
        frames: the structures.
        references: reference energy of each atom, eV.
        uncertainty: what makes uncertainties of what the graph gives beside; None for none.
        faults: why structures have no answer so far; written.
    """

    def __init__(
        self,
        frames: Frames,
        references: Float64[np.ndarray, " atoms"],
        uncertainty: Uncertainty | None,
        faults: Faults,
    ) -> None:
        self._frames, self._references, self._uncertainty, self._faults = frames, references, uncertainty, faults
        self._volumes = cell_volumes(frames.cells)
        atoms = len(frames.numbers)
        self._energies, self._forces = np.full(atoms, np.nan), np.full((atoms, 3), np.nan)
        self._virials = np.full((atoms, 3, 3), np.nan) if self._volumes.any() else None
        self._found: dict[str, np.ndarray] = {}

    def add(self, chosen: Int64[np.ndarray, " chosen"], outputs: GraphOutputs) -> None:
        """Take the outputs of one batch, digested.

        Args:
            chosen: indices of its structures, in the order of its rows.
            outputs: of their atoms.
        """
        frames = self._frames
        rows, bounds = frames.rows_of(chosen), bounds_of(frames.counts[chosen])
        self._energies[rows] = outputs.atomic_energies
        self._energies[rows] += self._references[rows]
        self._forces[rows] = outputs.forces
        if self._virials is not None:
            self._virials[rows] = outputs.virials
        # a sum in float64 is finite if and only if its terms are: float32 is far from its range
        if not np.isfinite(sum(float(array.sum(dtype=np.float64)) for array in outputs)):
            finite = [np.isfinite(array).reshape(len(array), -1).all(1) for array in outputs]
            sound = np.logical_and.reduceat(np.logical_and.reduce(finite), bounds[:-1])
            self._refuse(chosen[~sound])
        if self._uncertainty is not None:
            self._keep(self._uncertainty.of_many(frames.numbers[rows], outputs.extras, bounds), chosen, rows)

    def _keep(self, found: dict[str, Any], chosen: np.ndarray, rows: Any) -> None:
        """Put uncertainties of a batch where their structures and atoms are."""
        for name, values in found.items():
            length = len(self._frames.numbers if name in OF_ATOMS else self._frames)
            if name not in self._found:
                words = isinstance(values, list)
                self._found[name] = np.full(length, None, object) if words else np.full(length, np.nan)
            self._found[name][rows if name in OF_ATOMS else chosen] = values
        if RATIO in found:
            self._refuse(chosen[np.isnan(found[RATIO])])

    def _refuse(self, wrong: Int64[np.ndarray, " wrong"]) -> None:
        for index in wrong.tolist():
            name = str(Symbols(self._frames.numbers[self._frames.rows(index)]))
            self._faults.setdefault(index, not_finite(name))  # one that is known by now is why

    def answers(self) -> Answers:
        """What was answered, once every batch was taken."""
        frames, faults = self._frames, self._faults
        for index in faults:
            rows = frames.rows(index)
            self._energies[rows] = self._forces[rows] = np.nan
            for name, values in self._found.items():
                values[rows if name in OF_ATOMS else index] = None if values.dtype == object else np.nan
        filled = frames.counts > 0
        starts = frames.offsets[:-1][filled]
        energy = np.full(len(frames), np.nan)
        energy[filled] = np.add.reduceat(self._energies, starts) if len(starts) else 0.0
        stress, stresses = np.full((len(frames), 6), np.nan), np.full((len(frames.numbers), 6), np.nan)
        if self._virials is not None:
            solid = self._volumes > 0
            inside = np.repeat(solid, frames.counts)
            volumes = np.repeat(self._volumes[solid], frames.counts[solid])
            stresses[inside] = voigt_stresses(self._virials[inside], volumes)
            stress[filled] = np.add.reduceat(stresses, starts)
        return Answers(frames.offsets, energy, self._energies, self._forces, stress, stresses, self._found, faults)
