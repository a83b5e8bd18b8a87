"""Screening as a person runs it: files in, files out, killed and resumed."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.optimize import LBFGS

from painn_deploy.export.errors import DatasetError, EngineError, OutputError
from painn_deploy.runtime import PaiNNCalculator
from painn_deploy.runtime.evaluator import Evaluator
from painn_deploy.runtime.screening import run as screening
from painn_deploy.runtime.screening.relaxation import Relaxation, relax
from painn_deploy.runtime.screening.run import screen
from tests import students
from tests.scripts.test_cli import run

from .hostile_rows import read_back as read

FORMATS = ("extxyz", "db", "parquet")


def structures(count: int) -> list[Atoms]:
    zoo = [students.zoo()[name] for name in ("water", "ethanol", "triclinic", "molecule in a box")]
    made = []
    for index in range(count):
        atoms = students.perturbed(zoo[index % 4], index, 0.03)
        atoms.set_initial_magnetic_moments(None)
        atoms.info = {"id": f"m{index}", "note": "a b", "charge_guess": index % 3}
        made.append(atoms)
    return made


def write(path: Path, items: Sequence[Atoms]) -> Path:
    """In any of the formats, as somebody else would write it."""
    if path.suffix == ".extxyz":
        ase.io.write(path, list(items))
    elif path.suffix == ".db":
        with ase.db.connect(path) as database:
            for atoms in items:
                pairs = {key: value for key, value in atoms.info.items() if key not in ("id", "note")}
                database.write(atoms, pairs, data={key: atoms.info[key] for key in ("id", "note") if key in atoms.info})
    else:
        rows = [
            {
                "id": atoms.info.get("id"),
                "numbers": atoms.numbers.tolist(),
                "positions": atoms.positions.ravel().tolist(),
                "cell": atoms.cell.array.tolist(),
                "pbc": atoms.pbc.tolist(),
                "note": atoms.info.get("note"),
                "charge_guess": atoms.info.get("charge_guess"),
            }
            for atoms in items
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    return path


@pytest.mark.parametrize(("source", "target"), [("extxyz", "db"), ("db", "parquet"), ("parquet", "extxyz")])
def test_every_format_in_and_out(bundle: Path, tmp_path: Path, source: str, target: str) -> None:
    made = structures(30)
    given = write(tmp_path / f"in.{source}", made)
    summary = screen(bundle, given, tmp_path / f"out.{target}", chunk_rows=8)
    assert (summary.rows, summary.computed, summary.failures) == (30, 30, [])
    rows = read(tmp_path / f"out.{target}")
    want = PaiNNCalculator(bundle).calculate_batch(made)
    assert len(rows) == 30
    for atoms, row, result in zip(made, rows, want, strict=True):
        assert row.info == atoms.info
        np.testing.assert_allclose(row.positions, atoms.positions, atol=1e-7)
        assert row.pbc.tolist() == atoms.pbc.tolist()
        assert row.get_potential_energy() == pytest.approx(result["energy"], abs=3e-6 * len(atoms))
        np.testing.assert_allclose(row.get_forces(), result["forces"], rtol=0, atol=1e-5)
        assert ("stress" in row.calc.results) == ("stress" in result)
        if "stress" in result:
            np.testing.assert_allclose(row.get_stress(), result["stress"], rtol=0, atol=1e-6)
    assert not (tmp_path / f"out.{target}.parts").exists()
    assert json.loads((tmp_path / f"out.{target}.screening.json").read_text())["finished"]


def killed(arguments: Sequence[object], parts: Path, after: int) -> None:
    """Run the command and kill it, with no chance to say goodbye, when it has written some parts."""
    command = [sys.executable, "-m", "painn_deploy.scripts.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(list(parts.glob("part-????????"))) < after and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, "it was done before it was killed"


def test_killed_twice_and_resumed_gives_the_very_rows(bundle: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "in.extxyz", structures(700))
    whole, output, parts = (tmp_path / name for name in ("whole.extxyz", "out.extxyz", "out.extxyz.parts"))
    screen(bundle, given, whole, chunk_rows=20)
    command = ["screen", bundle, given, "-o", output]
    killed([*command, "--batch-size", 20], parts, 3)
    first = len(list(parts.glob("part-????????")))
    with pytest.raises(OutputError, match="--resume"):
        screen(bundle, given, output)
    killed([*command, "--resume"], parts, first + 5)
    done = run(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert "700 rows" in done.stdout
    assert "by an earlier run" in done.stdout
    assert output.read_bytes() == whole.read_bytes()
    assert screen(bundle, given, output, resume=True).computed == 0
    with pytest.raises(OutputError, match="--overwrite"):
        screen(bundle, given, output)
    assert screen(bundle, given, output, overwrite=True, chunk_rows=500).computed == 700
    assert len(read(output)) == 700


def test_a_bad_row_is_told_and_does_not_stop_the_rest(bundle: Path, tmp_path: Path) -> None:
    made = structures(12)
    made[3] = Atoms("HU", [[0, 0, 0], [0, 0, 2.0]])
    made[5].positions[0] = np.nan
    made[7].positions[0] = made[7].positions[1]
    given = write(tmp_path / "in.extxyz", made)
    frames = given.read_text().splitlines(keepends=True)
    starts = [index for index, line in enumerate(frames) if line.strip().isdigit()]
    frames[starts[9] + 2] = "H not a number 0\n"
    del frames[starts[10] + 3]
    frames[starts[1]] = "three\n"
    given.write_text("".join([*frames, "".join(frames[: starts[1]]).replace("id=m0", "id=last")]))
    done = run("screen", bundle, given, "-o", tmp_path / "out.extxyz")
    assert done.returncode == 3, done.stderr
    reasons = {1: "'three'", 3: "Atom 1 is U", 5: "NaN", 7: "on one spot", 9: "cannot be read", 10: "are announced"}
    assert "6 of 13 rows have no results" in done.stderr
    rows = ase.io.read(tmp_path / "out.extxyz", index=":")
    assert len(rows) == 13
    for index, row in enumerate(rows):
        assert ("screen_error" in row.info) == (index in reasons)
        if index in reasons:
            assert reasons[index] in row.info["screen_error"]
            assert f"  {index}: {row.info['screen_error']}" in done.stderr
        else:
            assert np.isfinite(row.get_potential_energy())
    recorded = json.loads((tmp_path / "out.extxyz.screening.json").read_text())["failures"]
    assert [index for index, _ in recorded] == list(reasons)
    for target in ("db", "parquet"):
        screen(bundle, tmp_path / "in.extxyz", tmp_path / f"out.{target}")
        assert [index for index, row in enumerate(read(tmp_path / f"out.{target}")) if "screen_error" in row.info] == [
            *reasons
        ]


def test_an_unknown_element_in_row_40_000(bundle: Path, tmp_path: Path) -> None:
    line = '2\nProperties=species:S:1:pos:R:3 pbc="F F F"\nH 0 0 0\n{} 0 0 {:.4f}\n'
    given = tmp_path / "in.extxyz"
    given.write_text("".join(line.format("U" if i == 40_000 else "O", 0.9 + i * 1e-5) for i in range(40_003)))
    source = screening.open_source(given)
    chunks = source.scan(512).chunks
    assert sum(chunk.count for chunk in chunks) == 40_003
    job = screening.Job(str(bundle), str(given), "extxyz", screening.Settings(512, 16_384))
    part = screening.Screener(job).compute(chunks[-1])
    ((index, reason),) = part.failures
    assert index == 40_000
    assert "Atom 1 is U" in reason
    assert part.content.count(b"screen_error") == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_input_that_cannot_be_screened(bundle: Path, tmp_path: Path, kind: str) -> None:
    empty = tmp_path / f"empty.{kind}"
    if kind == "extxyz":
        empty.write_text("\n\n")
    elif kind == "db":
        write(empty, structures(1))
        del (database := ase.db.connect(empty))[1]
        assert len(database) == 0
    else:
        table = pyarrow.table({"numbers": pyarrow.array([], pyarrow.list_(pyarrow.int32())), "positions": [[]][:0]})
        pyarrow.parquet.write_table(table, empty)
    with pytest.raises(DatasetError, match="holds no structures"):
        screen(bundle, empty, tmp_path / "out.extxyz", overwrite=True)
    twice = structures(9)
    twice[8].info["id"] = "m2"
    given = write(tmp_path / f"twice.{kind}", twice)
    if kind != "db":  # whose ids are unique by its making
        with pytest.raises(DatasetError, match=r"Rows 2 and 8 of .* have the same id"):
            screen(bundle, given, tmp_path / "out.extxyz", overwrite=True)
    nonsense = tmp_path / f"nonsense.{kind}"
    nonsense.write_text("neither\n")
    if kind == "extxyz":
        assert len(screen(bundle, nonsense, tmp_path / "out.extxyz", overwrite=True).failures) == 1
    else:
        with pytest.raises(DatasetError, match="nonsense"):
            screen(bundle, nonsense, tmp_path / "out.extxyz", overwrite=True)


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("absent.extxyz", "out.extxyz", {}, "There is no file"),
        ("in.cif", "out.extxyz", {}, "ends in none of .extxyz"),
        ("in.extxyz", "out.csv", {}, "ends in none of .extxyz"),
        ("in.extxyz", "in.extxyz", {"overwrite": True}, "is the input"),
        ("in.extxyz", "there.extxyz", {}, "--overwrite"),
        ("in.extxyz", "there.extxyz", {"resume": True}, "was not made by a screening"),
        ("in.extxyz", "out.extxyz", {"resume": True, "overwrite": True}, "Either resume or overwrite"),
        ("in.extxyz", "in.extxyz/out.extxyz", {}, "Cannot make"),
    ],
)
def test_what_cannot_begin_says_why(
    bundle: Path, tmp_path: Path, source: str, target: str, options: dict[str, bool], message: str
) -> None:
    for name in ("in.cif", "there.extxyz", "in.extxyz"):
        write(tmp_path / "some.extxyz", structures(2)).replace(tmp_path / name)
    before = (tmp_path / "there.extxyz").read_bytes()
    with pytest.raises((DatasetError, OutputError), match=message):
        screen(bundle, tmp_path / source, tmp_path / target, **options)
    assert (tmp_path / "there.extxyz").read_bytes() == before
    assert not list(tmp_path.glob("*.parts"))


def test_an_error_is_one_line(bundle: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "in.extxyz", structures(2))
    for arguments, message in (
        (["-o", given, "--overwrite"], "is the input"),
        (["-o", "x.db", "--address", "a"], "give"),
    ):
        done = run("screen", bundle, given, *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_resuming_wants_the_same_run(bundle: Path, tmp_path: Path) -> None:
    given, output = write(tmp_path / "in.extxyz", structures(20)), tmp_path / "out.extxyz"
    with pytest.raises(KeyboardInterrupt):
        screen(bundle, given, output, chunk_rows=4, progress=stop_after(8))
    with pytest.raises(OutputError, match="relaxation was None"):
        screen(bundle, given, output, resume=True, relaxation=Relaxation())
    with pytest.raises(OutputError, match="chunks of 4 rows, and 5"):
        screen(bundle, given, output, resume=True, chunk_rows=5)
    write(tmp_path / "in.extxyz", structures(21))
    with pytest.raises(OutputError, match="input_sha256 was .*; rows was 20 and is 21"):
        screen(bundle, given, output, resume=True)
    write(tmp_path / "in.extxyz", structures(20))
    assert screen(bundle, given, output, resume=True).computed == 12


def stop_after(rows: int) -> screening.Progress:
    def progress(done: int, total: int, computed: int) -> None:
        if computed >= rows:
            raise KeyboardInterrupt

    return progress


def test_two_runs_do_not_write_one_output(bundle: Path, tmp_path: Path) -> None:
    given, output = write(tmp_path / "in.extxyz", structures(4)), tmp_path / "out.extxyz"
    with screening.Folder(output).locked(), pytest.raises(OutputError, match="Another screening"):
        screen(bundle, given, output, resume=True)


def test_a_disk_that_is_full_costs_no_row_that_was_done(bundle: Path, tmp_path: Path) -> None:
    """The system refuses a write in the middle: here for a file's size, as a full disk does for all of them."""
    made = structures(40)
    made[32:36] = [Atoms(molecule("C60")) for _ in range(4)]
    given, whole, output = write(tmp_path / "in.extxyz", made), tmp_path / "whole.extxyz", tmp_path / "out.extxyz"
    screen(bundle, given, whole, chunk_rows=4)
    command = [sys.executable, "-m", "painn_deploy.scripts.cli", "screen", bundle, given, "-o", output]
    done = subprocess.run(
        [*map(str, command), "--batch-size", "4"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Cannot write into" in done.stderr
    assert "8 finished parts are safe" in done.stderr
    assert "--resume" in done.stderr
    assert screen(bundle, given, output, resume=True).computed == 8
    assert output.read_bytes() == whole.read_bytes()


def test_relaxed_structures_are_at_rest(bundle: Path, tmp_path: Path) -> None:
    made = [students.perturbed(molecule(name), seed, 0.02) for seed, name in enumerate(["H2O", "CH3OH", "NH3"] * 2)]
    made[1].set_constraint(FixAtoms([0]))
    made[4] = Atoms("U")
    given = write(tmp_path / "in.extxyz", made)
    done = run("screen", bundle, given, "-o", tmp_path / "out.extxyz", "--relax", "--fmax", 0.1, "--steps", 300)
    assert done.returncode == 3, done.stderr
    rows = ase.io.read(tmp_path / "out.extxyz", index=":")
    calculator = PaiNNCalculator(bundle)
    for index, row in enumerate(rows):
        if index == 4:
            assert "U" in row.info["screen_error"]
            continue
        assert row.info["relax_converged"]
        assert row.info["relax_steps"] > 0
        assert np.linalg.norm(row.get_forces(), axis=1).max() <= 0.1 + 1e-6
        (result,) = calculator.calculate_batch([row])
        assert row.get_potential_energy() == pytest.approx(result["energy"], abs=1e-5)
    np.testing.assert_allclose(rows[1].positions[0], made[1].positions[0], atol=1e-7)


def test_relaxation_takes_the_steps_that_ase_s_optimiser_takes(bundle: Path) -> None:
    made = [students.perturbed(molecule(name), 1, 0.02) for name in ("H2O", "CH3OH", "NH3")]
    with PaiNNCalculator(bundle) as calculator:
        for (moved, outcome), atoms in zip(
            relax(calculator.evaluator, made, Relaxation(1e-3, 5), 200), made, strict=True
        ):
            assert moved is not None
            assert outcome.results is not None
            assert (outcome.results["relax_steps"], outcome.results["relax_converged"]) == (5, False)
            atoms.calc = calculator
            LBFGS(atoms, logfile=None).run(fmax=1e-3, steps=5)
            np.testing.assert_allclose(moved.positions, atoms.positions, rtol=0, atol=1e-4)


def test_results_that_came_with_the_input_are_replaced(bundle: Path, tmp_path: Path) -> None:
    atoms = students.water()
    atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((3, 3)))
    atoms.info["screen_error"] = "of another time"
    given = tmp_path / "in.extxyz"
    ase.io.write(given, atoms)
    screen(bundle, given, tmp_path / "out.extxyz")
    row = ase.io.read(tmp_path / "out.extxyz")
    assert row.get_potential_energy() != -1.0
    assert "screen_error" not in row.info


def test_an_engine_that_fails_for_all_stops_the_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("The GPU is gone.")

    monkeypatch.setattr(Evaluator, "run", refuse)
    with pytest.raises(EngineError, match="GPU is gone"):
        screen(bundle, write(tmp_path / "in.extxyz", structures(8)), tmp_path / "out.extxyz")


def children(root: int) -> set[int]:
    """Processes below one, itself included."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
    found, before = {root}, 0
    while len(found) > before:
        before = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found


def test_workers_that_are_killed_lose_nothing(bundle: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "in.extxyz", structures(500))
    whole, output = tmp_path / "whole.extxyz", tmp_path / "out.extxyz"
    screen(bundle, given, whole, chunk_rows=20)
    parts, shot = tmp_path / "out.extxyz.parts", 0
    command = ["screen", bundle, given, "-o", output, "--workers", 2, "--batch-size", 20]
    with subprocess.Popen(
        [sys.executable, "-m", "painn_deploy.scripts.cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        while process.poll() is None:
            time.sleep(0.02)
            if shot < 1 and len(list(parts.glob("part-????????"))) > 1:
                for child in children(process.pid):
                    name = Path(f"/proc/{child}/cmdline")
                    if shot < 1 and name.exists() and b"MapWorker" in name.read_bytes():
                        os.kill(child, signal.SIGKILL)
                        shot += 1
        assert process.returncode == 0
    assert shot == 1
    assert output.read_bytes() == whole.read_bytes()


def test_a_chunk_that_kills_its_workers_is_given_up(bundle: Path, tmp_path: Path) -> None:
    from painn_deploy.runtime.screening.workers import ATTEMPTS, Worker

    given = write(tmp_path / "in.extxyz", structures(8))
    job = screening.Job(str(bundle), str(given), "extxyz", screening.Settings(4, 16_384))
    rows = {name: np.array([value]) for name, value in (("number", 1), ("first", 4), ("count", 4), ("offset", 0))}
    (tmp_path / "attempts-00000001").write_bytes(b"." * ATTEMPTS)
    answer = Worker(job, str(tmp_path), None)(rows)
    assert answer["content"] == [b""]
    assert "A worker failed on rows 4 to 7: 3 workers were killed at it" in answer["error"][0]
    assert "too little memory" in answer["error"][0]


WITH_LITTLE_MEMORY = """
import sys, numpy as np
from painn_deploy.runtime.screening import run as screening
from painn_deploy.runtime.screening.workers import Worker
bundle, given, folder = sys.argv[1:]
job = screening.Job(bundle, given, "extxyz", screening.Settings(4, 16_384))
chunk = screening.open_source(given).scan(4).chunks[0]
rows = {name: np.array([value]) for name, value in vars(chunk).items()}
answer = Worker(job, folder, 0.05)(rows)
print([(one["index"], one["reason"]) for one in answer["failures"][0]], answer["error"])
"""


def test_a_worker_out_of_memory_says_so(bundle: Path, tmp_path: Path) -> None:
    """In a process of its own, since a limit on memory cannot be taken back."""
    from ase.build import bulk

    large = bulk("C", "diamond", a=3.57, cubic=True).repeat(6)
    given = write(tmp_path / "in.extxyz", [students.water(), large, students.water()])
    done = subprocess.run(
        [sys.executable, "-c", WITH_LITTLE_MEMORY, str(bundle), str(given), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = r"\[\(1, .1728 atoms with up to 46 neighbours each need about 0\.\d+ GiB, and 0\.0\d+ GiB are free"
    assert re.match(told, done.stdout), done.stdout
