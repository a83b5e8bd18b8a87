"""A student is judged where it lives: foreign structures are left out, named, and never condemn an engine."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from rich.console import Console
from safetensors.torch import load_file, save_file

from painn_deploy.calibration.accuracy.domain import find_domain, unsound
from painn_deploy.calibration.accuracy.left_out import LeftOut, summary
from painn_deploy.calibration.accuracy.parity import check_parity
from painn_deploy.calibration.report.report import page
from painn_deploy.calibration.report.validation import Options, validate
from painn_deploy.engines.onnxruntime.backend import open_graph
from painn_deploy.export import load_student
from painn_deploy.export.errors import DatasetError, ParityError
from painn_deploy.export.fields import GraphInputs, GraphOutputs
from painn_deploy.export.graph.onnx_graph import export_onnx
from painn_deploy.export.manifest import read_bundle
from painn_deploy.scripts import export_engines
from painn_deploy.scripts.commands.validate import print_validations
from tests import students


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of H and O alone, whose energies mean nothing where there is carbon or nitrogen."""
    path = students.write(tmp_path_factory.mktemp("narrow"), "painn", species=[1, 6, 7, 8])
    weights = load_file(path)
    embedding = weights["representation.embedding.weight"]
    embedding[[6, 7]] *= 1e6
    save_file(weights, path)
    return path


def waters(count: int) -> list[Atoms]:
    return [students.perturbed(molecule("H2O"), seed) for seed in range(count)]


def numbers(value: Any) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return [n for each in value.values() for n in numbers(each)]
    if isinstance(value, list):
        return [n for each in value for n in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


def test_what_a_student_cannot_be_judged_on() -> None:
    fine = {"energy": -10.0, "forces": np.ones((3, 3))}
    assert unsound(fine, fine) == ""
    assert "beyond 50 eV/Å" in unsound(fine | {"forces": 60 * np.ones((3, 3))}, fine)
    assert unsound(*[fine | {"forces": 60 * np.ones((3, 3))}] * 2, largest_force=np.inf) == ""
    assert "NaN or infinity" in unsound(fine | {"forces": np.full((3, 3), np.nan)}, fine)
    assert "NaN or infinity" in unsound(fine | {"energy": np.inf}, fine)
    assert "forces in float32" in unsound(fine, fine | {"forces": 1.02 * np.ones((3, 3))})
    assert "forces in float32" in unsound(fine, fine | {"forces": np.full((3, 3), np.nan)})
    assert "energy in float32" in unsound(fine, fine | {"energy": -10.004})
    assert "energy in float32" in unsound(fine, fine | {"energy": np.nan})


def test_foreign_structures_are_left_out_named_and_nothing_absurd_is_stored(narrow: Path, tmp_path: Path) -> None:
    (path,) = export_engines(narrow, tmp_path)
    validation = json.loads(read_bundle(path).file("validation.json"))
    assert validation["structures"] > 3
    names = {each["structure"] for each in validation["left_out"]}
    assert {"CH4", "C6H6", "NH3"} <= names
    assert "H2O" not in names
    assert all(each["reason"].startswith("the student") for each in validation["left_out"])
    assert max(map(abs, numbers(validation))) < 1e4
    assert validation["force_max"] < 1e-3


def test_validate_condemns_no_engine_for_what_its_student_never_saw(narrow: Path, tmp_path: Path) -> None:
    """Errors, audit, report and screen name what is left out, hold no absurd number, and find the engine faithful."""
    (path,) = export_engines(narrow, tmp_path)
    (found,) = validate([path], narrow, Options(picoseconds=0.0))
    assert found.failures == []
    assert {"CH4", "NH3"} <= {each.structure for each in found.left_out}
    assert found.audit is not None
    assert {each.structure.split(",")[0] for each in found.audit.left_out} >= {"NH3"}
    assert max(map(abs, numbers(found.as_dict()))) < 1e6
    report = page([found])
    assert "left out, since the student" in report
    screen = io.StringIO()
    assert not print_validations(Console(file=screen, width=200), [found], None, strict=False)
    assert "left out, since the student" in screen.getvalue()
    assert "physics: " in screen.getvalue()


def test_the_user_s_frames_are_the_domain(narrow: Path, tmp_path: Path) -> None:
    (path,) = export_engines(narrow, tmp_path, structures=waters(3))
    validation = json.loads(read_bundle(path).file("validation.json"))
    assert validation["measured_on"] == "3 structures given in Python"
    assert (validation["structures"], validation["left_out"]) == (3, [])


def test_frames_that_are_none_of_the_student_s_are_refused(narrow: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no structure of 1 structures .* to judge .*: 1 left out, .* 0 \(CH4\)"):
        export_engines(narrow, tmp_path, structures=[students.perturbed(molecule("CH4"))])
    assert list(tmp_path.glob("*.engine")) == []


def test_large_forces_are_the_user_s_business(painn: Path) -> None:
    student = load_student(painn, dtype=torch.float64)
    close = Atoms("H2", [[0, 0, 0], [0, 0, 1e-3]])
    forces = find_domain(student, [close], "close", brought=True).wanted[0]["forces"]
    assert np.abs(forces).max() > 0


def test_the_gate_judges_the_engine_and_not_the_student(narrow: Path) -> None:
    """Where float32 cannot hold the student nothing is asked; where it can, a wrong engine is stopped by name."""
    run = open_graph(export_onnx(load_student(narrow), {}).SerializeToString())
    student = load_student(narrow, dtype=torch.float64)
    found = check_parity(run, student)
    assert found["structures"] >= 4
    assert {"CH4", "NH3"} <= {each["structure"] for each in found["left_out"]}
    assert found["forces"] < 3e-5

    def wrong(inputs: GraphInputs) -> GraphOutputs:
        outputs = GraphOutputs(*run(inputs))
        return outputs._replace(forces=outputs.forces + 1e-3 * (inputs.atomic_numbers == 8)[:, None])

    with pytest.raises(ParityError, match=r"On H2O the engine's forces differ .* by 1\.0"):
        check_parity(wrong, student)
    with pytest.raises(ParityError, match=r"On H2O the engine's forces"):
        check_parity(wrong, student, brought=waters(1))
    with pytest.raises(ParityError, match=r"no structure to compare .*C6H6.*too steep for float32"):
        check_parity(run, student, [[students.perturbed(molecule("C6H6"))]])


def test_structures_that_were_brought_do_not_narrow_the_gate(painn: Path) -> None:
    """An engine that is wrong on crystals alone is stopped, though the user brought a molecule."""
    run = open_graph(export_onnx(load_student(painn), {}).SerializeToString())

    def wrong(inputs: GraphInputs) -> GraphOutputs:
        outputs = GraphOutputs(*run(inputs))
        own = (inputs.neighbours == np.arange(len(inputs.neighbours))[:, None]) & (inputs.mask > 0)
        return outputs._replace(forces=outputs.forces + 1e-3 * own.any(1)[:, None])

    student = load_student(painn, dtype=torch.float64)
    check_parity(wrong, student, [waters(1)])
    with pytest.raises(ParityError):
        check_parity(wrong, student, brought=waters(1))


def test_what_was_left_out_is_summarised_by_reason() -> None:
    left = [LeftOut(i, f"s{i}", "it is far") for i in range(6)] + [LeftOut(None, "t", "it is near")]
    assert summary(left) == [
        "6 left out, since it is far: 0 (s0), 1 (s1), 2 (s2), 3 (s3) and 2 more",
        "1 left out, since it is near: t",
    ]
    assert summary([]) == []
