"""Rows screened, killed at random moments and resumed: the bytes of a run that was left alone."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms

from painn_deploy.export.errors import OutputError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.commands.screen import SOME_FAILED
from tests.endurance.child import end_with_parent
from tests.endurance.generators_rows import awkward_table, write_rows
from tests.endurance.record import Job, Outcome

__all__ = ["run"]

KILLS, FEWER = 10, 4
"""Of the run in extended XYZ, and of those of a tenth of the rows in other formats."""

SHORT = 5_000
"""Rows up to which there are few kills, and none for Parquet, whose parts are written as those of extended XYZ."""

DONE = (0, SOME_FAILED)
"""Exit statuses of a screening that came to its end: some rows have no answer on purpose."""

PART = "part-????????"

LOOK = 0.01

CLOSE = 1e-4
"""eV, of energies of awkward rows that were computed in other batches."""

AWKWARD = 0.02
"""Awkward rows, as a share of all."""


def run(job: Job) -> Outcome:
    """Every format, killed and not; then rows whose metadata is awkward."""
    figures: dict[str, Any] = {}
    failures: list[str] = []
    tenth = max(200, job.stage.size // 10)
    whole = (".extxyz", job.stage.size, KILLS if job.stage.size > SHORT else 2)
    tenths = [(suffix, tenth, FEWER if job.stage.size > SHORT else 1) for suffix in (".parquet", ".db")]
    for suffix, count, kills in (whole, *tenths[job.stage.size <= SHORT :]):
        found, wrong = _Trial(job, suffix, count, kills).run()
        figures[suffix] = found
        failures += [f"{suffix}: {line}" for line in wrong]
    awkward = max(60, round(AWKWARD * job.stage.size))
    for suffix in (".extxyz", ".parquet", ".db"):
        found = job.record.part(f"awkward{suffix}", partial(_awkward, job, suffix, awkward))
        figures[f"awkward {suffix}"] = found
        failures += [f"awkward rows, {suffix}: {line}" for line in found["wrong"]]
    return Outcome({"rows": job.stage.size, "formats": figures}, failures)


def _command(job: Job, source: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "painn_deploy.scripts.cli", "screen", str(job.bundle), str(source)),
        *("-o", str(output), *more),
    ]


def _begun(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=end_with_parent)


def _finished(command: list[str], log: Path) -> None:
    process = _begun(command, log)
    if process.wait() not in DONE:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise OutputError(f"{' '.join(command[2:4])} ended with status {process.returncode}: {' '.join(last)[:300]}")


class _Trial:
    """One format: a run that is left alone, and one that is killed."""

    def __init__(self, job: Job, suffix: str, count: int, kills: int) -> None:
        self.job, self.suffix, self.count, self.kills = job, suffix, count, kills
        self.source = job.work / f"rows-{count}.extxyz"
        self.output = job.work / f"killed{suffix}"
        self.parts = job.work / f"killed{suffix}.parts"
        self.log = job.work / f"log{suffix}.txt"
        self.moments = random.Random(f"{job.options.seed}{suffix}")  # noqa: S311  moments to kill at are no secret

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Figures, and what does not hold."""
        name = self.suffix[1:]
        if not self.source.is_file():
            made = self.source.with_suffix(".making")
            write_rows(made, self.job.options.seed, self.count)
            made.rename(self.source)
        alone = self.job.record.part(f"{name}-alone", self._alone)
        self.job.tell(f"{self.suffix}: {self.count:,} rows took {alone['seconds']:.0f} s alone")
        targets = self._targets(alone)
        kills: list[dict[str, Any]] = self.job.record.lines(f"{name}-kills")
        while len(kills) < len(targets):
            kills.append(self._killed(*targets[len(kills)], alone))
            self.job.record.append(f"{name}-kills", kills[-1])
            self.job.tell(f"{self.suffix}: kill {len(kills)} of {len(targets)}: {kills[-1]}")
            if not kills[-1]["killed"]:
                break
        last = self.job.record.part(f"{name}-resumed", self._resumed)
        same = last["content"] == alone["content"]
        done = sum(kill["killed"] for kill in kills)
        figures = {"rows": self.count, "kills": done, "same": same, "failed rows": last["failed"], "alone": alone}
        figures["when"] = [kill["when"] for kill in kills if kill["killed"]]
        wrong = [] if same else ["other rows than those of a run that was left alone"]
        if done < self.kills:
            wrong.append(f"only {done} of {self.kills} kills came in time")
        if last["rows"] != self.count:
            wrong.append(f"{self.count} rows went in, and {last['rows']} came out")
        return figures, wrong

    def _alone(self) -> dict[str, Any]:
        output = self.job.work / f"alone{self.suffix}"
        few = self.job.work / "few.extxyz"
        if not few.is_file():  # measures batches, and remembers for all runs
            write_rows(few, self.job.options.seed, 64)
            _finished(_command(self.job, few, output, "--overwrite"), self.log)
        began = time.monotonic()
        process = _begun(_command(self.job, self.source, output, "--overwrite"), self.log)
        parts, first, last, most = output.with_name(f"{output.name}.parts"), None, began, 0
        while process.poll() is None:
            count = _count(parts)
            if count and first is None:
                first = time.monotonic()
            if count > most:
                most, last = count, time.monotonic()
            time.sleep(LOOK)
        ended = time.monotonic()
        if process.returncode not in DONE:
            raise OutputError(f"it ended with status {process.returncode}")
        found = {"seconds": ended - began, "start": (first or last) - began, "end": ended - last, "parts": most}
        return {**found, "content": _content(output)}

    def _targets(self, alone: dict[str, Any]) -> list[tuple[str, int, float]]:
        """When to kill: while it starts, computes, and (one to spare, since it is short) writes its output."""
        each = (alone["seconds"] - alone["start"] - alone["end"]) / max(1, alone["parts"])
        between = sorted(self.moments.randrange(max(1, alone["parts"])) for _ in range(self.kills - 1))
        targets = [("starting", -1, self.moments.uniform(0, alone["start"]))]
        targets += [("computing", parts, self.moments.uniform(0, each)) for parts in between]
        targets = targets if self.kills > 1 else []
        return [*targets, ("assembling", alone["parts"], self.moments.uniform(0, alone["end"] / 2))]

    def _killed(self, when: str, parts: int, after: float, alone: dict[str, Any]) -> dict[str, Any]:
        """Begin or go on, and kill: some seconds after so many parts are there, or after its own beginning."""
        process = _begun(_command(self.job, self.source, self.output, "--resume"), self.log)
        if parts >= 0:
            while process.poll() is None and _count(self.parts) < parts:
                time.sleep(LOOK)
        ends = time.monotonic() + after
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(LOOK)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        if not killed and process.returncode not in DONE:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise OutputError(f"a resumed run ended with status {process.returncode}: {' '.join(last)[:300]}")
        return {"when": when, "killed": killed, "parts": _count(self.parts), "after": round(after, 2)}

    def _resumed(self) -> dict[str, Any]:
        _finished(_command(self.job, self.source, self.output, "--resume"), self.log)
        plan = json.loads(self.output.with_name(f"{self.output.name}.screening.json").read_text())
        content = _content(self.output)
        return {"content": content, "rows": _rows_in(self.output), "failed": len(plan["failures"])}


