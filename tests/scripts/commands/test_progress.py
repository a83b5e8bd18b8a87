"""What long work says while it is done: the thing, and how far it is."""

import re
from pathlib import Path

import ase.io
import pytest

from painn_deploy.calibration.report.validation import Options, validate
from painn_deploy.export.progress import counting, prefixed
from painn_deploy.runtime.screening import screen
from painn_deploy.scripts import export_engines
from tests import students

FRAMES = 12


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames") / "frames.extxyz"
    ase.io.write(path, [students.perturbed(students.water(), seed, 0.05) for seed in range(FRAMES)])
    return path


def counted(lines: list[str], what: str) -> dict[str, tuple[int, list[int]]]:
    """Of lines `WORDS: 3 of 12 structures`: the total, and how many were done as it went on, by the words."""
    found: dict[str, tuple[int, list[int]]] = {}
    for line in lines:
        if match := re.fullmatch(rf"(.*): (?:default set, )?(\d+) of (\d+) {what}", line):
            found.setdefault(match[1], (int(match[3]), []))[1].append(int(match[2]))
    return found


def test_counts_begin_at_none_and_end_at_all() -> None:
    lines: list[str] = []
    more = counting(prefixed(lines.append, "comparing: "), 5)
    more(2)
    more(3)
    assert lines == [f"comparing: {done} of 5 structures" for done in (0, 2, 5)]


def test_an_export_says_how_many_structures_are_done(painn: Path, frames: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    export_engines(painn, tmp_path, structures=frames, radial_table=True, max_table_error=1.0, tell=lines.append)
    found = counted(lines, "structures")
    judged = FRAMES // 5  # every fifth is held out, and the table fitted on the others
    for words, total in {
        "evaluating with the student in float64": judged,
        "evaluating with the student in float32": judged,
        "evaluating without a radial table": FRAMES - judged,
        "measuring a radial table of 16 functions and 512 intervals": FRAMES - judged,
    }.items():
        assert found[words] == (total, [0, total])
    total, done = found["comparing onnxruntime with the student in float64"]
    assert done[0] == 0
    assert total in done
    assert len(done) > 5, "one by one"
    assert "fitting a radial table of 16 functions and 512 intervals" in lines


def test_int8_says_how_many_products_are_tried(painn: Path, tmp_path: Path) -> None:
    from painn_deploy.calibration.accuracy.errors import Tolerances

    lines: list[str] = []
    limits = Tolerances(energy=1e3, forces=1e3)
    export_engines(painn, tmp_path, precisions=("int8",), limits=limits, tell=lines.append)
    tried = [line for line in lines if re.fullmatch(r"quantising \d+ of \d+ products together; .*", line)]
    assert len(tried) > 2
    assert len(set(tried)) == len(tried)


def test_validation_says_how_far_its_dynamics_are(bundle: Path, painn: Path, frames: Path) -> None:
    lines: list[str] = []
    validate([bundle], painn, Options(frames, picoseconds=0.02), tell=lines.append)
    assert counted(lines, "structures")["evaluating with the student in float64"] == (FRAMES, [0, FRAMES])
    dynamics = {words: found for words, found in counted(lines, "steps").items() if "ps of dynamics of" in words}
    assert {words.rpartition(", ")[2] for words in dynamics} >= {"student", "engine"}
    for total, done in dynamics.values():
        assert done == sorted(done)
        assert len(done) > 2
        assert done[-1] >= total
    assert any(
        re.fullmatch(r"relaxing .* with the student: (further, )?step \d+ of \d+ at most", line) for line in lines
    )
    assert any(re.fullmatch(r".*, 1 of \d+ kinds of trials", line) for line in lines)


def test_a_screening_says_how_far_the_choice_of_batches_is(
    bundle: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAINN_DEPLOY_CACHE", str(tmp_path / "cache"))
    lines: list[str] = []
    screen(bundle, frames, tmp_path / "out.extxyz", tell=lines.append)
    total, done = counted(lines, "rounds")["measuring which batches are fastest here"]
    assert done == list(range(total + 1))
