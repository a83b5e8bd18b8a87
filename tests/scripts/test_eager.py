"""The baseline that speeds are ratios to computes the student, and nothing faster."""

from pathlib import Path

import numpy as np
import pytest
import torch

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export import load_student
from painn_deploy.scripts.benchmarks.contenders.eager import EagerModel, edges_of
from tests import students


@pytest.mark.parametrize("kind", ["painn", "painn-bessel", "distiller", *students.VARIANTS])
def test_the_baseline_is_the_student(kind: str, tmp_path: Path) -> None:
    write = students.write_variant if kind in students.VARIANTS else students.write
    student = load_student(write(tmp_path, kind), dtype=torch.float64)
    zoo = students.zoo()
    structures = [students.perturbed(zoo[name], seed) for seed, name in enumerate(sorted(zoo))]
    wanted = reference_results(student, structures)
    energies, forces = EagerModel(student)(edges_of(structures, student.configuration.cutoff, torch.float64))
    references = [float(student.atomic_references[torch.from_numpy(a.numbers)].sum()) for a in structures]
    exact = np.concatenate([r["forces"] for r in wanted])
    tolerance = 1e-11 * max(100.0, np.abs(exact).max())
    np.testing.assert_allclose(
        energies.numpy() + references, [r["energy"] for r in wanted], rtol=0, atol=tolerance, err_msg="eV"
    )
    np.testing.assert_allclose(forces.numpy(), exact, rtol=0, atol=tolerance)
