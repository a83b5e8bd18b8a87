"""The kernel that evaluates whole molecules, compiled by g++, against the student in float64."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from painn_deploy.calibration.structures import aspirin
from painn_deploy.engines.fused.plan import MOST_ATOMS, Packed, Plan, groups_of
from painn_deploy.engines.fused.weights import pack
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import EngineError, ShapeError
from painn_deploy.export.model.distiller import Distiller
from painn_deploy.export.model.force_head import autograd_forces
from painn_deploy.export.model.painn import BesselBasis, PaiNN
from painn_deploy.export.model.student import Configuration, NeighbourGraph, Student
from tests.engines.fused.host_molecules import Result, evaluate

CUTOFF = 5.0


@pytest.fixture(scope="module")
def base() -> Student:
    return load_student("student:base", dtype=torch.float64)


@pytest.fixture(scope="module")
def packed(base: Student) -> Packed:
    return pack(base)


def shaken(atoms: Atoms, seed: int, sigma: float = 0.08) -> Atoms:
    moved = atoms.copy()
    moved.positions += np.random.default_rng(seed).normal(size=(len(atoms), 3)) * sigma
    return moved


def graph_of(atoms: Atoms, cutoff: float) -> NeighbourGraph:
    """Every pair of a molecule in the contract's matrix, in float64."""
    n = len(atoms)
    slots = max(n - 1, 1)
    displacements, mask = np.zeros((n, slots, 3)), np.zeros((n, slots))
    neighbours = np.repeat(np.arange(n)[:, None], slots, 1)
    reverse = np.arange(n * slots).reshape(n, slots)
    for i in range(n):
        for k, j in enumerate(j for j in range(n) if j != i):
            displacements[i, k] = atoms.positions[j] - atoms.positions[i]
            neighbours[i, k], reverse[i, k] = j, j * slots + (i if i < j else i - 1)
            mask[i, k] = np.linalg.norm(displacements[i, k]) < cutoff
    arrays = atoms.numbers, displacements, neighbours, reverse, mask, np.ones(n)
    return NeighbourGraph(*(torch.as_tensor(array) for array in arrays))


def run(plan: Plan, batch: Sequence[Atoms], blocks: int = 2, threads: bool = False) -> list[Result]:
    starts = np.cumsum([0, *(len(atoms) for atoms in batch)])
    numbers = np.concatenate([atoms.numbers for atoms in batch])
    positions = np.concatenate([atoms.positions for atoms in batch])
    whole = evaluate(plan, numbers, positions, starts[:-1], blocks, threads)
    return [Result(*(array[a:b] for array in whole)) for a, b in pairwise(starts)]


def check(student: Student, atoms: Atoms, found: Result, cutoff: float = CUTOFF) -> None:
    expected = autograd_forces(student, graph_of(atoms, cutoff))
    np.testing.assert_allclose(found.energies, expected.atomic_energies, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.virials, expected.virials, rtol=0, atol=2e-5)
    apart = atoms.get_all_distances() + np.diag(np.full(len(atoms), np.inf))
    np.testing.assert_allclose(found.nearest, apart.min(1), rtol=1e-12)


def mixture() -> list[Atoms]:
    ring, spirit, water = molecule("C6H6"), molecule("CH3CH2OH"), molecule("H2O")
    kinds = [spirit, water, Atoms("O"), aspirin(), water, spirit, ring, Atoms("H"), Atoms("C"), ring, spirit]
    return [shaken(atoms, seed) for seed, atoms in enumerate(kinds)]


def test_a_batch_of_all_sizes_has_the_results_of_the_student_in_float64(base: Student, packed: Packed) -> None:
    batch = mixture()
    for atoms, found in zip(batch, run(Plan.suited(packed, CUTOFF, 21), batch, blocks=3), strict=True):
        check(base, atoms, found)


def test_a_molecule_has_the_same_bits_alone_and_anywhere_in_a_batch(packed: Packed) -> None:
    plan, batch = Plan.suited(packed, CUTOFF, 21), mixture()
    together = run(plan, batch)
    assert len(groups_of(np.array([0, 9, 18, 21]), 24, plan.rows)) == 3
    for atoms, found in zip(batch, together, strict=True):
        (alone,) = run(plan, [atoms], blocks=1)
        assert all(np.array_equal(one, other) for one, other in zip(alone, found, strict=True))
    backwards = run(plan, batch[::-1], blocks=1)[::-1]
    for one, other in zip(together, backwards, strict=True):
        assert all(np.array_equal(first, second) for first, second in zip(one, other, strict=True))


@pytest.mark.parametrize("spilled", [False, True])
def test_threads_of_a_block_wait_for_each_other(packed: Packed, spilled: bool) -> None:
    plan, batch = Plan(packed, CUTOFF, 9, 12, 6, spilled=spilled), [a for a in mixture() if len(a) < 10]
    for one, other in zip(run(plan, batch), run(plan, batch, threads=True), strict=True):
        assert all(np.array_equal(first, second) for first, second in zip(one, other, strict=True))


