"""The commands as a person types them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import pytest
from ase import Atoms

from painn_deploy.export.bundle import read_bundle
from painn_deploy.export.files import to_json
from painn_deploy.export.manifest import VALIDATION
from painn_deploy.runtime.familiarity import JUDGED_ON, Judged
from tests import students


def run(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "painn_deploy.scripts.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "160", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("structures") / "molecules.extxyz"
    zoo = students.zoo()
    ase.io.write(path, [zoo[name] for name in ("water", "ethanol", "triclinic")])
    return path


def test_export_then_validate(painn: Path, molecules: Path, tmp_path: Path) -> None:
    done = run("export", painn, "-o", tmp_path / "out", "--structures", molecules)
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "out" / "painn-onnxruntime-fp32.engine"
    assert f"wrote {bundle}" in done.stdout
    assert "3 structures" in done.stdout
    again = run("export", painn, "-o", tmp_path / "out")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    before = (bundle / "manifest.json").read_bytes()
    report = tmp_path / "report"
    done = run("validate", bundle, "--reference", painn, "--structures", molecules, "-o", report, "--no-audit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faithful" in done.stdout
    written = json.loads((report / "validation.json").read_text())
    assert written["bundles"][0]["force_rmse"] < 1e-5
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("command", ["inspect", "export", "doctor"])
def test_field_25_an_output_that_lacks_letters_gets_escapes(bundle: Path, tmp_path: Path, command: str) -> None:
    arguments = {"inspect": [bundle], "export": ["nothing", "-o", tmp_path / "Å"], "doctor": []}[command]
    done = run(command, *arguments, PYTHONIOENCODING="ascii")
    assert done.returncode == (2 if command == "export" else 0), done.stderr
    assert "Traceback" not in done.stderr
    assert ("\\xc5" in done.stdout) == (command == "inspect")


def test_validate_fails_past_a_limit(bundle: Path, painn: Path, molecules: Path) -> None:
    done = run(
        "validate",
        bundle,
        "--reference",
        painn,
        "--structures",
        molecules,
        "--no-audit",
        "--max-force-error",
        "1e-9eV/A",
    )
    assert done.returncode == 1
    assert "past its limit: force RMSE" in done.stdout


def test_validate_wants_the_bundle_s_own_checkpoint(bundle: Path, tmp_path: Path) -> None:
    done = run("validate", bundle, "--reference", students.write(tmp_path, "painn", seed=9))
    assert done.returncode == 2
    assert "was not made from" in done.stderr


def test_inspect_and_doctor(bundle: Path) -> None:
    done = run("inspect", bundle)
    assert done.returncode == 0
    for text in ("onnxruntime", "fp32", "unverified", "sha256", "model.onnx"):
        assert text in done.stdout
    done = run("doctor")
    assert done.returncode == 0
    assert "onnxruntime" in done.stdout
    assert "can run" in done.stdout


def test_md_leaves_frames_and_a_summary(bundle: Path, molecules: Path, tmp_path: Path) -> None:
    done = run("md", bundle, molecules, "-o", tmp_path / "md", "--steps", 25, "--every", 10, "--timestep", 0.1)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout
    assert "meV/atom/ps" in done.stdout
    frames = ase.io.read(tmp_path / "md" / "md.extxyz", index=":")
    assert len(frames) == 4  # start, 10, 20, 25
    assert frames[-1].get_forces().shape == (2, 3)
    assert len((tmp_path / "md" / "md.csv").read_text().splitlines()) == 5
    again = run("md", bundle, molecules, "-o", tmp_path / "md", "--steps", 1)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def judged_on(bundle: Path, atoms: Atoms, path: Path) -> Path:
    """The bundle, as if one structure alone had been judged; a copy without that word lies beside it."""
    read = read_bundle(bundle)
    validation = json.loads(read.file(VALIDATION))
    validation.pop(JUDGED_ON, None)
    read.with_file(VALIDATION, to_json(validation)).write(path.with_name("silent.engine"))
    judged = Judged.of([atoms], read.manifest.cutoff).as_dict()
    read.with_file(VALIDATION, to_json(validation | {JUDGED_ON: judged})).write(path)
    return path


def test_md_says_once_when_it_is_far_from_what_was_judged(bundle: Path, tmp_path: Path) -> None:
    water, start = students.water(), tmp_path / "water.extxyz"
    ase.io.write(start, water)
    judged = judged_on(bundle, water, tmp_path / "judged.engine")
    plan = ("--ensemble", "langevin", "--temperature", 3000, "--steps", 300, "--overwrite")
    far = "far from all that the bundle was judged on"

    near = run("md", judged, start, "-o", tmp_path / "near", "--steps", 20, "--timestep", 0.001)
    assert near.returncode == 0, near.stderr
    assert far not in near.stderr
    assert "every frame is near one" in near.stdout

    hot = run("md", judged, start, "-o", tmp_path / "hot", *plan)
    assert hot.returncode == 0, hot.stderr
    (line,) = [line for line in hot.stderr.splitlines() if far in line]
    step, words = re.search(r"at step (\d+) \([\d.]+ fs\): (.+)", line).groups()
    assert f"far from all at step {step} " in hot.stdout
    frames = ase.io.read(tmp_path / "hot" / "md.extxyz", index=":")
    found = [Judged.in_bundle(read_bundle(judged)).far(frame) for frame in frames]
    assert found.index(words) == int(step) // 10 > 0
    assert not any(found[: int(step) // 10])

    silent = run("md", tmp_path / "silent.engine", start, "-o", tmp_path / "silent", *plan)
    assert far not in silent.stderr
    assert "judged" not in silent.stdout
    assert (tmp_path / "silent" / "md.extxyz").read_bytes() == (tmp_path / "hot" / "md.extxyz").read_bytes()

    water.positions[1] = water.positions[0] + 1.6 * (water.positions[1] - water.positions[0])
    ase.io.write(start, water)
    broken = run("md", judged, start, "-o", tmp_path / "broken", "--steps", 20)
    assert broken.returncode == 0, broken.stderr
    (line,) = [line for line in broken.stderr.splitlines() if far in line]
    assert "at the start: the surroundings of atom" in line
    assert "far from all at the start" in broken.stdout


def test_md_that_is_interrupted_keeps_its_frames(bundle: Path, molecules: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "painn_deploy.scripts.cli", "md", bundle, molecules, "-o", tmp_path]
    with subprocess.Popen(
        [*map(str, command), "--steps", "10000000"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs the tests may ignore it
    ) as process:
        trajectory = tmp_path / "md.extxyz"
        deadline = time.monotonic() + 60
        while not (trajectory.exists() and trajectory.stat().st_size > 2000) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "every frame until then" in errors
    assert len(ase.io.read(trajectory, index=":")) >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "absent.safetensors", "-o", "out"], "There is no file"),
        (["export", "student:huge", "-o", "out"], "student:base"),
        (["export", "{painn}", "-o", "out", "--engine", "coreml"], "no engine 'coreml'"),
        (["export", "{painn}", "-o", "out", "--precision", "fp8"], "no precision 'fp8'"),
        (["export", "{painn}", "-o", "{painn}/inside"], "Cannot write"),
        (["export", "{painn}", "-o", "out", "--structures", "absent.xyz"], "Cannot read structures"),
        (["validate", "absent.engine", "--reference", "{painn}"], "not a bundle"),
        (["validate", "{bundle}", "--reference", "{painn}", "--max-force-error", "5 apples"], "not a limit such as"),
        (["validate", "{bundle}", "--reference", "{painn}", "--structures", "{uranium}"], "does not know"),
        (["md", "{bundle}", "absent.xyz"], "Cannot read structures"),
        (["md", "{bundle}", "{uranium}"], "no embedding"),
        (["md", "{bundle}", "{water}", "--ensemble", "nvt"], "none of nve, langevin"),
        (["md", "{bundle}", "{water}", "--ensemble", "npt"], "needs a cell"),
        (["md", "{bundle}", "{water}", "--ensemble", "bussi", "--temperature", "0"], "above 0 K"),
        (["md", "{bundle}", "{water}", "--timestep", "inf"], "no number that makes sense"),
        (["md", "{bundle}", "{water}", "--seed", "-5"], "seed"),
        (["validate", "{bundle}", "--reference", "{painn}", "--max-force-error", "1.2.3meV/A"], "not a limit such as"),
        (["export", "{painn}", "-o", "out", "--structures", "{uranium}"], "does not know"),
        (["demo", "--picoseconds", "0"], "picoseconds"),
        (["md", "{bundle}", "{water}", "--device", "cuda"], "painn-deploy"),
        (["inspect", "absent.engine"], "not a bundle"),
    ],
)
def test_bad_input_is_one_line_that_helps(
    arguments: list[str], message: str, painn: Path, bundle: Path, tmp_path: Path
) -> None:
    ase.io.write(tmp_path / "uranium.xyz", ase.Atoms("HU", [[0, 0, 0], [0, 0, 2.0]]))
    ase.io.write(tmp_path / "water.xyz", students.water())
    names = {"painn": painn, "bundle": bundle, "uranium": tmp_path / "uranium.xyz", "water": tmp_path / "water.xyz"}
    done = run(*(a.format(**names) for a in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_an_export_that_fails_leaves_no_bundle(painn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from painn_deploy.export.errors import ParityError
    from painn_deploy.scripts import export_engines
    from painn_deploy.scripts.commands import measuring

    def refuse(*_: object, **__: object) -> None:
        raise ParityError("wrong forces")

    monkeypatch.setattr(measuring, "check_parity", refuse)
    with pytest.raises(ParityError):
        export_engines(painn, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bundle_is_never_written_into(bundle: Path, painn: Path, molecules: Path) -> None:
    for folder in (bundle, bundle / "deeper"):
        done = run("validate", bundle, "--reference", painn, "--structures", molecules, "-o", folder)
        assert done.returncode == 2
        assert "never changes" in done.stderr
    assert run("inspect", bundle).returncode == 0


def test_names_are_not_read_as_markup(bundle: Path, painn: Path, tmp_path: Path) -> None:
    atoms = students.water()
    atoms.info["name"] = "[bold]C[C@H](N)[/C] out[1]"
    path = tmp_path / "data[bold]x.extxyz"
    ase.io.write(path, atoms)
    done = run("validate", bundle, "--reference", painn, "--structures", path, "--no-audit")
    assert done.returncode == 0, done.stderr
    assert "[C@H](N)[/C]" in done.stdout.replace("\n", "")
    assert "data[bold]x.extxyz" in done.stdout


def test_the_verdict_is_there_however_narrow_the_terminal(bundle: Path, painn: Path, molecules: Path) -> None:
    command = [sys.executable, "-m", "painn_deploy.scripts.cli", "validate", str(bundle), "--reference", str(painn)]
    done = subprocess.run(
        [*command, "--structures", str(molecules), "--no-audit"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "60"},
    )
    assert f"{bundle.name}: faithful" in done.stdout


@pytest.mark.parametrize("ensemble", ["nve", "langevin", "bussi"])
def test_a_single_atom_moves(bundle: Path, tmp_path: Path, ensemble: str) -> None:
    ase.io.write(tmp_path / "atom.xyz", ase.Atoms("O"))
    done = run("md", bundle, tmp_path / "atom.xyz", "-o", tmp_path / "md", "--steps", 5, "--ensemble", ensemble)
    assert done.returncode == 0, done.stderr


def test_dynamics_that_diverge_end_in_words(bundle: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "water.xyz", students.water())
    done = run("md", bundle, tmp_path / "water.xyz", "-o", tmp_path / "md", "--steps", 400, "--timestep", 50)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_cannot_start_leaves_an_earlier_one_alone(bundle: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "water.xyz", students.water())
    ase.io.write(tmp_path / "uranium.xyz", ase.Atoms("U"))
    done = run("md", bundle, tmp_path / "water.xyz", "-o", tmp_path / "md", "--steps", 5)
    assert done.returncode == 0
    said = " ".join(re.sub("[│┃]", " ", done.stdout).split())
    assert re.search(r"unknown: a line takes three energies, and \d were written", said), said
    before = (tmp_path / "md" / "md.extxyz").read_bytes()
    for arguments in (["uranium.xyz", "--overwrite"], ["md/md.extxyz", "--overwrite"]):
        done = run("md", bundle, tmp_path / arguments[0], "-o", tmp_path / "md", "--steps", 5, *arguments[1:])
        assert done.returncode == 2
        assert (tmp_path / "md" / "md.extxyz").read_bytes() == before
    failed = run("md", bundle, tmp_path / "uranium.xyz", "-o", tmp_path / "new", "--steps", 5)
    assert failed.returncode == 2
    assert run("md", bundle, tmp_path / "water.xyz", "-o", tmp_path / "new", "--steps", 5).returncode == 0


def test_version() -> None:
    assert run("--version").stdout.startswith("painn-deploy 0.")


def test_help_fits_a_screen() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("demo", "export", "validate", "md", "inspect", "doctor"):
        assert command in done.stdout
    assert len(done.stdout.splitlines()) < 40
