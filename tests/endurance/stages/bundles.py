"""Altered bundles, each opened in a child: refused in words of ours, or the same energies, or others by design."""

import hashlib
import io
import os
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import molecule

from painn_deploy.calibration.structures import box_of
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.errors import EngineUnavailableError, PaiNNDeployError
from tests.endurance.child import Emit, Ended, in_child, what_failed
from tests.endurance.generators_bundles import altered
from tests.endurance.record import Findings, Job, Outcome

__all__ = ["answers", "judge", "run"]

LIMIT, PATIENT = 20.0, 60.0
"""s for one bundle; and of a second look at one that took longer, since other work may share the machine."""

GIB = 3.0

SECOND_LOOKS = 2


def answers(emit: Emit, folder: Path, elsewhere: Path) -> None:
    """In a child: read a bundle, open it, compute, and inspect it; emits what came of each.

    Args:
        emit: to the parent.
        folder: of the bundle.
        elsewhere: the folder to be in.
    """
    from rich.console import Console

    from painn_deploy.runtime import PaiNNCalculator
    from painn_deploy.scripts.commands.inspection import print_bundle

    os.chdir(elsewhere)

    def read() -> str:
        bundle = read_bundle(folder)
        for name in bundle.manifest.files:
            bundle.file(name)
        return "read"

    def computed() -> str:
        structures = [molecule("CH3CH2OH"), molecule("H2O"), box_of("H2O", 2, 3.1, np.random.default_rng(7))]
        digest = hashlib.sha256()
        with PaiNNCalculator(folder, threads=1) as calculator:
            calculator.calculate(structures[0])
            for results in (calculator.results, *calculator.calculate_batch(structures)):
                digest.update(
                    np.float64(results["energy"]).tobytes() + np.ascontiguousarray(results["forces"]).tobytes()
                )
        return digest.hexdigest()

    def inspected() -> str:
        print_bundle(folder, Console(file=io.StringIO(), width=120))
        return "inspected"

    for name, step in (("read", read), ("computed", computed), ("inspected", inspected)):
        try:
            emit({name: step()})
        except EngineUnavailableError as error:
            emit({name: f"unavailable: {type(error).__name__}"})
        except PaiNNDeployError as error:
            emit({name: {"refused": type(error).__name__, "text": str(error)[:200]}})
        except Exception as error:  # a traceback, which the judge calls one
            emit({name: {"problem": "{error}: {text} ({where})".format(**what_failed(error))}})


def _opened(folder: Path, elsewhere: Path, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ended = in_child(answers, folder, elsewhere, seconds=seconds, gib=GIB, heard=found.update)
    return found if ended == Ended("done") else {**found, "ended": str(ended), "hung": ended.how == "hang"}


def judge(may: frozenset[str], found: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, list[str]]:
    """What became of a bundle, `refused`, `same`, `anew` or `wrong`, and what is wrong with that.

    Args:
        may: what may come of it.
        found: as `answers` emits it.
        wanted: the same of the bundle as it was.
    """
    wrong = [found["ended"]] if "ended" in found else []
    steps = {name: value for name, value in found.items() if name not in ("ended", "hung")}
    wrong += [f"{name}: {v['problem']}" for name, v in steps.items() if isinstance(v, dict) and "problem" in v]
    if wrong:
        return "wrong", wrong
    refused = [isinstance(steps[name], dict) for name in ("read", "computed")]
    came = "refused" if any(refused) else "same" if steps["computed"] == wanted["computed"] else "anew"
    if came == "same" and "same" not in may:
        return "wrong", ["it was accepted"]
    if came == "anew" and "anew" not in may:
        return "wrong", ["it was accepted, and its answers are others"]
    return came, []


def _warm(engine: str) -> None:
    """Import what every child would, and open nothing."""
    import onnx  # noqa: F401
    import torch

    torch.set_num_threads(1)
    import painn_deploy.runtime.calculator
    import painn_deploy.scripts.commands.inspection  # noqa: F401
    from painn_deploy.engines import get_backend

    with suppress(EngineUnavailableError):
        get_backend(engine).version()
    if engine == "inductor":
        import torch._inductor.package


def run(job: Job) -> Outcome:
    """Alter, open, judge; the record has a line for each."""
    _warm(job.stage.engine)
    total, seed, engine = job.stage.size, job.options.seed, job.stage.engine
    wanted = job.record.part("unaltered", lambda: _opened(job.bundle, job.work, PATIENT))
    if any(isinstance(value, dict) for value in wanted.values()) or "ended" in wanted:
        return Outcome({}, [f"the bundle as it was: {wanted}"])
    done = {line["number"]: line for line in job.record.lines("bundles")}
    hung = sum(bool(line["found"].get("hung")) for line in done.values())
    for number in range(total):
        if number in done:
            continue
        room = job.work / f"{number}"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        folder = room / job.bundle.name
        shutil.copytree(job.bundle, folder)
        altered(seed, number, engine).apply(folder)
        found = _opened(folder, room, LIMIT)
        if found.get("hung") and hung < SECOND_LOOKS:  # perhaps the machine was busy
            found = _opened(folder, room, PATIENT)
        hung += bool(found.get("hung"))
        done[number] = {"number": number, "found": found}
        job.record.append("bundles", done[number])
        shutil.rmtree(room, ignore_errors=True)
        job.progress(number + 1, total, "bundles")
    return _summed([done[number] for number in range(total)], seed, engine, wanted)


def _summed(lines: list[dict[str, Any]], seed: int, engine: str, wanted: dict[str, Any]) -> Outcome:
    counts, kinds, findings = Counter[str](), dict[str, Counter[str]](), Findings()
    for line in lines:
        one = altered(seed, line["number"], engine)
        came, wrong = judge(one.may, line["found"], wanted)
        group = "hashed anew" if one.renewed else "not hashed anew"
        counts[f"{group}: {came}"] += 1
        kinds.setdefault(f"{group}: {one.kind}", Counter())[came] += 1
        if wrong:
            findings.add(one.kind, f"{group}: {one.kind} (seed {seed}, number {line['number']}): {'; '.join(wrong)}")
    figures = {
        "bundles": len(lines),
        "counts": dict(counts),
        "kinds": {name: dict(found) for name, found in kinds.items()},
        "wrong": findings.counts.total(),
    }
    return Outcome(figures, findings.failures())
