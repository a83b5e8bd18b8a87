"""Options that several commands take, and what the exit status of `screen` says."""

import re
from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase import Atoms
from rich.console import Console
from typer.testing import CliRunner

from painn_deploy.export.bundle import read_bundle
from painn_deploy.runtime.screening import run as screening
from painn_deploy.scripts import cli
from painn_deploy.scripts.commands import choices, md
from painn_deploy.scripts.commands.md import whole_steps
from tests import students
from tests.scripts.test_cli import run


@pytest.fixture
def water(tmp_path: Path) -> Path:
    path = tmp_path / "water.extxyz"
    ase.io.write(path, students.water())
    return path


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        (["--picoseconds", "0.002", "--timestep", "0.1"], 20),
        (["--picoseconds", "0.0003", "--timestep", "0.1"], 3),  # 2.9999999999999996 in binary
        (["--picoseconds", "0.01"], 20),
        (["--picoseconds", "0.01", "--steps", "20"], 20),
        (["--steps", "7"], 7),
    ],
)
def test_md_takes_its_length_in_picoseconds_or_steps(
    bundle: Path, water: Path, tmp_path: Path, given: list[str], steps: int
) -> None:
    done = run("md", bundle, water, "-o", tmp_path / "md", "--every", 1000, *given)
    assert done.returncode == 0, done.stderr
    assert "rounded" not in done.stderr
    last = (tmp_path / "md" / "md.csv").read_text().splitlines()[-1]
    assert int(last.split(",")[0]) == steps


def test_dynamics_that_no_step_can_follow_end_with_what_happened(bundle: Path, water: Path, tmp_path: Path) -> None:
    """Without that, atoms fly apart, and each alone is at rest, near what was judged, and finite."""
    done = run("md", bundle, water, "-o", tmp_path / "md", "--timestep", 60, "--every", 1, "--steps", 400)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    (step,) = re.findall(
        r"diverged at step (\d+): atom \d \([OH]\) would move by [\d.e+]+ Å in a step of 60 fs\.", said
    )
    assert "Use a shorter time step" in said
    rows = (tmp_path / "md" / "md.csv").read_text().splitlines()
    assert 1 <= len(rows) - 1 <= int(step) + 1, "frames until then are kept"
    assert float(rows[-1].split(",")[-1]) < 1e7
    fine = run("md", bundle, water, "-o", tmp_path / "fine", "--steps", 5)
    assert fine.returncode == 0, fine.stderr


def test_options_of_a_relaxation_are_not_dropped(bundle: Path, water: Path, tmp_path: Path) -> None:
    for given in (["--fmax", "0.1"], ["--steps", "5"]):
        refused = run("screen", bundle, water, "-o", tmp_path / "out.extxyz", *given)
        assert refused.returncode == 2
        assert "give --relax too" in refused.stderr
    done = run("screen", bundle, water, "-o", tmp_path / "out.extxyz", "--relax", "--steps", 1, "--fmax", 1e-6)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "not at rest when relaxation had done its last step: 1, as in row 0: after 1 steps" in said


def test_a_length_that_is_rounded_is_said(bundle: Path, water: Path, tmp_path: Path) -> None:
    done = run("md", bundle, water, "-o", tmp_path / "md", "--picoseconds", 0.0103)
    assert done.returncode == 0, done.stderr
    assert "0.0103 ps are rounded to 21 steps of 0.5 fs, 0.0105 ps" in done.stderr
    assert "nve, 0.0105 ps" in done.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--picoseconds", "0.01", "--steps", "10"], r"0\.01 ps are 20 steps of 0\.5 fs, and --steps says 10"),
        (["--picoseconds", "0"], "0 ps are no length"),
        (["--picoseconds", "-1"], "-1 ps are no length"),
        (["--picoseconds", "nan"], "nan ps are no length"),
        (["--picoseconds", "inf"], "inf ps are no length"),
        (["--picoseconds", "0.0001"], "0.0001 ps are no length that makes sense with time steps of 0.5 fs"),
        (["--picoseconds", "1", "--timestep", "0"], "no number that makes sense"),
        (["--threads", "0"], "threads"),
    ],
)
def test_a_length_that_makes_no_sense_is_refused(
    bundle: Path, water: Path, tmp_path: Path, given: list[str], message: str
) -> None:
    done = run("md", bundle, water, "-o", tmp_path / "md", *given)
    assert done.returncode == 2, done.stdout
    assert re.search(message, " ".join(re.sub("[│\n]", " ", done.stderr).split()))
    assert not (tmp_path / "md").exists()


def test_the_length_is_the_default_where_none_is_given() -> None:
    assert whole_steps(None, None, 0.5, Console()) == md.Plan().steps == 2000


