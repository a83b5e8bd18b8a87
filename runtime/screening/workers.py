"""Chunks computed by processes on Ray Data: on this machine, or on a cluster that sees the same files.

A worker that is killed is started again and its chunk computed again; the parts are written by the process that asked
for them, so that nothing is lost and nothing is there twice.
"""

import json
import logging
import os
import resource
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from painn_deploy.export.errors import EngineError, PaiNNDeployError
from painn_deploy.runtime.pairs import compiled
from painn_deploy.runtime.screening.bulk.screener import Job, Screener
from painn_deploy.runtime.screening.folder import Part
from painn_deploy.runtime.screening.remarks import remarks_from
from painn_deploy.runtime.screening.sources import Chunk

__all__ = ["parts_from_workers"]

ATTEMPTS = 3
"""At a chunk that ends its worker each time, before the run is given up; Ray itself would go on for ever."""

WAVE = 2000
"""Chunks that Ray is given at a time: each is a block of its own, and Ray's bookkeeping grows with their number."""


class Worker:
    """An open engine, which Ray keeps in each process."""

    def __init__(self, job: Job, folder: str, memory: float | None) -> None:
        self._screener, self._folder, self._memory = Screener(job, threads=1), Path(folder), memory
        if memory is not None:
            if (loops := compiled.loops()) is not None:
                loops.load()
            # beyond what Ray and the engine have by now: Ray's threads hang where they themselves get none
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
            limit = pages * resource.getpagesize() + int(memory * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """The part of one chunk; an error comes back as words, since Ray would bury it under its own."""
        chunk = Chunk(**{name: int(values[0]) for name, values in rows.items()})
        part, told = Part(chunk.number, b"", []), ""
        try:
            self._attempt(chunk)
            part = self._screener.compute(chunk)
        except (PaiNNDeployError, MemoryError) as error:
            last = chunk.first + chunk.count - 1
            told = f"A worker failed on rows {chunk.first} to {last}: {str(error) or 'it is out of memory'}"
        failures = [{"index": index, "reason": reason} for index, reason in part.failures]
        return {
            "number": [part.number],
            "content": [part.content],
            "failures": [failures],
            "remarks": [json.dumps(part.remarks)],
            "error": [told],
        }

    def _attempt(self, chunk: Chunk) -> None:
        """Leave a trace of having begun, which outlives this process, and give up where there are too many."""
        trace = self._folder / f"attempts-{chunk.number:08d}"
        before = trace.stat().st_size if trace.exists() else 0
        if before >= ATTEMPTS:
            limit = f"; each may have {self._memory:g} GiB" if self._memory is not None else ""
            raise EngineError(
                f"{before} workers were killed at it, most likely for too little memory{limit}. What is done is kept: "
                "go on with --resume, and fewer workers, more memory, or none of either."
            )
        with trace.open("ab") as file:
            file.write(b".")


def parts_from_workers(
    job: Job,
    chunks: Sequence[Chunk],
    *,
    folder: Path,
    workers: int,
    address: str | None = None,
    memory: float | None = None,
) -> Iterator[Part]:
    """The parts of chunks, as they are done, in any order.

    Args:
        job: what the workers must know.
        chunks: to compute.
        folder: where attempts at a chunk are noted; removed by the caller.
        workers: processes, each with a CPU of its own and, where the cluster has GPUs, a GPU.
        address: of a cluster; None starts Ray on this machine for as long as it is needed.
        memory: GiB that a worker may take for its structures; Linux only.

    Raises:
        EngineError: workers could not be started, failed, or died again and again.
        ImportError: Ray is not installed; the message names the extra.
    """
    ray = _started(workers, address)
    try:
        for start in range(0, len(chunks), WAVE):
            yield from _wave(ray, job, chunks[start : start + WAVE], folder, workers, memory)
    finally:
        ray.shutdown()


def _started(workers: int, address: str | None) -> Any:
    # Ray's own switches: no report to its makers, no rewriting of how this process was started
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ImportError('Workers need Ray: pip install "painn-deploy[screen]"', name=error.name) from error
    # reading needs a logical CPU beyond the workers', or it starves
    # a cluster that happens to run here is not joined unless it is named
    own: dict[str, Any] = {"address": address or "local"}
    if address is None:
        own |= {"num_cpus": workers + 1, "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # its errors share no base class but this one
        where = f"at {address}" if address else "here"
        raise EngineError(f"Ray could not be started {where}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def _wave(
    ray: Any, job: Job, chunks: Sequence[Chunk], folder: Path, workers: int, memory: float | None
) -> Iterator[Part]:
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0 and job.device != "cpu"
    items = ray.data.from_items([asdict(chunk) for chunk in chunks], override_num_blocks=len(chunks))
    done = items.map_batches(
        Worker,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(chunks)), max_tasks_in_flight_per_actor=2),
        fn_constructor_args=(job, str(folder.resolve()), memory),
        num_cpus=1,
        num_gpus=1 if on_gpu else None,
    )
    try:
        for row in done.iter_rows():
            if row["error"]:
                raise EngineError(row["error"])
            failures = [(int(one["index"]), str(one["reason"])) for one in row["failures"]]
            yield Part(int(row["number"]), row["content"], failures, remarks_from(json.loads(row["remarks"])))
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"Ray could not go on: {str(error).strip().splitlines()[-1]} What is done is kept: go on with --resume."
        ) from error
