"""Makes the last-layer uncertainty of a student from frames that it was trained on."""

from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Bool, Float, Float64, Int64, Integer

from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.uncertainty.rigidity import QUANTILE, LastLayer

__all__ = ["EVERY", "fit_last_layer"]

EVERY = 5
"""One frame of so many is held out; of fewer frames in all, none is."""

NOISE = 1e-2
"""Of the root mean square feature: what is smaller is noise. Above the rounding of half precision."""

EXPLAINED = 0.99
"""Share of the squared errors that a shift of each element's energy explains, from which labels are of another zero."""

OWN = 1e-6
"""eV an atom; labels that are no further from the predictions are the student's own."""

FEW = 20
"""Labelled held-out frames, below which alpha is rough."""

COVERED, WIDTHS = 0.95, 1.96
"""Of a normal distribution, how much is within so many widths."""


def fit_last_layer(
    features: Float[np.ndarray, "atoms width"],
    numbers: Integer[np.ndarray, " atoms"],
    sizes: Sequence[int],
    name: str,
    *,
    predicted: Float64[np.ndarray, " frames"] | None = None,
    labelled: Float64[np.ndarray, " frames"] | None = None,
) -> LastLayer:
    """Matrices from four of five frames; alpha, the typical uncertainty and the threshold from each fifth.

    With alpha, 95 % of the errors are within 1.96 uncertainties. A root mean square would hang on whether the one frame
    that the student is wildly wrong for, such as an isolated atom, is held out; only of fewer than `FEW` frames, which
    have no such quantile, it is taken. Labels that differ from predictions by an energy of each element, and by hardly
    anything else, have another zero of energy: no force knows of it, so the shift is fitted to the frames of the
    matrices and subtracted, and a remark says so.

    Args:
        features: of all atoms, frame after frame.
        numbers: their atomic numbers.
        sizes: atoms of each frame.
        name: of the frames, for errors and remarks.
        predicted: energies by the student with its atomic references, eV.
        labelled: energies to compare with, eV; NaN where a frame has none, None where no frame has.

    Raises:
        DatasetError: there is no frame, an empty one, one with features or energies that are not finite, or of
            features that are all zero.
    """
    counts = np.asarray(sizes, dtype=np.int64)
    errors = _errors(predicted, labelled, counts)
    _check(features, counts, errors, labelled, name)
    held_out = np.arange(len(counts)) % EVERY == EVERY - 1
    remarks: list[str] = []
    if held_out.any():
        fitted = ~held_out
    else:
        held_out = fitted = np.ones(len(counts), bool)
        remarks.append(
            f"{name} has {_plural(len(counts), 'frame')}, fewer than {EVERY}: none is held out, and uncertainties are "
            "judged on the frames that they are made from"
        )
    chosen = np.repeat(fitted, counts)
    roots, noise = _matrices(features[chosen].astype(np.float64), numbers[chosen], name, remarks)
    if missing := sorted(set(numbers.tolist()) - roots.keys()):
        names = ", ".join(chemical_symbols[z] for z in missing)
        remarks.append(f"only held-out frames of {name} have {names}: nothing is known of them")
    width = features.shape[1]
    bare = LastLayer(roots, width, noise, None, 1.0, 1.0, int(fitted.sum()), int(held_out.sum()), 0, name)
    sums = np.add.reduceat(bare.leverages(features, numbers), np.cumsum(counts) - counts)
    means = (sums / counts)[held_out]
    typical = float(np.median(means))
    if not typical > 0:
        raise DatasetError(f"The student has the same features, zero, for most frames of {name}: they tell nothing.")
    elements = np.unique(numbers)
    owners = np.repeat(np.arange(len(counts)), counts)
    composition = np.zeros((len(counts), len(elements)))
    np.add.at(composition, (owners, np.searchsorted(elements, numbers)), 1.0)
    alpha, used = _alpha(errors, sums, composition, fitted, held_out, name, remarks)
    threshold = float(np.quantile(means, QUANTILE)) / typical
    return LastLayer(
        roots, width, noise, alpha, typical, threshold, bare.frames, bare.held_out, used, name, tuple(remarks)
    )


def _errors(
    predicted: Float64[np.ndarray, " frames"] | None,
    labelled: Float64[np.ndarray, " frames"] | None,
    counts: Int64[np.ndarray, " frames"],
) -> Float64[np.ndarray, " frames"]:
    """Of the student's energies, NaN where there is no label."""
    if labelled is None:
        return np.full(len(counts), np.nan)
    if predicted is None:
        raise DatasetError("Energies to compare with come with those that the student predicts.")
    errors: np.ndarray = labelled - predicted
    return errors


