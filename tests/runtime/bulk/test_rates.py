"""The benchmark of files runs, and its rows are ordinary ones."""

from pathlib import Path

import pytest

from painn_deploy.runtime.screening.bulk.formats import read_block
from painn_deploy.runtime.screening.bulk.results import Rows
from painn_deploy.runtime.screening.remarks import Remarks
from painn_deploy.runtime.screening.sources import open_source
from painn_deploy.scripts.benchmarks.files import NullEvaluator, main, write_ethanols
from tests.runtime.hostile_rows import read_back


def test_the_benchmark_of_files_names_the_machine_and_every_way(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(bundle, rows=30, rounds=1)
    shown = capsys.readouterr().out
    assert "cores; 30 ethanols" in shown
    assert [shown.count(way) for way in ("parquet to parquet", "extxyz to parquet", "extxyz to extxyz")] == [1, 1, 1]
    assert list(tmp_path.iterdir()) == []


def test_every_row_of_it_is_ordinary_and_answered(bundle: Path, tmp_path: Path) -> None:
    for path in write_ethanols(tmp_path, 20).values():
        source = open_source(path)
        (chunk,) = source.scan(20).chunks
        block = read_block(source, chunk, Rows(5.0, None, Remarks()), "parquet")
        assert None not in block.notes
        with NullEvaluator(bundle, device="cpu") as evaluator:
            (answers,) = evaluator.answers(block.frames)
        assert answers.faults == {}
        assert not answers.forces.any()
        assert len(answers) == 20
    assert [atoms.info["id"] for atoms in read_back(tmp_path / "ethanols.extxyz")][-1] == "mol-0000019"
