"""Fitting what makes uncertainties of features: matrices of some frames, and a factor of others with energies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float64, Integer

from painn_deploy.calibration.uncertainty.merit import COVERED, DEVIATIONS
from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime.uncertainty.rigidity import LastLayer
from painn_deploy.runtime.uncertainty.scale import QUANTILE, Scale

__all__ = ["Frames", "fit_last_layer", "on_one_scale", "scale_of"]

HELD_OUT = 5
"""Every frame with this multiple as its number calibrates, and makes no part of the matrices."""

REGULARISATION = 1e-6
"""ς² as a share of the mean of a matrix' diagonal: what no frame showed is a thousand times as uncertain at most."""

ENOUGH, ENOUGH_FOR_THRESHOLD = 5, 100
"""Frames with energies that can calibrate, and frames of which a hundredth is one."""

ITS_OWN = 1e-5
"""eV an atom, within which energies are a student's own, rounded: no student errs so little."""

FRAMES_A_SHIFT = 3
"""Of each element, below which shifts would be fitted to noise."""

SHIFTED, LEFT = 0.1, 0.1
"""Root of the mean square error an atom, eV, beyond which another scale of energies is looked for; and the share of an
error that may be left when each element has a shift of its own, where that is what it was."""


@dataclass(frozen=True)
class Frames:
    """What a student says of some frames, and what they came with.

    Attributes:
        name: of the frames.
        numbers: atomic numbers of each frame.
        features: of each frame, [atoms, width].
        predicted: the student's energies, eV.
        labels: energies that the frames came with, eV; NaN where one has none.
    """

    name: str
    numbers: Sequence[Integer[np.ndarray, " _"]]
    features: Sequence[Float64[np.ndarray, "_ _"]]
    predicted: Float64[np.ndarray, " frames"]
    labels: Float64[np.ndarray, " frames"]

    def part(self, places: Integer[np.ndarray, " some"]) -> "Frames":
        """Some of the frames.

        Args:
            places: which of them.
        """
        numbers, features = ([each[i] for i in places.tolist()] for each in (self.numbers, self.features))
        return Frames(self.name, numbers, features, self.predicted[places], self.labels[places])

    def check(self) -> None:
        """Refuse what nothing can be fitted on.

        Raises:
            DatasetError: there is no frame, or features or energies of one are not finite.
        """
        if not len(self.features):
            raise DatasetError(f"{self.name} holds no structure to fit an uncertainty on.")
        for index, (rows, energy, label) in enumerate(zip(self.features, self.predicted, self.labels, strict=True)):
            if not np.isfinite(rows).all() or not np.isfinite(energy) or np.isinf(label):
                raise DatasetError(
                    f"Structure {index} of {self.name} has an energy that is not finite, or the student gives none. "
                    "Take it out."
                )


def fit_last_layer(frames: Frames, calibrating: Frames | None = None) -> LastLayer:
    """Fit the uncertainty of a last layer.

    Args:
        frames: that make it.
        calibrating: that calibrate it, best of molecules that the student was not trained on; None for every fifth of
            the others, which then makes no part of it.

    Raises:
        DatasetError: there is no frame, or features or energies of one are not finite; or none that calibrates has
            only elements of those that make it.
    """
    frames.check()
    remarks: list[str] = []
    if calibrating is None:
        frames, calibrating = _parted(frames, remarks)
    else:
        calibrating.check()
    roots = _roots(frames, remarks)
    unscaled = LastLayer(roots, None, Scale(1.0, 1.0, "", (1, 1)))
    pairs = zip(calibrating.numbers, calibrating.features, strict=True)
    sums = np.array([unscaled.rigidities(numbers, rows).sum() for numbers, rows in pairs])
    atoms = np.array([len(numbers) for numbers in calibrating.numbers])
    known = np.flatnonzero(np.isfinite(sums) & (sums > 0))
    if not len(known):
        raise DatasetError(
            f"No frame of {calibrating.name} that calibrates has only elements of those that make the uncertainty. "
            "Give more of them."
        )
    factor = _factor(sums[known], calibrating.part(known), remarks)
    return LastLayer(roots, factor, scale_of((sums / atoms)[known], calibrating.name, len(frames.features), remarks))


