"""The kernels that find the neighbours of large structures, compiled for the host: what they write is its own pairs."""

from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule

from painn_deploy.engines.contract import check_boxes
from painn_deploy.engines.gpu.device_neighbours import (
    COUNTED,
    KERNEL,
    NAMES,
    box_columns,
    counted_columns,
    fill_boxes,
    nearest_of,
    number_pairs,
    numbered_columns,
)
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.engines.session import Boxes
from painn_deploy.export.errors import ShapeError, StructureError
from painn_deploy.runtime.neighbours import find_pairs
from painn_deploy.runtime.pairs.boxes import boxes_of
from tests import students

from . import emulated_gpu

CUTOFF, REACH = 4.0, 4.5


def waters(side: int, seed: int, **options: Any) -> Atoms:
    """Molecules of water on a grid, turned at random."""
    rng, box = np.random.default_rng(seed), Atoms(cell=[3.1 * side] * 3, pbc=True)
    for place in np.ndindex(side, side, side):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.translate(3.1 * np.array(place) + rng.normal(0, 0.1, 3))
        box += one
    box.set_array("positions", box.positions + options.pop("moved", 0.0))
    for name, value in options.items():
        setattr(box, name, value)
    return box


def scattered(seed: int, periodic: tuple[bool, bool, bool]) -> Atoms:
    """Atoms at random in a random cell, some of them many cells away and some cells thin."""
    rng = np.random.default_rng(seed)
    lengths, atoms = rng.choice([2.5, 4.6, 7.0, 13.0], 3), int(rng.integers(1, 40))
    cell = np.diag(lengths) + rng.uniform(-0.3, 0.3, (3, 3)) * lengths.min()
    positions = rng.uniform(-1, 2, (atoms, 3)) @ cell + rng.integers(-9, 9, (atoms, 3)) @ cell * (seed % 2)
    made = Atoms(rng.integers(1, 9, atoms), positions, cell=cell, pbc=periodic)
    made.positions[:2] = made.positions[:1] if atoms < 2 else [[0, 0, 0], [0, 0, 1.0]]
    return made


STRUCTURES = {
    **students.zoo(),
    "liquid": waters(4, 0),
    "droplet": waters(3, 1, pbc=False),
    "layer": waters(3, 2, pbc=[True, True, False]),
    "never wrapped": waters(3, 3, moved=np.random.default_rng(0).integers(-5, 5, (81, 1)) * 9.3),
    "crystal": bulk("Si", cubic=True).repeat(3),
    "sheet": graphene(size=(6, 6, 1), vacuum=40.0),
    "sheared": bulk("Cu").repeat((2, 3, 9)),
    "two clouds": Atoms(
        "C60", np.random.default_rng(1).normal(0, 3.0, (60, 3)) + np.repeat([[0.0], [5e3]], 30, axis=0)
    ),
    "in a row": Atoms("H50", np.arange(50.0)[:, None] * [0.9, 0, 0]),
    "in a row but for nothing": Atoms("H2", [[0, 0, 0], [0, 1, 1e-310]]),
    "in a plane": Atoms("H49", [[x, y, 0.0] for x in range(7) for y in range(7)]),
}


def boxes(atoms: Atoms, reach: float = REACH) -> Boxes:
    return boxes_of(atoms, CUTOFF, reach)


