"""CUDA's headers and the driver's library, which compiling for a GPU needs beside a C++ compiler.

torch names the folders of an installed CUDA toolkit alone. Headers may come with pip instead, and a driver installs
`libcuda.so.1` for programs that run, and often no `libcuda.so` for a linker.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from painn_deploy.engines.gpu.driver import LIBRARY
from painn_deploy.engines.gpu.shared_libraries import load, pip_folders
from painn_deploy.export.errors import EngineUnavailableError

__all__ = ["toolchain"]

TOOLKIT, SYSTEM = Path("/usr/local/cuda"), Path("/usr")
"""Where a toolkit is installed, and where a distribution's package of it is."""

DRIVERS = tuple(map(Path, ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64", "/usr/lib/wsl/lib")))
"""Folders of the driver, for where the system's loader does not know it."""

PROGRAM = """
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cuda_bf16.h>
CUresult start() { return cuInit(0); }
"""
"""Headers and library that every package includes and links."""

REMEDY = (
    "Install the CUDA toolkit and set CUDA_HOME to its folder, or `pip install nvidia-cuda-runtime nvidia-cuda-crt "
    "nvidia-cuda-cccl`, of the version of CUDA that torch was built for."
)


@contextmanager
def toolchain() -> Iterator[None]:
    """Let compilers that are started in a with block find CUDA's headers and `-lcuda`.

    It holds for the whole process: CUDA_HOME, CPATH and LIBRARY_PATH are set, and set back afterwards. That everything
    is found is proved by compiling and linking a few lines.

    Raises:
        EngineUnavailableError: there is no compiler, a header is missing, or the driver's library is.
    """
    from torch.utils import cpp_extension

    home, others = _home()
    include = home / "include"
    with TemporaryDirectory() as folder:
        (Path(folder) / "libcuda.so").symlink_to(_libcuda(home))
        # gcc must not be told of its own folder: it would then look there for C++'s headers too early
        headers = [] if include == Path("/usr/include") else [include, *others]
        changed = {"CUDA_HOME": str(home), "CPATH": _before("CPATH", *headers)}
        before, torch_s = dict(os.environ), cpp_extension.CUDA_HOME
        os.environ.update({key: value for key, value in changed.items() if value})
        os.environ["LIBRARY_PATH"] = _before("LIBRARY_PATH", Path(folder))
        cpp_extension.CUDA_HOME = str(home)  # which it looked for once, when it was imported
        try:
            _prove(Path(folder))
            yield
        finally:
            cpp_extension.CUDA_HOME = torch_s
            _restore(before, (*changed, "LIBRARY_PATH"))


def _home() -> tuple[Path, list[Path]]:
    """The folder whose include/ holds cuda.h, and folders of other headers that belong to it."""
    import torch

    named = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    if nvcc := shutil.which("nvcc"):
        named += [Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent]
    for home in (*named, TOOLKIT):
        if (home / "include" / "cuda.h").is_file():
            return home, []
    by_pip = list(pip_folders("include"))
    own = f"cu{(torch.version.cuda or '').split('.')[0]}"
    for include in sorted(by_pip, key=lambda folder: folder.parent.name != own):
        if (include / "cuda.h").is_file():
            return include.parent, [folder for folder in by_pip if folder != include]
    if (SYSTEM / "include" / "cuda.h").is_file():
        return SYSTEM, []
    raise EngineUnavailableError(f"Compiling for a GPU needs CUDA's headers, and cuda.h is not found. {REMEDY}")


def _libcuda(home: Path) -> Path:
    """The driver's library, or a toolkit's stub of it, which a linker takes as well."""
    if not load(LIBRARY, ()) and (loaded := _loaded()):
        return loaded
    stubs = [*home.glob("lib*/stubs/libcuda.so"), *home.glob("targets/*/lib/stubs/libcuda.so")]
    for file in (*(folder / LIBRARY for folder in DRIVERS), *stubs):
        if file.is_file():
            return file
    raise EngineUnavailableError(
        f"Compiling for a GPU needs the NVIDIA driver's {LIBRARY} to link with, and it is not found. Install the "
        "driver; in a container, have it passed in, and its folder put into LD_LIBRARY_PATH."
    )


def _loaded() -> Path | None:
    """The file that the driver was loaded from."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = Path(line.partition("/")[2] and "/" + line.partition("/")[2])
        if path.name.startswith("libcuda.so") and path.is_file():
            return path
    return None


def _prove(folder: Path) -> None:
    """Compile and link as torch does.

    Raises:
        EngineUnavailableError: it does not work; the message has the compiler's reason.
    """
    compiler = os.environ.get("CXX", "g++")
    command = [*compiler.split(), "-x", "c++", "-", "-shared", "-fPIC", "-o", str(folder / "proof.so"), "-lcuda"]
    try:
        done = subprocess.run(command, input=PROGRAM, capture_output=True, text=True, check=False)  # noqa: S603 - the user's
    except OSError as error:
        raise EngineUnavailableError(
            f"Compiling for a GPU needs a C++ compiler, and {compiler} cannot be started ({error}): install g++, or "
            "set CXX to another one."
        ) from error
    if done.returncode:
        reason = re.search(r"(?:error: |cannot find )(.*)", done.stderr)
        raise EngineUnavailableError(
            f"Compiling for a GPU fails here: {reason.group(0) if reason else done.stderr.strip()[-300:]}. {REMEDY}"
        )


def _before(variable: str, *folders: Path) -> str:
    """A search path's value with folders before what it holds; an empty part of it would mean the current folder."""
    return os.pathsep.join(part for part in (*map(str, folders), os.environ.get(variable, "")) if part)


def _restore(before: Mapping[str, str], variables: tuple[str, ...]) -> None:
    for variable in variables:
        if variable in before:
            os.environ[variable] = before[variable]
        else:
            os.environ.pop(variable, None)
