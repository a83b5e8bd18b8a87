"""The tables of docs/precision.md are what their command gives."""

from pathlib import Path

import pytest
from rich.console import Console

from painn_deploy.export.graph.half import rounded
from painn_deploy.export.graph.int8 import to_int8
from painn_deploy.scripts.commands.outputs import MARKS
from painn_deploy.scripts.distillation.labels import load_teacher
from painn_deploy.scripts.distillation.plan import MOLECULES, plan, read_molecules
from painn_deploy.scripts.studies.precision import (
    Measure,
    Row,
    rows_on_split,
    split_molecules,
    split_table,
    table,
    unseen_molecules,
    ways_by_row,
)
from tests import students
from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")


def figures(student: str, what: str) -> list[float]:
    """Energy, force and box force that the document gives."""
    section = DOCUMENT.split(MARKS[0])[1].split(f"### {student}\n")[1].split("\n### ")[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"| {what} |")]
    return [float(cell) for cell in line.split("|")[2:5]]


def test_figures_of_the_document_are_made_again(references: Path) -> None:
    measure = Measure(str(references / "distiller" / "original.safetensors"), 240)
    assert len(measure.molecules) == 240
    seen = {atoms.get_chemical_formula() for atoms in measure.calibration}
    assert not seen & {atoms.get_chemical_formula() for atoms in measure.molecules}
    every = ways_by_row(measure)
    models = {"FP16": rounded(measure.model)} | {way: to_int8(measure.model, scales) for way, scales in every.items()}
    assert len(models) == 3
    for what, model in models.items():
        made = measure.row(what, model)
        want = figures("original", what)
        # CPUs sum in different orders; what is rounded to 8 or 11 bits moves by a few percent
        assert [made.energy, made.force, made.box_force] == pytest.approx(want, rel=0.1)
    assert figures("original", "FP16")[0] < 0.3
    assert figures("original", "FP16")[1] < 1.5
    within_20 = figures("original", "INT8 within 20 meV/Å, else FP16")
    assert within_20[0] < 3
    assert within_20[1] < 20


def test_the_readme_shows_rows_of_the_document() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [
        line for line in readme.split("<!-- precisions -->")[1].split("<!-- /precisions -->")[0].splitlines() if line
    ]
    assert len(rows) >= 5
    assert all(row in DOCUMENT for row in rows)


def test_unseen_molecules_are_reproducible_and_unseen() -> None:
    seen = [students.zoo()["benzene"]]
    one, again = (unseen_molecules(6, (1, 6, 7, 8), seen) for _ in range(2))
    assert [a.info["name"] for a in one] == [a.info["name"] for a in again]
    assert all((a.positions == b.positions).all() for a, b in zip(one, again, strict=True))
    assert "C6H6" not in {atoms.get_chemical_formula() for atoms in one}


def test_a_table_is_markdown() -> None:
    made = table([Row("FP16", 0.123456, 1.0, 2.0, 0.5, 0.25)], shares=True).splitlines()
    assert made[2] == "| FP16 | 0.123 | 1 | 2 | 50% | 25% |"
    assert len({line.count("|") for line in made}) == 1


def test_the_test_split_is_what_nobody_saw() -> None:
    seen = [students.zoo()["benzene"]]
    one, again = (split_molecules((1, 6, 7, 8), seen, 12) for _ in range(2))
    splits = {item.name: item.split for item in plan(read_molecules(MOLECULES))}
    assert {splits[atoms.info["name"]] for atoms in one} == {"test"}
    assert len(one) > 30
    assert all((a.positions == b.positions).all() for a, b in zip(one, again, strict=True))
    known = {atoms.get_chemical_formula() for atoms in one}
    assert not known & {atoms.get_chemical_formula() for atoms in split_molecules((1, 6, 7, 8), one, 12)}


def test_what_int8_costs_on_the_test_split() -> None:
    """Of a student that ships: little beside what its teacher says otherwise than it."""
    rows, count = rows_on_split(Measure("student:small", 4), load_teacher("tblite:GFN2-xTB"), Console(quiet=True), 4)
    assert 8 <= count <= 16
    assert [row.what for row in rows] == ["FP32", "INT8", "INT8, filters too"]
    exact, int8, filters = rows
    assert (exact.energy, exact.force, exact.forward) == (0, 0, 0)
    assert 1 < int8.force < 60
    assert abs(int8.teacher - exact.teacher) < 15
    assert 0.3 < int8.forward < 0.9 < filters.forward < 1
    assert filters.force > int8.force
    assert split_table(rows).splitlines()[2].startswith("| FP32 | 0 | 0 |")
