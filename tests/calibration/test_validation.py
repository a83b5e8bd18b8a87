"""validate: errors taken apart, two references, comparison, the report; each with what it must find."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from rich.console import Console

from painn_deploy.calibration.accuracy.breakdown import break_down
from painn_deploy.calibration.accuracy.errors import Tolerances
from painn_deploy.calibration.accuracy.left_out import LeftOut
from painn_deploy.calibration.physics.audit import Audit
from painn_deploy.calibration.physics.resolution import Resolution
from painn_deploy.calibration.physics.verdicts import Finding, Verdict
from painn_deploy.calibration.report import validation as validating
from painn_deploy.calibration.report.charts import sensitivity_bars
from painn_deploy.calibration.report.comparison import compare_accuracies
from painn_deploy.calibration.report.report import page, write_report
from painn_deploy.calibration.report.validation import (
    Options,
    Validation,
    changes,
    check_output,
    validate,
    write_validations,
)
from painn_deploy.calibration.validation_set import GROUPS, choose_validation_set, group_of, validation_set
from painn_deploy.export import load_student
from painn_deploy.export.errors import CheckpointError, DatasetError, OutputError, StructureError
from painn_deploy.export.files import to_json
from painn_deploy.export.manifest import MODEL, VALIDATION, read_bundle, write_bundle
from painn_deploy.scripts.commands.validate import print_validations
from tests import students
from tests.scripts.test_cli import run


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    zoo, path = students.zoo(), tmp_path_factory.mktemp("structures") / "few.extxyz"
    chosen = [zoo[name] for name in ("water", "ethanol", "triclinic")]
    for name, atoms in zip(("water", "<b>ethanol</b>", "triclinic"), chosen, strict=True):
        atoms.info["name"] = name
    ase.io.write(path, chosen)
    return path


@pytest.fixture(scope="module")
def validation(bundle: Path, painn: Path, structures: Path) -> Validation:
    (made,) = validate([bundle], painn, Options(structures, physics=False))
    return made


def worse(validation: Validation, factor: float) -> Validation:
    """The same with every force error larger."""
    samples = validation.samples
    results = []
    for got, want in zip(samples.results, samples.wanted, strict=True):
        off = np.asarray(want["forces"]) + factor * (np.asarray(got["forces"]) - np.asarray(want["forces"])) + 1e-3
        results.append({**got, "forces": off})
    return dataclasses.replace(
        validation,
        bundle=Path("worse.engine"),
        accuracy=validating.compare(samples.structures, results, samples.wanted),
        breakdown=break_down(samples.structures, results, samples.wanted),
    )


def test_the_default_set_has_its_groups() -> None:
    for species, groups in (((1, 6, 7, 8), GROUPS), (tuple(range(1, 95)), GROUPS), ((79,), ("crystals", "liquid"))):
        found = validation_set(species)
        assert {group_of(atoms) for atoms in found} == set(groups)
        assert all(set(atoms.numbers.tolist()) <= set(species) for atoms in found)
        names = [atoms.info["name"] for atoms in found]
        assert len(names) == len(set(names))
        again = validation_set(species)
        assert all(a == b for a, b in zip(found, again, strict=True))
    (liquid,) = [atoms for atoms in validation_set((1, 8)) if group_of(atoms) == "liquid"]
    assert len(liquid) == 81
    assert 0.9 < liquid.get_masses().sum() / liquid.get_volume() * 1.66054 < 1.1  # g/cm³
    nearest = np.sort(liquid.get_all_distances(mic=True), axis=1)[:, 1]
    assert nearest.min() > 0.6


def test_errors_are_taken_apart_by_hand() -> None:
    molecule = Atoms("OH", [[0, 0, 0], [0, 0, 1]], info={"name": "hydroxyl"})
    crystal = Atoms("O", cell=[3, 3, 3], pbc=True, info={"name": "oxide"})
    wanted = [
        {"energy": 0.0, "forces": np.array([[0, 0, 2.0], [0, 0, -2.0]])},
        {"energy": 0.0, "forces": np.array([[0, 0, 0.05]]), "stress": np.zeros(6)},
    ]
    got = [
        {"energy": 0.2, "forces": np.array([[0, 0, 2.3], [0, 0, -2.0]])},
        {"energy": -0.4, "forces": np.array([[0.6, 0, 0.05]]), "stress": np.full(6, 0.01)},
    ]
    found = break_down([molecule, crystal], got, wanted)
    assert set(found.groups) == {"molecules", "crystals"}
    assert found.groups["molecules"].force_rmse == pytest.approx(0.3 / 6**0.5)
    assert found.groups["molecules"].stress_mae is None
    assert found.groups["crystals"].stress_mae == pytest.approx(0.01)
    by_element = {part.name: part for part in found.elements}
    assert by_element["H"].rmse == 0
    assert by_element["O"].atoms == 2
    assert by_element["O"].max == pytest.approx(0.6)
    assert [(part.name, part.atoms) for part in found.magnitudes] == [("0 to 0.1 eV/Å", 1), ("1 to 3 eV/Å", 2)]
    assert found.magnitudes[0].cosine is None  # a force of nothing has no direction
    assert [worst.name for worst in found.worst] == ["oxide", "hydroxyl"]
    assert found.worst[0].energy == pytest.approx(-0.4)
    assert found.worst[0].atom == "0 (O)"
    json.dumps(found.as_dict())


def test_a_bad_crystal_does_not_hide_behind_good_molecules(validation: Validation) -> None:
    groups = dict(validation.breakdown.groups)
    assert validation.failures == []
    groups["crystals"] = dataclasses.replace(groups["crystals"], force_rmse=0.06)
    bad = dataclasses.replace(validation, breakdown=dataclasses.replace(validation.breakdown, groups=groups))
    assert bad.failures == ["past its limit on crystals: force RMSE 60.000 meV/Å exceeds 50"]


def test_two_references_tell_float32_from_the_engine(validation: Validation) -> None:
    for accuracy in (validation.accuracy, validation.float32, validation.added):
        assert 0 < accuracy.force_rmse < 1e-5
    assert validation.added.force_rmse < validation.accuracy.force_rmse + validation.float32.force_rmse
    assert validation.single.force_max < 1e-5


def test_what_got_worse_is_named(validation: Validation) -> None:
    assert not any(change.worse for change in changes(validation, validation))
    found = changes(validation, worse(validation, 2.0))
    names = [change.name for change in found if change.worse]
    assert "force RMSE" in names
    assert "force RMSE, crystals" in names
    assert "energy MAE" not in names
    assert not any(change.worse for change in changes(worse(validation, 2.0), validation))
    nan = dataclasses.replace(validation.accuracy, force_rmse=float("nan"))
    assert [c.name for c in compare_accuracies(validation.accuracy, nan) if c.worse] == ["force RMSE"]


def test_the_report_is_one_page_that_needs_nothing_else(validation: Validation, tmp_path: Path) -> None:
    rows = [
        {"gemm": f"layer{i}", "force_rmse": 1.0 + i, "precision": p, "multiply_adds": 100}
        for i, p in enumerate(("int8", "fp16", "fp32"))
    ]
    measured = dataclasses.replace(validation, sensitivity=rows)
    path = write_report([measured, worse(validation, 2.0)], tmp_path, validation)
    text = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "@import" not in text
    assert "url(" not in text
    assert text.count("<img") == 5  # parity and distributions, twice; sensitivity, once
    assert "&lt;b&gt;ethanol" in text  # a name is text, never markup
    assert "33 % in INT8" in text
    assert ">worse<" in text
    assert re.search(r"@media print", text)
    assert len(re.findall("<(table|section|tr|td|th|figure)\\b", text)) == len(
        re.findall("</(table|section|tr|td|th|figure)>", text)
    )
    written = json.loads(write_validations([measured], tmp_path, validation).read_text())
    assert written["bundles"][0]["sensitivity"] == rows
    assert written["compared_to"]["bundle"] == validation.bundle.name
    assert written["changes"][validation.bundle.name]


class Page(HTMLParser):
    """Elements with their attributes, and text, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "'\" onerror='alert(1)' x=\"", "&lt;b&gt;</td></table>"]
)
def test_names_are_text_never_markup(validation: Validation, hostile: str) -> None:
    samples = validation.samples
    structures = [atoms.copy() for atoms in samples.structures]
    for atoms in structures:
        atoms.info |= {"name": f"structure {hostile}", "group": f"group {hostile}"}
    rows = [{"gemm": f"gemm {hostile}", "force_rmse": 1.0, "precision": f"kind {hostile}", "multiply_adds": 1}]
    named = dataclasses.replace(
        validation,
        bundle=Path(f"bundle {hostile}".replace("/", "|")),
        checkpoint=f"checkpoint {hostile}",
        measured_on=f"file {hostile}",
        breakdown=break_down(structures, samples.results, samples.wanted),
        audit=Audit((finding(Verdict.HOLDS, Verdict.BROKEN, f"sentence {hostile}"),), Resolution({}, {}, {}), {}),
        sensitivity=rows,
        samples=dataclasses.replace(samples, structures=structures),
        left_out=[LeftOut(0, f"absent {hostile}", f"reason {hostile}")],
        far=[LeftOut(1, f"distant {hostile}", f"words {hostile}")],
    )
    same = dataclasses.replace(
        named, bundle=Path("bundle"), checkpoint="checkpoint", measured_on="file", sensitivity=[]
    )
    found, plain = Page(page([named], named)), Page(page([validation], validation))
    assert set(found.elements) - set(plain.elements) <= {
        "strong",
        "em",
        "span",
        "ul",
        "li",
    }  # of the audit, and of what is left out
    assert found.attributes - plain.attributes <= {"colspan"}
    assert len(found.elements) == len(Page(page([same], same)).elements) + len(("h3", "figure", "img", "p"))
    for what in ("structure", "group", "checkpoint", "file", "sentence", "absent", "reason", "distant", "words"):
        assert f"{what} {hostile}" in found.text
    assert f"100 % in KIND {hostile.upper()}" in found.text
    assert found.text.count(f"bundle {hostile}".replace("/", "|")) == 3  # a heading, the comparison's, and what is far


