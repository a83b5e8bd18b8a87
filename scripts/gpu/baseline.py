"""PyTorch eager, and what torch.compile makes of it, on the cases of the staged job: what every ratio is to."""

import copy
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from painn_deploy.export.model.student import Student
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, edges_of
from painn_deploy.scripts.gpu.cases import Case
from painn_deploy.scripts.gpu.measure import ASE_CALL, Clock, errors, mover_of, worst
from painn_deploy.scripts.gpu.plan import LAUNCHED, Figures
from painn_deploy.scripts.gpu.resources import Sized, memory_of

__all__ = ["eager_figures"]


def eager_figures(
    keep: Figures, student: Student, cases: Mapping[str, Case], device: str, clock: Clock, *, compiled: bool
) -> None:
    """What is measured of engines, of PyTorch eager with autograd, or of what torch.compile makes of it.

    Args:
        keep: keeps a figure.
        student: in float32.
        cases: by name.
        device: `cpu` or a GPU.
        clock: for times.
        compiled: compile it first; the time of that is in a figure of its own.
    """
    model = EagerModel(copy.deepcopy(student)).to(device)
    if compiled:
        model.atomic = torch.compile(model.atomic, dynamic=True)
    for case in cases.values():
        _eager_figures(Sized(keep), model, case, device, clock.at(case.pace), student.configuration.cutoff)


def _eager_figures(keep: Sized, model: EagerModel, case: Case, device: str, clock: Clock, cutoff: float) -> None:
    sets = len(case.edges)

    def whole(i: int) -> list[np.ndarray]:
        return [tensor.cpu().numpy() for tensor in model(case.edges[i % sets].to(device))]

    def first() -> dict[str, Any]:
        began, found = time.perf_counter(), []
        for one, edges in enumerate(case.edges):
            structure = edges.structure.numpy()
            energies, forces = whole(one)
            found.append(errors(case, one, (energies / np.bincount(structure))[structure], forces))
        return worst(found) | {"seconds of the first calls": time.perf_counter() - began}

    keep(f"{case.name}: errors", first, decides=True)
    keep(f"{case.name}: engine call", lambda: clock.host(whole))
    if device != "cpu":
        keep(f"{case.name}: memory", lambda: memory_of(device, lambda: whole(0)))

        def launched() -> float:
            resident = [edges.to(device) for edges in case.edges]
            return clock.torch_device(lambda i: model(resident[i % sets]), device)

        keep(f"{case.name}: {LAUNCHED}", launched)
    if case.lone is not None:
        atoms, move = mover_of(case.lone)

        def ase_call(_: int) -> list[np.ndarray]:
            """The search for neighbours included, as a calculator of ASE has to."""
            return [tensor.cpu().numpy() for tensor in model(edges_of([atoms], cutoff).to(device))]

        keep(f"{case.name}: {ASE_CALL}", lambda: clock.host(ase_call, move))
