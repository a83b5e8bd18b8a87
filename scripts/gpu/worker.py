"""The process that runs the stages of the job on a GPU; `scripts/gpu_check.py` begins it."""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from painn_deploy.scripts.gpu.plan import Options, plan
from painn_deploy.scripts.gpu.record import ABSENT, DONE, FAILED, UNDER_WAY, Record, Unavailable

__all__ = ["AGAIN", "REFUSED"]

REFUSED, AGAIN = 2, 17
"""Exit statuses: the job cannot run at all; a stage failed, and the next one wants a process of its own."""


def main(options: Options, folder: Path, *, resume: bool, retry: bool) -> int:
    """Run what is pending; the exit status. See `Record.begin` for `resume` and `retry`."""
    began = time.perf_counter()

    def tell(line: str) -> None:
        with suppress(OSError):  # a terminal that is gone costs no figure
            sys.stdout.write(f"[{time.perf_counter() - began:6.1f} s] {line}\n")
            sys.stdout.flush()

    from painn_deploy.scripts.gpu.identity import identity

    stages = {stage.name: stage for stage in plan(options)}
    record = Record.begin(folder, identity(options), stages, resume=resume, retry=retry)
    record.tell = tell
    pending = [name for name in record.pending() if name in stages]
    if not pending:
        return 0
    from painn_deploy.scripts.gpu.stages import Job  # what is slow to import, after what refuses

    job = Job(options, record)
    for name in pending:
        stage, started = stages[name], time.time()
        record.set(name, UNDER_WAY, began=started, budget=stage.seconds)
        tell(f"{name}: begins")
        try:
            job.run(stage)
            state, reason = DONE, ""
        except Unavailable as error:
            state, reason = ABSENT, str(error)
        except Exception as error:  # whatever ends a stage is its reason
            state, reason = FAILED, str(error) or type(error).__name__
        record.set(name, state, reason, seconds=round(time.time() - started, 1))
        tell(f"{name}: {state}{f': {reason}' if reason else ''}")
        if state == FAILED and options.device != "cpu":  # an error of a GPU may stay with its process for good
            return AGAIN
    return 0


def _end_with_the_parent() -> None:
    sys.stdin.buffer.read()  # ends when the process that began this one does
    os._exit(9)


if __name__ == "__main__":
    from painn_deploy.export.errors import PaiNNDeployError

    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    given = json.loads(sys.argv[1])
    try:
        status = main(
            Options.from_mapping(given["options"]), Path(given["folder"]), resume=given["resume"], retry=given["retry"]
        )
    except PaiNNDeployError as error:
        sys.stderr.write(f"error: {error}\n")
        status = REFUSED
    os._exit(status)  # libraries of a GPU that failed may never let a process end
