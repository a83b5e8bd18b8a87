"""What the documents show, to be run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

__all__ = ["blocks_of", "commands_of", "prose_of", "run_program", "run_shell"]


def blocks_of(page: str, language: str = "python") -> list[str]:
    """The fenced blocks of a document in a language, in their order; pages are named from the root."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def prose_of(page: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)


def commands_of(page: str) -> list[str]:
    """The indented lines of a document, which are commands, without their comments; one that goes on is one."""
    lines = "\n".join(re.findall(r"^    (.*\S)$", prose_of(page), re.M)).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines]


def run_program(block: str, bundle: Path, folder: Path, name: str = "block.py") -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, in this folder."""
    program = folder / name
    program.write_text(f"bundle = {str(bundle)!r}\n{block}")
    command = [sys.executable, str(program)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def run_shell(command: str, bundle: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this folder, with the programs of this interpreter's environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    text = re.sub(r"\bBUNDLE\b", str(bundle), command).replace("scripts/", f"{ROOT}/scripts/")
    environment = {**os.environ, "PATH": path, "COLUMNS": "160"}
    done = ["bash", "-c", text]
    return subprocess.run(done, cwd=folder, env=environment, capture_output=True, text=True, check=False)