@pytest.mark.parametrize("command", ["md", "screen", "bench"])
def test_threads_reach_the_engine(
    command: str, bundle: Path, water: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from painn_deploy.scripts.benchmarks import inference
    from painn_deploy.scripts.benchmarks.contenders import bundles

    asked: list[Any] = []
    where = {"md": (md, "PaiNNCalculator"), "screen": (screening, "Evaluator"), "bench": (bundles, "PaiNNCalculator")}
    module, name = where[command]
    opened = getattr(module, name)

    def noted(*arguments: Any, threads: int | None = None, **options: Any) -> Any:
        asked.append(threads)
        return opened(*arguments, threads=threads, **options)

    monkeypatch.setattr(module, name, noted)
    monkeypatch.setattr(
        inference, "rooflines", lambda *_: ({"bytes_per_second": 1.0, "multiply_adds_per_second": {}}, [])
    )
    given: dict[str, list[object]] = {
        "md": [bundle, water, "-o", tmp_path / "md", "--steps", 1],
        "screen": [bundle, water, "-o", tmp_path / "out.extxyz"],
        "bench": [bundle, "--quick"],
    }
    with pytest.raises(SystemExit) as ended:
        cli.app([command, *map(str, given[command]), "--threads", "1"])
    assert ended.value.code == 0
    assert asked
    assert set(asked) == {1}


def test_threads_and_workers_are_not_asked_together(bundle: Path, water: Path, tmp_path: Path) -> None:
    done = run("screen", bundle, water, "-o", tmp_path / "out.db", "--threads", 2, "--workers", 2)
    assert done.returncode == 2
    assert "a worker has one CPU" in done.stderr


def test_the_status_of_a_screening_says_failed_rows(bundle: Path, tmp_path: Path) -> None:
    """0 where every row has results; 3 where some have none and the output is complete, resumed or not."""
    good, bad = students.water(), Atoms("HU", [[0, 0, 0], [0, 0, 2.0]])
    ase.io.write(tmp_path / "good.extxyz", [good] * 3)
    ase.io.write(tmp_path / "bad.extxyz", [good, bad, good, good])
    assert run("screen", bundle, tmp_path / "good.extxyz", "-o", tmp_path / "good.db").returncode == 0

    output = tmp_path / "bad.db"
    done = run("screen", bundle, tmp_path / "bad.extxyz", "-o", output)
    assert done.returncode == 3, done.stderr
    assert "1 of 4 rows have no results" in done.stderr
    assert len(ase.io.read(output, index=":")) == 4

    def stop(done: int, total: int, computed: int) -> None:
        if computed == 2:  # the row that fails is among them
            raise KeyboardInterrupt

    output = tmp_path / "stopped.extxyz"
    with pytest.raises(KeyboardInterrupt):
        screening.screen(bundle, tmp_path / "bad.extxyz", output, chunk_rows=1, progress=stop)
    for expected in ("4 rows, 2 of them by an earlier run", "4 rows, 4 of them by an earlier run"):
        done = run("screen", bundle, tmp_path / "bad.extxyz", "-o", output, "--resume")
        assert done.returncode == 3, done.stderr
        assert expected in done.stdout

    refused = run("screen", bundle, tmp_path / "bad.extxyz", "-o", output)
    assert refused.returncode == 2


def test_the_help_says_what_the_status_means() -> None:
    help_text = " ".join(re.sub("[│\n]", " ", run("screen", "--help").stdout).split())
    assert "Exit status 0 where every row has results, and 3 where OUT is complete" in help_text


def test_a_list_is_one_word_with_commas_or_an_option_that_is_repeated(painn: Path, water: Path, tmp_path: Path) -> None:
    options = ["--engine", "onnxruntime,tensorrt-rtx", "--compute-capability", "86,89", "--precision", "fp32, fp64"]
    done = run("export", painn, "-o", tmp_path, *options, "--structures", water)
    assert done.returncode == 2
    assert "The engine tensorrt-rtx has no fp64" in done.stderr
    options[-1:] = ["fp32", "--precision", "fp32"]
    assert run("export", painn, "-o", tmp_path, *options, "--structures", water).returncode == 0
    made = {path.name: read_bundle(path).manifest.bound_to for path in tmp_path.glob("*.engine")}
    assert made == {"painn-onnxruntime-fp32.engine": (), "painn-tensorrt-rtx-fp32.engine": ("86", "89")}
    assert choices.listed(None) == choices.listed([]) == []
    assert choices.precisions("fp32,i") == ["fp32,int8"]


@pytest.mark.parametrize("option", ["--engine", "--precision", "--compute-capability"])
@pytest.mark.parametrize("word", ["", ",", " , "])
def test_a_list_that_names_nothing_is_refused_and_no_default_takes_its_place(
    option: str, word: str, painn: Path, tmp_path: Path
) -> None:
    """As where a variable of the shell is not set: `--precision "$PRECISION"`."""
    done = CliRunner().invoke(cli.app, ["export", str(painn), "-o", str(tmp_path / "out"), option, word])
    assert done.exit_code == 2
    assert "names nothing" in done.output
    assert not (tmp_path / "out").exists()
