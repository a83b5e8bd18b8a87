"""Uncertainty of a student's energies by the last layer of its read-out."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float64, Int64

from painn_deploy.calibration.uncertainty.fitting import NOISE, fit_last_layer
from painn_deploy.export.errors import BundleError, DatasetError, ShapeError
from painn_deploy.runtime.uncertainty.rigidity import LastLayer

WIDTH = 6
SPREAD = {1: np.linspace(0.5, 2.0, WIDTH), 8: np.linspace(3.0, 0.2, WIDTH)}


@dataclasses.dataclass
class Frames:
    features: Float64[np.ndarray, "atoms width"]
    numbers: Int64[np.ndarray, " atoms"]
    sizes: list[int]

    def sums(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, np.cumsum(self.sizes) - self.sizes)

    def fit(self, errors: np.ndarray | None = None) -> LastLayer:
        if errors is None:
            return fit_last_layer(self.features, self.numbers, self.sizes, "made up")
        predicted = np.arange(float(len(self.sizes)))
        return fit_last_layer(
            self.features, self.numbers, self.sizes, "made up", predicted=predicted, labelled=predicted + errors
        )


def frames(count: int, seed: int = 0, smallest: int = 2, largest: int = 9) -> Frames:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(smallest, largest, count).tolist()
    numbers = rng.choice(list(SPREAD), sum(sizes))
    features = rng.normal(size=(len(numbers), WIDTH)) * np.array([SPREAD[z] for z in numbers])
    return Frames(features, numbers, sizes)


def test_a_leverage_is_the_distance_in_units_of_what_the_element_showed() -> None:
    made = frames(4000)
    fitted = made.fit()
    other = frames(50, seed=1)
    noise = NOISE * np.sqrt(np.square(made.features).mean())
    expected = [
        np.sqrt((f**2 / (SPREAD[z] ** 2 + noise**2)).sum())
        for f, z in zip(other.features, other.numbers.tolist(), strict=True)
    ]
    assert fitted.leverages(other.features, other.numbers) == pytest.approx(expected, rel=0.05)
    assert fitted.typical == pytest.approx(np.sqrt(WIDTH), rel=0.1)


def test_errors_on_fresh_frames_are_as_large_as_said() -> None:
    """Each error is drawn with a width of 0.03 eV times the true leverages: that is found, and so is the coverage."""
    rng, made, fresh = np.random.default_rng(7), frames(2000), frames(2000, seed=1)

    def errors(of: Frames) -> np.ndarray:
        spread = np.array([SPREAD[z] for z in of.numbers.tolist()])
        return 0.03 * rng.normal(size=len(of.sizes)) * of.sums(np.sqrt(np.square(of.features / spread).sum(1)))

    fitted = made.fit(errors(made))
    assert fitted.alpha == pytest.approx(0.03, rel=0.1)
    assert (fitted.frames, fitted.held_out, fitted.labelled) == (1600, 400, 400)
    results = fitted.of_structures(fresh.features, fresh.numbers, fresh.sizes)
    z = np.abs(errors(fresh) / [result["energy_uncertainty"] for result in results])
    assert np.sqrt(np.square(z).mean()) == pytest.approx(1, abs=0.1)
    assert (z < 1).mean() == pytest.approx(0.683, abs=0.05)
    assert (z < 1.96).mean() == pytest.approx(0.95, abs=0.03)


def test_errors_of_a_wrong_last_layer_have_unit_width_too() -> None:
    rng, made, fresh = np.random.default_rng(3), frames(3000), frames(3000, seed=1)
    weights = rng.normal(size=WIDTH)
    fitted = made.fit(made.sums(made.features @ weights))
    sigma = [r["energy_uncertainty"] for r in fitted.of_structures(fresh.features, fresh.numbers, fresh.sizes)]
    z = fresh.sums(fresh.features @ weights) / sigma
    assert np.sqrt(np.square(z).mean()) == pytest.approx(1, abs=0.1)


def test_a_structure_s_uncertainty_is_the_sum_over_its_atoms() -> None:
    made = frames(60)
    fitted = made.fit(np.random.default_rng(0).normal(size=60))
    results = fitted.of_structures(made.features, made.numbers, made.sizes)
    for result, size in zip(results, made.sizes, strict=True):
        assert result["energies_uncertainty"].shape == (size,)
        assert result["energy_uncertainty"] == pytest.approx(result["energies_uncertainty"].sum())
        assert (result["energies_uncertainty"] > 0).all()
    one = slice(0, made.sizes[0])
    twice = np.concatenate([made.features[one]] * 2), np.concatenate([made.numbers[one]] * 2)
    (double,) = fitted.of_structures(*twice, [2 * made.sizes[0]])
    assert double["energy_uncertainty"] == pytest.approx(2 * results[0]["energy_uncertainty"])
    assert double["uncertainty_ratio"] == pytest.approx(results[0]["uncertainty_ratio"])


def test_order_and_batches_change_nothing() -> None:
    made, fitted = frames(30), frames(200, seed=5).fit()
    together = fitted.of_structures(made.features, made.numbers, made.sizes)
    starts = np.cumsum(made.sizes) - made.sizes
    for result, start, size in zip(together, starts, made.sizes, strict=True):
        order = start + np.random.default_rng(size).permutation(size)
        (alone,) = fitted.of_structures(made.features[order], made.numbers[order], [size])
        assert alone["uncertainty_ratio"] == pytest.approx(result["uncertainty_ratio"], rel=1e-12)
    assert fitted.of_structures(made.features[:0], made.numbers[:0], []) == []


def test_without_energies_there_is_a_ratio_alone() -> None:
    made = frames(50)
    fitted = made.fit()
    assert fitted.alpha is None
    assert "no held-out frame of made up has an energy" in fitted.remarks[-1]
    assert {key for r in fitted.of_structures(made.features, made.numbers, made.sizes) for key in r} == {
        "uncertainty_ratio"
    }
    assert made.fit(np.full(50, np.nan)).alpha is None


def test_the_threshold_is_what_one_held_out_frame_in_a_hundred_exceeds() -> None:
    made = frames(5000)
    fitted = made.fit()
    ratios = [r["uncertainty_ratio"] for r in fitted.of_structures(made.features, made.numbers, made.sizes)]
    held_out = np.array(ratios[4::5])
    assert np.median(held_out) == pytest.approx(1)
    assert (held_out > fitted.threshold).mean() == pytest.approx(0.01, abs=1e-3)
    assert fitted.verdict(fitted.threshold) == ""
    assert "1e+03 times that of a typical frame of made up" in fitted.verdict(1000.0)
    assert fitted.verdict(1.2, threshold=1.1)
    assert fitted.verdict(float("nan"))


def test_an_element_that_no_frame_has_is_as_uncertain_as_can_be() -> None:
    made = frames(200)
    fitted = made.fit()
    unknown = fitted.leverages(made.features, np.full_like(made.numbers, 7))
    assert (unknown > fitted.leverages(made.features, made.numbers)).all()
    assert np.median(unknown) > 20 * fitted.typical
    assert unknown == pytest.approx(np.linalg.norm(made.features, axis=1) / fitted.noise)


def test_another_zero_of_energy_is_left_out_and_remarked() -> None:
    made, rng = frames(300), np.random.default_rng(0)
    errors = 0.1 * rng.normal(size=300)
    shift = made.sums(np.where(made.numbers == 1, -13.6, -2040.0))
    plain, shifted = made.fit(errors), made.fit(errors + shift)
    assert plain.remarks == ()
    assert shifted.alpha == pytest.approx(plain.alpha, rel=0.05)
    assert "taken as another zero of energy" in shifted.remarks[0]


def test_few_frames_are_remarked() -> None:
    made = frames(3, largest=4)
    fitted = made.fit(np.ones(3))
    assert "3 frames, fewer than 5: none is held out" in fitted.remarks[0]
    assert (fitted.frames, fitted.held_out, fitted.labelled) == (3, 3, 3)
    assert any("fewer atoms of" in remark and f"than the {WIDTH} features" in remark for remark in fitted.remarks)
    assert any("3 held-out frames of made up set the scale of uncertainties: rough" in r for r in fitted.remarks)
    assert np.isfinite(fitted.leverages(made.features, made.numbers)).all()


def test_labels_that_are_the_student_s_own_calibrate_nothing() -> None:
    fitted = frames(50).fit(np.zeros(50))
    assert fitted.alpha is None
    assert "the student's own" in fitted.remarks[-1]


def test_an_element_in_held_out_frames_alone_is_remarked() -> None:
    made = frames(10)
    made.numbers[sum(made.sizes[:4])] = 7
    assert "only held-out frames of made up have N" in made.fit().remarks[0]


def test_bad_frames_are_refused_and_named() -> None:
    made = frames(10)
    with pytest.raises(DatasetError, match="made up has no frames"):
        fit_last_layer(made.features[:0], made.numbers[:0], [], "made up")
    with pytest.raises(DatasetError, match="Frame 1 of made up has no atoms"):
        fit_last_layer(made.features, made.numbers, [2, 0], "made up")
    with pytest.raises(DatasetError, match="made up has 2 atoms"):
        fit_last_layer(made.features, made.numbers, [2], "made up")
    for value, words in ((np.inf, "frame 4 of made up is not finite"), (-np.inf, "frame 4")):
        errors = np.zeros(10)
        errors[4] = value
        with pytest.raises(DatasetError, match=words):
            made.fit(errors)
    with pytest.raises(DatasetError, match="come with those that the student predicts"):
        fit_last_layer(made.features, made.numbers, made.sizes, "made up", labelled=np.zeros(10))
    odd = made.features.copy()
    odd[made.sizes[0]] = np.nan
    with pytest.raises(DatasetError, match="not finite for frame 1 of made up"):
        fit_last_layer(odd, made.numbers, made.sizes, "made up")
    with pytest.raises(DatasetError, match="all zero"):
        fit_last_layer(0 * made.features, made.numbers, made.sizes, "made up")


def test_features_of_another_student_are_refused() -> None:
    made = frames(10)
    fitted = made.fit()
    with pytest.raises(ShapeError, match="3 columns"):
        fitted.of_structures(made.features[:, :3], made.numbers, made.sizes)
    with pytest.raises(ShapeError, match="atoms in all"):
        fitted.of_structures(made.features, made.numbers, made.sizes[1:])


@pytest.mark.parametrize("errors", [None, np.linspace(-1, 1, 40)])
def test_json_keeps_all(errors: np.ndarray | None) -> None:
    made = frames(40)
    fitted = made.fit(errors)
    again = LastLayer.from_dict(json.loads(json.dumps(fitted.as_dict())))
    for field in dataclasses.fields(fitted):
        if field.name != "roots":
            assert getattr(again, field.name) == getattr(fitted, field.name)
    leverages = [one.leverages(made.features, made.numbers) for one in (fitted, again)]
    np.testing.assert_allclose(*leverages, rtol=1e-5)
    assert again.as_dict() == fitted.as_dict()


BAD: list[tuple[str, Any]] = [
    *[(key, bad) for key in ("alpha", "noise", "typical", "threshold") for bad in (-1.0, 0.0, float("nan"), "1", True)],
    *[("alpha", float("inf")), ("alpha", None), ("noise", None), ("quantile", 0.5)],
    *[(key, bad) for key in ("width", "frames", "held_out", "labelled") for bad in (-1, 1.5, "1", None, True)],
    *[("width", 5), ("width", 0), ("width", 10**9), ("frames", 0), ("labelled", 9), ("labelled", 0)],
    *[("source", 3), ("remarks", [1]), ("remarks", None)],
    *[("roots", bad) for bad in ({}, [], {"Xx": ""}, {"X": ""}, {"H": "AAAA"}, {"H": "?"}, {"H": 1})],
    ("roots", {"H": "AADAfw==" * WIDTH**2}),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_nonsense_in_a_bundle_is_refused(key: str, value: Any) -> None:
    values = frames(40).fit(np.linspace(-1, 1, 40)).as_dict()
    LastLayer.from_dict(values)
    with pytest.raises(BundleError, match=r"uncertainty\.json cannot be used"):
        LastLayer.from_dict({**values, key: value})
    del values[key]
    with pytest.raises(BundleError, match=r"uncertainty\.json cannot be used"):
        LastLayer.from_dict(values)


def test_one_frame_that_is_wildly_wrong_does_not_set_the_scale() -> None:
    made = frames(1000)
    errors = 0.1 * np.random.default_rng(0).normal(size=1000)
    plain = made.fit(errors)
    errors[4] = 1000.0
    assert made.fit(errors).alpha == pytest.approx(plain.alpha, rel=0.05)  # a root mean square is 30 times as large
