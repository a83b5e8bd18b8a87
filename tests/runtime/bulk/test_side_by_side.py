"""Rows that go side by side are what they are one by one, whatever stands among them."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict

from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.screening import run as screening
from painn_deploy.runtime.screening.bulk import formats
from painn_deploy.runtime.screening.bulk.block import block_of
from painn_deploy.runtime.screening.bulk.comments import read_comment
from painn_deploy.runtime.screening.bulk.results import Rows
from painn_deploy.runtime.screening.chunks import Chunk, Source, together
from painn_deploy.runtime.screening.folder import Part
from painn_deploy.runtime.screening.remarks import Remarks
from painn_deploy.runtime.screening.sources import open_source

from .odd_files import COMMENTS, odd_frames, odd_table, table_of_other_types

SLOTS = 16_384


def parts(bundle: Path, given: Path, kind: str, flag_above: float | None = None) -> list[Part]:
    job = screening.Job(str(bundle), str(given), kind, screening.Settings(64, SLOTS, flag_above=flag_above))
    here = screening.Screener(job, 1)
    with here.evaluator:
        return [here.compute(chunk) for chunk in open_source(given).scan(64).chunks]


def made(folder: Path, name: str) -> Path:
    match name:
        case "frames":
            return odd_frames(folder / "in.extxyz", 160, 3)
        case "table":
            return odd_table(folder / "in.parquet", 160, 5)
    return table_of_other_types(folder / "in.parquet", 7, int(name))


@pytest.mark.parametrize("kind", ["extxyz", "parquet", "extxyz.gz"])
@pytest.mark.parametrize("name", ["frames", "table", "0", "1"])
def test_odd_files_give_the_same_parts_either_way(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    given = made(tmp_path, name)
    together = parts(bundle, given, kind)
    monkeypatch.setattr(formats, "written_alone", lambda kind: True)
    one_by_one = parts(bundle, given, kind)
    for one, other in zip(together, one_by_one, strict=True):
        assert one.content.splitlines() == other.content.splitlines()
    assert together == one_by_one
    assert any(part.failures for part in together) or name == "1"


def side_by_side(source: Source, chunk: Chunk) -> set[int]:
    """Which rows of a chunk are found to be ordinary."""
    block = formats.read_block(source, chunk, Rows(5.0, None, Remarks()), "parquet")
    return {place for place, notes in enumerate(block.notes) if notes is not None}


@pytest.mark.parametrize("name", ["frames", "table"])
def test_nearly_all_ordinary_rows_are_found_to_be_so(tmp_path: Path, name: str) -> None:
    source = open_source(made(tmp_path, name))
    (chunk,) = source.scan(1000).chunks
    assert len(side_by_side(source, chunk)) > 60


def test_a_block_is_read_into_frames_of_the_same_values(bundle: Path, tmp_path: Path) -> None:
    for name in ("frames", "table"):
        source = open_source(made(tmp_path, name))
        (chunk,) = source.scan(1000).chunks
        block, items = formats.read_block(source, chunk, Rows(5.0, None, Remarks()), "parquet"), source.read(chunk)
        for frame, place in enumerate(block.places.tolist()):
            item, found = items[place], block.frames.atoms(frame)
            assert isinstance(item, Atoms)
            assert np.array_equal(found.numbers, item.numbers)
            assert np.array_equal(found.positions, item.positions, equal_nan=True)
            assert np.array_equal(found.pbc, item.pbc)
            if (notes := block.notes[place]) is not None:
                assert np.array_equal(found.cell.array, item.cell.array, equal_nan=True)
                assert list(notes) == list(item.info)
                assert [*map(type, notes.values())] == [*map(type, item.info.values())]


def test_no_structure_at_all(bundle: Path, tmp_path: Path) -> None:
    given = tmp_path / "in.extxyz"
    given.write_text("1\nid=a\nXx 0 0 0\n1\nid=b\nH nan 0 0\n")
    for kind in ("extxyz", "parquet"):
        assert [index for index, _ in parts(bundle, given, kind)[0].failures] == [0, 1]
    with Evaluator(bundle) as evaluator:
        nothing = block_of(0, 0, [], {}, {}.__getitem__)
        (answers,) = evaluator.answers(nothing.frames, SLOTS)
        assert len(answers) == 0


@pytest.mark.parametrize("seed", range(8))
def test_comments_are_read_as_ase_reads_them(seed: int) -> None:
    """Every comment that is read here; those of other forms are refused, and nothing is guessed."""
    r, read = random.Random(seed), 0  # noqa: S311  no secret
    letters = "ab1.- =\",TFe_5:x'{[\\"
    for _ in range(3000):
        comment = r.choice(COMMENTS).format(5)
        for _ in range(r.randrange(4)):
            place = r.randrange(len(comment) + 1)
            comment = comment[:place] + r.choice(letters) + comment[place + r.randrange(2) :]
        found = read_comment(comment.encode())
        if found is None:
            continue
        read += 1
        info = key_val_str_to_dict(comment) if comment.strip() else {}
        pbc, cell = info.pop("pbc", None), info.pop("Lattice", None)
        assert info.pop("Properties", found.properties) == found.properties
        assert found.energy == ("energy" in info)
        info.pop("energy", None)
        assert [(name, type(value), repr(value)) for name, value in found.notes.items()] == [
            (name, type(value), repr(value)) for name, value in info.items()
        ]
        assert (found.cell is None) == (cell is None)
        if found.cell is not None:
            assert np.array_equal(np.reshape(found.cell, (3, 3)), cell.T)
        repeats = np.zeros(3, bool) if pbc is None and cell is None else np.ones(3, bool) if pbc is None else pbc
        assert found.pbc == tuple(np.broadcast_to(repeats, 3).tolist())
    assert read > 300


def test_numbers_are_written_as_ase_writes_them() -> None:
    random = np.random.default_rng(0)
    numbers = np.concatenate(
        [random.normal(size=2000) * 10.0 ** random.integers(-30, 30, 2000), [0.0, -0.0, 1e16, 5.0]]
    )
    assert [str(number) for number in numbers.tolist()] == [str(number) for number in numbers]
    assert [f"{number}" for number in numbers.tolist()] == [f"{number}" for number in numbers]


@pytest.mark.parametrize("buffer", [1, 7, 64, 1000])
def test_frames_are_the_same_however_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    given = odd_frames(tmp_path / "in.extxyz", 60, 11)
    want = [frame for chunk in open_source(given).scan(9).chunks for frame in lines_of(given, chunk)]
    monkeypatch.setattr("painn_deploy.runtime.screening.extxyz_source.BUFFER", buffer)
    assert [frame for chunk in open_source(given).scan(9).chunks for frame in lines_of(given, chunk)] == want
    monkeypatch.setattr("painn_deploy.runtime.screening.extxyz_source.MOST_GLANCE", -1)  # a line at a time
    assert [frame for chunk in open_source(given).scan(9).chunks for frame in lines_of(given, chunk)] == want


def lines_of(given: Path, chunk: Chunk) -> list[tuple[list[bytes], str]]:
    frames = list(open_source(given).frames(chunk))  # type: ignore[attr-defined]
    return [([line.rstrip(b"\n") for line in frame.lines], frame.problem) for frame in frames]


def test_chunks_of_a_large_file_are_larger(tmp_path: Path) -> None:
    scan = open_source(odd_frames(tmp_path / "in.extxyz", 60, 1)).scan(4)
    larger = together(scan, 5)
    assert [chunk.number for chunk in larger.chunks] == list(range(len(larger.chunks)))
    assert sum(chunk.count for chunk in larger.chunks) == scan.rows
    assert [(chunk.first, chunk.offset) for chunk in larger.chunks] == [
        (chunk.first, chunk.offset) for chunk in scan.chunks[::5]
    ]
    for rows, size, times in ((1000, 10**6, 1), (10**6, 10**8, 8), (10**6, 10**11, 1), (70_000, 10**6, 2)):
        assert screening._times(replace(scan, rows=rows), (size, 0)) == times


def test_parts_of_before_are_taken(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose first parts are Parquet, as they were, is resumed with ones that are not."""
    from painn_deploy.runtime.screening import sinks
    from painn_deploy.runtime.screening.bulk import table_writer

    given, output = odd_table(tmp_path / "in.parquet", 90, 2), tmp_path / "out.parquet"
    screening.screen(bundle, given, tmp_path / "whole.parquet", chunk_rows=30)

    def stop(done: int, total: int, computed: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    def as_parquet(table: pyarrow.Table) -> bytes:
        file = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, file)
        return bytes(file.getvalue())

    with monkeypatch.context() as patched:
        for module in (sinks, table_writer):
            patched.setattr(module, "table_bytes", as_parquet)
        with pytest.raises(KeyboardInterrupt):
            screening.screen(bundle, given, output, chunk_rows=30, progress=stop)
    assert (tmp_path / "out.parquet.parts" / "part-00000000").read_bytes()[:4] == b"PAR1"
    assert screening.screen(bundle, given, output, resume=True).computed == 60
    resumed, whole = (pyarrow.parquet.read_table(path) for path in (output, tmp_path / "whole.parquet"))
    assert resumed.schema == whole.schema
    assert list(map(str, resumed.to_pylist())) == list(map(str, whole.to_pylist()))  # NaN among them


