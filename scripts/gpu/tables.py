"""What jobs found, as tables in Markdown and as a plot; it measures nothing.

    python -m painn_deploy.scripts.gpu.tables benchmarks/gpu/NAME
    python -m painn_deploy.scripts.gpu.tables base small --into docs/performance.md --plot docs/performance-gpu.png

Each folder holds one job or several, of any students. StudentFigures of two GPUs are never in one page.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from painn_deploy.calibration.report.drawing import drawn
from painn_deploy.export.errors import OutputError
from painn_deploy.scripts.commands.entry import run_command
from painn_deploy.scripts.commands.outputs import markdown, write_between_marks
from painn_deploy.scripts.gpu.plan import LAUNCHED, REPLAYED
from painn_deploy.scripts.gpu.record import FIGURES, WAITING, Record

__all__ = ["GPU_MARKS", "Footnotes", "StudentFigures", "page", "plot", "read_jobs", "tables"]

GPU_MARKS = ("<!-- gpu figures -->", "<!-- /gpu figures -->")
"""Of a document: what stands between them this program has written."""

EAGER, COMPILED = "eager", "torch.compile"
ENGINES = ("inductor fp32", "inductor tf32", "inductor fp16", "fused fp32", "onnxruntime fp32")
"""In the order of columns and tables; others follow as they are found."""

STAGES = ("first", "sizes ", "speed ", COMPILED)
"""Beginnings of the names of stages whose figures are of cases."""

BATCH = re.compile(r"(\d+) \w+s")
"""Name of a batch of molecules, with how many there are; for jobs that did not keep it."""

NONE = "–"
"""In place of a figure that there is not."""


class Footnotes:
    """Reasons why figures are absent, each told once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        """What stands in place of a figure."""
        return f"{NONE} ({self._numbers.setdefault(reason, len(self._numbers) + 1)})"

    def lines(self) -> list[str]:
        """What the numbers stand for."""
        return [f"({number}) {reason}" for reason, number in self._numbers.items()]


NOT_MEASURED = "It was not measured."

Place = tuple[int, str]
"""Number of a job, and name of a stage of it."""


