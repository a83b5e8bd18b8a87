"""A student's features and energies of the frames that its uncertainty is fitted on, and what their files say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from jaxtyping import Float64

from painn_deploy.calibration.accuracy.reference import BATCH, one_thread
from painn_deploy.calibration.uncertainty.fitting import Frames, fit_last_layer
from painn_deploy.export.model.force_head import tensors
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import Tell, counting, silent
from painn_deploy.runtime.grouping import group
from painn_deploy.runtime.matrix import join, local_graphs
from painn_deploy.runtime.uncertainty.rigidity import LastLayer
from painn_deploy.runtime.uncertainty.scale import RATIO

__all__ = ["LARGEST_ERROR", "evaluated", "last_layer_of", "uncertainty_errors", "uncertainty_ratios"]


LARGEST_ERROR = 0.01
"""Median over structures of the error of an exact engine's uncertainties, as a share of the student's own in float64,
or of the typical one. On a few structures float32 may hold no features, and low rank magnifies it."""


def uncertainty_ratios(last_layer: LastLayer, student: Student, structures: Sequence[Atoms]) -> list[float]:
    """`uncertainty_ratio` of structures, of the student's own features.

    Args:
        last_layer: what makes uncertainties of them.
        student: in float64.
        structures: to evaluate.
    """
    frames = evaluated(student, structures, "")
    made = zip(frames.numbers, frames.features, strict=True)
    return [float(last_layer.rigidities(*each).mean()) / last_layer.scale.typical for each in made]


def uncertainty_errors(results: Sequence[Mapping[str, Any]], wanted: Sequence[float]) -> dict[str, float]:
    """Median and largest error of the uncertainties of an engine's features, relative to those of the student's own.

    Args:
        results: of the engine.
        wanted: see `uncertainty_ratios`.
    """
    errors = [
        abs(one[RATIO] - other) / max(other, 1.0)
        for one, other in zip(results, wanted, strict=True)
        if np.isfinite(other)  # else it holds an element that no frame held
    ] or [0.0]
    return {"median_relative_error": float(np.median(errors)), "largest_relative_error": max(errors)}


def last_layer_of(student: Student, frames: Sequence[Atoms], name: str, tell: Tell = silent) -> LastLayer:
    """Fit the uncertainty of a student's last layer on frames like those that it was trained on.

    Args:
        student: in float64.
        frames: the more the better; energies (eV) that their file gives calibrate it.
        name: of the frames.
        tell: called with how many are done.

    Raises:
        DatasetError: there is no frame, or one has features or an energy that is not finite.
    """
    return fit_last_layer(evaluated(student, frames, name, tell))


def evaluated(student: Student, structures: Sequence[Atoms], name: str, tell: Tell = silent) -> Frames:
    """Features and energies that a student gives, without forces; beside the energies that structures came with.

    Args:
        student: in float64.
        structures: to evaluate; energies (eV) are those of their calculators.
        name: of them.
        tell: called with how many are done.
    """
    graphs = local_graphs(structures, student.configuration.cutoff)
    features: list[Float64[np.ndarray, "atoms width"]] = [np.empty((0, 0))] * len(structures)
    predicted = np.zeros(len(structures))
    references = student.atomic_references.numpy()
    more = counting(tell, len(structures))
    for batch in group([graph.size for graph in graphs], BATCH):
        with one_thread(), torch.no_grad():
            answer = student.answer(tensors(join([graphs[index] for index in batch], np.float64), torch.float64))
        start = 0
        for index in batch:
            rows = slice(start, start + len(structures[index]))
            features[index] = answer.features[rows].numpy()
            predicted[index] = float(answer.energies[rows].sum()) + references[structures[index].numbers].sum()
            start = rows.stop
        more(len(batch))
    labels = np.array([_label(atoms) for atoms in structures])
    return Frames(name, [atoms.numbers for atoms in structures], features, predicted, labels)


def _label(atoms: Atoms) -> float:
    """The energy that a frame's file gives, eV; NaN where it gives none."""
    energy = None if atoms.calc is None else getattr(atoms.calc, "results", {}).get("energy")
    return float("nan") if energy is None else float(energy)
