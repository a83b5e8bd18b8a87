"""Fitting what makes uncertainties of features: matrices of some frames, and a factor of others with energies."""

from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float64, Integer

from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.uncertainty.rigidity import QUANTILE, LastLayer

__all__ = ["fit_last_layer"]

HELD_OUT = 5
"""Every frame with this multiple as its number calibrates, and makes no part of the matrices."""

REGULARISATION = 1e-6
"""ς² as a share of the mean of a matrix' diagonal: what no frame showed is a thousand times as uncertain at most."""

COVERED, DEVIATIONS = 0.95, 1.96
"""Of errors, within so many standard deviations of a Gaussian; the factor is chosen so that as many are. The tails are
heavier than a Gaussian's: a factor of the middle of the errors leaves more of them out on molecules never trained on
(`python -m painn_deploy.scripts.studies.uncertainty`)."""

ENOUGH = 5
"""Frames with energies that calibrate."""

SHIFTED, LEFT = 0.1, 0.1
"""Root of the mean square error an atom, eV, beyond which another scale of energies is looked for; and the share of an
error that may be left when each element has a shift of its own, where that is what it was."""


def fit_last_layer(
    features: Sequence[Float64[np.ndarray, "_ _"]],
    numbers: Sequence[Integer[np.ndarray, " _"]],
    predicted: Float64[np.ndarray, " frames"],
    labels: Float64[np.ndarray, " frames"],
    name: str,
) -> LastLayer:
    """Fit the uncertainty of a last layer.

    Args:
        features: of each frame, [atoms, width].
        numbers: atomic numbers of each frame.
        predicted: the student's energies, eV.
        labels: energies that the frames came with, eV; NaN where one has none.
        name: of the frames.

    Raises:
        DatasetError: there is no frame, or features or energies of one are not finite.
    """
    if not features:
        raise DatasetError(f"{name} holds no structure to fit an uncertainty on.")
    for index, (rows, energy, label) in enumerate(zip(features, predicted, labels, strict=True)):
        if not np.isfinite(rows).all() or not np.isfinite(energy) or np.isinf(label):
            raise DatasetError(
                f"Structure {index} of {name} has an energy that is not finite, or the student gives none. Take it out."
            )
    places = np.arange(len(features))
    held = places % HELD_OUT == HELD_OUT - 1
    remarks: list[str] = []
    if len(features) < HELD_OUT:
        held[:] = True
        remarks.append(f"{len(features)} frames are too few to hold some out: all both make and calibrate it.")
    making = places if held.all() else places[~held]
    roots = _roots(features, numbers, making, remarks)
    scale = LastLayer(roots, None, 1.0, 1.0, name, (1, 1))
    sums = np.array([scale.rigidities(numbers[i], features[i]).sum() for i in places[held]])
    atoms = np.array([len(numbers[i]) for i in places[held]])
    known = np.isfinite(sums) & (sums > 0)
    if not known.any():
        raise DatasetError(f"No frame that is held out of {name} has only elements of the others. Give more of them.")
    ratios = (sums / atoms)[known]
    typical = float(np.median(ratios))
    kept = places[held][known]
    factor = _factor(sums[known], predicted[kept] - labels[kept], [numbers[i] for i in kept], name, remarks)
    threshold = float(np.quantile(ratios, QUANTILE)) / typical
    return LastLayer(roots, factor, typical, threshold, name, (len(making), int(known.sum())), tuple(remarks))


def _roots(
    features: Sequence[Float64[np.ndarray, "_ _"]],
    numbers: Sequence[Integer[np.ndarray, " _"]],
    making: Integer[np.ndarray, " frames"],
    remarks: list[str],
) -> dict[int, Float64[np.ndarray, "width width"]]:
    """Of each element the root of its inverse matrix."""
    rows = np.concatenate([features[i] for i in making]).astype(np.float64)
    elements = np.concatenate([numbers[i] for i in making])
    width, roots, few = rows.shape[1], dict[int, Float64[np.ndarray, "width width"]](), []
    for number in np.unique(elements):
        own = rows[elements == number]
        matrix = own.T @ own / len(own)
        size = float(np.trace(matrix)) / width
        if size == 0:  # a student whose last layer is silent there
            size = 1.0
        inverse = np.linalg.inv(matrix + REGULARISATION * size * np.eye(width))
        roots[int(number)] = np.linalg.cholesky((inverse + inverse.T) / 2).T
        if len(own) < width:
            few.append(f"{chemical_symbols[number]} ({len(own)})")
    if few:
        remarks.append(
            f"Fewer atoms than the {width} features of the read-out were seen of {', '.join(few)}: their matrices are "
            "of lower rank, and what was not seen counts as most uncertain."
        )
    return roots


def _factor(
    sums: Float64[np.ndarray, " frames"],
    errors: Float64[np.ndarray, " frames"],
    numbers: Sequence[Integer[np.ndarray, " _"]],
    name: str,
    remarks: list[str],
) -> float | None:
    """α, eV, such that as many errors are within 1.96 σ as of a Gaussian; None where too few frames have an energy.

    A quantile, unlike a mean of squares, is not moved by a few frames that are far from all others.
    """
    labelled = np.flatnonzero(~np.isnan(errors))
    if len(labelled) < ENOUGH:
        remarks.append(
            f"{len(labelled)} of the frames that are held out ({name}) have an energy, and {ENOUGH} calibrate: there "
            "is no uncertainty in eV, only how many times as uncertain as these a structure is."
        )
        return None
    sums, errors, numbers = sums[labelled], errors[labelled], [numbers[i] for i in labelled.tolist()]
    elements = np.unique(np.concatenate(numbers))
    counts = np.array([[np.count_nonzero(own == z) for z in elements] for own in numbers], np.float64)
    atoms = counts.sum(1)
    shift = np.linalg.lstsq(counts / atoms[:, None], errors / atoms, rcond=None)[0]
    left = errors - counts @ shift
    before, after = (float(np.sqrt(np.mean((error / atoms) ** 2))) for error in (errors, left))
    if before > SHIFTED and after < LEFT * before:
        words = ", ".join(f"{chemical_symbols[z]} {-value:+.3f}" for z, value in zip(elements, shift, strict=True))
        remarks.append(
            f"Energies of {name} are on another scale than the student's, by {words} eV an atom; what is left without "
            "this calibrates."
        )
        errors = left
    factor = float(np.quantile(np.abs(errors) / sums, COVERED)) / DEVIATIONS
    if factor == 0:
        remarks.append(f"Energies of {name} are the student's own and say nothing of its errors: no uncertainty in eV.")
        return None
    return factor
