from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from hypothesis import given
from hypothesis import strategies as st

from painn_deploy.engines.backend import CPU_BATCH_SLOTS
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.grouping import group, padding_waste
from painn_deploy.runtime.matrix import graph_inputs
from tests import students


@given(
    sizes=st.lists(st.tuples(st.integers(1, 500), st.integers(1, 90)), max_size=60),
    budget=st.integers(1, 20_000),
)
def test_every_structure_once_and_no_batch_past_its_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    batches = group(sizes, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    for batch in batches:
        cost = sum(sizes[i][0] for i in batch) * max(sizes[i][1] for i in batch)
        assert cost <= budget or len(batch) == 1
    assert 0 <= padding_waste(sizes, batches) < 1


def test_like_sizes_are_grouped_together() -> None:
    sizes = [(9, 8), (64, 60)] * 100
    assert padding_waste(sizes, group(sizes)) < 0.02
    assert padding_waste(sizes, [list(range(200))]) > 0.1


def test_many_structures_are_many_batches_with_the_same_results(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path))  # other tests measure batch sizes, and leave them there
    structures = [students.perturbed(molecule("CH3CH2OH"), seed) for seed in range(400)]
    structures[::50] = [students.zoo()["triclinic"]] * 8
    with PaiNNCalculator(bundle) as calculator:
        shapes, run = [], calculator.session.run
        calculator.session.run = lambda inputs: (shapes.append(inputs.mask.shape), run(inputs))[1]  # type: ignore[method-assign]
        together = calculator.calculate_batch(structures)
        assert len(shapes) > 1
        assert max(atoms * slots for atoms, slots in shapes) <= CPU_BATCH_SLOTS
        assert len({slots for _, slots in shapes}) > 1
        again = calculator.calculate_batch(structures)
        for index in (0, 1, 57, 399):
            (alone,) = calculator.calculate_batch([structures[index]])
            np.testing.assert_allclose(together[index]["forces"], alone["forces"], rtol=0, atol=1e-5)
            assert abs(together[index]["energy"] - alone["energy"]) < 3e-6 * len(structures[index])
    for one, other in zip(together, again, strict=True):
        assert np.array_equal(one["forces"], other["forces"])
    assert graph_inputs(structures[:2], 4.0).mask.shape[1] >= max(slots for _, slots in shapes)
