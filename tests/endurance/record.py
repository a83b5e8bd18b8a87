"""The record of a stage: figures, states, and the parts of which it is made, each on disk as soon as it is known."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from painn_deploy.export.files import to_json, write_whole
from painn_deploy.export.progress import Tell, silent

from .plan import Options, Stage

__all__ = ["DONE", "FAILED", "UNDER_WAY", "WAITING", "Findings", "Job", "Outcome", "StageRecord", "same_subject"]

WAITING, UNDER_WAY, DONE, FAILED = "waiting", "under way", "done", "failed"

STATE = "state.json"

IN_WORDS = 2
"""Findings of a kind that are told one by one."""


@dataclass
class Outcome:
    """What a stage found.

    Attributes:
        figures: by name.
        failures: what does not hold, a line each; empty where all holds.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass
class Findings:
    """What does not hold, by kind: the first of a kind in words, and how many there are."""

    counts: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)

    def add(self, kind: str, words: str) -> None:
        """Count one.

        Args:
            kind: of what it was found with.
            words: that say which, and what is wrong.
        """
        self.counts[kind] += 1
        if self.counts[kind] <= IN_WORDS:
            self.words.append(words)

    def failures(self) -> list[str]:
        """A line each, see `Outcome`."""
        return self.words + [f"{kind}: {count} in all" for kind, count in self.counts.items() if count > IN_WORDS]


@dataclass
class StageRecord:
    """A stage's own folder.

    Attributes:
        folder: nothing else writes into it.
    """

    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        """State, identity, reason, seconds, figures and failures, as far as they are known."""
        try:
            found = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"state": WAITING}
        return found if isinstance(found, dict) else {"state": WAITING}

    def set(self, state: str, identity: Mapping[str, Any], **more: Any) -> None:
        """Replace the state.

        Args:
            state: one of this module's.
            identity: what the figures are of.
            more: further facts, by name.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        at = time.strftime("%Y-%m-%d %H:%M:%S%z")
        write_whole(self.folder / STATE, to_json({"state": state, "written": at, "identity": dict(identity), **more}))

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Begin, or go on with what a run of the same identity left when it was cut off; whether it begins anew."""
        before, of = self.state, self.state.get("identity", {})
        same = same_subject(of, identity) and of.get("commit") == identity.get("commit")
        if before["state"] != UNDER_WAY or not same:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.set(UNDER_WAY, identity, spent=0.0)
            return True
        return False

    def spend(self, seconds: float) -> None:
        """Add to the seconds that the stage has taken, over all the processes that it took."""
        before = self.state
        rest = {key: value for key, value in before.items() if key not in ("state", "written", "identity", "spent")}
        self.set(before["state"], before["identity"], spent=before.get("spent", 0.0) + seconds, **rest)

    def part(self, name: str, measure: Callable[[], Any]) -> Any:
        """The result of a part; it is measured once, and on disk when this returns.

        Args:
            name: of the part.
            measure: gives what JSON can hold.
        """
        path = self.folder / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        value = json.loads(json.dumps(measure(), default=str))
        write_whole(path, json.dumps(value).encode())
        return value

    def append(self, name: str, value: Any) -> None:
        """Add a line to a list that grows; a process that is killed afterwards loses nothing.

        Args:
            name: of the list.
            value: what JSON can hold.
        """
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, default=str) + "\n")

    def lines(self, name: str) -> list[Any]:
        """All lines of a list; one that was being written when its process was killed does not count."""
        path = self.folder / f"{name}.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:
            write_whole(path, f"{whole}\n".encode() if whole else b"")
        return [json.loads(line) for line in whole.splitlines()]


def same_subject(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether figures of two identities may stand on one page: all but the commit and the day are the same.

    Args:
        one: an identity.
        other: another.
    """
    loose = ("commit", "date")
    kept, now = ({key: value for key, value in each.items() if key not in loose} for each in (one, other))
    return bool(to_json(kept) == to_json(now))


@dataclass
class Job:
    """What a stage's module is given.

    Attributes:
        options: of the run.
        stage: which one.
        bundle: its engine's bundle.
        record: where to keep what is known.
        work: folder for large files, which is removed when the stage is done.
        tell: called with a line about how far it is.
        spent_until: when the seconds that the stage has taken were last put on disk.
    """

    options: Options
    stage: Stage
    bundle: Path
    record: StageRecord
    work: Path
    tell: Tell = silent
    spent_until: float = field(default_factory=time.monotonic, init=False)
    _told: float = field(default=0.0, init=False)
    _began: tuple[float, float] | None = field(default=None, init=False)

    def progress(self, done: float, total: float, what: str = "") -> None:
        """Say how far it is, at most every ten seconds.

        Args:
            done: calls, rows or whatever is counted.
            total: of it.
            what: is counted.
        """
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
        if now - self._told < 10 and done < total:
            return
        self._told = now
        self.record.spend(now - self.spent_until)
        self.spent_until = now
        began, before = self._began
        left = (now - began) / (done - before) * (total - done) if done > before else float("nan")
        self.tell(f"{done:,.0f} of {total:,.0f} {what}{f', about {left:.0f} s left' if left > 0 else ''}")