def test_the_sensitivity_chart_names_its_gemms() -> None:
    many = [{"gemm": f"g{i}", "force_rmse": float(i), "precision": "int8", "multiply_adds": 1} for i in range(60)]
    assert sensitivity_bars(many).count("<svg") == 1


def test_a_bundle_s_own_sensitivity_is_read(bundle: Path, painn: Path, structures: Path, tmp_path: Path) -> None:
    opened = read_bundle(bundle)
    rows = [{"gemm": "update.0", "force_rmse": 2.0, "precision": "int8", "multiply_adds": 10}]
    own = json.loads(opened.file(VALIDATION)) | {"sensitivity": rows}
    files = {MODEL: opened.file(MODEL), VALIDATION: to_json(own)}
    other = write_bundle(tmp_path / "painn.engine", opened.manifest, files)
    (found,) = validate([other.path], painn, Options(structures, physics=False))
    assert found.sensitivity == rows
    assert "What each GEMM costs" not in page([found])  # it is in the picture, as paths
    assert "Sensitivity" in page([found])


def test_bad_input(bundle: Path, painn: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not made from"):
        validate([bundle], students.write(tmp_path, "painn", seed=5))
    water = students.water()
    water.positions[1, 2] = np.nan
    ase.io.write(tmp_path / "nan.extxyz", [students.water(), water])
    with pytest.raises(StructureError, match=r"Structure 1 .*NaN"):
        validate([bundle], painn, Options(tmp_path / "nan.extxyz", physics=False))
    ase.io.write(tmp_path / "uranium.xyz", Atoms("U"))
    with pytest.raises(DatasetError, match="holds U"):
        choose_validation_set(tmp_path / "uranium.xyz", load_student(students.write(tmp_path, "painn", species=[1, 8])))
    (tmp_path / "empty.extxyz").write_text("")
    with pytest.raises(DatasetError, match=r"empty\.extxyz"):
        choose_validation_set(tmp_path / "empty.extxyz", load_student(painn))
    with pytest.raises(OutputError, match="never changes"):
        check_output(bundle / "report")


def test_the_command_tells_the_student_s_defects_from_the_engine_s(tmp_path: Path) -> None:
    """A distiller's defects are named, with exit status 0, in words and in files."""
    student = students.write(tmp_path, "distiller", species=["H", "C", "O"])
    ase.io.write(tmp_path / "water.xyz", students.water())
    done = run("export", student, "-o", tmp_path / "out", "--structures", tmp_path / "water.xyz")
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "out" / "distiller-onnxruntime-fp32.engine"
    common = ["--reference", student, "--structures", tmp_path / "water.xyz", "--picoseconds", "0"]
    done = run("validate", bundle, *common, "-o", tmp_path / "report")
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("student: broken", "rotation", "perfect symmetry", "cutoff", "faithful", "its student lacks"):
        assert text in done.stdout
    written = json.loads((tmp_path / "report" / "validation.json").read_text())
    verdicts = {f["name"]: f["verdict"] for f in written["bundles"][0]["audit"]["findings"]}
    assert verdicts["rotation, energy"] == verdicts["cutoff"] == "student: broken"
    assert verdicts["two runs"] == verdicts["net force"] == "holds"
    assert (tmp_path / "report" / "report.html").stat().st_size > 50_000


def finding(student: Verdict, engine: Verdict, sentence: str = "It flies off.") -> Finding:
    return Finding("net force", "symmetry", "H2O", 1.0, 1.0, 1.0, 0.1, 0.0, "meV/Å", student, engine, sentence)


@pytest.mark.parametrize(
    ("student", "engine", "fails", "fails_strictly"),
    [
        (Verdict.HOLDS, Verdict.HOLDS, False, False),
        (Verdict.HOLDS, Verdict.WITHIN, False, False),
        (Verdict.HOLDS, Verdict.UNRESOLVED, False, False),
        (Verdict.BROKEN, Verdict.HOLDS, False, True),
        (Verdict.HOLDS, Verdict.BROKEN, True, True),
        (Verdict.BROKEN, Verdict.BROKEN, True, True),
    ],
)
def test_strict_fails_for_the_student_and_a_loss_fails_always(
    validation: Validation, student: Verdict, engine: Verdict, fails: bool, fails_strictly: bool
) -> None:
    audited = Audit((finding(student, engine),), Resolution({}, {}, {}), {})
    judged, file = dataclasses.replace(validation, audit=audited), io.StringIO()
    for strict, wanted in ((False, fails), (True, fails_strictly)):
        assert print_validations(Console(file=file, width=80), [judged], None, strict=strict) == wanted
    lines = file.getvalue().splitlines()
    assert ("net force: It flies off." in file.getvalue()) == (finding(student, engine).verdict != "holds")
    assert all("…" not in line for line in lines), "a verdict was cut off"


def test_the_command_compares(bundle: Path, painn: Path, structures: Path) -> None:
    done = run(
        "validate", bundle, "--reference", painn, "--structures", structures, "--no-audit", "--compare-to", bundle
    )
    assert done.returncode == 0, done.stderr
    assert "compared to" in done.stdout
    assert "worse" not in done.stdout


def test_limits_are_kept_in_the_result(validation: Validation) -> None:
    values: dict[str, Any] = validation.as_dict()
    assert values["limits"] == vars(Tolerances())
    json.dumps(values)
