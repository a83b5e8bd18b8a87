"""Which uncertainty from the last layer finds wrong forces best, on molecules that were never trained on.

    python scripts/studies/uncertainty.py student:base --data data --output uncertainty.json

Every variant is made from training frames and scaled on each fifth of them. The score of a structure is its
`energy_uncertainty` over its number of atoms.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from jaxtyping import Bool, Float64, Int64

from painn_deploy.calibration.accuracy.reference import one_thread, reference_results
from painn_deploy.calibration.uncertainty.fitting import HELD_OUT, REGULARISATION, Frames, fit_last_layer
from painn_deploy.calibration.uncertainty.merit import (
    COVERED,
    DEVIATIONS,
    ONE_SIGMA,
    coverage,
    rank_correlation,
    separation,
)
from painn_deploy.calibration.uncertainty.training import evaluated
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.model.student import Student
from painn_deploy.scripts.benchmarks.conditions import STUDENT
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown
from painn_deploy.scripts.studies.model_card import arrays

__all__ = ["VARIANTS", "Evaluated", "measured", "scores", "some", "structures_of", "study", "uncertainty"]

WRONG = 0.150
"""eV/Å, force MAE of a structure above which it should be found."""

DISTORTION = 0.18
"""Å, width of the normal distribution that each coordinate of a clean conformer is moved by."""

SCALES: dict[str, Callable[[np.ndarray], Any]] = {
    "root mean square": lambda ratios: np.sqrt(np.square(ratios).mean()),
    "quantile 0.683": lambda ratios: np.quantile(ratios, ONE_SIGMA),
    "quantile 0.95": lambda ratios: np.quantile(ratios, COVERED) / DEVIATIONS,
}
"""Ways to get alpha from the held-out frames' errors over their uncertainties without it."""

COLUMNS = ("variant", "rank correlation", "AUC wrong forces", "AUC distorted", "z before", "z", "68 %", "95 %")

Uncertainties = Float64[np.ndarray, " structures"]


@dataclass(frozen=True)
class Evaluated:
    """What a student says of some structures, and how wrong that is.

    Attributes:
        features: of all atoms, structure after structure.
        numbers: their atomic numbers.
        sizes: atoms of each structure.
        predicted: energies, eV.
        labelled: energies, eV.
        force_errors: mean absolute error of each structure's forces, eV/Å.
        kinds: of each structure, as `make_dataset.py` names them.
    """

    features: Float64[np.ndarray, "atoms width"]
    numbers: Int64[np.ndarray, " atoms"]
    sizes: Int64[np.ndarray, " structures"]
    predicted: Float64[np.ndarray, " structures"]
    labelled: Float64[np.ndarray, " structures"]
    force_errors: Float64[np.ndarray, " structures"]
    kinds: np.ndarray

    def sums(self, values: Float64[np.ndarray, "atoms ..."]) -> Float64[np.ndarray, "structures ..."]:
        """Over the atoms of each structure."""
        sums: np.ndarray = np.add.reduceat(values, np.cumsum(self.sizes) - self.sizes)
        return sums

    def frames(self, name: str) -> Frames:
        """Each structure by itself."""
        ends = np.cumsum(self.sizes)[:-1]
        numbers, features = np.split(self.numbers, ends), np.split(self.features, ends)
        return Frames(name, numbers, features, self.predicted, self.labelled)

    def centred(self, base: "Evaluated") -> "Evaluated":
        """The same with the mean features of each element in other structures subtracted."""
        moved = self.features.copy()
        for number in np.unique(base.numbers):
            moved[self.numbers == number] -= base.features[base.numbers == number].mean(0)
        return Evaluated(**{**vars(self), "features": moved})

    def part(self, chosen: Bool[np.ndarray, " structures"]) -> "Evaluated":
        """Some of the structures."""
        atoms = np.repeat(chosen, self.sizes)
        rows = {key: value[atoms if key in ("features", "numbers") else chosen] for key, value in vars(self).items()}
        return Evaluated(**rows)


def measured(student: Student, data: dict[str, np.ndarray], indices: list[int], distortion: float = 0) -> Evaluated:
    """A student's features and errors; of structures that are distorted, errors mean nothing.

    Args:
        student: in float64.
        data: arrays of a split, as `make_dataset.py` writes them.
        indices: of the structures.
        distortion: Å, width of the noise on each coordinate.
    """
    rng, structures = np.random.default_rng(0), structures_of(data, indices)
    for atoms in structures:
        atoms.positions += rng.normal(0, distortion, atoms.positions.shape)
    frames, wanted = evaluated(student, structures, ""), [atoms.calc.results["forces"] for atoms in structures]
    with one_thread():
        results = [{"forces": each} for each in wanted] if distortion else reference_results(student, structures)
    pairs = zip(results, wanted, strict=True)
    return Evaluated(
        np.concatenate(frames.features),
        np.concatenate(frames.numbers).astype(np.int64),
        np.array([len(atoms) for atoms in structures]),
        frames.predicted,
        frames.labels,
        np.array([float(np.abs(result["forces"] - forces).mean()) for result, forces in pairs]),
        data["kinds"][indices],
    )


