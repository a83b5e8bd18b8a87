"""Statistics of the last layer's uncertainty on features and errors whose distributions are known."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from painn_deploy.calibration.uncertainty.fitting import Frames, fit_last_layer
from painn_deploy.runtime.uncertainty.rigidity import LastLayer

WIDTH = 6
SPREAD = {1: np.linspace(0.5, 2.0, WIDTH), 8: np.linspace(3.0, 0.2, WIDTH)}


@dataclasses.dataclass
class Sample:
    features: list[np.ndarray]
    numbers: list[np.ndarray]

    @classmethod
    def of(cls, count: int, seed: int = 0) -> "Sample":
        """Frames of 2 to 8 atoms, whose features are normally distributed, differently for each element."""
        rng = np.random.default_rng(seed)
        numbers = [rng.choice(list(SPREAD), size) for size in rng.integers(2, 9, count)]
        return cls([rng.normal(size=(len(n), WIDTH)) * [SPREAD[z] for z in n.tolist()] for n in numbers], numbers)

    def exact(self) -> np.ndarray:
        """Sums of |W f| with the true spreads."""
        pairs = zip(self.features, self.numbers, strict=True)
        spread = [np.square(f / [SPREAD[z] for z in n.tolist()]) for f, n in pairs]
        return np.array([np.sqrt(squares.sum(1)).sum() for squares in spread])

    def fit(self, errors: np.ndarray | None = None) -> LastLayer:
        labels = np.full(len(self.numbers), np.nan) if errors is None else errors
        return fit_last_layer(Frames("made up", self.numbers, self.features, np.zeros(len(self.numbers)), labels))

    def results(self, fitted: LastLayer) -> list[dict[str, Any]]:
        pairs = zip(self.numbers, self.features, strict=True)
        return [fitted.results(n, fitted.digest(n, {"features": f})) for n, f in pairs]


def test_rigidities_are_those_of_the_true_spreads() -> None:
    fitted, fresh = Sample.of(4000).fit(), Sample.of(50, seed=1)
    pairs = zip(fresh.numbers, fresh.features, strict=True)
    sums = np.array([fitted.rigidities(n, f).sum() for n, f in pairs])
    assert sums == pytest.approx(fresh.exact(), rel=0.05)
    assert fitted.scale.typical == pytest.approx(np.sqrt(WIDTH), rel=0.1)


def test_errors_of_fresh_frames_are_as_large_as_said() -> None:
    rng, made, fresh = np.random.default_rng(7), Sample.of(2500), Sample.of(2500, seed=1)
    fitted = made.fit(0.03 * rng.normal(size=2500) * made.exact())
    assert fitted.factor == pytest.approx(0.03, rel=0.1)
    errors = 0.03 * rng.normal(size=2500) * fresh.exact()
    z = np.abs(errors / [result["energy_uncertainty"] for result in fresh.results(fitted)])
    assert np.sqrt(np.square(z).mean()) == pytest.approx(1, abs=0.1)
    assert (z < 1).mean() == pytest.approx(0.683, abs=0.05)
    assert (z < 1.96).mean() == pytest.approx(0.95, abs=0.03)


def test_errors_of_a_wrong_last_layer_are_as_large_as_said() -> None:
    """The last layer is off by some weights: errors are linear in the features, and no multiples of |W f|."""
    weights, made, fresh = np.random.default_rng(3).normal(size=WIDTH), Sample.of(4000), Sample.of(4000, seed=1)
    fitted = made.fit(np.array([(f @ weights).sum() for f in made.features]))
    errors = [(f @ weights).sum() for f in fresh.features]
    z = np.abs(np.array(errors) / [result["energy_uncertainty"] for result in fresh.results(fitted)])
    assert (z < 1).mean() == pytest.approx(0.683, abs=0.06)
    assert (z < 1.96).mean() == pytest.approx(0.95, abs=0.06)


def test_a_structure_twice_is_twice_as_uncertain_and_as_familiar() -> None:
    made = Sample.of(60)
    fitted = made.fit(np.random.default_rng(0).normal(size=60))
    once = made.results(fitted)
    twice = Sample([np.tile(f, (2, 1)) for f in made.features], [np.tile(n, 2) for n in made.numbers]).results(fitted)
    for one, two in zip(once, twice, strict=True):
        assert (one["energies_uncertainty"] > 0).all()
        assert two["energy_uncertainty"] == pytest.approx(2 * one["energy_uncertainty"])
        assert two["uncertainty_ratio"] == pytest.approx(one["uncertainty_ratio"])


def test_neither_the_order_of_atoms_nor_the_batch_changes_anything() -> None:
    made, fitted = Sample.of(30), Sample.of(200, seed=5).fit()
    together = fitted.digest(np.concatenate(made.numbers), {"features": np.concatenate(made.features)})
    start = 0
    for n, f in zip(made.numbers, made.features, strict=True):
        order = np.random.default_rng(len(n)).permutation(len(n))
        alone = fitted.results(n[order], fitted.digest(n[order], {"features": f[order]}))
        rows = {name: values[start : start + len(n)] for name, values in together.items()}
        start += len(n)
        assert fitted.results(n, rows)["uncertainty_ratio"] == pytest.approx(alone["uncertainty_ratio"], rel=1e-12)


def test_one_frame_that_is_wildly_wrong_does_not_set_the_scale() -> None:
    made, errors = Sample.of(1000), 0.1 * np.random.default_rng(0).normal(size=1000)
    plain = made.fit(errors)
    errors[4] = 10.0  # root mean squares would be several times as large
    assert made.fit(errors).factor == pytest.approx(plain.factor, rel=0.05)


@pytest.mark.parametrize("errors", [None, np.random.default_rng(0).normal(size=40)])
def test_json_keeps_all(errors: np.ndarray | None) -> None:
    fitted = Sample.of(40).fit(errors)
    again = LastLayer.from_dict(json.loads(json.dumps(fitted.as_dict())), WIDTH)
    assert again.as_dict() == fitted.as_dict()
    for number, root in fitted.roots.items():
        np.testing.assert_array_equal(again.roots[number], root)
    with pytest.raises(ValueError, match="reshape"):
        LastLayer.from_dict(fitted.as_dict(), WIDTH + 1)


BAD: list[tuple[str, Any]] = [
    *[(key, bad) for key in ("factor", "typical", "threshold") for bad in (-1.0, 0.0, float("nan"), float("inf"), [])],
    *[("frames", bad) for bad in (None, [1], [0, 1], [1, -1], [1.5, 1], [True, 1])],
    *[("fitted_on", 3), ("remarks", [1]), ("remarks", None), ("kind", "other")],
    *[("roots", bad) for bad in ({}, [], {"Xx": ""}, {"X": ""}, {"H": "AAAA"}, {"H": "?"}, {"H": 1})],
    ("roots", {"H": "AAAAAAAA8H8AAAAAAADwfwAAAAAAAPB/" * (WIDTH**2 // 3)}),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_nonsense_in_a_bundle_is_refused(key: str, value: Any) -> None:
    values = Sample.of(40).fit(np.random.default_rng(0).normal(size=40)).as_dict()
    LastLayer.from_dict(values, WIDTH)
    with pytest.raises(ValueError, match="."):
        LastLayer.from_dict({**values, key: value}, WIDTH)
    del values[key]
    with pytest.raises(ValueError, match="."):
        LastLayer.from_dict(values, WIDTH)
