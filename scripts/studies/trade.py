"""Error against speed: every student in every precision on one plot, so that you can choose with open eyes.

    python scripts/studies/trade.py student:small student:base --precision fp32 --precision fp16 --data data

Errors are those of the engine against the teacher's labels, on molecules that were never trained on. Speed is that of
energy and forces through the ASE calculator, all of one run in turns, so that ratios mean something on a busy machine.
"""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from ase.build import molecule
from rich.progress import Progress

from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.calibration.timing import milliseconds
from painn_deploy.export.checkpoint import load_student, resolve_checkpoint
from painn_deploy.export.errors import PrecisionError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.benchmarks.conditions import STUDENT
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.export import export_engines
from painn_deploy.scripts.commands.outputs import markdown
from painn_deploy.scripts.studies.model_card import errors_by_kind

TIMED = "C6H6"
COLUMNS = {
    "name": "student",
    "precision": "precision",
    "interactions": "interactions",
    "parameters": "parameters",
    "force": "force MAE (meV/Å)",
    "energy": "energy MAE (meV/atom)",
    "milliseconds": "ms a benzene",
}


def trade(
    checkpoints: Annotated[list[str] | None, typer.Argument(help="Checkpoints, or students that ship.")] = None,
    *,
    data: Annotated[Path, typer.Option(help="Folder that make_dataset.py wrote.")],
    output: Annotated[Path, typer.Option(help="PNG; a table of the same name ends in .md, the numbers in .json.")],
    precision: Annotated[list[str], typer.Option(help="As for `painn-deploy export`.")] = ["fp32"],  # noqa: B006
    engine: Annotated[str, typer.Option(help="As for `painn-deploy export`.")] = "onnxruntime",
) -> None:
    """Measure students in each precision, and draw error against speed."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress, ExitStack() as stack:
        task = progress.add_task("", total=None)
        calculators: dict[str, PaiNNCalculator] = {}
        for checkpoint in checkpoints or [STUDENT]:
            student = load_student(checkpoint)
            for bits in precision:
                progress.update(task, description=f"exporting {checkpoint} in {bits}")
                try:
                    (bundle,) = export_engines(checkpoint, folder, engines=[engine], precisions=[bits])
                except PrecisionError as error:
                    progress.print(f"{checkpoint} is left out in {bits}: {error}", soft_wrap=True)
                    continue
                name = f"{resolve_checkpoint(checkpoint).name.removeprefix('student-')} {bits}"
                calculators[name] = stack.enter_context(PaiNNCalculator(bundle))
                progress.update(task, description=f"measuring {name}")
                *_, (_, _, energy, force, _) = errors_by_kind(calculators[name], data / "test.npz")
                rows.append(
                    {
                        "name": name,
                        "precision": bits,
                        "interactions": student.configuration.num_interactions,
                        "parameters": student.num_parameters,
                        "force": force,
                        "energy": energy,
                    }
                )
        progress.update(task, description="timing")
        times = milliseconds(dict(calculators), [molecule(TIMED)])
    for row in rows:
        row["milliseconds"] = times[row["name"]]
    draw(rows, output)
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    table = markdown(list(COLUMNS.values()), [[row[key] for key in COLUMNS] for row in rows])
    output.with_suffix(".md").write_text(f"{table}\n", encoding="utf-8")
    print(f"wrote {output} and the same in .md and .json")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against time; a colour for each precision, a shape for each number of interactions.

    Args:
        rows: of students, with the keys of `COLUMNS`.
        path: of the picture.
    """
    colours = {bits: f"C{i}" for i, bits in enumerate(dict.fromkeys(row["precision"] for row in rows))}
    shapes = {count: "ovs^D"[i % 5] for i, count in enumerate(sorted({row["interactions"] for row in rows}))}
    points: dict[str, list[tuple[float, float]]] = {}
    with drawn(path, (6.0, 4.2)) as axes:
        for row in rows:
            at, shape = (row["milliseconds"], row["force"]), shapes[row["interactions"]]
            axes.plot(*at, shape, color=colours[row["precision"]], ms=8)
            points.setdefault(row["name"].rsplit(" ", 1)[0], []).append(at)
        for student, found in points.items():
            axes.annotate(student, max(found), xytext=(9, -4), textcoords="offset points")
        for bits, colour in colours.items():
            axes.plot([], [], "o", color=colour, label=bits)
        for count, shape in shapes.items():
            axes.plot([], [], shape, color="0.4", label=f"{count} interactions")
        axes.set(
            xlabel=f"energy and forces of {TIMED} through ASE (ms)",
            ylabel="force MAE, molecules never trained on (meV/Å)",
            xlim=(0, 1.25 * max(row["milliseconds"] for row in rows)),
            ylim=(0, 1.15 * max(row["force"] for row in rows)),
        )
        axes.legend()


if __name__ == "__main__":
    run_command(trade)