def _count(parts: Path) -> int:
    return sum(1 for _ in parts.glob(PART)) if parts.is_dir() else 0


def _content(path: Path) -> str:
    """SHA-256 of a file; of a database that of its rows, since SQLite's pages may lie otherwise."""
    if path.suffix != ".db":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    with ase.db.connect(path) as database:
        for one in database.select():
            atoms = one.toatoms()
            arrays = [np.ascontiguousarray(atoms.arrays[name]).tobytes() for name in sorted(atoms.arrays)]
            results = {} if atoms.calc is None else atoms.calc.results
            values = [np.ascontiguousarray(results[name]).tobytes() for name in sorted(results)]
            facts = json.dumps([one.key_value_pairs, one.data], sort_keys=True, default=str)
            for part in (*arrays, atoms.cell.array.tobytes(), atoms.pbc.tobytes(), *values, facts.encode()):
                digest.update(part + b"|")
    return digest.hexdigest()


def _read(path: Path) -> Iterator[Atoms]:
    if path.suffix == ".parquet":
        from painn_deploy.runtime.screening.sources import open_source

        source = open_source(path)
        for chunk in source.scan(1000).chunks:
            yield from source.read(chunk)
    elif path.suffix == ".db":
        with ase.db.connect(path) as database:
            yield from (one.toatoms(add_additional_information=True) for one in database.select())
    else:
        yield from ase.io.iread(path, index=":")


def _rows_in(path: Path) -> int:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return int(parquet.read_metadata(path).num_rows)
    if path.suffix == ".db":
        with ase.db.connect(path) as database:
            return int(database.count())
    return sum(1 for _ in ase.io.iread(path, index=":"))


def _energies(path: Path) -> list[float | None]:
    """As a reader of the format finds them."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return list(parquet.read_table(path, columns=["energy"])["energy"].to_pylist())
    return [None if atoms.calc is None else atoms.calc.results.get("energy") for atoms in _read(path)]


def _awkward(job: Job, suffix: str, count: int) -> dict[str, Any]:
    """Sound structures with awkward metadata: a row out for each row in, in order, with its own energy."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table, output = awkward_table(job.options.seed, count), job.work / f"awkward{suffix}"
    source = job.work / "awkward-rows.parquet"
    parquet.write_table(pa.table(table), source)
    job.tell(f"{count} awkward rows to {suffix}")
    with PaiNNCalculator(job.bundle, threads=1) as calculator:
        molecules = [Atoms(z, x) for z, x in zip(table["numbers"], table["positions"], strict=True)]
        wanted_energies = [one["energy"] for one in calculator.calculate_batch(molecules)]
    wrong: list[str] = []
    try:
        _finished(_command(job, source, output, "--overwrite"), job.work / "awkward.txt")
        found = _energies(output)
    except Exception as error:  # a reader raises what it meets
        return {"rows": count, "wrong": [f"{type(error).__name__}: {error}"[:300]]}
    if len(found) != count:
        wrong.append(f"{count} rows went in, and {len(found)} came out")
    else:
        for number, (energy, good) in enumerate(zip(found, wanted_energies, strict=True)):
            if energy is None or not abs(energy - good) <= CLOSE:
                wrong.append(f"row {number} ({table['info'][number][:80]}): energy {energy}, and not {good:.4f} eV")
    return {"rows": count, "wrong": wrong[:5] + ([f"{len(wrong)} in all"] if len(wrong) > 5 else [])}
