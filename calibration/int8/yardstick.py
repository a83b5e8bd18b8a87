"""Errors of a changed graph against the FP32 one, by which lower precisions are chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from ase import Atoms
from jaxtyping import Float

from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export.fields import GraphInputs
from painn_deploy.runtime.grouping import group
from painn_deploy.runtime.matrix import join, local_graphs

__all__ = ["Errors", "Yardstick"]

Run = Callable[[GraphInputs], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Errors:
    """Errors against FP32.

    Attributes:
        energy_mae: eV an atom, after `correction`.
        raw_energy_mae: eV an atom, before `correction`.
        force_rmse: eV/Å, over components.
        correction: eV to add to the atomic energy of each atomic number, which makes `energy_mae` least.
    """

    energy_mae: float
    raw_energy_mae: float
    force_rmse: float
    correction: Mapping[int, float]


class Yardstick:
    """Measures errors of changed graphs on some structures, whose FP32 results it keeps.

    Args:
        model: the FP32 graph.
        structures: to measure on.
        cutoff: Å.
        run: evaluates it; None for ONNX Runtime.
    """

    def __init__(
        self, model: onnx.ModelProto, structures: Sequence[Atoms], cutoff: float, run: Run | None = None
    ) -> None:
        graphs = local_graphs(structures, cutoff)
        sizes = [graph.size for graph in graphs]
        self._batches = [(batch, join([graphs[i] for i in batch])) for batch in group(sizes)]
        self.batched = [index for batch, _ in self._batches for index in batch]
        self._atoms = np.array([atoms for atoms, _ in sizes])
        self.species = sorted({int(z) for atoms in structures for z in atoms.numbers})
        self._composition = np.array([[(a.numbers == z).sum() for z in self.species] for a in structures], float)
        self._energies, self._forces = self.evaluate(open_graph(model.SerializeToString()) if run is None else run)
        self.mean_size = (round(float(self._atoms.mean())), round(float(np.mean([slots for _, slots in sizes]))))

    def errors(self, run: Run, correction: Mapping[int, float] | None = None) -> Errors:
        """Measure the errors of a graph that keeps the contract.

        Args:
            run: evaluates the graph.
            correction: eV for each atomic number, found elsewhere; None to find it here.
        """
        return self.errors_of(*self.evaluate(run), correction)

    def errors_of(
        self,
        energies: Float[np.ndarray, " structures"],
        forces: Float[np.ndarray, "all_atoms 3"],
        correction: Mapping[int, float] | None = None,
    ) -> Errors:
        """The same of what `evaluate` gave.

        Args:
            energies: eV.
            forces: eV/Å.
            correction: see `errors`.
        """
        missing = self._energies - energies
        if correction is None:
            shift = _least_absolute(self._composition / self._atoms[:, None], missing / self._atoms)
        else:
            shift = np.array([correction.get(z, 0.0) for z in self.species])
        left = (missing - self._composition @ shift) / self._atoms
        return Errors(
            energy_mae=_finite(np.abs(left).mean()),
            raw_energy_mae=_finite(np.abs(missing / self._atoms).mean()),
            force_rmse=_finite(np.sqrt(np.square(forces - self._forces).mean())),
            correction=dict(zip(self.species, shift.tolist(), strict=True)),
        )

    def evaluate(self, run: Run) -> tuple[Float[np.ndarray, " structures"], Float[np.ndarray, "all_atoms 3"]]:
        """Energies in eV, and forces in eV/Å of all structures one after the other in the order of `batched`.

        Args:
            run: evaluates a graph that keeps the contract.
        """
        energies, forces = np.zeros(len(self._atoms)), []
        for batch, inputs in self._batches:
            outputs, start = run(inputs), 0
            for index in batch:
                stop = start + self._atoms[index]
                energies[index] = outputs[0][start:stop].astype(np.float64).sum()
                start = stop
            forces.append(outputs[1][:start].astype(np.float64))
        return energies, np.concatenate(forces)


def _finite(value: np.floating) -> float:
    """A value as a number; NaN, which compares with nothing, as infinity."""
    return float(value) if np.isfinite(value) else float("inf")


def _least_absolute(
    composition: Float[np.ndarray, "structures species"], values: Float[np.ndarray, " structures"]
) -> Float[np.ndarray, " species"]:
    """Fit least absolute deviations by reweighted least squares: one strange molecule does not move the fit."""
    if not np.isfinite(values).all():
        return np.zeros(composition.shape[1])
    floor = 1e-6 + 1e-3 * float(np.abs(values).mean())
    weights, best, least = np.ones(len(values)), np.zeros(composition.shape[1]), float(np.abs(values).sum())
    for _ in range(30):
        root = np.sqrt(weights)
        shift = np.linalg.lstsq(composition * root[:, None], values * root, rcond=1e-6)[0]
        left = np.abs(values - composition @ shift)
        if left.sum() < least:
            best, least = shift, float(left.sum())
        weights = 1 / np.maximum(left, floor)
    return best
