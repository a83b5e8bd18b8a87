"""Drivers that gcc makes, asked as a real one is: the same loader, the same calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from painn_deploy.engines.gpu.driver import Driver, check_driver, driver, gpu_name
from painn_deploy.export.errors import EngineUnavailableError

SOURCE = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && (!*visible || *visible == '-') ? 100 : INIT;
}
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = GPUS; return 0; }
int cuGetErrorName(int error, const char **name) { *name = "CUDA_ERROR_OF_THIS_TEST"; return error == 999; }
int cuDeviceGet(int *device, int index) { *device = 7 + index; return index >= GPUS; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 7 ? "NVIDIA First" : "NVIDIA Second", size);
    return 0;
}
"""


def shared_library(path: Path, source: str, *flags: str) -> Path:
    """Compile C to a shared library that is known by its file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-x", "c", "-", "-x", "none", "-shared", "-fPIC", "-o", str(path), *flags]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return path


def made_driver(folder: Path, *, version: int = 13000, gpus: int = 2, status: int = 0, name: str = "driver.so") -> Path:
    """A driver; under another name than libcuda.so.1, loading it by path leaves this process without one."""
    flags = [f"-DVERSION={version}", f"-DGPUS={gpus}", f"-DINIT={status}", f"-Wl,-soname,{name}"]
    return shared_library(folder / name, SOURCE, *flags)


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_driver_with_gpus_says_what_it_serves(tmp_path: Path) -> None:
    made = made_driver(tmp_path, version=12040)
    assert driver(made) == Driver(found=True, cuda=(12, 4), gpus=2, reason="")
    assert (gpu_name(0, made), gpu_name(1, made)) == ("NVIDIA First", "NVIDIA Second")
    assert gpu_name(2, made) is gpu_name(-1, made) is None


def test_why_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = driver("libno-driver.so.1")
    assert absent == Driver(found=False, cuda=None, gpus=0, reason="no NVIDIA driver (libno-driver.so.1)")
    assert gpu_name(0, "libno-driver.so.1") is None
    (tmp_path / "text.so").write_text("this is no library, and long enough to be looked at as one" * 9)
    assert "cannot be loaded" in driver(tmp_path / "text.so").reason
    other = driver(shared_library(tmp_path / "other.so", "int anything;"))
    assert (other.found, other.gpus) == (False, 0)
    assert "is not an NVIDIA driver" in other.reason

    assert driver(made_driver(tmp_path, gpus=0, name="none.so")).reason == "there is no NVIDIA GPU"
    mismatch = driver(made_driver(tmp_path, status=803, name="mismatch.so"))
    assert mismatch == Driver(True, (13, 0), 0, "the NVIDIA driver does not start: CUDA_ERROR_OF_THIS_TEST")
    assert driver(made_driver(tmp_path, status=999, name="unknown.so")).reason.endswith("error 999")
    fine = made_driver(tmp_path)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert driver(fine) == Driver(True, (13, 0), 0, f"CUDA_VISIBLE_DEVICES={hidden!r} hides all GPUs")


def test_a_library_for_another_cuda_is_refused_with_the_remedy(tmp_path: Path) -> None:
    made = made_driver(tmp_path, version=12040)
    for fits in ((12, 9), (12, 0), (11, 8), None):
        assert check_driver(fits, "torch 2.13.0", made).gpus == 2
    with pytest.raises(
        EngineUnavailableError,
        match=r"serves CUDA 12\.4, and torch 2\.13\.0 needs 13: update the driver, or .* build of torch for CUDA 12",
    ):
        check_driver((13, 0), "torch 2.13.0", made)
    with pytest.raises(EngineUnavailableError, match=r"torch 2 cannot use a GPU here: no NVIDIA driver \(libno\.so\)"):
        check_driver((13, 0), "torch 2", "libno.so")


def test_the_driver_is_found_by_its_own_name(tmp_path: Path) -> None:
    made_driver(tmp_path, gpus=1, name="libcuda.so.1")
    code = """
from painn_deploy.engines.gpu.driver import driver, gpu_of
print(driver().gpus, *map(gpu_of, ("cuda", "cuda:0", "cuda:1", "cpu", "cuda:x")), sep=", ")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1, NVIDIA First, NVIDIA First, None, None, None\n"
