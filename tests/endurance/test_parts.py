"""What the stages are made of can fail: children, growth, records, judges, the reference and the generators."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from painn_deploy.calibration.accuracy.reference import reference_results
from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.checkpoint import load_student
from painn_deploy.export.errors import OutputError
from tests import students

from . import generators_bundles, generators_rows, generators_structures
from .brute_force import UnanswerableError, reading_of, reference
from .child import Emit, in_child
from .generators_bundles import ANYTHING, MUST_BE_REFUSED, altered
from .generators_structures import hostile
from .page import figures_text
from .plan import KINDS, plan
from .record import DONE, FAILED, StageRecord
from .resources import growth
from .stages import bundles, structures


def speaking(emit: Emit, what: str) -> None:
    emit("begun")
    match what:
        case "hang":
            time.sleep(60)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            emit(len(np.ones(10**9)))
        case "fail":
            raise OutputError("of ours")
        case "leave":
            os._exit(3)


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("end", "done"),
        ("hang", "no answer within 1 s"),
        ("die", "ended by signal 9"),
        ("memory", "MemoryError"),
        ("fail", "OutputError: of ours"),
        ("leave", "ended by status 3"),
    ],
)
def test_how_a_child_ends_is_told(what: str, how: str) -> None:
    heard: list[Any] = []
    ended = in_child(speaking, what, seconds=1, gib=1, heard=heard.append)
    assert how in str(ended)
    assert heard == ["begun"]


def samples(slope: float, process: int = 0, start: int = 0, base: float = 300.0) -> list[dict[str, float]]:
    """MiB per sample of 1,000."""
    noise = np.random.default_rng(process).normal(0, 0.1, 100)
    made = ({"at": 1000 * (start + n + 1), "rss": base + slope * n + noise[n]} for n in range(100))
    return [{**one, "process": process, "fds": 9, "threads": 4, "maps": 200} for one in made]


def test_growth_is_seen_and_a_new_process_is_none() -> None:
    assert growth(samples(0.0), 1000).problems(0.1, 8) == []
    (line,) = growth(samples(0.2), 1000).problems(0.1, 8)
    assert "memory grows by 0.20 MiB" in line
    two = samples(0.0) + samples(0.0, process=1, start=100, base=500.0)
    assert growth(two, 1000).problems(0.1, 8) == []
    assert growth(two, 1000).processes == 2
    leaking = [{**one, "fds": one["at"] // 1000, "maps": one["at"] // 100} for one in samples(0.0)]
    assert len(growth(leaking, 1000).problems(0.1, 8)) == 2


def test_a_record_goes_on_and_forgets_what_another_commit_or_a_failure_left(tmp_path: Path) -> None:
    record, of = StageRecord(tmp_path / "stage"), {"commit": "a", "date": "1", "scale": 1}
    assert record.begin(of)
    assert record.part("one", lambda: [1]) == [1]
    record.append("lines", {"a": 1})
    with (tmp_path / "stage" / "lines.jsonl").open("a") as file:
        file.write('{"a": ')  # killed while it wrote
    assert not record.begin({**of, "date": "2"})
    assert record.part("one", lambda: pytest.fail("it is known")) == [1]
    assert record.lines("lines") == [{"a": 1}]
    record.append("lines", {"a": 2})
    assert record.lines("lines") == [{"a": 1}, {"a": 2}]
    assert record.begin({**of, "commit": "b"})
    assert record.lines("lines") == []
    record.set(FAILED, of)
    assert record.begin(of)


def test_the_page_shows_what_failed_and_what_is_not_finished(tmp_path: Path) -> None:
    of: dict[str, Any] = {
        "machine": "m",
        "system": "s",
        "versions": {"torch": "2"},
        "commit": "c",
        "date": "d",
        "student": "x",
    }
    of |= {"bundle_sha256": "f" * 64, "scale": 1.0, "seed": 0}
    with pytest.raises(OutputError, match="holds no figures"):
        figures_text(tmp_path)
    stages = {stage.name: stage for stage in plan()}
    for name, state, failures in (
        ("calls-inductor", FAILED, ["its process ended with status -9"]),
        ("rows-onnxruntime", "under way", []),
        ("cycles-inductor", DONE, []),
    ):
        StageRecord(tmp_path / "stages" / name).set(
            state, of, stage=vars(stages[name]), figures={}, failures=failures, seconds=1.0
        )
    text = figures_text(tmp_path)
    assert "| calls-inductor | 1,000,000 | **failed** | 1 | 1 |" in text
    assert "| rows-onnxruntime | 100,000 | not finished |" in text
    assert "| cycles-inductor | 500 | holds |" in text
    assert "- calls-inductor: its process ended with status -9" in text
    assert f"`{'f' * 16}`" in text


def test_the_plan_knows_its_stages() -> None:
    assert set(KINDS) == {"calls", "rows", "bundles", "structures", "cycles", "threads", "dynamics"}
    sizes = {kind: sum(stage.size for stage in plan() if stage.kind == kind) for kind in KINDS}
    assert sizes["bundles"] == 1_000
    assert [stage.size for stage in plan(stages=["calls"])] == [1_000_000] * 2
    assert [stage.name for stage in plan(stages=["structures-inductor"])] == ["structures-inductor"]
    with pytest.raises(OutputError, match="'nothing'"):
        plan(stages=["nothing"])


def test_the_reference_of_our_own_is_the_student_s(painn: Path) -> None:
    exact, single = load_student(painn, dtype=torch.float64), load_student(painn)
    for name, atoms in students.zoo().items():
        (wanted,) = reference_results(exact, [atoms])
        found = reference(reading_of(atoms), exact, single)
        assert found is not None, name
        assert found.energy == pytest.approx(wanted["energy"], abs=1e-9), name
        assert np.abs(found.forces - wanted["forces"]).max() < 1e-9, name


def test_generators_are_functions_of_their_seed() -> None:
    for number in range(2 * len(generators_structures.KINDS)):
        one, other = hostile(5, number), hostile(5, number)
        assert one.kind == other.kind
        for name, array in one.atoms.arrays.items():
            assert repr(np.ma.getdata(array).tolist()) == repr(np.ma.getdata(other.atoms.arrays[name]).tolist())
    assert generators_rows.row(5, 7) == generators_rows.row(5, 7)
    assert generators_rows.row(5, 7) != generators_rows.row(6, 7)
    assert generators_rows.awkward_table(5, 20) == generators_rows.awkward_table(5, 20)


def test_what_must_be_answered_or_refused_is_what_can_be_read() -> None:
    """The generator's word and the reference's reading are two witnesses."""
    student = {1, 6, 7, 8}
    for number in range(6 * len(generators_structures.KINDS)):
        one = hostile(1, number)
        try:
            reading = reading_of(one.atoms)
        except UnanswerableError:
            assert one.sound is not True, one.kind
        else:
            known = set(reading.numbers.tolist()) <= student
            assert known or one.sound is not True, one.kind


@pytest.mark.parametrize("number", range(2 * max(len(generators_bundles.ACCIDENTS), len(generators_bundles.ATTACKS))))
def test_bundles_are_altered_alike_and_do_change(number: int, bundle: Path, tmp_path: Path) -> None:
    import shutil

    contents = []
    for folder in (tmp_path / "a" / "x.engine", tmp_path / "b" / "x.engine"):
        shutil.copytree(bundle, folder)
        altered(3, number, "onnxruntime").apply(folder)
        paths = sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size < 2**30)
        contents.append({path.name: path.read_bytes() for path in paths if not path.is_symlink()})
    assert contents[0].keys() == contents[1].keys()
    stable = [name for name in contents[0] if "weights outside" not in altered(3, number, "onnxruntime").kind]
    assert all(contents[0][name] == contents[1][name] for name in stable)
    if altered(3, number, "onnxruntime").renewed:  # an attacker's hashes fit whatever is still there
        return
    original = {name: (bundle / name).read_bytes() for name in (*read_bundle(bundle).manifest.files, "manifest.json")}
    kind = altered(3, number, "onnxruntime").kind
    assert (
        contents[0] != original
        or kind in ("permissions", "times", "an empty folder added", "a link added")
        or ("folder added" in kind or "fifo or socket" in kind or "file renamed" in kind)
    )


def test_the_judges_see_what_is_wrong() -> None:
    same = {"read": "read", "computed": "x", "inspected": "inspected"}
    refused = {"read": {"refused": "BundleError", "text": ""}, "computed": {"refused": "BundleError", "text": ""}}
    assert bundles.judge(MUST_BE_REFUSED, refused, same) == ("refused", [])
    assert bundles.judge(MUST_BE_REFUSED, same, same)[0] == "wrong"
    assert bundles.judge(frozenset({"refuse", "same"}), {**same, "computed": "y"}, same)[0] == "wrong"
    assert bundles.judge(ANYTHING, {**same, "computed": "y"}, same) == ("anew", [])
    assert bundles.judge(ANYTHING, {"ended": "no answer within 20 s"}, same)[0] == "wrong"
    assert bundles.judge(ANYTHING, {"read": {"problem": "KeyError"}}, same)[0] == "wrong"

    answered = {way: {"answered": True, "seconds": 0.1} for way in ("calculate", "batch", "stream")}
    fine = {"found": answered, "apart": 0.0, "coarse": 1e-15, "closest": 1.0, "energy error": 0.0, "force error": 1e-6}
    fine |= {"float32": [0.0, 0.0], "largest force": 1.0}
    assert structures.judge("", True, fine) == []
    assert structures.judge("", False, fine) != []
    for changed in ({"apart": 0.1}, {"coarse": 1e-3}, {"closest": 1e-4}, {"force error": 2e-4}, {"energy error": 0.1}):
        assert structures.judge("", None, {**fine, **changed}) != [], changed
    assert structures.judge("", None, {**fine, "force error": 2e-4, "float32": [0.0, 1e-4]}) == []
    turned_down = {"refused": "StructureError", "text": "", "seconds": 0.1}
    assert structures.judge("", None, {"found": {**answered, "batch": turned_down}, "apart": 0.0}) != []
    assert structures.judge("", True, {"found": dict.fromkeys(answered, turned_down)}) != []
    assert structures.judge("", None, {"found": dict.fromkeys(answered, turned_down)}) == []
    assert structures.judge(
        "", None, {"found": {**answered, "calculate": {"answered": True, "seconds": 11.0}}, "apart": 0.0}
    )
    assert structures.judge("", False, {"found": {"calculate": {"problem": "TypeError"}}}) != []


def test_what_has_no_energy_is_not_read() -> None:
    for atoms in (Atoms(), Atoms("C", [[np.nan, 0, 0]]), Atoms("X")):
        with pytest.raises(UnanswerableError):
            reading_of(atoms)
    assert reading_of(molecule("H2O")).numbers.tolist() == [8, 1, 1]
