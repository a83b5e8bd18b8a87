"""Everything that needs a GPU, in stages that may be cut off at any moment: proof, errors and times of every engine.

    python scripts/gpu_check.py --output results --minutes 9
    python scripts/gpu_check.py --output results --resume
    python scripts/gpu_check.py --device cpu --quick --output rehearsal      # without a GPU

`results/figures.json` holds every figure from the moment it is known, `results/summary.json` which stage is done,
absent or failed, and why. The first stage gives what matters most: errors against float64, times on the device and of
whole calls, launched and replayed, beside PyTorch eager, and the peaks of the machine. Then come the proofs of each
engine, further sizes, what opening takes, torch.compile, other forms of the graph (`--form`), dynamics, the lower
precisions, TF32 as the last, and the benchmark. A stage that fails, hangs or takes the process with it costs itself
alone. Exit status: 0, or 1 where a stage failed, 2 where the job was refused, 3 where the time was up before the last
stage.
"""

import fcntl
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from painn_deploy.engines.cache import cache_folder
from painn_deploy.engines.gpu.driver import gpu_of
from painn_deploy.export.errors import OutputError, PaiNNDeployError
from painn_deploy.export.files import prepare_output
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.gpu.identity import check_device
from painn_deploy.scripts.gpu.plan import FORMS, LAUNCHED, REPLAYED, Options, plan
from painn_deploy.scripts.gpu.record import ABSENT, DONE, FAILED, SUMMARY, UNDER_WAY, WAITING, Record
from painn_deploy.scripts.gpu.worker import AGAIN, REFUSED

LOOK = 0.2
"""s between two looks at the worker."""

PATIENCE = 10.0
"""s that a worker has to end."""

COLOURS = {DONE: "green", ABSENT: "yellow", FAILED: "red", WAITING: "dim", UNDER_WAY: "dim"}