def found(sorted_atoms: Boxes, more_rows: int = 0, more_slots: int = 0, order: int = 1) -> SimpleNamespace:
    """What the kernels write, in arrays that are followed by bytes which nothing may touch."""
    atoms = len(sorted_atoms.positions)
    rows = atoms + more_rows
    sent = {n: np.full(s, -1, t) for n, s, t in box_columns(atoms, len(sorted_atoms.starts) - 1)}
    fill_boxes(sent, sorted_atoms)
    counted = {n: np.full(s, -1, t) for n, s, t in counted_columns(rows)}
    numbered = {n: np.full(s, -1, t) for n, s, t in numbered_columns(rows)}
    inputs = [array.ctypes.data for array in sent.values()]
    counts = [counted[name].ctypes.data for name in COUNTED]
    finding, pairing = (emulated_gpu.host_kernel(KERNEL, name) for name in NAMES)
    finding(order * (rows + 300), *inputs, sorted_atoms.reach, atoms, rows, 0, *counts, None, None, None)
    slots = max(1, int(counted["count"].max())) + more_slots
    once = {name: counted[name].copy() for name in COUNTED}
    number_pairs(counted, numbered, slots)
    cells, entries = rows * slots, rows * slots // 2 + 1
    sizes = {
        "neighbours": (cells, np.int32),
        "shifts": (3 * cells, np.float64),
        "stored": (cells, np.uint8),
        "reverse": (cells, np.int32),
        "pairs": (entries, np.int32),
        "pair_of_slot": (cells, np.int32),
    }
    made = {name: np.full(size + 64, 77, dtype) for name, (size, dtype) in sizes.items()}
    at = {name: array.ctypes.data for name, array in (made | counted | numbered).items()}
    written = (at[name] for name in ("neighbours", "shifts", "stored"))
    finding(order * (rows + 300), *inputs, sorted_atoms.reach, atoms, rows, slots, *counts, *written)
    assert all((counted[name] == once[name]).all() for name in COUNTED), "counted otherwise than written"
    read = (at[name] for name in ("neighbours", "shifts", "stored", "count", "numbers", "totals"))
    pairs = (at[name] for name in ("reverse", "pairs", "pair_of_slot"))
    pairing(order * (cells + 300), *read, rows, slots, entries, *pairs)
    assert all((made[name][size:] == 77).all() for name, (size, _) in sizes.items()), "written beyond an array"
    own = {name: made[name][:size] for name, (size, _) in sizes.items()}
    for name in ("neighbours", "stored", "reverse"):
        own[name] = own[name].reshape(rows, slots)
    own |= {"shifts": own["shifts"].reshape(rows, slots, 3), "pair_of_slot": own["pair_of_slot"].reshape(slots, rows)}
    return SimpleNamespace(**own, **once)


