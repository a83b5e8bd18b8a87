"""Times are of fresh inputs, in turns, and of the candidate alone."""

import time

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.lj import LennardJones

from painn_deploy.calibration import timing


def test_every_call_gets_an_input_of_its_own_in_turns() -> None:
    made, seen = iter(range(1000)), []
    candidates = {name: lambda number, name=name: seen.append((name, number)) for name in "ab"}
    timing.medians(candidates, lambda: next(made), calls=2, blocks=2)
    assert [number for _, number in seen] == list(range(16))  # two warm up in each block
    assert "".join(name for name, _ in seen) == "aaaabbbb" * 2


@pytest.mark.timing
def test_neither_preparation_nor_warming_up_is_timed() -> None:
    calls = []

    def candidate(_: None) -> None:
        calls.append(None)
        time.sleep(0.05 if len(calls) <= timing.WARM_UP else 0.005)

    found = timing.medians({"one": candidate}, lambda: time.sleep(0.03), calls=3, blocks=1)
    assert 5 <= found["one"] < 25


@pytest.mark.timing
def test_processor_time_leaves_waiting_out() -> None:
    found = timing.medians(
        {"waits": lambda _: time.sleep(0.02), "works": lambda _: sum(range(300_000))},
        lambda: None,
        calls=3,
        blocks=1,
        clock=time.process_time,
    )
    assert found["waits"] < 2 < found["works"]


def test_structures_move_about_their_starts() -> None:
    start = molecule("H2O")
    fresh = timing.mover([start], np.random.default_rng(0), 0.01)
    moved = np.array([fresh()[0].positions.copy() for _ in range(400)])
    assert len(np.unique(moved[:, 0, 0])) == 400
    np.testing.assert_allclose(moved.mean(0), start.positions, atol=0.003)
    np.testing.assert_allclose(moved.std(0), 0.01, rtol=0.2)
    assert np.array_equal(start.positions, molecule("H2O").positions)


def test_calculators_are_timed_through_ase() -> None:
    computed = []

    class Counting(LennardJones):
        def calculate(self, *arguments: object, **options: object) -> None:
            computed.append(None)
            super().calculate(*arguments, **options)

    found = timing.milliseconds({"one": Counting()}, [molecule("H2O")], calls=2, blocks=3)
    assert found["one"] > 0
    assert len(computed) == 3 * (2 + timing.WARM_UP)  # none is remembered, and forces come with the energy
