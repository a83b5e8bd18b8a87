"""Compiling and linking for a GPU with g++ for real, against headers and a driver that these tests make."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch._inductor.cpp_builder import get_cpp_torch_device_options
from torch.utils import cpp_extension

from painn_deploy.engines.gpu import toolchain as cuda_toolchain
from painn_deploy.engines.gpu.shared_libraries import needed
from painn_deploy.engines.gpu.toolchain import toolchain
from painn_deploy.export.errors import EngineUnavailableError

from .test_driver import made_driver, shared_library

VARIABLES = ("CUDA_HOME", "CUDA_PATH", "CPATH", "LIBRARY_PATH", "CXX")
SOURCE = '#include <cuda.h>\n#include <cuda_bf16.h>\nextern "C" CUresult begin() { return cuInit(0); }\n'


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with neither CUDA nor a driver: what is put into the folder is all that there is of either."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cuda_toolchain, "TOOLKIT", tmp_path / "toolkit")
    monkeypatch.setattr(cuda_toolchain, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(cuda_toolchain, "DRIVERS", (tmp_path / "driver",))
    monkeypatch.setattr(cuda_toolchain, "LIBRARY", "libcuda.so.1-of-a-test")
    monkeypatch.setattr(cuda_toolchain.shutil, "which", lambda program: None)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    by_pip = cuda_toolchain.pip_folders  # this environment may have wheels of CUDA too

    def made_here(kind: str) -> list[Path]:
        return [folder for folder in by_pip(kind) if folder.is_relative_to(tmp_path)]

    monkeypatch.setattr(cuda_toolchain, "pip_folders", made_here)
    return tmp_path


def headers(include: Path) -> Path:
    (include / "crt").mkdir(parents=True)
    (include / "cuda.h").write_text('typedef int CUresult; extern "C" CUresult cuInit(unsigned);\n')
    (include / "cuda_runtime_api.h").write_text('#include "crt/host_defines.h"\n')
    (include / "crt" / "host_defines.h").touch()
    (include / "cuda_bf16.h").touch()
    return include


def driver(machine: Path) -> Path:
    return made_driver(machine / "driver", name="libcuda.so.1-of-a-test")


def compiled(folder: Path) -> Path:
    """What g++ makes with the folders and libraries that torch gives it for a GPU, but for torch's own."""
    _, includes, _, _, folders, libraries, _ = get_cpp_torch_device_options("cuda", aot_mode=True)
    assert "cuda" in libraries
    made = folder / "made.so"
    command = ["g++", "-x", "c++", "-", "-shared", "-fPIC", "-o", str(made), *(f"-I{i}" for i in includes)]
    command += [*(f"-L{f}" for f in folders), "-lcuda"]
    subprocess.run(command, input=SOURCE, text=True, check=True, capture_output=True)
    return made


def test_headers_by_pip_and_a_driver_without_a_name_for_linkers(machine: Path) -> None:
    driver(machine)
    headers(machine / "site" / "nvidia" / "cu13" / "include")
    with pytest.raises(OSError, match="CUDA_HOME environment variable is not set"):
        compiled(machine)
    before = dict(os.environ)
    with toolchain():
        assert "libcuda.so.1-of-a-test" in needed(compiled(machine))
    assert dict(os.environ) == before
    assert cpp_extension.CUDA_HOME is None


def test_headers_in_several_wheels_are_found(machine: Path) -> None:
    driver(machine)
    include = headers(machine / "site" / "nvidia" / "cuda_runtime" / "include")
    (machine / "site" / "nvidia" / "cuda_crt" / "include").mkdir(parents=True)
    (include / "crt").rename(machine / "site" / "nvidia" / "cuda_crt" / "include" / "crt")
    with toolchain():
        compiled(machine)


def test_a_toolkit_is_found_where_it_is_named_or_usual_with_its_stub_of_the_driver(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = ("-Wl,-soname,libcuda.so.1",)
    for home in (machine / "named", machine / "toolkit"):
        headers(home / "include")
        shared_library(home / "lib64" / "stubs" / "libcuda.so", "int cuInit(unsigned flags) { return 34; }", *stub)
    with toolchain():
        assert os.environ["CUDA_HOME"] == str(machine / "toolkit")
        assert "libcuda.so.1" in needed(compiled(machine))
    monkeypatch.setenv("CUDA_HOME", str(machine / "named"))
    monkeypatch.setenv("LIBRARY_PATH", "/before")
    with toolchain():
        assert cpp_extension.CUDA_HOME == os.environ["CUDA_HOME"] == str(machine / "named")
        assert os.environ["LIBRARY_PATH"].endswith(":/before")
        compiled(machine)
    assert os.environ["LIBRARY_PATH"] == "/before"


def test_the_driver_that_the_process_loads_is_the_one_that_is_linked(tmp_path: Path) -> None:
    home, folder = headers(tmp_path / "home" / "include").parent, tmp_path / "driver"
    made = made_driver(folder, name="libcuda.so.1")
    code = """
import os
from pathlib import Path
from painn_deploy.engines.gpu.toolchain import toolchain
with toolchain():
    print(Path(os.environ["LIBRARY_PATH"].split(":")[0], "libcuda.so").resolve())
"""
    environment = os.environ | {"CUDA_HOME": str(home), "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{made.resolve()}\n", done.stderr


def test_what_is_missing_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    with (
        pytest.raises(EngineUnavailableError, match=r"cuda\.h is not found.*CUDA_HOME.*nvidia-cuda-runtime"),
        toolchain(),
    ):
        pytest.fail("entered")
    include = headers(machine / "site" / "nvidia" / "cu13" / "include")
    with pytest.raises(EngineUnavailableError, match=r"driver's libcuda\.so\.1-of-a-test to link with"), toolchain():
        pytest.fail("entered")
    driver(machine)
    (include / "crt" / "host_defines.h").unlink()
    with (
        pytest.raises(EngineUnavailableError, match=r"crt/host_defines\.h: No such file.*nvidia-cuda-crt"),
        toolchain(),
    ):
        pytest.fail("entered")
    (include / "crt" / "host_defines.h").touch()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineUnavailableError, match="needs a C.. compiler, and no-such-compiler"), toolchain():
        pytest.fail("entered")
    monkeypatch.delenv("CXX")
    with pytest.raises(ZeroDivisionError), toolchain():
        _ = 1 / 0
    assert dict(os.environ) == before
    assert cpp_extension.CUDA_HOME is None
