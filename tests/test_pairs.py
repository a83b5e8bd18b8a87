"""Both slots of a pair are found, and nothing else."""

import numpy as np
import pytest

from painn_deploy.engines.contract import padded
from painn_deploy.engines.inductor.pairs import pair_inputs
from painn_deploy.export.errors import ShapeError
from painn_deploy.runtime.matrix import graph_inputs

from . import students


@pytest.mark.parametrize("name", students.zoo())
@pytest.mark.parametrize("wider", [0, 2])
def test_every_slot_knows_its_pair(name: str, wider: int) -> None:
    inputs = graph_inputs([students.zoo()[name]], 4.0)
    atoms, slots = inputs.mask.shape
    inputs = padded(inputs, atoms + wider, slots + wider)
    pairs, pair_of_slot = pair_inputs(inputs.reverse)
    own = np.arange(inputs.mask.size).reshape(inputs.mask.shape)
    is_padding = inputs.reverse == own
    assert len(pairs) == (~is_padding).sum() / 2 + is_padding.any()
    held = pairs[pair_of_slot.T]  # the slot that stands for each
    assert (is_padding | (held == own) | (held == inputs.reverse)).all()
    assert (is_padding.reshape(-1)[held] == is_padding).all()
    d = np.linalg.norm(inputs.displacements, axis=-1).reshape(-1)
    np.testing.assert_array_equal(d[held], d.reshape(own.shape))


def test_least_pairs() -> None:
    inputs = graph_inputs([students.zoo()["single atom"]], 4.0)
    pairs, pair_of_slot = pair_inputs(inputs.reverse, 2)
    assert pairs.tolist() == [0, 0]
    assert pair_of_slot.tolist() == [[0]]


@pytest.mark.parametrize("broken", [[[1, 2, 0]], [[0, 0, 2]], [[0, 1, 3]], [[0, -1, 2]]])
def test_a_reverse_that_does_not_lead_back(broken: list[list[int]]) -> None:
    with pytest.raises(ShapeError, match="reverse is no pairing"):
        pair_inputs(np.array(broken, np.int32))
