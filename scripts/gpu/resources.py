"""Memory that a case takes of a GPU, and the least time that it can take; cases that a GPU has no room for."""

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from painn_deploy.engines import get_backend
from painn_deploy.engines.gpu.cuda import call, on_device, runtime
from painn_deploy.engines.inductor.matmul_precision import matmul_precision
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.engines.session import CudaGraphs
from painn_deploy.export.errors import DeviceMemoryError, ShapeError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.scripts.gpu.cases import Case
from painn_deploy.scripts.gpu.plan import LAUNCHED, REPLAYED, Figures
from painn_deploy.scripts.gpu.record import Unavailable
from painn_deploy.scripts.profiling.costs import count
from painn_deploy.scripts.profiling.roofline import Peaks, measured_peaks, roof

__all__ = ["RECORDED", "Sized", "floor_figures", "memory_figures", "memory_of", "peaks_of", "used_bytes"]

MOST_WORDS = 300
"""Characters of a reason that are kept; torch adds a paragraph of advice."""

RECORDED = 3
"""Times that a size comes until a session has recorded it as a CUDA graph, where it records."""


class Sized:
    """Keeps figures of one case. Where a device has no room for it, they are absent, which is no failure.

    Args:
        keep: keeps a figure.
    """

    def __init__(self, keep: Figures) -> None:
        self._keep, self._reason = keep, ""

    def __call__(self, name: str, measure: Callable[[], Any], *, decides: bool = False) -> None:
        """Keep a figure.

        Args:
            name: of the figure.
            measure: gives it.
            decides: whether nothing more of this case is tried where there is no room for this.
        """

        def tried() -> Any:
            if self._reason:
                raise Unavailable(self._reason)
            try:
                return measure()
            except (torch.OutOfMemoryError, DeviceMemoryError, ShapeError) as error:
                reason = str(error)[:MOST_WORDS]
            _free()  # after the error, whose traceback holds tensors
            self._reason = reason if decides else ""
            raise Unavailable(reason)

        self._keep(name, tried)


def _free() -> None:
    """Give back what torch keeps of the GPU and nobody uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def used_bytes(device: str) -> int:
    """Bytes that are taken: of the GPU, by whomever, or of the host by this process."""
    if device == "cpu":
        status = Path("/proc/self/statm")
        if not status.is_file():
            raise Unavailable("This system does not say how much memory a process has.")
        return int(status.read_text().split()[1]) * 4096
    with on_device(runtime(), int(device.partition(":")[2] or 0)):
        free, total = call(runtime().cudaMemGetInfo)
    return int(total - free)


def memory_of(device: str, work: Callable[[], object]) -> dict[str, int]:
    """Bytes of a GPU that some work in torch takes, with what torch then keeps for the next.

    Args:
        device: a GPU.
        work: done once.

    Raises:
        Unavailable: there is no GPU.
    """
    if device == "cpu":
        raise Unavailable("It is of a GPU's memory.")
    _free()
    before = used_bytes(device)
    work()
    return {"bytes": used_bytes(device) - before}


def memory_figures(keep: Figures, bundle: Path, device: str, cases: Mapping[str, Case]) -> None:
    """Bytes of the GPU that a session of its own takes for each case, with CUDA graphs where it has them by default.

    What the process has once for all of its sessions, such as the driver's context, is not among them.

    Args:
        keep: keeps a figure.
        bundle: that holds the engine.
        device: that it runs on.
        cases: by name.
    """
    for case in cases.values():

        def measure(case: Case = case) -> dict[str, Any]:
            if device == "cpu":
                raise Unavailable("It is of a GPU's memory.")
            _free()
            before = used_bytes(device)
            with PaiNNCalculator(bundle, device=device) as calculator:
                session = calculator.session
                for _ in range(RECORDED):
                    session.run(case.inputs[0])
                graphs = isinstance(session, CudaGraphs) and session.cuda_graphs
                return {"bytes": used_bytes(device) - before, "CUDA graphs": graphs}

        Sized(keep)(f"{case.name}: memory", measure)


def peaks_of(device: str, precision: str) -> Peaks:
    """The machine's bandwidth, and its multiply-adds in one precision of the job, measured now.

    Args:
        device: `cpu`, or a GPU.
        precision: such as `fp32`; `tf32` is products of FP32 that a GPU rounds.

    Raises:
        Unavailable: the device has no such products.
    """
    if precision != "tf32":
        return measured_peaks(device, (precision,))
    if device == "cpu":
        raise Unavailable("A CPU has no TF32.")
    with matmul_precision(torch, tf32=True):
        found = measured_peaks(device, ("fp32",))
    return Peaks(found.bytes_per_second, {"tf32": found.multiply_adds_per_second["fp32"]})


def floor_figures(
    keep: Figures,
    bundle: Path,
    precision: str,
    cases: Mapping[str, Case],
    peaks: Callable[[], Peaks],
    known: Callable[[str], Any],
) -> None:
    """The least time of each case at the machine's peaks, and the share of it that was reached.

    Args:
        keep: keeps a figure.
        bundle: that holds the engine.
        precision: of the job, by which `peaks` are named.
        cases: by name.
        peaks: gives those of the machine.
        known: gives a figure of this engine by its name, or None.
    """
    for case in cases.values():

        def measure(case: Case = case) -> dict[str, Any]:
            opened, inputs = read_bundle(bundle), case.inputs[0]
            atoms, slots = inputs.mask.shape
            graph = get_backend(opened.manifest.engine).executed_graph(opened, atoms, slots)
            cost = count(graph, atoms, slots, len(pair_inputs(inputs.reverse).pairs))
            least, spent = roof(cost, peaks(), precision), known(f"{case.name}: {REPLAYED}")
            spent = spent if isinstance(spent, float) else known(f"{case.name}: {LAUNCHED}")
            return {
                "multiply_adds": cost.multiply_adds,
                "bytes_least": cost.bytes_least,
                "ms": least.milliseconds,
                "bound": least.bound,
                "share": least.milliseconds / spent if isinstance(spent, float) else None,
            }

        keep(f"{case.name}: floor", measure)
