"""Tables and a plot of what jobs on a GPU found, from records that are made up."""

from pathlib import Path
from typing import Any

import pytest

from painn_deploy.export.errors import OutputError
from painn_deploy.scripts.gpu.plan import LAUNCHED, REPLAYED
from painn_deploy.scripts.gpu.record import ABSENT, DONE, WAITING, Record
from painn_deploy.scripts.gpu.tables import GPU_MARKS, page, plot, read_jobs, tables

JOB: dict[str, Any] = {
    "device": "NVIDIA A", "python": "3.12", "versions": {"torch": "2.11.0"}, "student": "student-base",
    "student_sha256": "1", "quick": False,
}  # fmt: skip


def ms(value: float) -> dict[str, float]:
    return {"ms": value}


def figures(label: str, case: str, *, call: float, **more: Any) -> dict[str, Any]:
    found = {"errors": {"relative force error": 1.2e-6}, "engine call": ms(2 * call), LAUNCHED: call}
    found |= {"replayed call": ms(call), REPLAYED: call / 2, "from Atoms": ms(4 * call)}
    found |= {"memory": {"bytes": 3 * 2**20}, "floor": {"share": 0.42}}
    return {f"{label}: {case}: {what}": value for what, value in (found | more).items()}


def job(folder: Path, **changed: Any) -> Record:
    """A job with one molecule and a batch, a stage that is absent and one that was not reached."""
    record = Record(folder, JOB | changed)
    folder.mkdir(parents=True)
    eager = {f"eager: {case}: engine call": ms(10.0) for case in ("1 ethanol", "64 ethanols")}
    record.figures["first"] = {
        "peaks": {"fp32": {"bytes_per_second": 3e12, "multiply_adds_per_second": {"fp32": 2.5e13}}},
        "sizes": {"64 ethanols": {"matrix": [576, 8], "edges": 1}, "1 ethanol": {"matrix": [9, 8], "edges": 1}},
        **eager, "eager: 1 ethanol: ASE call": ms(12.0),
        **figures("inductor fp32", "1 ethanol", call=2.0, **{"ASE call": ms(3.0)}),
        **figures("inductor fp32", "64 ethanols", call=4.0, memory={"failed": "EngineError: lost"}),
        "onnxruntime fp32": {"absent": "onnxruntime cannot run on cuda:0 here."},
    }  # fmt: skip
    water = {"98304 atoms of water": {"matrix": [98304, 64], "edges": 1, "structures": 1, "sets": 1}}
    record.figures["sizes inductor fp32"] = {
        "sizes": water,
        "eager: 98304 atoms of water: engine call": {"absent": "CUDA out of memory."},
        **figures("inductor fp32", "98304 atoms of water", call=80.0, floor={"share": None}),
    }
    record.figures["speed inductor tf32"] = {
        "eager: 1 ethanol: engine call": ms(20.0), **figures("inductor tf32", "1 ethanol", call=1.0),
    }  # fmt: skip
    record.figures["opening inductor fp32"] = {"opening": {"seconds": 46.7}}
    record.figures["form plain"] = figures("inductor fp32 plain", "1 ethanol", call=0.001)
    for name in record.figures:
        record.stages[name] = {"state": DONE}
    record.stages["torch.compile"] = {"state": WAITING}
    record.stages["sizes inductor tf32"] = {"state": ABSENT, "reason": "no time"}
    for stage, found in record.figures.items():
        for name, value in found.items():
            record.note(stage, name, value)
    record.write()
    return record


