"""A radial table changes forces by what is said, stays differentiable, and never answers where it may not."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.accuracy.tabling import find_table
from painn_deploy.export import load_student
from painn_deploy.export.errors import ExportError
from painn_deploy.export.manifest import read_bundle
from painn_deploy.export.model.force_head import autograd_forces, explicit_forces, tensors
from painn_deploy.export.model.radial_table import RadialTable
from painn_deploy.export.model.student import Student
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.matrix import graph_inputs
from painn_deploy.scripts import export_engines
from tests import students

KINDS = ["painn", "painn-bessel", "distiller"]
CUTOFF = 4.0


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return students.write(tmp_path_factory.mktemp("table"), request.param, species=[1, 6, 8])


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> Student:
    return load_student(checkpoint, dtype=torch.float64)


def table_of(student: Student, rank: int = 32, intervals: int = 512) -> RadialTable:
    table = student.with_radial_table(rank, intervals).radial_table
    assert table is not None
    return table


def filters(table: RadialTable, distances: torch.Tensor) -> torch.Tensor:
    row = distances.unsqueeze(0)
    return (table(row, torch.ones_like(row)) @ table.weight.mT)[0]


def test_its_filters_are_the_network_s_up_to_the_very_cutoff(exact: Student) -> None:
    distances = torch.linspace(0.6, CUTOFF, 4001, dtype=torch.float64)
    error = (filters(table_of(exact), distances) - exact.wanted_filters(distances)).abs()
    assert error.max() < 1e-5, f"largest at {distances[int(error.amax(1).argmax())]} Å"


def test_values_and_slopes_have_no_jumps_and_belong_together(exact: Student) -> None:
    table = table_of(exact, 16, 64)  # so coarse that a knot would show
    knots = torch.arange(1, 64, dtype=torch.float64) * table.spacing
    sides = [filters(table, knots + shift) for shift in (-1e-9, 1e-9)]
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=1e-6)
    places = (knots[:, None] + torch.tensor([-1e-9, 1e-9, 0.3 * table.spacing])).flatten().clamp(max=CUTOFF - 1e-3)
    at = places.requires_grad_()
    (slopes,) = torch.autograd.grad(filters(table, at).sum(), at)
    step = 1e-6
    with torch.no_grad():
        rise = (filters(table, at + step) - filters(table, at - step)).sum(1) / (2 * step)
    torch.testing.assert_close(slopes, rise, rtol=1e-5, atol=1e-4)


def test_a_masked_slot_gives_nothing_and_a_distance_beyond_float32_of_the_cutoff_the_last_knot(exact: Student) -> None:
    table = copy.deepcopy(table_of(exact)).float()
    just_below = torch.tensor([[np.nextafter(CUTOFF, 0.0), 1.0, 1.0]], dtype=torch.float64).float()
    assert just_below[0, 0] == CUTOFF, "rounds up to the cutoff"
    found = table(just_below, torch.tensor([[1.0, 0.0, 1.0]]))
    at_end = exact.wanted_filters(torch.tensor([CUTOFF], dtype=torch.float64))[0].float()
    torch.testing.assert_close(found[0, 0] @ table.weight.mT, at_end, rtol=0, atol=1e-5)
    assert not found[0, 1].any()
    assert found[0, 2].any()
    assert table(torch.tensor([[float("nan")]]), torch.ones(1, 1)).isnan().all()


def test_forces_are_the_exact_gradient_of_the_tabled_energy(exact: Student) -> None:
    zoo = students.zoo()
    tabled = exact.with_radial_table(16, 64)
    graph = tensors(graph_inputs([*zoo.values()], CUTOFF, np.float64), torch.float64)
    for got, wanted in zip(explicit_forces(tabled, graph), autograd_forces(tabled, graph), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)


def test_the_smallest_table_within_the_bound_is_taken(exact: Student) -> None:
    structures = [students.perturbed(students.zoo()[name]) for name in ("water", "ethanol", "benzene")]
    coarse = find_table(exact, structures, "three molecules", 1e-3)
    assert coarse.max_force_error <= 1e-3
    fine = find_table(exact, structures, "three molecules", bound := coarse.max_force_error / 3)
    assert fine.max_force_error <= bound
    assert (coarse.rank, coarse.intervals) < (fine.rank, fine.intervals)
    wanted = reference_results(exact, structures)
    found = reference_results(exact.with_radial_table(fine.rank, fine.intervals), structures)
    errors = [np.abs(f["forces"] - w["forces"]).max() for f, w in zip(found, wanted, strict=True)]
    assert max(errors) == pytest.approx(fine.max_force_error)
    with pytest.raises(ExportError, match=r"No radial table .* 1.0e-15 eV/Å.*--max-table-error"):
        find_table(exact, structures, "three molecules", 1e-15)


def test_no_table_is_held_to_rounding_noise(tmp_path: Path) -> None:
    """Without an epsilon the carbon of a perfect CH4 is at a cusp: its forces are another's where it hardly moved."""
    exact = load_student(students.write_variant(tmp_path, "no epsilon"), dtype=torch.float64)
    cusp, away = molecule("CH4"), students.perturbed(molecule("CH4"))
    found = find_table(exact, [cusp, away], "both")
    assert found.structures == 1
    assert found.max_force_error < 2e-5
    with pytest.raises(ExportError, match="off a cusp"):
        find_table(exact, [cusp], "one")


def test_an_engine_with_a_table_says_so_and_keeps_the_bound(checkpoint: Path, exact: Student, tmp_path: Path) -> None:
    structures = [students.perturbed(a) for a in students.zoo().values() if set(a.numbers) <= {1, 6, 8}]
    (plain,) = export_engines(checkpoint, tmp_path / "plain", structures=structures)
    (path,) = export_engines(checkpoint, tmp_path / "tabled", structures=structures, radial_table=True)
    assert read_bundle(plain).manifest.radial_table is None
    bundle = read_bundle(path)
    found = bundle.manifest.radial_table
    assert found is not None
    assert 0 < found["max_force_error"] <= found["bound"] == 2e-5
    assert json.loads(bundle.file("validation.json"))["force_max"] < 1e-4
    wanted = reference_results(exact, structures)
    with PaiNNCalculator(path, device="cpu") as calculator:
        for got, want in zip(calculator.calculate_batch(structures), wanted, strict=True):
            np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=1e-4)
