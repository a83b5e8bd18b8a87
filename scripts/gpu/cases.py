"""What the staged job computes: batches of molecules and boxes of water, with a student's results in float64."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from jaxtyping import Float64

from painn_deploy.calibration.structures import aspirin
from painn_deploy.engines.contract import padded
from painn_deploy.engines.gpu.lane import SLOT_STEP
from painn_deploy.export.fields import GraphInputs
from painn_deploy.export.model.student import Student
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts.benchmarks.cases import ETHANOL, box_of_water
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, Edges, edges_of

__all__ = ["HUGE", "SIGMA", "Case", "Pace", "Request", "first_requests", "made_cases", "size_requests"]

SETS = 4
"""Sets of positions of a case, taken in turn: a result that is remembered is no time."""

SIGMA = 0.02
"""Å, that every atom is moved by in every direction."""

HUGE = 20_000
"""Atoms of one structure from which on the host's search takes seconds, and is left out where it can be."""

AT_ONCE = 1024
"""Structures of a batch that are computed together in float64, which takes twice the memory that is timed."""


@dataclass(frozen=True)
class Pace:
    """How long is measured.

    Attributes:
        calls: of one figure at most.
        seconds: of one figure at most.
        warm_up: calls before those.
        least: calls of one figure, however long they take.
    """

    calls: int
    seconds: float
    warm_up: int = 3
    least: int = 3


@dataclass(frozen=True)
class Request:
    """A case that is asked for.

    Attributes:
        name: of the case.
        structures: that it is of; their elements decide whether a student knows it.
        repeats: times that a lone structure is repeated along each axis once its atoms were moved, so that results in
            float64 are those of the small one, repeated.
        sets: of positions.
        pace: of its figures; None for that of all.
    """

    name: str
    structures: tuple[Atoms, ...]
    repeats: tuple[int, int, int] = (1, 1, 1)
    sets: int = SETS
    pace: Pace | None = None


@dataclass(frozen=True)
class Case:
    """Structures that are evaluated together, several times over with different positions.

    Attributes:
        name: such as `64 ethanols`.
        structures: of each set.
        inputs: of each set, all of one shape.
        edges: the same as a list of edges in float32.
        energies: of each set, eV of each structure in float64, without atomic references.
        forces: of each set, eV/Å in float64.
        pace: of its figures; None for that of all.
    """

    name: str
    structures: list[list[Atoms]]
    inputs: list[GraphInputs]
    edges: list[Edges]
    energies: list[np.ndarray]
    forces: list[np.ndarray]
    pace: Pace | None = None

    @property
    def lone(self) -> Atoms | None:
        """The first set's structure where a set has one; None where it has several."""
        first = self.structures[0]
        return first[0] if len(first) == 1 else None

    @property
    def huge(self) -> bool:
        """Whether it is one structure whose neighbours the host looks for in seconds."""
        return self.lone is not None and len(self.lone) > HUGE

    def as_dict(self) -> dict[str, Any]:
        """Its size, as JSON."""
        return {
            "matrix": list(self.inputs[0].mask.shape),
            "edges": len(self.edges[0].centre),
            "structures": len(self.structures[0]),
            "sets": len(self.structures),
        }


def first_requests(*, quick: bool) -> list[Request]:
    """Cases of the first stage.

    Args:
        quick: small ones alone.
    """
    counts = (1, 8) if quick else (1, 64, 1024)
    asked = [_ethanols(count) for count in counts]
    return asked if quick else [*asked, Request("1536 atoms of water", (box_of_water() * (2, 2, 2),))]


def size_requests(*, quick: bool) -> list[Request]:
    """Cases of the stages of sizes, the largest last.

    Args:
        quick: small ones alone, among them one that is repeated.
    """
    water, box = molecule("H2O"), box_of_water()
    if quick:
        twice = Request("384 atoms of water", (box,), (2, 1, 1), sets=1, pace=Pace(2, 1.0, warm_up=1, least=1))
        return [Request("1 water", (water,)), _ethanols(2), twice]
    asked = [
        Request("1 water", (water,)),
        Request("1 benzene", (molecule("C6H6"),)),
        Request("1 aspirin", (aspirin(),)),
    ]
    asked += [*map(_ethanols, (16, 256, 4096)), Request("192 atoms of water", (box,))]
    liquid = box * (2, 2, 2)
    large, huge = Pace(20, 1.5, warm_up=2), Pace(5, 1.5, warm_up=1, least=1)
    asked.append(Request("12288 atoms of water", (liquid,), (2, 2, 2), sets=2, pace=large))
    return [*asked, Request("98304 atoms of water", (liquid,), (4, 4, 4), sets=1, pace=huge)]


def _ethanols(count: int) -> Request:
    return Request(f"{count} ethanol{'s' if count > 1 else ''}", (molecule(ETHANOL),) * count)


def made_cases(student: Student, device: str, requests: Iterable[Request]) -> dict[str, Case]:
    """The cases that a student is good for, with its results in float64, by eager autograd on the device.

    Args:
        student: in float64.
        device: that the references are computed on.
        requests: the cases; those with elements that the student does not know are left out.
    """
    model = EagerModel(copy.deepcopy(student)).to(device)  # a module moves in place
    cases, rng = {}, np.random.default_rng(0)
    for asked in requests:
        if not {int(z) for atoms in asked.structures for z in atoms.numbers} <= set(student.species):
            continue
        cases[asked.name] = _made(model, student.configuration.cutoff, device, asked, rng)
    return cases


def _made(model: EagerModel, cutoff: float, device: str, asked: Request, rng: np.random.Generator) -> Case:
    small = [[_moved(atoms, rng) for atoms in asked.structures] for _ in range(asked.sets)]
    results = [_exact(model, one, cutoff, device) for one in small]
    moved, copies = small, int(np.prod(asked.repeats))
    if copies > 1:  # as ASE repeats a structure: copy after copy, each in the order of its atoms
        moved = [[atoms * asked.repeats for atoms in one] for one in small]
        results = [(copies * energies, np.tile(forces, (copies, 1))) for energies, forces in results]
    inputs = [graph_inputs(one, cutoff, slot_step=SLOT_STEP) for one in moved]
    widest = max(one.mask.shape[1] for one in inputs)
    inputs = [padded(one, len(one.mask), widest) for one in inputs]  # one shape, so that one CUDA graph serves all
    edges = [edges_of(one, cutoff) for one in moved]
    energies, forces = (list(column) for column in zip(*results, strict=True))
    return Case(asked.name, moved, inputs, edges, energies, forces, asked.pace)


def _exact(
    model: EagerModel, structures: list[Atoms], cutoff: float, device: str
) -> tuple[Float64[np.ndarray, " structures"], Float64[np.ndarray, "atoms 3"]]:
    """Energies and forces in float64."""
    found = []
    for start in range(0, len(structures), AT_ONCE):
        edges = edges_of(structures[start : start + AT_ONCE], cutoff, torch.float64).to(device)
        found.append([values.cpu().numpy() for values in model(edges)])
    energies, forces = (np.concatenate(column) for column in zip(*found, strict=True))
    return energies, forces


def _moved(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = atoms.copy()
    moved.positions += rng.normal(0, SIGMA, moved.positions.shape)
    return moved
