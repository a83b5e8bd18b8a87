"""Structures and students for the fused kernel, and what a student gives in float64."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from painn_deploy.calibration.structures import aspirin
from painn_deploy.engines.fused.host import Library
from painn_deploy.engines.fused.host_session import ROWS_A_THREAD, FusedHostSession
from painn_deploy.engines.fused.weights import pack
from painn_deploy.engines.session import EngineInfo
from painn_deploy.export.fields import GraphInputs, GraphOutputs, outputs_of
from painn_deploy.export.model.force_head import autograd_forces, tensors
from painn_deploy.export.model.painn import PaiNN
from painn_deploy.export.model.student import Configuration, Student
from painn_deploy.runtime.matrix import graph_inputs
from tests import students

INFO = EngineInfo(backend="fused", version="1", device="cpu", precision="fp32", bundle_sha256="")


def mixture() -> list[Atoms]:
    ring, spirit, water = molecule("C6H6"), molecule("CH3CH2OH"), molecule("H2O")
    kinds = [spirit, water, Atoms("O"), aspirin(), water, spirit, ring, Atoms("H"), Atoms("C"), ring, spirit]
    return [students.perturbed(atoms, seed, 0.08) for seed, atoms in enumerate(kinds)]


def crowd() -> list[Atoms]:
    """A cluster that threads share, in which everything interacts with something."""
    rng = np.random.default_rng(0)
    water = molecule("H2O")
    atoms = Atoms()
    for place in np.ndindex(3, 3, 3):
        one = water.copy()
        one.rotate(float(rng.uniform(0, 360)), rng.normal(size=3))
        one.positions += 3.0 * np.array(place)
        atoms += one
    assert len(atoms) > 4 * ROWS_A_THREAD
    return [atoms]


def matrix(batch: Sequence[Atoms], student: Student) -> GraphInputs:
    return graph_inputs(batch, student.configuration.cutoff)


def check(student: Student, batch: Sequence[Atoms], got: GraphOutputs, weights: np.ndarray | None = None) -> None:
    """Hold results against a student in float64."""
    inputs = graph_inputs(batch, student.configuration.cutoff, np.float64)
    inputs = inputs if weights is None else inputs._replace(weights=weights.astype(np.float64))
    want = autograd_forces(student, tensors(inputs, torch.float64))
    scale = max(1.0, float(want.forces.abs().max()) / 10)
    # PyTorch in float32 is off by 2e-6 eV and 1e-5 eV/Å on these: some units in the last place of energies of 6 eV
    for one, other, tolerance in zip(got, want, (1e-6, 2e-5, 4e-5), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=5e-7, atol=scale * tolerance)


def parts(batch: Sequence[Atoms], got: GraphOutputs) -> Iterator[list[np.ndarray]]:
    """What each structure of a batch got."""
    start = 0
    for atoms in batch:
        yield [array[start : start + len(atoms)] for array in got]
        start += len(atoms)


def same_bits(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(ones, others, strict=True))


def opened(library: Library, student: Student, threads: int | None = 1) -> FusedHostSession:
    return FusedHostSession(library, pack(student), threads, INFO, outputs_of(student.axes))


def variant(**changes: object) -> Configuration:
    values = {"architecture": "painn", "hidden_dim": 16, "num_interactions": 2, "num_rbf": 5, "cutoff": 4.0}
    return Configuration(**{**values, **changes})


def made(configuration: Configuration, seed: int = 0, **arguments: object) -> PaiNN:
    torch.manual_seed(seed)
    student = PaiNN(configuration, 10, **arguments).double().requires_grad_(False)
    if student.energy_scales is not None:
        student.energy_scales.uniform_(0.5, 1.5)
    return student
