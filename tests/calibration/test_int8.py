"""INT8: Q/DQ as it must be, rows that nothing clips, the search and what it promises."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from painn_deploy.calibration.int8.ranges import METHODS, balance_of, measure_operands, operand_scale, row_scales
from painn_deploy.calibration.int8.search import Int8Search
from painn_deploy.calibration.int8.selection import farthest_points
from painn_deploy.calibration.int8.yardstick import Yardstick, _least_absolute
from painn_deploy.calibration.structures import calibration_structures
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export import load_student
from painn_deploy.export.errors import DatasetError, ExportError, PrecisionError
from painn_deploy.export.graph.edit import EditableGraph
from painn_deploy.export.graph.half import to_half
from painn_deploy.export.graph.int8 import (
    BY_ROW,
    LEAST_SIZE,
    OperandScale,
    _scaled,
    candidates,
    known_numbers,
    to_int8,
)
from painn_deploy.export.graph.onnx_graph import check_contract, export_onnx
from painn_deploy.export.graph.products import weight_products
from painn_deploy.runtime.matrix import graph_inputs
from tests import students

CUTOFF = 4.0


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> onnx.ModelProto:
    return export_onnx(load_student(checkpoint), {})


@pytest.fixture(scope="module")
def structures() -> list:
    return [students.perturbed(students.zoo()["ethanol"], seed) for seed in range(40)]


def test_candidates_are_wide_learnt_and_not_the_readout(model: onnx.ModelProto) -> None:
    found = candidates(model)
    assert {p.is_forward for p in found} == {True, False}
    for product in found:
        assert min(product.contracted, product.columns) >= LEAST_SIZE
        assert not product.is_readout
    basis = {p.operand for p in weight_products(model) if p.name.startswith("filters") and p.is_forward}
    first = weight_products(model)[0].operand
    assert first in basis
    assert first not in {p.operand for p in found}


def test_the_functions_of_a_radial_table_are_geometry(painn: Path) -> None:
    exact, student = (load_student(painn) for _ in range(2))
    model, tabled = (export_onnx(each, {}) for each in (exact, student.with_radial_table(16, 128)))
    assert any(product.is_of_table for product in weight_products(tabled))
    assert [product.name for product in candidates(tabled)] == [product.name for product in candidates(model)]


def test_weights_have_a_scale_a_column_and_nothing_else_changes(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    scales = {product.name: BY_ROW for product in candidates(model)}
    quantised = to_int8(model, scales)
    assert model.SerializeToString() == before
    check_contract(quantised)
    arrays = {t.name: numpy_helper.to_array(t) for t in quantised.graph.initializer}
    products = {p.name: p for p in weight_products(quantised)}
    for name in scales:
        product = products[name]
        assert product.is_int8
        assert arrays[product.weight].dtype == np.int8
        assert arrays[product.weight].shape == (product.contracted, product.columns)
    for node in quantised.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = arrays[node.input[1]], arrays[node.input[2]]
            assert not zero.any(), "zero points are 0"
            assert zero.dtype == np.int8
            if scale.ndim:  # a weight
                axis = next(a.i for a in node.attribute if a.name == "axis")
                assert axis == 1, "the axis that is not summed over"
    readout = [p for p in products.values() if p.is_readout]
    assert readout
    assert not any(p.is_int8 for p in readout)


def test_products_that_are_not_there_are_refused_and_none_changes_nothing(model: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"has no product filters\.9\.weight/forward"):
        to_int8(model, {"filters.9.weight/forward": BY_ROW})
    assert to_int8(model, {}) == model


def test_a_row_is_never_clipped(model: onnx.ModelProto) -> None:
    """Operands a million times larger or smaller lose no more than others: no range was assumed."""
    product = candidates(model)[0]
    single = onnx.ModelProto()
    single.CopyFrom(to_int8(model, {product.name: BY_ROW}))
    scaled = {n.name: n for n in single.graph.node}[f"{product.name}/scaled"]
    assert scaled.op_type == "Div"
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 16)).astype(np.float32)
    nodes = [n for n in single.graph.node if n.name.startswith(product.name) or product.name in "".join(n.input)]
    assert {"Abs", "ReduceMax", "Max", "Div", "MatMul", "Mul"} <= {n.op_type for n in nodes}
    x = rng.normal(size=(6, 16)) * np.array([[1e-6], [1e-3], [1], [1e3], [1e6], [0]])
    rows = np.maximum(np.abs(x).max(1, keepdims=True), 1e-30)
    quantised = np.round(x / rows * 127) / 127 * rows
    error = np.abs(quantised @ weight - x @ weight).max(1) / rows[:, 0]
    assert error[:5].max() < 0.5
    assert error[5] == 0


@pytest.mark.parametrize("name", ["by row", "by row, centred and balanced", *METHODS])
def test_each_way_of_scaling_runs_and_is_near(model: onnx.ModelProto, structures: list, name: str) -> None:
    yardstick = Yardstick(model, structures[20:], CUTOFF)
    products = candidates(model)
    if name == "by row":
        scales = {p.name: BY_ROW for p in products}
    elif name == "by row, centred and balanced":
        scales = dict(row_scales(model, products, [graph_inputs([a], CUTOFF) for a in structures[:20]]))
        assert all(scale.most is None and scale.balance is not None for scale in scales.values())
        rows = {p.name: p.rows for p in products}
        assert {n for n, scale in scales.items() if scale.centre is not None} == {
            n for n, axes in rows.items() if axes == ("atoms",)
        }
    else:
        statistics = measure_operands(model, products, [graph_inputs([a], CUTOFF) for a in structures[:20]])
        scales = {n: operand_scale(s, name, balanced=True) for n, s in statistics.items()}
        largest = {n: operand_scale(s, "max", balanced=True).most for n, s in statistics.items()}
        assert all(0 < scales[n].most <= largest[n] * (1 + 1e-9) for n in scales)
    errors = yardstick.errors(open_graph(to_int8(model, scales).SerializeToString()))
    scale = float(np.sqrt(np.square(yardstick._forces).mean()))
    assert 0 < errors.force_rmse < 0.5 * scale
    assert errors.energy_mae <= errors.raw_energy_mae


@pytest.mark.parametrize("most", [1.0, None])
@pytest.mark.parametrize("is_centred", [True, False])
def test_balancing_and_centring_are_exact_without_rounding(
    model: onnx.ModelProto, structures: list, most: float | None, is_centred: bool
) -> None:
    product = next(product for product in candidates(model) if product.rows == ("atoms",))
    rng = np.random.default_rng(0)
    balance = np.exp(rng.normal(size=product.contracted))
    centre = rng.normal(size=(known_numbers(model), product.contracted)) if is_centred else None
    prepared = EditableGraph(model)
    assert _scaled(prepared, {product.name: OperandScale("as said", most, balance, centre)})
    assert any(node.name == f"{product.name}/centred" for node in prepared.nodes) == is_centred
    inputs = graph_inputs(structures[:3], CUTOFF)
    run = open_graph(prepared.model().SerializeToString())
    for got, want in zip(run(inputs), open_graph(model.SerializeToString())(inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * max(1, np.abs(want).max()))


def test_centred_and_balanced_rows_lose_less_and_an_element_never_seen_is_not_centred(
    model: onnx.ModelProto, structures: list
) -> None:
    products, graphs = candidates(model), [graph_inputs([atoms], CUTOFF) for atoms in structures[:20]]
    scales = row_scales(model, products, graphs)
    yardstick = Yardstick(model, structures[20:], CUTOFF)
    plain, better = (
        yardstick.errors(open_graph(to_int8(model, found).SerializeToString())).force_rmse
        for found in ({product.name: BY_ROW for product in products}, scales)
    )
    assert better < 0.9 * plain
    tables = [scale.centre for scale in scales.values() if scale.centre is not None]
    for table in tables:
        assert set(np.flatnonzero(table.any(1)).tolist()) <= {1, 6, 8}
    assert any(table[6].any() for table in tables)
    with pytest.raises(ExportError, match="no embedding of atomic numbers"):
        known_numbers(onnx.ModelProto())


def test_a_row_with_a_loud_channel_is_balanced() -> None:
    """With a step for each row of operand and column of weight, the balance of the docstring leaves the least error."""
    rng = np.random.default_rng(0)
    loud = np.exp(rng.normal(0, 1.5, 96))
    x, weight = rng.normal(size=(400, 96)) * loud, rng.normal(size=(96, 64)) / np.sqrt(loud)[:, None]

    def error(balance: np.ndarray) -> float:
        def stepped(values: np.ndarray, axis: int) -> np.ndarray:
            step = np.abs(values).max(axis, keepdims=True) / 127
            return np.round(values / step) * step

        return float(np.square(stepped(x / balance, 1) @ stepped(weight * balance[:, None], 0) - x @ weight).mean())

    balance = balance_of(np.sqrt(np.square(x).mean(0)), np.sqrt(np.square(weight).mean(1)))
    assert error(balance) < 0.5 * error(np.ones(96))
    assert error(balance) < 1.02 * min(error(balance**0.8), error(balance**1.2))


def test_a_channel_that_calibration_never_heard_does_not_rule_its_row() -> None:
    silent = np.array([1.0, 1.0, 0.0])
    balance = balance_of(silent, np.ones(3))
    assert balance.max() / balance.min() <= 10 + 1e-9
    np.testing.assert_allclose(np.exp(np.log(balance).mean()), 1)
    assert np.isfinite(balance_of(np.zeros(3), np.zeros(3))).all()


def test_int8_among_half_is_typed_and_simulated(model: onnx.ModelProto, structures: list) -> None:
    quantised = to_int8(model, {product.name: BY_ROW for product in candidates(model)})
    typed = to_half(quantised)
    check_contract(typed)
    onnx.shape_inference.infer_shapes(typed, strict_mode=True)
    inputs = graph_inputs(structures[:3], CUTOFF)
    want = open_graph(quantised.SerializeToString())(inputs)[1]
    got = open_graph(typed.SerializeToString())(inputs)[1]
    assert 0 < np.abs(got - want).max() < 0.2 * np.abs(want).max()


def test_a_search_keeps_its_promise_and_nothing_more_fits(model: onnx.ModelProto, structures: list) -> None:
    search = Int8Search(model, structures, CUTOFF)
    alone = sorted(s.errors.force_rmse for s in search.sensitivities)
    limit = 3 * alone[len(alone) // 2]
    found = search.find(1.0, limit)
    assert 0 < len(found.scales) <= len(search.sensitivities)
    assert found.errors.force_rmse <= limit
    assert 0 < found.shares["forward"] + found.shares["backward"] <= 2
    for left in search.sensitivities:
        if left.product.name not in found.scales:
            more = [s.product for s in search.sensitivities if s.product.name in {*found.scales, left.product.name}]
            assert search._errors(more).force_rmse > 0.7 * limit
    tight = search.find(1.0, 1.5 * alone[0])
    assert len(tight.scales) <= len(found.scales)
    with pytest.raises(PrecisionError, match=r"No product can be INT8 within .* came closest: alone it costs"):
        search.find(1e-12, 1e-12)
    report = found.as_dict()
    assert {entry["precision"] for entry in report["sensitivity"]} <= {"int8", "higher"}
    assert sum(entry["precision"] == "int8" for entry in report["sensitivity"]) == len(found.scales)


def test_too_few_structures_are_refused(model: onnx.ModelProto, structures: list) -> None:
    for few in ([], structures[:1], structures[:15]):
        with pytest.raises(DatasetError, match=rf"{len(few)} are too few: give at least 16 with --structures"):
            Int8Search(model, few, CUTOFF)


def test_a_student_that_is_too_narrow_is_refused(tmp_path: Path, structures: list) -> None:
    narrow = export_onnx(load_student(students.write(tmp_path, "painn", hidden_dim=12)), {})
    with pytest.raises(PrecisionError, match="No product of this student can be INT8: none has 16 rows and columns"):
        Int8Search(narrow, structures, CUTOFF)


def test_the_correction_is_the_constant_part_and_ignores_one_outlier() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, (40, 3)) + np.eye(3)[rng.integers(0, 3, 40)]
    truth = np.array([3e-3, -1e-3, 2e-3])
    atoms = counts.sum(1)
    values = counts @ truth / atoms
    values[7] += 1.0
    np.testing.assert_allclose(_least_absolute(counts / atoms[:, None], values), truth, atol=1e-5)


def test_farthest_points_cover_the_corners() -> None:
    rng = np.random.default_rng(0)
    cloud = rng.normal(0, 0.1, (200, 2))
    corners = np.array([[5, 5], [-5, 5], [5, -5], [-5, -5]])
    points = np.concatenate([cloud, corners])
    assert set(farthest_points(points, 4)) == {200, 201, 202, 203}
    assert farthest_points(points, 4) == farthest_points(points, 4)
    assert sorted(farthest_points(points[:3], 10)) == [0, 1, 2]
    assert len(set(farthest_points(np.ones((5, 2)), 5))) == 5


def test_calibration_structures_are_of_trusted_elements() -> None:
    found = calibration_structures((1, 6, 7, 8))
    assert len(found) > 250
    assert {int(z) for atoms in found for z in atoms.numbers} == {1, 6, 7, 8}
    assert len(calibration_structures((3, 11))) >= 3