def test_a_long_text_among_short_ones_is_found(tmp_path: Path) -> None:
    """So that a batch is large where texts are many and short, and small where one of them is long."""
    texts: list[tuple[list[str], Callable[[int], bool]]] = [
        ([f"{row:040d}" for row in range(40_000)], lambda rows: rows == 1024),
        (["x" * 3_000_000, *map(str, range(39_999))], lambda rows: rows < 30),
    ]
    for note, holds in texts:
        table = pyarrow.table({"numbers": [[1]] * 40_000, "positions": [[0.0, 0.0, 0.0]] * 40_000, "note": note})
        pyarrow.parquet.write_table(table, tmp_path / "in.parquet", dictionary_pagesize_limit=1 << 26)
        source = open_source(tmp_path / "in.parquet")
        assert holds(source._rows_at_a_time(0))  # type: ignore[attr-defined]


def test_a_row_that_a_format_does_not_take_as_it_is_goes_alone(bundle: Path, tmp_path: Path) -> None:
    rows = [
        {"numbers": [1, 1], "positions": [[0.0, 0, 0], [0, 0, 0.7]], "info": json.dumps(info)}
        for info in ({"a": 1}, {"a b": 1}, {"a": "x\ny"}, {"a": {"b": 2}})
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    source = open_source(tmp_path / "in.parquet")
    assert side_by_side(source, source.scan(9).chunks[0]) == {0, 1, 2, 3}
    summary = screening.screen(bundle, tmp_path / "in.parquet", tmp_path / "out.extxyz")
    assert (summary.rows, summary.failures) == (4, [])
