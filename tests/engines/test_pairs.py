"""Both slots of a pair are found, and nothing else."""

from collections.abc import Callable

import numpy as np
import pytest
from ase.build import bulk, molecule

from painn_deploy.engines.contract import padded
from painn_deploy.engines.inductor import pairs
from painn_deploy.engines.inductor.pairs import KnownPairs, pair_inputs
from painn_deploy.export.errors import ShapeError
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.runtime.verlet import VerletList
from tests import students


@pytest.mark.parametrize("name", students.zoo())
@pytest.mark.parametrize("wider", [0, 2])
def test_every_slot_knows_its_pair(name: str, wider: int) -> None:
    inputs = graph_inputs([students.zoo()[name]], 4.0)
    atoms, slots = inputs.mask.shape
    inputs = padded(inputs, atoms + wider, slots + wider)
    held_by, pair_of_slot = pair_inputs(inputs.reverse)
    own = np.arange(inputs.mask.size).reshape(inputs.mask.shape)
    is_padding = inputs.reverse == own
    assert len(held_by) == (~is_padding).sum() / 2 + is_padding.any()
    held = held_by[pair_of_slot.T]  # the slot that stands for each
    assert (is_padding | (held == own) | (held == inputs.reverse)).all()
    assert (is_padding.reshape(-1)[held] == is_padding).all()
    d = np.linalg.norm(inputs.displacements, axis=-1).reshape(-1)
    np.testing.assert_array_equal(d[held], d.reshape(own.shape))


def test_least_pairs() -> None:
    inputs = graph_inputs([students.zoo()["single atom"]], 4.0)
    held_by, pair_of_slot = pair_inputs(inputs.reverse, 2)
    assert held_by.tolist() == [0, 0]
    assert pair_of_slot.tolist() == [[0]]


@pytest.mark.parametrize("broken", [[[1, 2, 0]], [[0, 0, 2]], [[0, 1, 3]], [[0, -1, 2]]])
def test_a_reverse_that_does_not_lead_back(broken: list[list[int]]) -> None:
    with pytest.raises(ShapeError, match="reverse is no pairing"):
        pair_inputs(np.array(broken, np.int32))


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slots of each array whose pairs were looked for."""
    sizes: list[int] = []

    def looking(reverse: np.ndarray, least: int = 1) -> object:
        sizes.append(reverse.size)
        return pair_inputs(reverse, least)

    monkeypatch.setattr(pairs, "pair_inputs", looking)
    return sizes


def same(got: object, reverse: np.ndarray, least: int = 1) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(got, pair_inputs(reverse, least), strict=True))


def test_pairs_are_looked_for_once_while_neighbours_stand(looked: list[int]) -> None:
    known, verlet, rng = KnownPairs(), VerletList(4.0, 0.5), np.random.default_rng(0)
    atoms = bulk("Al", a=4.05, cubic=True).repeat(2)
    for _ in range(40):
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        reverse = verlet.inputs(atoms).reverse
        assert same(known.of(reverse), reverse)
        assert same(known.of(reverse, 10_000), reverse, 10_000)
    assert 1 < verlet.searches < 20
    assert len(looked) == 2 * verlet.searches
    assert len(known._known) == 2, "the pairs of neighbours that are no more are given back"


def test_several_lists_in_turns_are_each_known(looked: list[int]) -> None:
    known, lists = KnownPairs(), [VerletList(4.0, 0.5) for _ in range(3)]
    molecules = [molecule(name) for name in ("H2O", "NH3", "CH4")]
    for _ in range(4):
        for verlet, atoms in zip(lists, molecules, strict=True):
            reverse = verlet.inputs(atoms).reverse
            assert same(known.of(reverse), reverse)
    assert len(looked) == 3


def changed(reverse: np.ndarray) -> None:
    """The same pairing with two slots of an atom exchanged, in the same memory."""
    atoms, slots = reverse.shape
    order = np.arange(atoms * slots).reshape(atoms, slots)
    order[0, [0, 1]] = order[0, [1, 0]]
    to = np.argsort(order.ravel())
    reverse[...] = to[reverse.ravel()[order.ravel()]].reshape(atoms, slots)


@pytest.mark.parametrize(
    "view",
    [
        lambda reverse: reverse,
        lambda reverse: closed(reverse.view()),  # its memory is another's, who may write
        lambda reverse: closed(reverse[:]),
    ],
)
def test_what_a_caller_may_write_into_gives_no_stale_pairs(view: Callable[[np.ndarray], np.ndarray]) -> None:
    known, own = KnownPairs(), graph_inputs([molecule("CH4")], 4.0).reverse.copy()
    reverse, before = view(own), own.copy()
    assert same(known.of(reverse), before)
    changed(own)
    assert not same(pair_inputs(reverse), before)
    assert same(known.of(reverse), reverse)
    assert not known._known


def closed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def test_an_array_in_the_place_of_one_that_was_freed_is_another(looked: list[int]) -> None:
    known, ids = KnownPairs(), set()
    reverses = [graph_inputs([molecule(name)], 4.0).reverse for name in ("CH4", "C2H6")]
    for turn in range(50):
        one = closed(reverses[turn % 2].copy())
        ids.add(id(one))
        assert same(known.of(one), one)
        looked.clear()
        del one  # nothing else holds it
        assert not known._known
    assert len(ids) < 50, "no id was used again"
