"""The figures as text: what stands between the marks of docs/reliability.md, made of records alone."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import OutputError
from painn_deploy.scripts.commands.outputs import MARKS, markdown, write_between_marks

from .plan import plan
from .record import DONE, FAILED, StageRecord

__all__ = ["figures_text", "write_page"]

MOST_FAILURES = 40

State = dict[str, Any]


def write_page(document: Path, output: Path) -> None:
    """Write what an output folder holds between the marks of a document; one that is not there is begun.

    Args:
        document: Markdown.
        output: of `python -m tests.endurance`.

    Raises:
        OutputError: the folder holds no figures, or the document has no marks.
    """
    text = figures_text(output)
    document.parent.mkdir(parents=True, exist_ok=True)
    if not document.is_file():
        document.write_text("# Reliability: figures\n\n{}\n{}\n".format(*MARKS), encoding="utf-8")
    write_between_marks(document, text)


def states_of(output: Path) -> dict[str, State]:
    """What each stage of an output folder has recorded, in the order of the plan."""
    names = [stage.name for stage in plan()]
    found = {name: StageRecord(output / "stages" / name).state for name in names}
    return {name: state for name, state in found.items() if "identity" in state}


def figures_text(output: Path, *, brief: bool = False) -> str:
    """All figures, or one line for each stage.

    Args:
        output: of `python -m tests.endurance`.
        brief: for a terminal.

    Raises:
        OutputError: the folder holds no figures.
    """
    states = states_of(output)
    if not states:
        raise OutputError(f"{output} holds no figures. Measure them with: python -m tests.endurance --output {output}")
    if brief:
        return "\n".join(f"{name}: {_result(state)}" for name, state in states.items())
    parts = [_identities(states), _summary(states)]
    for heading, kind, table in TABLES:
        chosen = {name: s for name, s in states.items() if name.startswith(f"{kind}-") and s.get("figures")}
        if chosen and (rows := [row for name, state in chosen.items() for row in table(name, state)]):
            parts.append(f"### {heading[0]}\n\n{markdown(heading[1], [list(map(_cell, row)) for row in rows])}")
    if failures := list(_failures(states)):
        parts.append("### What does not hold\n\n" + "\n".join(failures))
    return "\n\n".join(parts)


def _cell(value: Any) -> Any:
    """As a cell of a table: whole numbers with commas, and no bar that would end the cell."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def _result(state: State) -> str:
    failures = state.get("failures", [])
    match state["state"]:
        case s if s == DONE:
            return "holds"
        case s if s == FAILED:
            return f"FAILED: {len(failures)} findings, the first: {failures[0]}" if failures else "FAILED"
    return "not finished"


def _identities(states: dict[str, State]) -> str:
    """Machine, versions and commits; said once where all stages have the same."""
    lines = []
    for key, words in (
        ("machine", "Machine"),
        ("system", "System"),
        ("commit", "Commit"),
        ("date", "Begun"),
        ("student", "Student"),
        ("scale", "Scale"),
        ("seed", "Seed"),
    ):
        lines.append(f"- {words}: {_grouped(states, partial(_of, key))}")
    versions = _grouped(states, lambda one: ", ".join(f"{name} {text}" for name, text in one["versions"].items()))
    by_engine = {name.partition("-")[2]: state["identity"]["bundle_sha256"] for name, state in states.items()}
    bundles = ", ".join(f"{engine} `{sha[:16]}`" for engine, sha in by_engine.items())
    return "\n".join([*lines, f"- Versions: {versions}", f"- Bundles (first digits of their SHA-256): {bundles}"])


def _of(key: str, identity: State) -> str:
    return str(identity[key])


