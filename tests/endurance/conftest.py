"""The command in a process of its own, as users run it: no shapes are checked there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from painn_deploy.scripts import export_engines
from tests import students

ROOT = Path(__file__).parents[2]

SHORT = 1e-6
"""A scale at which every stage has the least size that shows anything."""


def command_line(output: Path, *more: str, scale: float = SHORT) -> list[str]:
    return [sys.executable, "-m", "tests.endurance", "-o", str(output), "--scale", str(scale), *more]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "PAINN_DEPLOY_CACHE": str(cache), "PYTHONWARNINGS": "ignore"}


def run_command(output: Path, *more: str, scale: float = SHORT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command_line(output, *more, scale=scale),
        cwd=ROOT,
        env=environment(output.parent / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small student that ships, for the engine that is quick to build."""
    folder = tmp_path_factory.mktemp("shipped")
    export_engines("student:small", folder, structures=[students.water()])
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny student, and the folder of its bundle for the engine that takes long to build."""
    folder = tmp_path_factory.mktemp("compiled")
    sizes: dict[str, Any] = {"num_interactions": 1, "hidden_dim": 8, "species": [1, 6, 7, 8]}
    student = students.write(folder, "painn", **sizes)
    export_engines(student, folder, engines=["inductor"], structures=[students.water()], device="cpu", form="plain")
    return student, folder
