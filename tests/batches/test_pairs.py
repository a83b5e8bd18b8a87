"""Pairs of many structures at once are those of each alone, to the bit and in the same order."""

from collections.abc import Iterator

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from painn_deploy.export.errors import StructureError
from painn_deploy.runtime.batches.frames import Faults, Frames
from painn_deploy.runtime.batches.pairs import PairLists
from painn_deploy.runtime.matrix import LocalGraph, graph_inputs, join
from painn_deploy.runtime.pairs import compiled
from painn_deploy.runtime.structures import check_structure
from tests import students

CUTOFF = 4.0

pytestmark = pytest.mark.usefixtures("both_ways")


def random_structure(rng: np.random.Generator) -> Atoms:
    """A molecule, a cell of any shape and any mix of directions, or what most are not: long, flat, large, far away."""
    atoms = int(rng.choice([1, 2, 3, 9, 20, 47, 48, 49, 60], p=[0.1, 0.1, 0.15, 0.25, 0.15, 0.05, 0.05, 0.05, 0.1]))
    side = 1.3 * atoms ** (1 / 3) + 1.0
    grid = np.stack(np.meshgrid(*[np.arange(4) * 1.3] * 3), -1).reshape(-1, 3)
    positions = grid[rng.permutation(64)[:atoms]] + rng.normal(0, 0.12, (atoms, 3))
    kind = rng.random()
    if kind < 0.5:
        scale = rng.choice([1.0, 1.0, 1.0, 3.0, 300.0])
        cell = np.zeros((3, 3)) if rng.random() < 0.8 else np.eye(3) * (30 + 5 * scale)
        return Atoms([6] * atoms, positions * scale, cell=cell)
    edges = rng.uniform(0.9, 2.0, 3) * max(side, 2.0)
    if atoms > 20:
        edges = np.maximum(edges, 5.3)
    cell = np.diag(edges) + np.tril(rng.normal(0, 0.6, (3, 3)), -1)
    pbc = [True] * 3 if rng.random() < 0.6 else rng.random(3) < 0.5
    moved = rng.integers(-2, 3, (atoms, 3)) @ cell if rng.random() < 0.3 else 0.0
    return Atoms([6] * atoms, positions + moved, cell=cell, pbc=pbc)


def sound(structures: Iterator[Atoms], cutoff: float, count: int) -> list[Atoms]:
    kept: list[Atoms] = []
    for atoms in structures:
        try:
            LocalGraph.of(check_structure(atoms), cutoff)
        except StructureError:
            continue
        kept.append(atoms)
        if len(kept) == count:
            break
    return kept


@pytest.mark.slow
def test_two_thousand_random_molecules_and_cells_are_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    structures = sound((random_structure(rng) for _ in range(10**6)), CUTOFF, 2000)
    assert sum(atoms.pbc.any() for atoms in structures) > 600
    faults = Faults()
    frames = Frames.of(structures, faults)
    lists = PairLists.of(frames, CUTOFF, faults)
    assert not faults
    graphs = [LocalGraph.of(check_structure(atoms), CUTOFF) for atoms in structures]
    for index, graph in enumerate(graphs):
        own = slice(int(lists.offsets[index]), int(lists.offsets[index + 1]))
        assert np.array_equal(lists.first[own], graph.pairs.first), structures[index]
        assert np.array_equal(lists.second[own], graph.pairs.second)
        assert np.array_equal(lists.vectors[own], graph.vectors)
        assert lists.slots[index] == graph.slots
    for dtype, step in ((np.float32, 1), (np.float64, 8)):
        for chosen in (np.arange(40), rng.permutation(2000)[:60]):
            packed = lists.packed(frames, chosen, np.dtype(dtype), step)
            wanted = join([graphs[index] for index in chosen], dtype, step)
            for one, other in zip(packed, wanted, strict=True):
                assert one.dtype == other.dtype
                assert np.array_equal(one, other)


def test_compiled_loops_and_array_code_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, both_ways: str) -> None:
    if both_ways != "compiled loops":
        return
    rng = np.random.default_rng(1)
    structures = sound((random_structure(rng) for _ in range(10**6)), CUTOFF, 200)
    once = [graph_inputs([atoms], CUTOFF) for atoms in structures]
    together = graph_inputs(structures, CUTOFF, np.float64)
    monkeypatch.setattr(compiled, "loops", lambda: None)
    again = [graph_inputs([atoms], CUTOFF) for atoms in structures]
    for atoms, one, other in zip(structures, once, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)), atoms
    for a, b in zip(together, graph_inputs(structures, CUTOFF, np.float64), strict=True):
        assert np.array_equal(a, b)


def test_a_structure_without_pairs_and_none_at_all() -> None:
    for structures in ([], [Atoms("H")], [Atoms("H"), Atoms("H2", [[0, 0, 0], [0, 0, 9.0]])]):
        frames = Frames.of(structures, {})
        lists = PairLists.of(frames, CUTOFF, {})
        assert lists.offsets.tolist() == [0] * (len(structures) + 1)
        assert lists.slots.tolist() == [1] * len(structures)


def test_faults_are_named_and_leave_the_rest_alone() -> None:
    zoo = list(students.zoo().values())
    structures = [molecule("H2O"), Atoms("COO", [[0, 0, 0], [0, 0, 1.2], [0, 0, 1.2]]), *zoo]
    structures.insert(1, Atoms("H2", [[0, 0, 0], [0, 0, 3.0]], cell=[3, 3, 3], pbc=True))  # on its own image
    faults = Faults()
    frames = Frames.of(structures, faults)
    lists = PairLists.of(frames, CUTOFF, faults)
    assert sorted(faults) == [1, 2]
    assert "Atoms 1 (O) and 2 (O) are on one spot" in str(faults[2])
    assert "are on one spot" in str(faults[1])
    chosen = np.array([0, *range(3, len(structures))])
    packed = lists.packed(frames, chosen, np.dtype(np.float32), 1)
    for one, other in zip(packed, graph_inputs([structures[i] for i in chosen], CUTOFF), strict=True):
        assert np.array_equal(one, other)
