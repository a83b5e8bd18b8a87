"""The drift of an energy: its slope, and an uncertainty that covers what fluctuations make of the slope."""

import numpy as np
import pytest
from ase import Atoms

from painn_deploy.calibration.physics.drift import Drift
from painn_deploy.calibration.physics.motion import total_energies
from painn_deploy.scripts.commands.md import Record


def test_a_short_drift_knows_its_uncertainty() -> None:
    rng, times = np.random.default_rng(0), np.arange(400) * 0.0025
    inside = 0
    for _ in range(200):
        noise = np.convolve(rng.normal(size=420), np.ones(21) / 21, "valid")  # neighbours are alike
        drift = Drift.of(times, 0.5 * times + noise)
        inside += abs(drift.slope - 0.5) < 2 * drift.uncertainty
    assert 0.85 < inside / 200 <= 1.0


def test_a_long_drift_knows_its_uncertainty() -> None:
    times, rng = np.linspace(0, 100, 5001), np.random.default_rng(0)
    drift = Drift.of_blocks(times, 3.0 + 0.02 * times)
    assert drift.slope == pytest.approx(0.02)
    assert max(drift.uncertainty, drift.fluctuation) < 1e-12
    kernel = np.exp(-np.arange(300) / 100)  # noise that remembers 2 ps, as an oscillating energy does
    found = []
    for _ in range(200):
        noise = np.convolve(rng.normal(size=5300), kernel, mode="valid")[:5001]
        drift = Drift.of_blocks(times, 0.02 * times + noise)
        found.append((drift.slope, drift.uncertainty))
    slopes, errors = np.array(found).T
    assert slopes.mean() == pytest.approx(0.02, abs=3 * slopes.std() / np.sqrt(200))
    assert np.sqrt((errors**2).mean()) == pytest.approx(slopes.std(), rel=0.25)


def test_slow_fluctuations_under_fast_ones_are_seen_by_blocks() -> None:
    """Where a fast oscillation hides how long a slow one lasts, the correlation length promises too much."""
    times, rng = np.linspace(0, 100, 5001), np.random.default_rng(1)
    kernel = np.exp(-np.arange(1500) / 500)  # 10 ps
    found = []
    for _ in range(100):
        slow = np.convolve(rng.normal(size=6500), kernel, mode="valid")[:5001] / 30
        energies = slow + 3 * np.sin(2 * np.pi * times / 0.1) + rng.normal(size=5001)
        block, plain = Drift.of_blocks(times, energies), Drift.of(times, energies)
        found.append((plain.slope, plain.uncertainty, block.slope, block.uncertainty))
    slopes, promised, block_slopes, block_errors = np.array(found).T
    assert np.sqrt((block_errors**2).mean()) > 0.5 * block_slopes.std()
    assert np.sqrt((promised**2).mean()) < 0.3 * slopes.std()


def test_too_few_points_say_so() -> None:
    times = np.arange(10.0)
    for points, known in ((0, (False, False)), (2, (False, False)), (3, (True, False)), (8, (True, True))):
        drift = Drift.of(times[:points], 2.0 * times[:points])
        assert (bool(np.isfinite(drift.slope)), bool(np.isfinite(drift.uncertainty))) == known
        assert not known[0] or drift.slope == pytest.approx(2.0)
    assert Drift.of(times[:3], times[:3]).as_dict()["uncertainty"] is None


def test_a_trajectory_that_diverged_drifts_without_bound() -> None:
    drift = Drift.of(np.arange(10.0), np.append(np.arange(9.0), np.nan))
    assert drift.slope == drift.uncertainty == drift.fluctuation == float("inf")


def test_a_simulation_s_record_has_the_same_slope() -> None:
    rng = np.random.default_rng(0)
    record = Record(atoms=5)
    assert np.isnan(record.drift)
    for step in range(0, 400, 10):
        record.rows.append((step, 0.5 * step, 0.0, 0.0, -1e4 + 1e-6 * step + 1e-4 * rng.normal(), 300.0))
    wanted = 1e3 * np.polyfit(record.column("time_fs") / 1e3, record.column("total_eV"), 1)[0] / 5
    assert record.drift == pytest.approx(wanted, rel=1e-6)


def test_energies_are_less_the_first_and_an_atom_s() -> None:
    class Rising:
        """An energy that rises by 1 eV at every call, and pulls nothing."""

        energy = 0.0

        def get_potential_energy(self, *_: object, **__: object) -> float:
            self.energy += 1.0
            return self.energy

        def get_forces(self, atoms: Atoms) -> np.ndarray:
            return np.zeros((len(atoms), 3))

    times, energies = total_energies(Atoms("H2", [[0, 0, 0], [0, 0, 1]]), Rising(), 0.01)
    np.testing.assert_allclose(times, 0.0025 * np.arange(5))
    np.testing.assert_allclose(energies, 500.0 * np.arange(5))