def structures_of(data: dict[str, np.ndarray], indices: Sequence[int]) -> list[Atoms]:
    """Structures of a split with their labels.

    Args:
        data: arrays of the split.
        indices: of the structures.
    """
    found = []
    for index in indices:
        rows = slice(*data["offsets"][index : index + 2].tolist())
        found.append(Atoms(data["numbers"][rows].astype(int), data["positions"][rows]))
        energy, forces = float(data["energies"][index]), data["forces"][rows].astype(np.float64)
        found[-1].calc = SinglePointCalculator(found[-1], energy=energy, forces=forces)
    return found


def _lengths(rows: Float64[np.ndarray, "rows width"], seen: Float64[np.ndarray, "seen width"]) -> np.ndarray:
    """Of rows in the metric of the mean square of others, regularised as what ships."""
    square = seen.T @ seen / len(seen)
    lower = np.linalg.cholesky(square + REGULARISATION * np.trace(square) / len(square) * np.eye(len(square)))
    lengths: np.ndarray = np.linalg.norm(np.linalg.solve(lower, rows.T), axis=0)
    return lengths


def _by_atom(base: Evaluated, of: Evaluated) -> np.ndarray:
    """|W f| of each atom with a matrix for each element; infinite for an element that is not in the base."""
    atoms = np.full(len(of.numbers), np.inf)
    for number in np.unique(base.numbers):
        rows = of.numbers == number
        atoms[rows] = _lengths(of.features[rows], base.features[base.numbers == number])
    return atoms


def _spread(of: Evaluated, atoms: np.ndarray) -> np.ndarray:
    """Root of the summed variances, so that it grows with the size."""
    roots: np.ndarray = np.sqrt(of.sizes * of.sums(atoms**2))
    return roots


def _by_element(of: Evaluated, elements: np.ndarray) -> np.ndarray:
    """Features of each element in columns of their own, summed."""
    return np.concatenate([of.sums(of.features * (of.numbers == z)[:, None]) for z in elements], axis=1)


def _with_count(of: Evaluated) -> np.ndarray:
    return np.concatenate([of.sums(of.features), of.sizes[:, None].astype(float)], axis=1)


Variant = Callable[[Evaluated, Evaluated], np.ndarray]
VARIANTS: dict[str, Variant] = {
    "structures' sums": lambda base, of: _lengths(of.sums(of.features), base.sums(base.features)),
    "structures' sums, and the atom count": lambda base, of: _lengths(_with_count(of), _with_count(base)),
    "structures' sums, centred": lambda base, of: VARIANTS["structures' sums"](base.centred(base), of.centred(base)),
    "structures' means": lambda base, of: (
        of.sizes
        * _lengths(
            of.sums(of.features) / of.sizes[:, None],
            base.sums(base.features) / base.sizes[:, None],
        )
    ),
    "structures' sums, columns of each element": lambda base, of: _lengths(
        _by_element(of, np.unique(base.numbers)), _by_element(base, np.unique(base.numbers))
    ),
    "atoms' matrix, length of the sum": lambda base, of: _lengths(of.sums(of.features), base.features),
    "atoms' matrix, summed variances": lambda base, of: _spread(of, _lengths(of.features, base.features)),
    "atoms' matrix, centred, summed variances": lambda base, of: VARIANTS["atoms' matrix, summed variances"](
        base.centred(base), of.centred(base)
    ),
    "a matrix an element, summed variances": lambda base, of: _spread(of, _by_atom(base, of)),
    "a matrix an element, largest atom": lambda base, of: (
        of.sizes * np.maximum.reduceat(_by_atom(base, of), np.cumsum(of.sizes) - of.sizes)
    ),
    "a matrix an element, centred, summed widths": lambda base, of: of.sums(
        _by_atom(base.centred(base), of.centred(base))
    ),
    "a matrix an element, summed widths": lambda base, of: of.sums(_by_atom(base, of)),
}
"""Uncertainties of structures without alpha, from the frames that make the matrix."""


