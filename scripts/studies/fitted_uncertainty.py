"""The uncertainty that a student brings: made of all that it was trained on, and of molecules that it never saw.

    python -m painn_deploy.scripts.studies.fitted_uncertainty student:base --data data \
        --output base.uncertainty.json --card base.md

The training split makes the matrices, the validation split calibrates, and the test split judges. What is written is
found by `painn-deploy export` where it lies beside the weights as NAME.uncertainty.json.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Float64
from rich.progress import Progress

from painn_deploy.calibration.report.certainty import draw_certainty
from painn_deploy.calibration.uncertainty.brought import write_beside
from painn_deploy.calibration.uncertainty.calibrated import Calibrated
from painn_deploy.calibration.uncertainty.fitting import Frames, fit_last_layer
from painn_deploy.calibration.uncertainty.merit import rank_correlation, separation
from painn_deploy.calibration.uncertainty.training import evaluated
from painn_deploy.export.checkpoint import load_checkpoint
from painn_deploy.export.errors import DatasetError
from painn_deploy.export.model.student import Student
from painn_deploy.export.progress import prefixed
from painn_deploy.runtime.uncertainty.rigidity import LastLayer
from painn_deploy.runtime.uncertainty.scale import QUANTILE
from painn_deploy.scripts.benchmarks.conditions import STUDENT
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown, write_between_marks
from painn_deploy.scripts.studies.card_text import DESCRIPTIONS
from painn_deploy.scripts.studies.model_card import arrays
from painn_deploy.scripts.studies.uncertainty import DISTORTION, WRONG, Evaluated, measured, structures_of

__all__ = ["fit_uncertainty"]

MARKS = ("<!-- uncertainty -->", "<!-- /uncertainty -->")
"""Of a model card: what stands between them this command has written."""

COLUMNS = (
    "structures",
    "how many",
    "uncertainty (meV/atom)",
    "energy MAE (meV/atom)",
    "force MAE (meV/Å)",
    "within 1 σ",
    "within 1.96 σ",
    "unfamiliar",
)


def fit_uncertainty(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or a student that ships.")] = STUDENT,
    *,
    data: Annotated[Path, typer.Option(help="Folder that make_dataset.py wrote.")],
    output: Annotated[Path, typer.Option(help="NAME.uncertainty.json; beside NAME.safetensors it is found.")],
    card: Annotated[Path | None, typer.Option(help="Markdown to write the figures into, between its marks.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
) -> None:
    """Fit the uncertainty of a student's last layer on what it was trained on, and judge it on what it never saw."""
    student, made = load_checkpoint(checkpoint, dtype=torch.float64)
    splits = {name: arrays(data / f"{name}.npz") for name in ("train", "validation", "test")}
    if not (splits["test"]["kinds"] == "conformer").any():
        raise DatasetError(f"{data / 'test.npz'} has no conformers to distort.")
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(line: str) -> None:
            progress.update(task, description=line)

        def frames(name: str) -> Frames:
            count = len(splits[name]["energies"])
            structures = structures_of(splits[name], range(count))
            told = prefixed(tell, f"the {name} split: ")
            return evaluated(student, structures, f"the {name} split of its data", told)

        last_layer = fit_last_layer(frames("train"), frames("validation"))
        write_beside(made, last_layer, output)
        tell("the test split")
        text, calibrated = _figures(student, last_layer, splits["test"])
    print(f"wrote {output}")
    print(text)
    if card is not None:
        write_between_marks(card, text, MARKS)
        print(f"wrote {card}")
    if picture is not None:
        draw_certainty(calibrated, picture)
        print(f"wrote {picture}")


def _figures(student: Student, last_layer: LastLayer, test: dict[str, np.ndarray]) -> tuple[str, Calibrated]:
    """The text of a model card, and what its picture shows.

    Raises:
        DatasetError: the frames that calibrated had no energies, so that there is no α.
    """
    factor, scale = last_layer.factor, last_layer.scale
    if factor is None:
        raise DatasetError(f"There is no α to judge: {' '.join(scale.remarks)}")
    conformers = np.flatnonzero(test["kinds"] == "conformer")
    still = measured(student, test, list(range(len(test["energies"]))))
    moved = measured(student, test, conformers.tolist(), DISTORTION)
    clean, distorted = _means(last_layer, still), _means(last_layer, moved)
    calibrated = Calibrated(
        names=[""] * len(clean),
        groups=[DESCRIPTIONS.get(str(kind), str(kind)) for kind in still.kinds],
        indices=np.arange(len(clean)),
        sizes=still.sizes,
        uncertainties=factor * clean * still.sizes,
        errors=still.predicted - still.labelled,
        forces=still.force_errors,
        ratios=clean / scale.typical,
        threshold=scale.threshold,
    )
    wrong, limit = still.force_errors > WRONG, scale.threshold * scale.typical
    both = np.concatenate([clean[conformers], distorted])
    above = f"force MAE above {1e3 * WRONG:g} meV/Å"
    figures = [
        ("rank correlation with the force MAE of a structure", rank_correlation(clean, still.force_errors)),
        (f"area under the curve: {above}", separation(clean, wrong)),
        (
            f"area under the curve: distorted by {DISTORTION:g} Å or not",
            separation(both, np.arange(len(both)) >= len(conformers)),
        ),
        ("root of the mean square of error over uncertainty, before scaling (eV)", _root(factor * calibrated.z)),
        ("the same after scaling; of a Gaussian 1", _root(calibrated.z)),
        (f"unfamiliar among those with a {above}", float((clean[wrong] > limit).mean()) if wrong.any() else np.nan),
        ("unfamiliar among the distorted", float((distorted > limit).mean())),
    ]
    said = (
        f"The training split ({scale.frames[0]:,} structures) makes the matrices, the validation split "
        f"({scale.frames[1]:,}) calibrates: α = {1e3 * factor:.3g} meV, and {100 * QUANTILE:g} % of the validation "
        f"split are up to {scale.threshold:.3g} times its median. The test split judges: {len(clean):,} structures of "
        "molecules that neither of them holds. Force MAEs are means over structures, and not over atoms."
    )
    rows = [
        (
            row.name,
            row.structures,
            *(1e3 * value for value in (row.uncertainty, row.energy, row.forces)),
            *(row.within_one, row.within_two, row.unfamiliar),
        )
        for row in calibrated.table
    ]
    return "\n\n".join([said, markdown(("figure", "value"), figures), markdown(COLUMNS, rows)]), calibrated


def _means(last_layer: LastLayer, of: Evaluated) -> Float64[np.ndarray, " structures"]:
    """The mean of |W f| over the atoms of each structure."""
    means: np.ndarray = of.sums(last_layer.rigidities(of.numbers, of.features)) / of.sizes
    return means


def _root(values: Float64[np.ndarray, " values"]) -> float:
    return float(np.sqrt(np.square(values).mean()))


if __name__ == "__main__":
    run_command(fit_uncertainty)
