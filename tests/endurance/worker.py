"""The process that runs one stage; `python -m tests.endurance` begins it."""

import json
import os
import shutil
import sys
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from .child import end_with_parent
from .plan import Options, Stage
from .record import DONE, FAILED, Job, StageRecord

__all__ = ["main"]


def main(given: dict[str, Any]) -> int:
    """Run a stage, or go on with it; the exit status is 1 where it failed."""
    end_with_parent()
    options, stage, folder = Options(**given["options"]), Stage(**given["stage"]), Path(given["folder"])
    os.environ["PAINN_DEPLOY_CACHE"] = str(folder / "work" / stage.name / "cache")
    record, work, began = StageRecord(folder / "stages" / stage.name), folder / "work" / stage.name, time.monotonic()

    def tell(line: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - began:6.0f} s] {stage.name}: {line}\n")
        sys.stdout.flush()

    if record.begin(given["identity"]):
        shutil.rmtree(work, ignore_errors=True)  # of another run
    work.mkdir(parents=True, exist_ok=True)
    job = Job(options, stage, Path(given["bundle"]), record, work, tell)
    tell("begins")
    figures: dict[str, Any] = {}
    try:
        outcome = import_module(f".stages.{stage.kind}", __package__).run(job)
        figures, failures = outcome.figures, outcome.failures
    except Exception as error:  # whatever ends a stage is its reason
        failures = [f"{type(error).__name__}: {error}"]
        tell(traceback.format_exc())
    state = FAILED if failures else DONE
    seconds = round(record.state.get("spent", 0.0) + time.monotonic() - job.spent_until, 1)
    record.set(state, given["identity"], seconds=seconds, stage=asdict(stage), figures=figures, failures=failures)
    shutil.rmtree(work, ignore_errors=True)
    tell(f"{state} after {seconds:.0f} s" + "".join(f"\n    {line}" for line in failures[:20]))
    return int(state == FAILED)


if __name__ == "__main__":
    status = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    os._exit(status)  # a library's threads must not keep the process