class StudentFigures:
    """StudentFigures of one student, of all jobs that are given of it.

    Args:
        records: of the jobs; where two hold a figure of one name, it is the later's. Ratios are of one stage of a job.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._stages: dict[Place, tuple[dict[str, Any], dict[str, Any]]] = {}
        for job, record in reversed(list(enumerate(records))):
            for stage, state in record.stages.items():
                if stage.startswith(STAGES):
                    self._stages[job, stage] = record.figures.get(stage, {}), state

    def cases(self) -> dict[str, tuple[int, int]]:
        """Atoms and structures of each case, by name, the fewest atoms first."""
        found: dict[str, tuple[int, int]] = {}
        for figures, _ in self._stages.values():
            for name, size in (figures.get("sizes") or {}).items():
                if "matrix" in size:
                    batch = BATCH.fullmatch(name)
                    found[name] = size["matrix"][0], size.get("structures") or int(batch[1] if batch else 1)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def labels(self) -> list[str]:
        """Engines of which there is a figure."""
        parts = [key.split(": ") for figures, _ in self._stages.values() for key in figures]
        found = dict.fromkeys(part[0] for part in parts if len(part) == 3 and part[0] not in (EAGER, COMPILED))
        return sorted(found, key=lambda label: ENGINES.index(label) if label in ENGINES else len(ENGINES))

    def of(self, label: str, case: str, what: str) -> tuple[Any, "Place | None"]:
        """A figure with the job and stage that found it; or why there is none, as text, with no stage.

        Args:
            label: an engine with its precision, `eager` or `torch.compile`.
            case: name of it.
            what: name of the figure.
        """
        reasons = []
        for (job, stage), (figures, state) in self._stages.items():
            value = figures.get(f"{label}: {case}: {what}")
            if value is not None and _reason(value) is None:
                return value, (job, stage)
            reason = _reason(value) or _reason(figures.get(label))
            if reason is None and stage in (label, *(f"{kind}{label}" for kind in STAGES)):
                reason = state.get("reason") or ("Its stage was not reached." if state["state"] == WAITING else None)
            reasons += [] if reason is None else [reason]
        return (reasons[0] if reasons else NOT_MEASURED), None

    def at(self, stage: "Place", label: str, case: str, what: str) -> Any:
        """A figure of one stage; None where that has none.

        Args:
            stage: the job's number and the stage's name.
            label: an engine with its precision, `eager` or `torch.compile`.
            case: name of it.
            what: name of the figure.
        """
        value = self._stages.get(stage, ({}, {}))[0].get(f"{label}: {case}: {what}")
        return None if value is None or _reason(value) is not None else value


def _reason(value: Any) -> str | None:
    """Why a figure is none; None where it is one, or is not there."""
    if not isinstance(value, dict):
        return None
    return next((str(value[key]) for key in ("absent", "failed") if key in value), None)


def _ms(value: Any) -> float:
    return float(value["ms"] if isinstance(value, dict) else value)


def read_jobs(folders: Iterable[Path]) -> dict[str, list[Record]]:
    """Jobs of each student, by its name.

    Args:
        folders: that hold jobs, at whatever depth.

    Raises:
        OutputError: one holds none, or a rehearsal; or they are of different GPUs, or students of one name differ.
    """
    found: list[Record] = []
    for folder in folders:
        inside = [Record.read(path.parent) for path in sorted(folder.rglob(FIGURES))]
        if not inside:
            raise OutputError(f"{folder} holds no {FIGURES} of a job, in whatever folder of it.")
        found += inside
    jobs: dict[str, list[Record]] = {}
    for record in found:
        first = found[0]
        if record.job["device"] != first.job["device"]:
            raise OutputError(
                f"{first.folder} holds figures of {first.job['device']} and {record.folder} of "
                f"{record.job['device']}: they are never in one page. Give the folders of one at a time."
            )
        if record.job["quick"]:
            raise OutputError(f"{record.folder} holds a rehearsal (--quick), whose times say nothing.")
        same = jobs.setdefault(record.job["student"], [])
        if same and same[0].job["student_sha256"] != record.job["student_sha256"]:
            raise OutputError(f"{same[0].folder} and {record.folder} are of two students of one name.")
        same.append(record)
    return jobs


def page(jobs: dict[str, list[Record]], image: str = "") -> str:
    """All tables, in Markdown.

    Args:
        jobs: of each student, by its name.
        image: where the plot is, as the document names it; empty for none.
    """
    parts = [f"![Time of one evaluation against atoms]({image})"] if image else []
    for student, records in jobs.items():
        parts += _of_student(student, records)
    return "\n\n".join(parts)


def _of_student(student: str, records: list[Record]) -> Iterator[str]:
    figures, notes, job = StudentFigures(records), Footnotes(), records[-1].job
    cases, labels = figures.cases(), figures.labels()
    yield f"### {student} on {job['device']}"
    found = dict.fromkeys((name, version) for record in records for name, version in record.job["versions"].items())
    versions = ", ".join(f"{name} {version}" for name, version in found)
    yield " ".join([f"Python {job['python']}, {versions}.", *_peaks(records), *_opened(records)])
    headings = ["case", "atoms", "eager, ms", "torch.compile, ms", *(f"{label}, ms (times eager)" for label in labels)]
    yield markdown(headings, [_overview(figures, notes, name, cases[name][0], labels) for name in cases])
    for label in labels:
        yield f"**{label}**"
        tried = [name for name in cases if _best(figures, label, name)[0] != NOT_MEASURED]
        rows = [_row(figures, notes, label, name, *cases[name]) for name in tried]
        yield markdown(COLUMNS, rows)
    if lines := notes.lines():
        yield "\n".join(f"{line}<br>" for line in lines)


def _overview(figures: StudentFigures, notes: Footnotes, case: str, atoms: int, labels: list[str]) -> list[str]:
    """Times of whole evaluations from a neighbour matrix, of eager, torch.compile and all engines."""
    cells = [case, f"{atoms:,}"]
    for label in (EAGER, COMPILED, *labels):
        value, stage = _best(figures, label, case)
        if not stage:
            cells.append(notes.mark(value))
            continue
        eager = figures.at(stage, EAGER, case, "engine call")
        ratio = f" ({_ms(eager) / _ms(value):.1f})" if eager is not None and label != EAGER else ""
        cells.append(f"{_short(_ms(value))}{ratio}")
    return cells


def _best(
    figures: StudentFigures, label: str, case: str, replayed: str = "replayed call", launched: str = "engine call"
) -> tuple[Any, Place | None]:
    """A time as a CUDA graph, or where there is none, launched."""
    value, stage = figures.of(label, case, replayed)
    return (value, stage) if stage else figures.of(label, case, launched)


COLUMNS = (
    "case",
    "on the device, ms",
    "call launched, ms",
    "call replayed, ms",
    "times eager",
    "ASE call, ms",
    "times eager",
    "from Atoms, ms",
    "structures a second",
    "relative force error",
    "memory, MiB",
    "of the floor, %",
)


def _row(figures: StudentFigures, notes: Footnotes, label: str, case: str, _: int, structures: int) -> list[str]:
    """StudentFigures of one engine on one case; what there cannot be is left blank."""

    def cell(what: str, written: Any) -> str:
        return shown(figures.of(label, case, what), written)

    def shown(found: tuple[Any, Place | None], written: Any) -> str:
        return str(written(found[0])) if found[1] else notes.mark(found[0])

    def ratio(found: tuple[Any, Place | None], of: str) -> str:
        value, stage = found
        if stage is None:
            return notes.mark(value)
        eager = figures.at(stage, EAGER, case, of)
        if eager is None:
            reason, elsewhere = figures.of(EAGER, case, of)
            return notes.mark("Eager was not timed beside it." if elsewhere else reason)
        return f"{_ms(eager) / _ms(value):.1f}"

    def share(floor: Any) -> str:
        return (
            notes.mark("There is no time of the device.") if floor["share"] is None else f"{100 * floor['share']:.0f}"
        )

    def milliseconds(value: Any) -> str:
        return _short(_ms(value))

    lone = structures == 1
    return [
        case,
        shown(_best(figures, label, case, REPLAYED, LAUNCHED), milliseconds),
        cell("engine call", milliseconds),
        cell("replayed call", milliseconds),
        ratio(_best(figures, label, case), "engine call"),
        cell("ASE call", milliseconds) if lone else "",
        ratio(figures.of(label, case, "ASE call"), "ASE call") if lone else "",
        cell("from Atoms", milliseconds),
        "" if lone else cell("from Atoms", lambda value: f"{1e3 * structures / _ms(value):,.0f}"),
        cell("errors", lambda value: f"{value['relative force error']:.1e}"),
        cell("memory", lambda value: f"{value['bytes'] / 2**20:,.0f}"),
        cell("floor", share),
    ]


def _short(ms: float) -> str:
    """Three figures, or all of those before the point."""
    return f"{ms:,.0f}" if ms >= 1000 else f"{ms:.3g}" if ms >= 0.001 else f"{ms:.1e}"


def _peaks(records: list[Record]) -> Iterator[str]:
    """A sentence about the GPU's peaks, where they were measured."""
    found: dict[str, Any] = {}
    for record in records:
        found = record.figures.get("first", {}).get("peaks") or found
    rates = [f"{values['multiply_adds_per_second'][name] / 1e12:.3g}e12 in {name}" for name, values in found.items()
             if isinstance(values, dict) and values.get("multiply_adds_per_second", {}).get(name)]  # fmt: skip
    if rates:
        copied = max(values["bytes_per_second"] for values in found.values())
        yield f"Its peaks: {copied / 1e12:.3g} TB/s of a copy; multiply-adds a second, {', '.join(rates)}."


