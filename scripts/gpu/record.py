"""The record of the staged job on a GPU, on disk at every moment: figures, and the state of each stage.

A folder holds two files. `figures.json` has every figure of every stage, by name; `summary.json` says of each stage
whether it is done, absent (what it needs is not here) or failed, and why. Both are replaced whole, so that a job may be
cut off at any moment.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import OutputError
from painn_deploy.export.files import prepare_output, to_json, write_output
from painn_deploy.export.progress import Tell, silent

__all__ = ["ABSENT", "DONE", "FAILED", "FIGURES", "SUMMARY", "UNDER_WAY", "WAITING", "Record", "Unavailable", "failed"]

SUMMARY, FIGURES = "summary.json", "figures.json"
WAITING, UNDER_WAY, DONE, ABSENT, FAILED = "waiting", "under way", "done", "absent", "failed"


class Unavailable(Exception):  # noqa: N818  it is no error: the stage is not for this machine
    """A stage lacks something that it needs here; the message names it."""


@dataclass
class Record:
    """Figures and states of a job.

    Attributes:
        folder: that they are kept in.
        job: what the figures are of: machine, versions, student, options. Figures of another one are never mixed in.
        stages: state, reason and seconds of each stage, in the order in which they run.
        figures: by stage, and by name.
        tell: called with a line about each figure.
    """

    folder: Path
    job: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    tell: Tell = silent

    @classmethod
    def begin(
        cls, folder: Path, job: Mapping[str, Any], stages: Iterable[str], *, resume: bool, retry: bool = True
    ) -> "Record":
        """Begin a job in a folder, or go on with the one that is there.

        Args:
            folder: to keep it in.
            job: what its figures are of.
            stages: in the order in which they run.
            resume: go on with what is there.
            retry: try what failed again: the figures that did, after all other stages.

        Raises:
            OutputError: the folder cannot be written, holds something, or is of another job.
        """
        prepare_output(folder)
        made = cls(folder, json.loads(to_json(job)))
        there = folder / SUMMARY
        if not resume or not there.is_file():
            if not resume and (names := sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))):
                raise OutputError(
                    f"{folder} holds {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}. Give an empty "
                    "folder with --output, or go on with the job that is there with --resume."
                )
        else:
            before = cls.read(folder)
            if different := [key for key in made.job if before.job.get(key) != made.job[key]]:
                told = "; ".join(f"{key}: {before.job.get(key)} there, {made.job[key]} here" for key in different)
                raise OutputError(f"{folder} holds figures of another job ({told}). Give another folder with --output.")
            made.stages, made.figures = before.stages, before.figures
        for name in stages:
            state = made.stages.setdefault(name, {"state": WAITING})
            if state["state"] == FAILED and retry:
                kept = {key: value for key, value in made.figures.get(name, {}).items() if not failed(value)}
                made.figures[name] = kept
                made.stages[name] = {"state": WAITING, "tried": True}
        made.write()
        return made

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """The record that a folder holds.

        Raises:
            OutputError: it holds no job.
        """
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            path = folder / FIGURES
            figures = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            job, stages = summary["job"], summary["stages"]
            if not all(isinstance(part, dict) for part in (job, stages, figures, *stages.values(), *figures.values())):
                raise TypeError("it holds something else")
            return cls(folder, job, stages, figures)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{folder} holds no readable {SUMMARY} of such a job: {error}. Begin in another."
            ) from error

    def note(self, stage: str, name: str, value: Any) -> None:
        """Keep a figure; it is on disk when this returns.

        Args:
            stage: its name.
            name: of the figure.
            value: what JSON can hold.
        """
        value = json.loads(json.dumps(value, default=str))
        self.figures.setdefault(stage, {})[name] = value
        write_output(self.folder / FIGURES, to_json(self.figures))
        self.tell(f"{stage}: {name}: {_short(value)}")

    def set(self, stage: str, state: str, reason: str = "", **more: Any) -> None:
        """Keep the state of a stage.

        Args:
            stage: its name.
            state: one of this module's states.
            reason: why, where it is not done.
            more: further facts, by name.
        """
        self.stages[stage] = {"state": state} | ({"reason": reason} if reason else {}) | more
        self.write()

    def write(self) -> None:
        """Replace the summary."""
        summary = {"job": self.job, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "stages": self.stages}
        write_output(self.folder / SUMMARY, to_json(summary))

    def pending(self) -> list[str]:
        """Stages that are not over, in order; those that failed before come last."""
        found = [name for name, of in self.stages.items() if of["state"] in (WAITING, UNDER_WAY)]
        return sorted(found, key=lambda name: bool(self.stages[name].get("tried")))


def failed(figure: Any) -> bool:
    """Whether a figure says that it could not be measured, or that something does not hold."""
    return isinstance(figure, dict) and ("failed" in figure or figure.get("holds") is False)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}..."