def gpu_check(
    student: Annotated[
        str, typer.Argument(help="A .safetensors or .pt file, or a student that ships.")
    ] = "student:base",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the figures; by default benchmarks/gpu/NAME.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu for a rehearsal.")] = "cuda",
    engine: Annotated[list[str] | None, typer.Option(help="Repeatable; all if not given.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="Repeatable; all if not given.")] = None,
    form: Annotated[
        list[str] | None, typer.Option(help="Of the graph, for inductor, such as sums+paired@1024,16. Repeatable.")
    ] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Beginnings of names of stages. Repeatable.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="After which the job stops, to be resumed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job that is in the folder.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Small cases and few calls, to see that all runs.")] = False,
    calls: Annotated[int, typer.Option(min=0, help="Of the proof that many leave nothing behind; 0: 10,000.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for bundles; by default in the cache.")] = None,
) -> None:
    """Prove and time every engine that can run on this machine's GPU."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    console = Console(soft_wrap=True, highlight=False)
    device = f"{device}:0" if device == "cuda" else device
    folder = output or Path("benchmarks/gpu") / (gpu_of(device) or "cpu").replace(" ", "-").replace("/", "-")
    asked: dict[str, Any] = {"student": student, "device": device, "quick": quick, "calls": calls}
    asked |= {"work": str(work or cache_folder() / "gpu-check"), "stages": tuple(stage or ())}
    asked |= {"engines": tuple(engine)} if engine else {}
    asked |= {"precisions": tuple(precision)} if precision else {"precisions": ("fp32", "fp16")} if quick else {}
    asked |= {"forms": tuple(form)} if form else {"forms": FORMS[1:2] if quick else FORMS}
    try:
        in_time = _run(Options(**asked), folder, deadline, resume=resume, console=console)
    except PaiNNDeployError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(REFUSED) from error
    record = Record.read(folder)
    _report(record, console)
    if any(of["state"] == FAILED for of in record.stages.values()):
        raise typer.Exit(1)
    if not in_time or record.pending():
        console.print(f"The time was up. Go on with: --resume --output {escape(str(folder))}")
        raise typer.Exit(3)


def _run(options: Options, folder: Path, deadline: float | None, *, resume: bool, console: Console) -> bool:
    """Check what is asked for and run it; whether that was in time."""
    options.check()
    plan(options)
    check_device(options.device)
    prepare_output(folder)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"Another job writes to {folder}. Wait for it, or give another folder.") from error
        return _supervised(options, folder, deadline, resume=resume, console=console)


def _supervised(options: Options, folder: Path, deadline: float | None, *, resume: bool, console: Console) -> bool:
    """Run workers until nothing is pending; whether that was in time."""
    retry = True
    while True:
        worker = _begin(options, folder, resume=resume, retry=retry)
        try:
            status = _watched(worker, folder, deadline)
        finally:
            _end(worker)
        if status == REFUSED:
            raise typer.Exit(2)
        if status is None:
            return False
        resume, retry = True, False  # what failed in this job is not tried again by it
        if status in (0, AGAIN):
            if status == 0:
                return True
            continue
        record = Record.read(folder)
        name = next((name for name, of in record.stages.items() if of["state"] == UNDER_WAY), None)
        if name is None:
            raise OutputError(f"The process that measures ended with {status} before it began a stage.")
        reason = f"it took longer than {record.stages[name]['budget']:.0f} s" if status == HUNG else _ended(status)
        record.set(name, FAILED, reason, seconds=round(time.time() - record.stages[name]["began"], 1))
        console.print(f"{name}: [red]failed[/]: {reason}")


HUNG = -1000
"""Status of a worker that was ended because a stage took too long."""


def _end(worker: "subprocess.Popen[bytes]") -> None:
    """End a worker; one that a driver holds is left to it, and costs the job no more time."""
    worker.kill()
    if worker.stdin is not None:
        worker.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        worker.wait(PATIENCE)


def _ended(status: int) -> str:
    return f"its process ended by signal {-status}" if status < 0 else f"its process ended with status {status}"


def _begin(options: Options, folder: Path, *, resume: bool, retry: bool) -> "subprocess.Popen[bytes]":
    given = json.dumps({"options": options.as_dict(), "folder": str(folder), "resume": resume, "retry": retry})
    command = [sys.executable, "-m", "painn_deploy.scripts.gpu.worker", given]
    # it reads its standard input, which ends when this process does, however it ends
    return subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - this very Python


def _watched(worker: "subprocess.Popen[bytes]", folder: Path, deadline: float | None) -> int | None:
    """A worker's status once it has ended, `HUNG` where a stage took too long, None where the job's time was up."""
    while (status := worker.poll()) is None:
        time.sleep(LOOK)
        if deadline is not None and time.monotonic() > deadline:
            return None
        if (folder / SUMMARY).is_file():
            under_way = [of for of in Record.read(folder).stages.values() if of["state"] == UNDER_WAY and "began" in of]
            if any(time.time() - of["began"] > of["budget"] for of in under_way):
                return HUNG
    return status


def _report(record: Record, console: Console) -> None:
    """Stages with their states, and the times that matter."""
    table = Table("stage", "state", "s", "why", title=f"{record.job['student']} on {record.job['device']}")
    for name, of in record.stages.items():
        colour = COLOURS[of["state"]]
        table.add_row(name, f"[{colour}]{of['state']}[/]", str(of.get("seconds", "")), escape(of.get("reason", "")))
    console.print(table)
    rows = list(_rows(record))
    if rows:
        times = Table("case", "what", "engine call, ms", "times eager", "on the device, ms", title="first stage")
        for row in rows:
            times.add_row(*row)
        console.print(times)
    console.print(f"{record.folder} holds figures.json and summary.json")


def _rows(record: Record) -> Any:
    """Case, candidate, ms of a call, its ratio to eager, ms on the device."""
    found = record.figures.get("first", {})
    calls = {name.rsplit(": ", 1)[0]: value["ms"] for name, value in found.items()
             if name.endswith(": engine call") and isinstance(value, dict) and "ms" in value}  # fmt: skip
    replayed = {name.rsplit(": ", 1)[0]: value["ms"] for name, value in found.items()
                if name.endswith(": replayed call") and isinstance(value, dict) and "ms" in value}  # fmt: skip
    for suffix, times, on_device in (
        ("", calls, LAUNCHED),
        (", replayed", replayed, REPLAYED),
    ):
        for key, spent in times.items():
            candidate, case = key.split(": ", 1)
            eager, device = calls.get(f"eager: {case}"), found.get(f"{key}: {on_device}")
            ratio = f"{eager / spent:.1f}" if eager else "-"
            yield (
                case,
                f"{candidate}{suffix}",
                f"{spent:.3f}",
                ratio,
                f"{device:.3f}" if isinstance(device, float) else "-",
            )


if __name__ == "__main__":
    run_command(gpu_check)
