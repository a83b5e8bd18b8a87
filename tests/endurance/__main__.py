"""Measure what must hold for long, and write the figures into docs/reliability.md.

    python -m tests.endurance --output reliability
    python -m tests.endurance --output reliability --resume --stages rows,bundles
    python -m tests.endurance --output reliability --page --document docs/reliability.md    # measures nothing
    python -m tests.endurance --output rehearsal --scale 0.01

Each stage has a folder `stages/NAME` in the output, with what it has found from the moment it is known: a run that was
cut off goes on with `--resume`, to the sample, to the kill, to the bundle. Stages that are done are kept; one that
failed is measured anew. Exit status: 0, 1 where a stage failed, 2 where the run was refused.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from painn_deploy.export.errors import OutputError, PaiNNDeployError
from painn_deploy.export.files import prepare_output
from painn_deploy.export.manifest import SUFFIX

from .identity import identity
from .page import figures_text, write_page
from .plan import Options, Stage, plan
from .record import DONE, FAILED, UNDER_WAY, StageRecord, same_subject

REFUSED = 2

LOOK = 0.5
"""s between two looks at the workers."""

PATIENCE, GRACE = 6.0, 600.0
"""Times the estimate, and s, past which a stage is cut off and has failed; other work may share the machine."""


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures.")] = Path("reliability"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")] = False,
    stages: Annotated[str, typer.Option(help="Kinds or names, with commas between; all if not given.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Measure the named stages anew, though they are done.")
    ] = False,
    scale: Annotated[float, typer.Option(min=1e-6, help="Of all sizes; 1 is what is published.")] = 1.0,
    engine: Annotated[str, typer.Option(help="Engines, with commas between; all if not given.")] = "",
    student: Annotated[str, typer.Option(help="A checkpoint, or a student that ships.")] = "student:small",
    bundles: Annotated[Path | None, typer.Option(help="Folder with its bundles; exported if not given.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Stages at once; each has one thread.")] = 2,
    seed: Annotated[int, typer.Option(help="Of every generator.")] = 0,
    page: Annotated[bool, typer.Option("--page", help="Write the page again, and measure nothing.")] = False,
    document: Annotated[Path | None, typer.Option(help="Markdown; by default reliability.md in the output.")] = None,
) -> None:
    """Measure endurance, and write its page."""
    written = document or output / "reliability.md"
    try:
        chosen = plan(scale, _names(stages), _names(engine))
        if not page:
            options = Options(student, str((bundles or output / "bundles").resolve()), scale, seed)
            prepare_output(output)
            _refuse_other(output, resume)
            _export_missing(options, sorted({stage.engine for stage in chosen}))
            _run(options, chosen, output.resolve(), jobs, again=again)
        write_page(written, output)
    except PaiNNDeployError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(REFUSED) from error
    typer.echo(figures_text(output, brief=True))
    typer.echo(f"wrote {written}")
    states = [StageRecord(output / "stages" / stage.name).state["state"] for stage in chosen]
    raise typer.Exit(0 if all(state == DONE for state in states) else 1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _refuse_other(output: Path, resume: bool) -> None:
    """Raise OutputError where figures are there and nobody said to go on with them."""
    if not resume and any((output / "stages").glob("*/state.json")):
        raise OutputError(f"{output} holds figures. Go on with them with --resume, or give another --output.")


def find_bundle(options: Options, engine: str) -> Path | None:
    """The bundle of an engine.

    Args:
        options: that name the folder.
        engine: its backend.
    """
    return next(iter(sorted(Path(options.bundles).glob(f"*-{engine}-fp32{SUFFIX}"))), None)


def _export_missing(options: Options, engines: list[str]) -> None:
    """In a process of its own, so that no stage inherits what an export leaves in memory."""
    missing = [engine for engine in engines if find_bundle(options, engine) is None]
    if not missing:
        return
    typer.echo(f"exporting {options.student} for {', '.join(missing)}")
    code = "import sys; from painn_deploy.scripts import export_engines as e; e(*sys.argv[1:3], engines=sys.argv[3:])"
    done = subprocess.run([sys.executable, "-c", code, options.student, options.bundles, *missing], check=False)
    if done.returncode:
        raise OutputError(f"{options.student} could not be exported for {', '.join(missing)}; it says above why.")


def _run(options: Options, stages: list[Stage], output: Path, jobs: int, *, again: bool) -> None:
    """Run what is not done, so many at once; what a worker that died could not record is recorded here."""
    waiting = []
    for stage in stages:
        bundle = find_bundle(options, stage.engine)
        if bundle is None:
            raise OutputError(f"{options.bundles} holds no bundle of {stage.engine}.")
        of = identity(options, bundle)
        state = StageRecord(output / "stages" / stage.name).state
        if again or state["state"] != DONE or not same_subject(state["identity"], of):
            waiting.append((stage, bundle, of))
    running: list[tuple[Stage, dict[str, object], float, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                stage, bundle, of = waiting.pop(0)
                record = StageRecord(output / "stages" / stage.name)
                if again:
                    record.set(FAILED, of)  # begins anew
                given = {"options": options.as_dict(), "stage": vars(stage), "folder": str(output)}
                given |= {"bundle": str(bundle), "identity": of}
                command = [sys.executable, "-m", "tests.endurance.worker", json.dumps(given)]
                running.append((stage, of, time.monotonic(), subprocess.Popen(command)))
            time.sleep(LOOK)
            for one in list(running):
                stage, of, began, process = one
                late = time.monotonic() - began > PATIENCE * stage.seconds + GRACE
                if late:
                    process.kill()
                if late or process.poll() is not None:
                    running.remove(one)
                    process.wait()
                    _record_the_dead(output, stage, of, process.returncode, late=late)
    finally:
        for *_, process in running:
            process.kill()


def _record_the_dead(output: Path, stage: Stage, of: dict[str, object], status: int, *, late: bool) -> None:
    record = StageRecord(output / "stages" / stage.name)
    state = record.state
    if state["state"] in (DONE, FAILED):
        return
    why = "it took too long" if late else f"its process ended with status {status}"
    spent = state.get("spent", 0.0) if state["state"] == UNDER_WAY else 0.0
    record.set(FAILED, of, stage=vars(stage), seconds=spent, figures={}, failures=[why])


if __name__ == "__main__":
    typer.run(main)