def the_same(atoms: Atoms, got: SimpleNamespace, reach: float = REACH) -> None:
    """The host's pairs from both ends, their displacements to the bit, each slot with its own other end."""
    want, positions = find_pairs(atoms, reach), atoms.positions
    pairs = want.pairs
    expected = sorted(
        [(i, j, v.tobytes()) for i, j, v in zip(pairs.first, pairs.second, want.vectors + 0.0, strict=True)]
        + [(j, i, v.tobytes()) for i, j, v in zip(pairs.first, pairs.second, 0.0 - want.vectors, strict=True)]
    )
    rows, slots = got.stored.nonzero()
    seconds = got.neighbours[rows, slots]
    vectors = (positions[seconds] - positions[rows]) + got.shifts[rows, slots] + 0.0
    assert sorted((i, j, v.tobytes()) for i, j, v in zip(rows, seconds, vectors, strict=True)) == expected
    flat, own = got.reverse.ravel(), np.arange(got.reverse.size)
    np.testing.assert_array_equal(flat[flat], own)
    np.testing.assert_array_equal(flat != own, got.stored.ravel() != 0)
    np.testing.assert_array_equal(got.neighbours.ravel()[flat], own // got.stored.shape[1])
    np.testing.assert_array_equal(got.shifts.reshape(-1, 3)[flat], -got.shifts.reshape(-1, 3))
    np.testing.assert_array_equal(got.count, (got.stored != 0).sum(axis=1))
    np.testing.assert_array_equal(got.forward, (got.stored == 2).sum(axis=1))
    assert not got.shifts[got.stored == 0].any()
    nearest = want.nearest()
    assert got.nearest.min() == nearest.distance == nearest_of(vars(got)).distance
    assert min(nearest_of(vars(got))[1:]) >= 0 or not len(want.pairs.first)
    if len(want.pairs.first):
        one = int(got.nearest.argmin())
        apart = find_pairs(atoms, reach)
        chosen = ((pairs.first == one) & (pairs.second == got.closest[one])) | (
            (pairs.second == one) & (pairs.first == got.closest[one])
        )
        assert apart.distances[chosen].min() == nearest.distance


@pytest.mark.parametrize("name", STRUCTURES)
def test_they_find_the_hosts_pairs(name: str) -> None:
    atoms = STRUCTURES[name]
    the_same(atoms, found(boxes(atoms)))


@pytest.mark.parametrize("seed", range(60))
def test_they_find_the_hosts_pairs_in_any_cell(seed: int) -> None:
    rng = np.random.default_rng(seed)
    atoms = scattered(seed, tuple(bool(flag) for flag in rng.random(3) < 0.6))
    try:
        reach = rng.uniform(2.0, 6.0)
        want = find_pairs(atoms, reach)
    except StructureError:
        return
    distances = want.distances
    for chosen in (reach, *(rng.choice(distances, 1) if len(distances) else ())):
        for last in (chosen, np.nextafter(chosen, 99.0)):  # an edge is one to the last bit of its distance
            the_same(atoms, found(boxes(atoms, float(last)), seed % 3, seed % 4), float(last))


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(("more_rows", "more_slots"), [(0, 0), (0, 3), (2, 1)])
def test_filters_once_a_pair_are_those_of_the_pair(name: str, more_rows: int, more_slots: int) -> None:
    """`pairs` and `pair_of_slot` keep what `PAIR_INPUTS` says, as the host's own do."""
    got = found(boxes(STRUCTURES[name]), more_rows, more_slots)
    flat, of_slot = got.reverse.ravel(), got.pair_of_slot.T.ravel()
    own = np.arange(flat.size)
    assert 0 <= got.pairs.min() <= got.pairs.max() < own.size
    chosen, stored = got.pairs[of_slot], flat != own
    assert ((chosen == own) | (chosen == flat))[stored].all()
    assert (of_slot == of_slot[flat]).all()
    assert (flat[chosen[~stored]] == chosen[~stored]).all(), "padding takes a filter of padding"
    assert len(np.unique(of_slot)) == len(pair_inputs(got.reverse).pairs)


def test_no_order_of_threads_changes_a_bit() -> None:
    atoms = boxes(STRUCTURES["liquid"])
    one, other = (found(atoms, 3, 2, order) for order in (1, -1))
    for name, array in vars(one).items():
        assert array.tobytes() == getattr(other, name).tobytes(), name


def test_boxes_are_no_thinner_than_the_reach_and_not_many_more_than_atoms() -> None:
    liquid = boxes(waters(6, 0))
    assert liquid.shape.tolist() == [4, 4, 4, 1, 1, 1, 1, 1, 1]
    sparse = boxes(Atoms("H30", np.random.default_rng(0).uniform(0, 150, (30, 3)), cell=[150] * 3, pbc=True))
    assert len(sparse.starts) - 1 <= 120
    thin = boxes(Atoms("H", cell=[2.0, 30.0, 30.0], pbc=True))
    assert thin.shape.tolist() == [1, 6, 6, 3, 1, 1, 1, 1, 1]


def test_what_is_crowded_is_refused_before_it_is_sent() -> None:
    with pytest.raises(StructureError, match="so crowded that each has"):
        boxes(Atoms("H30000", np.random.default_rng(0).uniform(0, 4.0, (30000, 3))))


def test_boxes_that_do_not_fit_together_are_refused() -> None:
    sound = boxes(STRUCTURES["liquid"])
    check_boxes(sound, 8)

    def with_one(array: np.ndarray, value: int) -> np.ndarray:
        changed = array.copy()
        changed[-1] = value
        return changed

    def changed(**arrays: np.ndarray) -> Boxes:
        made = copy(sound)
        vars(made).update(arrays)
        return made

    for wrong, message in (
        (changed(box=with_one(sound.box, len(sound.starts) - 1)), "box of boxes holds"),
        (changed(order=with_one(sound.order, -1)), "order of boxes holds -1"),
        (changed(order=sound.order[:-1]), r"order of boxes is int32 \(191,\); a int32 array of the shape \(192,\)"),
        (changed(positions=sound.positions[:, :1]), r"positions of boxes is float64 \(192, 1\)"),
        (changed(cell=sound.cell[0]), r"cell of boxes is float64 \(3,\)"),
        (changed(box=sound.box.astype(np.int16)), "box of boxes is int16"),
        (changed(weights=sound.weights.astype(float)), "weights of boxes is float64"),
        (changed(weights=sound.weights[:2]), r"weights of boxes is float32 \(2,\)"),
        (changed(shape=sound.shape[:5]), r"shape of boxes is int32 \(5,\)"),
        (changed(shape=np.array([2, 2, 2, 2**30, 1, 1, 1, 1, 1], np.int32)), "shape of boxes holds"),
        (changed(shape=np.array([2, 2, 2, 2, 1, 1, 0, 1, 1], np.int32)), "shape of boxes holds"),
        (changed(shape=np.array([2, 2, 2, 1, -1, 1, 1, 1, 1], np.int32)), "shape of boxes holds"),
        (changed(starts=with_one(sound.starts, 3)), "starts of boxes must rise from 0 to 192"),
        (changed(shape=with_one(sound.shape, 1) * 2), "shape of boxes holds"),
        (changed(atomic_numbers=sound.atomic_numbers + np.int32(1)), "atomic_numbers of boxes holds 9"),
    ):
        with pytest.raises(ShapeError, match=message):
            check_boxes(wrong, 8)