def scale_of(values: Float64[np.ndarray, " frames"], name: str, made_of: int, remarks: Sequence[str] = ()) -> Scale:
    """What is typical of some frames.

    Args:
        values: the uncertainty of each.
        name: of the frames.
        made_of: how many frames the uncertainty was made from.
        remarks: about what was found before.

    Raises:
        DatasetError: of half the frames or more it is zero, or of one it is not finite.
    """
    if not np.isfinite(values).all():
        raise DatasetError(
            f"Of structure {int(np.isfinite(values).argmin())} of {name} the uncertainty is not finite. Take it out."
        )
    typical, count = float(np.median(values)), len(values)
    if not typical > 0:
        raise DatasetError(
            f"Of half the frames of {name} or more the uncertainty is zero, so that none can be typical."
        )
    said = list(remarks)
    if count < ENOUGH_FOR_THRESHOLD:
        said.append(
            f"The threshold is hardly that of {100 * QUANTILE:g} % of frames, since only {count} calibrate, and "
            f"{ENOUGH_FOR_THRESHOLD} would be enough: what is above it may be familiar."
        )
    return Scale(typical, float(np.quantile(values, QUANTILE)) / typical, name, (made_of, count), tuple(said))


def _parted(frames: Frames, remarks: list[str]) -> tuple[Frames, Frames]:
    """Those that make the uncertainty, and those that calibrate it."""
    places = np.arange(len(frames.features))
    held = places % HELD_OUT == HELD_OUT - 1
    if not held.any():
        remarks.append(f"{len(places)} frames are too few to hold some out: all both make and calibrate it.")
        return frames, frames
    return frames.part(places[~held]), frames.part(places[held])


def _roots(frames: Frames, remarks: list[str]) -> dict[int, Float64[np.ndarray, "width width"]]:
    """Of each element the root of its inverse matrix."""
    rows, elements = np.concatenate(frames.features), np.concatenate(frames.numbers)
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


def _factor(sums: Float64[np.ndarray, " frames"], frames: Frames, remarks: list[str]) -> float | None:
    """α, eV, such that as many errors are within 1.96 σ as of a Gaussian; None where too few frames have an energy.

    A quantile, unlike a mean of squares, is not moved by a few frames that are far from all others. That of the 95 %,
    since the tails are heavier than a Gaussian's: a factor of the middle of the errors leaves more of them out on
    molecules never trained on (`python -m painn_deploy.scripts.studies.uncertainty`).
    """
    labelled = np.flatnonzero(~np.isnan(frames.labels))
    if len(labelled) < ENOUGH:
        remarks.append(
            f"{len(labelled)} of the frames that calibrate ({frames.name}) have an energy, and {ENOUGH} are needed: "
            "there is no uncertainty in eV, only how many times as uncertain as these a structure is."
        )
        return None
    sums, frames = sums[labelled], frames.part(labelled)
    errors, numbers, name = frames.predicted - frames.labels, frames.numbers, frames.name
    errors, words = on_one_scale(errors, numbers)
    if words:
        remarks.append(
            f"Energies of {name} are on another scale than the student's, by {words} eV an atom; what is left without "
            "this calibrates."
        )
    atoms = np.array([len(own) for own in numbers])
    if float(np.quantile(np.abs(errors) / atoms, COVERED)) < ITS_OWN:
        remarks.append(
            f"Energies of {name} are the student's own, within {1e3 * ITS_OWN:g} meV an atom, and say nothing of its "
            "errors: there is no uncertainty in eV."
        )
        return None
    return float(np.quantile(np.abs(errors) / sums, COVERED)) / DEVIATIONS


def on_one_scale(
    errors: Float64[np.ndarray, " frames"], numbers: Sequence[Integer[np.ndarray, " _"]]
) -> tuple[Float64[np.ndarray, " frames"], str]:
    """Errors of energies without a shift of each element, where that is what they are: other atomic references.

    Args:
        errors: predicted less labelled, eV.
        numbers: atomic numbers of each frame.

    Returns:
        What is left, eV; and the shifts in words, empty where the errors are as they came.
    """
    elements = np.unique(np.concatenate(numbers))
    counts = np.array([[np.count_nonzero(own == z) for z in elements] for own in numbers], np.float64)
    atoms = counts.sum(1)
    shift = np.linalg.lstsq(counts / atoms[:, None], errors / atoms, rcond=None)[0]
    left = errors - counts @ shift
    before, after = (float(np.sqrt(np.mean((error / atoms) ** 2))) for error in (errors, left))
    enough = len(errors) >= FRAMES_A_SHIFT * len(elements)  # of fewer frames any errors are such shifts
    if not (enough and before > SHIFTED and after < LEFT * before):
        return errors, ""
    return left, ", ".join(f"{chemical_symbols[z]} {-value:+.3f}" for z, value in zip(elements, shift, strict=True))