def _opened(records: list[Record]) -> Iterator[str]:
    """A sentence for each engine whose opening was looked at."""
    for stage, found in {s: f for r in records for s, f in r.figures.items() if s.startswith("opening ")}.items():
        if "seconds" in (one := found.get("opening") or {}):
            engine = stage.removeprefix("opening ")
            yield f"To open {engine} in a new process took {one['seconds']:.1f} s after imports."


def plot(jobs: dict[str, list[Record]], path: Path) -> None:
    """Draw milliseconds of one evaluation by atoms, of each student beside the others.

    Args:
        jobs: of each student, by its name.
        path: of a PNG.
    """
    with drawn(path, (5.0 * len(jobs) + 2.0, 4.5), 1, len(jobs)) as panels:
        every = [panels] if len(jobs) == 1 else list(panels)
        for axes, (student, records) in zip(every, jobs.items(), strict=True):
            _draw(axes, StudentFigures(records))
            axes.set(xscale="log", yscale="log", xlabel="atoms", ylabel="ms of one evaluation")
            axes.set_title(f"{student}, {records[-1].job['device']}")
        every[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))


def _draw(axes: Any, figures: StudentFigures) -> None:
    """A line for each engine through the lone structures, and one through the batches."""
    labels = [EAGER, COMPILED, *ENGINES]
    labels += [label for label in figures.labels() if label not in labels]  # the same colours in every panel
    for number, label in enumerate(labels):
        for batches, line in ((False, "-o"), (True, "--s")):
            points = []
            for name, (atoms, structures) in figures.cases().items():
                value, stage = _best(figures, label, name)
                points += [(atoms, _ms(value))] if stage and (structures > 1) == batches else []
            if points:
                named = f"{label}{', batches' if batches else ''}"
                axes.plot(*zip(*points, strict=True), f"C{number}{line}", markersize=4, label=named)


def tables(
    folders: Annotated[list[Path], typer.Argument(help="That hold jobs, such as benchmarks/gpu/NAME.")],
    into: Annotated[Path | None, typer.Option(help="Markdown, to write between its marks; else it is printed.")] = None,
    image: Annotated[Path | None, typer.Option("--plot", help="PNG to draw.")] = None,
) -> None:
    """Write what jobs on a GPU found as tables and a plot."""
    jobs = read_jobs(folders)
    link = ""
    if image is not None:
        plot(jobs, image)
        link = Path(os.path.relpath(image, into.parent if into is not None else Path.cwd())).as_posix()
    text = page(jobs, link)
    if into is None:
        print(text)
    else:
        write_between_marks(into, text, GPU_MARKS)


if __name__ == "__main__":
    run_command(tables)