def scores(
    of: Uncertainties, distorted: Uncertainties, alpha: float, test: Evaluated, moved: Evaluated
) -> dict[str, float]:
    """How good uncertainties are.

    Args:
        of: the test structures' uncertainties, without alpha.
        distorted: those of their distorted conformers.
        alpha: eV.
        test: the test structures.
        moved: the distorted conformers.
    """
    score, clean = of / test.sizes, test.kinds == "conformer"
    both = np.concatenate([score[clean], distorted / moved.sizes])
    bare = np.abs(test.predicted - test.labelled) / of
    z = bare / alpha
    return {
        "rank correlation": rank_correlation(score, test.force_errors),
        "AUC wrong forces": separation(score, test.force_errors > WRONG),
        "AUC distorted": separation(both, np.arange(len(both)) >= clean.sum()),
        "z before": float(np.sqrt(np.square(bare).mean())),
        "z": float(np.sqrt(np.square(z).mean())),
        **dict(zip(("68 %", "95 %"), coverage(z), strict=True)),
    }


def some(data: dict[str, np.ndarray], most: int) -> list[int]:
    """Indices of structures, evenly over the molecules.

    Args:
        data: arrays of a split.
        most: how many at most.
    """
    count = len(data["energies"])
    return [int(index) for index in np.linspace(0, count - 1, min(most, count)).round()]


def study(student: Student, data: Path, most: int) -> dict[str, Any]:
    """Every variant's figures, and those of what ships.

    Args:
        student: to look at.
        data: folder that make_dataset.py wrote.
        most: structures of a split.

    Raises:
        DatasetError: the test split has no conformers.
    """
    splits = {name: arrays(data / f"{name}.npz") for name in ("train", "test")}
    train, test = (measured(student, split, some(split, most)) for split in splits.values())
    conformers = [i for i in some(splits["test"], most) if splits["test"]["kinds"][i] == "conformer"]
    if not conformers:
        raise DatasetError(f"{data / 'test.npz'} has no conformers to distort.")
    moved = measured(student, splits["test"], conformers, DISTORTION)
    held_out = np.arange(len(train.sizes)) % HELD_OUT == HELD_OUT - 1
    base, rest = train.part(~held_out), train.part(held_out)
    error = np.abs(rest.predicted - rest.labelled)
    rows = {
        name: scores(
            variant(base, test),
            variant(base, moved),
            float(SCALES["quantile 0.95"](error / variant(base, rest))),
            test,
            moved,
        )
        for name, variant in VARIANTS.items()
    }
    fitted = fit_last_layer(train.frames(str(data / "train.npz")))
    totals = [of.sums(fitted.rigidities(of.numbers, of.features)) for of in (test, moved)]
    ratios = error / rest.sums(fitted.rigidities(rest.numbers, rest.features))
    scales = {name: float(scale(ratios)) for name, scale in SCALES.items()}
    scaled = {name: scores(totals[0], totals[1], alpha, test, moved) for name, alpha in scales.items()}
    if fitted.factor is not None:
        rows["what ships"] = scores(totals[0], totals[1], fitted.factor, test, moved)
    above = [
        total / of.sizes / fitted.scale.typical > fitted.scale.threshold
        for total, of in zip(totals, (test, moved), strict=True)
    ]
    wrong = test.force_errors > WRONG
    return {
        "structures": {"train": len(train.sizes), "test": len(test.sizes), "distorted": len(moved.sizes)},
        "wrong": int(wrong.sum()),
        "alpha": fitted.factor,
        "alphas": scales,
        "threshold": fitted.scale.threshold,
        "remarks": list(fitted.scale.remarks),
        "above the threshold": {
            "test": float(above[0].mean()),
            "wrong forces": float(above[0][wrong].mean()) if wrong.any() else None,
            "distorted": float(above[1].mean()),
        },
        "variants": rows,
        "scales": scaled,
    }


def uncertainty(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a student that ships.")] = STUDENT,
    *,
    data: Annotated[Path, typer.Option(help="Folder that make_dataset.py wrote.")],
    output: Annotated[Path, typer.Option(help="JSON file.")],
    most: Annotated[int, typer.Option(help="Structures of a split, evenly over its molecules.")] = 5000,
) -> None:
    """Compare uncertainties from a student's last layer on molecules that it was never trained on."""
    found = {"checkpoint": checkpoint, **study(load_student(checkpoint, dtype=torch.float64), data, most)}
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(COLUMNS, [[name, *row.values()] for name, row in found["variants"].items()]))
    print("What ships, with alpha by")
    print(markdown(COLUMNS, [[name, *row.values()] for name, row in found["scales"].items()]))
    print(f"above the threshold of {found['threshold']:.3g}: {found['above the threshold']}")
    print(f"wrote {output}")


if __name__ == "__main__":
    run_command(uncertainty)