def _check(
    features: Float[np.ndarray, "atoms width"],
    counts: Int64[np.ndarray, " frames"],
    errors: Float64[np.ndarray, " frames"],
    labelled: Float64[np.ndarray, " frames"] | None,
    name: str,
) -> None:
    """Refuse what no uncertainty can be made from.

    Raises:
        DatasetError: see `fit_last_layer`.
    """
    if not len(counts):
        raise DatasetError(f"{name} has no frames: an uncertainty is made from some that the student was trained on.")
    if (counts < 1).any():
        raise DatasetError(f"Frame {int((counts < 1).argmax())} of {name} has no atoms.")
    if counts.sum() != len(features):
        raise DatasetError(f"{name} has {counts.sum()} atoms, and features of {len(features)}.")
    if not (fine := np.isfinite(features).all(1)).all():
        frame = int(np.repeat(np.arange(len(counts)), counts)[fine.argmin()])
        raise DatasetError(f"The student has features that are not finite for frame {frame} of {name}.")
    if labelled is not None and (odd := ~np.isfinite(errors) & ~np.isnan(labelled)).any():
        raise DatasetError(f"The energy of frame {int(odd.argmax())} of {name} is not finite, labelled or predicted.")


def _matrices(
    features: Float64[np.ndarray, "atoms width"], numbers: Integer[np.ndarray, " atoms"], name: str, remarks: list[str]
) -> tuple[dict[int, Float64[np.ndarray, "width width"]], float]:
    """Root of each element, and the noise."""
    noise = NOISE * float(np.sqrt(np.square(features).mean()))
    if not noise > 0:
        raise DatasetError(f"The student's features are all zero for the frames of {name}: they tell nothing.")
    width, roots, few = features.shape[1], {}, []
    for number in np.unique(numbers).tolist():
        rows = features[numbers == number]
        # Of C + noise² 1 = L Lᵀ, the inverse of L: |L⁻¹ F|² = Fᵀ (C + noise² 1)⁻¹ F.
        lower = np.linalg.cholesky(rows.T @ rows / len(rows) + noise**2 * np.eye(width))
        roots[number] = np.linalg.inv(lower)
        if len(rows) < width:
            few.append(f"{chemical_symbols[number]} ({len(rows)})")
    if few:
        remarks.append(
            f"{name} has fewer atoms of {', '.join(few)} than the {width} features: what no atom shows counts as "
            "unknown, and uncertainties of others are high"
        )
    return roots, noise


def _alpha(
    errors: Float64[np.ndarray, " frames"],
    sums: Float64[np.ndarray, " frames"],
    composition: Float64[np.ndarray, "frames elements"],
    fitted: Bool[np.ndarray, " frames"],
    held_out: Bool[np.ndarray, " frames"],
    name: str,
    remarks: list[str],
) -> tuple[float | None, int]:
    """Alpha, and how many frames it is of."""
    known = np.isfinite(errors)
    judged, base = held_out & known, fitted & known
    used = int(judged.sum())
    if not used:
        remarks.append(f"no held-out frame of {name} has an energy: uncertainties are ratios, without a unit")
        return None, 0
    if base.any():
        shift, _, rank, _ = np.linalg.lstsq(composition[base], errors[base])
        left = errors - composition @ shift
        explained = 1 - np.square(left[base]).sum() / max(np.square(errors[base]).sum(), 1e-300)
        if base.sum() > 2 * rank and explained > EXPLAINED:
            atom = float(np.sqrt(np.mean(np.square((composition @ shift / composition.sum(1))[judged]))))
            remarks.append(
                f"energies of {name} differ from the student's by {atom:.3g} eV an atom that depends on the elements "
                "alone: taken as another zero of energy and left out of what uncertainties are fitted to"
            )
            errors = left
    if np.abs(errors / composition.sum(1))[judged].max() <= OWN:
        remarks.append(f"energies of {name} are the student's own: uncertainties are ratios, without a unit")
        return None, 0
    ratios = np.abs(errors / sums)[judged]
    if used >= FEW:
        return float(np.quantile(ratios, COVERED)) / WIDTHS, used
    remarks.append(f"energies in {_plural(used, 'held-out frame')} of {name} set the scale of uncertainties: rough")
    return float(np.sqrt(np.square(ratios).mean())), used


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")
