"""What a shell completes, asked for as a shell does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from painn_deploy.engines import BACKENDS
from painn_deploy.export.manifest import PRECISIONS
from painn_deploy.scripts.commands.typed_graphs import AUTO
from tests.scripts.test_cli import run


def completed(folder: Path, words: str) -> list[str]:
    """What the protocol of bash answers; the last word is the one that is being written."""
    variables = {
        "_PAINN_DEPLOY_COMPLETE": "complete_bash",
        "COMP_WORDS": f"painn-deploy {words}",
        "COMP_CWORD": str(len(f"painn-deploy {words}".split(" ")) - 1),
    }
    done = run(cwd=folder, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.engine", "engines/b-fp32.engine", "engines/c-fp16.engine", "other/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "frames.extxyz").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("inspect ", ["a.engine", "engines/b-fp32.engine", "engines/c-fp16.engine"]),
        ("inspect ./e", ["./engines/b-fp32.engine", "./engines/c-fp16.engine"]),
        ("md engines/b", ["engines/b-fp32.engine"]),
        ("validate a.engine engines/c", ["engines/c-fp16.engine"]),
        ("validate a.engine --compare-to engines/c", ["engines/c-fp16.engine"]),
        ("md a.engine f", []),  # the shell offers files then
        ("inspect oth", []),
        ("md a.engine x --ensemble l", ["langevin"]),
        ("export best_model --species H C --engine t", ["tensorrt", "tensorrt-rtx"]),
        ("sc", ["screen"]),
    ],
)
def test_words_are_completed(folder: Path, words: str, wanted: list[str]) -> None:
    assert completed(folder, words) == wanted


def test_names_are_those_that_there_are(folder: Path) -> None:
    assert completed(folder, "export x --engine ") == list(BACKENDS)
    assert completed(folder, "export x --precision ") == [*PRECISIONS, AUTO]


def test_a_shell_is_told_how_and_files_are_left_to_it() -> None:
    done = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F _painn_deploy_completion painn-deploy" in done.stdout
    assert "_PAINN_DEPLOY_COMPLETE=complete_bash" in done.stdout


def test_bash_itself_completes(folder: Path) -> None:
    bash = shutil.which("bash")
    assert bash, "bash runs this test"
    command = folder / "painn-deploy"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m painn_deploy.scripts.cli "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(_PAINN_DEPLOY_COMPLETE=source_bash painn-deploy)"\n'
        "COMP_WORDS=(painn-deploy inspect engines/b); COMP_CWORD=2\n"
        '_painn_deploy_completion painn-deploy\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        [bash, "--norc", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["engines/b-fp32.engine"], done.stderr


def test_starting_imports_little() -> None:
    """What only a command or a completion needs is imported when it comes to that."""
    code = (
        "import sys, atexit\nsys.argv[1:] = ['--version']\nfrom painn_deploy.scripts.cli import main\n"
        "atexit.register(lambda: print(*sys.modules))\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"torch", "onnxruntime", "onnx", "ase", "numpy", "scipy", "matplotlib", "painn_deploy.engines", "pyarrow"}
    assert not loaded & heavy
