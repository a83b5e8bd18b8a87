"""The figures of a student's model card: made from its weights by this one command, and by nothing else.

    python scripts/model_card.py student:base --data data --output card.md --picture card.png --results card.json

The engine that ships (ONNX Runtime, FP32) is measured, not the training code: against the teacher on molecules that
were never trained on, at minima, along a torsion, between two waters, in dynamics. It takes an hour, most of it the
dynamics; `--results` keeps what is done, and the same command goes on from there.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from rich.progress import Progress

from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import DatasetError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.benchmarks.conditions import STUDENT, Checkpoint
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.commands.outputs import write_between_marks
from painn_deploy.scripts.distillation.labels import load_teacher
from painn_deploy.scripts.studies.card_studies import butane, conservation, frequencies, relaxed, water_box, water_dimer
from painn_deploy.scripts.studies.card_text import picture, sections

FREQUENCIES = ("H2O", "CH4", "C6H6")
CHUNK = 2_000


def errors_by_kind(calculator: PaiNNCalculator, path: Path) -> list[tuple[str, int, float, float, float]]:
    """Kind, structures, energy MAE (meV/atom), force MAE and RMSE (meV/Å) on a split, and the same over all of it.

    Energies are compared as they are: atomic references are the student's own.

    Args:
        calculator: of the engine.
        path: of the split.
    """
    data = arrays(path)
    rows = [slice(a, b) for a, b in zip(data["offsets"][:-1], data["offsets"][1:], strict=True)]
    energy, forces = [], []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        results = calculator.calculate_batch([Atoms(data["numbers"][r], data["positions"][r]) for r in part])
        for row, label, result in zip(part, data["energies"][start:], results, strict=False):
            energy.append(abs(result["energy"] - label) / (row.stop - row.start))
            forces.append(result["forces"] - data["forces"][row])
    table = []
    for kind in [*sorted(set(data["kinds"])), "all"]:
        chosen = [i for i, k in enumerate(data["kinds"]) if kind in (k, "all")]
        difference = np.concatenate([forces[i] for i in chosen])
        table.append(
            (
                str(kind),
                len(chosen),
                1e3 * float(np.mean([energy[i] for i in chosen])),
                1e3 * float(np.abs(difference).mean()),
                1e3 * float(np.sqrt(np.square(difference).mean())),
            )
        )
    return table


def arrays(path: Path) -> dict[str, np.ndarray]:
    """A split that make_dataset.py wrote."""
    try:
        with np.load(path) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise DatasetError(f"Cannot read {path}: {error}. Make it with scripts/make_dataset.py.") from error


def vibrations(student: Calculator, teacher: Calculator) -> list[tuple[str, float, float, float, float]]:
    """Molecule, its shortest bond (Å) with student and teacher, mean and largest frequency error (1/cm).

    Args:
        student: a calculator.
        teacher: another, whose minima and frequencies are the reference.
    """
    table = []
    for name in FREQUENCIES:
        ours, theirs = relaxed(molecule(name), student), relaxed(molecule(name), teacher)
        bonds = [float(np.min(a.get_all_distances() + 9 * np.eye(len(a)))) for a in (ours, theirs)]
        error = np.abs(frequencies(ours) - frequencies(theirs))
        table.append((name, bonds[0], bonds[1], float(error.mean()), float(error.max())))
    return table


def molecules_of(path: Path, count: int) -> dict[str, Atoms]:
    """A conformer of each of `count` molecules of a split, spread evenly over it.

    Args:
        path: of the split.
        count: how many.
    """
    data = arrays(path)
    names = data["names"][data["kinds"] == "conformer"]
    first = {str(name): int(np.flatnonzero(data["names"] == name)[0]) for name in dict.fromkeys(names)}
    return {name: _structure(data, first[name]) for name in list(first)[:: max(1, len(first) // count)][:count]}


def _structure(data: Mapping[str, Any], index: int) -> Atoms:
    rows = slice(int(data["offsets"][index]), int(data["offsets"][index + 1]))
    return Atoms(data["numbers"][rows].astype(int), data["positions"][rows])


class Kept:
    """Results of studies by name, on disk as they come, and made only once for the same weights and settings.

    Args:
        path: of the JSON; None keeps them in memory alone.
        claim: weights and settings.

    Raises:
        DatasetError: the file holds results of others.
    """

    def __init__(self, path: Path | None, claim: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"claim": dict(claim)}
        if path is not None and path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before.get("claim") != self.content["claim"]:
                raise DatasetError(f"{path} holds results of other weights or settings: remove it, or name another.")
            self.content = before

    def get(self, name: str, study: Callable[[], Any]) -> Any:
        """The result of that name; `study` makes it where there is none."""
        if name not in self.content:
            self.put(name, study())
        return self.content[name]

    def put(self, name: str, result: Any) -> None:
        """Keep a result under a name."""
        self.content[name] = result
        if self.path is not None:
            self.path.write_text(json.dumps(self.content) + "\n", encoding="utf-8")


def card(
    checkpoint: Checkpoint = STUDENT,
    *,
    data: Annotated[Path, typer.Option(help="Folder that make_dataset.py wrote.")],
    output: Annotated[Path, typer.Option(help="Markdown file; what stands between its two marks is replaced.")],
    picture_path: Annotated[Path | None, typer.Option("--picture", help="PNG to draw.")] = None,
    results: Annotated[Path | None, typer.Option(help="JSON to keep results in.")] = None,
    molecules: Annotated[int, typer.Option(help="Test molecules for NVE.")] = 10,
    picoseconds: Annotated[float, typer.Option(help="Of each NVE run.")] = 100.0,
    box_picoseconds: Annotated[float, typer.Option(help="Of the box of water; 0 leaves it out.")] = 10.0,
    workers: Annotated[int, typer.Option(help="Processes for NVE.")] = os.cpu_count() or 1,
    teacher: str = "tblite:GFN2-xTB",
) -> None:
    """Measure a student and write the tables into its model card."""
    labels, student = load_teacher(teacher)(), load_student(checkpoint)
    sha256 = resolve_checkpoint(checkpoint).sha256
    plan = {"molecules": molecules, "picoseconds": picoseconds, "box": box_picoseconds, "teacher": teacher}
    kept = Kept(results, {"weights": sha256, "epsilon": student.configuration.epsilon, **plan})
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        task = progress.add_task("exporting", total=None)

        def tell(line: str) -> None:
            progress.update(task, description=line)

        (bundle,) = export_engines(checkpoint, folder, tell=tell)
        with PaiNNCalculator(bundle) as calculator:
            tell("measuring the test split")
            kept.get("kinds", lambda: errors_by_kind(calculator, data / "test.npz"))
            tell("vibrations")
            kept.get("vibrations", lambda: vibrations(calculator, labels))
            tell("butane and the water dimer")
            kept.get("butane", lambda: [butane(calculator), butane(labels)])
            kept.get("dimer", lambda: water_dimer(calculator, labels))
            chosen = molecules_of(data / "test.npz", molecules)
            missing = {name: atoms for name, atoms in chosen.items() if f"nve {name}" not in kept.content}
            tell(f"NVE of {len(missing)} molecules")
            for run in conservation(bundle, missing, picoseconds, workers):
                kept.put(f"nve {run['name']}", run)
                tell(f"NVE of {run['name']} is done")
            kept.content["nve"] = [kept.content[f"nve {name}"] for name in chosen]
            if box_picoseconds:
                tell("a box of water")
                kept.get("box", lambda: water_box(calculator, box_picoseconds))
    heading = f"{student.num_parameters:,} parameters; weights with SHA-256 `{sha256}`."
    write_between_marks(output, "\n\n".join([heading, *sections(kept.content)]))
    print(f"wrote {output}")
    if picture_path is not None:
        picture(kept.content, picture_path)
        print(f"wrote {picture_path}")


if __name__ == "__main__":
    run_command(card)
