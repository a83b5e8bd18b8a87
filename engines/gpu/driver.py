"""The NVIDIA driver, asked through ctypes alone: whether there is one, what it serves, and why there is no GPU."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from painn_deploy.export.errors import EngineUnavailableError

__all__ = ["Driver", "check_driver", "driver", "gpu_name", "gpu_of"]

LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
"""The driver's library, which the driver installs; the CUDA toolkit has only a stub of it."""

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""

NAME_BYTES = 256


@dataclass(frozen=True)
class Driver:
    """GPUs and CUDA version, as the driver reports them.

    Attributes:
        found: whether there is one.
        cuda: the newest CUDA that it serves, such as (13, 0); None where it does not say.
        gpus: how many GPUs this process may use; CUDA_VISIBLE_DEVICES counts.
        reason: why there is none; empty where there is one.
    """

    found: bool
    cuda: tuple[int, int] | None
    gpus: int
    reason: str


def driver(library: str | Path = LIBRARY) -> Driver:
    """Ask the driver; raises nothing.

    Args:
        library: the driver's, by name or path.
    """
    try:
        cuda = ctypes.CDLL(str(library))
    except OSError as error:
        missing = "No such file" in str(error) or "cannot find" in str(error)
        why = f"no NVIDIA driver ({library})" if missing else f"the NVIDIA driver cannot be loaded: {error}"
        return Driver(found=False, cuda=None, gpus=0, reason=why)
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    try:
        served = None if cuda.cuDriverGetVersion(ctypes.byref(version)) else _major_and_minor(version.value)
        status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    except AttributeError as error:
        return Driver(found=False, cuda=None, gpus=0, reason=f"{library} is not an NVIDIA driver: {error}")
    gpus = 0 if status else count.value
    return Driver(found=True, cuda=served, gpus=gpus, reason="" if gpus else _reason(cuda, status))


def check_driver(needs: tuple[int, int] | None, what: str, library: str | Path = LIBRARY) -> Driver:
    """The driver's report, where it has a GPU and serves the CUDA that a library was built for.

    A driver serves every library of its own major version of CUDA, and of the earlier ones.

    Args:
        needs: CUDA's version that the library was built for; None where it is not known.
        what: the library, for the message, such as `torch 2.13.0`.
        library: the driver's, by name or path.

    Raises:
        EngineUnavailableError: there is no driver or no GPU, or the driver is too old.
    """
    here = driver(library)
    if needs is not None and here.cuda is not None and here.cuda[0] < needs[0]:
        raise EngineUnavailableError(
            f"The NVIDIA driver serves CUDA {here.cuda[0]}.{here.cuda[1]}, and {what} needs {needs[0]}: update the "
            f"driver, or install a build of {what.split()[0]} for CUDA {here.cuda[0]}."
        )
    if not here.gpus:
        raise EngineUnavailableError(f"{what} cannot use a GPU here: {here.reason}.")
    return here


def gpu_name(index: int = 0, library: str | Path = LIBRARY) -> str | None:
    """A GPU's own name, such as `NVIDIA H100 80GB HBM3`; None where the driver has no such GPU.

    Args:
        index: of the GPU.
        library: the driver's.
    """
    if not 0 <= index < driver(library).gpus:
        return None
    cuda, device, name = ctypes.CDLL(str(library)), ctypes.c_int(0), ctypes.create_string_buffer(NAME_BYTES)
    if cuda.cuDeviceGet(ctypes.byref(device), index) or cuda.cuDeviceGetName(name, NAME_BYTES, device):
        return None
    return name.value.decode(errors="replace")


def gpu_of(device: str) -> str | None:
    """The name of the GPU that a session's device is, such as `cuda:1`; None for `cpu`, or without a driver."""
    kind, _, index = device.partition(":")
    return None if kind == "cpu" or not (index or "0").isdigit() else gpu_name(int(index or 0))


def _major_and_minor(version: int) -> tuple[int, int]:
    """CUDA counts 12.4 as 12040."""
    return version // 1000, version % 1000 // 10


def _reason(cuda: ctypes.CDLL, status: int) -> str:
    """Why no GPU can be used, after cuInit or cuDeviceGetCount gave this status, or none was counted."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if status in (0, NO_DEVICE):
        return "there is no NVIDIA GPU" if visible is None else f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs"
    name = ctypes.c_char_p()
    known = cuda.cuGetErrorName(status, ctypes.byref(name)) == 0 and name.value is not None
    return f"the NVIDIA driver does not start: {(name.value or b'').decode() if known else f'error {status}'}"
