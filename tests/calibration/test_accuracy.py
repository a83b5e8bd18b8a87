import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.units import GPa

import painn_deploy.calibration
from painn_deploy.calibration.accuracy.errors import ERROR_UNITS, Limits, Tolerances, compare
from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.calibration.structures import default_structures, seed_structures
from painn_deploy.export import load_student
from painn_deploy.scripts.commands.quantities import energy_limit, force_limit, stress_limit


def result(energy: float, forces: list[list[float]], stress: float | None = None) -> dict[str, object]:
    values: dict[str, object] = {"energy": energy, "forces": np.array(forces)}
    if stress is not None:
        values["stress"] = np.full(6, stress)
    return values


def test_errors_by_hand() -> None:
    structures = [Atoms("H2", [[0, 0, 0], [0, 0, 1]]), Atoms("O")]
    structures[0].info["name"] = "hydrogen"
    wanted = [result(1.0, [[0, 0, 1], [0, 0, -1]]), result(2.0, [[0, 0, 0]], 0.1)]
    got = [result(1.2, [[0, 0, 1.3], [0, 0, -1]]), result(1.7, [[0, 0, 0]], 0.12)]
    accuracy = compare(structures, got, wanted)
    assert accuracy.energy_mae == pytest.approx(0.2)
    assert (accuracy.energy_max, accuracy.energy_worst) == (pytest.approx(0.3), "O")
    assert accuracy.force_rmse == pytest.approx(0.3 / 3)
    assert (accuracy.force_max, accuracy.force_worst) == (pytest.approx(0.3), "hydrogen")
    assert accuracy.force_cosine == pytest.approx(1.0)
    assert accuracy.stress_mae == pytest.approx(0.02)
    assert [f.split()[0] for f in accuracy.failures(Tolerances())] == ["energy", "force", "stress"]
    assert accuracy.failures(Tolerances(1.0, 1.0, 1.0)) == []


def test_nan_is_past_every_limit() -> None:
    structures = [Atoms("O")]
    wanted, got = [result(0.0, [[0, 0, 0]], 0.0)], [result(np.nan, [[np.nan, 0, 0]], np.nan)]
    assert len(compare(structures, got, wanted).failures(Tolerances(1e9, 1e9, 1e9))) == 3


def test_limits_are_read_with_their_units() -> None:
    assert energy_limit("3meV") == energy_limit("0.003 eV/atom") == energy_limit("0.003") == pytest.approx(3e-3)
    assert force_limit("25meV/A") == force_limit("25 meV/Å") == pytest.approx(25e-3)
    assert stress_limit("0.1GPa") == pytest.approx(0.1 * GPa)
    for parse in (energy_limit, force_limit, stress_limit):
        with pytest.raises(Exception, match="not a limit such as"):
            parse("fast")


def test_default_structures_are_perturbed_and_known() -> None:
    for species in ((1, 6, 7, 8), (1,), (1, 8), (79,), tuple(range(1, 95))):
        first, again = default_structures(species), default_structures(species)
        assert first
        assert all(a == b for a, b in zip(first, again, strict=True))
        assert all(set(a.numbers.tolist()) <= set(species) for a in first)
    names = [a.info["name"] for a in default_structures((1, 6, 7, 8))]
    assert len(names) == len(set(names))
    assert {"diamond, 2 atoms", "graphene", "water, 8 molecules"} <= set(names)


def test_the_seed_s_eight_cases() -> None:
    names = [a.info["name"] for a in seed_structures((1, 6, 7, 8), symmetric=False)]
    assert names == ["H2", "H2O", "CH4 perturbed", "NH3", "C2H6", "C6H6", "H2O perturbed", "CO2 perturbed"]
    assert [a.info["name"] for a in seed_structures((1, 6, 7, 8), symmetric=True)][2] == "CH4"
    assert all(set(a.numbers.tolist()) <= {8, 14} for a in seed_structures((8, 14), symmetric=True))


def test_a_batch_changes_the_student_s_results_by_rounding_alone(painn: Path) -> None:
    exact = load_student(painn, dtype=torch.float64)
    structures = default_structures((1, 6, 7, 8))
    for student, rounding in ((exact, 1e-13), (copy.deepcopy(exact).float(), 1e-5)):
        together = reference_results(student, structures)
        for atoms, result in zip(structures, together, strict=True):
            (alone,) = reference_results(student, [atoms])
            assert alone.keys() == result.keys()
            for name, values in alone.items():
                allowed = rounding * max(1.0, float(np.abs(alone["forces"]).max()))
                np.testing.assert_allclose(result[name], values, rtol=rounding, atol=allowed, err_msg=name)


def test_tolerances_keep_their_older_name() -> None:
    assert Limits is Tolerances is painn_deploy.calibration.Limits


def test_figures_of_a_validation_keep_their_units() -> None:
    assert ERROR_UNITS == {"energy": "eV/atom", "force": "eV/Angstrom", "stress": "eV/Angstrom^3"}
