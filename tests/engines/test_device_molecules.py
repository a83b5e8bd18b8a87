"""The kernel that forms every pair of molecules, compiled for the host: what it writes is the host's matrix."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms

from painn_deploy.engines.contract import padded
from painn_deploy.engines.gpu.device_molecules import (
    KERNEL,
    KERNEL_NAME,
    fill_molecules,
    molecule_columns,
    widest,
)
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.neighbours import find_pairs

from . import emulated_gpu

CUTOFF = 4.0
BATCHES = [
    [1], [2], [1, 1], [2, 2, 2], [9] * 5, [3, 1, 4, 1, 5], [1, 30, 1], [30, 2, 17], [17, 9, 9, 1, 25, 8], [5, 4, 5, 2]
]  # fmt: skip


def molecules(sizes: Sequence[int], seed: int, spread: float) -> list[Atoms]:
    """Atoms scattered over boxes, some of whose coordinates are equal to the bit: signs of zero count too."""
    rng = np.random.default_rng(seed)
    made = []
    for size in sizes:
        places = rng.choice(np.arange(0.0, 6 * 6 * 6), size, replace=False)
        points = np.stack([places // 36, places // 6 % 6, places % 6], axis=1) * spread / 5
        points[1::2] += rng.uniform(-0.05, 0.05, points[1::2].shape) * spread
        made.append(Atoms(rng.integers(1, 9, size), points))
    return made


def formed(structures: Sequence[Atoms], cutoff: float, rows: int, slots: int, order: int = 1) -> SimpleNamespace:
    """What the kernel writes, in arrays that are followed by bytes which nothing may touch."""
    numbers = np.concatenate([atoms.numbers for atoms in structures]).astype(np.int32)
    positions = np.concatenate([atoms.positions for atoms in structures])
    starts = np.cumsum([0, *[len(atoms) for atoms in structures[:-1]]])
    assert slots >= widest(starts, len(numbers))
    uploaded = {name: np.full(shape, -1, dtype) for name, shape, dtype in molecule_columns(rows)}
    fill_molecules(uploaded, numbers, positions, starts, slots)
    cells = rows * slots
    entries = cells // 2 + 1
    sizes = {
        "displacements": (3 * cells, np.float32),
        "neighbours": (cells, np.int32),
        "reverse": (cells, np.int32),
        "mask": (cells, np.float32),
        "nearest": (rows, np.float64),
        "pairs": (entries, np.int32),
        "pair_of_slot": (cells, np.int32),
    }
    guarded = {name: np.full(size + 64, 77, dtype) for name, (size, dtype) in sizes.items()}
    inputs = [uploaded[name].ctypes.data for name in ("positions", "first", "count", "padding")]
    outputs = [array.ctypes.data for array in guarded.values()]
    emulated_gpu.host_kernel(KERNEL, KERNEL_NAME)(
        order * (max(cells, entries) + 300), *inputs, cutoff, rows, slots, entries, *outputs
    )
    assert all((guarded[name][size:] == 77).all() for name, (size, _) in sizes.items()), "written beyond an array"
    found = SimpleNamespace(**{name: guarded[name][:size] for name, (size, _) in sizes.items()})
    found.displacements = found.displacements.reshape(rows, slots, 3)
    for name in ("neighbours", "reverse", "mask"):
        setattr(found, name, getattr(found, name).reshape(rows, slots))
    found.pair_of_slot = found.pair_of_slot.reshape(slots, rows)
    found.numbers = uploaded["atomic_numbers"]
    return found


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
@pytest.mark.parametrize(("more_rows", "more_slots"), [(0, 0), (0, 3), (2, 1)])
def test_it_writes_the_hosts_matrix_where_all_are_neighbours(sizes: list[int], more_rows: int, more_slots: int) -> None:
    structures = molecules(sizes, seed=len(sizes), spread=2.0)
    want = graph_inputs(structures, CUTOFF)
    rows, slots = want.mask.shape[0] + more_rows, want.mask.shape[1] + more_slots
    assert want.mask.sum() == sum(size * (size - 1) for size in sizes)
    want, got = padded(want, rows, slots), formed(structures, CUTOFF, rows, slots)
    np.testing.assert_array_equal(got.numbers, want.atomic_numbers)
    for name in ("neighbours", "reverse", "mask"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert got.displacements.tobytes() == want.displacements.tobytes(), "signs of zero included"


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_edges_are_the_hosts_to_the_bit_and_what_is_beyond_the_cutoff_is_masked(sizes: list[int], seed: int) -> None:
    structures = molecules(sizes, seed, spread=8.0)
    want, rows, slots = graph_inputs(structures, CUTOFF), sum(sizes), max(1, max(sizes) - 1) + seed
    got = formed(structures, CUTOFF, rows, slots)
    flat = got.reverse.ravel()
    own = np.arange(flat.size)
    np.testing.assert_array_equal(flat[flat], own)
    assert (got.mask.ravel() == got.mask.ravel()[flat]).all()
    assert (got.neighbours.ravel()[flat] == own // slots).all()
    assert (got.displacements.reshape(-1, 3)[flat][flat != own] == -got.displacements.reshape(-1, 3)[flat != own]).all()
    assert not got.displacements.reshape(-1, 3)[flat == own].any()
    assert not got.mask.ravel()[flat == own].any()
    assert (got.neighbours.ravel() == own // slots)[flat == own].all()
    assert (flat != own).sum() == sum(size * (size - 1) for size in sizes)
    for row in range(rows):  # the same edges in the same order
        here, there = got.mask[row] == 1, want.mask[row] == 1
        np.testing.assert_array_equal(got.neighbours[row][here], want.neighbours[row][there])
        assert got.displacements[row][here].tobytes() == want.displacements[row][there].tobytes()


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
def test_an_edge_is_one_to_the_last_bit_of_its_distance(sizes: list[int]) -> None:
    structures = molecules(sizes, 1, spread=5.0)
    rows, slots = sum(sizes), max(1, max(sizes) - 1)
    distances = np.concatenate([find_pairs(atoms, 99.0).distances for atoms in structures])
    for distance in np.random.default_rng(0).permutation(distances)[:6]:
        for cutoff in (distance, np.nextafter(distance, 99.0)):
            assert formed(structures, cutoff, rows, slots).mask.sum() == 2 * (distances < cutoff).sum()
    nearest, start = formed(structures, CUTOFF, rows, slots).nearest, 0
    for atoms in structures:
        found = find_pairs(atoms, 99.0)
        least = np.full(len(atoms), np.inf)
        for ends in (found.pairs.first, found.pairs.second):
            np.minimum.at(least, ends, found.distances)
        np.testing.assert_array_equal(nearest[start : start + len(atoms)], least)
        start += len(atoms)


@pytest.mark.parametrize("sizes", BATCHES, ids=str)
@pytest.mark.parametrize("more_slots", range(3))
def test_filters_once_a_pair_are_those_of_the_pair(sizes: list[int], more_slots: int) -> None:
    """`pairs` and `pair_of_slot` keep what `PAIR_INPUTS` says, as the host's own do."""
    structures, rows = molecules(sizes, 2, spread=8.0), sum(sizes)
    slots = max(1, max(sizes) - 1) + more_slots
    got = formed(structures, CUTOFF, rows, slots)
    flat, own = got.reverse.ravel(), np.arange(rows * slots)
    of_slot = got.pair_of_slot.T.ravel()
    assert got.pairs.min() >= 0
    assert got.pairs.max() < own.size
    chosen = got.pairs[of_slot]  # the slot whose filter each slot takes
    stored = flat != own
    np.testing.assert_array_equal(chosen[stored], np.minimum(own, flat)[stored])
    assert (flat[chosen[~stored]] == chosen[~stored]).all(), "padding takes a filter of padding"
    want = pair_inputs(got.reverse)
    assert len(np.unique(of_slot)) == len(want.pairs)
    unread = np.setdiff1d(np.arange(len(got.pairs)), of_slot)
    assert not stored.all() or (got.pairs[unread] == 0).all()


def test_no_order_of_threads_changes_a_bit() -> None:
    structures = molecules([17, 9, 9, 1, 25, 8], 0, spread=8.0)
    one, other = (formed(structures, CUTOFF, 70, 26, order) for order in (1, -1))
    for name, array in vars(one).items():
        assert array.tobytes() == getattr(other, name).tobytes(), name