@pytest.mark.parametrize("batch", [True, False])
def test_plans_for_one_size_differ_by_rounding_alone(base: Student, packed: Packed, batch: bool) -> None:
    plan = Plan.suited(packed, CUTOFF, 9, batch=batch)
    assert plan.rows == (27 if batch else 9)
    molecules = [shaken(molecule("CH3CH2OH"), seed) for seed in range(4)]
    for atoms, found in zip(molecules, run(plan, molecules), strict=True):
        check(base, atoms, found)


def test_a_pair_at_the_cutoff_is_none(base: Student, packed: Packed) -> None:
    plan = Plan.suited(packed, CUTOFF, 3)
    apart, near, row = (Atoms(s, p) for s, p in (
        ("OH", [[0.0, 0, 0], [5.0, 0, 0]]),
        ("OH", [[0.0, 0, 0], [np.nextafter(5.0, 0), 0, 0]]),
        ("OHH", [[0.0, 0, 0], [0.9, 0.1, 0], [5.5, 0, 0.3]]),
    ))  # fmt: skip
    (alone,) = run(plan, [Atoms("O")])
    for atoms, found in zip((apart, near, row), run(plan, [apart, near, row]), strict=True):
        check(base, atoms, found)
    (found,) = run(plan, [apart])
    assert np.array_equal(found.energies[:1], alone.energies)
    assert not found.forces.any()
    assert not found.virials.any()
    assert (found.nearest == 5.0).all()
    assert np.isinf(alone.nearest).all()


def test_molecules_of_as_many_atoms_as_there_may_be(base: Student, packed: Packed) -> None:
    plan = Plan.suited(packed, CUTOFF, MOST_ATOMS)
    assert plan.spilled
    carbons = [[1.27 * i, 0.43 * (-1) ** i, 0.0] for i in range(10)]
    sides = [[x, 2.47 * y, z] for x, y, _ in carbons for z in (0.89, -0.89)]
    ends = [[-0.94, -0.1, 0.0], [12.37, 0.1, 0.0]]
    decane = Atoms("C10H22", carbons + sides + ends)
    atoms = shaken(decane, 5)
    check(base, atoms, run(plan, [atoms, Atoms("H")])[0])


def variant(**changes: object) -> Configuration:
    values = {"architecture": "painn", "hidden_dim": 16, "num_interactions": 2, "num_rbf": 5, "cutoff": 4.0}
    return Configuration(**{**values, **changes})


def made(configuration: Configuration, **arguments: object) -> PaiNN:
    torch.manual_seed(0)
    return PaiNN(configuration, 10, **arguments).double().requires_grad_(False)


@pytest.mark.parametrize(
    ("configuration", "arguments"),
    [
        (variant(), {}),
        (variant(num_interactions=1), {}),
        (variant(num_interactions=4, activation="shifted_softplus"), {}),
        (variant(epsilon=0.0), {"basis": BesselBasis(torch.arange(1, 6) * torch.pi / 4.0), "shared_filters": True}),
        (variant(hidden_dim=128, num_rbf=8), {"readout": (20,)}),
    ],
)
def test_other_students(configuration: Configuration, arguments: dict[str, object]) -> None:
    student = made(configuration, **arguments)
    molecules = [shaken(molecule(name), 3) for name in ("CH3CH2OH", "H2O")]
    plan = Plan.suited(pack(student), 4.0, 9)
    for atoms, found in zip(molecules, run(plan, molecules), strict=True):
        check(student, atoms, found, 4.0)


def test_what_is_not_computed_is_said(base: Student) -> None:
    with pytest.raises(EngineError, match="architecture painn, and this student is distiller"):
        pack(Distiller(Configuration("distiller", 16, 2, 5, 5.0)))
    refused = {
        "136 features, more than 128": made(variant(hidden_dim=136)),
        "18 features, and no multiple of 4": made(variant(hidden_dim=18)),
        "cutoff function mollifier": made(variant(cutoff_fn="mollifier")),
        "a bias in its mixing": made(variant(), mixing_bias=True),
        "2 hidden layers in its read-out": made(variant(), readout=(8, 8)),
        "a scale for each": made(variant(), scaled=True),
        "a radial table": base.with_radial_table(8, 64),
    }
    for words, student in refused.items():
        with pytest.raises(EngineError, match=words):
            pack(student)


def test_sizes_that_do_not_fit_are_refused(packed: Packed) -> None:
    with pytest.raises(ShapeError, match="molecules of up to 32 atoms, and one here has 33"):
        Plan.suited(packed, CUTOFF, 33)
    with pytest.raises(ShapeError, match="no room for a molecule of 9"):
        Plan(packed, CUTOFF, 9, 8)
    with pytest.raises(ShapeError, match="bytes of shared memory for groups of 31 atoms with 96 features"):
        Plan(packed, CUTOFF, 31, 31)
    with pytest.raises(ShapeError, match="molecule of 10 atoms does not fit into groups of 9"):
        groups_of(np.array([0, 9]), 19, 9)