def cells(text: str, heading: str, case: str) -> list[str]:
    table = text[text.index(heading) :]
    row = next(line for line in table.splitlines() if line.startswith(f"| {case} "))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_page_has_every_figure_or_the_reason_why_not(tmp_path: Path) -> None:
    job(tmp_path / "gpu" / "base")
    text = page(read_jobs([tmp_path / "gpu"]))
    assert "### student-base on NVIDIA A" in text
    assert "3 TB/s" in text
    assert "25e12 in fp32" in text
    assert "took 46.7 s" in text
    assert "0.001" not in text, "another form of the graph is none of these engines"
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert names[2:5] == ["1 ethanol", "64 ethanols", "98304 atoms of water"], "by atoms"
    assert cells(text, "| case", "1 ethanol") == ["1 ethanol", "9", "10", "– (1)", "2 (5.0)", "1 (20.0)"]
    row = cells(text, "**inductor fp32**", "1 ethanol")
    assert row == ["1 ethanol", "1", "4", "2", "5.0", "3", "4.0", "8", "", "1.2e-06", "3", "42"]
    row = cells(text, "**inductor fp32**", "64 ethanols")
    assert row[5:7] == ["", ""], "ASE has calls of one structure alone"
    assert row[8] == "4,000"
    notes = {line.partition(" ")[0]: line.partition(" ")[2] for line in text.splitlines() if line.startswith("(")}

    def reason(cell: str) -> str:
        assert cell.startswith("– (")
        return notes[cell.removeprefix("– ")].removesuffix("<br>")

    assert reason(cells(text, "| case", "1 ethanol")[3]) == "Its stage was not reached."
    assert reason(row[10]) == "EngineError: lost"
    assert reason(cells(text, "| case", "98304 atoms of water")[2]) == "CUDA out of memory."
    large = cells(text, "**inductor fp32**", "98304 atoms of water")
    assert reason(large[4]) == "CUDA out of memory."
    assert reason(large[11]) == "There is no time of the device."
    assert reason(cells(text, "**inductor tf32**", "98304 atoms of water")[1]) == "no time"


def test_a_ratio_is_to_eager_of_the_same_stage(tmp_path: Path) -> None:
    job(tmp_path / "job")
    text = page(read_jobs([tmp_path / "job"]))
    assert cells(text, "**inductor tf32**", "1 ethanol")[4] == "20.0", "eager took 20 ms beside it, and 10 elsewhere"


def test_an_engine_that_was_not_here_is_told_of(tmp_path: Path) -> None:
    record = job(tmp_path / "job")
    record.note("sizes inductor fp32", "onnxruntime fp32: 1 ethanol: engine call", ms(5.0))
    text = page(read_jobs([tmp_path / "job"]))
    assert "onnxruntime cannot run on cuda:0 here." in text


def test_figures_of_two_gpus_are_refused_and_so_are_others_that_do_not_belong(tmp_path: Path) -> None:
    for name, changed in (
        ("a", {}), ("small", {"student": "student-small", "student_sha256": "2"}), ("b", {"device": "NVIDIA B"}),
        ("other", {"student_sha256": "3"}), ("quick", {"quick": True}),
    ):  # fmt: skip
        job(tmp_path / name, **changed)
    (tmp_path / "empty").mkdir()
    both = read_jobs([tmp_path / "a", tmp_path / "small"])
    assert list(both) == ["student-base", "student-small"]
    assert page(both).count("### ") == 2
    for name, message in (
        ("b", "figures of NVIDIA A and .* of NVIDIA B"), ("other", "two students of one name"),
        ("quick", "a rehearsal"), ("empty", "holds no figures.json"),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=message):
            read_jobs([tmp_path / "a", tmp_path / name])


def test_they_go_between_the_marks_of_a_document_with_the_plot_beside(tmp_path: Path) -> None:
    job(tmp_path / "job")
    document, image = tmp_path / "docs" / "page.md", tmp_path / "docs" / "images" / "gpu.png"
    document.parent.mkdir()
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*GPU_MARKS))
    tables([tmp_path / "job"], document, image)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "](images/gpu.png)" in text
    assert image.read_bytes().startswith(b"\x89PNG")
    document.write_text("no marks")
    with pytest.raises(OutputError, match="no marks"):
        tables([tmp_path / "job"], document, None)
    assert document.read_text() == "no marks"


def test_without_a_document_they_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path / "job")
    tables([tmp_path / "job"], None, None)
    assert "**inductor fp32**" in capsys.readouterr().out
    job(tmp_path / "small", student="student-small", student_sha256="2")
    plot(read_jobs([tmp_path / "job", tmp_path / "small"]), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()
