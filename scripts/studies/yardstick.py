"""A committee beside the last layer: which of the two finds wrong forces, on molecules that were never trained on.

    python -m painn_deploy.scripts.studies.yardstick a.safetensors b.safetensors c.safetensors --data data

The last layer is that of the first student, of its NAME.uncertainty.json or of the training split. Both are judged by
the errors of what they belong to: the last layer by the first student's, the committee by its mean's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from ase import Atoms
from jaxtyping import Float64

from painn_deploy.calibration.accuracy.reference import one_thread, reference_results
from painn_deploy.calibration.report.charts import COLOURS
from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.calibration.uncertainty.brought import brought_with
from painn_deploy.calibration.uncertainty.fitting import fit_last_layer
from painn_deploy.calibration.uncertainty.merit import rank_correlation, separation
from painn_deploy.calibration.uncertainty.training import evaluated
from painn_deploy.export.checkpoint import load_committee
from painn_deploy.export.model.student import Student
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown
from painn_deploy.scripts.studies.model_card import arrays
from painn_deploy.scripts.studies.uncertainty import DISTORTION, WRONG, some, structures_of

__all__ = ["yardstick"]

COLUMNS = (
    "score",
    "force MAE (meV/Å)",
    "rank correlation with it",
    f"AUC above {1e3 * WRONG:g} meV/Å",
    f"AUC distorted by {DISTORTION:g} Å",
)

Values = Float64[np.ndarray, " structures"]


def yardstick(
    checkpoints: Annotated[list[str], typer.Argument(help="Students of one architecture, of other seeds.")],
    data: Annotated[Path, typer.Option(help="Folder that make_dataset.py wrote.")],
    most: Annotated[int, typer.Option(help="Structures of a split, evenly over its molecules.")] = 5000,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
) -> None:
    """Compare the spread of a committee with the last layer of its first member."""
    committee, _, members = load_committee(checkpoints, dtype=torch.float64)
    first = committee.members[0]
    last_layer = brought_with(members[0], first.feature_width)
    if last_layer is None:
        splits = (
            evaluated(first, structures_of(split, some(split, most)), name)
            for name, split in ((name, arrays(data / f"{name}.npz")) for name in ("train", "validation"))
        )
        last_layer = fit_last_layer(*splits)
    test = arrays(data / "test.npz")
    chosen = some(test, most)
    structures, clean = structures_of(test, chosen), test["kinds"][chosen] == "conformer"
    moved = [structures[i].copy() for i in np.flatnonzero(clean)]
    rng = np.random.default_rng(0)
    for atoms in moved:
        atoms.positions += rng.normal(0, DISTORTION, atoms.positions.shape)
    labels = [atoms.calc.results["forces"] for atoms in structures]
    with one_thread():
        forces, far = (_forces(committee.members, each) for each in (structures, moved))
        frames = [evaluated(first, each, "") for each in (structures, moved)]
    rigid = [
        np.array([last_layer.rigidities(*pair).mean() for pair in zip(each.numbers, each.features, strict=True)])
        for each in frames
    ]
    alone = _errors([one[0] for one in forces], labels)
    mean = _errors([one.mean(0) for one in forces], labels)
    spread = _spread(forces)
    rows = [
        _row(f"last layer of {members[0].name}", alone, rigid[0], rigid[1], clean),
        _row(f"spread of forces of {len(members)}", mean, spread, _spread(far), clean),
        _row("the same, the atom that is furthest apart", mean, _spread(forces, np.max), _spread(far, np.max), clean),
    ]
    print(f"{len(structures)} structures of the test split")
    print(markdown(COLUMNS, rows))
    if picture is not None:
        panels = [("Last layer", rigid[0], last_layer.scale.typical, alone)]
        panels.append((f"Spread of {len(members)}", spread, float(np.median(spread)), mean))
        _draw(panels, picture)
        print(f"wrote {picture}")


def _forces(members: Sequence[Student], structures: list[Atoms]) -> list[Float64[np.ndarray, "members atoms 3"]]:
    """Of each structure every member's forces, eV/Å."""
    found = [[one["forces"] for one in reference_results(member, structures)] for member in members]
    return [np.array(each) for each in zip(*found, strict=True)]


def _errors(forces: list[np.ndarray], labels: list[np.ndarray]) -> Values:
    return np.array([float(np.abs(got - label).mean()) for got, label in zip(forces, labels, strict=True)])


def _spread(forces: list[np.ndarray], of_atoms: Callable[[np.ndarray], float] = np.mean) -> Values:
    """The mean over atoms, or another number, of the root of the variance summed over components."""
    return np.array([float(of_atoms(np.sqrt(each.var(0, ddof=1).sum(-1)))) for each in forces])


def _draw(panels: Sequence[tuple[str, Values, float, Values]], path: Path) -> None:
    """Force errors by uncertainty, in units of what is typical."""
    with drawn(path, (8.6, 3.6), columns=len(panels)) as axes:
        for (title, score, typical, errors), one in zip(panels, axes, strict=True):
            one.plot(score / typical, 1e3 * errors, ".", markersize=2.5, alpha=0.4, color=COLOURS[0], rasterized=True)
            one.axhline(1e3 * WRONG, color="black", linewidth=0.6, linestyle=":")
            one.set(title=title, xlabel="times the typical uncertainty", xscale="log", yscale="log")
            one.set(ylabel="force MAE of a structure (meV/Å)")


def _row(name: str, errors: Values, score: Values, moved: Values, clean: np.ndarray) -> tuple[str | float, ...]:
    both = np.concatenate([score[clean], moved])
    distorted = np.arange(len(both)) >= clean.sum()
    figures = (rank_correlation(score, errors), separation(score, errors > WRONG), separation(both, distorted))
    return (name, 1e3 * float(errors.mean()), *figures)


if __name__ == "__main__":
    run_command(yardstick)