def _grouped(states: dict[str, State], text: Callable[[State], str]) -> str:
    groups: dict[str, list[str]] = {}
    for name, state in states.items():
        groups.setdefault(text(state["identity"]), []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def _summary(states: dict[str, State]) -> str:
    rows = []
    for name, state in states.items():
        size = state.get("stage", {}).get("size", "")
        result = "holds" if state["state"] == DONE else "**failed**" if state["state"] == FAILED else "not finished"
        rows.append(
            [name, _cell(size), result, len(state.get("failures", [])), _cell(round(state.get("seconds", 0.0)))]
        )
    return markdown(["stage", "size", "result", "findings", "seconds"], rows)


def _failures(states: dict[str, State]) -> Iterator[str]:
    for name, state in states.items():
        found = state.get("failures", [])
        for line in found[:MOST_FAILURES]:
            yield f"- {name}: {' '.join(line.split())}".replace("|", "\\|").replace("<", "&lt;")
        if len(found) > MOST_FAILURES:
            yield f"- {name}: and {len(found) - MOST_FAILURES} more, in its state.json"


def _grown(growth: dict[str, Any]) -> list[Any]:
    first, last, largest = growth["rss"]
    slope = f"{growth['slope']:+.3f}"
    return [f"{first:.0f}", f"{last:.0f}", f"{largest:.0f}", slope, growth["fds"], growth["threads"], growth["maps"]]


GROWN = ["RSS first (MiB)", "last", "largest"]
MORE = ["more files", "more threads", "more maps"]


def _calls(name: str, state: State) -> Iterator[list[Any]]:
    f = state["figures"]
    if "growth" in f:
        yield [name, f["calls"], f["growth"]["processes"], f["wrong"], *_grown(f["growth"])]


def _cycles(name: str, state: State) -> Iterator[list[Any]]:
    f = state["figures"]
    for way, growth in f.get("growth", {}).items():
        yield [name, way, f["cycles"], *_grown(growth)]


def _rows(name: str, state: State) -> Iterator[list[Any]]:
    for suffix, found in state["figures"].get("formats", {}).items():
        if suffix.startswith("awkward"):
            yield [suffix, found["rows"], "", "", "", "each row its own energy" if not found["wrong"] else "**wrong**"]
        else:
            what = "rows" if suffix == ".db" else "bytes"
            same = f"the same {what}" if found["same"] else f"**other {what}**"
            when = ", ".join(f"{found['when'].count(each)} {each}" for each in dict.fromkeys(found["when"]))
            yield [suffix, found["rows"], found["kills"], when, found["failed rows"], same]


def _bundles(name: str, state: State) -> Iterator[list[Any]]:
    counts = state["figures"].get("counts", {})
    for group in ("not hashed anew", "hashed anew"):
        found = {key.partition(": ")[2]: n for key, n in counts.items() if key.startswith(f"{group}: ")}
        yield [name, group, sum(found.values()), *(found.get(each, 0) for each in ("refused", "same", "anew", "wrong"))]


def _structures(name: str, state: State) -> Iterator[list[Any]]:
    f = state["figures"]
    counts = f["counts"]
    yield [
        *(name, f["structures"], counts.get("answered", 0), counts.get("held against float64", 0)),
        *(counts.get("refused", 0), counts.get("hung or died", 0), f["wrong"], f"{f['slowest']:.1f}"),
    ]


def _kinds(name: str, state: State) -> Iterator[list[Any]]:
    if name.endswith("onnxruntime"):
        for kind, counts in state["figures"]["kinds"].items():
            yield [kind, *(counts.get(each, 0) for each in ("answered", "refused", "wrong"))]


def _threads(name: str, state: State) -> Iterator[list[Any]]:
    for trial, counts in state["figures"].get("trials", {}).items():
        other = sum(n for kind, n in counts.items() if kind not in ("right", "refused", "parent"))
        yield [name, trial, counts.get("right", 0), counts.get("refused", 0), other]


def _dynamics(name: str, state: State) -> Iterator[list[Any]]:
    f = state["figures"]
    drift = f"{f['drift']:.4f} ± {f['uncertainty']:.4f}" if "drift" in f else "too short"
    first, last, _ = f["growth"]["rss"]
    yield [
        *(f["atoms"], f"{f['seconds of dynamics'] / 60:.1f}", f["steps"], f"{f['picoseconds']:.1f}", drift),
        *(f"{f['temperature']:.0f}", f"{f['longest bond']:.2f}", f["resumed"], f"{first:.0f} to {last:.0f}"),
    ]


Table = Callable[[str, State], Iterator[list[Any]]]

TABLES: tuple[tuple[tuple[str, list[str]], str, Table], ...] = (
    (
        (
            "Calls of a lone molecule",
            ["stage", "calls", "processes", "wrong answers", *GROWN, "MiB per 100,000 calls", *MORE],
        ),
        "calls",
        _calls,
    ),
    (("Opened and closed", ["stage", "way", "cycles", *GROWN, "MiB per 100 cycles", *MORE]), "cycles", _cycles),
    (
        ("Rows, killed and resumed", ["output", "rows", "SIGKILLs", "when", "rows without result", "result"]),
        "rows",
        _rows,
    ),
    (
        (
            "Altered bundles",
            ["stage", "hashes", "bundles", "refused", "same energies", "accepted: hashed anew", "wrong"],
        ),
        "bundles",
        _bundles,
    ),
    (
        (
            "Hostile structures",
            [
                "stage",
                "structures",
                "answered",
                "held against float64",
                "refused",
                "hung or died",
                "wrong",
                "slowest (s)",
            ],
        ),
        "structures",
        _structures,
    ),
    (("Hostile structures, by kind", ["kind", "answered", "refused", "wrong"]), "structures", _kinds),
    (("Threads and forks", ["stage", "trial", "right", "EngineError", "other"]), "threads", _threads),
    (
        (
            "Dynamics of liquid water",
            [
                *("atoms", "minutes", "steps", "ps", "drift (meV/atom/ps)", "mean T (K)", "longest O-H (Å)"),
                *("resumed", "RSS (MiB)"),
            ],
        ),
        "dynamics",
        _dynamics,
    ),
)
