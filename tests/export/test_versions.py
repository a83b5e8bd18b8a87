"""What is said of installed packages, with folders of metadata that these tests make."""

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from painn_deploy.export.versions import installed, onnxruntimes
from tests.engines.test_onnxruntime_library import REAL, VERSION, distribution, python

SAID = "import sys; from painn_deploy.export.versions import installed; print(installed(sys.argv[1:]))"


def said(*names: str, path: tuple[Path, ...]) -> str:
    done = python(SAID, *names, path=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_not_installed_is_left_out() -> None:
    assert installed(["numpy", "no-such-package"]) == {"numpy": np.__version__}
    assert installed([]) == {}
    assert installed(["onnxruntime"]) == onnxruntimes() == {"onnxruntime": onnxruntime.__version__}


def test_metadata_of_an_interrupted_removal_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "hollow-1.0.dist-info").mkdir()
    (tmp_path / "onnxruntime_gpu-1.0.dist-info").mkdir()
    (tmp_path / "onnxruntime").symlink_to(REAL, target_is_directory=True)
    assert said("hollow", "onnxruntime", path=(tmp_path,)) == str({"onnxruntime": VERSION})


def test_onnxruntime_is_whatever_the_module_belongs_to(tmp_path: Path) -> None:
    distribution(tmp_path / "first", "onnxruntime-gpu")
    (tmp_path / "first" / "onnxruntime").mkdir()
    (tmp_path / "first" / "onnxruntime" / "__init__.py").touch()
    distribution(tmp_path / "second", "onnxruntime-directml")  # beside no module: another folder of the path has it
    path = (tmp_path / "first", tmp_path / "second")
    assert said("onnxruntime", "no-such-package", path=path) == str({"onnxruntime-gpu": VERSION})
    distribution(tmp_path / "first", "onnxruntime")
    assert said("onnxruntime", path=path) == str({"onnxruntime": VERSION, "onnxruntime-gpu": VERSION})
    nobody_s = tmp_path / "nobody's"
    (nobody_s / "onnxruntime").mkdir(parents=True)
    (nobody_s / "onnxruntime" / "__init__.py").touch()
    assert said("onnxruntime", path=(nobody_s, *path)) == "{}"


@pytest.fixture
def gpu_alone(tmp_path: Path) -> Path:
    """The environment's module under the name of the package for GPUs, as on a machine that has no other."""
    (tmp_path / "onnxruntime").mkdir()
    for child in REAL.iterdir():
        (tmp_path / "onnxruntime" / child.name).symlink_to(child)
    distribution(tmp_path, "onnxruntime-gpu")
    return tmp_path


def test_studies_of_speed_say_which_onnxruntime_they_ran(gpu_alone: Path, tmp_path: Path) -> None:
    code = """
from rich.console import Console
from painn_deploy.calibration.timing import Pace
from painn_deploy.scripts.benchmarks.conditions import Study, conditions
assert "onnxruntime" not in conditions(None)["versions"]
Study(Console(width=300), Pace(quick=True), 1, None).finish({})
"""
    done = python(code, path=(gpu_alone,))
    assert done.returncode == 0, done.stderr
    assert f"onnxruntime-gpu {VERSION} on 1 threads" in done.stdout


def doctor(path: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.argv[1:] = ['doctor']; from painn_deploy.scripts.cli import main; main()"
    return python(code, path=(path,))


def test_doctor_names_the_package_and_a_conflict_of_two(gpu_alone: Path) -> None:
    told = " ".join(doctor(gpu_alone).stdout.split())
    assert f"onnxruntime-gpu │ {VERSION}" in told
    assert "no GPU: no NVIDIA driver (libcuda.so.1)" in told or "the driver serves CUDA" in told
    assert "are installed in one folder" not in told
    distribution(gpu_alone, "onnxruntime")
    done = doctor(gpu_alone)
    told = " ".join(done.stdout.split())
    assert f"onnxruntime {VERSION} and onnxruntime-gpu {VERSION} are installed in one folder" in told
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in told


def test_a_package_that_was_not_installed_still_runs() -> None:
    code = """
from importlib import metadata
own = metadata.distribution
def hidden(name):
    if name == "painn-deploy":
        raise metadata.PackageNotFoundError(name)
    return own(name)
metadata.distribution = hidden
import sys; sys.argv[1:] = ["--version"]
from painn_deploy.scripts.cli import main
main()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "painn-deploy of unknown version" in done.stdout
